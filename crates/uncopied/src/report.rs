//! The report of a transfer: how many bytes each mechanism moved, and which fallbacks occurred.

#[cfg(feature = "serde")]
mod serialize;

use std::fmt;

use crate::policy::{Direction, Mechanism};
use crate::sys::Errno;

/// How many bytes each mechanism moved, and every fallback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    bytes: [u64; Mechanism::ALL.len()],
    kernel_copied: u64,
    copied_on_write: u64,
    fallbacks: Vec<Fallback>,
    switched_off: Option<Direction>,
}

/// A switch from one mechanism to another, because the first one was unsupported or failed for a
/// temporary reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fallback {
    /// The mechanism that was tried.
    pub from: Mechanism,
    /// The mechanism that took over.
    pub to: Mechanism,
    /// The errno that made `from` unusable.
    pub errno: Errno,
    /// The number of bytes that had been moved before the fallback. `to` continued with exactly the
    /// next byte.
    pub at: u64,
}

impl Fallback {
    /// Whether the errno says that the kernel does not support the mechanism for this pair of
    /// descriptors. If so, it will not support it for another transfer of the same file either.
    #[must_use]
    pub fn concerns_descriptors(&self) -> bool {
        matches!(self.errno, Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE)
    }
}

impl Report {
    pub(crate) fn count(&mut self, mechanism: Mechanism, bytes: u64) {
        self.bytes[mechanism as usize] += bytes;
    }

    /// Counts bytes that the kernel copied although they were moved by a zero-copy mechanism.
    pub(crate) fn count_kernel_copied(&mut self, bytes: u64) {
        self.kernel_copied += bytes;
    }

    /// Counts bytes of zero-copy sends that were copied on write, without those that the kernel
    /// copied as well.
    pub(crate) fn count_copied_on_write(&mut self, bytes: u64) {
        self.copied_on_write += bytes;
    }

    /// Records a fallback, unless one from the same mechanism with the same errno is already
    /// recorded. If repetitions were recorded too, the list would grow without bound on a
    /// long-lived socket that falls back at every send. Returns whether the fallback was recorded.
    pub(crate) fn record_fallback_once(&mut self, fallback: Fallback) -> bool {
        let is_same =
            |known: &Fallback| (known.from, known.errno) == (fallback.from, fallback.errno);
        let is_new = !self.fallbacks.iter().any(is_same);
        if is_new {
            self.fallbacks.push(fallback);
        }
        is_new
    }

    /// Records that zero copy is switched off for transfers of this direction.
    pub(crate) fn set_switched_off(&mut self, direction: Direction) {
        self.switched_off = Some(direction);
    }

    /// Returns how many bytes the socket accepted, or delivered, through `mechanism`.
    #[must_use]
    pub fn by(&self, mechanism: Mechanism) -> u64 {
        self.bytes[mechanism as usize]
    }

    /// Returns each mechanism that moved bytes, with the number of bytes that the socket accepted,
    /// or delivered, through it.
    ///
    /// ```
    /// # use std::{fs::File, os::unix::net::UnixStream};
    /// # let file = File::open("Cargo.toml")?;
    /// # let (socket, _peer) = UnixStream::pair()?;
    /// let report = uncopied::send_file(&file, ..100, &socket)?;
    /// for (mechanism, bytes) in report.by_mechanism() {
    ///     println!("{mechanism}: {bytes} bytes");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn by_mechanism(&self) -> impl Iterator<Item = (Mechanism, u64)> {
        Mechanism::ALL
            .into_iter()
            .zip(self.bytes)
            .filter(|&(_, bytes)| bytes > 0)
    }

    /// Returns how many bytes the socket accepted, or delivered, in total.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// Returns how many bytes the kernel has reported as copied although they were moved by a
    /// zero-copy mechanism. When sending, the kernel copies if the peer is on the same machine, or
    /// if the network device lacks scatter-gather. The number grows as notifications arrive. When
    /// receiving into a file with `splice`, it copies all bytes into the file's pages.
    #[must_use]
    pub fn kernel_copied(&self) -> u64 {
        self.kernel_copied
    }

    /// Returns how many bytes of zero-copy sends of a [region](crate::arena::Region) were in pages
    /// that were copied on write: the program wrote to the page while it was in flight, so the page
    /// had to be copied first. The bytes that the [kernel](Self::kernel_copied) copied as well are
    /// not counted again.
    ///
    /// Only the report of a sender contains this number, because the copies are made after the
    /// send. A send with a notification is counted when the notification arrives. A send whose
    /// pages are [gifted](crate::FreeReason::Gifted) is counted when the program writes to the
    /// pages, whenever that is, because nothing reports that they are no longer in flight. If a
    /// sender has sent a gifted page several times before it is copied, no more bytes are counted
    /// than the page has, because it is copied once.
    #[must_use]
    pub fn copied_on_write(&self) -> u64 {
        self.copied_on_write
    }

    /// Returns how many bytes moved through zero-copy mechanisms, minus those that the kernel has
    /// [reported](Self::kernel_copied) as copied, and those that were
    /// [copied on write](Self::copied_on_write). The kernel never reports copies of
    /// bytes sent with `sendfile`, `splice` or `vmsplice`. So these bytes are counted here even if
    /// the kernel copied them because the network device lacks scatter-gather.
    #[must_use]
    pub fn zero_copy_bytes(&self) -> u64 {
        let zero_copy = self
            .by_mechanism()
            .filter(|(mechanism, _)| mechanism.is_zero_copy());
        let by_reference: u64 = zero_copy.map(|(_, bytes)| bytes).sum();
        by_reference.saturating_sub(self.kernel_copied + self.copied_on_write)
    }

    /// Returns how many bytes are known to have been copied by the CPU at least once: all except
    /// the [`zero_copy_bytes`](Self::zero_copy_bytes).
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.bytes() - self.zero_copy_bytes()
    }

    /// Returns the fallbacks, in the order in which they occurred. If a mechanism fell back several
    /// times with the same errno, only the first time is listed.
    #[must_use]
    pub fn fallbacks(&self) -> &[Fallback] {
        &self.fallbacks
    }

    /// Returns which part of all bytes are [`zero_copy_bytes`](Self::zero_copy_bytes), in percent.
    /// Returns `None` if no bytes were moved.
    #[must_use]
    pub fn zero_copy_percent(&self) -> Option<f64> {
        let bytes = self.bytes();
        (bytes > 0).then(|| self.zero_copy_bytes() as f64 * 100.0 / bytes as f64)
    }

    /// Whether the bytes that the kernel copied were received. A report of sending has none of the
    /// mechanisms that tell, except `splice` of a file, whose copies the kernel does not report.
    fn has_received(&self) -> bool {
        self.by_mechanism().any(|(mechanism, _)| {
            mechanism.is_zero_copy()
                && (mechanism.moves(Direction::SocketToMemory)
                    || mechanism.moves(Direction::SocketToFile))
        })
    }

    /// Whether bytes were copied because zero copy is switched off: for
    /// [sending](crate::set_zero_copy_send), or for [receiving](crate::set_zero_copy_receive).
    #[must_use]
    pub fn switched_off(&self) -> bool {
        self.switched_off.is_some()
    }
}

