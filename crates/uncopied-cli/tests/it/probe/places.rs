//! Network interfaces and file systems.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::{fs, io, thread};

use serde_json::Value;

use super::{assert_says, is_root, probe, result, row};
use crate::server::{PROGRAM, clean, program};
use crate::skip::{skip, skip_optional};

/// Runs the command `ip`.
fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// Switches scatter-gather of an interface off (`ETHTOOL_SSG`).
fn switch_scatter_gather_off(interface: &str) {
    const ETHTOOL_SSG: u32 = 0x19;
    let socket = UnixStream::pair().unwrap().0;
    let mut value = [ETHTOOL_SSG, 0];
    // SAFETY: the structure consists of integers and a pointer, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: the kernel reads two integers through the pointer in the structure, both locals.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn an_interface_without_scatter_gather() {
    let name = "an_interface_without_scatter_gather";
    if !is_root() {
        return skip_optional(name, "needs root, to create a network namespace");
    }
    // The namespace is that of this thread, and of the processes that it starts.
    let in_namespace = || {
        // SAFETY: the call affects only which network this thread uses.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        if result != 0
            || !Command::new("ip")
                .arg("-V")
                .status()
                .is_ok_and(|it| it.success())
        {
            return skip(name, "needs network namespaces and ip");
        }
        ip("link set lo up");
        ip("link add uncopied0 type veth peer name uncopied1");
        ip("link set uncopied0 up");
        ip("link set uncopied1 up");
        let before = probe(&[]);
        assert_eq!(row(&before, "sendfile")["status"], "yes");

        switch_scatter_gather_off("uncopied0");
        let after = probe(&[]);
        for key in ["sendfile", "splice", "vmsplice", "msg_zerocopy", "send_zc"] {
            let row = row(&after, key);
            assert_eq!(row["status"], "partly", "{row:#}");
            let words = [
                "scatter-gather is off on uncopied0,",
                "the kernel copies every byte",
            ];
            assert_says(row, &words, "ethtool -K uncopied0 tx on sg on");
        }
        assert_eq!(row(&after, "copy")["status"], "yes");
        let interfaces = after["interfaces"].as_array().unwrap();
        let find = |name: &str| interfaces.iter().find(|it| it["name"] == name).unwrap();
        let veth = find("uncopied0");
        assert_eq!(veth["driver"], "veth");
        assert_eq!(veth["offloads"]["scatter_gather"], "off");
        assert_eq!(veth["offloads"]["hardware_gro"], "unavailable");
        assert_eq!(find("uncopied1")["offloads"]["scatter_gather"], "on");

        // The other end is not affected, and is the only one that this asks about.
        let other = probe(&["--interface", "uncopied1"]);
        assert_eq!(other["interfaces"].as_array().unwrap().len(), 1);
        assert_eq!(row(&other, "sendfile")["status"], "yes");
        // An interface that is down is described if it is asked for.
        ip("link set uncopied1 down");
        let down = probe(&["--interface", "uncopied1"]);
        assert_eq!(down["interfaces"][0]["is_up"], false);
        let up = probe(&[]);
        assert!(!up["interfaces"].to_string().contains("uncopied1"));
    };
    thread::scope(|scope| scope.spawn(in_namespace).join().unwrap());
}

#[test]
fn a_network_namespace_whose_loopback_is_down() {
    let mut command = clean(Command::new("unshare"));
    command.args([
        "--user",
        "--map-root-user",
        "--net",
        PROGRAM,
        "probe",
        "--json",
    ]);
    let output = command.output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        let name = "a_network_namespace_whose_loopback_is_down";
        return skip(name, "needs unshare, user and network namespaces");
    };
    let probe = result(output);
    for key in ["copy", "sendfile", "send_zc", "map_receive", "kernel_tls"] {
        let row = row(&probe, key);
        assert_eq!(row["status"], "no");
        assert_says(
            row,
            &["no connection over loopback"],
            "ip link set dev lo up",
        );
    }
    assert_says(
        row(&probe, "header_split"),
        &["none of the interfaces is a network card"],
        "",
    );
}

/// Returns the finding of a check of the path.
fn check<'a>(probe: &'a Value, key: &str) -> &'a Value {
    let checks = probe["path"]["checks"].as_array().unwrap();
    checks.iter().find(|check| check["key"] == key).unwrap()
}

