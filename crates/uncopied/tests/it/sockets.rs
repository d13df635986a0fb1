//! The types of sockets that can be sent to, and the calls that must not wait.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use uncopied::{SendFile, Sender, StreamSocket, StreamSocketExt};

#[cfg(feature = "mio")]
use crate::harness::{Family, set_nonblocking, small_buffer_pair};
use crate::harness::{expect_bytes, pattern, pattern_file, pattern_pages};

const FILE_BYTES: usize = 100_001;

/// Returns two connected sockets.
pub(crate) fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, peer)
}

/// Sends a file and pages over `socket`, and asserts that `peer` gets both.
fn assert_sends(socket: impl StreamSocket, mut peer: impl Read + Send) {
    let file = pattern_file(FILE_BYTES);
    let mut expected = pattern(FILE_BYTES);
    expected.extend(pattern(FILE_BYTES));
    expected.extend(pattern(50_000));
    std::thread::scope(|scope| {
        scope.spawn(|| expect_bytes(&mut peer, &expected));
        socket.send_file(&file, ..).unwrap();
        SendFile::new(&file).to(&socket).unwrap();
        let mut sender = Sender::new(socket);
        sender.send(pattern_pages(50_000)).unwrap();
    });
}

#[test]
fn every_handle_of_a_blocking_socket_can_be_sent_to() {
    let (socket, peer) = tcp_pair();
    assert_sends(&socket, &peer);
    assert_sends(socket.as_fd(), &peer);
    assert_sends(Arc::new(socket.try_clone().unwrap()), &peer);
    assert_sends(Rc::new(socket.try_clone().unwrap()), &peer);
    assert_sends(Box::new(socket.try_clone().unwrap()), &peer);
    assert_sends(socket, &peer);
    let (socket, peer) = UnixStream::pair().unwrap();
    assert_sends(&socket, &peer);
    assert_sends(socket, &peer);
}

/// An event loop sends with `try_send`, waits for the socket when it is full, and in the meantime
/// receives over the same socket.
#[cfg(feature = "mio")]
#[test]
fn an_event_loop_of_mio_sends_and_receives() {
    use mio::{Events, Interest, Poll, Token};
    use uncopied::ErrorKind;

    const SEND_BYTES: usize = 4 << 20;
    let (socket, mut peer) = small_buffer_pair(Family::Tcp);
    set_nonblocking(&socket);
    let mut poll = Poll::new().unwrap();
    let mut sender = Sender::new(mio::net::TcpStream::from_std(socket.into()));
    let interests = Interest::READABLE | Interest::WRITABLE;
    let registry = poll.registry();
    registry
        .register(sender.get_mut(), Token(0), interests)
        .unwrap();
    let (full, was_full) = std::sync::mpsc::channel();
    let peer = std::thread::spawn(move || {
        std::io::Write::write_all(&mut peer, b"go").unwrap();
        // A peer that reads as fast as the loop sends would never let the socket become full.
        was_full.recv().expect("the socket was never full");
        expect_bytes(&mut peer, &pattern(SEND_BYTES));
    });

    let pages = pattern_pages(SEND_BYTES);
    let (mut sent, mut received) = (0, Vec::<u8>::new());
    let mut events = Events::with_capacity(8);
    while sent < SEND_BYTES || received.len() < 2 {
        poll.poll(&mut events, None).unwrap();
        for event in &events {
            if event.is_readable() {
                let mut buffer = [0; 16];
                while let Ok(read @ 1..) = sender.get_mut().read(&mut buffer) {
                    received.extend(&buffer[..read]);
                }
            }
            if event.is_error() {
                sender.reap();
            }
            while sent < SEND_BYTES {
                match sender.try_send(pages.slice(sent..)) {
                    Ok(accepted) => sent += accepted.bytes() as usize,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                        full.send(()).unwrap();
                        break;
                    }
                }
            }
        }
    }
    drop(full);
    assert_eq!(received, b"go");
    peer.join().unwrap();
}

