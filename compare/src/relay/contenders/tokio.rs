//! The relay that most Rust programs have: a task with tokio's `copy_bidirectional` for each
//! connection. It is the hidden subcommand `tokio-relay`.

use std::future::Future;
use std::io;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::error::{Context, Error};
use crate::machine;
use crate::relay::contender::{RelayFlags, RelayProgram, own_subcommand};
use crate::runtime;

pub(super) const CONTENDER: RelayProgram = RelayProgram {
    name: "tokio",
    about: "tokio's `copy_bidirectional`, current-thread runtime",
    ours: false,
    prepare: |setup| own_subcommand("tokio-relay", machine::dependency_version("tokio"), setup),
};

/// Runs the hidden subcommand `tokio-relay`.
pub(crate) fn run(flags: &RelayFlags) -> Result<(), Error> {
    relay_with(flags, |mut client, mut server| async move {
        copy_bidirectional(&mut client, &mut server).await.map(drop)
    })
}

/// Accepts connections on a current-thread runtime. For each, connects to the target, and has
/// `copy` relay in both directions, in a task of its own.
pub(super) fn relay_with<F: Future<Output = io::Result<()>> + Send + 'static>(
    flags: &RelayFlags,
    copy: impl Fn(TcpStream, TcpStream) -> F + Copy + Send + Sync + 'static,
) -> Result<(), Error> {
    let target = flags.target;
    let serve = async {
        let listener = TcpListener::bind(flags.listen)
            .await
            .context(|| format!("cannot listen on {}", flags.listen))?;
        loop {
            let (client, _) = listener.accept().await.context(|| "cannot accept".into())?;
            tokio::spawn(async move {
                let relayed = async {
                    let server = TcpStream::connect(target).await?;
                    client.set_nodelay(true)?;
                    server.set_nodelay(true)?;
                    copy(client, server).await
                };
                if let Err(error) = relayed.await {
                    eprintln!("a connection failed: {error}");
                }
            });
        }
    };
    runtime::current_thread()?.block_on(serve)
}
