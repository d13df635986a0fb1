//! Tests which system calls the server makes: with each mechanism, for a cache hit, and for a file
//! that is not in the page cache.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::client::{connect, get, read_response};
use crate::data::{test_bytes, wait_until_files_are_stable};
use crate::server::ProgramExit;
use crate::skip::skip;
use crate::trace::{Call, Trace, TracedServer, bytes_moved, can_trace};

const FILE_BYTES: u64 = 1 << 20;

/// Serves a file of 1 MiB once, under strace with `options`. Returns the trace, the program's exit,
/// and the length of the response's head.
fn serve_once(mechanism: &str, options: &[&str]) -> (Trace, ProgramExit, u64) {
    let site = tempfile::tempdir().unwrap();
    let bytes = test_bytes(FILE_BYTES as usize);
    fs::write(site.path().join("mebibyte"), &bytes).unwrap();
    let traced = TracedServer::start(site.path(), &["--mechanism", mechanism], options);
    let response = get(&mut connect(traced.server.address()), "/mebibyte");
    assert!(response.body == bytes, "{mechanism}: wrong bytes");
    let (exit, trace) = traced.stop();
    (trace, exit, response.head.len() as u64)
}

/// Asserts that the only system calls that use the file are those in `allowed` and those that open,
/// examine and close it. A read of no bytes examines the file: it finds out whether the file can be
/// read.
fn assert_only(trace: &Trace, allowed: &[&str]) {
    let always = ["openat2", "statx", "fstat", "close", "fcntl"];
    let mut calls = trace.calls_on_file("mebibyte");
    calls.retain(|call| !(call.name == "pread64" && call.argument(2) == "0"));
    for call in calls {
        let name = call.name.as_str();
        assert!(
            always.contains(&name) || allowed.contains(&name),
            "{call:?}"
        );
    }
}

/// Returns the calls with this name that use the file `mebibyte`.
fn of_file<'a>(trace: &'a Trace, name: &str) -> Vec<&'a Call> {
    let mut calls = trace.calls_on_file("mebibyte");
    calls.retain(|call| call.name == name);
    calls
}

/// Returns the range of addresses at which the file is mapped.
fn mapping(trace: &Trace) -> std::ops::Range<u64> {
    let maps = of_file(trace, "mmap");
    let [map] = maps[..] else {
        panic!("mapped {} times", maps.len());
    };
    let start = u64::try_from(map.result).unwrap();
    start..start + map.argument(1).parse::<u64>().unwrap()
}

#[test]
fn auto_and_sendfile_send_the_file_without_reading_it() {
    if !can_trace("auto_and_sendfile_send_the_file_without_reading_it") {
        return;
    }
    for mechanism in ["auto", "sendfile"] {
        let (trace, exit, head) = serve_once(mechanism, &[]);
        assert_only(&trace, &["sendfile"]);
        let sent = of_file(&trace, "sendfile");
        assert_eq!(bytes_moved(sent), FILE_BYTES, "{mechanism}");
        let totals = exit.totals();
        assert_eq!(
            (totals.sendfile, totals.bytes),
            (FILE_BYTES, FILE_BYTES + head)
        );
        assert_eq!((totals.splice, totals.mmap_write), (0, 0));
    }
}

#[test]
fn splice_uses_a_pipe_and_does_not_read_the_file() {
    if !can_trace("splice_uses_a_pipe_and_does_not_read_the_file") {
        return;
    }
    let (trace, exit, head) = serve_once("splice", &[]);
    assert_only(&trace, &["splice"]);
    let into_pipe = of_file(&trace, "splice");
    assert!(
        into_pipe
            .iter()
            .all(|call| call.argument(2).contains("<pipe:"))
    );
    assert_eq!(bytes_moved(into_pipe), FILE_BYTES);
    let out_of_pipe = trace
        .calls_named(&["splice"])
        .filter(|call| call.argument(0).contains("<pipe:"));
    let to_socket =
        out_of_pipe.inspect(|call| assert!(call.argument(2).contains("<socket:"), "{call:?}"));
    assert_eq!(bytes_moved(to_socket), FILE_BYTES);
    let totals = exit.totals();
    assert_eq!(
        (totals.splice, totals.bytes),
        (FILE_BYTES, FILE_BYTES + head)
    );
    assert_eq!((totals.sendfile, totals.mmap_write), (0, 0));
}

