//! Contenders as child processes. Each is pinned to its CPU, dies with this process, and is stopped
//! by its process id.

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

/// How long a server may take to accept connections.
const START_LIMIT: Duration = Duration::from_secs(5);

/// How long a child may take to exit after SIGTERM before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// Time limit of one attempt to connect, and the pause between two checks of a child.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The path of this program.
pub(crate) fn own_program() -> Result<PathBuf, Error> {
    std::env::current_exe().context(|| "cannot find this program".into())
}

/// Returns an error unless this process may run on `cpu`. `options` names the options that choose
/// CPUs.
fn check_cpu(cpu: usize, options: &str) -> Result<(), Error> {
    let allowed = rustix::thread::sched_getaffinity(None)
        .context(|| "cannot get this process's CPUs".into())?;
    if cpu < CpuSet::MAX_CPU && allowed.is_set(cpu) {
        Ok(())
    } else {
        Err(Error::Usage(format!(
            "this process may not run on CPU {cpu}: choose others with {options}"
        )))
    }
}

/// Returns an error unless this process may run on both CPUs. Warns if they are the same.
///
/// `options` names the options that choose the CPUs, and `users` the processes that run on them.
pub(crate) fn check_cpus(cpus: [usize; 2], options: &str, users: &str) -> Result<(), Error> {
    for cpu in cpus {
        check_cpu(cpu, options)?;
    }
    if cpus[0] == cpus[1] {
        eprintln!("compare: {users} share one CPU: ratios are compressed");
    }
    Ok(())
}

/// Restricts the calling thread, and every process that it starts later, to one CPU.
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

/// The hidden subcommand `pinned`. It does what a child must do to itself between fork and exec,
/// without an unsafe `pre_exec` hook.
///
/// The parent-death signal survives the exec, so no child is left even if this program is killed.
pub(crate) fn become_pinned(cpu: usize, command: &[OsString]) -> Result<(), Error> {
    let [program, arguments @ ..] = command else {
        return Err(Error::Usage("pinned: no command".into()));
    };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context(|| "cannot set the parent-death signal".into())?;
    pin_to(cpu)?;
    let failure = Command::new(program).args(arguments).exec();
    Err(failure).context(|| format!("cannot run {}", program.to_string_lossy()))
}

/// Returns an address on 127.0.0.1 whose port was free a moment ago.
pub(crate) fn free_address() -> Result<SocketAddr, Error> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .context(|| "cannot find a free port on 127.0.0.1".into())
}

/// A child process that is pinned to a CPU. Dropping it stops the process and waits for its exit.
pub(crate) struct PinnedChild {
    child: Child,
    errors: PathBuf,
}

impl PinnedChild {
    /// Starts `command` on `cpu`. Its standard output goes to `output`, its standard error to the
    /// file `errors`. Its standard input stays open and empty until [`PinnedChild::close_input`].
    pub(crate) fn start(
        command: &[OsString],
        cpu: usize,
        output: Stdio,
        errors: &Path,
    ) -> Result<Self, Error> {
        let own = own_program()?;
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
            // In its own process group, so that Ctrl-C reaches only this program, which then stops
            // its children.
            .process_group(0)
            .spawn()
            .context(|| "cannot start a child process".into())?;
        Ok(Self {
            child,
            errors: errors.to_path_buf(),
        })
    }

    /// Returns an error if the process has exited.
    pub(crate) fn check_alive(&mut self) -> Result<(), Error> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.exited(status)),
            Err(source) => Err(source).context(|| "cannot watch a child process".into()),
        }
    }

    /// Closes the process's standard input, which is the signal that our senders wait for.
    pub(crate) fn close_input(&mut self) {
        self.child.stdin = None;
    }

    /// Waits until the process exits by itself.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if it does not exit within `limit`, or exits with a failure.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            interrupt::check()?;
            match self.child.try_wait() {
                Ok(None) => thread::sleep(POLL_INTERVAL),
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.exited(status)),
                Err(source) => {
                    return Err(source).context(|| "cannot watch a child process".into());
                }
            }
        }
        Err(Error::Unavailable(format!(
            "it did not exit within {} s{}",
            limit.as_secs(),
            self.last_error_line()
        )))
    }

    fn exited(&self, status: ExitStatus) -> Error {
        Error::Unavailable(format!(
            "the process exited ({status}){}",
            self.last_error_line()
        ))
    }

    /// The last line that the process wrote to standard error, as the end of a message.
    fn last_error_line(&self) -> String {
        let text = std::fs::read_to_string(&self.errors).unwrap_or_default();
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!(": {}", line.trim()),
            None => String::new(),
        }
    }

    /// The process id. The `pinned` wrapper has become the program by exec, so it is the program's.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for PinnedChild {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Nothing can be done about a failure here. The parent-death signal is the safety net.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(POLL_INTERVAL),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running server. Dropping it stops the process and waits for its exit.
pub(crate) struct Server {
    process: PinnedChild,
    address: SocketAddr,
}

impl Server {
    /// Starts `command` on `cpu` and waits until `address` accepts a connection.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if the process exits first, or does not listen in time. The message
    /// includes the last line that it wrote to standard error.
    pub(crate) fn start(
        command: &[OsString],
        address: SocketAddr,
        cpu: usize,
        errors: &Path,
    ) -> Result<Self, Error> {
        let process = PinnedChild::start(command, cpu, Stdio::null(), errors)?;
        let mut server = Self { process, address };
        server.wait_until_listening()?;
        Ok(server)
    }

    fn wait_until_listening(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            interrupt::check()?;
            self.check_alive()?;
            if TcpStream::connect_timeout(&self.address, POLL_INTERVAL).is_ok() {
                // Something listens there. A server that lost the port to another process exits.
                thread::sleep(POLL_INTERVAL);
                return self.check_alive();
            }
            thread::sleep(POLL_INTERVAL);
        }
        Err(Error::Unavailable(format!(
            "it accepted no connection within {} s{}",
            START_LIMIT.as_secs(),
            self.process.last_error_line()
        )))
    }

    /// Returns an error if the process has exited.
    pub(crate) fn check_alive(&mut self) -> Result<(), Error> {
        self.process.check_alive()
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}
