//! `uncopied relay`: relays TCP connections to other servers.

mod balance;
mod config;
mod health;
#[cfg_attr(not(test), expect(dead_code, reason = "nothing relays yet"))]
mod proxy_protocol;
#[cfg_attr(not(test), expect(dead_code, reason = "nothing relays yet"))]
mod target;

use std::io;

use crate::error::Error;
use crate::flags::RelayFlags;
use crate::output::print;

use config::RelayConfig;

pub(crate) use config::ConfigError;

/// Checks the configuration if `--check` is given.
pub(crate) fn run(flags: &RelayFlags) -> Result<(), Error> {
    let config = RelayConfig::load(flags)?;
    if flags.check {
        return print(format!("{config}\n").as_bytes()).map_err(Error::Output);
    }
    Err(Error::setup("relay connections")(io::Error::new(
        io::ErrorKind::Unsupported,
        "this build only checks configurations (--check)",
    )))
}
