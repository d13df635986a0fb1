//! Which files are served, and as of when.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::{ask, connect, connect_narrow, get, read_head, read_to_close};
use crate::process::Held;
use crate::server::{BIG, PROGRAM, Server, Totals, clean, program, site};
use crate::system_calls::noise;

#[test]
fn without_a_path_the_current_directory_is_served() {
    let site = site();
    let mut command = program();
    command
        .current_dir(site.path())
        .args(["serve", "--listen", "127.0.0.1:0"]);
    let server = Server::spawn(command, 1);
    assert_eq!(get(&mut connect(server.address()), "/").body, b"hello\n");
}

/// In place, by a rename, gone, back, and with the old times put back: small files, which are kept in
/// memory, and larger ones, which are kept open.
#[test]
fn a_changed_file_is_picked_up_by_the_next_request() {
    let site = tempfile::tempdir().unwrap();
    let path = site.path().join("file");
    let server = Server::start(site.path(), &["--threads", "2"]);
    let mut streams = [connect(server.address()), connect(server.address())];
    let mut expect = |expected: Option<&[u8]>, what: &str| {
        for stream in &mut streams {
            let answer = get(stream, "/file");
            assert_eq!(answer.status == 200, expected.is_some(), "{what}");
            let same = expected.is_none_or(|expected| answer.body == expected);
            assert!(same, "{what}: {} other bytes", answer.body.len());
        }
    };
    for len in [10, 5000, 16_384, 16_385, 300_000] {
        let content = |salt: u8| {
            noise(len)
                .iter()
                .map(|byte| byte ^ salt)
                .collect::<Vec<_>>()
        };
        fs::write(&path, content(1)).unwrap();
        expect(Some(&content(1)), "new");
        fs::write(&path, content(2)).unwrap();
        expect(Some(&content(2)), "written over");
        let other = site.path().join("other");
        fs::write(&other, content(3)).unwrap();
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        File::open(&other).unwrap().set_modified(before).unwrap();
        fs::rename(&other, &path).unwrap();
        expect(Some(&content(3)), "another of the same length and time");
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        (&file).write_all(b"more").unwrap();
        expect(Some(&[&content(3)[..], b"more"].concat()), "longer");
        file.set_len(5).unwrap();
        expect(Some(&content(3)[..5]), "shorter");
        fs::remove_file(&path).unwrap();
        expect(None, "gone");
    }
}

/// After three seconds a file is taken to have settled; a change is seen all the same.
#[test]
fn a_settled_file_that_changes_is_picked_up_by_the_next_request() {
    let site = tempfile::tempdir().unwrap();
    for len in [100, 100_000] {
        fs::write(site.path().join(len.to_string()), noise(len)).unwrap();
    }
    sleep(Duration::from_millis(3500));
    let server = Server::start(site.path(), &[]);
    let mut stream = connect(server.address());
    for len in [100, 100_000] {
        let target = format!("/{len}");
        for _ in 0..3 {
            assert!(get(&mut stream, &target).body == noise(len));
        }
        let other: Vec<_> = noise(len).iter().map(|byte| !byte).collect();
        fs::write(site.path().join(len.to_string()), &other).unwrap();
        for _ in 0..3 {
            assert!(
                get(&mut stream, &target).body == other,
                "{len}: out of date"
            );
        }
    }
}

#[test]
fn a_file_that_is_cut_short_while_it_is_sent_closes_the_connection() {
    for mechanism in ["auto", "splice", "mmap_write", "copy"] {
        let site = site();
        let server = Server::start(site.path(), &["--mechanism", mechanism]);
        let mut stream = connect_narrow(server.address());
        ask(&mut stream, "/big");
        ask(&mut stream, "/");
        read_head(&mut stream).unwrap();
        let big = OpenOptions::new().write(true).open(site.path().join("big"));
        big.unwrap().set_len(BIG as u64 - 1).unwrap();
        let body = read_to_close(&mut stream);
        // The next answer does not stand in for the byte that is missing.
        assert!(body.len() < BIG, "{mechanism}: {} bytes", body.len());
        assert!(
            body.iter().all(|byte| *byte == 0),
            "{mechanism}: other bytes"
        );
        assert_eq!(get(&mut connect(server.address()), "/").status, 200);
        assert_eq!(server.stop().status.code(), Some(0), "{mechanism}");
    }
}

#[test]
fn a_file_that_grows_while_it_is_sent_is_sent_as_long_as_promised() {
    for mechanism in ["auto", "splice", "mmap_write", "copy"] {
        let site = site();
        let server = Server::start(site.path(), &["--mechanism", mechanism]);
        let mut stream = connect_narrow(server.address());
        ask(&mut stream, "/big");
        read_head(&mut stream).unwrap();
        let big = OpenOptions::new()
            .append(true)
            .open(site.path().join("big"));
        big.unwrap().write_all(&[7; 100_000]).unwrap();
        let mut body = vec![1; BIG];
        std::io::Read::read_exact(&mut stream, &mut body).unwrap();
        assert!(body.iter().all(|byte| *byte == 0), "{mechanism}");
        assert_eq!(get(&mut stream, "/").body, b"hello\n", "{mechanism}");
    }
}

