//! Programs that copy, and programs that do not, on the same load: large files over loopback. The
//! copies of the receiver are in another process, and are not counted.

use rustix::process::Signal;

use super::watched::{
    Audit, Report, audit_server, can_sample_kernel, children, find_program, load, nginx,
    plain_server, wait_for_server, warm_site,
};
use crate::client::free_address;
use crate::server::{PROGRAM, Server};

/// The least share of a program that copies each byte, and the largest of one that copies none.
const COPIES: f64 = 0.10;
const COPIES_NOT: f64 = 0.01;

fn words(command: &[String]) -> Vec<&str> {
    command.iter().map(String::as_str).collect()
}

/// The functions with samples that show copies.
fn copy_functions(report: &Report) -> Vec<&str> {
    let functions = report.0["copy_functions"].as_array().unwrap();
    functions
        .iter()
        .map(|function| function["name"].as_str().unwrap())
        .collect()
}

#[test]
fn read_and_write_copy() {
    let name = "read_and_write_copy";
    let Some(python) = find_program("python3", name) else {
        return;
    };
    if !can_sample_kernel(name) {
        return;
    }
    let (site, address) = (warm_site(), free_address());
    let command = plain_server(&python, site.path(), address);
    let report = audit_server(&words(&command), address, "/big");
    assert!(report.copy_share() > COPIES, "{}", report.0);
    assert!(!copy_functions(&report).is_empty(), "{}", report.0);
    // The counts of threads and of activities are those of the same samples.
    let of_threads = |key: &str| -> u64 {
        let threads = report.0["threads"].as_array().unwrap();
        threads
            .iter()
            .map(|thread| thread[key].as_u64().unwrap())
            .sum()
    };
    assert_eq!(of_threads("samples"), report.samples());
    assert_eq!(of_threads("copy_samples"), report.activity("copy"));
    let activities = report.0["activities"].as_object().unwrap();
    let sum: u64 = activities
        .values()
        .map(|count| count.as_u64().unwrap())
        .sum();
    assert_eq!(sum, report.samples());
}

#[test]
fn nginx_copies_without_sendfile_only() {
    let name = "nginx_copies_without_sendfile_only";
    let Some(path) = find_program("nginx", name) else {
        return;
    };
    if !can_sample_kernel(name) {
        return;
    }
    let share = |sendfile| {
        let (site, address) = (warm_site(), free_address());
        let command = nginx(&path, site.path(), address, sendfile, "off");
        let report = audit_server(&words(&command), address, "/big");
        (report.copy_share(), report)
    };
    let (copied, report) = share("off");
    assert!(copied > COPIES, "{}", report.0);
    let (copied, report) = share("on");
    assert!(copied < COPIES_NOT, "{}", report.0);
}

#[test]
fn the_mechanisms_of_serve_are_told_apart() {
    if !can_sample_kernel("the_mechanisms_of_serve_are_told_apart") {
        return;
    }
    for (mechanism, copies) in [
        ("sendfile", false),
        ("splice", false),
        ("mmap_write", true),
        ("copy", true),
    ] {
        let (site, address) = (warm_site(), free_address());
        let directory = site.path().display().to_string();
        let listen = address.to_string();
        let flags = ["--listen", &listen, "--mechanism", mechanism];
        let command = [&[PROGRAM, "serve", &directory][..], &flags].concat();
        let report = audit_server(&command, address, "/big");
        let share = report.copy_share();
        let is_right = if copies {
            share > COPIES
        } else {
            share < COPIES_NOT
        };
        assert!(is_right, "{mechanism}: {}", report.0);
    }
}

#[test]
fn a_running_process_is_watched_with_its_threads() {
    if !can_sample_kernel("a_running_process_is_watched_with_its_threads") {
        return;
    }
    for (mechanism, copies) in [("copy", true), ("sendfile", false)] {
        let site = warm_site();
        // The worker is a thread that exists before the audit.
        let server = Server::start(site.path(), &["--threads", "1", "--mechanism", mechanism]);
        let audit = Audit::attach(server.id());
        load(server.id().try_into().unwrap(), server.address(), "/big");
        audit.signal(Signal::INT);
        let report = audit.report();
        let share = report.copy_share();
        let is_right = if copies {
            share > COPIES
        } else {
            share < COPIES_NOT
        };
        assert!(is_right, "{mechanism}: {}", report.0);
        assert_eq!(report.0["pid"], server.id());
        assert_eq!(report.0["subject"], "uncopied");
        // The process that was watched is left alone.
        server.stop();
    }
}

#[test]
fn children_are_followed() {
    let name = "children_are_followed";
    let Some(path) = find_program("nginx", name) else {
        return;
    };
    if !can_sample_kernel(name) {
        return;
    }
    let (site, address) = (warm_site(), free_address());
    let command = nginx(&path, site.path(), address, "off", "on");

    // A child that is forked under the audit, through a shell that does not replace itself.
    let script = format!("{}; exit 7", command.join(" "));
    let report = {
        let audit = Audit::start(&["--", "sh", "-c", &script]);
        wait_for_server(address);
        load(audit.id(), address, "/big");
        for shell in children(audit.id()) {
            for master in children(shell) {
                let master = rustix::process::Pid::from_raw(master).unwrap();
                rustix::process::kill_process(master, Signal::QUIT).unwrap();
            }
        }
        audit.report()
    };
    assert!(report.copy_share() > COPIES, "{}", report.0);

    // A child that exists before the audit.
    let mut master = std::process::Command::new(&command[0])
        .args(&command[1..])
        .spawn()
        .unwrap();
    wait_for_server(address);
    let audit = Audit::attach(master.id());
    load(master.id().try_into().unwrap(), address, "/big");
    audit.signal(Signal::TERM);
    let report = audit.report();
    rustix::process::kill_process(rustix::process::Pid::from_child(&master), Signal::QUIT).unwrap();
    master.wait().unwrap();
    assert!(report.copy_share() > COPIES, "{}", report.0);
    let threads = report.0["threads"].as_array().unwrap();
    assert!(
        threads.iter().all(|thread| thread["name"] == "nginx"),
        "{}",
        report.0
    );
}

#[test]
fn user_code_is_counted() {
    if !can_sample_kernel("user_code_is_counted") {
        return;
    }
    let script = "i=0; while [ $i -lt 600000 ]; do i=$((i+1)); done";
    let report = Audit::start(&["--", "sh", "-c", script]).report();
    assert!(report.copy_share() < COPIES_NOT, "{}", report.0);
    assert!(
        report.activity("user") > report.samples() / 2,
        "{}",
        report.0
    );
}
