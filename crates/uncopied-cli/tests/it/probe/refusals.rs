//! What is refused, and what the probe says about it.

use std::io::Seek as _;
use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{PublicProgram, as_user, assert_refused, assert_says, is_root, result, row, status};
use crate::seccomp::filtered;
use crate::server::{PROGRAM, clean, program};
use crate::skip::{skip, skip_optional};

/// Users that nothing else on this machine belongs to, because limits count for all processes of a
/// user.
const USER_WITHOUT_LOCKED_MEMORY: u32 = 64_321;
const USER_WITH_MANY_PIPES: u32 = 64_322;

/// The user that is `nobody` on most machines.
const NOBODY: u32 = 65_534;

/// Runs the probe under a filter that makes these calls fail with `errno`. Its output goes to a
/// file, because the filter may forbid pipes.
fn probe_filtered(calls: &[i64], errno: i32) -> serde_json::Value {
    let mut output = tempfile::tempfile().unwrap();
    let mut command = program();
    command.args(["probe", "--json"]);
    command.stdout(output.try_clone().unwrap());
    let status = filtered(calls, errno, || command.status().unwrap());
    assert!(status.success());
    output.rewind().unwrap();
    serde_json::from_reader(output).unwrap()
}

#[test]
fn a_filter_that_forbids_io_uring() {
    for (errno, name) in [(libc::EPERM, "EPERM"), (libc::ENOSYS, "ENOSYS")] {
        let probe = probe_filtered(&[libc::SYS_io_uring_setup], errno);
        let words = ["io_uring is forbidden by the seccomp filter", name];
        assert_refused(&probe, "send_zc", &words, "io_uring_setup");
        assert_refused(&probe, "zcrx", &["io_uring is forbidden"], "");
        assert_eq!(probe["process"]["seccomp_filter"], true);
        for key in [
            "sendfile",
            "splice",
            "vmsplice",
            "msg_zerocopy",
            "completions",
        ] {
            assert_ne!(status(&probe, key), "no", "{key}");
        }
    }
}

#[test]
fn filters_that_forbid_one_call() {
    for (call, key, word, change) in [
        (
            libc::SYS_sendfile,
            "sendfile",
            "sendfile is forbidden",
            "allow sendfile",
        ),
        (
            libc::SYS_splice,
            "splice",
            "splice is forbidden",
            "pipe2 and splice",
        ),
        (
            libc::SYS_vmsplice,
            "vmsplice",
            "vmsplice is forbidden",
            "vmsplice",
        ),
        (
            libc::SYS_userfaultfd,
            "copy_on_write",
            "userfaultfd is refused (EPERM)",
            "userfaultfd",
        ),
    ] {
        let probe = probe_filtered(&[call], libc::EPERM);
        assert_refused(&probe, key, &[word], change);
        assert_eq!(status(&probe, "copy"), "yes");
        let check = |name: &str| {
            let checks = probe["path"]["checks"].as_array().unwrap();
            checks.iter().find(|it| it["key"] == name).unwrap().clone()
        };
        assert_eq!(check("sendfile")["status"] == "no", key == "sendfile");
        assert_eq!(check("splice")["status"] == "no", key == "splice");
        assert_eq!(check("mmap")["status"], "yes");
    }
}

#[test]
fn a_filter_that_forbids_pipes_or_sockets() {
    let probe = probe_filtered(&[libc::SYS_pipe2], libc::EMFILE);
    assert_refused(&probe, "splice", &["RLIMIT_NOFILE", "EMFILE"], "ulimit -n");
    assert_refused(
        &probe,
        "vmsplice",
        &["RLIMIT_NOFILE", "EMFILE"],
        "ulimit -n",
    );
    let probe = probe_filtered(&[libc::SYS_pipe2], libc::ENFILE);
    assert_refused(&probe, "splice", &["ENFILE"], "fs.pipe-user-pages-hard");
    let probe = probe_filtered(&[libc::SYS_socket], libc::EACCES);
    for row in probe["rows"].as_array().unwrap() {
        assert_ne!(row["status"], "yes", "{row:#}");
    }
    let words = ["no connection over loopback", "permission denied"];
    assert_refused(&probe, "copy", &words, "seccomp filter");
    assert!(probe["interfaces_error"].is_string(), "{probe:#}");
    assert_eq!(probe["interfaces"], serde_json::json!([]));
}

