//! iperf3's client, which writes from memory, or with `-Z` sends a file with the bytes of its
//! buffer by `sendfile`.

use crate::memory::contender::{MemorySender, SendingProgram};
use crate::memory::iperf3::client::{self, Mode};

pub(super) const WRITE: MemorySender = MemorySender {
    name: "iperf3",
    about: "iperf3's client, which writes from memory (it does not report copies; a write copies \
            every byte)",
    ours: false,
    version: client::version,
    program: SendingProgram::Iperf3(Mode::Write),
};

pub(super) const SENDFILE: MemorySender = MemorySender {
    name: "iperf3-Z",
    about: "iperf3's client with `-Z`: `sendfile` of a temporary file with the bytes of the buffer \
            (it does not report copies; sendfile passes references to the file's pages)",
    ours: false,
    version: client::version,
    program: SendingProgram::Iperf3(Mode::Sendfile),
};
