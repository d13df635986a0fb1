//! Runs contenders as child processes. Each child is pinned to a CPU, is stopped when its handle is
//! dropped, and is killed by the kernel if this process dies.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};
use uncopied_measure::machine;

use crate::error::{Context, Error};
use crate::interrupt;

/// The time limit for a server to start and to accept a connection.
const START_LIMIT: Duration = Duration::from_secs(5);

/// The time limit for a child to exit after SIGTERM. A child that takes longer is killed.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// The time limit of one attempt to connect, and the pause between two checks of a child's state.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// While a child is expected to exit, the pause between two checks for Ctrl-C.
const INTERRUPT_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The variables that make a program send its requests to a proxy. No contender gets them, because
/// all traffic is on loopback.
const PROXY_VARIABLES: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];

/// Returns the path of this program's executable.
pub(crate) fn own_program() -> Result<PathBuf, Error> {
    std::env::current_exe().context(|| "cannot find this program".into())
}

/// Returns an error unless this process may run on `cpu`. For the message, `options` names the
/// command-line options that choose the CPUs.
fn check_cpu(cpu: usize, options: &str) -> Result<(), Error> {
    let allowed = machine::allowed_cpus().context(|| "cannot get this process's CPUs".into())?;
    if allowed.contains(&cpu) {
        Ok(())
    } else {
        Err(Error::Usage(format!(
            "this process may not run on CPU {cpu}: choose others with {options}"
        )))
    }
}

/// Returns an error unless this process may run on both CPUs. Prints a warning if both are the same
/// CPU.
///
/// For the messages, `options` names the command-line options that choose the CPUs, and `users`
/// names the processes that run on them.
pub(crate) fn check_cpus(cpus: [usize; 2], options: &str, users: &str) -> Result<(), Error> {
    for cpu in cpus {
        check_cpu(cpu, options)?;
    }
    if cpus[0] == cpus[1] {
        eprintln!("compare: {users} share one CPU: ratios are closer to 1 than on two CPUs");
    }
    Ok(())
}

