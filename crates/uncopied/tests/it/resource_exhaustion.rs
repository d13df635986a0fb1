//! Processes that have run out of file descriptors or address space.

use std::fs::File;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uncopied::arena::FileMapping;
use uncopied::{Errno, Mechanism, SendFile};

use crate::harness::{
    Driver, Family, assert_all_sent_by, deliver, in_child, pattern_file, receive, socket_pair,
};

fn set_soft_limit(resource: Resource, limit: u64) {
    let maximum = getrlimit(resource).maximum;
    let current = Some(limit);
    setrlimit(resource, Rlimit { current, maximum }).unwrap();
}

/// If no descriptor is free, `splice` cannot create its pipe. It must fall back to `copy`, and
/// every byte must arrive. The other mechanisms need no further descriptor, so they must not fall
/// back.
#[test]
fn without_free_descriptors_splice_falls_back() {
    in_child(
        "resource_exhaustion::without_free_descriptors_splice_falls_back",
        |_| {},
        || {
            const FILE_BYTES: u64 = 1_000_001;
            let file = pattern_file(FILE_BYTES as usize);
            let expected = file.try_clone().unwrap();
            let pairs =
                Mechanism::FILE_TO_SOCKET.map(|mechanism| (mechanism, socket_pair(Family::Tcp)));

            set_soft_limit(Resource::Nofile, 64);
            let mut duplicates = Vec::new();
            while let Ok(duplicate) = file.try_clone() {
                duplicates.push(duplicate);
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
                    assert_eq!(receiver.join().unwrap(), FILE_BYTES - 1, "{mechanism}");
                    report
                });
                match mechanism {
                    Mechanism::Splice => {
                        assert_eq!(report.by(Mechanism::Copy), FILE_BYTES - 1);
                        let [fallback] = report.fallbacks() else {
                            panic!("{report}");
                        };
                        assert_eq!((fallback.errno, fallback.at), (Errno::MFILE, 0));
                    }
                    _ => assert_all_sent_by(
                        &report,
                        mechanism,
                        FILE_BYTES - 1,
                        "needs no descriptor",
                    ),
                }
                drop(socket);
                // Use up the descriptor that closing the socket has freed, so that the next round
                // has none either.
                while let Ok(duplicate) = file.try_clone() {
                    duplicates.push(duplicate);
                }
            }
        },
    );
}

const GIB: u64 = 1 << 30;

/// If the limit on address space leaves no room even for the smallest arena, a file cannot be given
/// addresses there, but every mechanism must still work.
#[test]
fn without_free_address_space_files_are_still_sent() {
    in_child(
        "resource_exhaustion::without_free_address_space_files_are_still_sent",
        |_| {},
        || {
            set_soft_limit(Resource::As, GIB);
            let file = Arc::new(pattern_file(1_000_001));
            let error = FileMapping::new(Arc::clone(&file), 0..1_000_001).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::NOMEM.raw_os_error()));

            for mechanism in Mechanism::FILE_TO_SOCKET {
                let plan = [mechanism];
                let send = SendFile::new(&file).force_mechanisms(&plan);
                let (result, received) = deliver(Driver::Blocking, Family::Tcp, &send, &file, 0);
                assert_eq!(received, 1_000_001);
                assert_all_sent_by(&result.unwrap(), mechanism, 1_000_001, "forced");
            }
        },
    );
}

/// If the address space is limited, the arena must leave most of it to the program. Fails if
/// `AddressSpace::reserve` ignores `ADDRESS_LIMIT_DIVISOR`.
#[test]
fn the_arena_leaves_address_space_to_the_program() {
    in_child(
        "resource_exhaustion::the_arena_leaves_address_space_to_the_program",
        |_| {},
        || {
            set_soft_limit(Resource::As, 12 * GIB);
            let file: Arc<File> = Arc::new(pattern_file(5000));
            let mapping = FileMapping::new(file, 0..5000).unwrap();
            let mut reserved: Vec<u8> = Vec::new();
            reserved.try_reserve_exact(8 * GIB as usize).unwrap();
            assert_eq!(mapping.bytes().len(), 5000);
        },
    );
}