/// Returns the calls that send from `memory`. Needs strace's `raw` option, which makes strace print
/// addresses instead of strings.
fn sends_from<'a>(trace: &'a Trace, memory: &std::ops::Range<u64>) -> Vec<&'a Call> {
    let address = |call: &Call| {
        let digits = call.argument(1).trim_start_matches("0x");
        u64::from_str_radix(digits, 16).unwrap()
    };
    trace
        .calls_named(&["sendto"])
        .filter(|call| memory.contains(&address(call)))
        .collect()
}

#[test]
fn mmap_write_sends_from_the_mapping_without_reading_the_file() {
    if !can_trace("mmap_write_sends_from_the_mapping_without_reading_the_file") {
        return;
    }
    let (trace, exit, head) = serve_once("mmap_write", &["-e", "raw=sendto"]);
    assert_only(&trace, &["mmap"]);
    assert_eq!(
        bytes_moved(sends_from(&trace, &mapping(&trace))),
        FILE_BYTES
    );
    let totals = exit.totals();
    assert_eq!(
        (totals.mmap_write, totals.bytes),
        (FILE_BYTES, FILE_BYTES + head)
    );
    assert_eq!((totals.sendfile, totals.splice), (0, 0));
}

#[test]
fn copy_reads_and_sends() {
    if !can_trace("copy_reads_and_sends") {
        return;
    }
    let (trace, exit, head) = serve_once("copy", &["-e", "raw=sendto"]);
    assert_only(&trace, &["pread64"]);
    assert_eq!(bytes_moved(of_file(&trace, "pread64")), FILE_BYTES);
    // Count only sends to the accepted socket, because the runtime also sends a byte to itself when
    // a signal arrives.
    let accepted = trace.calls_named(&["accept4"]).find(|call| call.result > 0);
    let socket = format!("{:#x}", accepted.unwrap().result);
    let sends = trace.calls_named(&["sendto"]);
    let sent = bytes_moved(sends.filter(|call| call.argument(0) == socket));
    assert_eq!(sent, FILE_BYTES + head);
    assert_eq!(exit.totals().copy, FILE_BYTES + head);
    assert_eq!(exit.totals().bytes, FILE_BYTES + head);
}

