//! What each network interface can do, and what would change that.

use std::net::TcpStream;

use serde::{Serialize, Serializer};
use uncopied::interface::{HeaderSplit, Interface, InterfaceError, IpVersion, Obstacle, Offload};
use uncopied::zcrx::{Builder, Cause};

use super::finding::Finding;
use super::process::Process;
use super::rows::interfaces_refusal;
use super::trial::TRIAL_BYTES;

/// An interface, with the keys of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct InterfaceReport {
    pub(super) name: String,
    /// The name as a word of a shell command.
    #[serde(skip)]
    pub(super) word: String,
    pub(super) driver: Option<String>,
    pub(super) is_up: bool,
    pub(super) is_loopback: bool,
    pub(super) mtu: u32,
    /// The longest payload of whole pages in one packet, in bytes; 0 if there is none.
    pub(super) page_payload_bytes_ipv4: usize,
    pub(super) page_payload_bytes_ipv6: usize,
    /// `None` if the kernel does not tell.
    pub(super) offloads: Option<OffloadReport>,
    #[serde(serialize_with = "split_word")]
    pub(super) header_split: HeaderSplit,
    pub(super) header_split_threshold: Option<u32>,
    pub(super) rx_buffer_bytes: Option<u32>,
    pub(super) rx_ring: Amount,
    pub(super) tx_ring: Amount,
    pub(super) rx_queues: Amount,
    pub(super) tx_queues: Amount,
    pub(super) zcrx: Finding,
    /// What keeps receiving without a copy from working.
    pub(super) advice: Vec<AdviceReport>,
}

/// A number, and the largest possible one. `None` if the driver does not tell.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Amount {
    pub(super) current: Option<u32>,
    pub(super) max: Option<u32>,
}

/// The offloads: `on`, `off`, or `unavailable` if the interface cannot switch it on.
#[derive(Debug, Serialize)]
pub(super) struct OffloadReport {
    #[serde(serialize_with = "offload_word")]
    pub(super) scatter_gather: Offload,
    #[serde(serialize_with = "offload_word")]
    pub(super) send_checksum: Offload,
    #[serde(serialize_with = "offload_word")]
    pub(super) receive_checksum: Offload,
    #[serde(serialize_with = "offload_word")]
    pub(super) tso: Offload,
    #[serde(serialize_with = "offload_word")]
    pub(super) gso: Offload,
    #[serde(serialize_with = "offload_word")]
    pub(super) gro: Offload,
    #[serde(serialize_with = "offload_word")]
    pub(super) hardware_gro: Offload,
    #[serde(serialize_with = "offload_word")]
    pub(super) tls_send: Offload,
}

/// Advice of the library: what is missing, and the commands that change it.
#[derive(Debug, Serialize)]
pub(super) struct AdviceReport {
    #[serde(skip)]
    obstacle: Obstacle,
    pub(super) explanation: String,
    pub(super) commands: Vec<String>,
}

/// Describes the interface with this name, or else all that are up.
pub(super) fn describe(
    name: Option<&str>,
    process: &Process,
) -> Result<Vec<InterfaceReport>, InterfaceError> {
    let interfaces = match name {
        Some(name) => vec![Interface::by_name(name)?],
        None => {
            let all = Interface::all()?.into_iter();
            all.filter(|interface| interface.is_up).collect()
        }
    };
    let interfaces = interfaces.into_iter();
    Ok(interfaces.map(|it| report(it, process)).collect())
}

