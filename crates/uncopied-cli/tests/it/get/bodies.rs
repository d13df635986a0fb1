//! All ways in which a body arrives.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::scripted::{Scripted, Then, Version};
use super::{get, get_fails, get_ok, names};
use crate::client::TEST_TIMEOUT;
use crate::data::test_bytes;
use crate::rng::{Rng, seed};
use crate::server::{Server, clean};
use crate::skip::skip;

const LENGTHS: [usize; 9] = [0, 1, 1024, 8191, 8193, 65_536, 262_143, 262_145, 3_000_001];

/// Downloads files of many lengths, over one connection and over four, and compares them.
fn fetch_every_length(site: &Path, base: &str) {
    for connections in ["1", "4"] {
        let directory = tempfile::tempdir().unwrap();
        let urls: Vec<_> = LENGTHS.iter().map(|len| format!("{base}/{len}")).collect();
        let mut arguments: Vec<_> = urls.iter().map(String::as_str).collect();
        arguments.extend(["--connections", connections]);
        get_ok(directory.path(), &arguments);
        assert_eq!(names(directory.path()).len(), LENGTHS.len());
        for len in LENGTHS {
            let name = len.to_string();
            let ours = fs::read(directory.path().join(&name)).unwrap();
            assert!(ours == fs::read(site.join(&name)).unwrap(), "{len}");
        }
    }
}

fn site() -> TempDir {
    let site = tempfile::tempdir().unwrap();
    for len in LENGTHS {
        fs::write(site.path().join(len.to_string()), test_bytes(len)).unwrap();
    }
    site
}

#[test]
fn serve_and_get_agree() {
    let site = site();
    let server = Server::start(site.path(), &[]);
    fetch_every_length(site.path(), server.urls[0].trim_end_matches('/'));
}

/// A server of another project. Dropping it ends it.
struct Other(Child, u16);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server with a command that gets a free port, and waits until it accepts connections.
fn start_other(name: &str, command: impl Fn(u16) -> Command) -> Option<Other> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut command = command(port);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(child) = command.spawn() else {
        skip(name, &format!("{command:?} cannot be started"));
        return None;
    };
    let mut other = Other(child, port);
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let status = other.0.try_wait().unwrap();
        assert!(status.is_none(), "{command:?} has ended: {status:?}");
        assert!(began.elapsed() < TEST_TIMEOUT);
        sleep(Duration::from_millis(10));
    }
    Some(other)
}

#[test]
fn python_and_get_agree() {
    let site = site();
    let server = start_other("python_and_get_agree", |port| {
        let mut command = clean(Command::new("python3"));
        command.args(["-m", "http.server", "--bind", "127.0.0.1"]);
        command.arg(port.to_string()).current_dir(site.path());
        command
    });
    if let Some(server) = server {
        fetch_every_length(site.path(), &format!("http://127.0.0.1:{}", server.1));
    }
}

#[test]
fn nginx_and_get_agree() {
    let site = site();
    let home = tempfile::tempdir().unwrap();
    let server = start_other("nginx_and_get_agree", |port| {
        let path = home.path().display();
        let root = site.path().display();
        let user = match rustix::process::getuid().is_root() {
            true => "user root;",
            false => "",
        };
        let config = format!(
            "daemon off; master_process off; {user} pid {path}/pid; error_log {path}/error;\n\
             events {{}}\n\
             http {{ access_log off; client_body_temp_path {path}/b; proxy_temp_path {path}/p;\n\
             fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n\
             server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
        );
        fs::write(home.path().join("conf"), config).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = clean(Command::new("nginx"));
        command.env("PATH", format!("{path}:/usr/sbin"));
        command
            .arg("-p")
            .arg(home.path())
            .arg("-c")
            .arg(home.path().join("conf"));
        command
    });
    if let Some(server) = server {
        fetch_every_length(site.path(), &format!("http://127.0.0.1:{}", server.1));
    }
}

