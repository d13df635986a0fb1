//! Streams and listeners made from tokio's sockets, and the sockets that streams give back.

use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use uncopied::Mechanism;
use uncopied_http::{Address, ConnectionSocket, Listener, Stream, StreamOptions};

use crate::delivery_harness::{Files, assert_same, random_bytes, stream_pair, with_timeout};
use crate::delivery_pages::{Freeze, pages_of};
use crate::delivery_stream::mapped;

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
    (ours.unwrap(), theirs.unwrap().0)
}

fn tcp(socket: ConnectionSocket) -> TcpStream {
    match socket {
        ConnectionSocket::Tcp(socket) => socket,
        other => panic!("not TCP: {other:?}"),
    }
}

#[tokio::test]
async fn every_way_to_make_a_stream_sets_nodelay() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = Listener::from(listener);
    let _client = TcpStream::connect(address).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = Listener::from_tokio(listener);
    let _client = TcpStream::connect(address).await.unwrap();
    let (accepted_by_second, _) = listener.accept().await.unwrap();

    let streams = [
        Stream::from(tcp_pair().await.0),
        Stream::tcp(tcp_pair().await.0, StreamOptions::default()),
        accepted,
        accepted_by_second,
    ];
    for stream in streams {
        assert!(SockRef::from(&stream).tcp_nodelay().unwrap(), "{stream:?}");
    }
}

#[tokio::test]
async fn listeners_and_streams_come_from_tokios_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = Listener::from_tokio(UnixListener::bind(&path).unwrap());
    let client = UnixStream::connect(&path).await.unwrap();
    let (mut accepted, peer) = listener.accept().await.unwrap();
    assert_eq!(
        (&peer, &accepted.peer_addr().unwrap()),
        (&Address::Unix, &Address::Unix)
    );
    let mut client = Stream::from(client);
    client.write_all(b"request").await.unwrap();
    let mut got = [0; 7];
    with_timeout(accepted.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"request");
    assert!(matches!(client.get_ref(), ConnectionSocket::Unix(_)));
    assert!(matches!(client.into_inner(), ConnectionSocket::Unix(_)));
}

#[tokio::test]
async fn a_stream_tells_its_peer_and_gives_its_socket_back() {
    let (ours, mut theirs) = tcp_pair().await;
    let own = ours.local_addr().unwrap();
    let stream = Stream::from(ours);
    let peer = Address::Tcp(theirs.local_addr().unwrap());
    assert_eq!(stream.peer_addr().unwrap(), peer);
    match stream.get_ref() {
        ConnectionSocket::Tcp(socket) => assert_eq!(socket.local_addr().unwrap(), own),
        other => panic!("not TCP: {other:?}"),
    }
    let mut socket = tcp(stream.into_inner());
    socket.write_all(b"after").await.unwrap();
    let mut got = [0; 5];
    with_timeout(theirs.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"after");
}

/// The stream sets `TCP_CORK` while it sends many bytes of a file, so that the socket holds back
/// partial packets. `into_inner` must clear the option, even in the middle of such a send.
/// Otherwise, a partial packet of the socket's next owner could be delayed by 200 ms.
#[tokio::test]
async fn a_socket_that_is_given_back_is_not_corked() {
    let files = Files::of(&[8 << 20]);
    let map = mapped(&files, 0);
    let (mut stream, mut theirs) = stream_pair(StreamOptions::default()).await;
    let sent = with_timeout(stream.write(&map)).await.unwrap();
    assert!(sent < map.len(), "the send must be unfinished");
    let mut socket = tcp(stream.into_inner());
    let is_corked = rustix::net::sockopt::tcp_cork(&socket).unwrap();
    assert!(!is_corked);

    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        all
    });
    socket.write_all(b"the next owner's").await.unwrap();
    drop(socket);
    let all = with_timeout(reading).await.unwrap();
    let expected = [&files.contents[0][..sent], b"the next owner's"].concat();
    assert_same(&all, &expected, "what arrived");
}

/// The kernel may still be reading pages that the stream has sent when `into_inner` returns the
/// socket. The bytes of these pages must arrive unchanged, and the socket must still work.
#[tokio::test]
async fn a_socket_that_is_given_back_with_pages_in_flight_stays_open() {
    let content = random_bytes(2 << 20, 9);
    for mechanisms in [&[][..], &[Mechanism::SendZc, Mechanism::Copy]] {
        let options = StreamOptions::default().force_mechanisms(mechanisms);
        let (mut stream, mut theirs) = stream_pair(options).await;
        let pages = pages_of(&content, Freeze::Reusable);
        let sent = with_timeout(stream.write(&pages)).await.unwrap();
        let mut socket = tcp(stream.into_inner());
        // The peer reads only after this pause. Until then, a send by `send_zc` may be in flight.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).await.unwrap();
            all
        });
        with_timeout(socket.write_all(b"the next owner's"))
            .await
            .unwrap();
        drop(socket);
        let all = with_timeout(reading).await.unwrap();
        let expected = [&content[..sent], b"the next owner's"].concat();
        assert_same(&all, &expected, "what arrived");
    }
}
