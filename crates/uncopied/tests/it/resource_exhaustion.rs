//! Descriptors and addresses used up.

use std::fs::File;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uncopied::arena::FileMapping;
use uncopied::{Errno, Mechanism, SendFile};

use crate::harness::{Driver, Family, assert_all_by, deliver, file_of, in_child, pair, receive};

fn limit(resource: Resource, to: u64) {
    let maximum = getrlimit(resource).maximum;
    let current = Some(to);
    setrlimit(resource, Rlimit { current, maximum }).unwrap();
}

/// No descriptor is left for a pipe, nor for the mapping's own: `copy` takes over, and every byte
/// arrives. sendfile needs none.
#[test]
fn descriptors_are_used_up() {
    in_child(
        "limits::descriptors_are_used_up",
        |_| {},
        || {
            const SIZE: u64 = 1_000_001;
            let file = file_of(SIZE as usize);
            let expected = file.try_clone().unwrap();
            let pairs = Mechanism::FILE_TO_SOCKET.map(|mechanism| (mechanism, pair(Family::Tcp)));

            limit(Resource::Nofile, 64);
            let mut fill = Vec::new();
            while let Ok(one) = file.try_clone() {
                fill.push(one);
            }
            assert!(std::io::pipe().is_err(), "a descriptor is left");

            for (mechanism, (socket, mut peer)) in pairs {
                let plan = [mechanism, Mechanism::Copy];
                let send = SendFile::new(&file).force_mechanisms(&plan).range(1..);
                let expected = &expected;
                let report = std::thread::scope(|scope| {
                    let receiver = scope.spawn(move || receive(&mut peer, expected, 1));
                    let report = send.to(&socket).unwrap();
                    rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();
                    assert_eq!(receiver.join().unwrap(), SIZE - 1, "{mechanism}");
                    report
                });
                match mechanism {
                    Mechanism::Splice | Mechanism::MmapWrite => {
                        assert_eq!(report.by(Mechanism::Copy), SIZE - 1);
                        let [step] = report.fallbacks() else {
                            panic!("{report}");
                        };
                        assert_eq!((step.errno, step.at), (Errno::MFILE, 0));
                    }
                    _ => assert_all_by(&report, mechanism, SIZE - 1, "needs no descriptor"),
                }
                drop(socket);
                // What this round has given back is used up as well.
                while let Ok(one) = file.try_clone() {
                    fill.push(one);
                }
            }
        },
    );
}

const GIB: u64 = 1 << 30;

/// Address space for the process itself and for none of the arena's sizes: mapping is refused, and
/// the transfer goes another way.
#[test]
fn addresses_are_used_up() {
    in_child(
        "limits::addresses_are_used_up",
        |_| {},
        || {
            limit(Resource::As, GIB);
            let file = Arc::new(file_of(1_000_001));
            let error = FileMapping::new(Arc::clone(&file), 0..1_000_001).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::NOMEM.raw_os_error()));

            let plan = [Mechanism::MmapWrite, Mechanism::Copy];
            let send = SendFile::new(&file).force_mechanisms(&plan);
            let (result, received) = deliver(Driver::Blocking, Family::Unix, &send, &file, 0);
            let report = result.unwrap();
            assert_eq!(received, 1_000_001);
            assert_eq!(report.by(Mechanism::Copy), 1_000_001);
            assert_eq!(report.fallbacks()[0].errno, Errno::NOMEM);

            let send = SendFile::new(&file);
            let (result, received) = deliver(Driver::Blocking, Family::Tcp, &send, &file, 0);
            assert_eq!(received, 1_000_001);
            assert_all_by(&result.unwrap(), Mechanism::Sendfile, 1_000_001, "the plan");
        },
    );
}

/// Where addresses are limited, the arena leaves most of them to the program. The guard: the share in
/// `Space::reserve`.
#[test]
fn the_arena_leaves_addresses_to_the_program() {
    in_child(
        "limits::the_arena_leaves_addresses_to_the_program",
        |_| {},
        || {
            limit(Resource::As, 12 * GIB);
            let file: Arc<File> = Arc::new(file_of(5000));
            let mapping = FileMapping::new(file, 0..5000).unwrap();
            let mut rest: Vec<u8> = Vec::new();
            rest.try_reserve_exact(8 * GIB as usize).unwrap();
            assert_eq!(mapping.bytes().len(), 5000);
        },
    );
}