#[test]
fn five_gibibytes_arrive_at_the_right_positions() {
    // A sparse file with a few bytes in it, some of them beyond 4 GiB.
    let site = tempfile::tempdir().unwrap();
    let file = File::create(site.path().join("big")).unwrap();
    let len: u64 = 5 << 30;
    file.set_len(len).unwrap();
    let marks = [0, (1 << 31) - 1, (4 << 30) + 5, len - 4];
    for at in marks {
        std::os::unix::fs::FileExt::write_all_at(&file, b"mark", at).unwrap();
    }
    let server = Server::start(site.path(), &[]);
    let mut child = get(site.path(), &[&format!("{}big", server.urls[0]), "-o", "-"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut buffer = vec![0; 1 << 20];
    let zeroes = vec![0; 1 << 20];
    let mut at = 0_u64;
    let mut found = Vec::new();
    loop {
        let count = stdout.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        if buffer[..count] != zeroes[..count] {
            let set = buffer[..count]
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte != 0);
            found.extend(set.map(|(index, byte)| (at + index as u64, *byte)));
        }
        at += count as u64;
    }
    assert!(child.wait().unwrap().success());
    let expected = marks.iter().flat_map(|at| {
        b"mark"
            .iter()
            .enumerate()
            .map(move |(index, byte)| (at + index as u64, *byte))
    });
    assert_eq!(found, expected.collect::<Vec<_>>());
    assert_eq!(at, len);
}

#[test]
fn chunks_of_every_size_around_the_buffers_arrive() {
    let around = |size: usize| size - 2..=size + 2;
    let sizes = [
        1..=3,
        around(8 << 10),
        around(16 << 10),
        around(64 << 10),
        around(256 << 10),
    ];
    let data = test_bytes(900_000);
    for size in sizes.into_iter().flatten() {
        // Chunks of a few bytes make long bodies of framing.
        let data = data[..data.len().min(size * 5000)].to_vec();
        let expected = data.clone();
        let server = Scripted::start(move |_, socket, _| {
            let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for chunk in data.chunks(size) {
                write!(bytes, "{:x};name=value\r\n", chunk.len()).unwrap();
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
            // Pieces of an odd length cut the framing everywhere.
            for piece in bytes.chunks(4099) {
                socket.write_all(piece).unwrap();
            }
            Then::KeepAlive
        });
        let directory = tempfile::tempdir().unwrap();
        get_ok(directory.path(), &[&server.url("f")]);
        assert!(
            fs::read(directory.path().join("f")).unwrap() == expected,
            "{size}"
        );
    }
}

#[test]
fn a_head_and_a_body_that_come_byte_by_byte_arrive() {
    for body in [
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\nhello",
    ] {
        let server = Scripted::start(move |_, socket, _| {
            socket.set_nodelay(true).unwrap();
            for byte in body.as_bytes() {
                socket.write_all(&[*byte]).unwrap();
                sleep(Duration::from_micros(300));
            }
            Then::Close
        });
        let directory = tempfile::tempdir().unwrap();
        get_ok(directory.path(), &[&server.url("f")]);
        assert_eq!(fs::read(directory.path().join("f")).unwrap(), b"hello");
    }
}

#[test]
fn connections_cut_at_random_points_lose_no_byte() {
    let seed = seed("UNCOPIED_TEST_SEED");
    println!("UNCOPIED_TEST_SEED={seed}");
    for (round, arguments) in [
        &[][..],
        &["--connections", "4"],
        &["-o", "-"],
        &["--direct"],
        &["--connections", "3", "--direct"],
    ]
    .into_iter()
    .enumerate()
    {
        let data = test_bytes(5_000_003);
        let expected = data.clone();
        let version = Version { data, tag: "\"a\"" };
        let server = Scripted::start(move |head, socket, number| {
            let mut rng = Rng::new(seed, (round * 1000 + number) as u64);
            let (response, body) = version.response(head);
            let bytes = [response.as_bytes(), body].concat();
            // Some connections end within the head.
            let most = bytes.len().min(if rng.chance(20) { 50 } else { 1 << 20 });
            let cut = if number > 0 && rng.chance(20) {
                bytes.len()
            } else {
                rng.below(most)
            };
            let _ = socket.write_all(&bytes[..cut]);
            if cut == bytes.len() {
                Then::KeepAlive
            } else {
                Then::Close
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let url = server.url("f");
        let all = [&[url.as_str(), "--retries", "50"], arguments].concat();
        let output = get_ok(directory.path(), &all);
        let got = match arguments.contains(&"-") {
            true => output.stdout,
            false => {
                assert_eq!(names(directory.path()), ["f"]);
                fs::read(directory.path().join("f")).unwrap()
            }
        };
        assert!(got == expected, "{arguments:?}");
        assert!(server.heads().len() > 1, "nothing was cut");
    }
}

#[test]
fn a_redirect_is_followed_and_does_not_change_the_name() {
    let target = Scripted::bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let to = target.url("other/name");
    for status in [301, 302, 303, 307, 308] {
        let to = to.clone();
        let server = Scripted::start(move |_, socket, number| {
            // First within this server, over the same connection.
            let to = if number == 0 { "sub/x?y" } else { to.as_str() };
            let head =
                format!("HTTP/1.1 {status} X\r\nLocation: {to}\r\nContent-Length: 4\r\n\r\ngone");
            socket.write_all(head.as_bytes()).unwrap();
            Then::KeepAlive
        });
        let directory = tempfile::tempdir().unwrap();
        get_ok(directory.path(), &[&server.url("f")]);
        assert_eq!(names(directory.path()), ["f"]);
        assert!(server.heads()[1].starts_with("GET /sub/x?y HTTP/1.1\r\n"));
        assert_eq!(server.connections(), 1);
    }
}

#[test]
fn a_reader_that_goes_away_is_a_success() {
    let version = Version {
        data: vec![1; 10 << 20],
        tag: "\"a\"",
    };
    let server = Scripted::start(move |head, socket, _| version.send(head, socket));
    let directory = tempfile::tempdir().unwrap();
    let mut child = get(directory.path(), &[&server.url("f"), "-o", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn a_body_without_a_length_cannot_be_resumed_but_starts_afresh() {
    let server = Scripted::start(|_, socket, number| {
        let body = if number == 0 {
            "5\r\nhe"
        } else {
            "5\r\nhello\r\n0\r\n\r\n"
        };
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        socket
            .write_all(format!("{head}{body}").as_bytes())
            .unwrap();
        Then::Close
    });
    let directory = tempfile::tempdir().unwrap();
    get_ok(directory.path(), &[&server.url("f")]);
    assert_eq!(fs::read(directory.path().join("f")).unwrap(), b"hello");
}

#[test]
fn standard_output_never_gets_two_versions() {
    let server = Scripted::start(|_, socket, number| {
        let head =
            format!("HTTP/1.1 200 OK\r\nETag: \"{number}\"\r\nContent-Length: 10\r\n\r\nhello");
        socket.write_all(head.as_bytes()).unwrap();
        Then::Close
    });
    let directory = tempfile::tempdir().unwrap();
    get_fails(
        directory.path(),
        &[&server.url("f"), "-o", "-"],
        &["changed on the server"],
    );
    assert_eq!(server.heads().len(), 2);
}
