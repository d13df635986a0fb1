//! iperf3 as a sender: runs iperf3's client, and implements the server side of iperf3's protocol.

pub(super) mod client;
pub(super) mod server;
