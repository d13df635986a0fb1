//! Servers, files and a simple HTTP client for the delivery tests.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, UnixStream};
use tokio::task::JoinHandle;
use uncopied_http::{Address, FileBody, Listener, OpenFile, Stream, StreamOptions, Totals};

/// The maximum length of the first frame of a body in the default mode. The body reads this frame
/// from its file into memory instead of yielding a slice of the mapped file, because it does not
/// know yet whether a layer between the body and the socket reads the bytes. If the stream gets the
/// first frame unread, the rest of the file is sent from the mapping, such as with `sendfile`.
pub(crate) const FIRST_FRAME_BYTES: usize = 64;

/// Returns how many bytes of a file of `len` bytes a [`Stream`](uncopied_http::Stream) sends with
/// `sendfile`, if the body is in the default mode: those after the first frame, if they are not so
/// few that a copy is cheaper.
pub(crate) fn sent_with_sendfile(len: usize) -> usize {
    let rest = len.saturating_sub(FIRST_FRAME_BYTES);
    match (rest as u64) < uncopied::Tuning::default().sendfile_min_bytes {
        true => 0,
        false => rest,
    }
}

/// Returns `len` pseudo-random bytes that depend on the seed. No two pages of them are equal, so
/// that a comparison detects pages that are out of place.
pub(crate) fn random_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A generator of pseudo-random numbers.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    /// Returns the next number, which is below `bound`, or 0 if `bound` is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }
}

/// Test files, with their contents for comparison. The files are in Cargo's target directory,
/// because it is usually on a disk. The usual directory for temporary files may be a tmpfs, whose
/// files cannot be evicted from the page cache.
pub(crate) struct Files {
    dir: tempfile::TempDir,
    pub(crate) contents: Vec<Vec<u8>>,
    pub(crate) open: Vec<Arc<OpenFile>>,
}

impl Files {
    /// Creates files of these sizes with pseudo-random contents. Bodies always read or send the
    /// files themselves, because [`open_file`] keeps no content in memory.
    pub(crate) fn of(sizes: &[usize]) -> Arc<Self> {
        let contents = sizes
            .iter()
            .enumerate()
            .map(|(at, &size)| random_bytes(size, at as u64 + 1))
            .collect();
        Self::with(contents)
    }

    pub(crate) fn with(contents: Vec<Vec<u8>>) -> Arc<Self> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let open = contents.iter().enumerate().map(|(at, content)| {
            let path = dir.path().join(at.to_string());
            std::fs::write(&path, content).unwrap();
            open_file(&path)
        });
        let open = open.collect();
        Arc::new(Self {
            dir,
            contents,
            open,
        })
    }

    pub(crate) fn path(&self, at: usize) -> PathBuf {
        self.dir.path().join(at.to_string())
    }

    /// Sets the length of a file on disk, as another process might do while the file is being
    /// served.
    pub(crate) fn set_len(&self, at: usize, len: u64) {
        let file = File::options().write(true).open(self.path(at)).unwrap();
        file.set_len(len).unwrap();
    }

    /// Evicts the bytes starting at `start` from the page cache, and checks that they are gone.
    ///
    /// This may take several attempts, for two reasons. First, the kernel does not evict pages that
    /// are in use. Second, the check itself makes the kernel read ahead: if this thread is
    /// preempted during the check, the pages may be back in the cache before the check determines
    /// its result.
    pub(crate) fn evict_from(&self, at: usize, start: u64) {
        let file = File::open(self.path(at)).unwrap();
        let len = self.contents[at].len() as u64 - start;
        let is_cold = (0..100).any(|nth: u64| {
            std::thread::sleep(std::time::Duration::from_millis(20 * nth.min(1)));
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, start, None, rustix::fs::Advice::DontNeed).unwrap();
            !uncopied::residency::is_resident(&file, start, len)
        });
        assert!(
            is_cold,
            "the file must be cold: is the target directory on a tmpfs?"
        );
    }

    /// Returns the body for a request for `/FILE`, `/FILE/MODE` or `/FILE/MODE/START/END`, where
    /// `FILE` is the index of a file. The modes are `default` and `buffered`.
    pub(crate) fn body_for(&self, parts: &http::request::Parts) -> FileBody {
        let mut words = parts.uri.path().trim_start_matches('/').split('/');
        let at: usize = words.next().unwrap().parse().unwrap();
        let mode = words.next().unwrap_or("default");
        let start = words.next().map_or(0, |word| word.parse().unwrap());
        let end = words.next().map_or(self.open[at].stat().len(), |word| {
            word.parse::<u64>().unwrap()
        });
        let body = FileBody::from_file(Arc::clone(&self.open[at]), start..end);
        match mode {
            "buffered" => body.buffered(),
            "default" => body,
            other => panic!("no mode {other}"),
        }
    }
}

