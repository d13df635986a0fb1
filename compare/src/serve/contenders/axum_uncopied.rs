//! The same axum app as the contender `axum`, but with this project's listener and file service.
//! The difference from `axum` shows what such a program gains from using this project.

use axum::Router;
use uncopied_http::{Listener, ServeFiles};

use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::process::Launch;
use crate::runtime;
use crate::serve::contender::{self, FileServer, ServerFlags, ServerSetup, own_subcommand};

pub(super) const CONTENDER: FileServer = FileServer {
    name: "axum-uncopied",
    about: "the same axum app with this project's `Listener` and `ServeFiles`, current-thread \
            runtime",
    ours: true,
    variant_of: None,
    takes_part: contender::with_one_file,
    prepare,
};

fn prepare(setup: &ServerSetup<'_>) -> Result<Launch, Error> {
    let versions = ["axum", "hyper", "tokio"].map(dependency_version);
    Ok(Launch {
        command: own_subcommand("axum-uncopied-server", setup)?,
        version: versions.join(", "),
        configuration: None,
        output: None,
    })
}

/// Runs the hidden subcommand `axum-uncopied-server`.
pub(crate) fn serve(flags: &ServerFlags) -> Result<(), Error> {
    runtime::current_thread()?.block_on(async {
        let listener = Listener::bind(flags.listen)
            .await
            .context(|| format!("cannot listen on {}", flags.listen))?;
        let files = ServeFiles::new(&flags.dir).context(|| "cannot serve the files".into())?;
        axum::serve(listener, Router::new().fallback_service(files))
            .await
            .context(|| "the server failed".into())
    })
}
