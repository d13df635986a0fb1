//! What each mechanism asks of the kernel, and what a cache hit and a cold file cost.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::client::{connect, get, read_answer};
use crate::server::End;
use crate::skip::skip;
use crate::trace::{Call, Trace, Traced, can_trace, moved};

const MIB: u64 = 1 << 20;

/// Bytes that do not repeat at any distance that a kernel path could mix up.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        // xorshift64: no two words of a file are alike.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

/// Serves a file of 1 MiB once. Returns the trace, the end and the length of the head.
fn serve_once(mechanism: &str, options: &[&str]) -> (Trace, End, u64) {
    let site = tempfile::tempdir().unwrap();
    let bytes = noise(MIB as usize);
    fs::write(site.path().join("mebibyte"), &bytes).unwrap();
    let traced = Traced::start(site.path(), &["--mechanism", mechanism], options);
    let answer = get(&mut connect(traced.server.address()), "/mebibyte");
    assert!(answer.body == bytes, "{mechanism}: other bytes");
    let (end, trace) = traced.stop();
    (trace, end, answer.head.len() as u64)
}

/// Asserts that nothing was done with the file besides opening it and `allowed`.
fn assert_only(trace: &Trace, allowed: &[&str]) {
    let always = ["openat2", "statx", "fstat", "close", "fcntl"];
    for call in trace.on_file("mebibyte") {
        let name = call.name.as_str();
        assert!(
            always.contains(&name) || allowed.contains(&name),
            "{call:?}"
        );
    }
}

/// The calls of this name whose arguments mention the file.
fn of_file<'a>(trace: &'a Trace, name: &str) -> Vec<&'a Call> {
    let mut calls = trace.on_file("mebibyte");
    calls.retain(|call| call.name == name);
    calls
}

/// Where the file is mapped: it is mapped anywhere first, and then moved to its place.
fn mapping(trace: &Trace) -> std::ops::Range<u64> {
    let maps = of_file(trace, "mmap");
    let [map] = maps[..] else {
        panic!("mapped {} times", maps.len());
    };
    let first = format!("{:#x}", map.result);
    let mut moves = trace.named(&["mremap"]);
    let moved = moves.find(|call| call.argument(0) == first).unwrap();
    let start = u64::try_from(moved.result).unwrap();
    start..start + map.argument(1).parse::<u64>().unwrap()
}

#[test]
fn auto_and_sendfile_send_the_file_and_read_nothing() {
    if !can_trace("auto_and_sendfile_send_the_file_and_read_nothing") {
        return;
    }
    for mechanism in ["auto", "sendfile"] {
        let (trace, end, head) = serve_once(mechanism, &[]);
        // The mapping is an address only: nobody reads it, and the kernel is not asked to.
        assert_only(&trace, &["mmap", "sendfile"]);
        let sent = of_file(&trace, "sendfile");
        assert_eq!(moved(sent), MIB, "{mechanism}");
        let totals = end.totals();
        assert_eq!((totals.sendfile, totals.bytes), (MIB, MIB + head));
        assert_eq!((totals.splice, totals.mmap_write), (0, 0));
    }
}

#[test]
fn splice_goes_through_a_pipe_and_reads_nothing() {
    if !can_trace("splice_goes_through_a_pipe_and_reads_nothing") {
        return;
    }
    let (trace, end, head) = serve_once("splice", &[]);
    assert_only(&trace, &["mmap", "splice"]);
    let into_pipe = of_file(&trace, "splice");
    assert!(
        into_pipe
            .iter()
            .all(|call| call.argument(2).contains("<pipe:"))
    );
    assert_eq!(moved(into_pipe), MIB);
    let out_of_pipe = trace
        .named(&["splice"])
        .filter(|call| call.argument(0).contains("<pipe:"));
    let to_socket =
        out_of_pipe.inspect(|call| assert!(call.argument(2).contains("<socket:"), "{call:?}"));
    assert_eq!(moved(to_socket), MIB);
    let totals = end.totals();
    assert_eq!((totals.splice, totals.bytes), (MIB, MIB + head));
    assert_eq!((totals.sendfile, totals.mmap_write), (0, 0));
}

/// The calls that send from memory, as strace shows them with `raw`: addresses, not strings.
fn sends_from<'a>(trace: &'a Trace, memory: &std::ops::Range<u64>) -> Vec<&'a Call> {
    let address = |call: &Call| {
        let digits = call.argument(1).trim_start_matches("0x");
        u64::from_str_radix(digits, 16).unwrap()
    };
    trace
        .named(&["sendto"])
        .filter(|call| memory.contains(&address(call)))
        .collect()
}

#[test]
fn mmap_sends_from_the_mapping_and_reads_nothing() {
    if !can_trace("mmap_sends_from_the_mapping_and_reads_nothing") {
        return;
    }
    let (trace, end, head) = serve_once("mmap_write", &["-e", "raw=sendto"]);
    assert_only(&trace, &["mmap"]);
    assert_eq!(moved(sends_from(&trace, &mapping(&trace))), MIB);
    let totals = end.totals();
    assert_eq!((totals.mmap_write, totals.bytes), (MIB, MIB + head));
    assert_eq!((totals.sendfile, totals.splice), (0, 0));
}

