//! The mechanisms: their names, whether they are zero-copy, and in which directions they move
//! bytes.

use std::fmt;
use std::str::FromStr;

/// The kinds of endpoints that bytes move between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Direction {
    /// From a file to a stream socket.
    FileToSocket,
    /// From memory to a stream socket.
    MemoryToSocket,
    /// From a stream socket to memory.
    SocketToMemory,
    /// From a stream socket to a file, a pipe or a device.
    SocketToFile,
    /// From a stream socket to another one.
    SocketToSocket,
    /// Between two files, pipes or devices, or between one of these and a stream socket. Files that
    /// are sent, and streams that are received into files, have directions of their own.
    DescriptorToDescriptor,
}

impl Direction {
    /// Whether the source is a socket.
    pub(crate) const fn receives(self) -> bool {
        matches!(
            self,
            Self::SocketToMemory | Self::SocketToFile | Self::SocketToSocket
        )
    }
}

/// Defines [`Mechanism`] from a table that has one row per mechanism. To add a mechanism, add a
/// row.
macro_rules! mechanisms {
    ($(
        $(#[$doc:meta])*
        $mechanism:ident = $name:literal, system_call: $system_call:literal,
            zero_copy: $zero_copy:literal, [$($direction:ident),+];
    )+) => {
        /// A kernel path that moves bytes from a source to a sink.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Mechanism {
            $($(#[$doc])* $mechanism,)+
        }

        impl Mechanism {
            /// Every mechanism, in the order in which reports list them.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$mechanism),+];

            /// Returns the name that flags and reports use for this mechanism.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$mechanism => $name,)+
                }
            }

            /// Returns the name of the system call with which this mechanism passes bytes to the
            /// socket, or gets them from it. (`copy` has one for each direction: an error names
            /// the one that failed.)
            #[must_use]
            pub const fn system_call(self) -> &'static str {
                match self {
                    $(Self::$mechanism => $system_call,)+
                }
            }

            /// Whether this is a zero-copy mechanism: one that passes references to the pages
            /// instead of copying them.
            ///
            /// The kernel may still copy what is sent, for example when the peer is on the same
            /// machine or the network device lacks scatter-gather. If it reports such a copy,
            /// [`SendOutcome::copied`](crate::SendOutcome::copied) counts it.
            #[must_use]
            pub const fn is_zero_copy(self) -> bool {
                match self {
                    $(Self::$mechanism => $zero_copy,)+
                }
            }

            /// Whether this mechanism moves bytes in `direction`.
            #[must_use]
            pub const fn moves(self, direction: Direction) -> bool {
                match self {
                    $(Self::$mechanism => matches!(direction, $(Direction::$direction)|+),)+
                }
            }
        }
    };
}

mechanisms! {
    /// `sendfile(2)`: the socket takes references to the file's pages in the page cache. If the
    /// sink is a file, the kernel copies the bytes into its pages, and the report counts them as
    /// [copied by the kernel](crate::Report::kernel_copied).
    Sendfile = "sendfile", system_call: "sendfile", zero_copy: true,
        [FileToSocket, DescriptorToDescriptor];
    /// `splice(2)` from the file into a pipe, and from the pipe into the socket: the socket takes
    /// the same page references as with `sendfile`, but in two calls. If the source is a socket,
    /// the pipe takes references to its buffers. If the pipe is not the sink itself, a second call
    /// moves the bytes to the sink. If that is a socket, it takes the references. If it is a file,
    /// the kernel copies the bytes into its pages, and the report counts them as
    /// [copied by the kernel](crate::Report::kernel_copied). Between a pipe and anything else, one
    /// call moves the bytes, and no other pipe is needed.
    Splice = "splice", system_call: "splice", zero_copy: true,
        [FileToSocket, SocketToFile, SocketToSocket, DescriptorToDescriptor];
    /// The file is mapped into memory, and `send(2)` reads from the mapping: one copy, made by the
    /// kernel.
    MmapWrite = "mmap_write", system_call: "send", zero_copy: false, [FileToSocket];
    /// `send(2)` with `MSG_ZEROCOPY`: the socket takes references to the pages of the memory. A
    /// notification in the socket's error queue reports when the kernel is done with the pages.
    MsgZerocopy = "msg_zerocopy", system_call: "send", zero_copy: true, [MemoryToSocket];
    /// io_uring's `SEND_ZC`: like `msg_zerocopy`, except that the notification is a completion in
    /// the ring.
    SendZc = "send_zc", system_call: "io_uring_enter", zero_copy: true, [MemoryToSocket];
    /// `vmsplice(2)` of memory into a pipe, and `splice(2)` from the pipe into the socket: the
    /// socket takes references to the pages, even if the peer is on the same machine, but the
    /// kernel sends no notification.
    Vmsplice = "vmsplice", system_call: "splice", zero_copy: true, [MemoryToSocket];
    /// `getsockopt(TCP_ZEROCOPY_RECEIVE)`: the kernel maps the pages that hold received bytes into
    /// this process. It can map a page only if the bytes fill it, and copies the others.
    MapReceive = "map_receive", system_call: "getsockopt", zero_copy: true, [SocketToMemory];
    /// io_uring's zero-copy receive (`RECV_ZC`): the network card writes the bytes into memory of
    /// this process.
    Zcrx = "zcrx", system_call: "io_uring_enter", zero_copy: true, [SocketToMemory];
    /// `recv(2)` with `MSG_TRUNC`, if the sink is `/dev/null`: the kernel removes the bytes from
    /// the socket, and nothing reads them.
    Discard = "discard", system_call: "recv", zero_copy: true, [SocketToFile];
    /// `copy_file_range(2)` from one file to another: the kernel copies the bytes. A file system
    /// may let both files share the blocks instead, which the kernel does not report, so the bytes
    /// count as copied.
    CopyFileRange = "copy_file_range", system_call: "copy_file_range", zero_copy: false,
        [DescriptorToDescriptor];
    /// `send(2)` of memory (one copy), or of file contents that `pread(2)` has read into memory
    /// (two copies), or `recv(2)` into memory (one copy), from where `write(2)`, `pwrite(2)` or
    /// `send(2)` may pass them on to a file or a socket (two copies). Between other descriptors,
    /// `read(2)` and `write(2)` (two copies). It always works.
    Copy = "copy", system_call: "send", zero_copy: false,
        [
            FileToSocket, MemoryToSocket, SocketToMemory, SocketToFile, SocketToSocket,
            DescriptorToDescriptor
        ];
}

