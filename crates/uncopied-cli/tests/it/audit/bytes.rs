//! Bytes that go through sockets are counted exactly, and nothing is left in tracefs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::watched::{Audit, can_sample_kernel, children, load, wait_for_server, warm_site};
use crate::client::{TEST_TIMEOUT, free_address};
use crate::server::{BIG_FILE_BYTES, PROGRAM, Server};
use crate::skip::skip;

/// Mounts tracefs for one process, and replaces itself with the command that follows.
const WITH_TRACEFS: [&str; 6] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "[ -e /sys/kernel/tracing/README ] || mount -t tracefs tracefs /sys/kernel/tracing && exec \"$@\"",
    "sh",
];

/// Whether tracefs can be mounted here. If not, reports that the test `name` is skipped.
fn can_trace(name: &str) -> bool {
    if !can_sample_kernel(name) {
        return false;
    }
    let mounted = Command::new(WITH_TRACEFS[0])
        .args(&WITH_TRACEFS[1..])
        .arg("true")
        .output();
    let can = mounted.is_ok_and(|output| output.status.success());
    if !can {
        skip(
            name,
            "tracefs cannot be mounted: it needs root, and a kernel with tracing",
        );
    }
    can
}

/// The bytes of all processes of a report.
fn sum(report: &Value, key: &str) -> Option<u64> {
    let processes = report["socket_bytes"].as_array().unwrap();
    processes.iter().map(|process| process[key].as_u64()).sum()
}

#[test]
fn sent_bytes_are_counted_exactly() {
    if !can_trace("sent_bytes_are_counted_exactly") {
        return;
    }
    for (mechanism, copies) in [("copy", true), ("sendfile", false)] {
        let (site, address) = (warm_site(), free_address());
        let directory = site.path().display().to_string();
        let listen = address.to_string();
        let command = [
            PROGRAM,
            "serve",
            &directory,
            "--listen",
            &listen,
            "--mechanism",
            mechanism,
        ];
        // On a busy machine, records can be lost. The report then has no bytes, and says why.
        let (received, report) = loop {
            let arguments = [&["--"], &command[..]].concat();
            let audit = Audit::start_with(&WITH_TRACEFS, &arguments);
            wait_for_server(address);
            let received = load(audit.id(), address, "/big");
            audit.signal(Signal::TERM);
            let report = audit.report().0;
            if !report["socket_bytes"].is_null() {
                break (received, report);
            }
            assert!(
                report["notes"].to_string().contains("records were lost"),
                "{report}"
            );
        };
        // The event loops of the server send a few bytes to themselves, to wake up.
        let sent = sum(&report, "sent").unwrap();
        assert!(
            (received..received + 100).contains(&sent),
            "{received}: {report}"
        );
        match sum(&report, "sent_copied") {
            Some(copied) if copies => assert!(copied > received / 100 * 99, "{report}"),
            Some(copied) => assert!(copied < received / 100, "{report}"),
            None => {
                let notes = report["notes"].to_string();
                assert!(notes.contains("copied was not counted"), "{report}");
            }
        }
    }
}

#[test]
fn received_bytes_are_counted_exactly() {
    let name = "received_bytes_are_counted_exactly";
    if !can_trace(name) {
        return;
    }
    if Command::new("curl").arg("--version").output().is_err() {
        skip(name, "curl is not installed (apt-get install curl)");
        return;
    }
    let site = warm_site();
    let server = Server::start(site.path(), &[]);
    let url = format!("{}big", server.urls[0]);
    let arguments = [
        "--",
        "curl",
        "-q",
        "-s",
        "--noproxy",
        "*",
        "-o",
        "/dev/null",
        &url,
    ];
    let report = Audit::start_with(&WITH_TRACEFS, &arguments).report().0;
    let received = sum(&report, "received").unwrap();
    let body = u64::try_from(BIG_FILE_BYTES).unwrap();
    assert!((body..body + 1000).contains(&received), "{report}");
    assert_eq!(sum(&report, "received_copied"), Some(received), "{report}");
}

#[test]
fn nothing_is_left_in_tracefs_after_sigkill() {
    if !can_trace("nothing_is_left_in_tracefs_after_sigkill") {
        return;
    }
    let mount = tempfile::tempdir().unwrap();
    let tracefs = mount.path();
    let mounted = Command::new("mount")
        .args(["-t", "tracefs", "tracefs"])
        .arg(tracefs)
        .status();
    assert!(mounted.unwrap().success());
    let debugfs = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "debugfs", "debugfs"])
        .arg(debugfs.path())
        .status();
    assert!(mounted.unwrap().success());
    // The functions that are probed, also those without an entry in tracefs, if there are kprobes.
    // Each line begins with an address.
    let probes = || fs::read_to_string(debugfs.path().join("kprobes/list")).ok();
    let before = (settings(tracefs), probes());
    let audit = Audit::start_with(&WITH_TRACEFS, &["--", "sleep", "3600"]);
    // Before, the shell that mounts tracefs has other children.
    let is_sleep = |process: &i32| {
        fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name == "sleep\n")
    };
    let program = loop {
        if let Some(program) = children(audit.id()).into_iter().find(is_sleep) {
            break program;
        }
    };
    let during = (settings(tracefs), probes());
    audit.signal(Signal::KILL);
    drop(audit);
    // The kernel frees probes a little later.
    let began = Instant::now();
    let after = loop {
        let after = (settings(tracefs), probes());
        if after == before || began.elapsed() > TEST_TIMEOUT {
            break after;
        }
        sleep(Duration::from_millis(10));
    };
    kill_process(Pid::from_raw(program).unwrap(), Signal::KILL).unwrap();
    for mount in [tracefs, debugfs.path()] {
        let unmounted = Command::new("umount").arg(mount).status();
        assert!(unmounted.unwrap().success());
    }
    assert_eq!(before, after);
    assert_eq!(before.0, during.0);
    assert!(before.0.contains_key("events"));
    if std::env::var_os("UNCOPIED_LAB_GUEST").is_some() {
        // The kernels of the lab have kprobes, so that this test shows something.
        let during = during.1.unwrap();
        assert!(during.contains("skb_copy_ubufs"), "{during}");
    }
}

/// What is in the files and folders of tracefs in which a program that traces can leave something.
fn settings(tracefs: &Path) -> BTreeMap<&'static str, String> {
    let mut settings = BTreeMap::new();
    for name in [
        "dynamic_events",
        "kprobe_events",
        "set_event",
        "current_tracer",
        "tracing_on",
    ] {
        if let Ok(text) = fs::read_to_string(tracefs.join(name)) {
            settings.insert(name, text);
        }
    }
    for name in ["events", "instances"] {
        let mut entries: Vec<_> = fs::read_dir(tracefs.join(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        entries.sort();
        settings.insert(name, entries.join(" "));
    }
    settings
}
