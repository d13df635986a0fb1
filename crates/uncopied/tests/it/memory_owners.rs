//! Sends of bytes that the program already has: `Bytes`, `Vec<u8>`, `Arc<[u8]>` and others.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use uncopied::arena::FileMapping;
use uncopied::{Errno, ErrorKind, Mechanism, Memory, SendFile, SendOptions, Sender};

use crate::harness::{
    FAMILIES, Family, HANG_TIMEOUT, expect_bytes, in_child, memory_mechanisms, pattern,
    pattern_file, pattern_pages, sender, set_nonblocking, small_buffer_sender, unless_blocked,
    wait_until,
};

/// An owner of bytes that counts how many of its kind have been dropped.
struct CountedOwner {
    bytes: Vec<u8>,
    dropped: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for CountedOwner {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for CountedOwner {
    fn drop(&mut self) {
        // If the kernel still read the bytes, the peer would get these.
        self.bytes.fill(0xee);
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

/// Returns the pattern of `len` bytes in each kind of memory, at addresses that are not those of
/// pages.
fn every_kind(len: usize) -> Vec<(&'static str, Memory)> {
    let bytes = pattern(len);
    let mut longer = vec![0];
    longer.extend(&bytes);
    let leaked: &'static [u8] = bytes.clone().leak();
    vec![
        ("Bytes", Bytes::from(longer).slice(1..).into()),
        ("&Bytes", (&Bytes::from(bytes.clone())).into()),
        ("BytesMut", BytesMut::from(&bytes[..]).into()),
        ("Vec", bytes.clone().into()),
        ("Box", bytes.clone().into_boxed_slice().into()),
        ("Arc", Arc::<[u8]>::from(bytes.clone()).into()),
        ("&Arc", (&Arc::<[u8]>::from(bytes)).into()),
        ("static", leaked.into()),
    ]
}

#[test]
fn every_kind_of_bytes_arrives_by_every_mechanism() {
    for len in [1, 5000, 100_003] {
        for family in FAMILIES {
            for &mechanism in memory_mechanisms(family) {
                for (kind, memory) in every_kind(len) {
                    let case = format!("{kind} {len} {family:?} {mechanism}");
                    let (mut sender, mut peer) =
                        sender(family, &[mechanism], SendOptions::default());
                    let sent = std::thread::scope(|scope| {
                        scope.spawn(|| expect_bytes(&mut peer, &pattern(len)));
                        sender.send(memory).unwrap()
                    });
                    let report = sent.report();
                    if mechanism == Mechanism::Vmsplice {
                        // Ordinary memory cannot be gifted to the kernel.
                        assert_eq!(report.by(Mechanism::Copy), len as u64, "{case}");
                        assert_eq!(report.fallbacks()[0].errno, Errno::INVAL, "{case}");
                    } else {
                        assert_eq!(report.by(mechanism), len as u64, "{case}: {report}");
                    }
                    let outcome = sent.completion().wait(Some(HANG_TIMEOUT));
                    assert!(outcome.is_ok(), "{case}");
                }
            }
        }
    }
}

/// The owner must be kept until the kernel is done with its bytes, even if the sender and the
/// completion are dropped, and must then be dropped. The thread ends, because as long as it lives,
/// it processes the notifications of `send_zc` only when it uses the library.
#[test]
fn an_owner_is_kept_while_its_bytes_are_in_flight() {
    const LEN: usize = 1_000_003;
    for mechanism in [Mechanism::MsgZerocopy, Mechanism::SendZc] {
        let dropped = Arc::new(AtomicUsize::new(0));
        let (sender, mut peer) =
            small_buffer_sender(Family::Tcp, &[mechanism], SendOptions::default());
        set_nonblocking(sender.get_ref());
        let bytes = Bytes::from_owner(CountedOwner {
            bytes: pattern(LEN),
            dropped: Arc::clone(&dropped),
        });
        let accepted = std::thread::scope(|scope| {
            let sending = scope.spawn(|| send_what_fits(sender, bytes, mechanism));
            sending.join().unwrap()
        });
        assert!(0 < accepted && accepted < LEN, "{accepted}");
        assert_eq!(dropped.load(Ordering::SeqCst), 0, "{mechanism}: in flight");
        expect_bytes(&mut peer, &pattern(LEN)[..accepted]);
        drop(peer);
        let is_dropped = || dropped.load(Ordering::SeqCst) == 1;
        wait_until("the owner is dropped", is_dropped);
    }
}

/// Sends until the socket is full. Returns the number of bytes sent.
fn send_what_fits(mut sender: Sender<OwnedFd>, bytes: Bytes, mechanism: Mechanism) -> usize {
    let mut accepted = 0;
    while let Some(sent) = unless_blocked(
        sender.try_send(bytes.slice(accepted..)),
        ErrorKind::WouldBlock,
    ) {
        assert_eq!(sent.report().by(mechanism), sent.bytes(), "{mechanism}");
        accepted += sent.bytes() as usize;
    }
    accepted
}

/// The owner of a test below. Its destructor calls the library, and then panics.
struct Nasty {
    bytes: Vec<u8>,
    sender: Arc<Mutex<Sender<OwnedFd>>>,
    dropped: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Nasty {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Nasty {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
        let _ = uncopied::in_flight_bytes();
        if let Ok(sender) = self.sender.try_lock() {
            sender.reap();
        }
        panic!("the owner panics when it is dropped");
    }
}

/// Dropping an owner runs code of the program. It may call the library, and may panic: no other
/// send must suffer from that. Runs in a process of its own, because another test could otherwise
/// process the notifications, and drop the owners, at any time.
#[test]
fn dropping_an_owner_may_call_the_library_and_panic() {
    in_child(
        "memory_owners::dropping_an_owner_may_call_the_library_and_panic",
        |_| {},
        || {
            for mechanism in [Mechanism::MsgZerocopy, Mechanism::SendZc] {
                send_bytes_of_nasty_owners(mechanism);
            }
        },
    );
}

fn send_bytes_of_nasty_owners(mechanism: Mechanism) {
    const LEN: usize = 30_000;
    let (sender, mut peer) = sender(Family::Tcp, &[mechanism], SendOptions::default());
    set_socket_recv_buffer_size(&peer, 16 << 10).unwrap();
    let sender = Arc::new(Mutex::new(sender));
    let dropped = Arc::new(AtomicUsize::new(0));
    let (mut completions, mut owners) = (Vec::new(), Vec::new());
    for nth in 0..6 {
        let mut lock = sender.lock().unwrap();
        let sent = if nth % 2 == 0 {
            let bytes = Bytes::from_owner(Nasty {
                bytes: pattern(LEN),
                sender: Arc::clone(&sender),
                dropped: Arc::clone(&dropped),
            });
            owners.push(bytes.clone());
            lock.send(bytes)
        } else {
            lock.send(pattern_pages(LEN))
        };
        completions.push(sent.unwrap().into_completion());
    }
    // Leave the last handles of the owners whose bytes are in flight to the library. The other
    // owners would panic in this thread.
    let mut left = 0;
    for (owner, completion) in owners.into_iter().zip(completions.iter().step_by(2)) {
        if completion.outcome().is_none() {
            drop(owner);
            left += 1;
        } else {
            std::mem::forget(owner);
        }
    }
    assert!(left > 0, "{mechanism}: nothing is in flight");
    expect_bytes(&mut peer, &pattern(LEN).repeat(6));
    for completion in completions {
        let outcome = completion.wait(Some(HANG_TIMEOUT)).unwrap();
        assert_eq!(outcome.bytes, LEN as u64, "{mechanism}");
    }
    assert_eq!(dropped.load(Ordering::SeqCst), left, "{mechanism}");
}

/// `Bytes` made of pages are sent as pages. Those of a file mapping, which the kernel cannot read,
/// are refused, whether the file was truncated or not: if the library read them, it could get
/// zeroes in place of missing bytes.
#[test]
fn bytes_of_the_arena_are_recognised() {
    let pages = pattern_pages(100_000);
    let bytes = Bytes::from(pages.clone()).slice(7..);
    assert!(matches!(Memory::from(bytes), Memory::Pages(pages) if pages.len() == 99_993));

    let file = Arc::new(pattern_file(100_000));
    let mapped = FileMapping::new(Arc::clone(&file), 0..100_000)
        .unwrap()
        .bytes();
    for len in [100_000, 10] {
        file.set_len(len).unwrap();
        for mechanism in [Mechanism::MsgZerocopy, Mechanism::Copy] {
            let (mut sender, _peer) = sender(Family::Tcp, &[mechanism], SendOptions::default());
            let variant = Memory::Bytes(mapped.slice(5000..));
            let results = [
                sender.send(&mapped),
                sender.send(variant),
                sender.try_send(&mapped),
                sender.send_parts([Memory::from(b"head"), Memory::from(&mapped)]),
            ];
            for error in results.map(Result::unwrap_err) {
                assert_eq!((error.kind(), error.moved()), (ErrorKind::MappedFile, 0));
            }
            let send_file = SendFile::new(&file);
            for send_file in [
                send_file.clone().header(mapped.clone()),
                send_file.trailer(mapped.clone()),
            ] {
                let error = send_file.to(sender.get_ref()).unwrap_err();
                assert_eq!((error.kind(), error.moved()), (ErrorKind::MappedFile, 0));
            }
        }
    }
}