#[test]
fn a_hit_on_a_small_file_is_one_statx_and_one_send() {
    if !can_trace("a_hit_on_a_small_file_is_one_statx_and_one_send") {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    let bytes = test_bytes(1000);
    fs::write(site.path().join("small"), &bytes).unwrap();
    // Wait until the file is stable, because only stable files are cached in memory.
    wait_until_files_are_stable();
    let traced = TracedServer::start(site.path(), &[], &[]);
    let mut stream = connect(traced.server.address());
    for _ in 0..6 {
        assert_eq!(get(&mut stream, "/small").body, bytes);
    }
    let (_, trace) = traced.stop();
    let is_request = |call: &&Call| call.name == "recvfrom" && call.text.contains("\"GET /small");
    let thread = trace.calls.iter().find(is_request).unwrap().thread;
    let of_thread: Vec<_> = trace.calls.iter().filter(|c| c.thread == thread).collect();
    let costs: Vec<Vec<_>> = of_thread
        .split(|call| is_request(call))
        .skip(2)
        .map(|calls| {
            let waits = |call: &&&Call| call.name == "epoll_wait" || call.result == -1;
            let work = calls.iter().filter(|call| !waits(call));
            work.map(|call| call.name.as_str()).collect()
        })
        .collect();
    // `skip(2)` skips the calls before the first request, and those of the first request, because
    // that request opens the file. The last request is ignored, because the calls after it include
    // those of the shutdown.
    let [hits @ .., _] = &costs[..] else {
        panic!("no request was seen");
    };
    assert_eq!(hits, [["statx", "sendto"]; 4]);
}

/// Evicts a file from the page cache. Works only if the file is on a disk, not on an in-memory file
/// system. Tries several times, because the kernel may not evict recently used pages at once.
fn evict(path: &Path) {
    let file = File::open(path).unwrap();
    for _ in 0..5 {
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        sleep(Duration::from_millis(5));
    }
}

/// Whether files in this directory can be evicted from the page cache, which is impossible on an
/// in-memory file system. Tries repeatedly, because the kernel may not evict recently used pages at
/// once.
fn can_evict(directory: &Path) -> bool {
    let probe = directory.join("probe");
    fs::write(&probe, test_bytes(4096)).unwrap();
    let file = File::open(&probe).unwrap();
    (0..50).any(|nth| {
        sleep(Duration::from_millis(20 * nth.min(1)));
        evict(&probe);
        let buffer = &mut [0];
        let buffers = &mut [IoSliceMut::new(buffer)];
        preadv2(&file, buffers, 0, ReadWriteFlags::NOWAIT) == Err(Errno::AGAIN)
    })
}

#[test]
fn a_cold_file_is_loaded_by_another_thread_while_the_worker_continues() {
    let name = "a_cold_file_is_loaded_by_another_thread_while_the_worker_continues";
    if !can_trace(name) {
        return;
    }
    // Use the build directory, which is usually on a disk, because the system's temporary directory
    // may be in memory.
    let site = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if !can_evict(site.path()) {
        skip(name, "files here cannot be evicted from the page cache");
        return;
    }
    let bytes = test_bytes(FILE_BYTES as usize);
    fs::write(site.path().join("mebibyte"), &bytes).unwrap();
    fs::write(site.path().join("other"), test_bytes(100_000)).unwrap();
    // Delay each read by a tenth of a second. Otherwise, a fast disk might leave no time for other
    // requests while the file is loaded.
    let slow = "inject=pread64:delay_enter=100000";
    // Make `preadv2` report that the file is not cached. The server finds this out with a read with
    // RWF_NOWAIT, but that read also starts readahead. If the thread were descheduled before the
    // call returned, the disk might finish first, and the file would appear to be cached.
    let cold = "inject=preadv2:error=EAGAIN";
    let traced = TracedServer::start(site.path(), &[], &["-e", slow, "-e", cold]);
    let mut other = connect(traced.server.address());
    get(&mut other, "/other");
    evict(&site.path().join("mebibyte"));

    let mut cold = connect(traced.server.address());
    crate::client::send_get(&mut cold, "/mebibyte");
    let reader = std::thread::spawn(move || read_response(&mut cold).unwrap().body);
    let mut responses = 0;
    while !reader.is_finished() {
        get(&mut other, "/other");
        responses += 1;
        sleep(Duration::from_millis(10));
    }
    assert!(reader.join().unwrap() == bytes, "wrong bytes");
    let (exit, trace) = traced.stop();

    let mut reads = of_file(&trace, "pread64");
    reads.retain(|call| call.result > 0);
    assert_eq!(
        bytes_moved(reads.iter().copied()),
        FILE_BYTES,
        "not loaded exactly once"
    );
    let sends = of_file(&trace, "sendfile");
    assert_eq!(bytes_moved(sends.iter().copied()), FILE_BYTES);
    assert_eq!(
        exit.totals().copy,
        exit.totals().bytes - exit.totals().sendfile
    );
    let worker = sends[0].thread;
    assert!(sends.iter().all(|call| call.thread == worker));
    assert!(reads.iter().all(|call| call.thread != worker), "{reads:?}");
    let (begun, loaded) = (reads[0].lines.0, reads.last().unwrap().lines.1);
    assert!(sends[0].lines.0 > loaded, "sent before it was loaded");
    let meanwhile = trace.calls_on_file("other").into_iter().filter(|call| {
        call.name == "sendfile" && call.thread == worker && (begun..loaded).contains(&call.lines.1)
    });
    let meanwhile = meanwhile.count();
    assert!(
        meanwhile > 3,
        "only {meanwhile} of {responses} responses were sent while the file was loaded"
    );
}
