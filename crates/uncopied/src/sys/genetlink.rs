//! Requests to the families of generic netlink, with which the kernel describes network interfaces,
//! among other things.
//!
//! The messages are those of `linux/netlink.h` and `linux/genetlink.h`, in the byte order of the
//! machine. What the kernel sends is parsed without trust: a message that is cut off, or that has
//! lengths that contradict each other, is an error, or has fewer attributes.

use std::os::fd::OwnedFd;

use rustix::io::{Errno, Result, retry_on_intr};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// The length of `struct nlmsghdr`, in bytes.
const MESSAGE_HEADER_BYTES: usize = 16;

/// The length of `struct genlmsghdr`, in bytes.
const FAMILY_HEADER_BYTES: usize = 4;

/// The length of `struct nlattr`, in bytes.
const ATTRIBUTE_HEADER_BYTES: usize = 4;

/// `NLM_F_REQUEST`: the message is a request.
const NLM_F_REQUEST: u16 = 1;

/// `NLMSG_ERROR`: the message reports an errno, or 0 for success.
const NLMSG_ERROR: u16 = 2;

/// The bits of an attribute's type that are flags: `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const ATTRIBUTE_FLAGS: u16 = 0xc000;

/// `NLA_F_NESTED`: the value of the attribute is a list of attributes.
const NLA_F_NESTED: u16 = 0x8000;

/// `GENL_ID_CTRL`: the family that knows the numbers of the others.
const CONTROLLER: u16 = 16;

/// `CTRL_CMD_NEWFAMILY`: the command of a message that describes a family.
const CTRL_CMD_NEWFAMILY: u8 = 1;

/// `CTRL_CMD_GETFAMILY`: request a description of a family.
const CTRL_CMD_GETFAMILY: u8 = 3;

/// `CTRL_ATTR_FAMILY_ID`: the number of a family.
const CTRL_ATTR_FAMILY_ID: u16 = 1;

/// `CTRL_ATTR_FAMILY_NAME`: the name of a family.
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// The version of the commands, which is 1 for the controller and for `ethtool`.
const VERSION: u8 = 1;

/// The longest message that is read, in bytes. The longest that is needed, the description of the
/// family `ethtool`, takes about 1 KiB.
const MESSAGE_MAX_BYTES: usize = 32 << 10;

/// A connection to one family of generic netlink.
pub(super) struct Family {
    socket: OwnedFd,
    number: u16,
    sequence: u32,
}

impl Family {
    /// Connects to the family that has this name, in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// - `ENOENT`: the kernel has no such family.
    /// - `EPROTONOSUPPORT`: the kernel has no generic netlink.
    /// - `EBADMSG`: the reply cannot be parsed.
    pub(super) fn open(name: &str) -> Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::GENERIC),
        )?;
        let mut family = Self {
            socket,
            number: CONTROLLER,
            sequence: 0,
        };
        let mut nul_terminated = name.as_bytes().to_vec();
        nul_terminated.push(0);
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, CTRL_ATTR_FAMILY_NAME, &nul_terminated);
        let reply = family.request(CTRL_CMD_GETFAMILY, CTRL_CMD_NEWFAMILY, &attributes)?;
        let number = Attributes(&reply).find(CTRL_ATTR_FAMILY_ID);
        let number = number.and_then(|value| value.try_into().ok());
        family.number = u16::from_ne_bytes(number.ok_or(Errno::BADMSG)?);
        Ok(family)
    }

    /// Sends a command with these attributes, and returns the attributes of the reply, which must
    /// have the command `reply_command`.
    ///
    /// # Errors
    ///
    /// The errno with which the kernel refuses the command, or `EBADMSG` if the reply cannot be
    /// parsed.
    pub(super) fn request(
        &mut self,
        command: u8,
        reply_command: u8,
        attributes: &[u8],
    ) -> Result<Vec<u8>> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = request(self.number, command, self.sequence, attributes)?;
        let flags = SendFlags::empty();
        // The socket has no peer, so the message goes to the kernel.
        retry_on_intr(|| rustix::net::send(&self.socket, &message, flags))?;
        let mut buffer = vec![0; MESSAGE_MAX_BYTES];
        // The kernel has handled the request, and queued the reply, before the send returned, so
        // this never has to wait.
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let received = || rustix::net::recv(&self.socket, &mut buffer[..], flags);
        let (_, len) = retry_on_intr(received)?;
        let datagram = buffer.get(..len).ok_or(Errno::MSGSIZE)?;
        let reply = reply(datagram, self.number, reply_command, self.sequence)?;
        Ok(reply.to_vec())
    }
}

