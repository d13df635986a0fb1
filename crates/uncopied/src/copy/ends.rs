//! What can be copied from and to.

use std::fs::File;
use std::io::{Cursor, PipeReader, PipeWriter, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Buf, Bytes};

/// What [`copy`](crate::copy()) can read from.
///
/// - Descriptors: the files, sockets and pipes of std, [`OwnedFd`] and [`BorrowedFd`], references
///   to these, and `Arc` and `Rc` of these. Any other descriptor can be passed as a `BorrowedFd`:
///   `it.as_fd()`.
/// - Memory: `&[u8]`, [`Cursor`] and [`Bytes`]. What was copied is removed from it, as with
///   [`Read`].
/// - Anything else that implements [`Read`], in [`Through`].
/// - `&mut` references to all of these.
///
/// This trait is sealed, because the library must know where the bytes are. A type that only
/// contains a file may have read ahead of it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not known to `uncopied::copy` as a source",
    note = "anything that implements `Read` can be wrapped: `uncopied::Through(reader)`",
    note = "any descriptor without a buffer of its own can be passed as `it.as_fd()`",
    note = "for tokio's types, use `uncopied::tokio::copy`"
)]
pub trait CopySource: sealed::Source {}

/// What [`copy`](crate::copy()) can write to.
///
/// - Descriptors: the files, sockets and pipes of std, [`OwnedFd`] and [`BorrowedFd`], references
///   to these, and `Arc` and `Rc` of these. Any other descriptor can be passed as a `BorrowedFd`:
///   `it.as_fd()`.
/// - Memory: `Vec<u8>`.
/// - Anything else that implements [`Write`], in [`Through`].
/// - `&mut` references to all of these.
///
/// This trait is sealed, for the same reason as [`CopySource`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not known to `uncopied::copy` as a sink",
    note = "anything that implements `Write` can be wrapped: `uncopied::Through(writer)`",
    note = "any descriptor without a buffer of its own can be passed as `it.as_fd()`",
    note = "for tokio's types, use `uncopied::tokio::copy`"
)]
pub trait CopySink: sealed::Sink {}

/// A source that is read through its own `read`, or a sink that is written to through its own
/// `write`, such as a compressor, a buffered reader, or standard input.
///
/// In [`uncopied::copy`](crate::copy()), these are the methods of [`Read`] and [`Write`], and in
/// `uncopied::tokio::copy`, those of tokio's `AsyncRead` and `AsyncWrite`. The bytes are copied
/// through a buffer of 128 KiB, and the report counts them so.
///
/// ```
/// use std::io::{BufRead, BufReader};
/// use uncopied::Through;
///
/// let mut lines = BufReader::new(&b"first line\nthe rest"[..]);
/// lines.read_line(&mut String::new())?;
/// let mut rest = Vec::new();
/// uncopied::copy(Through(lines), &mut rest)?;
/// assert_eq!(rest, b"the rest");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Through<T>(pub T);

/// How a source is read.
pub enum SourceEnd<'a> {
    Descriptor(BorrowedFd<'a>),
    Memory(&'a mut dyn Buf),
    Reader(&'a mut dyn Read),
}

/// How a sink is written to.
pub enum SinkEnd<'a> {
    Descriptor(BorrowedFd<'a>),
    Writer(&'a mut dyn Write),
}

pub(super) mod sealed {
    use super::{AsFd, SinkEnd, SourceEnd};

    pub trait Source {
        fn end(&mut self) -> SourceEnd<'_>;
    }

    pub trait Sink {
        fn end(&mut self) -> SinkEnd<'_>;
    }

    /// A descriptor that can be read from.
    pub trait Readable: AsFd {}

    /// A descriptor that can be written to.
    pub trait Writable: AsFd {}
}

/// Implements [`CopySource`] or [`CopySink`] for descriptors, and for handles of them.
macro_rules! descriptors {
    ($trait:ident, $sealed:ident, $end:ident, $kind:ident: $($descriptor:ty),*) => {
        descriptors!(@impl $trait, $sealed, $end: $([] $descriptor;)*);
        descriptors!(@impl $trait, $sealed, $end:
            [T: sealed::$kind] &T;
            [T: sealed::$kind] Arc<T>;
            [T: sealed::$kind] Rc<T>;
        );
        $(impl sealed::$kind for $descriptor {})*
        impl<T: sealed::$kind> sealed::$kind for &T {}
        impl<T: sealed::$kind> sealed::$kind for Arc<T> {}
        impl<T: sealed::$kind> sealed::$kind for Rc<T> {}
    };
    (@impl $trait:ident, $sealed:ident, $end:ident: $([$($generics:tt)*] $type:ty;)*) => {
        $(
            impl<$($generics)*> sealed::$sealed for $type {
                fn end(&mut self) -> $end<'_> {
                    $end::Descriptor((*self).as_fd())
                }
            }
            impl<$($generics)*> $trait for $type {}
        )*
    };
}

descriptors!(CopySource, Source, SourceEnd, Readable:
    File, TcpStream, UnixStream, PipeReader, ChildStdout, ChildStderr, OwnedFd, BorrowedFd<'_>);
descriptors!(CopySink, Sink, SinkEnd, Writable:
    File, TcpStream, UnixStream, PipeWriter, ChildStdin, OwnedFd, BorrowedFd<'_>);

macro_rules! memory {
    ($([$($generics:tt)*] $type:ty;)*) => {
        $(
            impl<$($generics)*> sealed::Source for $type {
                fn end(&mut self) -> SourceEnd<'_> {
                    SourceEnd::Memory(self)
                }
            }
            impl<$($generics)*> CopySource for $type {}
        )*
    };
}

memory! {
    [] &[u8];
    [] Bytes;
    [T: AsRef<[u8]>] Cursor<T>;
}

impl sealed::Sink for Vec<u8> {
    fn end(&mut self) -> SinkEnd<'_> {
        SinkEnd::Writer(self)
    }
}

impl<T: Read> sealed::Source for Through<T> {
    fn end(&mut self) -> SourceEnd<'_> {
        SourceEnd::Reader(&mut self.0)
    }
}

impl<T: Write> sealed::Sink for Through<T> {
    fn end(&mut self) -> SinkEnd<'_> {
        SinkEnd::Writer(&mut self.0)
    }
}

impl<T: CopySource + ?Sized> sealed::Source for &mut T {
    fn end(&mut self) -> SourceEnd<'_> {
        (**self).end()
    }
}

impl<T: CopySink + ?Sized> sealed::Sink for &mut T {
    fn end(&mut self) -> SinkEnd<'_> {
        (**self).end()
    }
}

impl CopySink for Vec<u8> {}
impl<T: Read> CopySource for Through<T> {}
impl<T: Write> CopySink for Through<T> {}
impl<T: CopySource + ?Sized> CopySource for &mut T {}
impl<T: CopySink + ?Sized> CopySink for &mut T {}