/// Opens a file of any size without keeping its content in memory.
pub(crate) fn open_file(path: &Path) -> Arc<OpenFile> {
    let file = File::open(path).unwrap();
    Arc::new(OpenFile::open_blocking_with_memory_limit(0, file).unwrap())
}

/// The HTTP server that runs on top of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    /// `hyper::server::conn::http1`.
    Http1,
    /// hyper-util's `auto`: HTTP/1 or HTTP/2, as the client chooses.
    Auto,
    /// `axum::serve`.
    Axum,
    /// `hyper::server::conn::http1` on tokio's own `TcpStream`. Every byte is copied, because only
    /// the body comes from this crate, and zero copy also needs this crate's [`Stream`].
    Foreign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Unix,
}

pub(crate) struct TestServer {
    address: ServerAddress,
    pub(crate) totals: Arc<Totals>,
    task: JoinHandle<()>,
    buffers: Option<usize>,
}

enum ServerAddress {
    Tcp(SocketAddr),
    Unix(tempfile::TempDir),
}

/// The settings of a server.
pub(crate) struct ServerConfig<'a> {
    pub(crate) stack: Stack,
    pub(crate) transport: Transport,
    pub(crate) mechanisms: &'a [uncopied::Mechanism],
    /// `SO_SNDBUF` of the server's sockets and `SO_RCVBUF` of the client's, in bytes. `None` keeps
    /// the kernel's defaults.
    pub(crate) buffers: Option<usize>,
}

impl Default for ServerConfig<'_> {
    fn default() -> Self {
        Self {
            stack: Stack::Http1,
            transport: Transport::Tcp,
            mechanisms: &[],
            buffers: None,
        }
    }
}

impl TestServer {
    pub(crate) fn start(
        config: &ServerConfig<'_>,
        make_body: impl Fn(&http::request::Parts) -> FileBody + Clone + Send + Sync + 'static,
    ) -> Self {
        let totals = Arc::new(Totals::default());
        let options = StreamOptions::default()
            .force_mechanisms(config.mechanisms)
            .totals(Arc::clone(&totals));
        let (listener, address) = match config.transport {
            Transport::Tcp => {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                if let Some(bytes) = config.buffers {
                    // Set the buffer size on the listener, because accepted sockets inherit it.
                    SockRef::from(&listener)
                        .set_send_buffer_size(bytes)
                        .unwrap();
                }
                let address = ServerAddress::Tcp(listener.local_addr().unwrap());
                if config.stack == Stack::Foreign {
                    let task = tokio::spawn(accept_foreign(listener, make_body));
                    return Self {
                        address,
                        totals,
                        task,
                        buffers: config.buffers,
                    };
                }
                (Listener::from_tcp(listener, options).unwrap(), address)
            }
            Transport::Unix => {
                let dir = tempfile::tempdir().unwrap();
                let listener = Listener::bind_unix(dir.path().join("socket")).unwrap();
                (listener.options(options), ServerAddress::Unix(dir))
            }
        };
        let task = match config.stack {
            Stack::Axum => tokio::spawn(serve_axum(listener, make_body)),
            stack => tokio::spawn(accept(stack, listener, config.buffers, make_body)),
        };
        Self {
            address,
            totals,
            task,
            buffers: config.buffers,
        }
    }