/// Returns a request: the two headers, and the attributes.
fn request(family: u16, command: u8, sequence: u32, attributes: &[u8]) -> Result<Vec<u8>> {
    let len = MESSAGE_HEADER_BYTES + FAMILY_HEADER_BYTES + attributes.len();
    let len = u32::try_from(len).map_err(|_| Errno::MSGSIZE)?;
    let mut message = Vec::new();
    message.extend_from_slice(&len.to_ne_bytes());
    message.extend_from_slice(&family.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    // The sender's port. The kernel knows it, and ignores this.
    message.extend_from_slice(&0_u32.to_ne_bytes());
    message.extend_from_slice(&[command, VERSION, 0, 0]);
    message.extend_from_slice(attributes);
    Ok(message)
}

/// Returns the attributes of the reply to the request with this sequence number. The datagram may
/// contain other messages, too.
fn reply(mut datagram: &[u8], family: u16, command: u8, sequence: u32) -> Result<&[u8]> {
    while let Some(message) = Message::first_of(datagram) {
        if message.sequence == sequence {
            if message.kind == NLMSG_ERROR {
                return Err(message.errno());
            }
            if message.kind == family && message.content.first() == Some(&command) {
                return message
                    .content
                    .get(FAMILY_HEADER_BYTES..)
                    .ok_or(Errno::BADMSG);
            }
        }
        let len = MESSAGE_HEADER_BYTES + message.content.len();
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Err(Errno::BADMSG)
}

/// A netlink message.
struct Message<'a> {
    kind: u16,
    sequence: u32,
    /// What follows the header.
    content: &'a [u8],
}

impl<'a> Message<'a> {
    /// Returns the first message of a datagram, or `None` if it is cut off.
    fn first_of(datagram: &'a [u8]) -> Option<Self> {
        let (&[a, b, c, d, kind_a, kind_b, _, _], rest) = datagram.split_first_chunk::<8>()?;
        let (&sequence, _) = rest.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
        Some(Self {
            kind: u16::from_ne_bytes([kind_a, kind_b]),
            sequence: u32::from_ne_bytes(sequence),
            content: datagram.get(MESSAGE_HEADER_BYTES..len)?,
        })
    }

    /// Returns the errno of a message of the kind `NLMSG_ERROR`, which is its first integer,
    /// negated.
    fn errno(&self) -> Errno {
        let negated = self.content.first_chunk().copied().map(i32::from_ne_bytes);
        match negated {
            // The largest errno is 4095.
            Some(negated @ -4095..0) => Errno::from_raw_os_error(-negated),
            // An acknowledgement, which was not requested, or nonsense.
            _ => Errno::BADMSG,
        }
    }
}

/// A list of attributes.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// Returns the type and the value of each attribute. A length that is too small or too large
    /// ends the list.
    pub(super) fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (&[a, b, kind_a, kind_b], _) = rest.split_first_chunk::<4>()?;
            let len = usize::from(u16::from_ne_bytes([a, b]));
            let value = rest.get(ATTRIBUTE_HEADER_BYTES..len)?;
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
            let kind = u16::from_ne_bytes([kind_a, kind_b]) & !ATTRIBUTE_FLAGS;
            Some((kind, value))
        })
    }

    /// Returns the value of the first attribute of this type.
    pub(super) fn find(self, kind: u16) -> Option<&'a [u8]> {
        let mut attributes = self.iter();
        let (_, value) = attributes.find(|&(other, _)| other == kind)?;
        Some(value)
    }

    /// Returns the value of the first attribute of this type, if it is a 32-bit integer.
    pub(super) fn u32(self, kind: u16) -> Option<u32> {
        let value = self.find(kind)?.try_into().ok()?;
        Some(u32::from_ne_bytes(value))
    }

    /// Returns the value of the first attribute of this type, if it is an 8-bit integer.
    pub(super) fn u8(self, kind: u16) -> Option<u8> {
        let [value] = self.find(kind)?.try_into().ok()?;
        Some(value)
    }
}

/// Appends an attribute. The value must be shorter than 64 KiB.
pub(super) fn push_attribute(attributes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = (ATTRIBUTE_HEADER_BYTES + value.len()) as u16;
    attributes.extend_from_slice(&len.to_ne_bytes());
    attributes.extend_from_slice(&kind.to_ne_bytes());
    attributes.extend_from_slice(value);
    attributes.resize(attributes.len().next_multiple_of(4), 0);
}

