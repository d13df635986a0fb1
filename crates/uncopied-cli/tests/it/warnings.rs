//! Tests that failures of the server are told on standard error and in the access log.

use std::fs::{self, File};

use crate::client::{connect, connect_with_small_window, get, read_head, read_to_close, send_get};
use crate::server::{BIG_FILE_BYTES, Server, site};
use crate::trace::{TracedServer, can_trace};

#[test]
fn a_body_that_the_server_cuts_is_told() {
    let site = site();
    let mut server = Server::start(site.path(), &["--access-log", "json"]);
    server.collect_stdout();
    let mut stream = connect_with_small_window(server.address());
    send_get(&mut stream, "/big");
    read_head(&mut stream).unwrap();
    let file = File::options().write(true).open(site.path().join("big"));
    file.unwrap().set_len(1 << 20).unwrap();
    assert!(read_to_close(&mut stream).len() < BIG_FILE_BYTES);
    let exit = server.stop();
    let warning = exit.stderr.iter().find(|line| line.contains("/big: "));
    let warning = warning.expect("there is a warning");
    assert!(warning.contains("the body was cut after "), "{warning}");
    assert!(
        exit.stdout.contains("\"complete\":false"),
        "{}",
        exit.stdout
    );
    assert!(exit.stdout.contains("\"error\":\""), "{}", exit.stdout);
}

#[test]
fn a_status_of_5xx_is_told_with_a_remedy() {
    if !can_trace("a_status_of_5xx_is_told_with_a_remedy") {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("file"), "content").unwrap();
    let file = site.path().join("file").display().to_string();
    let inject = "inject=openat2:error=EMFILE";
    let options = ["-P", &file, "-P", "file", "-e", inject];
    let traced = TracedServer::start(site.path(), &[], &options);
    assert_eq!(
        get(&mut connect(traced.server.address()), "/file").status,
        503
    );
    let (exit, _) = traced.stop();
    let warning = exit.stderr.iter().find(|line| line.contains("/file: "));
    let warning = warning.expect("there is a warning");
    assert!(
        warning.contains("503") && warning.contains("ulimit -n"),
        "{warning}"
    );
}
