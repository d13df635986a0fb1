//! Where the bytes of a body go: to a temporary file, or to standard output.

use std::cell::{Cell, RefCell};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::net::unix::pipe;
use tokio::time::sleep;

use super::checksum::Hasher;
use super::error::GetError;
use super::file::{Names, Written};

/// A sink for the bytes of one response.
pub(super) enum Sink {
    File(FileSink),
    Stream(Rc<Output>),
}

impl Sink {
    /// Writes bytes at the end of those that were written before.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, a stream may have got some of the bytes.
    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> Result<(), GetError> {
        match self {
            Self::File(file) => file.write_all(bytes),
            Self::Stream(output) => output.write_all(bytes).await,
        }
    }

    /// Returns where the kernel can move bytes to from a socket. `None` if the bytes have to pass
    /// through the memory of this process: for a checksum, for `--direct`, or because the sink may
    /// block.
    pub(super) fn target(&self) -> Option<Target> {
        match self {
            Self::File(FileSink {
                direct: Some(_), ..
            }) => None,
            Self::File(sink) => Some(Target::File(sink.file(), sink.offset)),
            Self::Stream(output) => output
                .takes_transfers()
                .then(|| Target::Stream(output.clone())),
        }
    }

    /// Counts bytes that the kernel has moved to the [target](Self::target).
    pub(super) fn advance(&mut self, count: u64) {
        match self {
            Self::File(file) => file.advance(count),
            Self::Stream(output) => output.emitted.set(output.emitted() + count),
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::File(file) => file.names.temporary(),
            Self::Stream(output) => &output.path,
        }
    }

    /// Writes bytes that wait for a whole block.
    pub(super) fn flush(&mut self) -> Result<(), GetError> {
        match self {
            Self::File(file) => file.flush(),
            Self::Stream(_) => Ok(()),
        }
    }
}

/// Where the kernel can move bytes to from a socket.
pub(super) enum Target {
    /// A file, from this offset on.
    File(Arc<File>, u64),
    /// A pipe or `/dev/null`.
    Stream(Rc<Output>),
}

impl Target {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(file, _) => file.as_fd(),
            Self::Stream(output) => output.fd(),
        }
    }

    /// Waits until a pipe has room.
    pub(super) async fn writable(&self) -> io::Result<()> {
        if let Self::Stream(output) = self
            && let OutputKind::Pipe(pipe) = &output.kind
        {
            return wait_for_room(pipe).await;
        }
        Ok(())
    }
}

/// Writes to a temporary file, at one position after the other.
pub(super) struct FileSink {
    file: Arc<File>,
    names: Arc<Names>,
    offset: u64,
    written: Rc<RefCell<Written>>,
    direct: Option<DirectWriter>,
}

impl FileSink {
    pub(super) fn new(
        file: Arc<File>,
        names: Arc<Names>,
        offset: u64,
        written: Rc<RefCell<Written>>,
        is_direct: bool,
    ) -> Result<Self, GetError> {
        let direct = match is_direct {
            false => None,
            true => Some(DirectWriter::open(&file).map_err(GetError::file(
                "open without the page cache (--direct)",
                names.temporary(),
            ))?),
        };
        Ok(Self {
            file,
            names,
            offset,
            written,
            direct,
        })
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), GetError> {
        while let Some(direct) = &mut self.direct {
            // Up to the first block boundary, and after the last one, the page cache is used.
            let to_boundary = (BLOCK_BYTES as u64 - self.offset % BLOCK_BYTES as u64) as usize;
            if direct.len == 0 && to_boundary < BLOCK_BYTES {
                let (head, rest) = bytes.split_at(to_boundary.min(bytes.len()));
                self.write_buffered(head)?;
                bytes = rest;
                if bytes.is_empty() {
                    return Ok(());
                }
                continue;
            }
            bytes = direct.take(bytes);
            if !direct.is_full() {
                return Ok(());
            }
            let written = direct.write_at(self.offset);
            self.account(written)?;
        }
        self.write_buffered(bytes)
    }

