//! What the receivers receive.

use std::net::TcpListener;

use clap::ValueEnum;
use uncopied::PagePayload;

use crate::error::Error;
use crate::loopback::listener::{ANY_PORT, Listener};
use crate::rounds::Case;

/// What the receivers receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Scenario {
    /// Payloads of one page each, in pages of their own, so that the kernel can map them.
    PagePayloads,
    /// What a plain `write` sends, of which the kernel can map nothing.
    OrdinaryPayloads,
}

impl Scenario {
    /// All scenarios, in the order in which they are measured and listed.
    pub(super) const ALL: [Self; 2] = [Self::PagePayloads, Self::OrdinaryPayloads];

    /// Listens for one receiver.
    pub(super) fn listen(self, congestion: &str) -> Result<Listener, Error> {
        let listener = match self {
            Self::PagePayloads => PagePayload::new(1).and_then(|payload| payload.bind(ANY_PORT)),
            Self::OrdinaryPayloads => TcpListener::bind(ANY_PORT),
        };
        Listener::new(listener, congestion)
    }

    /// Returns a sentence for the report.
    pub(super) fn about(self) -> &'static str {
        match self {
            Self::PagePayloads => {
                "the listener has `uncopied::PagePayload::new(1)`, so that each payload is one \
                 page, and the sender is uncopied's, with `MSG_ZEROCOPY`. On loopback, the kernel \
                 copies such bytes when it queues them for the receiver, to pages of their own. \
                 These can be mapped, as those of a network card that splits headers from payloads"
            }
            Self::OrdinaryPayloads => {
                "the sender calls plain `write`, and the maximum segment size is that of loopback. \
                 Nothing can be mapped"
            }
        }
    }
}

impl Case for Scenario {
    const COLUMN: &'static str = "scenario";

    fn text(self) -> String {
        self.key().replace('-', " ")
    }

    fn phrase(self) -> String {
        format!("with {}", self.text())
    }

    fn key(self) -> String {
        match self {
            Self::PagePayloads => "page-payloads".into(),
            Self::OrdinaryPayloads => "ordinary-payloads".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_and_the_raw_data_name_scenarios_alike() {
        for scenario in Scenario::ALL {
            assert_eq!(Scenario::from_str(&scenario.key(), false), Ok(scenario));
        }
        assert_eq!(Scenario::PagePayloads.phrase(), "with page payloads");
    }
}
