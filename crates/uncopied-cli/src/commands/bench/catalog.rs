//! What can be measured: which direction has which mechanisms, and how they are forced.

use clap::ValueEnum as _;
use uncopied::Mechanism;
use uncopied::policy::Plan;

use crate::flags::{BenchDirection, BenchMechanism};

use BenchDirection::{FileToTcp, MemoryToTcp, TcpToFile, TcpToMemory, TcpToNull, TcpToTcp};
use BenchMechanism::{
    Auto, Copy, Discard, MapReceive, MmapWrite, MsgZerocopy, RegionVmsplice, SendZc, Sendfile,
    Splice, Vmsplice,
};

/// One row of the tables: a mechanism in a direction at a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) direction: BenchDirection,
    pub(super) mechanism: BenchMechanism,
    pub(super) size: u64,
}

impl Case {
    /// Returns all cases of a run, in the order in which they are measured: all mechanisms of one
    /// size one after the other.
    pub(super) fn all(
        directions: &[BenchDirection],
        mechanisms: &[BenchMechanism],
        sizes: &[u64],
    ) -> Vec<Self> {
        let mut cases = Vec::new();
        for &direction in BenchDirection::value_variants() {
            if !directions.is_empty() && !directions.contains(&direction) {
                continue;
            }
            for &size in sizes {
                for &mechanism in direction.mechanisms() {
                    if mechanisms.is_empty() || mechanisms.contains(&mechanism) {
                        cases.push(Self {
                            direction,
                            mechanism,
                            size,
                        });
                    }
                }
            }
        }
        cases
    }

    /// Returns why the case makes no sense on any machine.
    pub(super) fn impossible(self) -> Option<String> {
        let page = rustix::param::page_size() as u64;
        let needs_page = match (self.direction, self.mechanism) {
            (TcpToMemory, _) => "a receive into memory takes up to a whole page at least",
            (MemoryToTcp, Vmsplice | RegionVmsplice) => "vmsplice needs whole pages",
            _ => return None,
        };
        (self.size < page).then(|| format!("{needs_page}, which is {page} bytes"))
    }
}

impl BenchDirection {
    /// Returns the name that flags and `--json` use.
    pub(super) const fn name(self) -> &'static str {
        match self {
            FileToTcp => "file_to_tcp",
            MemoryToTcp => "memory_to_tcp",
            TcpToMemory => "tcp_to_memory",
            TcpToFile => "tcp_to_file",
            TcpToNull => "tcp_to_null",
            TcpToTcp => "tcp_to_tcp",
        }
    }

    /// Returns the mechanisms of this direction, in the order in which they are listed.
    pub(super) const fn mechanisms(self) -> &'static [BenchMechanism] {
        match self {
            FileToTcp => &[Sendfile, Splice, MmapWrite, Copy, Auto],
            MemoryToTcp => &[Vmsplice, RegionVmsplice, MsgZerocopy, SendZc, Copy, Auto],
            TcpToMemory => &[MapReceive, Copy, Auto],
            TcpToFile => &[Splice, Copy, Auto],
            TcpToNull => &[Discard, Splice, Copy, Auto],
            TcpToTcp => &[Splice, Copy, Auto],
        }
    }

    /// Whether the sender uses the mechanism. Otherwise the receiver does.
    pub(super) const fn is_sent(self) -> bool {
        matches!(self, FileToTcp | MemoryToTcp)
    }

    /// Returns a sentence for the heading of the tables.
    pub(super) const fn about(self) -> &'static str {
        match self {
            FileToTcp => "a file in the page cache, sent over TCP",
            MemoryToTcp => "memory, sent over TCP",
            TcpToMemory => "received over TCP into memory, in payloads of one page",
            TcpToFile => "received over TCP into a file",
            TcpToNull => "received over TCP into /dev/null",
            TcpToTcp => "relayed from one TCP connection to another, one message after the other",
        }
    }

    /// Returns the kind of the sink.
    pub(super) const fn sink(self) -> &'static str {
        match self {
            FileToTcp | MemoryToTcp | TcpToTcp => "tcp",
            TcpToMemory => "memory",
            TcpToFile => "file",
            TcpToNull => "null",
        }
    }
}

impl BenchMechanism {
    /// Returns the name that flags and `--json` use.
    pub(super) fn name(self) -> &'static str {
        match self {
            Auto => "auto",
            RegionVmsplice => "region-vmsplice",
            _ => self.forced().map_or("", Mechanism::name),
        }
    }

    /// Returns the mechanism of the library, or `None` for what the library chooses.
    pub(super) const fn forced(self) -> Option<Mechanism> {
        match self {
            Sendfile => Some(Mechanism::Sendfile),
            Splice => Some(Mechanism::Splice),
            MmapWrite => Some(Mechanism::MmapWrite),
            Vmsplice | RegionVmsplice => Some(Mechanism::Vmsplice),
            MsgZerocopy => Some(Mechanism::MsgZerocopy),
            SendZc => Some(Mechanism::SendZc),
            MapReceive => Some(Mechanism::MapReceive),
            Discard => Some(Mechanism::Discard),
            Copy => Some(Mechanism::Copy),
            Auto => None,
        }
    }

    /// Returns the plan to force, or `None` for what the library chooses. What cannot be mapped has
    /// to be copied, so that mechanism is not forced alone.
    pub(super) fn plan(self) -> Option<Plan> {
        self.forced().map(|mechanism| match mechanism {
            Mechanism::MapReceive => Plan::preferring(mechanism),
            _ => Plan::of(&[mechanism]),
        })
    }

    /// Returns the kind of the source in a direction.
    pub(super) const fn source(self, direction: BenchDirection) -> &'static str {
        match (direction, self) {
            (FileToTcp, _) => "file",
            (MemoryToTcp, RegionVmsplice) => "region",
            (MemoryToTcp, _) => "pages",
            _ => "tcp",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_results_name_things_alike() {
        for direction in BenchDirection::value_variants() {
            assert_eq!(
                BenchDirection::from_str(direction.name(), false),
                Ok(*direction)
            );
        }
        for &mechanism in BenchMechanism::value_variants() {
            assert_eq!(
                BenchMechanism::from_str(mechanism.name(), false),
                Ok(mechanism)
            );
            let json = serde_json::to_string(&mechanism).map_err(|error| error.to_string());
            assert_eq!(json, Ok(format!("{:?}", mechanism.name())));
        }
    }

    #[test]
    fn all_mechanisms_of_a_size_follow_one_another() {
        let cases = Case::all(&[TcpToFile, FileToTcp], &[Splice, Copy], &[1024, 4096]);
        let listed: Vec<_> = cases
            .iter()
            .map(|it| (it.direction, it.size, it.mechanism))
            .collect();
        assert_eq!(
            listed,
            [
                (FileToTcp, 1024, Splice),
                (FileToTcp, 1024, Copy),
                (FileToTcp, 4096, Splice),
                (FileToTcp, 4096, Copy),
                (TcpToFile, 1024, Splice),
                (TcpToFile, 1024, Copy),
                (TcpToFile, 4096, Splice),
                (TcpToFile, 4096, Copy),
            ]
        );
    }
}