    pub(crate) async fn connect(&self) -> TestClient {
        let io: Box<dyn ClientIo> = match &self.address {
            ServerAddress::Tcp(address) => {
                let socket = TcpSocket::new_v4().unwrap();
                if let Some(bytes) = self.buffers {
                    socket.set_recv_buffer_size(bytes as u32).unwrap();
                }
                Box::new(socket.connect(*address).await.unwrap())
            }
            ServerAddress::Unix(dir) => Box::new(
                UnixStream::connect(dir.path().join("socket"))
                    .await
                    .unwrap(),
            ),
        };
        TestClient {
            io: BufReader::with_capacity(16 << 10, io),
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept_foreign(
    listener: std::net::TcpListener,
    make_body: impl Fn(&http::request::Parts) -> FileBody + Clone + Send + Sync + 'static,
) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        tokio::spawn(serve_http1(socket, make_body.clone()));
    }
}

async fn accept(
    stack: Stack,
    listener: Listener,
    buffers: Option<usize>,
    make_body: impl Fn(&http::request::Parts) -> FileBody + Clone + Send + Sync + 'static,
) {
    loop {
        let (stream, peer) = listener.accept().await.unwrap();
        if let (Some(bytes), Address::Unix) = (buffers, peer) {
            SockRef::from(&stream).set_send_buffer_size(bytes).unwrap();
        }
        match stack {
            Stack::Auto => {
                let make_body = make_body.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| respond(&make_body, request));
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            _ => {
                tokio::spawn(serve_http1(stream, make_body.clone()));
            }
        }
    }
}

/// Serves one connection with hyper's own HTTP/1 server.
pub(crate) async fn serve_http1(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    make_body: impl Fn(&http::request::Parts) -> FileBody + Clone + Send + Sync + 'static,
) {
    let service = service_fn(move |request| respond(&make_body, request));
    // Ignore connection errors, because each test checks on the client's side what arrived.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(io), service)
        .await;
}

fn respond(
    make_body: &impl Fn(&http::request::Parts) -> FileBody,
    request: Request<Incoming>,
) -> std::future::Ready<Result<Response<FileBody>, std::convert::Infallible>> {
    let (parts, _) = request.into_parts();
    let response = Response::new(make_body(&parts));
    std::future::ready(Ok(response))
}

async fn serve_axum(
    listener: Listener,
    make_body: impl Fn(&http::request::Parts) -> FileBody + Clone + Send + Sync + 'static,
) {
    let app = axum::Router::new().fallback(move |request: axum::extract::Request| {
        let body = axum::body::Body::new(make_body(&request.into_parts().0));
        async { Response::new(body) }
    });
    axum::serve(listener, app).await.unwrap();
}

pub(crate) trait ClientIo: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> ClientIo for T {}

/// An HTTP/1 client that gives tests access to every byte that it receives.
pub(crate) struct TestClient {
    pub(crate) io: BufReader<Box<dyn ClientIo>>,
}

impl TestClient {
    pub(crate) async fn request(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        self.io.write_all(request.as_bytes()).await.unwrap();
    }

    /// Reads the head of the next response, including the empty line at its end.
    pub(crate) async fn head(&mut self) -> io::Result<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.io.read_u8().await?);
        }
        Ok(String::from_utf8(head).unwrap())
    }

    /// Reads the next response, and returns its body. The response must have a `Content-Length`.
    pub(crate) async fn response(&mut self) -> io::Result<Vec<u8>> {
        let head = self.head().await?;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let mut body = vec![0; content_length(&head)];
        self.io.read_exact(&mut body).await?;
        Ok(body)
    }

    pub(crate) async fn get(&mut self, path: &str) -> Vec<u8> {
        self.request(path).await;
        self.response().await.unwrap()
    }

    /// Reads all bytes until the connection ends, either cleanly or with a reset.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = self.io.read(&mut buffer).await {
            rest.extend_from_slice(&buffer[..read]);
        }
        rest
    }
}

pub(crate) fn content_length(head: &str) -> usize {
    let line = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    line.expect("a Content-Length").parse().unwrap()
}

/// Asserts that the bytes are equal. Unlike `assert_eq`, a failure does not print all of them.
pub(crate) fn assert_same(got: &[u8], expected: &[u8], what: &str) {
    assert_eq!(got.len(), expected.len(), "length of {what}");
    if got != expected {
        let at = got.iter().zip(expected).position(|(a, b)| a != b);
        panic!("{what} differs, first at byte {at:?}");
    }
}

/// Awaits a future, and panics if it does not complete within 20 seconds.
pub(crate) async fn with_timeout<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("the future must complete in time")
}

/// Returns a connected TCP stream of this crate, and the tokio stream at its other end.
pub(crate) async fn stream_pair(options: StreamOptions) -> (Stream, tokio::net::TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (ours, theirs) = tokio::join!(
        tokio::net::TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    let ours = ours.unwrap();
    ours.set_nodelay(true).unwrap();
    (Stream::tcp(ours, options), theirs.unwrap().0)
}

/// Runs `body` in a child process, for tests that change or observe the state of the whole process.
///
/// The parent starts the test binary again with `test` as the only test to run. `test` must be the
/// path of the calling test. In the child, the test calls this function again, which then runs
/// `body`.
pub(crate) fn in_own_process(test: &str, environment: &[(&str, &str)], body: impl FnOnce()) {
    const CHILD: &str = "DELIVERY_TEST_IN_OWN_PROCESS";
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && stdout.contains("1 passed"),
        "{}\n{stdout}\n{}",
        child.status,
        String::from_utf8_lossy(&child.stderr)
    );
}

/// Returns a single-threaded runtime.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}