#[test]
fn no_memory_may_be_locked() {
    let program = PublicProgram::new();
    let limited = || {
        let shell = ["sh", "-c", "ulimit -l 0 && exec \"$0\" \"$@\""];
        program.behind(&shell).output().unwrap()
    };
    let probe = result(as_user(USER_WITHOUT_LOCKED_MEMORY, limited));
    let words = ["RLIMIT_MEMLOCK is 0 bytes", "CAP_IPC_LOCK is missing"];
    assert_refused(&probe, "msg_zerocopy", &words, "ulimit -l");
    assert_refused(&probe, "send_zc", &words, "ulimit -l");
    assert_refused(&probe, "zcrx", &["ulimit -l"], "");
    let map_receive = row(&probe, "map_receive");
    assert_eq!(map_receive["status"], "partly");
    assert_says(map_receive, &["see msg_zerocopy"], "");
    assert_ne!(status(&probe, "sendfile"), "no");
    assert_ne!(status(&probe, "vmsplice"), "no");
    // The library still knows when memory is free, but from no notification.
    assert_eq!(status(&probe, "completions"), "partly");
}

/// Root in a user namespace, as in a rootless container, has no capabilities that count here.
#[test]
fn root_of_a_user_namespace() {
    let script = "ulimit -l 0 && exec \"$0\" probe --json";
    let mut command = clean(Command::new("unshare"));
    command.args(["--user", "--map-root-user", "sh", "-c", script, PROGRAM]);
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success());
    let Some(output) = output else {
        return skip(
            "root_of_a_user_namespace",
            "needs unshare and user namespaces",
        );
    };
    let probe = result(output);
    assert_eq!(probe["process"]["user"], 0);
    assert_eq!(probe["process"]["initial_user_namespace"], false);
    assert_refused(&probe, "zcrx", &["ulimit -l"], "");
    let words = ["RLIMIT_MEMLOCK is 0 bytes", "CAP_IPC_LOCK is missing"];
    assert_refused(&probe, "msg_zerocopy", &words, "ulimit -l");
}

/// A user whose pipes have used up what a user may have gets small pipes.
#[test]
fn too_many_pipes() {
    let name = "too_many_pipes";
    if !is_root() {
        // The pipes of this user belong to other tests, too.
        return skip_optional(name, "needs root, to become a user that has no other pipes");
    }
    let soft = std::fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").unwrap();
    let soft: usize = soft.trim().parse().unwrap();
    // A pipe has 16 pages and 2 descriptors.
    let pipes = soft / 16 + 1;
    let needed = 2 * pipes as u64 + 1000;
    let limit = getrlimit(Resource::Nofile);
    if soft == 0 || limit.maximum.is_some_and(|maximum| maximum < needed) {
        return skip_optional(
            name,
            "needs a limit on pipe pages, and as many descriptors as that takes",
        );
    }
    let raised = limit.current.map(|current| current.max(needed));
    let (current, maximum) = (raised, limit.maximum);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    let program = PublicProgram::new();
    let limited = || {
        // The pipes belong to the user of the thread that creates them.
        let flags = rustix::pipe::PipeFlags::CLOEXEC;
        let pipes: Vec<(OwnedFd, OwnedFd)> = (0..pipes)
            .map(|_| rustix::pipe::pipe_with(flags).unwrap())
            .collect();
        let output = program.probe().output().unwrap();
        drop(pipes);
        output
    };
    let probe = result(as_user(USER_WITH_MANY_PIPES, limited));
    let words = ["pipes are limited to", "fs.pipe-user-pages-soft"];
    let splice = row(&probe, "splice");
    assert_eq!(splice["status"], "partly", "{splice:#}");
    assert_says(splice, &words, "sysctl fs.pipe-user-pages-soft");
    assert_refused(&probe, "vmsplice", &words, "sysctl fs.pipe-user-pages-soft");
    assert_refused(&probe, "copy_on_write", &words, "sysctl");
    assert_eq!(status(&probe, "page_alignment"), "partly");
}

