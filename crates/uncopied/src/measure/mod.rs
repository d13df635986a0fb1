//! Measures from which lengths on mechanisms pay on this machine.
//!
//! The bytes go over a loopback connection: a thread of its own sends them, and the calling thread
//! receives them. The library's own senders send the same bytes alternately with `copy` and with
//! another mechanism, and the CPU clock of the sending thread is compared. The sending thread ends
//! before the result is returned, and with it the pipes and buffers that the library caches for a
//! thread.

mod connection;
mod error;
mod trial;
mod verdict;

use std::io::Read as _;
use std::net::{Shutdown, TcpStream};
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use crate::policy::{Mechanism, Tuning};
use connection::{Received, connect, receive_all};
pub use error::MeasureError;
use trial::{Payload, Trials};
use verdict::Sample;

/// How long trials are repeated.
const TIME_LIMIT: Duration = Duration::from_millis(75);

/// A mechanism that is compared with `copy`.
struct Comparison {
    /// The threshold that follows from it.
    key: &'static str,
    mechanism: Mechanism,
    payload: Payload,
    /// The lengths that are tried, in bytes, from the shortest to the longest.
    lengths: &'static [usize],
}

/// The comparisons. Their lengths surround the default thresholds.
const COMPARISONS: [Comparison; 3] = [
    Comparison {
        key: "vmsplice_min_bytes",
        mechanism: Mechanism::Vmsplice,
        payload: Payload::Pages,
        lengths: &[16 << 10, 32 << 10, 64 << 10, 256 << 10, 1 << 20],
    },
    Comparison {
        key: "sendfile_min_bytes",
        mechanism: Mechanism::Sendfile,
        payload: Payload::File,
        lengths: &[1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 64 << 10],
    },
    Comparison {
        key: "mmap_write_min_bytes",
        mechanism: Mechanism::MmapWrite,
        payload: Payload::File,
        lengths: &[128 << 10, 256 << 10, 1 << 20],
    },
];

/// The longest of the lengths.
const MAX_BYTES: usize = 1 << 20;

impl Tuning {
    /// Measures the thresholds of this machine, in less than 100 ms unless it is busy with
    /// something else. They do not become [current](Self::current): call [`set`](Self::set) for
    /// that. No privileges are needed.
    ///
    /// Sends over loopback are measured: those of permanently frozen pages with `vmsplice`, and
    /// those of files with `sendfile` and `mmap_write`. A threshold differs from the default only
    /// where the CPU times of `copy` and of the mechanism differ by more than 10 % in the median,
    /// and about three quarters of the repetitions agree on which of them is better. A region is
    /// never cheaper to send than frozen pages, so its threshold is at least theirs.
    ///
    /// What loopback cannot show keeps its default: notified sends, which the kernel copies there,
    /// mapped receives, and whatever goes to files, whose file system matters more. So does a
    /// mechanism that is refused to this process, and every threshold if zero-copy sending is
    /// [switched off](crate::zero_copy_send_enabled), or if the machine is so busy that too few
    /// repetitions fit into the time. `uncopied bench` measures all of them, and for longer.
    ///
    /// ```
    /// use uncopied::Tuning;
    ///
    /// match Tuning::measure() {
    ///     Ok(tuning) => tuning.set(),
    ///     Err(error) => eprintln!("{error}, so the default thresholds apply"),
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`MeasureError`] names the step that failed: there is no loopback interface, for example, or
    /// no free descriptor.
    pub fn measure() -> Result<Self, MeasureError> {
        let (socket, peer) = connect()?;
        let received = Received::default();
        thread::scope(|scope| {
            let received = &received;
            let sender = thread::Builder::new()
                .spawn_scoped(scope, move || compare(socket, received))
                .map_err(MeasureError::at("start a thread"))?;
            // Dropping the socket acknowledges every byte, for which the sending thread waits.
            receive_all(peer, received);
            sender.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

/// Repeats the comparisons until the time is up.
fn compare(socket: TcpStream, received: &Received) -> Result<Tuning, MeasureError> {
    let deadline = Instant::now() + TIME_LIMIT;
    let mut trials = Trials::new(&socket, received)?;
    let mut samples = COMPARISONS.map(|it| it.lengths.iter().map(|_| Sample::default()).collect());
    repeat(&mut trials, &mut samples, deadline)?;
    let _ = socket.shutdown(Shutdown::Write);
    // The peer closes once it has received everything. From then on, no page is in flight, so
    // dropping the senders leaves nothing behind. An error means that it has closed already.
    let _ = (&socket).read(&mut [0]);
    Ok(tuning_of(&samples))
}

/// The samples of each comparison, one for each length.
type Samples = [Vec<Sample>; COMPARISONS.len()];

fn repeat(
    trials: &mut Trials<'_>,
    samples: &mut Samples,
    deadline: Instant,
) -> Result<(), MeasureError> {
    for round in 0.. {
        for (comparison, samples) in COMPARISONS.iter().zip(samples.iter_mut()) {
            for (bytes, sample) in comparison.lengths.iter().zip(samples) {
                if Instant::now() > deadline {
                    return Ok(());
                }
                let ratio = trials.compare(comparison, *bytes, round % 2 == 0)?;
                // The first round fills caches, and opens the window of the connection.
                if let Some(ratio) = ratio.filter(|_| round > 0) {
                    sample.add(ratio);
                }
            }
        }
    }
    Ok(())
}

fn tuning_of(samples: &Samples) -> Tuning {
    let mut tuning = Tuning::default();
    for (comparison, samples) in COMPARISONS.iter().zip(samples) {
        let lengths = comparison.lengths.iter().map(|bytes| *bytes as u64);
        let cells: Vec<_> = lengths.zip(samples).collect();
        let default = tuning.get(comparison.key).unwrap_or(Tuning::NEVER);
        let bytes = verdict::threshold(&cells, default);
        tuning = tuning.with(comparison.key, bytes).unwrap_or(tuning);
    }
    tuning.region_min_bytes = tuning.region_min_bytes.max(tuning.vmsplice_min_bytes);
    tuning
}
