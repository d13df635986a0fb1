//! The thresholds from which mechanisms pay: those of this process, and the text in which a file
//! holds them.

mod current;
mod error;
mod text;

pub use error::TuningError;

/// The thresholds from which each mechanism takes less CPU time than a copy, in bytes of one
/// transfer: one send, one chunk, or one file.
///
/// Where a mechanism begins to pay depends on the machine: on how fast its CPU copies, and on how
/// long its system calls and page faults take. The same code can take 0.7 of the CPU time of a copy
/// on one machine and 1.1 of it on another. [Plans](super::Plan) take their thresholds from here.
///
/// Every plan uses the values that are [current](Self::current) when its transfer starts: those of
/// the latest call of [`set`](Self::set); without one, those of the file that the environment
/// variable `UNCOPIED_TUNING` names; without one, the defaults. `uncopied bench --save-tuning FILE`
/// writes such a file.
///
/// ```
/// use uncopied::Tuning;
///
/// let tuning = Tuning::from_text("vmsplice_min_bytes = never\nsendfile_min_bytes = 4096\n")?;
/// assert_eq!(tuning.vmsplice_min_bytes, Tuning::NEVER);
/// assert_eq!(tuning.notified_min_bytes, Tuning::default().notified_min_bytes);
///
/// tuning.set();
/// assert_eq!(Tuning::current(), tuning);
/// # Ok::<(), uncopied::TuningError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tuning {
    /// File to socket: from here on, `sendfile` and `splice` are cheaper than `copy`. Default: 8
    /// KiB. A transfer up to the end of a file counts as long enough, unless this is
    /// [`NEVER`](Self::NEVER).
    ///
    /// `sendfile` looks up each page and builds a pipe around it, whereas a copy of a few KiB stays
    /// in the CPU's caches. Over loopback, it takes 1.25 of the CPU time of a copy at 1 and 2 KiB,
    /// 1.18 at 4 KiB, 1.01 at 8 KiB and 0.87 at 16 KiB (Linux 6.18, two virtual CPUs, ext4).
    pub sendfile_min_bytes: u64,
    /// File to socket, where `sendfile` and `splice` are refused: from here on, mapping the file is
    /// cheaper than the copy that it saves. Default: 256 KiB. A transfer up to the end of a file
    /// counts as long enough, unless this is [`NEVER`](Self::NEVER).
    ///
    /// Mapping and unmapping take two system calls, which may have to flush address translations on
    /// other cores. In addition, the kernel handles one page fault per 64 KiB when it reads the
    /// mapped pages.
    pub mmap_write_min_bytes: u64,
    /// Memory that is never written to again, to socket: from here on, `vmsplice` is cheaper than
    /// `copy`, even if the peer is on the same machine. Default: 64 KiB. Less than a page is always
    /// copied.
    pub vmsplice_min_bytes: u64,
    /// [Region](crate::arena::Region) to socket: from here on, protecting its pages against writes
    /// is cheaper than copying them. Default: 2 MiB, a huge page. Regions that are not in huge
    /// pages, or that are overwritten after each send, are always copied.
    pub region_min_bytes: u64,
    /// Memory to a socket whose peer is on another machine: from here on, `msg_zerocopy` and
    /// `send_zc` are cheaper than `copy`. Default: 16 KiB.
    ///
    /// Such a send has a fixed cost for each call, for taking page references and processing the
    /// notification, whereas a copy costs per byte. The kernel documentation (`msg_zerocopy.rst`)
    /// puts the break-even point at about 10 KB.
    pub notified_min_bytes: u64,
    /// Socket to memory: chunks of at least this many bytes may be cheaper to map than to copy. For
    /// shorter ones, the call itself and the unmapping cost more than the copy. Default: 16 KiB.
    ///
    /// Mapping and unmapping a page take about 0.5 µs. A copy takes about as long if the bytes are
    /// in a cache of the CPU, as they are on loopback (`compare receive`). It takes longer if a
    /// network card has just written them to memory: the kernel's `tcp_mmap` reports 88 to 110 µs
    /// per MB with mapping, and 202 to 251 with copies.
    pub map_receive_min_bytes: u64,
    /// Socket to socket: a read of at least this many bytes counts as bulk data, which `splice`
    /// moves more cheaply than `copy`. Default: 16 KiB.
    pub relay_splice_min_bytes: u64,
    /// Socket to file: from here on, `splice` is cheaper than `copy`. Default: 0. A transfer until
    /// the peer shuts the connection down counts as long enough, unless this is
    /// [`NEVER`](Self::NEVER).
    pub receive_file_splice_min_bytes: u64,
}