/// Formats the report like this: `1048576 bytes: splice 65536, copy 983040 (splice fell back to
/// copy at byte 65536: Invalid argument)`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes())?;
        let mut before = ": ";
        for (mechanism, bytes) in self.by_mechanism() {
            write!(f, "{before}{mechanism} {bytes}")?;
            before = ", ";
        }
        if self.kernel_copied > 0 {
            let bytes = self.kernel_copied;
            let direction = if self.has_received() {
                "receives"
            } else {
                "sends"
            };
            write!(
                f,
                " (the kernel copied {bytes} bytes of zero-copy {direction})"
            )?;
        }
        if self.copied_on_write > 0 {
            let bytes = self.copied_on_write;
            write!(
                f,
                " ({bytes} bytes of zero-copy sends were copied on write)"
            )?;
        }
        match self.switched_off {
            None => {}
            Some(Direction::FileToSocket | Direction::MemoryToSocket) => {
                write!(f, " (zero-copy sending is switched off)")?;
            }
            Some(Direction::SocketToMemory | Direction::SocketToFile) => {
                write!(f, " (zero-copy receiving is switched off)")?;
            }
            Some(Direction::SocketToSocket | Direction::DescriptorToDescriptor) => {
                write!(f, " (zero-copy sending or receiving is switched off)")?;
            }
        }
        for Fallback {
            from,
            to,
            errno,
            at,
        } in &self.fallbacks
        {
            write!(f, " ({from} fell back to {to} at byte {at}: {errno})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the report of a transfer that fell back from `splice` to `copy`.
    pub(super) fn report_with_fallback() -> Report {
        let mut report = Report::default();
        report.count(Mechanism::Splice, 65_536);
        report.count(Mechanism::Copy, 4);
        let fallback = Fallback {
            from: Mechanism::Splice,
            to: Mechanism::Copy,
            errno: Errno::INVAL,
            at: 65_536,
        };
        assert!(report.record_fallback_once(fallback));
        assert!(!report.record_fallback_once(fallback));
        report
    }

    #[test]
    fn a_report_adds_up_and_reads_well() {
        let report = report_with_fallback();
        let by_mechanism: Vec<_> = report.by_mechanism().collect();
        let expected = [(Mechanism::Splice, 65_536), (Mechanism::Copy, 4)];
        assert_eq!(by_mechanism, expected);
        assert_eq!(
            (
                report.bytes(),
                report.zero_copy_bytes(),
                report.copied_bytes()
            ),
            (65_540, 65_536, 4)
        );
        assert_eq!(
            report.to_string(),
            "65540 bytes: splice 65536, copy 4 \
             (splice fell back to copy at byte 65536: Invalid argument (os error 22))"
        );
        assert_eq!(Report::default().to_string(), "0 bytes");
    }

    #[test]
    fn bytes_that_the_kernel_copied_are_not_received_without_copying() {
        let mut report = Report::default();
        report.count(Mechanism::Zcrx, 100);
        report.count_kernel_copied(60);
        assert_eq!((report.zero_copy_bytes(), report.copied_bytes()), (40, 60));
        assert_eq!(
            report.to_string(),
            "100 bytes: zcrx 100 (the kernel copied 60 bytes of zero-copy receives)"
        );
    }

    #[test]
    fn bytes_that_were_spliced_into_a_file_are_received() {
        let mut report = Report::default();
        report.count(Mechanism::Splice, 9);
        report.count_kernel_copied(9);
        assert_eq!((report.zero_copy_bytes(), report.copied_bytes()), (0, 9));
        assert_eq!(
            report.to_string(),
            "9 bytes: splice 9 (the kernel copied 9 bytes of zero-copy receives)"
        );
    }

    #[test]
    fn bytes_that_were_copied_after_the_send_are_not_zero_copy() {
        let mut report = Report::default();
        report.count(Mechanism::Vmsplice, 100);
        report.count(Mechanism::Copy, 5);
        report.count_kernel_copied(10);
        report.count_copied_on_write(30);
        assert_eq!((report.zero_copy_bytes(), report.copied_bytes()), (60, 45));
        assert_eq!(
            report.to_string(),
            "105 bytes: vmsplice 100, copy 5 (the kernel copied 10 bytes of zero-copy sends) \
             (30 bytes of zero-copy sends were copied on write)"
        );
    }
}
