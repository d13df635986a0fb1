//! Turns the flags into a configuration, and checks it against this machine's files and limits.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use uncopied::policy::Plan;
use uncopied_http::ServeFiles;

use crate::error::{Error, kernel_text};
use crate::flags::{ExtensionType, ListenAddress, LogFormat, ServeFlags, SocketMode};
use crate::server::access_log::LineFormat;
use crate::server::listening::{DescriptorBudget, LoweredLimit};

use super::control::Deadlines;

/// A checked configuration.
pub(crate) struct Config {
    pub(crate) path: PathBuf,
    pub(crate) files: ServeFiles,
    /// The addresses to listen on. If there are none, the server listens on the default address,
    /// unless sockets were passed to it.
    pub(crate) listen: Vec<ListenAddress>,
    pub(crate) socket_mode: Option<SocketMode>,
    pub(crate) threads: usize,
    /// What is worth saying about `/` at the start.
    pub(crate) root_hint: Option<String>,
    /// The plan for sending every file. `None` lets the library choose.
    pub(crate) forced_plan: Option<Plan>,
    pub(crate) log_format: Option<LineFormat>,
    /// The file for the access log. `None` for standard output.
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) max_connections: usize,
    /// Set if the descriptor limit allows fewer connections than the default.
    pub(crate) lowered_limit: Option<LoweredLimit>,
    pub(crate) deadlines: Deadlines,
}

impl Config {
    /// Checks the path, the files that flags name, and the descriptor limit.
    pub(crate) fn check(flags: ServeFlags, descriptor_limit: usize) -> Result<Self, Error> {
        check_switch("UNCOPIED_SEND")?;
        check_switch("UNCOPIED_RECEIVE")?;
        let requested = flags.max_connections.map(|requested| requested as usize);
        let budget = DescriptorBudget::divide(descriptor_limit, requested).map_err(|needed| {
            Error::TooManyConnections {
                flag: flags.environment.name_of("--max-connections"),
                requested: requested.unwrap_or_default(),
                needed,
                limit: descriptor_limit,
            }
        })?;
        let threads = flags.threads.map_or_else(cores, usize::from);
        let log_format = log_format(&flags);
        let root_hint = root_hint(&flags);
        Ok(Self {
            files: files(&flags, budget.open_files)?,
            path: flags.path,
            listen: flags.listen,
            threads,
            socket_mode: flags.socket_mode,
            root_hint,
            forced_plan: flags.mechanism.0.map(Plan::preferring),
            log_format,
            log_file: flags.access_log_file,
            max_connections: budget.connections,
            lowered_limit: match requested {
                None => LoweredLimit::of(&budget, descriptor_limit),
                Some(_) => None,
            },
            deadlines: Deadlines {
                head: flags.header_timeout.limit(),
                send: flags.send_timeout.limit(),
                idle: flags.keepalive_timeout.limit(),
                age: flags.keepalive_time.limit(),
                grace: flags.grace.0,
            },
        })
    }
}

/// The maximum length of files that are kept in memory. For longer files, `sendfile` costs less
/// than the copy (decision 3).
const IN_MEMORY_MAX_BYTES: u64 = 8 << 10;

/// Says what `/` will give, if that may surprise: the directory has no index file and is not
/// listed, or cannot be read.
fn root_hint(flags: &ServeFlags) -> Option<String> {
    let root = &flags.path;
    if !root.is_dir() || flags.spa.is_some() {
        return None;
    }
    for index in &flags.index {
        match root.join(index).metadata() {
            Ok(metadata) if metadata.is_file() => return None,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Some(format!(
                    "cannot read {}: permission denied, so / gives 403; make it readable by this \
                     user",
                    root.join(index).display()
                ));
            }
            _ => {}
        }
    }
    match (flags.list, root.read_dir()) {
        (false, _) => Some(
            "/ has no index file and listings are off, so it gives 404; --list shows the directory"
                .to_owned(),
        ),
        (true, Err(error)) => Some(format!(
            "/ cannot be listed: {}; make the directory readable by this user",
            kernel_text(&error)
        )),
        (true, Ok(_)) => None,
    }
}

