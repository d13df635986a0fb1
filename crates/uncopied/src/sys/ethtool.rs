//! Asks the driver of a network interface for its settings, as the command `ethtool` does, with the
//! messages of `linux/ethtool_netlink.h`.

use std::collections::BTreeSet;

use rustix::io::{Errno, Result};

use super::genetlink::{Attributes, Family, push_attribute, push_nested};

/// `ETHTOOL_MSG_FEATURES_GET` and `ETHTOOL_MSG_FEATURES_GET_REPLY`.
const FEATURES_GET: (u8, u8) = (11, 11);

/// `ETHTOOL_MSG_RINGS_GET` and `ETHTOOL_MSG_RINGS_GET_REPLY`.
const RINGS_GET: (u8, u8) = (15, 16);

/// `ETHTOOL_MSG_CHANNELS_GET` and `ETHTOOL_MSG_CHANNELS_GET_REPLY`.
const CHANNELS_GET: (u8, u8) = (17, 18);

/// `ETHTOOL_A_FEATURES_HEADER`, `ETHTOOL_A_RINGS_HEADER` and `ETHTOOL_A_CHANNELS_HEADER`.
const HEADER: u16 = 1;

/// `ETHTOOL_A_HEADER_DEV_INDEX`.
const HEADER_DEV_INDEX: u16 = 1;

// `ETHTOOL_A_FEATURES_…`.
const FEATURES_HW: u16 = 2;
const FEATURES_ACTIVE: u16 = 4;
const FEATURES_NOCHANGE: u16 = 5;

/// `ETHTOOL_A_BITSET_NOMASK`: the bits that are listed are those that are set.
const BITSET_NOMASK: u16 = 1;
/// `ETHTOOL_A_BITSET_BITS`: the list of bits.
const BITSET_BITS: u16 = 3;
/// `ETHTOOL_A_BITSET_BIT_NAME`.
const BIT_NAME: u16 = 2;
/// `ETHTOOL_A_BITSET_BIT_VALUE`: present if the bit is set.
const BIT_VALUE: u16 = 3;

// `ETHTOOL_A_RINGS_…`.
const RINGS_RX_MAX: u16 = 2;
const RINGS_TX_MAX: u16 = 5;
const RINGS_RX: u16 = 6;
const RINGS_TX: u16 = 9;
const RINGS_RX_BUF_LEN: u16 = 10;
const RINGS_TCP_DATA_SPLIT: u16 = 11;
const RINGS_HDS_THRESH: u16 = 17;

// `ETHTOOL_A_CHANNELS_…`.
const CHANNELS_RX_MAX: u16 = 2;
const CHANNELS_TX_MAX: u16 = 3;
const CHANNELS_COMBINED_MAX: u16 = 5;
const CHANNELS_RX_COUNT: u16 = 6;
const CHANNELS_TX_COUNT: u16 = 7;
const CHANNELS_COMBINED_COUNT: u16 = 9;

/// The names of the features of an interface, as the kernel and `ethtool -k` spell them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// The features that are on.
    pub(crate) active: BTreeSet<String>,
    /// The features that can be switched on and off.
    pub(crate) changeable: BTreeSet<String>,
}

/// The settings of the rings that a driver tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rings {
    /// The number of descriptors in each receive ring.
    pub(crate) rx: Option<u32>,
    /// The largest possible number of descriptors in a receive ring.
    pub(crate) rx_max: Option<u32>,
    /// The number of descriptors in each send ring.
    pub(crate) tx: Option<u32>,
    /// The largest possible number of descriptors in a send ring.
    pub(crate) tx_max: Option<u32>,
    /// The length of a receive buffer, in bytes.
    pub(crate) rx_buffer_bytes: Option<u32>,
    /// Whether headers and payloads are received into separate buffers.
    pub(crate) tcp_data_split: Option<bool>,
    /// The length, in bytes, up to which packets are not split.
    pub(crate) split_threshold_bytes: Option<u32>,
}

