//! The process that sends, and the line in which it says how it went.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use clap::Args;
use rustix::net::{AddressFamily, SocketType, sockopt};
use serde_json::{Value, json};

use super::contenders::{self, Contender};
use super::receiver::set_congestion;
use crate::error::{Context, Error};
use crate::pattern;
use crate::table::parse_size;

/// Arguments of the hidden subcommand `memory-sender`.
#[derive(Args)]
pub(crate) struct Flags {
    /// Which contender to be.
    #[arg(long, value_parser = contenders::by_name)]
    how: &'static Contender,
    /// Where to connect to.
    #[arg(long)]
    connect: SocketAddr,
    /// Length of the buffer, which is sent over and over.
    #[arg(long, value_parser = parse_size)]
    size: u64,
    /// The TCP congestion control to set on the socket.
    #[arg(long)]
    congestion: String,
}

/// What a contender of this program is given.
pub(super) struct Job {
    /// Connected, blocking, with all options as the kernel sets them, but for the congestion control.
    pub(super) stream: TcpStream,
    /// What one call is to send, over and over.
    pub(super) payload: Vec<u8>,
    stop: Arc<AtomicBool>,
}

impl Job {
    /// Whether to send once more.
    pub(super) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// What a sender says it has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    /// Bytes that the socket took.
    pub(super) bytes: u64,
    /// How many of them the CPU copied.
    pub(super) copied: u64,
}

/// What a sender says, and on what kind of socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    /// What it has done.
    pub(super) sent: Sent,
    /// The congestion control of its socket.
    pub(super) congestion: String,
}

/// The body of the hidden subcommand `memory-sender`: sends until standard input ends.
pub(crate) fn run(flags: &Flags) -> Result<(), Error> {
    let send = flags.how.send_within().ok_or_else(|| {
        Error::Usage(format!(
            "{} is a program of its own: run that",
            flags.how.name
        ))
    })?;
    let payload = pattern::bytes(flags.size);
    let stream = connect(flags.connect, &flags.congestion)?;
    let congestion = sockopt::tcp_congestion(&stream)
        .context(|| "cannot ask for the congestion control of a connection".into())?;
    let stop = Arc::new(AtomicBool::new(false));
    stop_with_input(Arc::clone(&stop));
    let sent = send(Job {
        stream,
        payload,
        stop,
    })?;
    println!("{}", Account { sent, congestion }.line());
    Ok(())
}

/// The congestion control is set before there is a connection, as others may pace it from then on.
fn connect(address: SocketAddr, congestion: &str) -> Result<TcpStream, Error> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket: OwnedFd = rustix::net::socket(family, SocketType::STREAM, None)
        .context(|| "cannot make a socket".into())?;
    set_congestion(&socket, congestion)?;
    rustix::net::connect(&socket, &address).context(|| format!("cannot connect to {address}"))?;
    Ok(socket.into())
}

/// Looking at a flag costs the sender nothing, as looking at the clock for every buffer would. The thread
/// sleeps until it is over.
fn stop_with_input(stop: Arc<AtomicBool>) {
    thread::spawn(move || {
        let mut ignored = [0; 64];
        while std::io::stdin()
            .read(&mut ignored)
            .is_ok_and(|count| count > 0)
        {}
        stop.store(true, Ordering::Relaxed);
    });
}

impl Account {
    fn line(&self) -> String {
        json!({
            "bytes": self.sent.bytes,
            "copied": self.sent.copied,
            "congestion": self.congestion,
        })
        .to_string()
    }

    /// Reads the line of a sender of this program.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let not_understood = || Error::WrongAnswer(format!("the sender's account is {text:?}"));
        let value: Value = serde_json::from_str(text).map_err(|_| not_understood())?;
        let number = |key: &str| value[key].as_u64().ok_or_else(not_understood);
        Ok(Self {
            sent: Sent {
                bytes: number("bytes")?,
                copied: number("copied")?,
            },
            congestion: value["congestion"]
                .as_str()
                .ok_or_else(not_understood)?
                .to_owned(),
        })
    }

    /// An error unless it fits what the receiver has seen, and what was asked for.
    pub(super) fn check(&self, received_bytes: u64, congestion: &str) -> Result<(), Error> {
        let Sent { bytes, copied } = self.sent;
        if bytes != received_bytes {
            return Err(Error::WrongAnswer(format!(
                "it says that it sent {bytes} bytes, and {received_bytes} came"
            )));
        }
        if copied > bytes {
            return Err(Error::WrongAnswer(format!(
                "it says that {copied} of {bytes} bytes were copied"
            )));
        }
        if self.congestion != congestion {
            return Err(Error::WrongAnswer(format!(
                "its congestion control was {} and not {congestion}",
                self.congestion
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account {
            sent: Sent {
                bytes: 8192,
                copied: 4096,
            },
            congestion: "cubic".into(),
        }
    }

    #[test]
    fn accounts_are_read_as_they_are_written() {
        assert_eq!(Account::parse(&account().line()).unwrap(), account());
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"bytes":-1,"copied":0,"congestion":"cubic"}"#,
            r#"{"bytes":1,"copied":0}"#,
        ] {
            assert!(Account::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_account_must_fit_what_came() {
        assert!(account().check(8192, "cubic").is_ok());
        assert!(account().check(8191, "cubic").is_err());
        assert!(account().check(8192, "bbr").is_err());
        let mut boastful = account();
        boastful.sent.copied = 8193;
        assert!(boastful.check(8192, "cubic").is_err());
    }
}
