//! Tests of which files are served, how changes to them appear, and the variable `UNCOPIED_SEND`.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::{connect, connect_with_small_window, get, read_head, read_to_close, send_get};
use crate::data::{test_bytes, wait_until_files_are_stable};
use crate::process::ProcessResources;
use crate::server::{BIG_FILE_BYTES, PROGRAM, Server, Totals, clean, program, site};

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

#[test]
fn copies_of_a_site_have_the_same_tags_unless_they_are_strict_or_off() {
    let modified = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let sites = [site(), site()];
    let touch = |site: &tempfile::TempDir| {
        let file = OpenOptions::new().write(true).open(site.path().join("big"));
        let file = file.unwrap();
        file.set_modified(modified).unwrap();
        let metadata = file.metadata().unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let first = touch(&sites[0]);
    // Repeat until the kernel's clock has ticked.
    while touch(&sites[1]) == first {}
    wait_until_files_are_stable();
    for (flags, have_tags, are_equal) in [
        (&[][..], true, true),
        (&["--etag", "strict"], true, false),
        (&["--etag", "off"], false, true),
    ] {
        let tags = sites.each_ref().map(|site| {
            let server = Server::start(site.path(), flags);
            let response = get(&mut connect(server.address()), "/big");
            response.header("etag").map(str::to_owned)
        });
        assert_eq!(tags[0].is_some(), have_tags, "{flags:?}");
        assert_eq!(tags[0] == tags[1], are_equal, "{flags:?}: {tags:?}");
    }
}

#[test]
fn extensions_get_the_types_of_the_flag() {
    let site = site();
    fs::write(site.path().join("a.glb"), "").unwrap();
    let flags = ["--mime", "glb=model/own", "--mime", "html=text/x-own"];
    let server = Server::start(site.path(), &flags);
    for (target, media_type) in [("/a.glb", "model/own"), ("/", "text/x-own")] {
        let response = get(&mut connect(server.address()), target);
        assert_eq!(response.header("content-type"), Some(media_type));
    }
}

/// Makes the path `link` a link to `target`, atomically.
fn switch(link: &std::path::Path, target: &str) {
    let new = link.with_extension("new");
    symlink(target, &new).unwrap();
    fs::rename(new, link).unwrap();
}

#[test]
fn a_deployment_that_switches_a_link_is_served_and_a_missing_root_is_503() {
    let site = tempfile::tempdir().unwrap();
    for release in ["one", "two"] {
        fs::create_dir(site.path().join(release)).unwrap();
        fs::write(site.path().join(release).join("index.html"), release).unwrap();
    }
    let cur = site.path().join("cur");
    switch(&cur, "one");
    let mut server = Server::start(&cur, &["--threads", "2"]);
    let mut streams = [connect(server.address()), connect(server.address())];
    let mut expect = |status: u16, body: &str| {
        for stream in &mut streams {
            let response = get(stream, "/");
            assert_eq!(response.status, status);
            assert_eq!(response.body, body.as_bytes());
        }
    };
    expect(200, "one");
    switch(&cur, "two");
    server.wait_for_line("leads to another directory");
    expect(200, "two");
    fs::remove_file(&cur).unwrap();
    let line = server.wait_for_line("503");
    assert!(line.contains("no such file or directory"), "{line}");
    expect(503, "503 Service Unavailable\n");
    switch(&cur, "one");
    server.wait_for_line("leads to another directory");
    expect(200, "one");
    let lines = server.stop().stderr;
    assert_eq!(lines.len(), 5, "each change is reported once: {lines:?}");
}

/// Changes files in place, replaces them with a rename, removes and creates them again, and gives a
/// replacement the timestamp of its predecessor. Tests small files, which are cached in memory, and
/// larger files, which stay open.
#[test]
fn the_next_request_sees_a_changed_file() {
    let site = tempfile::tempdir().unwrap();
    let path = site.path().join("file");
    let server = Server::start(site.path(), &["--threads", "2"]);
    let mut streams = [connect(server.address()), connect(server.address())];
    let mut expect = |expected: Option<&[u8]>, what: &str| {
        for stream in &mut streams {
            let response = get(stream, "/file");
            assert_eq!(response.status == 200, expected.is_some(), "{what}");
            let same = expected.is_none_or(|expected| response.body == expected);
            assert!(same, "{what}: wrong content, {} bytes", response.body.len());
        }
    };
    for len in [10, 5000, 16_384, 16_385, 300_000] {
        let content = |salt: u8| {
            test_bytes(len)
                .iter()
                .map(|byte| byte ^ salt)
                .collect::<Vec<_>>()
        };
        fs::write(&path, content(1)).unwrap();
        expect(Some(&content(1)), "new");
        fs::write(&path, content(2)).unwrap();
        expect(Some(&content(2)), "overwritten");
        let other = site.path().join("other");
        fs::write(&other, content(3)).unwrap();
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        File::open(&other).unwrap().set_modified(before).unwrap();
        fs::rename(&other, &path).unwrap();
        expect(
            Some(&content(3)),
            "another file of the same length and time",
        );
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        (&file).write_all(b"more").unwrap();
        expect(Some(&[&content(3)[..], b"more"].concat()), "longer");
        file.set_len(5).unwrap();
        expect(Some(&content(3)[..5]), "shorter");
        fs::remove_file(&path).unwrap();
        expect(None, "removed");
    }
}

/// The server considers a file to be stable after three seconds without a change, and from then on
/// trusts its timestamps.
#[test]
fn the_next_request_sees_a_change_to_a_stable_file() {
    let site = tempfile::tempdir().unwrap();
    for len in [100, 100_000] {
        fs::write(site.path().join(len.to_string()), test_bytes(len)).unwrap();
    }
    wait_until_files_are_stable();
    let server = Server::start(site.path(), &[]);
    let mut stream = connect(server.address());
    for len in [100, 100_000] {
        let target = format!("/{len}");
        for _ in 0..3 {
            assert!(get(&mut stream, &target).body == test_bytes(len));
        }
        let changed: Vec<_> = test_bytes(len).iter().map(|byte| !byte).collect();
        fs::write(site.path().join(len.to_string()), &changed).unwrap();
        for _ in 0..3 {
            assert!(
                get(&mut stream, &target).body == changed,
                "{len}: out of date"
            );
        }
    }
}

#[test]
fn a_file_truncated_while_it_is_sent_closes_the_connection() {
    for mechanism in ["auto", "splice", "mmap_write", "copy"] {
        let site = site();
        let server = Server::start(site.path(), &["--mechanism", mechanism]);
        let mut stream = connect_with_small_window(server.address());
        send_get(&mut stream, "/big");
        send_get(&mut stream, "/");
        read_head(&mut stream).unwrap();
        let big = OpenOptions::new().write(true).open(site.path().join("big"));
        big.unwrap().set_len(BIG_FILE_BYTES as u64 - 1).unwrap();
        let body = read_to_close(&mut stream);
        // The bytes of the next response must not take the place of the missing byte.
        assert!(
            body.len() < BIG_FILE_BYTES,
            "{mechanism}: {} bytes",
            body.len()
        );
        assert!(
            body.iter().all(|byte| *byte == 0),
            "{mechanism}: wrong bytes"
        );
        assert_eq!(get(&mut connect(server.address()), "/").status, 200);
        assert_eq!(server.stop().status.code(), Some(0), "{mechanism}");
    }
}

#[test]
fn a_file_that_grows_while_it_is_sent_is_sent_with_the_promised_length() {
    for mechanism in ["auto", "splice", "mmap_write", "copy"] {
        let site = site();
        let server = Server::start(site.path(), &["--mechanism", mechanism]);
        let mut stream = connect_with_small_window(server.address());
        send_get(&mut stream, "/big");
        read_head(&mut stream).unwrap();
        let big = OpenOptions::new()
            .append(true)
            .open(site.path().join("big"));
        big.unwrap().write_all(&[7; 100_000]).unwrap();
        let mut body = vec![1; BIG_FILE_BYTES];
        std::io::Read::read_exact(&mut stream, &mut body).unwrap();
        assert!(body.iter().all(|byte| *byte == 0), "{mechanism}");
        assert_eq!(get(&mut stream, "/").body, b"hello\n", "{mechanism}");
    }
}

#[test]
fn hidden_names_and_links_that_lead_outside_are_served_only_with_flags() {
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
fn listings_and_precompressed_files_follow_their_flags() {
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("page.html"), "page\n").unwrap();
    fs::write(site.path().join("page.html.gz"), "gz").unwrap();
    let body = |flags: &[&str], request: &str| {
        let server = Server::start(site.path(), flags);
        let mut stream = connect(server.address());
        stream.write_all(request.as_bytes()).unwrap();
        crate::client::read_response(&mut stream).unwrap()
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
fn uncopied_send_off_copies_every_byte() {
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
    assert_eq!(
        get(&mut connect(server.address()), "/big").body.len(),
        BIG_FILE_BYTES
    );
    let totals = server.stop().totals();
    assert_eq!(totals.copy, totals.bytes);
    assert!(totals.bytes > BIG_FILE_BYTES as u64);
}

#[test]
fn the_number_of_open_files_is_bounded() {
    const FILE_COUNT: usize = 400;
    const DESCRIPTOR_LIMIT: usize = 150;
    let site = tempfile::tempdir().unwrap();
    for number in 0..FILE_COUNT {
        let content = test_bytes(17_000 + number);
        fs::write(site.path().join(number.to_string()), content).unwrap();
    }
    let mut command = clean(Command::new("sh"));
    command.args([
        "-c",
        &format!("ulimit -n {DESCRIPTOR_LIMIT}; exec \"$0\" \"$@\""),
        PROGRAM,
    ]);
    command.arg("serve").arg(site.path());
    command.args(["--listen", "127.0.0.1:0", "--threads", "2"]);
    let server = Server::spawn(command, 1);
    let mut stream = connect(server.address());
    for round in 0..2 {
        for number in 0..FILE_COUNT {
            let response = get(&mut stream, &format!("/{number}"));
            assert_eq!(response.status, 200, "round {round}, file {number}");
            assert!(response.body == test_bytes(17_000 + number), "{number}");
        }
    }
    let held = ProcessResources::of(server.id(), site.path());
    assert!(held.descriptors < DESCRIPTOR_LIMIT / 2, "{held:?}");
    assert!(held.mappings < DESCRIPTOR_LIMIT / 2, "{held:?}");
    let exit = server.stop();
    let failed = |line: &String| line.contains("cannot");
    assert!(!exit.stderr.iter().any(failed), "{:?}", exit.stderr);
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
            let now = Totals::parse(&server.wait_for_line(" bytes sent: "));
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