/// The numbers of queues that a driver tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Channels {
    /// The number of receive queues.
    pub(crate) rx: u32,
    /// The largest possible number of receive queues.
    pub(crate) rx_max: u32,
    /// The number of send queues.
    pub(crate) tx: u32,
    /// The largest possible number of send queues.
    pub(crate) tx_max: u32,
    /// Whether queues can be added as combined ones, for both directions. Otherwise they are added
    /// as receive queues.
    pub(crate) is_combined: bool,
}

/// The generic netlink family `ethtool`.
pub(crate) struct Ethtool(Family);

impl Ethtool {
    /// Connects to the family.
    ///
    /// # Errors
    ///
    /// - `ENOENT`, `EPROTONOSUPPORT`: the kernel does not have it.
    /// - Others if no socket can be created.
    pub(crate) fn open() -> Result<Self> {
        Family::open("ethtool").map(Self)
    }

    /// Returns the features of the interface (`ethtool -k`), or `None` if the kernel does not tell.
    /// The errors are those of [`rings`](Self::rings).
    pub(crate) fn features(&mut self, index: u32) -> Result<Option<Features>> {
        self.get(FEATURES_GET, index, features)
    }

    /// Returns what the driver tells about its rings (`ethtool -g`), or `None` if it tells nothing.
    /// May wait until another process has changed the settings of an interface.
    ///
    /// # Errors
    ///
    /// - `ENODEV`: no interface has this index.
    /// - `EBADMSG`: the reply cannot be parsed.
    /// - Any errno of the driver.
    pub(crate) fn rings(&mut self, index: u32) -> Result<Option<Rings>> {
        self.get(RINGS_GET, index, rings)
    }

    /// Returns what the driver tells about its queues (`ethtool -l`), or `None` if it tells
    /// nothing. The errors are those of [`rings`](Self::rings).
    pub(crate) fn channels(&mut self, index: u32) -> Result<Option<Channels>> {
        self.get(CHANNELS_GET, index, channels)
    }

