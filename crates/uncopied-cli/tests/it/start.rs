//! Tests of addresses, passed sockets, limits, and mistakes on the command line.

use std::fs::File;
use std::io::Read as _;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};

use crate::client::{
    connect, connect_with_small_window, get, read_head, read_response, read_to_close,
    receives_nothing, send_get,
};
use crate::server::{BIG_FILE_BYTES, PROGRAM, Server, assert_fails, clean, program, site};

#[test]
fn the_url_is_printed_and_works() {
    let site = site();
    let server = Server::start(site.path(), &[]);
    assert!(
        server.urls[0].starts_with("http://127.0.0.1:"),
        "{:?}",
        server.urls
    );
    let response = get(&mut connect(server.address()), "/");
    assert_eq!(
        (response.status, &response.body[..]),
        (200, &b"hello\n"[..])
    );
}

#[test]
fn several_addresses_are_served_by_several_threads() {
    let site = site();
    let socket = site.path().join("a.sock");
    let listen = format!("unix:{}", socket.display());
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--listen",
        &listen,
        "--threads",
        "3",
    ];
    let server = Server::start(site.path(), &flags);
    assert_eq!(server.urls[2], listen);
    for url in &server.urls[..2] {
        let address = url.trim_start_matches("http://").trim_end_matches('/');
        for _ in 0..10 {
            assert_eq!(
                get(&mut connect(address.parse().unwrap()), "/").body,
                b"hello\n"
            );
        }
    }
    assert_eq!(
        get(&mut UnixStream::connect(&socket).unwrap(), "/").body,
        b"hello\n"
    );
    let exit = server.stop();
    assert!(exit.status.success());
    assert!(
        exit.stderr
            .last()
            .unwrap()
            .starts_with("uncopied: 21 requests, "),
        "{:?}",
        exit.stderr
    );
    assert!(!socket.exists(), "the socket's file is removed at exit");
}

#[test]
fn a_socket_on_all_addresses_has_urls_that_can_be_clicked() {
    let site = site();
    for (listen, begins) in [
        (":0", "http://localhost:"),
        ("0.0.0.0:0", "http://127.0.0.1:"),
    ] {
        let mut command = program();
        command
            .arg("serve")
            .arg(site.path())
            .args(["--listen", listen]);
        let exit = Server::spawn(command, 1).stop();
        let urls: Vec<_> = exit
            .stderr
            .iter()
            .filter_map(|line| line.rsplit_once(" on "))
            .map(|(_, url)| url)
            .collect();
        assert!(urls[0].starts_with(begins), "{urls:?}");
        for url in &urls {
            assert!(url.starts_with("http://") && url.ends_with('/'), "{url}");
            assert!(!url.contains("[::]") && !url.contains("//0.0.0.0"), "{url}");
        }
        for interface in if_addrs::get_if_addrs().unwrap().iter().take(8) {
            let ip = interface.ip();
            let is_listed = urls.iter().any(|url| url.contains(&format!("//{ip}:")));
            let is_expected = ip.is_ipv4() && !ip.is_loopback();
            assert!(is_listed || !is_expected, "{ip} is not in {urls:?}");
        }
    }
}

#[test]
fn a_root_without_an_index_file_says_what_it_gives_and_which_flag_changes_that() {
    let site = site();
    std::fs::rename(site.path().join("index.html"), site.path().join("a.html")).unwrap();
    let hint = |flags: &[&str]| {
        let exit = Server::start(site.path(), flags).stop();
        let hint = exit.stderr.iter().find(|line| line.contains(": / "));
        hint.cloned()
    };
    assert_eq!(
        hint(&[]).as_deref(),
        Some(
            "uncopied: / has no index file and listings are off, so it gives 404; --list shows the directory"
        )
    );
    assert_eq!(hint(&["--list"]), None);
    assert_eq!(hint(&["--index", "a.html"]), None);
    assert_eq!(hint(&["--spa", "a.html"]), None);
}

#[test]
fn a_unix_socket_gets_the_permissions_of_the_flag() {
    let site = site();
    let socket = site.path().join("a.sock");
    let listen = format!("unix:{}", socket.display());
    let flags = ["--listen", &listen, "--socket-mode", "606"];
    let _server = Server::start(site.path(), &flags);
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o606);
    assert_fails(
        &["serve", "--socket-mode", "rw"],
        2,
        &["--socket-mode", "660"],
    );
}

