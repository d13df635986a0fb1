//! axum with tower-http's `ServeDir`: what a Rust user has today.

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tower_http::services::ServeDir;

use super::{Contender, Launch, ServeFlags, Setup};
use crate::error::{Context, Error};
use crate::machine::dependency_version;

pub(super) const CONTENDER: Contender = Contender {
    name: "axum",
    about: "axum and tower-http's `ServeDir` on tokio's own listener, current-thread runtime \
            (its file reads go to tokio's blocking threads, on the same core)",
    ours: false,
    prepare,
};

fn prepare(setup: &Setup<'_>) -> Result<Launch, Error> {
    let versions = ["axum", "tower-http", "hyper", "tokio"].map(dependency_version);
    Ok(Launch {
        command: super::own_subcommand("axum-server", setup)?,
        version: versions.join(", "),
        configuration: None,
    })
}

/// The body of the hidden subcommand `axum-server`.
pub(crate) fn serve(flags: &ServeFlags) -> Result<(), Error> {
    runtime()?.block_on(async {
        let listener = TcpListener::bind(flags.listen)
            .await
            .context(|| format!("cannot listen on {}", flags.listen))?
            .tap_io(|stream| {
                if let Err(error) = stream.set_nodelay(true) {
                    eprintln!("cannot set TCP_NODELAY: {error}");
                }
            });
        let application = Router::new().fallback_service(ServeDir::new(&flags.dir));
        axum::serve(listener, application)
            .await
            .context(|| "the server failed".into())
    })
}

/// One event loop, as every contender has.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "cannot start the runtime".into())
}
