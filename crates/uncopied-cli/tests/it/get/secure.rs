//! TLS, proxies, and where credentials go.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{fs, io, thread};

use super::scripted::{Scripted, Then, header};
use super::{get, get_fails, get_ok};
use crate::skip::skip;

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[test]
fn credentials_are_sent_to_their_server_only_and_never_shown() {
    let other = Scripted::bytes(HELLO);
    let to = other.url("x");
    let server = Scripted::start(move |_, socket, number| {
        let to = if number == 0 { "/same" } else { to.as_str() };
        let head = format!("HTTP/1.1 302 X\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
        socket.write_all(head.as_bytes()).unwrap();
        Then::KeepAlive
    });
    let directory = tempfile::tempdir().unwrap();
    let url = format!("http://me:p%40ss@{}/f", server.address);
    get_ok(
        directory.path(),
        &[&url, "-H", "Cookie: a=b", "-H", "X-Y: z"],
    );
    for head in server.heads() {
        assert_eq!(header(&head, "authorization"), Some("Basic bWU6cEBzcw=="));
        assert_eq!(header(&head, "cookie"), Some("a=b"));
    }
    let head = &other.heads()[0];
    assert_eq!(header(head, "authorization"), None, "{head}");
    assert_eq!(header(head, "cookie"), None, "{head}");
    assert_eq!(header(head, "x-y"), Some("z"), "{head}");
    drop(server);
    let missing = Scripted::bytes("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n");
    let url = format!("http://me:secret@{}/g", missing.address);
    let stderr = get_fails(
        directory.path(),
        &[&url],
        &["/g: the server responded with status 404"],
    );
    assert!(!stderr.contains("secret"), "{stderr}");
}

#[test]
fn plain_requests_go_through_a_proxy() {
    let proxy = Scripted::start(|_, socket, _| {
        socket.write_all(HELLO.as_bytes()).unwrap();
        Then::KeepAlive
    });
    let directory = tempfile::tempdir().unwrap();
    let address = format!("http://u:p@{}", proxy.address);
    let output = get(
        directory.path(),
        &["http://a.invalid/f", "http://b.invalid/g", "-P", "1"],
    )
    .env("http_proxy", &address)
    .output()
    .unwrap();
    assert!(output.status.success(), "{output:?}");
    let heads = proxy.heads();
    assert!(
        heads[0].starts_with("GET http://a.invalid/f HTTP/1.1\r\nHost: a.invalid\r\n"),
        "{heads:?}"
    );
    assert_eq!(header(&heads[1], "proxy-authorization"), Some("Basic dTpw"));
    assert_eq!(proxy.connections(), 1);
    let direct = Scripted::bytes(HELLO);
    let output = get(directory.path(), &[&direct.url("h")])
        .env("http_proxy", &address)
        .env("no_proxy", "127.0.0.1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!((proxy.heads().len(), direct.heads().len()), (2, 1));
}

/// Creates a key and a certificate for localhost.
fn certificate(directory: &Path) {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let own = rcgen::generate_simple_self_signed(names).unwrap();
    fs::write(directory.join("cert.pem"), own.cert.pem()).unwrap();
    fs::write(directory.join("key.pem"), own.signing_key.serialize_pem()).unwrap();
}

/// Whether Python, which serves over TLS here, is installed.
fn has_python(name: &str) -> bool {
    let version = Command::new("python3").arg("--version").output();
    let has_python = version.is_ok_and(|output| output.status.success());
    if !has_python {
        skip(name, "python3 is not installed (apt-get install python3)");
    }
    has_python
}

/// A server of Python's with TLS. Dropping it ends it.
struct TlsServer(Child, String);

impl TlsServer {
    /// Starts a server whose class of handlers is `H` in this script.
    fn start(directory: &Path, handler: &str) -> Self {
        let script = format!(
            "import http.server,ssl\n{handler}\n\
             s=http.server.ThreadingHTTPServer(('127.0.0.1',0),H)\n\
             c=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
             c.load_cert_chain('cert.pem','key.pem')\n\
             s.socket=c.wrap_socket(s.socket,server_side=True)\n\
             print(s.server_address[1],flush=True)\n\
             s.serve_forever()\n"
        );
        let mut child = Command::new("python3")
            .args(["-c", &script])
            .current_dir(directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        Self(child, line.trim().to_owned())
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn certificates_are_verified() {
    if !has_python("certificates_are_verified") {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    certificate(site.path());
    let data = crate::data::test_bytes(3_000_000);
    fs::write(site.path().join("f"), &data).unwrap();
    let files = "class H(http.server.SimpleHTTPRequestHandler): protocol_version='HTTP/1.1'";
    let server = TlsServer::start(site.path(), files);
    let directory = tempfile::tempdir().unwrap();
    let cacert = site.path().join("cert.pem");
    let cacert = cacert.to_str().unwrap();
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("https://{host}:{}/f", server.1);
        get_fails(directory.path(), &[&url, "-f"], &["--cacert"]);
        get_ok(directory.path(), &[&url, "--cacert", cacert, "-f"]);
        assert!(fs::read(directory.path().join("f")).unwrap() == data);
    }
    // The certificate is for another name.
    let url = format!("https://127.0.0.2:{}/f", server.1);
    let output = get(directory.path(), &[&url, "--cacert", cacert, "-f"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    // Through a tunnel.
    let port = server.1.clone();
    let proxy = Scripted::start(move |head, socket, _| {
        assert!(head.starts_with("CONNECT localhost:"), "{head}");
        let server = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let (mut from, mut to) = (server.try_clone().unwrap(), socket.try_clone().unwrap());
        let back = thread::spawn(move || io::copy(&mut from, &mut to));
        let _ = io::copy(socket, &mut &server);
        let _ = server.shutdown(Shutdown::Write);
        let _ = back.join();
        Then::Close
    });
    let url = format!("https://localhost:{}/f", server.1);
    let output = get(
        directory.path(),
        &[&url, "--cacert", cacert, "-o", "tunnelled"],
    )
    .env("https_proxy", format!("http://{}", proxy.address))
    .output()
    .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(fs::read(directory.path().join("tunnelled")).unwrap() == data);
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn a_redirect_does_not_leave_tls_unless_allowed() {
    if !has_python("a_redirect_does_not_leave_tls_unless_allowed") {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    certificate(site.path());
    let plain = Scripted::bytes(HELLO);
    let redirect = format!(
        "class H(http.server.BaseHTTPRequestHandler):\n\
         \x20   def do_GET(self):\n\
         \x20       self.send_response(302)\n\
         \x20       self.send_header('Location','{}')\n\
         \x20       self.end_headers()",
        plain.url("x")
    );
    let server = TlsServer::start(site.path(), &redirect);
    let directory = tempfile::tempdir().unwrap();
    let cacert = site.path().join("cert.pem");
    let url = format!("https://localhost:{}/f", server.1);
    let arguments = [url.as_str(), "--cacert", cacert.to_str().unwrap()];
    get_fails(
        directory.path(),
        &arguments,
        &["not encrypted", "--allow-downgrade"],
    );
    assert_eq!(plain.heads().len(), 0);
    get_ok(
        directory.path(),
        &[&arguments[..], &["--allow-downgrade"]].concat(),
    );
    assert_eq!(fs::read(directory.path().join("f")).unwrap(), b"hello");
}

/// A text that is no URL may hold a password all the same.
#[test]
fn credentials_in_what_is_no_url_are_not_printed() {
    let server = Scripted::bytes(
        "HTTP/1.1 302 X\r\nLocation: http://user:secret@[/\r\nContent-Length: 0\r\n\r\n",
    );
    let redirect = server.url("f");
    let directory = tempfile::tempdir().unwrap();
    for word in [
        "http://user:secret@host:99999/",
        "http://user:sec/secret@host/",
        "ftp://user:secret@host/f",
        "user:secret@host:99999/",
        redirect.as_str(),
    ] {
        let output = get(directory.path(), &[word, "--json"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{word}");
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8(printed).unwrap();
        assert!(!printed.contains("secret"), "{printed}");
    }
}