    fn get<T>(
        &mut self,
        (command, reply_command): (u8, u8),
        index: u32,
        parse: fn(Attributes<'_>) -> T,
    ) -> Result<Option<T>> {
        let mut device = Vec::new();
        push_attribute(&mut device, HEADER_DEV_INDEX, &index.to_ne_bytes());
        let mut attributes = Vec::new();
        push_nested(&mut attributes, HEADER, &device);
        match self.0.request(command, reply_command, &attributes) {
            Ok(reply) => Ok(Some(parse(Attributes(&reply)))),
            // The driver has no such settings, or the kernel has no such command.
            Err(Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// Parses the reply to `ETHTOOL_MSG_FEATURES_GET`.
fn features(attributes: Attributes<'_>) -> Features {
    let set = |kind| attributes.find(kind).map(bits).unwrap_or_default();
    let fixed = set(FEATURES_NOCHANGE);
    let changeable = set(FEATURES_HW).difference(&fixed).cloned().collect();
    Features {
        active: set(FEATURES_ACTIVE),
        changeable,
    }
}

/// Returns the names of the bits of a bitset that are set.
fn bits(bitset: &[u8]) -> BTreeSet<String> {
    let bitset = Attributes(bitset);
    let lists_only_set_bits = bitset.find(BITSET_NOMASK).is_some();
    let list = Attributes(bitset.find(BITSET_BITS).unwrap_or(&[]));
    let bits = list.iter().map(|(_, bit)| Attributes(bit));
    bits.filter(|bit| lists_only_set_bits || bit.find(BIT_VALUE).is_some())
        .filter_map(|bit| {
            let name = bit.find(BIT_NAME)?.split(|&byte| byte == 0).next()?;
            Some(String::from_utf8_lossy(name).into_owned())
        })
        .collect()
}

/// Parses the reply to `ETHTOOL_MSG_RINGS_GET`. Attributes that the driver does not set are absent.
fn rings(attributes: Attributes<'_>) -> Rings {
    Rings {
        rx: attributes.u32(RINGS_RX),
        rx_max: attributes.u32(RINGS_RX_MAX),
        tx: attributes.u32(RINGS_TX),
        tx_max: attributes.u32(RINGS_TX_MAX),
        rx_buffer_bytes: attributes.u32(RINGS_RX_BUF_LEN),
        // `ETHTOOL_TCP_DATA_SPLIT_UNKNOWN` is 0, `…_DISABLED` 1, and `…_ENABLED` 2.
        tcp_data_split: match attributes.u8(RINGS_TCP_DATA_SPLIT) {
            Some(1) => Some(false),
            Some(2) => Some(true),
            _ => None,
        },
        split_threshold_bytes: attributes.u32(RINGS_HDS_THRESH),
    }
}

/// Parses the reply to `ETHTOOL_MSG_CHANNELS_GET`. A kind of queue that the driver does not have is
/// absent.
fn channels(attributes: Attributes<'_>) -> Channels {
    let number = |kind| attributes.u32(kind).unwrap_or(0);
    let combined = number(CHANNELS_COMBINED_COUNT);
    let combined_max = number(CHANNELS_COMBINED_MAX);
    Channels {
        rx: number(CHANNELS_RX_COUNT).saturating_add(combined),
        rx_max: number(CHANNELS_RX_MAX).saturating_add(combined_max),
        tx: number(CHANNELS_TX_COUNT).saturating_add(combined),
        tx_max: number(CHANNELS_TX_MAX).saturating_add(combined_max),
        is_combined: combined_max > 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The attributes that Linux 6.18 sends about the rings of a card with the driver `virtio_net`,
    /// which has rings of 256 descriptors, and tells nothing about splitting.
    #[cfg(target_endian = "little")]
    const VIRTIO_RINGS: &[u8] = b"\x18\0\x01\x80\x08\0\x01\0\x04\0\0\0\x09\0\x02\0eth0\0\0\0\0\
        \x08\0\x02\0\0\x01\0\0\x08\0\x06\0\0\x01\0\0\x08\0\x05\0\0\x01\0\0\x08\0\x09\0\0\x01\0\0\
        \x05\0\x0d\0\0\0\0\0\x05\0\x0e\0\0\0\0\0";

    /// The same for the queues of that card, which has one combined queue.
    #[cfg(target_endian = "little")]
    const VIRTIO_CHANNELS: &[u8] = b"\x18\0\x01\x80\x08\0\x01\0\x04\0\0\0\x09\0\x02\0eth0\0\0\0\0\
        \x08\0\x05\0\x01\0\0\0\x08\0\x09\0\x01\0\0\0";

    /// The same for a virtual link (`veth`) with up to two receive queues, of which it uses one.
    #[cfg(target_endian = "little")]
    const VETH_CHANNELS: &[u8] = b"\x14\0\x01\x80\x08\0\x01\0\x02\0\0\0\x07\0\x02\0u1\0\0\
        \x08\0\x02\0\x02\0\0\0\x08\0\x06\0\x01\0\0\0\x08\0\x03\0\x02\0\0\0\x08\0\x07\0\x01\0\0\0";

    #[test]
    #[cfg(target_endian = "little")]
    fn replies_of_linux() {
        let virtio = Rings {
            rx: Some(256),
            rx_max: Some(256),
            tx: Some(256),
            tx_max: Some(256),
            ..Rings::default()
        };
        assert_eq!(rings(Attributes(VIRTIO_RINGS)), virtio);
        let one = Channels {
            rx: 1,
            rx_max: 1,
            tx: 1,
            tx_max: 1,
            is_combined: true,
        };
        assert_eq!(channels(Attributes(VIRTIO_CHANNELS)), one);
        let one_of_two = Channels {
            rx: 1,
            rx_max: 2,
            tx: 1,
            tx_max: 2,
            is_combined: false,
        };
        assert_eq!(channels(Attributes(VETH_CHANNELS)), one_of_two);
    }

    #[test]
    fn every_state_of_splitting() {
        for (state, expected) in [(0, None), (1, Some(false)), (2, Some(true)), (3, None)] {
            let mut reply = Vec::new();
            push_attribute(&mut reply, RINGS_RX_BUF_LEN, &4096_u32.to_ne_bytes());
            push_attribute(&mut reply, RINGS_TCP_DATA_SPLIT, &[state]);
            push_attribute(&mut reply, RINGS_HDS_THRESH, &256_u32.to_ne_bytes());
            let expected = Rings {
                rx_buffer_bytes: Some(4096),
                tcp_data_split: expected,
                split_threshold_bytes: Some(256),
                ..Rings::default()
            };
            assert_eq!(rings(Attributes(&reply)), expected);
        }
    }

    #[test]
    fn the_numbers_of_queues_do_not_overflow() {
        let mut reply = Vec::new();
        for kind in CHANNELS_RX_MAX..=CHANNELS_COMBINED_COUNT {
            push_attribute(&mut reply, kind, &u32::MAX.to_ne_bytes());
        }
        let channels = channels(Attributes(&reply));
        assert_eq!((channels.rx_max, channels.tx_max), (u32::MAX, u32::MAX));
    }

    /// Returns a bitset with these bits, each with its name and whether it is set.
    fn bitset(bits: &[(&str, bool)], lists_only_set_bits: bool) -> Vec<u8> {
        let mut list = Vec::new();
        for &(name, is_set) in bits {
            let mut bit = Vec::new();
            push_attribute(&mut bit, BIT_NAME, format!("{name}\0").as_bytes());
            if is_set && !lists_only_set_bits {
                push_attribute(&mut bit, BIT_VALUE, &[]);
            }
            push_nested(&mut list, 1, &bit);
        }
        let mut bitset = Vec::new();
        if lists_only_set_bits {
            push_attribute(&mut bitset, BITSET_NOMASK, &[]);
        }
        push_nested(&mut bitset, BITSET_BITS, &list);
        bitset
    }

    #[test]
    fn features_are_active_changeable_or_fixed() {
        let mut reply = Vec::new();
        let hardware = [("sg", true), ("tso", true), ("gro", false), ("hw", true)];
        push_nested(&mut reply, FEATURES_HW, &bitset(&hardware, false));
        let active = bitset(&[("sg", true), ("highdma", true)], true);
        push_nested(&mut reply, FEATURES_ACTIVE, &active);
        let fixed = bitset(&[("hw", true)], true);
        push_nested(&mut reply, FEATURES_NOCHANGE, &fixed);
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let expected = Features {
            active: names(&["sg", "highdma"]),
            changeable: names(&["sg", "tso"]),
        };
        assert_eq!(features(Attributes(&reply)), expected);
        assert_eq!(features(Attributes(&[])), Features::default());
    }

    proptest! {
        #[test]
        fn no_reply_panics(reply in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = (rings(Attributes(&reply)), channels(Attributes(&reply)));
            let _ = features(Attributes(&reply));
        }

        /// A reply that is cut off has fewer attributes, and none with a wrong value.
        #[test]
        #[cfg(target_endian = "little")]
        fn a_truncated_reply_has_fewer_attributes(len in 0..VIRTIO_RINGS.len()) {
            let rings = rings(Attributes(&VIRTIO_RINGS[..len]));
            prop_assert!(matches!(rings.rx, None | Some(256)));
            prop_assert!(matches!(rings.rx_max, None | Some(256)));
            prop_assert_eq!(rings.tcp_data_split, None);
        }
    }

    #[test]
    fn the_loopback_interface_has_no_rings() {
        let mut ethtool = match Ethtool::open() {
            Ok(ethtool) => ethtool,
            Err(errno) => {
                println!("SKIP the_loopback_interface_has_no_rings: no ethtool netlink: {errno}");
                return;
            }
        };
        // The index of `lo` is 1 in every network namespace.
        assert_eq!(ethtool.rings(1), Ok(None));
        assert_eq!(ethtool.rings(u32::MAX >> 1), Err(Errno::NODEV));
    }
}
