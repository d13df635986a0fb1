//! What keeps zero-copy receiving from working on an interface, in words.

use std::fmt;

use super::{HeaderSplit, Interface, IpVersion, TIMESTAMP_BYTES};

/// The largest MTU of a network card, in bytes: the length of the largest IPv4 packet.
const MTU_MAX_BYTES: u32 = 65535;

/// Something that keeps zero-copy receiving from working on an interface, or that may do so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Obstacle {
    /// The driver has no receive rings, so no card splits headers.
    SplitUnsupported,
    /// The driver does not tell whether it splits headers.
    SplitUnknown,
    /// Header splitting is off.
    SplitOff,
    /// Small packets are not split. The kernel refuses io_uring zero-copy receive unless the
    /// threshold is 0.
    SplitThreshold,
    /// The length of the receive buffers is not a multiple of the page size, so payloads do not
    /// fill whole pages.
    BufferLength,
    /// The MTU is too small for a payload of one page, with IPv6 at least.
    SmallMtu,
    /// There is only one receive queue. io_uring zero-copy receive needs one of its own.
    OneQueue,
    /// Connections must be steered to the receive queue that io_uring uses. The library does not
    /// find out whether they are.
    Steering,
}

/// An [`Obstacle`] of an interface, in words. The `Display` implementation prints all of it, as one
/// line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Advice {
    /// What keeps zero-copy receiving from working.
    pub obstacle: Obstacle,
    /// The obstacle as a sentence, without a full stop.
    pub explanation: String,
    /// The commands that remove the obstacle, in order. They need root. Empty if none is known. A
    /// word in capitals stands for a value that the user has to choose.
    pub commands: Vec<String>,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.explanation)?;
        for (index, command) in self.commands.iter().enumerate() {
            let before = if index == 0 { ": " } else { ", then " };
            write!(f, "{before}`{command}`")?;
        }
        Ok(())
    }
}

/// See [`Interface::advice`].
pub(super) fn about(interface: &Interface) -> Vec<Advice> {
    let mut list = Vec::new();
    let name = shell_word(&interface.name);
    split(interface, &name, &mut list);
    // Without header splitting, nothing else makes a difference.
    if interface.header_split != HeaderSplit::Unsupported {
        pages(interface, &name, &mut list);
        queues(interface, &name, &mut list);
    }
    list
}

fn advice(obstacle: Obstacle, explanation: String, commands: Vec<String>) -> Advice {
    Advice {
        obstacle,
        explanation,
        commands,
    }
}

/// The advice about header splitting.
fn split(interface: &Interface, name: &str, list: &mut Vec<Advice>) {
    let driver = match &interface.driver {
        Some(driver) => format!("the driver {driver}"),
        None => "the driver".to_owned(),
    };
    let command = format!("ethtool -G {name} tcp-data-split on");
    match interface.header_split {
        HeaderSplit::On => {}
        HeaderSplit::Off => list.push(advice(
            Obstacle::SplitOff,
            format!(
                "{name} does not split TCP headers from payloads, so no payload can be received \
                 without a copy"
            ),
            vec![command],
        )),
        HeaderSplit::Unknown => list.push(advice(
            Obstacle::SplitUnknown,
            format!(
                "{driver} of {name} does not tell whether it splits TCP headers from payloads, \
                 and can probably not do so, but it is worth a try"
            ),
            vec![command],
        )),
        HeaderSplit::Unsupported => list.push(advice(
            Obstacle::SplitUnsupported,
            format!(
                "{name} has no receive rings of a network card, so nothing splits TCP headers \
                 from payloads there"
            ),
            Vec::new(),
        )),
    }
    if let Some(threshold @ 1..) = interface.header_split_threshold {
        list.push(advice(
            Obstacle::SplitThreshold,
            format!(
                "{name} does not split packets of up to {threshold} bytes, and the kernel \
                 therefore refuses io_uring zero-copy receive"
            ),
            vec![format!("ethtool -G {name} hds-thresh 0")],
        ));
    }
}

