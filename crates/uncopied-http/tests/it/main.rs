//! Tests of the public API of `uncopied-http`: the `delivery*` modules test how bodies reach the
//! client, and the `serve_files*` modules test the responses of the file service. `axum_app` tests
//! the integration with axum, and `adopting` checks the document `docs/adopting.md`.

#![allow(clippy::unwrap_used)]

mod delivery_harness;
mod test_site;

mod adopting;
mod axum_app;

mod delivery;
mod delivery_body;
mod delivery_cold;
mod delivery_connection;
mod delivery_cut;
mod delivery_load;
mod delivery_missing;
mod delivery_open;
mod delivery_pages;
mod delivery_pages_cut;
mod delivery_sockets;
mod delivery_stream;
mod delivery_switch;
mod delivery_upgrade;

mod serve_files;
mod serve_files_cache;
mod serve_files_conditional;
mod serve_files_directory;
mod serve_files_fallback;
mod serve_files_mounted;
mod serve_files_negotiate;
mod serve_files_paths;
mod serve_files_range;
mod serve_files_root;