fn report(interface: Interface, process: &Process) -> InterfaceReport {
    let zcrx = zcrx(&interface, process);
    let advice = interface.advice().into_iter().map(|advice| AdviceReport {
        obstacle: advice.obstacle,
        explanation: advice.explanation,
        commands: advice.commands,
    });
    InterfaceReport {
        word: shell_word(&interface.name),
        page_payload_bytes_ipv4: interface.page_payload_bytes(IpVersion::V4),
        page_payload_bytes_ipv6: interface.page_payload_bytes(IpVersion::V6),
        offloads: interface.offloads.map(|offloads| OffloadReport {
            scatter_gather: offloads.scatter_gather,
            send_checksum: offloads.send_checksum,
            receive_checksum: offloads.receive_checksum,
            tso: offloads.tcp_segmentation,
            gso: offloads.generic_segmentation,
            gro: offloads.generic_receive,
            hardware_gro: offloads.hardware_receive,
            tls_send: offloads.tls_send,
        }),
        rx_ring: amount(interface.rx_ring_size, interface.rx_ring_size_max),
        tx_ring: amount(interface.tx_ring_size, interface.tx_ring_size_max),
        rx_queues: amount(interface.rx_queues, interface.rx_queues_max),
        tx_queues: amount(interface.tx_queues, interface.tx_queues_max),
        zcrx,
        advice: advice.collect(),
        is_up: interface.is_up,
        is_loopback: interface.is_loopback,
        mtu: interface.mtu,
        header_split: interface.header_split,
        header_split_threshold: interface.header_split_threshold,
        rx_buffer_bytes: interface.rx_buffer_bytes,
        driver: interface.driver,
        name: interface.name,
    }
}

fn amount(current: Option<u32>, max: Option<u32>) -> Amount {
    Amount { current, max }
}

/// Finds out whether the driver lets programs have receive queues.
///
/// A registration restarts the queue, and takes the packets of its connections. So this asks for a
/// queue that does not exist: a driver with support refuses only that number.
fn zcrx(interface: &Interface, process: &Process) -> Finding {
    if !process.may_administer_network() {
        return Finding::no("not tried: only a process with CAP_NET_ADMIN may register a queue")
            .or("run the probe as root");
    }
    let queue = interface.rx_queues.unwrap_or(1 << 16);
    let builder = Builder::for_interface(&interface.name, queue).area_bytes(TRIAL_BYTES);
    match builder.register::<TcpStream>() {
        Err(refusal) if refusal.cause() == Cause::NoSuchQueue => Finding::partly(format!(
            "the driver of {} has it, as far as asking for a queue that does not exist can show; \
             a real queue was left alone, because registering it takes its connections away",
            interface.name
        )),
        Err(refusal) => interfaces_refusal(&refusal),
        Ok(_) => Finding::yes(format!(
            "a receive queue of {} was registered",
            interface.name
        )),
    }
}

impl InterfaceReport {
    /// Whether the interface splits headers from payloads.
    pub(super) fn header_split_finding(&self) -> Finding {
        let about = |obstacle: Obstacle| self.advice.iter().find(|it| it.obstacle == obstacle);
        let of = |finding: fn(String) -> Finding, obstacle| match about(obstacle) {
            Some(advice) => {
                let commands = advice.commands.iter().cloned();
                commands.fold(finding(advice.explanation.clone()), Finding::or)
            }
            None => finding(format!("the driver of {} does not tell", self.name)),
        };
        match self.header_split {
            HeaderSplit::On => {
                let finding = Finding::yes(format!("{} splits headers from payloads", self.name));
                match about(Obstacle::SplitThreshold) {
                    Some(advice) => {
                        let commands = advice.commands.iter().cloned();
                        commands.fold(finding.but(&advice.explanation), Finding::or)
                    }
                    None => finding,
                }
            }
            HeaderSplit::Off => of(Finding::no, Obstacle::SplitOff),
            HeaderSplit::Unsupported => of(Finding::no, Obstacle::SplitUnsupported),
            _ => of(Finding::no, Obstacle::SplitUnknown),
        }
    }
}

/// Returns the word for an offload.
pub(super) fn word(offload: Offload) -> &'static str {
    match offload {
        Offload::On => "on",
        Offload::Off => "off",
        _ => "unavailable",
    }
}

/// Returns the word for header splitting.
pub(super) fn header_split_word(split: HeaderSplit) -> &'static str {
    match split {
        HeaderSplit::On => "on",
        HeaderSplit::Off => "off",
        HeaderSplit::Unsupported => "unsupported",
        _ => "unknown",
    }
}

fn offload_word<S: Serializer>(offload: &Offload, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(word(*offload))
}

fn split_word<S: Serializer>(split: &HeaderSplit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(header_split_word(*split))
}

/// Returns the name of an interface as one word of a shell command. The kernel allows any character
/// but white space, a slash and a colon.
fn shell_word(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-@+".contains(c);
    match name.chars().all(is_plain) {
        true => name.to_owned(),
        false => format!("'{}'", name.replace('\'', r"'\''")),
    }
}
