//! The type of the contenders of `compare receive`.

use std::ffi::OsString;

use super::job::{ReceiveJob, ReceiverSetup};
use super::meter::Meter;
use crate::error::Error;
use crate::participant::Contender;
use crate::process;

/// The size of the buffers that all contenders receive into.
pub(super) const READ_BYTES: usize = 256 << 10;

/// Memory that begins at a page, as that of uncopied's receiver does, so that no contender has an
/// advantage by the alignment of its memory.
pub(super) struct PageAligned {
    memory: Vec<u8>,
    start: usize,
}

impl PageAligned {
    /// Allocates `len` bytes.
    pub(super) fn new(len: usize) -> Self {
        let page = rustix::param::page_size();
        let mut memory = vec![0; len + page];
        // Less than a page, because the alignment of bytes can always be reached.
        let start = memory.as_ptr().align_offset(page);
        memory.truncate(start + len);
        Self { memory, start }
    }

    /// Returns the memory.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }

    /// Returns the memory, which is never freed.
    pub(super) fn leak(self) -> &'static mut [u8] {
        &mut self.memory.leak()[self.start..]
    }
}

/// A way to receive from a TCP socket. All receivers are built into this program.
pub(crate) struct MemoryReceiver {
    /// The contender's name on the command line and in every table.
    pub(super) name: &'static str,
    /// A phrase for the report that says what the contender is.
    pub(super) about: &'static str,
    /// Whether the contender is part of this project.
    pub(super) ours: bool,
    /// Returns the name and the version of the software that receives, or [`Error::Unavailable`] if
    /// this machine does not support the contender.
    pub(super) version: fn() -> Result<String, Error>,
    /// Receives until the stream ends, and passes all bytes to the meter. Returns how many of them
    /// were mapped.
    pub(super) receive: fn(ReceiveJob, &mut Meter) -> Result<u64, Error>,
}

impl Contender for MemoryReceiver {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn is_ours(&self) -> bool {
        self.ours
    }
}

impl MemoryReceiver {
    /// Returns the command line of the contender's process.
    pub(super) fn command(&self, setup: &ReceiverSetup<'_>) -> Result<Vec<OsString>, Error> {
        let receiving = setup.options.receiving;
        let mut command = vec![
            process::own_program()?.into(),
            "memory-receiver".into(),
            "--contender".into(),
            self.name.into(),
            "--connect".into(),
            format!("127.0.0.1:{}", setup.port).into(),
            "--congestion".into(),
            setup.options.loopback.congestion.clone().into(),
            "--warm-up".into(),
            receiving.warm_up.as_secs_f64().to_string().into(),
            "--seconds".into(),
            receiving.seconds.as_secs_f64().to_string().into(),
            "--low-water-mark".into(),
            receiving.low_water_mark.to_string().into(),
        ];
        if receiving.read {
            command.push("--read".into());
        }
        Ok(command)
    }
}
