//! Two network namespaces with a veth pair between them.
//!
//! The sender is in one of them and the receiver in the other. Neither has a name, so that the
//! kernel removes both, and the pair, when the last process has left them, however it ends.

use std::fs;
use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::error::BenchError;
use crate::output::print;

const SENDER_ADDRESS: &str = "10.210.0.1";
pub(super) const RECEIVER_ADDRESS: &str = "10.210.0.2";
const INTERFACE: &str = "bench0";

/// Room for a payload of two pages, as with the jumbo frames of network cards.
const MTU: &str = "9000";

/// Moves this process into a network namespace of its own, and, unless it is root, into a user
/// namespace in which it is. Must be called before any other thread is started.
pub(super) fn enter() -> Result<(), BenchError> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => return set_up("lo", None),
        Err(Errno::EPERM) => {}
        Err(error) => return Err(refused(error)),
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(refused)?;
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {} 1", user.as_raw())),
        ("gid_map", format!("0 {} 1", group.as_raw())),
    ];
    for (name, text) in maps {
        let path = format!("/proc/self/{name}");
        fs::write(&path, text).map_err(BenchError::setup(format!("write {path}")))?;
    }
    set_up("lo", None)
}

/// Moves a child of the sender into a network namespace of its own, and tells the sender.
pub(super) fn enter_as_child() -> Result<(), BenchError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(refused)?;
    print(b"entered\n").map_err(BenchError::setup("tell the sender"))
}

/// Connects the sender's namespace with that of its child.
pub(super) fn join(child: u32) -> Result<(), BenchError> {
    let child = child.to_string();
    ip(&[
        "link", "add", INTERFACE, "mtu", MTU, "type", "veth", "peer", "name", INTERFACE, "mtu",
        MTU, "netns", &child,
    ])?;
    set_up(INTERFACE, Some(SENDER_ADDRESS))
}

/// Gives the child's end of the pair its address.
pub(super) fn configure_receiver() -> Result<(), BenchError> {
    set_up("lo", None)?;
    set_up(INTERFACE, Some(RECEIVER_ADDRESS))
}

fn set_up(interface: &str, address: Option<&str>) -> Result<(), BenchError> {
    if let Some(address) = address {
        // Without duplicate address detection there is nothing to wait for: this is IPv4.
        ip(&["address", "add", &format!("{address}/30"), "dev", interface])?;
    }
    ip(&["link", "set", interface, "up"])
}

fn ip(arguments: &[&str]) -> Result<(), BenchError> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.map_err(|error| {
        BenchError::Namespace(format!("ip cannot be run ({error}); install iproute2"))
    })?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let why = String::from_utf8_lossy(&output.stderr);
            let command = arguments.join(" ");
            let why = format!("`ip {command}` failed: {}", why.trim());
            Err(BenchError::Namespace(why))
        }
    }
}

fn refused(error: Errno) -> BenchError {
    let hint = match error {
        Errno::EPERM | Errno::ENOSPC | Errno::EUSERS => {
            "; run this as root, or allow user namespaces (user.max_user_namespaces, \
             kernel.apparmor_restrict_unprivileged_userns)"
        }
        _ => "",
    };
    BenchError::Namespace(format!("{}{hint}", error.desc()))
}
