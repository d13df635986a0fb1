//! The switch, the copying mode, and what zero copy does not promise.

use std::io::Read;
use std::os::unix::fs::FileExt;

use uncopied::{Mechanism, Report, SendFile, set_zero_copy_send, zero_copy_send_enabled};

use crate::harness::{DRIVERS, FAMILIES, assert_all_by, deliver, file_of, in_child, pair};

const SIZE: u64 = 300_001;

fn assert_switched_off(report: &Report) {
    assert_eq!(report.by(Mechanism::Copy), SIZE, "{report}");
    assert_eq!(report.bytes(), SIZE);
    assert_eq!(report.zero_copy_bytes(), 0);
    assert!(report.switched_off());
    assert!(report.to_string().contains("switched off"), "{report}");
}

/// Sends by each mechanism and by the plan.
fn send_all(mut check: impl FnMut(Option<Mechanism>, &Report)) {
    let file = file_of(SIZE as usize);
    let forced = Mechanism::FILE_TO_SOCKET.map(|mechanism| vec![mechanism]);
    for forced in forced.into_iter().chain([Vec::new()]) {
        for family in FAMILIES {
            for &driver in DRIVERS {
                let send = SendFile::new(&file).force_mechanisms(&forced);
                let (result, received) = deliver(driver, family, &send, &file, 0);
                assert_eq!(received, SIZE);
                check(forced.first().copied(), &result.unwrap());
            }
        }
    }
}

// The switch is the process's: each of these tests has a process of its own.

#[test]
fn the_environment_switches_zero_copy_off() {
    in_child(
        "copied::the_environment_switches_zero_copy_off",
        |child| {
            child.env("UNCOPIED_SEND", "off");
        },
        || {
            assert!(!zero_copy_send_enabled());
            send_all(|_, report| assert_switched_off(report));
            // The call overrules the environment.
            set_zero_copy_send(true);
            send_all(|forced, report| {
                let by = forced.unwrap_or(Mechanism::Sendfile);
                assert_all_by(report, by, SIZE, "switched on again");
            });
        },
    );
}

#[test]
fn a_call_switches_zero_copy_off_and_on() {
    in_child(
        "copied::a_call_switches_zero_copy_off_and_on",
        |child| {
            child.env("UNCOPIED_SEND", "on");
        },
        || {
            assert!(zero_copy_send_enabled());
            for _ in 0..2 {
                set_zero_copy_send(false);
                assert!(!zero_copy_send_enabled());
                send_all(|_, report| assert_switched_off(report));
                set_zero_copy_send(true);
                assert!(zero_copy_send_enabled());
                send_all(|forced, report| {
                    let by = forced.unwrap_or(Mechanism::Sendfile);
                    assert_all_by(report, by, SIZE, "switched on again");
                });
            }
        },
    );
}

/// Whoever asks for copies gets them, whatever was forced, and it is not the switch's doing.
#[test]
fn copied_overrules_forced_mechanisms() {
    let file = file_of(SIZE as usize);
    for family in FAMILIES {
        for &driver in DRIVERS {
            let send = SendFile::new(&file)
                .force_mechanisms(&[Mechanism::Sendfile])
                .force_copy();
            let (result, received) = deliver(driver, family, &send, &file, 0);
            assert_eq!(received, SIZE);
            assert_all_by(&result.unwrap(), Mechanism::Copy, SIZE, "copied");
        }
    }
}

/// The contract that zero copy drops, as the documentation has it: what is written to the file after
/// the call and before the peer reads (on the same host) is what the peer gets. By `mmap_write`, by
/// `copy` and where copies are asked for, it gets the bytes of the call.
#[test]
fn a_file_that_is_overwritten_in_place() {
    let size = 64 << 10;
    for family in FAMILIES {
        let forced =
            Mechanism::FILE_TO_SOCKET.map(|mechanism| (Some(mechanism), !mechanism.is_zero_copy()));
        for (mechanism, old) in forced.into_iter().chain([(None, true)]) {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&vec![b'o'; size], 0).unwrap();
            let (socket, mut peer) = pair(family);
            let send = SendFile::new(&file);
            let report = match mechanism {
                Some(mechanism) => send.force_mechanisms(&[mechanism]).to(&socket),
                None => send.force_copy().to(&socket),
            };
            assert_eq!(report.unwrap().bytes(), size as u64);

            file.write_all_at(&vec![b'n'; size], 0).unwrap();
            let mut received = vec![0; size];
            peer.read_exact(&mut received).unwrap();
            let expected = if old { b'o' } else { b'n' };
            let others = received.iter().filter(|&&byte| byte != expected).count();
            assert_eq!(others, 0, "{mechanism:?} to {family:?}");
        }
    }
}