/// Restricts the calling thread, and every process that it starts later, to one CPU.
pub(crate) fn pin_to(cpu: usize) -> Result<(), Error> {
    machine::pin_to(cpu).context(|| format!("cannot run on CPU {cpu}"))
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

/// Runs the hidden subcommand `pinned`: pins this process to `cpu`, and then execs `command`. A
/// child has to be pinned before the contender's program begins, that is, between the fork and the
/// exec. Running code at that point would need an unsafe `pre_exec` hook. A subcommand
/// that pins itself and then execs the contender's program needs no unsafe code.
///
/// Before the exec, asks the kernel to kill this process when its parent dies (the parent-death
/// signal). The exec keeps this setting. So even if `compare` is killed and cannot stop its
/// children, no contender keeps running.
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

/// Returns an address on 127.0.0.1 with a port that is free now, although another process may take
/// it before a server listens there.
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
    /// Starts `command` on `cpu`. The process's standard output goes to `output`, and its standard
    /// error to the file `errors`. Its standard input is a pipe that stays open and empty until
    /// [`PinnedChild::close_input`].
    pub(crate) fn start(
        command: &[OsString],
        cpu: usize,
        output: Stdio,
        errors: &Path,
    ) -> Result<Self, Error> {
        let own = own_program()?;
        let log = File::create(errors).context(|| format!("cannot write {}", errors.display()))?;
        let mut wrapper = Command::new(own);
        wrapper
            .arg("pinned")
            .arg("--cpu")
            .arg(cpu.to_string())
            .arg("--")
            .args(command)
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(log)
            // Put the child into a process group of its own, so that Ctrl-C in the terminal signals
            // only this program, which then stops its children.
            .process_group(0);
        for variable in PROXY_VARIABLES {
            wrapper.env_remove(variable);
        }
        let child = wrapper
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

    /// Closes the process's standard input. Our built-in senders treat the end of their standard
    /// input as a signal: the `copy` senders start sending, and the `memory` senders stop.
    pub(crate) fn close_input(&mut self) {
        self.child.stdin = None;
    }

    /// Waits until the process exits by itself, and returns as soon as it has.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if the process does not exit within `limit`, or exits with a failure.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        loop {
            interrupt::check()?;
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.exited(status)),
                Ok(None) if Instant::now() < deadline => self.await_exit(),
                Ok(None) => {
                    return Err(Error::Unavailable(format!(
                        "it did not exit within {} s{}",
                        limit.as_secs(),
                        self.last_error_line()
                    )));
                }
                Err(source) => Err(source),
            }
            .context(|| "cannot watch a child process".into())?;
        }
    }

    /// Waits until the process exits, or for [`INTERRUPT_INTERVAL`]. The process must not have been
    /// waited for.
    fn await_exit(&self) -> io::Result<()> {
        let process = Pid::from_child(&self.child);
        // The descriptor becomes readable when the process exits (pidfd_open(2)).
        let exit = rustix::process::pidfd_open(process, PidfdFlags::empty())?;
        match poll(
            &mut [PollFd::new(&exit, PollFlags::IN)],
            Some(&INTERRUPT_INTERVAL),
        ) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn exited(&self, status: ExitStatus) -> Error {
        Error::Unavailable(format!(
            "the process exited ({status}){}",
            self.last_error_line()
        ))
    }

    /// Returns the last line that the process wrote to standard error, after a colon, to be
    /// appended to a message. Returns an empty string if there is no such line. Prefers a line that
    /// begins with `error:`, because our programs end a message about their command line with a
    /// hint at `--help`.
    fn last_error_line(&self) -> String {
        let text = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let mut lines = text.lines().rev();
        let explicit = lines.clone().find(|line| line.starts_with("error:"));
        match explicit.or_else(|| lines.find(|line| !line.trim().is_empty())) {
            Some(line) => format!(": {}", line.trim()),
            None => String::new(),
        }
    }

    /// The process ID of the program itself: the `pinned` wrapper execs the program, which keeps
    /// the process ID.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for PinnedChild {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Ignore all failures. A child that does not exit after SIGTERM is killed below, and if
        // that fails too, the parent-death signal kills the child when this program exits.
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

/// The command and the configuration that start a server or a relay as one process with one event
/// loop.
pub(crate) struct Launch {
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
    /// The name and the version of the software.
    pub(crate) version: String,
    /// The content of the configuration file, if there is one.
    pub(crate) configuration: Option<String>,
    /// The file to which the standard output goes, if it is not discarded.
    pub(crate) output: Option<PathBuf>,
}

/// A running server. Dropping it stops the process and waits for its exit.
pub(crate) struct Server {
    process: PinnedChild,
    address: SocketAddr,
}

impl Server {
    /// Starts `command` on `cpu` and waits until `address` accepts a connection. The process's
    /// standard output is appended to the file `output`, or discarded.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if the process exits before it accepts a connection, or accepts none
    /// within the time limit. The message includes the last line that the process wrote to standard
    /// error.
    pub(crate) fn start(
        command: &[OsString],
        address: SocketAddr,
        cpu: usize,
        output: Option<&Path>,
        errors: &Path,
    ) -> Result<Self, Error> {
        let output = match output {
            Some(path) => File::options()
                .create(true)
                .append(true)
                .open(path)
                .context(|| format!("cannot write {}", path.display()))?
                .into(),
            None => Stdio::null(),
        };
        let process = PinnedChild::start(command, cpu, output, errors)?;
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
                // A process listens there, but it may be a different one that has taken the port.
                // In that case our server cannot listen and exits. So after a pause, check that our
                // server is still running.
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

    /// The server's process.
    pub(crate) fn process(&mut self) -> &mut PinnedChild {
        &mut self.process
    }

    /// The address that the server listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The server's process ID.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}