/// The number of thresholds.
const COUNT: usize = 8;

impl Tuning {
    /// The threshold of a mechanism that never pays.
    pub const NEVER: u64 = u64::MAX;

    /// The names of the thresholds: the fields of this type, and the keys of a file.
    pub const KEYS: [&'static str; COUNT] = [
        "sendfile_min_bytes",
        "mmap_write_min_bytes",
        "vmsplice_min_bytes",
        "region_min_bytes",
        "notified_min_bytes",
        "map_receive_min_bytes",
        "relay_splice_min_bytes",
        "receive_file_splice_min_bytes",
    ];

    const DEFAULT: Self = Self {
        sendfile_min_bytes: 8 << 10,
        mmap_write_min_bytes: 256 << 10,
        vmsplice_min_bytes: 64 << 10,
        region_min_bytes: 2 << 20,
        notified_min_bytes: 16 << 10,
        map_receive_min_bytes: 16 << 10,
        relay_splice_min_bytes: 16 << 10,
        receive_file_splice_min_bytes: 0,
    };

    /// Returns the threshold with this name. `None` if there is none.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<u64> {
        Some(self.values()[index_of(key)?])
    }

    /// Returns these thresholds with one of them changed. `None` if none has this name.
    ///
    /// ```
    /// use uncopied::Tuning;
    ///
    /// let tuning = Tuning::default().with("region_min_bytes", Tuning::NEVER).unwrap();
    /// assert_eq!(tuning.get("region_min_bytes"), Some(Tuning::NEVER));
    /// assert_eq!(tuning.with("speed", 1), None);
    /// ```
    #[must_use]
    pub fn with(self, key: &str, bytes: u64) -> Option<Self> {
        let mut values = self.values();
        values[index_of(key)?] = bytes;
        Some(Self::of_values(values))
    }

    /// Returns the thresholds in the order of [`KEYS`](Self::KEYS).
    fn values(&self) -> [u64; COUNT] {
        [
            self.sendfile_min_bytes,
            self.mmap_write_min_bytes,
            self.vmsplice_min_bytes,
            self.region_min_bytes,
            self.notified_min_bytes,
            self.map_receive_min_bytes,
            self.relay_splice_min_bytes,
            self.receive_file_splice_min_bytes,
        ]
    }

    /// The reverse of [`values`](Self::values).
    fn of_values(values: [u64; COUNT]) -> Self {
        let [
            sendfile_min_bytes,
            mmap_write_min_bytes,
            vmsplice_min_bytes,
            region_min_bytes,
            notified_min_bytes,
            map_receive_min_bytes,
            relay_splice_min_bytes,
            receive_file_splice_min_bytes,
        ] = values;
        Self {
            sendfile_min_bytes,
            mmap_write_min_bytes,
            vmsplice_min_bytes,
            region_min_bytes,
            notified_min_bytes,
            map_receive_min_bytes,
            relay_splice_min_bytes,
            receive_file_splice_min_bytes,
        }
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self::DEFAULT
    }
}

fn index_of(key: &str) -> Option<usize> {
    Tuning::KEYS.iter().position(|it| *it == key)
}

/// Whether `bytes` are enough for a mechanism that pays from `min_bytes` on.
pub(crate) fn reaches(bytes: u64, min_bytes: u64) -> bool {
    min_bytes != Tuning::NEVER && bytes >= min_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_the_field_of_the_same_name() {
        // The output of `Debug` has the names of the fields, in their order.
        for (at, key) in Tuning::KEYS.iter().enumerate() {
            let mut expected = [0; COUNT];
            expected[at] = 1;
            let tuning = Tuning::of_values([0; COUNT]).with(key, 1).expect("a key");
            assert_eq!(tuning.values(), expected);
            assert!(format!("{tuning:?}").contains(&format!("{key}: 1")));
            assert_eq!(tuning.get(key), Some(1));
        }
    }

    #[test]
    fn a_mechanism_that_never_pays_is_not_used_for_any_length() {
        assert!(reaches(5, 5) && !reaches(4, 5) && reaches(u64::MAX, u64::MAX - 1));
        assert!(!reaches(u64::MAX, Tuning::NEVER));
    }
}
