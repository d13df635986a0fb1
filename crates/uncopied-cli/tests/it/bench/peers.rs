//! A listener of its own, as on another machine, and other programs as listener and as sender.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{assert_complete, brief, cells, results};
use crate::server::{assert_fails, program};

/// `uncopied bench --listen`. Dropping it kills it.
struct Listener {
    child: Child,
    lines: BufReader<ChildStderr>,
    address: SocketAddr,
}

impl Listener {
    fn start() -> Self {
        let mut child = program()
            .args(["bench", "--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let (_, rest) = line.split_once(" at ").unwrap();
        let address = rest.split(';').next().unwrap().parse().unwrap();
        Self {
            child,
            lines,
            address,
        }
    }

    fn wait_for_line(&mut self, text: &str) {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert_ne!(
                self.lines.read_line(&mut line).unwrap(),
                0,
                "no line has {text}"
            );
        }
    }

    /// Makes a run, and checks its results.
    fn run(&self) {
        let to = self.address.to_string();
        let output = brief(&["--to", &to, "--sizes", "16k", "--json"])
            .output()
            .unwrap();
        let results = results(&output);
        assert_eq!(results["setting"]["network"], "remote");
        assert_eq!(results["setting"]["peer"], to.as_str());
        assert!(results["setting"]["sender_cpu"].is_null());
        for cell in cells(&results).iter().filter(|it| it["refused"].is_null()) {
            assert_complete(cell);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a line, and returns the reply.
fn ask(stream: &mut TcpStream, line: &str) -> Value {
    stream.write_all(line.as_bytes()).unwrap();
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).unwrap();
    serde_json::from_str(&reply).unwrap()
}

const HELLO: &str = "{\"hello\":{\"protocol\":1}}\n";

#[test]
fn a_listener_serves_one_run_after_another_until_ctrl_c() {
    let mut listener = Listener::start();
    listener.run();
    listener.run();
    let pid = Pid::from_child(&listener.child);
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(listener.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_run_at_the_same_time_is_refused() {
    let listener = Listener::start();
    let mut first = TcpStream::connect(listener.address).unwrap();
    assert_eq!(ask(&mut first, HELLO), "welcome");
    let to = listener.address.to_string();
    let own = first.local_addr().unwrap().to_string();
    assert_fails(
        &["bench", "--to", &to],
        1,
        &["the listener refuses", &own, "try again later"],
    );
    // The first one may go on, and another one may begin after it.
    drop(first);
    let mut third = TcpStream::connect(listener.address).unwrap();
    while ask(&mut third, HELLO) != "welcome" {
        third = TcpStream::connect(listener.address).unwrap();
    }
}

#[test]
fn a_sender_that_speaks_another_language_does_not_stop_the_listener() {
    let mut listener = Listener::start();
    let mut old = TcpStream::connect(listener.address).unwrap();
    let reply = ask(&mut old, "{\"hello\":{\"protocol\":0}}\n");
    let why = reply["refused"]["why"].as_str().unwrap();
    assert!(why.contains("the same version of uncopied"), "{why}");

    let endless = vec![b'x'; 64 << 10];
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"{\"end\":{\"bytes\":1}}\n",
        &endless,
    ] {
        let mut stream = TcpStream::connect(listener.address).unwrap();
        // It may be closed before everything was sent.
        let _ = stream.write_all(garbage);
        let _ = stream.read_to_end(&mut Vec::new());
        listener.wait_for_line("does not speak the protocol");
    }
    // A number that was never given out.
    let mut data = TcpStream::connect(listener.address).unwrap();
    data.write_all(b"{\"data\":{\"number\":7}}\n").unwrap();
    listener.wait_for_line("it belongs to no measurement");
    listener.run();
}

#[test]
fn sizes_out_of_range_are_refused_by_the_listener() {
    let mut listener = Listener::start();
    for (size, period) in [
        (0_u64, 1_u64),
        (1 << 40, 1 << 40),
        (4096, 1),
        (4096, 1 << 40),
    ] {
        let mut stream = TcpStream::connect(listener.address).unwrap();
        while ask(&mut stream, HELLO) != "welcome" {
            stream = TcpStream::connect(listener.address).unwrap();
        }
        let begin = format!(
            "{{\"begin\":{{\"direction\":\"tcp_to_file\",\"mechanism\":\"copy\",\"size\":{size},\
             \"pattern\":1,\"period\":{period},\"sink_cpu\":null}}}}\n"
        );
        stream.write_all(begin.as_bytes()).unwrap();
        assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
        listener.wait_for_line("a size is out of range");
    }
    listener.run();
}

/// Lets a program that is no listener respond to a run with `reply`, and returns the run's line on
/// standard error.
fn with_fake_listener(reply: &'static [u8], keeps_open: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(reply).unwrap();
        if keeps_open {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let output = brief(&["--to", &to]).output().unwrap();
    server.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_listener_that_speaks_another_language_is_an_error() {
    let line = with_fake_listener(b"SSH-2.0-OpenSSH_9.6\r\n", true);
    assert!(
        line.contains("does not speak the protocol of `uncopied bench`"),
        "{line}"
    );
    let line = with_fake_listener(b"\"ready\"\n", true);
    assert!(
        line.contains("the reply does not fit the request"),
        "{line}"
    );
    let line = with_fake_listener(b"", false);
    assert!(line.contains("has closed the connection"), "{line}");
}

#[test]
fn a_listener_that_never_replies_is_an_error() {
    let line = with_fake_listener(b"", true);
    assert!(line.contains("has not replied within 15 s"), "{line}");
}

#[test]
fn a_machine_that_does_not_listen_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap().to_string();
    drop(listener);
    assert_fails(
        &["bench", "--to", &to],
        1,
        &["cannot connect to", &to, "uncopied bench --listen"],
    );
}