    fn flush(&mut self) -> Result<(), GetError> {
        let Some(direct) = &mut self.direct else {
            return Ok(());
        };
        let rest = std::mem::take(&mut direct.len);
        let block = direct.block();
        let written = write_all_at(&self.file, &block[..rest], self.offset);
        self.account(written)
    }

    fn write_buffered(&mut self, bytes: &[u8]) -> Result<(), GetError> {
        let written = write_all_at(&self.file, bytes, self.offset);
        self.account(written)
    }

    /// Counts bytes that were written, whether or not others could not be.
    fn account(&mut self, (count, outcome): (u64, io::Result<()>)) -> Result<(), GetError> {
        self.advance(count);
        outcome.map_err(|error| GetError::file("write", self.names.temporary())(error))
    }

    fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    fn advance(&mut self, count: u64) {
        let end = self.offset + count;
        self.written.borrow_mut().add(self.offset, end);
        self.offset = end;
    }
}

/// The alignment of memory, positions and lengths that `O_DIRECT` needs on common file systems.
const BLOCK_BYTES: usize = 4096;
/// The size of a write with `O_DIRECT`: large enough to keep a disk busy.
const DIRECT_WRITE_BYTES: usize = 1 << 20;

/// Collects bytes for writes with `O_DIRECT`.
struct DirectWriter {
    file: File,
    memory: Vec<u8>,
    /// Where the first whole block of `memory` begins.
    start: usize,
    len: usize,
}

impl DirectWriter {
    fn open(file: &File) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut options = OpenOptions::new();
        options
            .write(true)
            .custom_flags(OFlags::DIRECT.bits() as i32);
        let memory = vec![0; DIRECT_WRITE_BYTES + BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        Ok(Self {
            file: options.open(path)?,
            memory,
            start,
            len: 0,
        })
    }

    fn block(&self) -> &[u8] {
        &self.memory[self.start..self.start + DIRECT_WRITE_BYTES]
    }

    /// Collects bytes. Returns those for which there is no room.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let room = DIRECT_WRITE_BYTES - self.len;
        let (taken, rest) = bytes.split_at(room.min(bytes.len()));
        let at = self.start + self.len;
        self.memory[at..at + taken.len()].copy_from_slice(taken);
        self.len += taken.len();
        rest
    }

    fn is_full(&self) -> bool {
        self.len == DIRECT_WRITE_BYTES
    }

    /// Writes the full buffer. Returns the number of bytes written, also if that fails.
    fn write_at(&mut self, offset: u64) -> (u64, io::Result<()>) {
        self.len = 0;
        write_all_at(&self.file, self.block(), offset)
    }
}

/// Writes all bytes. Returns the number of bytes written, also if that fails.
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> (u64, io::Result<()>) {
    let mut count = 0;
    while count < bytes.len() {
        match file.write_at(&bytes[count..], offset + count as u64) {
            Ok(0) => return (count as u64, Err(io::ErrorKind::WriteZero.into())),
            Ok(written) => count += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (count as u64, Err(error)),
        }
    }
    (count as u64, Ok(()))
}

/// How long to wait for room in an output that is neither blocking nor a pipe.
const FULL_OUTPUT_PAUSE: Duration = Duration::from_millis(10);

/// Standard output, a pipe or a device, which get bytes in order and keep them.
pub(super) struct Output {
    kind: OutputKind,
    path: PathBuf,
    emitted: Cell<u64>,
    hasher: RefCell<Option<Hasher>>,
}

enum OutputKind {
    /// A pipe, opened without blocking: while it is full, other downloads go on.
    Pipe(pipe::Sender),
    /// `/dev/null`.
    Null(File),
    /// A file, a terminal or another device.
    Plain(File),
}

impl Output {
    /// Opens standard output.
    pub(super) fn stdout(hasher: Option<Hasher>) -> Result<Self, GetError> {
        let path = Path::new("standard output");
        let own = io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map_err(GetError::file("use", path))?;
        Self::new(File::from(own), path, hasher)
    }

