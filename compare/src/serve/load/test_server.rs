//! A server for the tests of the load generator.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use super::{LoadSettings, Served};
use crate::load::LoadTimes;
use crate::serve::case::Receiver;
use crate::serve::site::FileSet;

/// A buffer with a request at its start.
pub(super) type Request = [u8; 512];

/// Starts a server that accepts one connection, and sends what `respond` returns for each request.
/// It closes the connection after `count` responses. Returns its address, and its thread, which
/// returns the number of responses.
pub(super) fn start(
    count: usize,
    mut respond: impl FnMut(&Request) -> Vec<u8> + Send + 'static,
) -> (SocketAddr, JoinHandle<u32>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 512];
        let mut responses = 0;
        for _ in 0..count {
            if !stream.read(&mut request).is_ok_and(|length| length > 0)
                || stream.write_all(&respond(&request)).is_err()
            {
                break;
            }
            responses += 1;
        }
        responses
    });
    (address, server)
}

/// Describes a server of this process that serves the files of `set`.
pub(super) fn served(address: SocketAddr, set: &FileSet) -> Served<'_> {
    Served {
        address,
        pid: std::process::id(),
        set,
    }
}

/// The settings for one connection and a short measurement.
pub(super) fn settings(receiver: Receiver) -> LoadSettings {
    LoadSettings {
        connections: 1,
        times: LoadTimes {
            warm_up: Duration::ZERO,
            window: Duration::from_millis(200),
        },
        is_distinct: true,
        receiver,
    }
}