#[test]
fn few_descriptors() {
    for descriptors in 3..24 {
        let limit = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
        let program_path = PROGRAM;
        let mut command = clean(Command::new("sh"));
        command.args(["-c", &limit, program_path, "probe", "--json"]);
        let output = command.output().unwrap();
        // With so few that not even the program's libraries, or the path, can be opened.
        if !output.status.success() {
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert!(descriptors < 6, "{descriptors}: {stderr}");
            continue;
        }
        let probe = result(output);
        for row in probe["rows"].as_array().unwrap() {
            let why = row["why"].as_str().unwrap();
            let is_named = why.contains("too many open files")
                || why.contains("Too many open files")
                || why.contains("RLIMIT_NOFILE");
            let expected = ["copy", "mmap_write", "sendfile", "splice"];
            let is_expected = expected.iter().any(|key| row["key"] == *key);
            assert!(!is_expected || row["status"] != "no" || is_named, "{row:#}");
        }
    }
}

#[test]
fn switches_in_the_environment() {
    let mut command = program();
    command
        .args(["probe", "--json"])
        .env("UNCOPIED_SEND", "off");
    let probe = result(command.output().unwrap());
    for key in [
        "sendfile",
        "splice",
        "vmsplice",
        "msg_zerocopy",
        "send_zc",
        "mmap_write",
    ] {
        assert_refused(
            &probe,
            key,
            &["switched off by UNCOPIED_SEND"],
            "unset UNCOPIED_SEND",
        );
    }
    assert_eq!(status(&probe, "copy"), "yes");
    assert_says(
        row(&probe, "switches"),
        &["sending without a copy is off"],
        "UNCOPIED_SEND",
    );

    let mut command = program();
    command
        .args(["probe", "--json"])
        .env("UNCOPIED_RECEIVE", "0");
    let probe = result(command.output().unwrap());
    let words = ["switched off by UNCOPIED_RECEIVE"];
    assert_refused(&probe, "map_receive", &words, "unset UNCOPIED_RECEIVE");
    assert_refused(&probe, "zcrx", &["switched off"], "unset UNCOPIED_RECEIVE");
    assert_ne!(status(&probe, "sendfile"), "no");
}

#[test]
fn an_ordinary_user() {
    let program = PublicProgram::new();
    let run = || program.probe().output().unwrap();
    let probe = result(as_user(NOBODY, run));
    assert_ne!(probe["process"]["user"], 0);
    let missing = probe["process"]["missing_capabilities"].to_string();
    for capability in [
        "CAP_NET_ADMIN",
        "CAP_IPC_LOCK",
        "CAP_SYS_PTRACE",
        "CAP_SYS_RESOURCE",
    ] {
        assert!(missing.contains(capability), "{missing}");
    }
    assert_refused(&probe, "zcrx", &["CAP_NET_ADMIN"], "");
    for key in ["copy", "mmap_write", "sendfile", "splice", "vmsplice"] {
        assert_ne!(status(&probe, key), "no", "{key}");
    }
    if is_root() {
        // The directory belongs to root, so nothing can be tried there, and the probe says so.
        assert_eq!(probe["path"]["tried_with"], "nothing");
        let obstacle = probe["path"]["obstacle"].as_str().unwrap();
        assert!(obstacle.contains("permission denied"), "{obstacle}");
    }
}
