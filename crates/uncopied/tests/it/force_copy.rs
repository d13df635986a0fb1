//! Switching zero-copy sends off for the whole process, switching them off for one file with
//! `force_copy`, and overwriting a file after it was sent.

use std::io::Read;
use std::os::unix::fs::FileExt;

use uncopied::{Mechanism, Report, SendFile, set_zero_copy_send, zero_copy_send_enabled};

use crate::harness::{
    DRIVERS, FAMILIES, assert_all_sent_by, deliver, in_child, pattern_file, socket_pair,
};

const FILE_BYTES: u64 = 300_001;

/// Asserts that all bytes were copied, and that the report gives the process-wide switch as the
/// reason.
fn assert_switched_off(report: &Report) {
    assert_eq!(report.by(Mechanism::Copy), FILE_BYTES, "{report}");
    assert_eq!(report.bytes(), FILE_BYTES);
    assert_eq!(report.zero_copy_bytes(), 0);
    assert!(report.switched_off());
    assert!(report.to_string().contains("switched off"), "{report}");
}

/// Sends a file with each forced mechanism and with the usual plan. Passes each report to `check`,
/// together with the forced mechanism, or with `None` for the usual plan.
fn send_with_every_mechanism(mut check: impl FnMut(Option<Mechanism>, &Report)) {
    let file = pattern_file(FILE_BYTES as usize);
    let forced = Mechanism::FILE_TO_SOCKET.map(|mechanism| vec![mechanism]);
    for forced in forced.into_iter().chain([Vec::new()]) {
        for family in FAMILIES {
            for &driver in DRIVERS {
                let send = SendFile::new(&file).force_mechanisms(&forced);
                let (result, received) = deliver(driver, family, &send, &file, 0);
                assert_eq!(received, FILE_BYTES);
                check(forced.first().copied(), &result.unwrap());
            }
        }
    }
}

// The switch affects the whole process, so each test that uses it runs in a child process.

#[test]
fn the_environment_switches_zero_copy_off() {
    in_child(
        "force_copy::the_environment_switches_zero_copy_off",
        |child| {
            child.env("UNCOPIED_SEND", "off");
        },
        || {
            assert!(!zero_copy_send_enabled());
            send_with_every_mechanism(|_, report| assert_switched_off(report));
            // A call of `set_zero_copy_send` must override the environment variable.
            set_zero_copy_send(true);
            send_with_every_mechanism(|forced, report| {
                let by = forced.unwrap_or(Mechanism::Sendfile);
                assert_all_sent_by(report, by, FILE_BYTES, "switched on again");
            });
        },
    );
}

#[test]
fn a_call_switches_zero_copy_off_and_on() {
    in_child(
        "force_copy::a_call_switches_zero_copy_off_and_on",
        |child| {
            child.env("UNCOPIED_SEND", "on");
        },
        || {
            assert!(zero_copy_send_enabled());
            for _ in 0..2 {
                set_zero_copy_send(false);
                assert!(!zero_copy_send_enabled());
                send_with_every_mechanism(|_, report| assert_switched_off(report));
                set_zero_copy_send(true);
                assert!(zero_copy_send_enabled());
                send_with_every_mechanism(|forced, report| {
                    let by = forced.unwrap_or(Mechanism::Sendfile);
                    assert_all_sent_by(report, by, FILE_BYTES, "switched on again");
                });
            }
        },
    );
}

/// With `force_copy`, all bytes must be copied even if another mechanism is forced. The report must
/// not say that zero copy is switched off, because that refers only to the process-wide switch.
#[test]
fn force_copy_overrides_forced_mechanisms() {
    let file = pattern_file(FILE_BYTES as usize);
    for family in FAMILIES {
        for &driver in DRIVERS {
            let send = SendFile::new(&file)
                .force_mechanisms(&[Mechanism::Sendfile])
                .force_copy();
            let (result, received) = deliver(driver, family, &send, &file, 0);
            assert_eq!(received, FILE_BYTES);
            assert_all_sent_by(&result.unwrap(), Mechanism::Copy, FILE_BYTES, "copied");
        }
    }
}

/// If a file is overwritten after a zero-copy send and before the peer (on the same host) has read
/// the bytes, the peer gets the new bytes, as documented. With `mmap_write`, `copy` and
/// `force_copy`, the peer gets the bytes that the file contained at the time of the call.
#[test]
fn an_overwrite_in_place_reaches_the_peer_only_with_zero_copy() {
    let size = 64 << 10;
    for family in FAMILIES {
        let forced =
            Mechanism::FILE_TO_SOCKET.map(|mechanism| (Some(mechanism), !mechanism.is_zero_copy()));
        for (mechanism, expects_old) in forced.into_iter().chain([(None, true)]) {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&vec![b'o'; size], 0).unwrap();
            let (socket, mut peer) = socket_pair(family);
            let send = SendFile::new(&file);
            let report = match mechanism {
                Some(mechanism) => send.force_mechanisms(&[mechanism]).to(&socket),
                None => send.force_copy().to(&socket),
            };
            assert_eq!(report.unwrap().bytes(), size as u64);

            file.write_all_at(&vec![b'n'; size], 0).unwrap();
            let mut received = vec![0; size];
            peer.read_exact(&mut received).unwrap();
            let expected = if expects_old { b'o' } else { b'n' };
            let wrong = received.iter().filter(|&&byte| byte != expected).count();
            assert_eq!(wrong, 0, "{mechanism:?} to {family:?}");
        }
    }
}
