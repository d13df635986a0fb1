//! iperf3 as a sender: its client's command line, and the server side of its protocol.

pub(super) mod client;
pub(super) mod server;
