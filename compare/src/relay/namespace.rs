//! The network namespace of a run.

use std::fs;
use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::error::{Context, Error};

const MAX_TIME_WAIT_PATH: &str = "/proc/sys/net/ipv4/tcp_max_tw_buckets";

/// Maximum number of closed connections that the kernel remembers (in the state TIME_WAIT). Each
/// keeps a port of the relay in use for a minute, so without this limit, the ports would run out
/// while connections per second are measured.
const MAX_TIME_WAIT: &str = "16";

/// Moves the calling thread, and every process that it starts later, into a new network namespace.
/// There, all ports are free, nobody else sends, and the settings are those of the namespace alone.
///
/// # Errors
///
/// [`Error::Unavailable`] if this process may not create a namespace, or if the program `ip` is not
/// installed.
pub(super) fn enter() -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| {
        let hint = match error {
            Errno::EPERM => ": run this as root, or under `unshare --map-root-user`",
            _ => "",
        };
        Error::Unavailable(format!("cannot create a network namespace ({error}){hint}"))
    })?;
    let status = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .context(|| "cannot run ip, which starts the loopback interface (iproute2)".into())?;
    if !status.success() {
        return Err(Error::Unavailable(format!(
            "cannot start the loopback interface: `ip link set lo up` failed ({status})"
        )));
    }
    fs::write(MAX_TIME_WAIT_PATH, MAX_TIME_WAIT)
        .context(|| format!("cannot write {MAX_TIME_WAIT_PATH}"))
}
