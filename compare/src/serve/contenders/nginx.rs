//! nginx, with the settings that are best for static files.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error};
use crate::machine;
use crate::serve::contender::{self, FileServer, Launch, ServerSetup};

pub(super) const CONTENDER: FileServer = FileServer {
    name: "nginx",
    about: "nginx with one worker and the settings that are best for static files",
    ours: false,
    variant_of: None,
    takes_part: contender::always,
    prepare,
};

fn prepare(setup: &ServerSetup<'_>) -> Result<Launch, Error> {
    let program = find().ok_or_else(|| {
        Error::Unavailable(
            "nginx is not installed: install nginx-light (Debian, Ubuntu) or nginx".into(),
        )
    })?;
    let version = machine::first_line_of(&program.to_string_lossy(), &["-v"])
        .map(|line| line.replace("nginx version: ", ""))
        .ok_or_else(|| Error::Unavailable("`nginx -v` prints nothing".into()))?;
    let configuration = configuration(setup);
    let file = setup.scratch.join("nginx.conf");
    fs::write(&file, &configuration).context(|| format!("cannot write {}", file.display()))?;
    let command: Vec<OsString> = vec![
        program.into(),
        "-p".into(),
        setup.scratch.into(),
        "-e".into(),
        setup.scratch.join("error.log").into(),
        "-c".into(),
        file.into(),
    ];
    Ok(Launch {
        command,
        version,
        configuration: Some(configuration),
        output: None,
    })
}

/// Searches `PATH`, and then the directories where nginx is usually installed, which are not in
/// every user's `PATH`.
fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/usr/local/nginx/sbin"].map(PathBuf::from))
        .map(|directory| directory.join("nginx"))
        .find(|candidate| candidate.is_file())
}

/// Returns the configuration. It turns off what costs time per request, and turns on what saves
/// time.
///
/// nginx runs without a master process, so that all of its CPU time and memory belong to a single
/// process, which uses the same event loop as a worker. `multi_accept` and the backlog matter only
/// while connections are being opened, which is not timed. The `keepalive_*` limits are so high
/// that no run reaches them. This is fair, because no run reaches such limits of the other
/// contenders either. The cache of open files is as large as that of the other contenders.
fn configuration(setup: &ServerSetup<'_>) -> String {
    let files = quoted(setup.files);
    let scratch = |name: &str| quoted(&setup.scratch.join(name));
    let address = setup.address;
    let open_files = contender::OPEN_FILES;
    let error_log = scratch("error.log");
    let pid = scratch("nginx.pid");
    let temporary_paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|module| format!("    {module}_temp_path {};\n", scratch(module)))
        .concat();
    format!(
        "daemon off;
master_process off;
worker_processes 1;
error_log {error_log} crit;
pid {pid};
events {{
    use epoll;
    worker_connections 16384;
    multi_accept on;
}}
http {{
    access_log off;
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush on;
    tcp_nodelay on;
    open_file_cache max={open_files} inactive=60s;
    open_file_cache_valid 60s;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    types {{ }}
    default_type application/octet-stream;
{temporary_paths}    server {{
        listen {address} reuseport backlog=16384;
        root {files};
    }}
}}
"
    )
}

/// Quotes a path so that nginx's configuration reads it as a single word.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