/// The advice about payloads of whole pages.
fn pages(interface: &Interface, name: &str, list: &mut Vec<Advice>) {
    let page = rustix::param::page_size() as u32;
    if let Some(len) = interface.rx_buffer_bytes.filter(|len| len % page != 0) {
        list.push(advice(
            Obstacle::BufferLength,
            format!(
                "the receive buffers of {name} have {len} bytes, which are not whole pages, so \
                 TCP_ZEROCOPY_RECEIVE copies payloads"
            ),
            vec![format!("ethtool -G {name} rx-buf-len {page}")],
        ));
    }
    if interface.page_payload_bytes(IpVersion::V6) == 0 {
        let versions = match interface.page_payload_bytes(IpVersion::V4) {
            0 => "",
            _ => " over IPv6",
        };
        let mtu = page + TIMESTAMP_BYTES + IpVersion::V6.header_bytes();
        let commands = match mtu {
            ..=MTU_MAX_BYTES => vec![format!("ip link set dev {name} mtu {mtu}")],
            _ => Vec::new(),
        };
        list.push(advice(
            Obstacle::SmallMtu,
            format!(
                "the MTU of {name} is {} bytes, too small for payloads of one page ({page} \
                 bytes){versions}, so TCP_ZEROCOPY_RECEIVE copies them; on both sides and in the \
                 network between them, an MTU of {mtu} bytes is needed, unless the card merges \
                 packets (rx-gro-hw)",
                interface.mtu,
            ),
            commands,
        ));
    }
}

/// The advice about the receive queues.
fn queues(interface: &Interface, name: &str, list: &mut Vec<Advice>) {
    let Some(queues @ 1..) = interface.rx_queues else {
        return;
    };
    // Whatever the number is, the last queue is the one for io_uring, and the others serve all
    // other connections.
    let used = queues.max(2);
    if queues == 1 {
        let parameter = match interface.adds_combined_queues {
            true => "combined",
            false => "rx",
        };
        let more = interface.rx_queues_max.is_some_and(|max| max > 1);
        let commands = match more {
            true => vec![format!("ethtool -L {name} {parameter} {used}")],
            false => Vec::new(),
        };
        let none_left = if more { "" } else { " and cannot have more" };
        list.push(advice(
            Obstacle::OneQueue,
            format!(
                "{name} has one receive queue{none_left}, and io_uring zero-copy receive needs one \
                 of its own"
            ),
            commands,
        ));
        if !more {
            return;
        }
    }
    let last = used - 1;
    list.push(advice(
        Obstacle::Steering,
        format!(
            "io_uring zero-copy receive gets only the packets of its own receive queue, so the \
             card must keep other connections away from queue {last}, and steer the right ones \
             there (by dst-port on a server, by src-port on a client; tcp6 for IPv6)"
        ),
        vec![
            format!("ethtool -X {name} equal {last}"),
            format!("ethtool -N {name} flow-type tcp4 dst-port PORT action {last}"),
        ],
    ));
}