#[cfg(feature = "tokio")]
mod on_tokio {
    use std::io;
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream, UnixStream};
    use uncopied::tokio::{Sender, Socket, SocketExt, send_file};
    use uncopied::{ErrorKind, SendFile};

    use super::FILE_BYTES;
    use crate::harness::{pattern, pattern_file, pattern_pages};

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let peer = TcpStream::connect(address).await.unwrap();
        (listener.accept().await.unwrap().0, peer)
    }

    /// Sends a file and pages over `socket`, and asserts that `peer` gets both.
    async fn assert_sends(socket: impl Socket, peer: &mut TcpStream) {
        let file = pattern_file(FILE_BYTES);
        let mut expected = pattern(FILE_BYTES).repeat(3);
        expected.extend(pattern(50_000));
        expected.extend(pattern(10));
        expected.extend(pattern(20_000));
        let receive = async {
            let mut received = vec![0; expected.len()];
            peer.read_exact(&mut received).await.unwrap();
            assert!(received == expected, "wrong bytes");
        };
        let send = async {
            socket.send_file(&file, ..).await.unwrap();
            send_file(&file, .., &socket).await.unwrap();
            SendFile::new(&file).to_tokio(&socket).await.unwrap();
            let mut sender = Sender::new(socket);
            sender.send(pattern_pages(50_000)).await.unwrap();
            let parts = [10, 20_000].map(pattern_pages);
            sender.send_parts(parts).await.unwrap();
        };
        tokio::join!(receive, send);
    }

    #[tokio::test]
    async fn every_handle_of_a_tokio_socket_can_be_sent_to() {
        let (mut socket, mut peer) = tcp_pair().await;
        assert_sends(&socket, &mut peer).await;
        assert_sends(socket.split().1, &mut peer).await;
        let shared = Arc::new(socket);
        assert_sends(Arc::clone(&shared), &mut peer).await;
        let socket = Arc::into_inner(shared).unwrap();
        let (_reading, writing) = socket.into_split();
        assert_sends(&writing, &mut peer).await;
        assert_sends(Box::new(writing), &mut peer).await;
        let (socket, _peer) = UnixStream::pair().unwrap();
        let (_reading, writing) = socket.into_split();
        let file = pattern_file(1000);
        let report = writing.send_file(&file, ..).await.unwrap();
        assert_eq!(report.bytes(), 1000);
    }

    /// One half of a socket sends while the other half receives.
    #[tokio::test]
    async fn a_sender_of_one_half_does_not_disturb_the_other() {
        const MESSAGES: usize = 100;
        let (socket, peer) = tcp_pair().await;
        let (mut reading, writing) = socket.into_split();
        let (mut peer_reading, mut peer_writing) = peer.into_split();
        let echo =
            tokio::spawn(
                async move { tokio::io::copy(&mut peer_reading, &mut peer_writing).await },
            );
        let mut sender = Sender::new(writing);
        let send = async {
            for _ in 0..MESSAGES {
                sender.send(pattern_pages(FILE_BYTES)).await.unwrap();
            }
            sender.get_mut().shutdown().await.unwrap();
        };
        let receive = async {
            let mut received = Vec::new();
            reading.read_to_end(&mut received).await.unwrap();
            assert!(received == pattern(FILE_BYTES).repeat(MESSAGES));
        };
        tokio::join!(send, receive);
        echo.await.unwrap().unwrap();
    }

    /// What was received can be read through the sender, between two sends.
    #[tokio::test]
    async fn a_sender_can_be_read_through() {
        let (socket, mut peer) = tcp_pair().await;
        let mut sender = Sender::new(socket);
        for message in [&b"one"[..], b"two"] {
            peer.write_all(message).await.unwrap();
            let mut received = [0; 3];
            sender.get_mut().read_exact(&mut received).await.unwrap();
            assert_eq!(received, message);
            sender.send(pattern_pages(50_000)).await.unwrap();
            let mut sent = vec![0; 50_000];
            peer.read_exact(&mut sent).await.unwrap();
            assert!(sent == pattern(50_000));
        }
    }

    /// When the socket is full, `try_send` must fail at once, and `writable` must then wait until
    /// the peer has made room. Fails if `try_send` does not tell tokio that the socket is full:
    /// `writable` would return at once.
    #[tokio::test]
    async fn try_send_on_a_full_socket_would_block() {
        const SEND_BYTES: usize = 16 << 20;
        let (socket, mut peer) = tcp_pair().await;
        let mut sender = Sender::new(socket);
        let pages = pattern_pages(SEND_BYTES);
        let (mut sent, mut waits) = (0, 0);
        let receive = async {
            let mut received = vec![0; SEND_BYTES];
            peer.read_exact(&mut received).await.unwrap();
            assert!(received == pattern(SEND_BYTES));
        };
        let send = async {
            while sent < SEND_BYTES {
                match sender.try_send(pages.slice(sent..)) {
                    Ok(accepted) => sent += accepted.bytes() as usize,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                        let error = io::Error::from(error);
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        waits += 1;
                        sender.get_ref().writable().await.unwrap();
                    }
                }
            }
        };
        tokio::join!(send, receive);
        assert!((1..5000).contains(&waits), "{waits} waits");
    }
}