#[test]
fn an_ipv6_address_is_given_in_brackets() {
    let site = site();
    if TcpListener::bind("[::1]:0").is_err() {
        // This machine has no IPv6, so only the error message can be checked.
        assert_fails(&["serve", "--listen", "[::1]:0"], 1, &["[::1]:0"]);
        return;
    }
    let mut command = program();
    command
        .arg("serve")
        .arg(site.path())
        .args(["--listen", "[::1]:0"]);
    let server = Server::spawn(command, 1);
    assert!(server.urls[0].starts_with("http://[::1]:"));
    assert_eq!(get(&mut connect(server.address()), "/").status, 200);
}

#[test]
fn a_port_alone_means_loopback_and_flags_come_from_the_environment() {
    let site = site();
    let mut command = program();
    command
        .arg("serve")
        .env("UNCOPIED_PATH", site.path())
        .env("UNCOPIED_LISTEN", "0,127.0.0.1:0");
    command
        .env("UNCOPIED_HEADER", "X-A: 1, 2\nX-B: 3")
        .env("UNCOPIED_HIDDEN", "off");
    let server = Server::spawn(command, 2);
    assert!(server.urls[0].starts_with("http://127.0.0.1:"));
    let response = get(&mut connect(server.address()), "/");
    assert_eq!(
        (response.header("x-a"), response.header("x-b")),
        (Some("1, 2"), Some("3"))
    );
}

#[test]
fn a_stale_socket_is_replaced_but_a_live_one_is_an_error() {
    let site = site();
    let socket = site.path().join("a.sock");
    let listen = format!("unix:{}", socket.display());
    drop(UnixListener::bind(&socket).unwrap());
    let _server = Server::start(site.path(), &["--listen", &listen]);
    assert_eq!(
        get(&mut UnixStream::connect(&socket).unwrap(), "/").status,
        200
    );
    assert_fails(&["serve", "--listen", &listen], 1, &["in use", "--listen"]);
    let file = site.path().join("index.html");
    let listen = format!("unix:{}", file.display());
    assert_fails(&["serve", "--listen", &listen], 1, &["not a socket"]);
    assert!(file.exists());
}

/// Returns a command that starts the program as a service manager does: with `sockets` as the
/// descriptors starting at 3, and with `LISTEN_PID` set to `pid`. A shell expands `pid` and then
/// execs the program, so `$$` is the process ID of the program.
pub(crate) fn socket_activated(sockets: Vec<OwnedFd>, pid: &str) -> Command {
    let mut command = clean(Command::new("sh"));
    command.args([
        "-c",
        &format!("LISTEN_PID={pid} exec \"$0\" \"$@\""),
        PROGRAM,
    ]);
    command.env("LISTEN_FDS", sockets.len().to_string());
    let mappings = (3..)
        .zip(sockets)
        .map(|(child_fd, parent_fd)| FdMapping {
            parent_fd,
            child_fd,
        })
        .collect();
    command.fd_mappings(mappings).unwrap();
    command
}

#[test]
fn passed_sockets_replace_the_default_address() {
    let site = site();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let socket = site.path().join("passed.sock");
    let unix = UnixListener::bind(&socket).unwrap();
    let mut command = socket_activated(vec![tcp.into(), unix.into()], "$$");
    command.arg("serve").arg(site.path());
    let server = Server::spawn(command, 2);
    let expected = [
        format!("http://{address}/"),
        format!("unix:{}", socket.display()),
    ];
    assert_eq!(server.urls, expected);
    assert_eq!(get(&mut connect(address), "/").status, 200);
    assert_eq!(
        get(&mut UnixStream::connect(&socket).unwrap(), "/").status,
        200
    );
    assert_eq!(
        server.stop().stderr.len(),
        3,
        "two addresses, the totals, no default address"
    );
    assert!(
        socket.exists(),
        "only the process that made the socket removes it"
    );
}

#[test]
fn sockets_for_another_process_are_ignored() {
    let site = site();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let mut command = socket_activated(vec![tcp.into()], "1");
    command.arg("serve").arg(site.path());
    command.args(["--listen", "127.0.0.1:0"]);
    let server = Server::spawn(command, 1);
    assert_ne!(server.address(), address);
    assert_eq!(server.stop().stderr.len(), 2);
}

#[test]
fn passed_descriptors_that_are_not_listening_sockets_are_an_error() {
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let no_socket = File::open("/dev/null").unwrap();
    for descriptor in [OwnedFd::from(datagrams), no_socket.into()] {
        let mut command = socket_activated(vec![descriptor], "$$");
        let output = command.arg("serve").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.starts_with("uncopied: LISTEN_FDS: socket number 1 "),
            "{stderr}"
        );
    }
    let mut command = socket_activated(vec![], "$$");
    command.env("LISTEN_FDS", "18446744073709551615");
    let output = command.arg("serve").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a number up to"));
}