/// Returns the name in a form in which a shell takes it for one word, whatever it contains.
pub(crate) fn shell_word(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-@+".contains(c);
    match !name.is_empty() && name.chars().all(is_plain) {
        true => name.to_owned(),
        false => format!("'{}'", name.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interface on which nothing but the steering is left to be done.
    fn ready() -> Interface {
        Interface {
            name: "eth0".into(),
            index: 2,
            driver: Some("bnxt_en".into()),
            is_up: true,
            is_loopback: false,
            offloads: None,
            mtu: 9000,
            header_split: HeaderSplit::On,
            header_split_threshold: Some(0),
            rx_ring_size: Some(511),
            rx_ring_size_max: Some(2047),
            rx_buffer_bytes: Some(rustix::param::page_size() as u32),
            rx_queues: Some(8),
            rx_queues_max: Some(16),
            tx_ring_size: Some(511),
            tx_ring_size_max: Some(2047),
            tx_queues: Some(8),
            tx_queues_max: Some(16),
            adds_combined_queues: true,
        }
    }

    fn obstacles(interface: &Interface) -> Vec<Obstacle> {
        let advice = interface.advice();
        advice.iter().map(|it| it.obstacle).collect()
    }

    /// Returns the commands about this obstacle.
    fn commands(interface: &Interface, obstacle: Obstacle) -> Vec<String> {
        let advice = interface.advice();
        let about = advice.into_iter().find(|it| it.obstacle == obstacle);
        about.expect("the obstacle").commands
    }

    #[test]
    fn a_ready_interface_needs_only_steering() {
        // Other page sizes than 4 KiB may need a larger MTU.
        let ready = Interface {
            mtu: 1 << 20,
            ..ready()
        };
        assert_eq!(obstacles(&ready), [Obstacle::Steering]);
        assert_eq!(
            commands(&ready, Obstacle::Steering),
            [
                "ethtool -X eth0 equal 7",
                "ethtool -N eth0 flow-type tcp4 dst-port PORT action 7"
            ]
        );
    }

    #[test]
    fn every_obstacle_has_its_command() {
        let mut it = ready();
        it.header_split = HeaderSplit::Off;
        it.header_split_threshold = Some(256);
        it.rx_buffer_bytes = Some(2048);
        it.mtu = 1500;
        it.rx_queues = Some(1);
        let all = [
            Obstacle::SplitOff,
            Obstacle::SplitThreshold,
            Obstacle::BufferLength,
            Obstacle::SmallMtu,
            Obstacle::OneQueue,
            Obstacle::Steering,
        ];
        assert_eq!(obstacles(&it), all);
        let split = ["ethtool -G eth0 tcp-data-split on"];
        assert_eq!(commands(&it, Obstacle::SplitOff), split);
        let threshold = ["ethtool -G eth0 hds-thresh 0"];
        assert_eq!(commands(&it, Obstacle::SplitThreshold), threshold);
        let queues = ["ethtool -L eth0 combined 2"];
        assert_eq!(commands(&it, Obstacle::OneQueue), queues);
        let steering = commands(&it, Obstacle::Steering);
        assert_eq!(steering[0], "ethtool -X eth0 equal 1");

        it.header_split = HeaderSplit::Unknown;
        assert_eq!(obstacles(&it)[0], Obstacle::SplitUnknown);
        assert_eq!(commands(&it, Obstacle::SplitUnknown), split);
        it.adds_combined_queues = false;
        let queues = ["ethtool -L eth0 rx 2"];
        assert_eq!(commands(&it, Obstacle::OneQueue), queues);
        it.rx_queues_max = Some(1);
        assert_eq!(commands(&it, Obstacle::OneQueue), [""; 0]);
        assert_eq!(obstacles(&it).last(), Some(&Obstacle::OneQueue));
        it.rx_queues = None;
        assert_eq!(obstacles(&it).last(), Some(&Obstacle::SmallMtu));
        it.header_split = HeaderSplit::Unsupported;
        it.header_split_threshold = None;
        assert_eq!(obstacles(&it), [Obstacle::SplitUnsupported]);
    }

    /// One page of 4 KiB, 12 bytes of timestamps, and the headers of IP and TCP.
    #[test]
    fn the_mtu_for_whole_pages() {
        if rustix::param::page_size() != 4096 {
            println!("SKIP the_mtu_for_whole_pages: the figures are for pages of 4 KiB");
            return;
        }
        let cases = [
            (0, 0, 0),
            (1500, 0, 0),
            (4147, 0, 0),
            (4148, 4096, 0),
            (4167, 4096, 0),
            (4168, 4096, 4096),
            (8243, 4096, 4096),
            (8244, 8192, 4096),
            (9000, 8192, 8192),
            (65536, 61440, 61440),
            (u32::MAX, 0xffff_f000, 0xffff_f000),
        ];
        for (mtu, v4, v6) in cases {
            let it = Interface { mtu, ..ready() };
            assert_eq!(it.page_payload_bytes(IpVersion::V4), v4, "{mtu}");
            assert_eq!(it.page_payload_bytes(IpVersion::V6), v6, "{mtu}");
            let is_small = obstacles(&it).contains(&Obstacle::SmallMtu);
            assert_eq!(is_small, v6 == 0, "{mtu}");
        }
        let it = Interface {
            mtu: 1500,
            ..ready()
        };
        let command = ["ip link set dev eth0 mtu 4168"];
        assert_eq!(commands(&it, Obstacle::SmallMtu), command);
    }

    #[test]
    fn the_text_of_an_advice() {
        let mut it = ready();
        it.header_split = HeaderSplit::Off;
        let text = it.advice()[0].to_string();
        let expected = "eth0 does not split TCP headers from payloads, so no payload can be \
                        received without a copy: `ethtool -G eth0 tcp-data-split on`";
        assert_eq!(text, expected);
        let steering = it.advice().pop().expect("advice").to_string();
        assert!(steering.contains("`ethtool -X eth0 equal 7`, then `ethtool -N "));
    }

    /// The name of an interface may contain anything but slashes, colons and white space.
    #[test]
    fn names_are_quoted_for_the_shell() {
        let mut it = ready();
        it.header_split = HeaderSplit::Off;
        it.name = "a;$(b)'c".into();
        let expected = [r"ethtool -G 'a;$(b)'\''c' tcp-data-split on"];
        assert_eq!(commands(&it, Obstacle::SplitOff), expected);
    }
}
