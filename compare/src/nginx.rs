//! Starts nginx, which is a contender of `compare serve` and `compare relay` and the server of
//! `compare get`, with the settings that are best for static files or for relaying.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error};
use crate::machine;

/// The values that nginx's configuration for static files is built from.
pub(crate) struct NginxSetup<'a> {
    /// The directory of files to serve.
    pub(crate) files: &'a Path,
    /// A directory for nginx's own files, such as its configuration.
    pub(crate) scratch: &'a Path,
    /// The address to listen on.
    pub(crate) address: SocketAddr,
    /// The maximum number of files that nginx keeps open between requests, or `None` if it keeps
    /// none open.
    pub(crate) open_files: Option<u32>,
    /// The file to which nginx appends a line per request, with the status and the number of bytes
    /// of the body that it has sent, or `None` if it keeps no log.
    pub(crate) body_log: Option<&'a Path>,
}

/// nginx as it is installed, and the configuration to start it with.
pub(crate) struct Nginx {
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
    /// nginx's name and version.
    pub(crate) version: String,
    /// The content of the configuration file.
    pub(crate) configuration: String,
}

impl Nginx {
    /// Finds nginx, and writes its configuration for serving files.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if nginx is not installed.
    pub(crate) fn prepare(setup: &NginxSetup<'_>) -> Result<Self, Error> {
        Self::with_block(&find()?, setup.scratch, "", &http_block(setup))
    }

    /// Finds nginx and its module for streams, and writes its configuration for relaying TCP
    /// connections from `listen` to `target`. `scratch` is a directory for nginx's own files.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if nginx or the module is not installed.
    pub(crate) fn prepare_relay(
        scratch: &Path,
        listen: SocketAddr,
        target: SocketAddr,
    ) -> Result<Self, Error> {
        let program = find()?;
        let modules = load_stream_module(&program)?;
        Self::with_block(&program, scratch, &modules, &stream_block(listen, target))
    }

    fn with_block(
        program: &Path,
        scratch: &Path,
        modules: &str,
        block: &str,
    ) -> Result<Self, Error> {
        let version = machine::first_line_of(&program.to_string_lossy(), &["-v"])
            .map(|line| line.replace("nginx version: ", ""))
            .ok_or_else(|| Error::Unavailable("`nginx -v` prints nothing".into()))?;
        let configuration = configuration(scratch, modules, block);
        let file = scratch.join("nginx.conf");
        fs::write(&file, &configuration).context(|| format!("cannot write {}", file.display()))?;
        Ok(Self {
            command: vec![
                program.into(),
                "-p".into(),
                scratch.into(),
                "-e".into(),
                scratch.join("error.log").into(),
                "-c".into(),
                file.into(),
            ],
            version,
            configuration,
        })
    }
}

fn find() -> Result<PathBuf, Error> {
    machine::find_program("nginx").ok_or_else(|| {
        Error::Unavailable(
            "nginx is not installed: install nginx-light (Debian, Ubuntu) or nginx".into(),
        )
    })
}

/// Returns the directive that loads nginx's module for streams. It is empty if the module is built
/// in.
fn load_stream_module(program: &Path) -> Result<String, Error> {
    // nginx -V prints the options with which nginx was built.
    let printed = Command::new(program)
        .arg("-V")
        .output()
        .context(|| "cannot run nginx -V".into())?;
    let options = String::from_utf8_lossy(&printed.stderr).into_owned();
    let mut options = options.split_whitespace();
    if options.clone().any(|option| option == "--with-stream") {
        return Ok(String::new());
    }
    let module = options
        .find_map(|option| option.strip_prefix("--modules-path="))
        .map(|directory| Path::new(directory).join("ngx_stream_module.so"))
        .filter(|module| module.is_file());
    match module {
        Some(module) => Ok(format!("load_module {};\n", quoted(&module))),
        None => Err(Error::Unavailable(
            "nginx has no stream module: install libnginx-mod-stream (Debian, Ubuntu) or \
             nginx-mod-stream"
                .into(),
        )),
    }
}

/// Returns the configuration with one block, which is `http` or `stream`.
///
/// nginx runs without a master process, so that all of its CPU time and memory belong to a single
/// process, which uses the same event loop as a worker. `multi_accept` and the backlog matter only
/// while connections are being opened.
fn configuration(scratch: &Path, modules: &str, block: &str) -> String {
    let error_log = quoted(&scratch.join("error.log"));
    let pid = quoted(&scratch.join("nginx.pid"));
    format!(
        "{modules}daemon off;
master_process off;
worker_processes 1;
error_log {error_log} crit;
pid {pid};
events {{
    use epoll;
    worker_connections 16384;
    multi_accept on;
}}
{block}"
    )
}

/// Returns the block for serving files. It turns off what costs time per request, and turns on what
/// saves time.
///
/// The `keepalive_*` limits are so high that no run reaches them. This is fair, because no run
/// reaches such limits of the other contenders either.
fn http_block(setup: &NginxSetup<'_>) -> String {
    let files = quoted(setup.files);
    let scratch = |name: &str| quoted(&setup.scratch.join(name));
    let address = setup.address;
    let open_files = match setup.open_files {
        Some(maximum) => format!("open_file_cache max={maximum} inactive=60s"),
        None => "open_file_cache off".to_owned(),
    };
    let log = match setup.body_log {
        Some(path) => format!(
            "log_format body \"$status $body_bytes_sent\";\n    access_log {} body",
            quoted(path)
        ),
        None => "access_log off".to_owned(),
    };
    let temporary_paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|module| format!("    {module}_temp_path {};\n", scratch(module)))
        .concat();
    format!(
        "http {{
    {log};
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush on;
    tcp_nodelay on;
    {open_files};
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

/// Returns the block for relaying TCP connections. The size of the buffers is nginx's default:
/// larger ones are not faster, and take more CPU time per byte.
fn stream_block(listen: SocketAddr, target: SocketAddr) -> String {
    format!(
        "stream {{
    access_log off;
    tcp_nodelay on;
    proxy_buffer_size 16k;
    proxy_half_close on;
    proxy_timeout 3600s;
    server {{
        listen {listen} reuseport backlog=16384;
        proxy_pass {target};
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