    /// Opens a pipe or a device.
    pub(super) fn open(path: &Path, hasher: Option<Hasher>) -> Result<Self, GetError> {
        let file = OpenOptions::new()
            .write(true)
            .open(path)
            .map_err(GetError::file("open", path))?;
        Self::new(file, path, hasher)
    }

    fn new(file: File, path: &Path, hasher: Option<Hasher>) -> Result<Self, GetError> {
        let metadata = file.metadata().map_err(GetError::file("examine", path))?;
        let pipe = match metadata.file_type().is_fifo() {
            true => reopen_pipe(file.as_fd()),
            false => None,
        };
        let kind = match pipe {
            Some(pipe) => OutputKind::Pipe(pipe),
            None if is_null(&metadata) => OutputKind::Null(file),
            None => OutputKind::Plain(file),
        };
        Ok(Self {
            kind,
            path: path.to_owned(),
            emitted: Cell::new(0),
            hasher: RefCell::new(hasher),
        })
    }

    /// Returns the number of bytes that were written.
    pub(super) fn emitted(&self) -> u64 {
        self.emitted.get()
    }

    /// Takes the hash function of all bytes that were written.
    pub(super) fn take_hasher(&self) -> Option<Hasher> {
        self.hasher.take()
    }

    /// Whether the kernel can move bytes to it from a socket, without waiting.
    fn takes_transfers(&self) -> bool {
        !matches!(self.kind, OutputKind::Plain(_)) && self.hasher.borrow().is_none()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            OutputKind::Pipe(pipe) => pipe.as_fd(),
            OutputKind::Null(file) | OutputKind::Plain(file) => file.as_fd(),
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> Result<(), GetError> {
        while !bytes.is_empty() {
            let outcome = match &self.kind {
                OutputKind::Pipe(pipe) => match pipe.writable().await {
                    Ok(()) => pipe.try_write(bytes),
                    Err(error) => Err(error),
                },
                OutputKind::Null(file) | OutputKind::Plain(file) => (&mut &*file).write(bytes),
            };
            match outcome {
                Ok(count) => {
                    if let Some(hasher) = &mut *self.hasher.borrow_mut() {
                        hasher.update(&bytes[..count]);
                    }
                    self.emitted.set(self.emitted.get() + count as u64);
                    bytes = &bytes[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // For a pipe, the loop waits. Another output is a terminal or a socket that
                    // some process has made non-blocking.
                    if !matches!(self.kind, OutputKind::Pipe(_)) {
                        sleep(FULL_OUTPUT_PAUSE).await;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(GetError::ReaderGone);
                }
                Err(error) => return Err(GetError::file("write to", &self.path)(error)),
            }
        }
        Ok(())
    }
}

/// Whether this is `/dev/null` (the character device 1:3).
fn is_null(metadata: &Metadata) -> bool {
    let device = metadata.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    metadata.file_type().is_char_device() && (major, minor) == (1, 3)
}

/// Waits until a pipe that was found to be full has room.
async fn wait_for_room(pipe: &pipe::Sender) -> io::Result<()> {
    // A new registration with the runtime tells the state of the pipe. That of `pipe` does not,
    // because the runtime has not seen that it is full.
    let duplicate = pipe.as_fd().try_clone_to_owned()?;
    pipe::Sender::from_owned_fd(duplicate)?.writable().await
}

/// Opens a pipe again without blocking. `O_NONBLOCK` on the given descriptor would affect every
/// process that shares it. `None` if that is not allowed; then writes block.
fn reopen_pipe(pipe: BorrowedFd<'_>) -> Option<pipe::Sender> {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let mut options = OpenOptions::new();
    options.write(true);
    options.custom_flags(OFlags::NONBLOCK.bits() as i32);
    pipe::Sender::from_file(options.open(path).ok()?).ok()
}
