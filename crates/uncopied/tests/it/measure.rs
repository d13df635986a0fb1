//! Measuring the thresholds of this machine: what results, what is left behind, and what happens
//! where a mechanism is refused or there is no loopback interface.

use std::error::Error;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use uncopied::{Errno, Tuning, set_zero_copy_send};

use crate::harness::{in_child, in_network_namespace, refuse_call};

/// The thresholds that are measured, and the lengths at which they are.
const MEASURED: [(&str, &[u64]); 3] = [
    (
        "vmsplice_min_bytes",
        &[16 << 10, 32 << 10, 64 << 10, 256 << 10, 1 << 20],
    ),
    (
        "sendfile_min_bytes",
        &[1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 64 << 10],
    ),
    ("mmap_write_min_bytes", &[128 << 10, 256 << 10, 1 << 20]),
];

fn assert_plausible(tuning: &Tuning) {
    let default = Tuning::default();
    for key in Tuning::KEYS {
        let (bytes, default) = (tuning.get(key).unwrap(), default.get(key).unwrap());
        let lengths = MEASURED.iter().find(|(measured, _)| *measured == key);
        let is_possible = match lengths {
            Some((_, lengths)) => bytes == Tuning::NEVER || lengths.contains(&bytes),
            None if key == "region_min_bytes" => bytes == tuning.vmsplice_min_bytes,
            None => false,
        };
        assert!(bytes == default || is_possible, "{key}: {bytes}");
    }
    assert!(tuning.region_min_bytes >= tuning.vmsplice_min_bytes);
}

/// Returns how many descriptors and threads this process has.
fn resources() -> (usize, usize) {
    let count = |path| fs::read_dir(path).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

#[test]
fn measuring_changes_nothing_in_the_process() {
    in_child(
        "measure::measuring_changes_nothing_in_the_process",
        |child| {
            child.env_remove("UNCOPIED_TUNING");
        },
        || {
            let before = resources();
            for _ in 0..3 {
                let began = Instant::now();
                assert_plausible(&Tuning::measure().unwrap());
                // It takes less than 100 ms on an idle machine, and must not hang on a busy one.
                assert!(began.elapsed() < Duration::from_secs(20));
                assert_eq!(resources(), before);
                assert_eq!(uncopied::in_flight_bytes(), 0);
            }
            assert_eq!(Tuning::current(), Tuning::default());
        },
    );
}

#[test]
fn several_threads_can_measure_at_once() {
    let threads: Vec<_> = (0..2)
        .map(|_| thread::spawn(|| Tuning::measure().unwrap()))
        .collect();
    for thread in threads {
        assert_plausible(&thread.join().unwrap());
    }
}

#[test]
fn a_refused_mechanism_keeps_its_default() {
    in_child(
        "measure::a_refused_mechanism_keeps_its_default",
        |_| {},
        || {
            refuse_call(libc::SYS_vmsplice, None, Errno::PERM);
            refuse_call(libc::SYS_memfd_create, None, Errno::NOSYS);
            let before = resources();
            assert_eq!(Tuning::measure().unwrap(), Tuning::default());
            assert_eq!(resources(), before);
        },
    );
}

/// The limit on the pipe pages of a user is reached. Short pipes would make `vmsplice` look slow.
#[test]
fn without_wide_pipes_vmsplice_keeps_its_default() {
    in_child(
        "measure::without_wide_pipes_vmsplice_keeps_its_default",
        |_| {},
        || {
            refuse_call(
                libc::SYS_fcntl,
                Some(libc::F_SETPIPE_SZ as u32),
                Errno::PERM,
            );
            let tuning = Tuning::measure().unwrap();
            let default = Tuning::default();
            assert_eq!(tuning.vmsplice_min_bytes, default.vmsplice_min_bytes);
            assert_eq!(tuning.region_min_bytes, default.region_min_bytes);
            assert_plausible(&tuning);
        },
    );
}

#[test]
fn while_zero_copy_is_off_the_defaults_are_kept() {
    in_child(
        "measure::while_zero_copy_is_off_the_defaults_are_kept",
        |_| {},
        || {
            set_zero_copy_send(false);
            assert_eq!(Tuning::measure().unwrap(), Tuning::default());
        },
    );
}

#[test]
fn without_loopback_the_error_names_the_step() {
    in_network_namespace("measure::without_loopback_the_error_names_the_step", || {
        let before = resources();
        let error = Tuning::measure().unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot connect to 127.0.0.1 to measure this machine"
        );
        assert!(error.source().is_some());
        assert_eq!(resources(), before);
    });
}