/// Returns the format of the access log. A file alone is a wish for a log, and a person at a
/// terminal wants to see what happens.
fn log_format(flags: &ServeFlags) -> Option<LineFormat> {
    match flags.access_log {
        Some(LogFormat::Off) => None,
        Some(LogFormat::Text) => Some(LineFormat::Text),
        Some(LogFormat::Json) => Some(LineFormat::Json),
        Some(LogFormat::Short) => Some(LineFormat::Short),
        None if flags.access_log_file.is_some() => Some(LineFormat::Text),
        None => io::stdout().is_terminal().then_some(LineFormat::Short),
    }
}

/// Checks a variable that the library reads. The library takes any value that it does not know for
/// "on", but for a command, a mistyped "off" is an error.
fn check_switch(variable: &'static str) -> Result<(), Error> {
    let Some(value) = std::env::var_os(variable) else {
        return Ok(());
    };
    let is_known = value.to_str().is_some_and(|value| {
        ["", "on", "1", "true", "yes", "off", "0", "false", "no"]
            .iter()
            .any(|known| value.eq_ignore_ascii_case(known))
    });
    match is_known {
        true => Ok(()),
        false => Err(Error::NotASwitch {
            variable,
            value: value.to_string_lossy().into_owned(),
        }),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn files(flags: &ServeFlags, max_open_files: usize) -> Result<ServeFiles, Error> {
    let path = &flags.path;
    let variable = Some(flags.environment.name_of("path")).filter(|name| name != "path");
    let cannot_serve = |source| Error::Path {
        variable: variable.clone(),
        path: path.display().to_string(),
        source,
    };
    let kind = path.metadata().map_err(cannot_serve)?.file_type();
    if !kind.is_dir() && !kind.is_file() {
        let text = "it is neither a directory nor a regular file";
        return Err(cannot_serve(io::Error::new(
            io::ErrorKind::InvalidInput,
            text,
        )));
    }
    let mut builder = ServeFiles::builder(path.clone())
        .index(flags.index.iter().cloned())
        .listing(flags.list)
        .hidden(flags.hidden)
        .follow_links(flags.follow_links)
        .precompressed(!flags.no_precompressed)
        .entity_tags(flags.etag.into())
        .max_open_files(max_open_files)
        .in_memory_max_bytes(IN_MEMORY_MAX_BYTES);
    if flags.mechanism.0.is_some() {
        // Do not cache files in memory: the chosen mechanism needs an open file, and a cached file
        // would bypass it.
        builder = builder.in_memory_max_bytes(0);
    }
    if let Some(file) = &flags.spa {
        check_inside(path, flags.environment.name_of("--spa"), file)?;
        builder = builder.fallback(file.clone());
    }
    for page in &flags.error_page {
        if !page.0.is_client_error() && !page.0.is_server_error() {
            return Err(Error::NotAnErrorStatus {
                flag: flags.environment.name_of("--error-page"),
                status: page.0,
            });
        }
        check_inside(path, flags.environment.name_of("--error-page"), &page.1)?;
        builder = builder.error_page(page.0, page.1.clone());
    }
    for line in &flags.header {
        builder = builder.header(line.0.clone(), line.1.clone());
    }
    for ExtensionType(extension, media_type) in &flags.mime {
        builder = builder.media_type(extension, media_type.clone());
    }
    if let Some(value) = &flags.cache_control {
        builder = builder.cache_control(value.clone());
    }
    builder.build().map_err(cannot_serve)
}

/// Checks that a file named by a flag is a regular file below the served path, so that a mistake is
/// reported at startup instead of when a client first needs the file.
fn check_inside(root: &Path, flag: String, file: &Path) -> Result<(), Error> {
    let checked = root
        .join(file)
        .metadata()
        .and_then(|metadata| match metadata.is_file() {
            true if file.is_relative() => Ok(()),
            true => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path is absolute",
            )),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            )),
        });
    checked.map_err(|source| Error::NamedFile {
        flag,
        path: file.display().to_string(),
        source,
    })
}
