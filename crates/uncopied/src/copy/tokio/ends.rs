//! What can be copied from and to on tokio.

use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Cursor, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite};
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use crate::copy::Through;
use crate::driver::tokio::any::{PolledSink, PolledSource};
use crate::endpoint::{self, Side};
use crate::error::{Error, ErrorKind};
use crate::policy::Direction;

/// What [`copy`](super::copy) can read from.
///
/// - tokio's sockets, the read halves into which they can be split, and pipes (`pipe::Receiver`),
///   shared references to these, and `Arc`s of these.
/// - Files: those of tokio, and those of std, with shared references and `Arc`s.
/// - Memory: `&[u8]`, [`Cursor`] and [`Bytes`]. What was copied is removed from it.
/// - Anything else that implements `AsyncRead`, in [`Through`].
/// - `&mut` references to all of these.
///
/// This trait is sealed, because the library must know where the bytes are. A type that only
/// contains a socket may have read ahead of it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not known to `uncopied::tokio::copy` as a source",
    note = "anything that implements `AsyncRead` can be wrapped: `uncopied::Through(reader)`"
)]
pub trait CopySource: sealed::Source {}

/// What [`copy`](super::copy) can write to.
///
/// - tokio's sockets, the write halves into which they can be split, and pipes (`pipe::Sender`),
///   shared references to these, and `Arc`s of these.
/// - Files: those of tokio, and those of std, with shared references and `Arc`s.
/// - Memory: `Vec<u8>`.
/// - Anything else that implements `AsyncWrite`, in [`Through`]. It is flushed at the end.
/// - `&mut` references to all of these.
///
/// This trait is sealed, for the same reason as [`CopySource`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not known to `uncopied::tokio::copy` as a sink",
    note = "anything that implements `AsyncWrite` can be wrapped: `uncopied::Through(writer)`"
)]
pub trait CopySink: sealed::Sink {}