#[test]
fn hidden_names_and_links_that_leave_are_served_only_if_asked_for() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret\n").unwrap();
    let site = site();
    fs::write(site.path().join(".dot"), "dot\n").unwrap();
    symlink(outside.path().join("secret"), site.path().join("away")).unwrap();
    symlink("index.html", site.path().join("within")).unwrap();
    let status = |flags: &[&str]| {
        let server = Server::start(site.path(), flags);
        let mut stream = connect(server.address());
        let targets = ["/.dot", "/away", "/within", "/../secret", "/%2e%2e/secret"];
        targets.map(|target| get(&mut stream, target).status)
    };
    assert_eq!(status(&[])[..3], [404, 404, 200]);
    assert_eq!(status(&["--hidden"])[..3], [200, 404, 200]);
    assert_eq!(status(&["--follow-links"])[..3], [404, 200, 200]);
    for flags in [&[][..], &["--hidden", "--follow-links"]] {
        assert!(status(flags)[3..].iter().all(|status| *status >= 400));
    }
}

#[test]
fn listings_and_side_files_obey_their_flags() {
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("page.html"), "page\n").unwrap();
    fs::write(site.path().join("page.html.gz"), "gz").unwrap();
    let body = |flags: &[&str], request: &str| {
        let server = Server::start(site.path(), flags);
        let mut stream = connect(server.address());
        stream.write_all(request.as_bytes()).unwrap();
        crate::client::read_answer(&mut stream).unwrap()
    };
    let root = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(body(&[], root).status, 404);
    let listing = String::from_utf8(body(&["--list"], root).body).unwrap();
    assert!(listing.contains(">page.html</a>"), "{listing}");
    let zipped = "GET /page.html HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n";
    assert_eq!(body(&[], zipped).body, b"gz");
    assert_eq!(body(&["--no-precompressed"], zipped).body, b"page\n");
}

#[test]
fn the_switch_sends_every_byte_by_copy() {
    let site = site();
    let mut command = program();
    command.args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--mechanism",
        "sendfile",
    ]);
    command.arg(site.path()).env("UNCOPIED_SEND", "off");
    let server = Server::spawn(command, 1);
    assert_eq!(get(&mut connect(server.address()), "/big").body.len(), BIG);
    let totals = server.stop().totals();
    assert_eq!(totals.copy, totals.bytes);
    assert!(totals.bytes > BIG as u64);
}

#[test]
fn open_files_are_bounded_however_many_are_asked_for() {
    const FILES: usize = 400;
    const LIMIT: usize = 150;
    let site = tempfile::tempdir().unwrap();
    for number in 0..FILES {
        let content = noise(17_000 + number);
        fs::write(site.path().join(number.to_string()), content).unwrap();
    }
    let mut command = clean(Command::new("sh"));
    command.args([
        "-c",
        &format!("ulimit -n {LIMIT}; exec \"$0\" \"$@\""),
        PROGRAM,
    ]);
    command.arg("serve").arg(site.path());
    command.args(["--listen", "127.0.0.1:0", "--threads", "2"]);
    let server = Server::spawn(command, 1);
    let mut stream = connect(server.address());
    for round in 0..2 {
        for number in 0..FILES {
            let answer = get(&mut stream, &format!("/{number}"));
            assert_eq!(answer.status, 200, "round {round}, file {number}");
            assert!(answer.body == noise(17_000 + number), "{number}");
        }
    }
    let held = Held::by(server.id(), site.path());
    assert!(held.descriptors < LIMIT / 2, "{held:?}");
    assert!(held.mappings < LIMIT / 2, "{held:?}");
    let end = server.stop();
    assert_eq!(end.said.len(), 2, "{:?}", end.said);
}

#[test]
fn totals_only_grow_while_the_server_is_busy() {
    let site = site();
    let mut server = Server::start(site.path(), &["--threads", "2"]);
    let address = server.address();
    let began = Instant::now();
    let busy = || {
        let mut stream = connect(address);
        while began.elapsed() < Duration::from_secs(1) {
            get(&mut stream, "/");
            get(&mut stream, "/big");
        }
    };
    std::thread::scope(|scope| {
        let clients = [scope.spawn(busy), scope.spawn(busy)];
        let mut last = Totals::default();
        while !clients.iter().all(|client| client.is_finished()) {
            server.signal(Signal::USR1);
            let now = Totals::of(&server.wait_for(" requests, "));
            let parts = now.sendfile + now.splice + now.mmap_write + now.copy;
            assert_eq!(now.bytes, parts);
            assert!(
                now.requests >= last.requests
                    && now.sendfile >= last.sendfile
                    && now.copy >= last.copy,
                "{last:?} → {now:?}"
            );
            last = now;
            sleep(Duration::from_millis(20));
        }
        assert!(last.requests > 0 && last.sendfile > 0);
    });
}