/// Appends an attribute that consists of attributes.
pub(super) fn push_nested(attributes: &mut Vec<u8>, kind: u16, nested: &[u8]) {
    push_attribute(attributes, kind | NLA_F_NESTED, nested);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What Linux 6.18 sends if there is no such family: `NLMSG_ERROR` with `ENOENT`, and the
    /// request.
    #[cfg(target_endian = "little")]
    const NO_FAMILY: &[u8] = b"\x38\0\0\0\x02\0\0\0\x01\0\0\0\x99\x1a\0\0\xfe\xff\xff\xff\
        \x24\0\0\0\x10\0\x01\0\x01\0\0\0\0\0\0\0\x03\x01\0\0\x0d\0\x02\0ethtoolx\0\0\0\0";

    fn message(kind: u16, sequence: u32, content: &[u8]) -> Vec<u8> {
        let len = (MESSAGE_HEADER_BYTES + content.len()) as u32;
        let mut message = len.to_ne_bytes().to_vec();
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&[0, 0]);
        message.extend_from_slice(&sequence.to_ne_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(content);
        message
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn an_unknown_family_is_enoent() {
        let error = reply(NO_FAMILY, CONTROLLER, CTRL_CMD_NEWFAMILY, 1);
        assert_eq!(error, Err(Errno::NOENT));
    }

    #[test]
    fn the_request_is_the_one_that_the_kernel_expects() {
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, CTRL_ATTR_FAMILY_NAME, b"ethtoolx\0");
        let request = request(CONTROLLER, CTRL_CMD_GETFAMILY, 1, &attributes).expect("short");
        #[cfg(target_endian = "little")]
        assert_eq!(request, NO_FAMILY[20..]);
        assert_eq!(request.len(), 36);
    }

    #[test]
    fn other_messages_are_passed_over() {
        let mut datagram = message(21, 6, &[16, 1, 0, 0, 1, 2, 3, 4]);
        datagram.extend(message(20, 7, &[16, 1, 0, 0, 1, 2, 3, 4]));
        datagram.extend(message(21, 7, &[17, 1, 0, 0, 1, 2, 3, 4]));
        assert_eq!(reply(&datagram, 21, 16, 7), Err(Errno::BADMSG));
        // A length that is no multiple of 4 is padded.
        datagram.extend(message(21, 6, &[16, 1, 0]));
        datagram.push(0);
        datagram.extend(message(21, 7, &[16, 1, 0, 0, 5, 6, 7, 8]));
        assert_eq!(reply(&datagram, 21, 16, 7), Ok(&[5, 6, 7, 8][..]));
    }

    #[test]
    fn an_error_without_an_errno_is_ebadmsg() {
        for code in [0_i32, 1, i32::MIN, -4096] {
            let datagram = message(NLMSG_ERROR, 7, &code.to_ne_bytes());
            assert_eq!(reply(&datagram, 21, 16, 7), Err(Errno::BADMSG));
        }
        let datagram = message(NLMSG_ERROR, 7, &[]);
        assert_eq!(reply(&datagram, 21, 16, 7), Err(Errno::BADMSG));
    }

    #[test]
    fn values_of_another_size_are_not_integers() {
        let mut list = Vec::new();
        push_attribute(&mut list, 1, &[1, 2]);
        push_attribute(&mut list, 2, &[]);
        push_nested(&mut list, 3, &[9]);
        let list = Attributes(&list);
        assert_eq!(list.find(1), Some(&[1, 2][..]));
        assert_eq!((list.u8(1), list.u32(1)), (None, None));
        assert_eq!((list.u8(2), list.u32(2)), (None, None));
        assert_eq!((list.u8(3), list.u8(4)), (Some(9), None));
    }

    proptest! {
        /// Whatever the attributes are, they are found again, in any order.
        #[test]
        fn attributes_are_found_again(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9),
        ) {
            let mut list = Vec::new();
            for (kind, value) in (1..).zip(&values) {
                push_attribute(&mut list, kind, value);
            }
            for (kind, value) in (1..).zip(&values) {
                prop_assert_eq!(Attributes(&list).find(kind), Some(&value[..]));
            }
        }

        #[test]
        fn no_message_panics(datagram in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = reply(&datagram, 0, 0, 0);
            let attributes = Attributes(&datagram);
            for kind in 0..8 {
                let _ = (attributes.find(kind), attributes.u8(kind), attributes.u32(kind));
            }
        }

        /// A message with a length that is too small or too large must neither panic nor be passed
        /// over forever.
        #[test]
        fn no_length_panics(len in any::<u32>(), cut in 0_usize..40, attribute_len in any::<u16>()) {
            let mut datagram = message(21, 7, &[16, 1, 0, 0, 8, 0, 1, 0, 1, 2, 3, 4]);
            datagram[..4].copy_from_slice(&len.to_ne_bytes());
            datagram[20..22].copy_from_slice(&attribute_len.to_ne_bytes());
            datagram.truncate(cut);
            if let Ok(attributes) = reply(&datagram, 21, 16, 7) {
                let _ = Attributes(attributes).u32(1);
            }
        }
    }
}