/// Runs the probe in a mount namespace, in the directory that the shell commands `mounts` leave.
/// They are run in an empty directory. Returns `None` if something cannot be mounted.
fn probe_mounted(mounts: &str) -> Option<Value> {
    let directory = tempfile::tempdir().unwrap();
    let script = format!("{{ {mounts}; }} || exit 99; exec \"$0\" probe --json");
    let mut command = clean(Command::new("unshare"));
    command
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            &script,
            PROGRAM,
        ])
        .current_dir(directory.path());
    let output = command.output().ok()?;
    (output.status.code() == Some(0)).then(|| result(output))
}

#[test]
fn a_file_system_without_o_direct() {
    let mounted = probe_mounted("mkdir m && mount -t ramfs ramfs m && cd m");
    let Some(probe) = mounted else {
        let why = "needs unshare, user namespaces and ramfs";
        return skip("a_file_system_without_o_direct", why);
    };
    assert_eq!(probe["path"]["file_system"], "ramfs");
    let direct = check(&probe, "o_direct");
    assert_eq!(direct["status"], "no");
    assert_says(direct, &["does not support it (EINVAL)"], "ext4");
    for key in ["sendfile", "splice", "mmap", "shared_pages"] {
        assert_eq!(check(&probe, key)["status"], "yes", "{key}");
    }
}

#[test]
fn an_overlay() {
    let mounted = probe_mounted(
        "mount -t tmpfs tmpfs . && cd \"$PWD\" && mkdir l u w m && \
         mount -t overlay -o lowerdir=l,upperdir=u,workdir=w overlay m && cd m",
    );
    let Some(probe) = mounted else {
        return skip("an_overlay", "needs unshare, user namespaces and overlayfs");
    };
    assert_eq!(probe["path"]["file_system"], "overlay");
    let note = probe["path"]["note"].as_str().unwrap();
    assert!(note.contains("layer"), "{note}");
    for key in ["sendfile", "splice", "mmap", "shared_pages"] {
        assert_eq!(check(&probe, key)["status"], "yes", "{key}");
    }
}

/// A file is only read. Without a file there is nothing to try.
#[test]
fn files_and_directories() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "hello").unwrap();
    let path = file.to_str().unwrap();
    let named = probe(&["--path", path]);
    assert_eq!(named["path"]["path"], path);
    assert_eq!(named["path"]["tried_with"], "file");
    assert_says(check(&named, "sendfile"), &["sent 5 bytes"], "");
    assert_eq!(named["path"]["checks"].as_array().unwrap().len(), 4);
    assert_eq!(fs::read(&file).unwrap(), b"hello");

    fs::write(&file, "").unwrap();
    let empty = probe(&["--path", path]);
    assert_eq!(empty["path"]["tried_with"], "nothing");
    let obstacle = empty["path"]["obstacle"].as_str().unwrap();
    assert!(obstacle.contains("empty"), "{obstacle}");

    let whole = probe(&["--path", directory.path().to_str().unwrap()]);
    assert_eq!(whole["path"]["tried_with"], "temporary_file");
    assert_eq!(check(&whole, "shared_pages")["status"], "yes");
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        1,
        "nothing is left behind"
    );

    // A file of procfs has no pages, and cannot be mapped.
    let generated = probe(&["--path", "/proc/self/comm"]);
    assert_eq!(generated["path"]["file_system"], "proc");
    assert_eq!(check(&generated, "mmap")["status"], "no");
    assert_eq!(check(&generated, "o_direct")["status"], "no");
    // This one changes each time that it is read.
    let changing = probe(&["--path", "/proc/sys/kernel/random/uuid"]);
    assert_eq!(check(&changing, "sendfile")["status"], "no");
    assert_says(
        check(&changing, "sendfile"),
        &["the file changes while it is read"],
        "",
    );
}

#[test]
fn paths_and_interfaces_that_do_not_exist() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    for (arguments, words) in [
        (
            ["--path", "/no/such/path"],
            ["cannot probe /no/such/path", "no such file"],
        ),
        (
            ["--path", fifo.to_str().unwrap()],
            ["cannot probe", "neither a directory nor"],
        ),
        (
            ["--interface", "uncopied-none"],
            ["interface uncopied-none", "ip link"],
        ),
    ] {
        let output = program().arg("probe").args(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "{word} is missing in {stderr}");
        }
        assert!(output.stdout.is_empty());
    }
}
