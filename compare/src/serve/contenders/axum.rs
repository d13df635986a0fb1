//! axum with tower-http's `ServeDir`: how Rust programs usually serve files.

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tower_http::services::ServeDir;

use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::process::Launch;
use crate::runtime;
use crate::serve::contender::{self, FileServer, ServerFlags, ServerSetup, own_subcommand};

pub(super) const CONTENDER: FileServer = FileServer {
    name: "axum",
    about: "axum and tower-http's `ServeDir` on tokio's own listener, current-thread runtime \
            (files are read on tokio's blocking threads, which share the CPU)",
    ours: false,
    variant_of: None,
    takes_part: contender::with_one_file,
    prepare,
};

fn prepare(setup: &ServerSetup<'_>) -> Result<Launch, Error> {
    let versions = ["axum", "tower-http", "hyper", "tokio"].map(dependency_version);
    Ok(Launch {
        command: own_subcommand("axum-server", setup)?,
        version: versions.join(", "),
        configuration: None,
        output: None,
    })
}

/// Runs the hidden subcommand `axum-server`.
pub(crate) fn serve(flags: &ServerFlags) -> Result<(), Error> {
    runtime::current_thread()?.block_on(async {
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
