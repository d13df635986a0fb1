//! Which parts of the work on a packet the network card does.

use crate::sys::Features;

/// Whether an interface has an offload, and whether that can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Offload {
    /// It is on.
    On,
    /// It is off. `ethtool -K` can switch it on.
    Off,
    /// It is off, and the interface cannot switch it on. `ethtool -k` prints `off [fixed]`.
    Unavailable,
}

/// The offloads of an interface that matter for zero copy (`ethtool -k`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Offloads {
    /// The interface gathers a packet from several pieces of memory (`tx-scatter-gather`). Without
    /// it, the kernel copies every packet, those of zero-copy sends too, and does not report that.
    pub scatter_gather: Offload,
    /// The interface computes the checksums of packets that it sends (`tx-checksum-*`, for IPv4 or
    /// for any protocol). The kernel switches scatter-gather off without it.
    pub send_checksum: Offload,
    /// The interface verifies the checksums of packets that it receives (`rx-checksum`).
    pub receive_checksum: Offload,
    /// TSO: the interface splits a large TCP segment into packets (`tx-tcp-segmentation`).
    pub tcp_segmentation: Offload,
    /// GSO: the kernel does so, as late as possible (`tx-generic-segmentation`).
    pub generic_segmentation: Offload,
    /// GRO: the kernel merges received packets (`rx-gro`).
    pub generic_receive: Offload,
    /// The interface merges received packets (`rx-gro-hw`).
    pub hardware_receive: Offload,
    /// The interface encrypts what sockets with kernel TLS send (`tls-hw-tx-offload`).
    pub tls_send: Offload,
}

impl Offloads {
    pub(super) fn of(features: &Features) -> Self {
        let state = |name: &str| {
            if features.active.contains(name) {
                Offload::On
            } else if features.changeable.contains(name) {
                Offload::Off
            } else {
                Offload::Unavailable
            }
        };
        let send_checksum = match (state("tx-checksum-ip-generic"), state("tx-checksum-ipv4")) {
            (Offload::On, _) | (_, Offload::On) => Offload::On,
            (Offload::Off, _) | (_, Offload::Off) => Offload::Off,
            _ => Offload::Unavailable,
        };
        Self {
            scatter_gather: state("tx-scatter-gather"),
            send_checksum,
            receive_checksum: state("rx-checksum"),
            tcp_segmentation: state("tx-tcp-segmentation"),
            generic_segmentation: state("tx-generic-segmentation"),
            generic_receive: state("rx-gro"),
            hardware_receive: state("rx-gro-hw"),
            tls_send: state("tls-hw-tx-offload"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_of_each_kind_of_checksum() {
        let of = |active: &[&str], changeable: &[&str]| {
            let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            let features = Features {
                active: names(active),
                changeable: names(changeable),
            };
            Offloads::of(&features)
        };
        let (generic, v4) = ("tx-checksum-ip-generic", "tx-checksum-ipv4");
        for (active, changeable, expected) in [
            (&[][..], &[][..], Offload::Unavailable),
            (&[generic], &[], Offload::On),
            (&[v4], &[generic], Offload::On),
            (&[], &[generic], Offload::Off),
            (&[], &[v4], Offload::Off),
        ] {
            assert_eq!(of(active, changeable).send_checksum, expected);
        }
        let some = of(&["tx-scatter-gather"], &["rx-gro", "tx-scatter-gather"]);
        assert_eq!(some.scatter_gather, Offload::On);
        assert_eq!(some.generic_receive, Offload::Off);
        assert_eq!(some.tls_send, Offload::Unavailable);
    }
}