impl Mechanism {
    /// The mechanisms that send files.
    pub const FILE_TO_SOCKET: [Self; count(Direction::FileToSocket)] =
        select(Direction::FileToSocket);

    /// The mechanisms that send memory.
    pub const MEMORY_TO_SOCKET: [Self; count(Direction::MemoryToSocket)] =
        select(Direction::MemoryToSocket);

    /// The mechanisms that receive into memory.
    pub const SOCKET_TO_MEMORY: [Self; count(Direction::SocketToMemory)] =
        select(Direction::SocketToMemory);

    /// The mechanisms that receive into files, pipes and devices.
    pub const SOCKET_TO_FILE: [Self; count(Direction::SocketToFile)] =
        select(Direction::SocketToFile);

    /// The mechanisms that move bytes from one socket to another.
    pub const SOCKET_TO_SOCKET: [Self; count(Direction::SocketToSocket)] =
        select(Direction::SocketToSocket);

    /// The mechanisms that move bytes between two descriptors of other kinds than these.
    pub const DESCRIPTOR_TO_DESCRIPTOR: [Self; count(Direction::DescriptorToDescriptor)] =
        select(Direction::DescriptorToDescriptor);
}

const fn count(direction: Direction) -> usize {
    let (mut index, mut count) = (0, 0);
    while index < Mechanism::ALL.len() {
        if Mechanism::ALL[index].moves(direction) {
            count += 1;
        }
        index += 1;
    }
    count
}

const fn select<const N: usize>(direction: Direction) -> [Mechanism; N] {
    let mut selected = [Mechanism::Copy; N];
    let (mut index, mut count) = (0, 0);
    while index < Mechanism::ALL.len() {
        if Mechanism::ALL[index].moves(direction) {
            selected[count] = Mechanism::ALL[index];
            count += 1;
        }
        index += 1;
    }
    selected
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Parses the [name](Mechanism::name) of a mechanism.
///
/// ```
/// use uncopied::Mechanism;
///
/// assert_eq!("sendfile".parse(), Ok(Mechanism::Sendfile));
/// let error = "teleport".parse::<Mechanism>().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "no such mechanism; the mechanisms are sendfile, splice, mmap_write, msg_zerocopy, \
///      send_zc, vmsplice, map_receive, zcrx, discard, copy_file_range, copy"
/// );
/// ```
impl FromStr for Mechanism {
    type Err = ParseMechanismError;

    fn from_str(name: &str) -> Result<Self, ParseMechanismError> {
        let named = Self::ALL.into_iter().find(|it| it.name() == name);
        named.ok_or(ParseMechanismError(()))
    }
}

/// The error of parsing a string that is not the name of a [`Mechanism`]. Its text lists the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseMechanismError(());

impl fmt::Display for ParseMechanismError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Mechanism::ALL.map(Mechanism::name).join(", ");
        write!(f, "no such mechanism; the mechanisms are {names}")
    }
}

impl std::error::Error for ParseMechanismError {}

#[cfg(test)]
mod tests {
    use super::Mechanism::{
        Copy, CopyFileRange, Discard, MapReceive, MmapWrite, MsgZerocopy, SendZc, Sendfile, Splice,
        Vmsplice, Zcrx,
    };
    use super::*;

    #[test]
    fn each_direction_has_its_mechanisms() {
        assert_eq!(
            Mechanism::FILE_TO_SOCKET,
            [Sendfile, Splice, MmapWrite, Copy]
        );
        assert_eq!(
            Mechanism::MEMORY_TO_SOCKET,
            [MsgZerocopy, SendZc, Vmsplice, Copy]
        );
        assert_eq!(Mechanism::SOCKET_TO_MEMORY, [MapReceive, Zcrx, Copy]);
        assert_eq!(Mechanism::SOCKET_TO_FILE, [Splice, Discard, Copy]);
        assert_eq!(Mechanism::SOCKET_TO_SOCKET, [Splice, Copy]);
        assert_eq!(
            Mechanism::DESCRIPTOR_TO_DESCRIPTOR,
            [Sendfile, Splice, CopyFileRange, Copy]
        );
    }

    #[test]
    fn names_are_unique_and_parse() {
        for mechanism in Mechanism::ALL {
            assert_eq!(mechanism.to_string().parse(), Ok(mechanism));
        }
        for name in ["", "mmap", "Sendfile", " copy"] {
            assert_eq!(name.parse::<Mechanism>(), Err(ParseMechanismError(())));
        }
    }
}