#[test]
fn failures_exit_1_with_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert_fails(
        &["serve", "--listen", &address],
        1,
        &[&address, "in use", "--listen"],
    );
    assert_fails(
        &["serve", "/nowhere\n"],
        1,
        &["/nowhere\\n", "no such file"],
    );
    assert_fails(
        &["serve", "/dev/null"],
        1,
        &["/dev/null", "neither a directory nor"],
    );
    assert_fails(
        &["serve", "--listen", "192.0.2.1:0"],
        1,
        &["does not have that address"],
    );
    assert_fails(
        &["serve", "--spa", "nowhere.html"],
        1,
        &["--spa", "nowhere.html"],
    );
    assert_fails(
        &["serve", "--error-page", "404=/etc/passwd"],
        1,
        &["absolute"],
    );
    let many = ["serve", "--max-connections", "10000000"];
    if rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .maximum
        .is_some_and(|limit| limit < 10_000_000)
    {
        assert_fails(&many, 1, &["--max-connections", "ulimit -n"]);
    }
}

#[test]
fn an_error_in_an_environment_variable_names_the_variable() {
    let many = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .maximum
        .is_some_and(|limit| limit < 10_000_000);
    for (variable, value, status, words) in [
        ("UNCOPIED_THREADS", "many", 2, "'many' for UNCOPIED_THREADS"),
        ("UNCOPIED_GRACE", "soon", 2, "'soon' for UNCOPIED_GRACE"),
        (
            "UNCOPIED_MECHANISM",
            "teleport",
            2,
            "for UNCOPIED_MECHANISM",
        ),
        ("UNCOPIED_LIST", "maybe", 2, "for UNCOPIED_LIST"),
        ("UNCOPIED_LISTEN", "127.0.0.1", 2, "for UNCOPIED_LISTEN"),
        (
            "UNCOPIED_SEND",
            "bogus",
            2,
            "UNCOPIED_SEND: 'bogus' is not a switch",
        ),
        ("UNCOPIED_ERROR_PAGE", "200=a", 2, "UNCOPIED_ERROR_PAGE 200"),
        ("UNCOPIED_SPA", "nowhere", 1, "UNCOPIED_SPA nowhere"),
        (
            "UNCOPIED_PATH",
            "/nowhere",
            1,
            "/nowhere (from UNCOPIED_PATH)",
        ),
        (
            "UNCOPIED_MAX_CONNECTIONS",
            "10000000",
            1,
            "UNCOPIED_MAX_CONNECTIONS 1",
        ),
    ] {
        if variable == "UNCOPIED_MAX_CONNECTIONS" && !many {
            continue;
        }
        let output = program()
            .arg("serve")
            .env(variable, value)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains(words), "{words:?} is missing in {stderr}");
        assert!(!stderr.contains("'--"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    // The command line is at fault here.
    let output = program()
        .args(["serve", "--threads", "none"])
        .env("UNCOPIED_THREADS", "2")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("'none' for '--threads <N>'"), "{stderr}");
}

#[test]
fn wrong_usage_exits_2_with_one_line() {
    for (flags, words) in [
        (&["--threads", "0"][..], &["--threads", "1..=1024"][..]),
        (&["--threads", "1025"], &["1..=1024"]),
        (&["--max-connections", "0"], &["1..=10000000"]),
        (
            &["--mechanism", "teleport"],
            &["sendfile, splice, mmap_write, copy"],
        ),
        (&["--grace", "soon"], &["--grace", "30s"]),
        (&["--send-timeout", "366d"], &["365d"]),
        (&["--listen", "127.0.0.1"], &["port is missing"]),
        (&["--header", "no-colon"], &["NAME: VALUE"]),
        (&["--header", "Content-Length: 1"], &["set by the server"]),
        (&["--cache-control", "a\nb"], &["visible"]),
        (&["--error-page", "200=index.html"], &["4xx and 5xx"]),
        (&["--lisen", "x"], &["--lisen", "'--listen'"]),
    ] {
        assert_fails(&[&["serve"], flags].concat(), 2, words);
    }
    assert_fails(&["server"], 2, &["serve"]);
}

#[test]
fn connections_beyond_the_maximum_wait_to_be_accepted() {
    let site = site();
    let flags = [
        "--max-connections",
        "2",
        "--threads",
        "2",
        "--listen",
        "127.0.0.1:0",
    ];
    let mut server = Server::start(site.path(), &flags);
    let second = server.urls[1]
        .trim_start_matches("http://")
        .trim_end_matches('/');
    // Each of the two workers waits on both listeners, but there are only two permits. Both
    // listeners must accept connections nevertheless.
    let mut first = connect_with_small_window(server.address());
    send_get(&mut first, "/big");
    read_head(&mut first).unwrap();
    let mut other = connect_with_small_window(second.parse().unwrap());
    send_get(&mut other, "/big");
    read_head(&mut other).unwrap();
    let mut waiting = connect(second.parse().unwrap());
    send_get(&mut waiting, "/");
    server.wait_for_line("all 2 connections are in use: none is idle, and new ones wait; raise");
    assert!(receives_nothing(&mut waiting, Duration::from_millis(400)));
    drop(first);
    assert_eq!(read_response(&mut waiting).unwrap().status, 200);
}

#[test]
fn a_new_connection_takes_the_place_of_the_one_that_has_been_idle_longest() {
    let site = site();
    let flags = ["--max-connections", "3", "--threads", "2"];
    let mut server = Server::start(site.path(), &flags);
    let mut busy = connect_with_small_window(server.address());
    send_get(&mut busy, "/big");
    read_head(&mut busy).unwrap();
    let mut longest = connect(server.address());
    let mut shorter = connect(server.address());
    // `shorter` has the first request and the last.
    assert_eq!(get(&mut shorter, "/").status, 200);
    assert_eq!(get(&mut longest, "/").status, 200);
    // The server's clock ticks every few milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(get(&mut shorter, "/").status, 200);
    assert_eq!(get(&mut connect(server.address()), "/").status, 200);
    assert_eq!(read_to_close(&mut longest), b"");
    server.wait_for_line("all 3 connections are in use: the longest idle one is closed");
    assert_eq!(get(&mut shorter, "/").status, 200);
    let mut body = vec![0; BIG_FILE_BYTES];
    busy.read_exact(&mut body).unwrap();
}

#[test]
fn the_descriptor_limit_is_raised() {
    let site = site();
    let server = Server::start(site.path(), &[]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.id())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let mut words = line.split_whitespace().skip(3);
    assert_eq!(words.next(), words.next(), "{line}");
}

#[test]
fn accepting_pauses_and_resumes_when_descriptors_run_out() {
    let site = site();
    let mut command = clean(Command::new("sh"));
    // Allow only 24 descriptors, which are too few for the event loops, the listener and 16
    // connections. The server never lowers its default maximum of connections below 16, so it runs
    // out of descriptors before it reaches that maximum.
    command.args(["-c", "ulimit -n 24; exec \"$0\" \"$@\"", PROGRAM, "serve"]);
    command
        .arg(site.path())
        .args(["--listen", "127.0.0.1:0", "--threads", "1"]);
    let mut server = Server::spawn(command, 1);
    let connections: Vec<_> = (0..30).map(|_| connect(server.address())).collect();
    let line = server.wait_for_line("cannot accept");
    assert!(
        line.contains("too many open files; raise the limit"),
        "{line}"
    );
    sleep(Duration::from_millis(500));
    drop(connections);
    assert_eq!(get(&mut connect(server.address()), "/").status, 200);
    let exit = server.stop();
    // The other attempts are only counted.
    let reports = exit
        .stderr
        .iter()
        .filter(|line| line.contains("cannot accept"));
    assert_eq!(reports.count(), 1, "{:?}", exit.stderr);
    let counted = |line: &String| {
        line.starts_with("uncopied: and ") && line.ends_with(" more failed accepts")
    };
    assert!(exit.stderr.iter().any(counted), "{:?}", exit.stderr);
}

#[test]
fn a_descriptor_limit_that_lowers_the_number_of_connections_is_reported() {
    let site = site();
    let mut command = clean(Command::new("sh"));
    command.args(["-c", "ulimit -n 64; exec \"$0\" \"$@\"", PROGRAM, "serve"]);
    command
        .arg(site.path())
        .args(["--listen", "127.0.0.1:0", "--threads", "1"]);
    let exit = Server::spawn(command, 1).stop();
    assert_eq!(
        exit.stderr[0],
        "uncopied: at most 16 connections at a time instead of 10000, because the descriptor limit \
         is 64; raise it (ulimit -n, LimitNOFILE=) to 13400, or set --max-connections"
    );
}
