//! The contenders of `compare memory`. To add a contender, write a module with a `CONTENDER` that
//! says how to send, and add the `CONTENDER` to [`ALL`].

mod copy;
mod each_connection;
mod iperf3;
mod msg_zerocopy;
mod one_mechanism;
mod region;
mod send_zc;
mod send_zc_bytes;
mod uncopied_tokio;
mod vmsplice;
mod write;
mod write_all;

use super::contender::MemorySender;
use crate::participant;

/// All contenders, in the order in which they are measured and listed.
pub(super) const ALL: &[MemorySender] = &[
    write::CONTENDER,
    write_all::CONTENDER,
    iperf3::WRITE,
    iperf3::SENDFILE,
    copy::CONTENDER,
    vmsplice::CONTENDER,
    region::CONTENDER,
    msg_zerocopy::CONTENDER,
    send_zc::CONTENDER,
    send_zc_bytes::CONTENDER,
    uncopied_tokio::VMSPLICE,
    uncopied_tokio::BYTES,
];

/// Finds a contender by its name.
pub(super) fn by_name(name: &str) -> Result<&'static MemorySender, String> {
    participant::by_name(ALL, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        participant::check_names(ALL);
        assert!(by_name("netperf").is_err_and(|message| message.contains("iperf3-Z")));
    }
}
