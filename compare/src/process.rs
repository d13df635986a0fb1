//! Contenders as child processes: pinned to their core, tied to the life of this process, and always
//! ended by their id.

use std::ffi::OsString;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::CpuSet;

use crate::error::{Context, Error};
use crate::interrupt;

/// How long a server may take until it accepts connections.
const START_LIMIT: Duration = Duration::from_secs(5);

/// How long a server may take to end after SIGTERM; then it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// How long one try to connect, and one pause between two looks at a child, take.
const TICK: Duration = Duration::from_millis(10);

/// An error unless this process may run on that CPU.
/// `options` are those that choose CPUs.
pub(crate) fn check_cpu(cpu: usize, options: &str) -> Result<(), Error> {
    let allowed = rustix::thread::sched_getaffinity(None)
        .context(|| "cannot ask for this process's CPUs".into())?;
    if cpu < CpuSet::MAX_CPU && allowed.is_set(cpu) {
        Ok(())
    } else {
        Err(Error::Usage(format!(
            "this process may not run on CPU {cpu}: choose others with {options}"
        )))
    }
}

/// An error unless this process may run on both CPUs, which `options` choose; a word of warning if they
/// are one, for those of `who`.
pub(crate) fn check_cpus(cpus: [usize; 2], options: &str, who: &str) -> Result<(), Error> {
    for cpu in cpus {
        check_cpu(cpu, options)?;
    }
    if cpus[0] == cpus[1] {
        eprintln!("compare: {who} share one CPU: ratios are compressed");
    }
    Ok(())
}

/// Restricts the calling thread, and every process that it starts, to one CPU.
pub(crate) fn pin_to(cpu: usize) -> Result<(), Error> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(Error::Usage(format!("there is no CPU {cpu}")));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).context(|| format!("cannot run on CPU {cpu}"))
}

/// Raises the limit on open descriptors to at least `needed`, for this process and its children.
pub(crate) fn allow_descriptors(needed: u64) -> Result<(), Error> {
    let now = rustix::process::getrlimit(Resource::Nofile);
    if now.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let raised = Rlimit {
        current: Some(needed),
        maximum: now.maximum.map(|maximum| maximum.max(needed)),
    };
    rustix::process::setrlimit(Resource::Nofile, raised).map_err(|_| {
        Error::Usage(format!(
            "{needed} open descriptors are needed and the hard limit is {}: raise it (ulimit -n) \
             or ask for fewer --idle-connections",
            now.maximum.unwrap_or(u64::MAX)
        ))
    })
}

/// The body of the hidden subcommand `pinned`: everything that a child must do to itself between
/// fork and exec, without the unsafe hook.
///
/// The death signal outlives the exec, so even if this tool is killed outright no server stays.
pub(crate) fn become_pinned(cpu: usize, command: &[OsString]) -> Result<(), Error> {
    let [program, arguments @ ..] = command else {
        return Err(Error::Usage("pinned: no command".into()));
    };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context(|| "cannot ask for the parent's death signal".into())?;
    pin_to(cpu)?;
    let failure = Command::new(program).args(arguments).exec();
    Err(failure).context(|| format!("cannot run {}", program.to_string_lossy()))
}

/// A port of 127.0.0.1 that was free a moment ago.
pub(crate) fn free_address() -> Result<SocketAddr, Error> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .context(|| "cannot find a free port on 127.0.0.1".into())
}

/// A child that is pinned to its CPU. Dropping it ends the process and waits for it.
pub(crate) struct Pinned {
    child: Child,
    errors: PathBuf,
}

impl Pinned {
    /// Starts `command` on `cpu`. What it writes goes to `output`, and its errors to the file `errors`. Its
    /// input is open and empty until [`Pinned::end_input`].
    pub(crate) fn start(
        command: &[OsString],
        cpu: usize,
        output: Stdio,
        errors: &Path,
    ) -> Result<Self, Error> {
        let own = std::env::current_exe().context(|| "cannot find this program".into())?;
        let log = File::create(errors).context(|| format!("cannot write {}", errors.display()))?;
        let child = Command::new(own)
            .arg("pinned")
            .arg("--cpu")
            .arg(cpu.to_string())
            .arg("--")
            .args(command)
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(log)
            // A group of its own: Ctrl-C reaches this tool only, which then ends its children.
            .process_group(0)
            .spawn()
            .context(|| "cannot start a child process".into())?;
        Ok(Self {
            child,
            errors: errors.to_path_buf(),
        })
    }

    /// An error if the process has ended.
    pub(crate) fn check_alive(&mut self) -> Result<(), Error> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended(status)),
            Err(source) => Err(source).context(|| "cannot watch a child process".into()),
        }
    }

    /// Closes the process's input, which tells those that wait for it that their work is done.
    pub(crate) fn end_input(&mut self) {
        self.child.stdin = None;
    }

    /// Waits until the process has ended by itself.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if it does not within `limit`, or says that it failed.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            interrupt::check()?;
            match self.child.try_wait() {
                Ok(None) => thread::sleep(TICK),
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.ended(status)),
                Err(source) => {
                    return Err(source).context(|| "cannot watch a child process".into());
                }
            }
        }
        Err(Error::Unavailable(format!(
            "it did not end within {} s{}",
            limit.as_secs(),
            self.last_words()
        )))
    }

    fn ended(&self, status: ExitStatus) -> Error {
        Error::Unavailable(format!("the process ended ({status}){}", self.last_words()))
    }

    /// The last line that the process wrote to standard error, for a message.
    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.errors).unwrap_or_default();
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!(": {}", line.trim()),
            None => String::new(),
        }
    }

    /// Its process id. The wrapper became the program by exec, so this is the program itself.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Nothing can be done about a failure here; the death signal is the safety net.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(TICK),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running server. Dropping it ends the process and waits for it.
pub(crate) struct Server {
    process: Pinned,
    address: SocketAddr,
}

impl Server {
    /// Starts `command` on `cpu` and waits until `address` accepts a connection.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if the process ends first, or does not listen in time; what it wrote
    /// to standard error is part of the message.
    pub(crate) fn start(
        command: &[OsString],
        address: SocketAddr,
        cpu: usize,
        errors: &Path,
    ) -> Result<Self, Error> {
        let process = Pinned::start(command, cpu, Stdio::null(), errors)?;
        let mut server = Self { process, address };
        server.wait_until_listening()?;
        Ok(server)
    }

    fn wait_until_listening(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            interrupt::check()?;
            self.check_alive()?;
            if TcpStream::connect_timeout(&self.address, TICK).is_ok() {
                // Somebody listens; a server that lost the port to another process has ended.
                thread::sleep(TICK);
                return self.check_alive();
            }
            thread::sleep(TICK);
        }
        Err(Error::Unavailable(format!(
            "it accepted no connection within {} s{}",
            START_LIMIT.as_secs(),
            self.process.last_words()
        )))
    }

    /// An error if the process has ended.
    pub(crate) fn check_alive(&mut self) -> Result<(), Error> {
        self.process.check_alive()
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}