#[test]
fn copy_reads_and_sends() {
    if !can_trace("copy_reads_and_sends") {
        return;
    }
    let (trace, end, head) = serve_once("copy", &["-e", "raw=sendto"]);
    assert_only(&trace, &["mmap", "pread64"]);
    assert_eq!(moved(of_file(&trace, "pread64")), MIB);
    assert_eq!(moved(sends_from(&trace, &mapping(&trace))), 0);
    // A signal is passed on by a byte to a socket as well.
    let accepted = trace.named(&["accept4"]).find(|call| call.result > 0);
    let socket = format!("{:#x}", accepted.unwrap().result);
    let sends = trace.named(&["sendto"]);
    let sent = moved(sends.filter(|call| call.argument(0) == socket));
    assert_eq!(sent, MIB + head);
    assert_eq!(end.totals().copy, MIB + head);
    assert_eq!(end.totals().bytes, MIB + head);
}

#[test]
fn a_hit_on_a_small_file_is_one_statx_and_one_send() {
    if !can_trace("a_hit_on_a_small_file_is_one_statx_and_one_send") {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    let bytes = noise(1000);
    fs::write(site.path().join("small"), &bytes).unwrap();
    // Only what has not changed for three seconds is kept in memory.
    sleep(Duration::from_millis(3500));
    let traced = Traced::start(site.path(), &[], &[]);
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
    // The first request opened the file; what follows the last is the end of the program.
    let [hits @ .., _] = &costs[..] else {
        panic!("no request was seen");
    };
    // hyper makes head and body of the first, which then goes out again in one piece.
    let [by_hyper, repeats @ ..] = hits else {
        panic!("no hit was seen");
    };
    assert_eq!(by_hyper, &["statx", "sendmsg"]);
    assert_eq!(repeats, [["statx", "sendto"]; 3]);
}

/// Takes a file out of the page cache. Needs a file system with a disk behind it. Pages that have just
/// been used are not given up at once, so it asks more than once.
fn evict(path: &Path) {
    let file = File::open(path).unwrap();
    for _ in 0..5 {
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        sleep(Duration::from_millis(5));
    }
}

/// Whether files in this directory can be taken out of the page cache: not those in memory. Pages that
/// have just been used are not given up at once.
fn can_evict(directory: &Path) -> bool {
    let probe = directory.join("probe");
    fs::write(&probe, noise(4096)).unwrap();
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
fn a_cold_file_is_loaded_by_another_thread_while_the_serving_thread_goes_on() {
    let name = "a_cold_file_is_loaded_by_another_thread_while_the_serving_thread_goes_on";
    if !can_trace(name) {
        return;
    }
    // Beside the build, which lies on a disk; the system's temporary directory may lie in memory.
    let site = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if !can_evict(site.path()) {
        skip(name, "the page cache gives no file up here");
        return;
    }
    let bytes = noise(MIB as usize);
    fs::write(site.path().join("mebibyte"), &bytes).unwrap();
    fs::write(site.path().join("other"), noise(100_000)).unwrap();
    // The disk of a test machine is fast, so each read is made to take a tenth of a second.
    let slow = "inject=pread64:delay_enter=100000";
    // Asking by RWF_NOWAIT starts to read ahead. Where this thread rests before the answer, the disk can
    // have been quicker: then the file is not cold any more, and nothing is left to show.
    let cold = "inject=preadv2:error=EAGAIN";
    let traced = Traced::start(site.path(), &[], &["-e", slow, "-e", cold]);
    let mut other = connect(traced.server.address());
    get(&mut other, "/other");
    evict(&site.path().join("mebibyte"));

    let mut cold = connect(traced.server.address());
    crate::client::ask(&mut cold, "/mebibyte");
    let reader = std::thread::spawn(move || read_answer(&mut cold).unwrap().body);
    let mut answered = 0;
    while !reader.is_finished() {
        get(&mut other, "/other");
        answered += 1;
        sleep(Duration::from_millis(10));
    }
    assert!(reader.join().unwrap() == bytes, "other bytes");
    let (end, trace) = traced.stop();

    let reads = of_file(&trace, "pread64");
    assert_eq!(moved(reads.iter().copied()), MIB, "loaded, and only once");
    let sends = of_file(&trace, "sendfile");
    assert_eq!(moved(sends.iter().copied()), MIB);
    assert_eq!(
        end.totals().copy,
        end.totals().bytes - end.totals().sendfile
    );
    let serving = sends[0].thread;
    assert!(sends.iter().all(|call| call.thread == serving));
    assert!(reads.iter().all(|call| call.thread != serving), "{reads:?}");
    let (begun, loaded) = (reads[0].lines.0, reads.last().unwrap().lines.1);
    assert!(sends[0].lines.0 > loaded, "sent before it was loaded");
    let meanwhile = trace.on_file("other").into_iter().filter(|call| {
        call.name == "sendfile" && call.thread == serving && (begun..loaded).contains(&call.lines.1)
    });
    let meanwhile = meanwhile.count();
    assert!(meanwhile > 3, "{meanwhile} of {answered} answers meanwhile");
}