/// How a source is read.
pub enum Source<'a> {
    Polled(&'a dyn PolledSource),
    File(BorrowedFd<'a>),
    Memory(&'a mut (dyn Buf + Send)),
    Reader(&'a mut (dyn AsyncRead + Unpin + Send)),
}

/// How a sink is written to.
pub enum Sink<'a> {
    Polled(&'a dyn PolledSink),
    File(BorrowedFd<'a>),
    Writer(&'a mut (dyn AsyncWrite + Unpin + Send)),
}

/// A source as it was passed.
pub enum SourceEnd<'a> {
    Known(Source<'a>),
    /// A file of tokio, which may have read ahead.
    Buffered(&'a mut tokio::fs::File),
}

/// A sink as it was passed.
pub enum SinkEnd<'a> {
    Known(Sink<'a>),
    /// A file of tokio, which may not have written everything yet.
    Buffered(&'a mut tokio::fs::File),
}

impl<'a> SourceEnd<'a> {
    /// Gives a file of tokio the position that it has for its user. If it has no position, it must
    /// be read through its own buffer.
    pub(super) async fn synchronised(self) -> Result<Source<'a>, Error> {
        match self {
            Self::Known(source) => Ok(source),
            Self::Buffered(file) if endpoint::position(file.as_fd()).is_ok() => {
                synchronise(file, Side::Source).await?;
                let file: &tokio::fs::File = file;
                Ok(Source::File(file.as_fd()))
            }
            Self::Buffered(file) => Ok(Source::Reader(file)),
        }
    }
}

impl<'a> SinkEnd<'a> {
    /// Gives a file of tokio the position that it has for its user, and waits until everything that
    /// was written to it before is in the file. If it has no position, it must be written to
    /// through its own buffer.
    pub(super) async fn synchronised(self) -> Result<Sink<'a>, Error> {
        match self {
            Self::Known(sink) => Ok(sink),
            Self::Buffered(file) if endpoint::position(file.as_fd()).is_ok() => {
                synchronise(file, Side::Sink).await?;
                let file: &tokio::fs::File = file;
                Ok(Sink::File(file.as_fd()))
            }
            Self::Buffered(file) => Ok(Sink::Writer(file)),
        }
    }
}

async fn synchronise(file: &mut tokio::fs::File, side: Side) -> Result<(), Error> {
    let mut is_seeking = false;
    let synchronised = poll_fn(|context| poll_synchronise(file, context, &mut is_seeking)).await;
    synchronised.map_err(|cause| {
        let kind = match side {
            Side::Source => ErrorKind::Source,
            Side::Sink => ErrorKind::Sink,
        };
        Error::before_transfer(kind, Some("lseek"), Some(cause))
            .in_direction(Direction::DescriptorToDescriptor)
            .at_side(side)
    })
}

fn poll_synchronise(
    file: &mut tokio::fs::File,
    context: &mut Context<'_>,
    is_seeking: &mut bool,
) -> Poll<io::Result<()>> {
    let mut file = Pin::new(file);
    if !*is_seeking {
        ready!(file.as_mut().poll_flush(context))?;
        ready!(file.as_mut().poll_complete(context))?;
        // Bytes that were read ahead are subtracted from the position.
        file.as_mut().start_seek(SeekFrom::Current(0))?;
        *is_seeking = true;
    }
    file.poll_complete(context).map_ok(drop)
}

pub(super) mod sealed {
    use super::{SinkEnd, SourceEnd};

    pub trait Source: Send {
        fn end(&mut self) -> SourceEnd<'_>;
    }

    pub trait Sink: Send {
        fn end(&mut self) -> SinkEnd<'_>;
    }
}

/// Implements [`CopySource`] for a type. `$this` is the value in the expression that follows.
macro_rules! sources {
    ($([$($generics:tt)*] $type:ty, $this:ident => $end:expr;)*) => {
        $(
            impl<$($generics)*> sealed::Source for $type {
                fn end(&mut self) -> SourceEnd<'_> {
                    let $this = self;
                    $end
                }
            }
            impl<$($generics)*> CopySource for $type {}
        )*
    };
}

/// Implements [`CopySink`] for a type. `$this` is the value in the expression that follows.
macro_rules! sinks {
    ($([$($generics:tt)*] $type:ty, $this:ident => $end:expr;)*) => {
        $(
            impl<$($generics)*> sealed::Sink for $type {
                fn end(&mut self) -> SinkEnd<'_> {
                    let $this = self;
                    $end
                }
            }
            impl<$($generics)*> CopySink for $type {}
        )*
    };
}

sources! {
    [] TcpStream, socket => SourceEnd::Known(Source::Polled(socket));
    [] &TcpStream, socket => SourceEnd::Known(Source::Polled(*socket));
    [] Arc<TcpStream>, socket => SourceEnd::Known(Source::Polled(&**socket));
    [] tcp::OwnedReadHalf, half => SourceEnd::Known(Source::Polled((*half).as_ref()));
    [] tcp::ReadHalf<'_>, half => SourceEnd::Known(Source::Polled((*half).as_ref()));
    [] UnixStream, socket => SourceEnd::Known(Source::Polled(socket));
    [] &UnixStream, socket => SourceEnd::Known(Source::Polled(*socket));
    [] Arc<UnixStream>, socket => SourceEnd::Known(Source::Polled(&**socket));
    [] unix::OwnedReadHalf, half => SourceEnd::Known(Source::Polled((*half).as_ref()));
    [] unix::ReadHalf<'_>, half => SourceEnd::Known(Source::Polled((*half).as_ref()));
    [] pipe::Receiver, pipe => SourceEnd::Known(Source::Polled(pipe));
    [] &pipe::Receiver, pipe => SourceEnd::Known(Source::Polled(*pipe));
    [] Arc<pipe::Receiver>, pipe => SourceEnd::Known(Source::Polled(&**pipe));
    [] tokio::fs::File, file => SourceEnd::Buffered(file);
    [] File, file => SourceEnd::Known(Source::File((*file).as_fd()));
    [] &File, file => SourceEnd::Known(Source::File((**file).as_fd()));
    [] Arc<File>, file => SourceEnd::Known(Source::File((**file).as_fd()));
    [] &[u8], memory => SourceEnd::Known(Source::Memory(memory));
    [] Bytes, memory => SourceEnd::Known(Source::Memory(memory));
    [T: AsRef<[u8]> + Send] Cursor<T>, memory => SourceEnd::Known(Source::Memory(memory));
    [T: AsyncRead + Unpin + Send] Through<T>, through => SourceEnd::Known(Source::Reader(&mut through.0));
    [T: CopySource + ?Sized] &mut T, source => (**source).end();
}

sinks! {
    [] TcpStream, socket => SinkEnd::Known(Sink::Polled(socket));
    [] &TcpStream, socket => SinkEnd::Known(Sink::Polled(*socket));
    [] Arc<TcpStream>, socket => SinkEnd::Known(Sink::Polled(&**socket));
    [] tcp::OwnedWriteHalf, half => SinkEnd::Known(Sink::Polled((*half).as_ref()));
    [] tcp::WriteHalf<'_>, half => SinkEnd::Known(Sink::Polled((*half).as_ref()));
    [] UnixStream, socket => SinkEnd::Known(Sink::Polled(socket));
    [] &UnixStream, socket => SinkEnd::Known(Sink::Polled(*socket));
    [] Arc<UnixStream>, socket => SinkEnd::Known(Sink::Polled(&**socket));
    [] unix::OwnedWriteHalf, half => SinkEnd::Known(Sink::Polled((*half).as_ref()));
    [] unix::WriteHalf<'_>, half => SinkEnd::Known(Sink::Polled((*half).as_ref()));
    [] pipe::Sender, pipe => SinkEnd::Known(Sink::Polled(pipe));
    [] &pipe::Sender, pipe => SinkEnd::Known(Sink::Polled(*pipe));
    [] Arc<pipe::Sender>, pipe => SinkEnd::Known(Sink::Polled(&**pipe));
    [] tokio::fs::File, file => SinkEnd::Buffered(file);
    [] File, file => SinkEnd::Known(Sink::File((*file).as_fd()));
    [] &File, file => SinkEnd::Known(Sink::File((**file).as_fd()));
    [] Arc<File>, file => SinkEnd::Known(Sink::File((**file).as_fd()));
    [] Vec<u8>, memory => SinkEnd::Known(Sink::Writer(memory));
    [T: AsyncWrite + Unpin + Send] Through<T>, through => SinkEnd::Known(Sink::Writer(&mut through.0));
    [T: CopySink + ?Sized] &mut T, sink => (**sink).end();
}
