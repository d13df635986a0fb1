//! iperf3's client. It writes from memory or, with `-Z`, calls `sendfile` on a temporary file that
//! contains the bytes of its buffer.

use crate::memory::contender::{MemorySender, SendingProgram};
use crate::memory::iperf3::client::{self, Mode};

pub(super) const WRITE: MemorySender = MemorySender {
    name: "iperf3",
    about: "iperf3's client, which writes from memory (it does not report copies, but `write` \
            copies every byte)",
    ours: false,
    version: client::version,
    program: SendingProgram::Iperf3(Mode::Write),
};

pub(super) const SENDFILE: MemorySender = MemorySender {
    name: "iperf3-Z",
    about: "iperf3's client with `-Z`, which calls `sendfile` on a temporary file with the bytes of \
            the buffer (it does not report copies, but `sendfile` copies nothing: it passes \
            references to the file's pages)",
    ours: false,
    version: client::version,
    program: SendingProgram::Iperf3(Mode::Sendfile),
};
