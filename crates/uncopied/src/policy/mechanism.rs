//! The mechanisms by name, and what each of them moves.

use std::fmt;

/// From what kind of endpoint to what kind of endpoint bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Direction {
    /// From a file to a stream socket.
    FileToSocket,
    /// From memory to a stream socket.
    MemoryToSocket,
}

/// Defines [`Mechanism`] with everything that is said of a mechanism in one row. A new mechanism is
/// a new row.
macro_rules! mechanisms {
    ($(
        $(#[$doc:meta])*
        $mechanism:ident = $name:literal, zero_copy: $zero_copy:literal, [$($direction:ident),+];
    )+) => {
        /// One kernel path for bytes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Mechanism {
            $($(#[$doc])* $mechanism,)+
        }

        impl Mechanism {
            /// Every mechanism, in the order in which reports list them.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$mechanism),+];

            /// The name, as flags and reports have it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$mechanism => $name,)+
                }
            }

            /// Whether the CPU copies no byte on the way to the socket.
            ///
            /// The kernel may still copy: for a peer on the same machine, or for a network device
            /// without scatter-gather. Where it reports that,
            /// [`SendOutcome::copied`](crate::SendOutcome::copied) says so.
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
    /// `sendfile(2)`: the socket takes the file's pages from the page cache by reference.
    Sendfile = "sendfile", zero_copy: true, [FileToSocket];
    /// `splice(2)` from the file into a pipe and from there into the socket: the same page
    /// references, in two calls.
    Splice = "splice", zero_copy: true, [FileToSocket];
    /// The file is mapped and `send(2)` reads the mapping: one copy, in the kernel.
    MmapWrite = "mmap_write", zero_copy: false, [FileToSocket];
    /// `send(2)` with `MSG_ZEROCOPY`: the socket reads memory by reference, and a notification on
    /// its error queue says when it is done.
    MsgZerocopy = "msg_zerocopy", zero_copy: true, [MemoryToSocket];
    /// io_uring's `SEND_ZC`: the same, and the notification is a completion of the ring.
    SendZc = "send_zc", zero_copy: true, [MemoryToSocket];
    /// `vmsplice(2)` of memory into a pipe and `splice(2)` from there into the socket: by
    /// reference, even to a peer on the same machine, but without any notification.
    Vmsplice = "vmsplice", zero_copy: true, [MemoryToSocket];
    /// `send(2)` of memory, or of what `pread(2)` has read into memory: one copy, or two. It always
    /// works.
    Copy = "copy", zero_copy: false, [FileToSocket, MemoryToSocket];
}

impl Mechanism {
    /// The mechanisms that send files.
    pub const FILE_TO_SOCKET: [Self; count(Direction::FileToSocket)] =
        select(Direction::FileToSocket);

    /// The mechanisms that send memory.
    pub const MEMORY_TO_SOCKET: [Self; count(Direction::MemoryToSocket)] =
        select(Direction::MemoryToSocket);

    /// The mechanism of this [name](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }
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

#[cfg(test)]
mod tests {
    use super::Mechanism::{Copy, MmapWrite, MsgZerocopy, SendZc, Sendfile, Splice, Vmsplice};
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
    }

    #[test]
    fn names_are_unique_and_found() {
        for mechanism in Mechanism::ALL {
            assert_eq!(Mechanism::from_name(mechanism.name()), Some(mechanism));
        }
        assert_eq!(Mechanism::from_name("mmap"), None);
    }
}
