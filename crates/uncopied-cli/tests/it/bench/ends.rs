//! Ctrl-C and namespaces: nothing is left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{BRIEF, assert_complete, brief, cells, results};
use crate::server::{PROGRAM, clean, program};
use crate::skip::{skip, skip_optional};

/// The user and the group "nobody".
const NOBODY: u32 = 65534;

/// Returns the processes whose command line contains a path.
fn processes_with(path: &Path) -> Vec<String> {
    let needle = path.to_str().unwrap();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let line = fs::read(format!("/proc/{name}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains(needle).then_some(name)
        })
        .collect()
}

#[test]
fn ctrl_c_ends_a_run_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let results = tempfile::tempdir().unwrap();
    let earlier = results.path().join("earlier");
    fs::write(&earlier, "results").unwrap();
    let child = program()
        .args(["bench", "--seconds", "20", "--dir"])
        .arg(directory.path())
        .arg("-o")
        .arg(&earlier)
        .arg("--report")
        .arg(results.path().join("report"))
        .arg("--save-tuning")
        .arg(results.path().join("tuning"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // This process's own command line does not contain the directory.
    while processes_with(directory.path()).len() < 2 {
        thread::sleep(Duration::from_millis(10));
    }
    // Somewhere between the start of the listener and the first measurement.
    thread::sleep(Duration::from_millis(300));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, "uncopied: interrupted; no results were written\n");
    assert_eq!(processes_with(directory.path()), [""; 0]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    // The results of an earlier run are still there.
    assert_eq!(fs::read(&earlier).unwrap(), b"results");
    assert_eq!(fs::read_dir(results.path()).unwrap().count(), 1);
}

#[test]
fn a_killed_run_leaves_no_listener_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = program()
        .args(["bench", "--seconds", "20", "--dir"])
        .arg(directory.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while processes_with(directory.path()).len() < 2 {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(300));
    child.kill().unwrap();
    child.wait().unwrap();
    while !processes_with(directory.path()).is_empty() {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// Measures between two namespaces, with a command that runs the program with the arguments that
/// follow, and checks the results.
fn measure_between_namespaces(mut command: Command) {
    let interfaces = || fs::read_to_string("/proc/net/dev").unwrap().lines().count();
    let before = interfaces();
    let output = command
        .args(BRIEF)
        .args(["--netns", "--sizes", "16k", "--json"])
        .output()
        .unwrap();
    let results = results(&output);
    assert_eq!(results["setting"]["network"], "netns");
    for cell in cells(&results).iter().filter(|it| it["refused"].is_null()) {
        assert_complete(cell);
    }
    assert_eq!(interfaces(), before);
}

#[test]
fn namespaces_are_measured_and_vanish() {
    let name = "namespaces_are_measured_and_vanish";
    let try_out = ["--map-root-user", "--net", "ip", "link"];
    let allowed = Command::new("unshare").args(try_out).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        return skip(name, "needs unshare, ip, user and network namespaces");
    }
    measure_between_namespaces(program());
}

#[test]
fn an_ordinary_user_measures_between_namespaces() {
    let name = "an_ordinary_user_measures_between_namespaces";
    // The directory of the program may be closed to other users.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("uncopied");
    fs::copy(PROGRAM, &copy).unwrap();
    let as_user = |mut command: Command| {
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.current_dir("/");
        command
    };
    let mut try_out = as_user(Command::new("unshare"));
    let allowed = try_out
        .args(["--map-root-user", "--net", "ip", "link"])
        .output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        return skip_optional(name, "ordinary users may not create namespaces here");
    }
    measure_between_namespaces(as_user(clean(Command::new(copy))));
}

#[test]
fn a_machine_without_namespaces_says_what_is_missing() {
    let start = || brief(&["--netns", "--sizes", "16k"]).output().unwrap();
    let output = crate::seccomp::filtered(&[libc::SYS_unshare], libc::EPERM, start);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("cannot set up network namespaces"),
        "{stderr}"
    );
    assert!(stderr.contains("run this as root"), "{stderr}");
}
