//! Copies from anything to anything: every pair of ends, with sizes around every boundary, the
//! positions of files, special files, and `Through`.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use uncopied::{Error, Mechanism, Report, Through};

use crate::harness::{
    DRIVERS, Driver, Family, expect_bytes, expect_eof, in_child, pattern, sending, skip,
    socket_pair,
};

pub(crate) const KIB: usize = 1 << 10;
pub(crate) const MIB: usize = 1 << 20;

/// The kinds of ends that these tests copy between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Tcp,
    Unix,
    Pipe,
    Memory,
    Through,
}

use Kind::{Memory, Pipe, Tcp, Unix};

pub(crate) const KINDS: [Kind; 6] = [Kind::File, Tcp, Unix, Pipe, Memory, Kind::Through];

/// Where a file stands before it is read or written.
pub(crate) const START: u64 = 777;

/// A source that delivers some bytes, and what has to be waited for afterwards.
pub(crate) struct SourceOf {
    pub(crate) end: AnyEnd,
    sender: Option<JoinHandle<()>>,
}

/// A sink, and what collects its bytes.
pub(crate) struct SinkOf {
    pub(crate) end: AnyEnd,
    collector: Option<JoinHandle<Vec<u8>>>,
}

/// An end of a copy.
pub(crate) enum AnyEnd {
    File(File),
    Tcp(OwnedFd),
    Unix(OwnedFd),
    Pipe(OwnedFd),
    Memory(Vec<u8>),
    Through(Vec<u8>),
}

pub(crate) fn file_of(before: u64, bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, before).unwrap();
    file.seek(SeekFrom::Start(before)).unwrap();
    file
}

impl SourceOf {
    pub(crate) fn new(kind: Kind, bytes: Vec<u8>) -> Self {
        let (end, sender) = match kind {
            Kind::File => (AnyEnd::File(file_of(START, &bytes)), None),
            Tcp | Unix => {
                let is_tcp = kind == Tcp;
                let (socket, peer) = socket_pair(if is_tcp { Family::Tcp } else { Family::Unix });
                let end = if is_tcp { AnyEnd::Tcp } else { AnyEnd::Unix };
                (end(socket), Some(sending(peer, bytes)))
            }
            Pipe => {
                let (reader, writer) = std::io::pipe().unwrap();
                let writer = File::from(OwnedFd::from(writer));
                (AnyEnd::Pipe(reader.into()), Some(sending(writer, bytes)))
            }
            Memory => (AnyEnd::Memory(bytes), None),
            Kind::Through => (AnyEnd::Through(bytes), None),
        };
        Self { end, sender }
    }

    /// Waits for the sender, and checks where a file stands.
    fn finish(mut self, moved: usize) {
        if let AnyEnd::File(file) = &mut self.end {
            assert_eq!(file.stream_position().unwrap(), START + moved as u64);
        }
        drop(self.end);
        if let Some(sender) = self.sender {
            sender.join().unwrap();
        }
    }
}

impl SinkOf {
    pub(crate) fn new(kind: Kind) -> Self {
        fn collecting(mut reader: File) -> JoinHandle<Vec<u8>> {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).unwrap();
                bytes
            })
        }
        let (end, collector) = match kind {
            Kind::File => (AnyEnd::File(file_of(START, b"")), None),
            Tcp | Unix => {
                let is_tcp = kind == Tcp;
                let (socket, peer) = socket_pair(if is_tcp { Family::Tcp } else { Family::Unix });
                let end = if is_tcp { AnyEnd::Tcp } else { AnyEnd::Unix };
                (end(socket), Some(collecting(peer)))
            }
            Pipe => {
                let (reader, writer) = std::io::pipe().unwrap();
                let reader = File::from(OwnedFd::from(reader));
                (AnyEnd::Pipe(writer.into()), Some(collecting(reader)))
            }
            Memory => (AnyEnd::Memory(Vec::new()), None),
            Kind::Through => (AnyEnd::Through(Vec::new()), None),
        };
        Self { end, collector }
    }

    /// Returns the bytes that have arrived, and checks where a file stands.
    fn finish(self) -> Vec<u8> {
        match (self.end, self.collector) {
            (AnyEnd::File(mut file), _) => {
                let end = file.stream_position().unwrap();
                assert_eq!(end, file.metadata().unwrap().len().max(START));
                let mut bytes = vec![0; (end - START) as usize];
                file.read_exact_at(&mut bytes, START).unwrap();
                bytes
            }
            (AnyEnd::Memory(bytes) | AnyEnd::Through(bytes), _) => bytes,
            (end, collector) => {
                drop(end);
                collector.unwrap().join().unwrap()
            }
        }
    }
}

/// Copies with the given driver.
pub(crate) fn run(driver: Driver, source: &mut AnyEnd, sink: &mut AnyEnd) -> Result<Report, Error> {
    match driver {
        Driver::Blocking => blocking(source, sink),
        #[cfg(feature = "tokio")]
        Driver::Tokio => on_tokio::run(source, sink),
    }
}

fn blocking(source: &mut AnyEnd, sink: &mut AnyEnd) -> Result<Report, Error> {
    let mut slice: &[u8];
    let source: &mut dyn uncopied::CopySource = match source {
        AnyEnd::File(file) => file,
        AnyEnd::Tcp(fd) | AnyEnd::Unix(fd) | AnyEnd::Pipe(fd) => fd,
        AnyEnd::Memory(bytes) => {
            slice = bytes;
            &mut slice
        }
        AnyEnd::Through(bytes) => &mut Through(BufReader::new(&**bytes)),
    };
    match sink {
        AnyEnd::File(file) => uncopied::copy(source, file),
        AnyEnd::Tcp(fd) | AnyEnd::Unix(fd) | AnyEnd::Pipe(fd) => uncopied::copy(source, fd),
        AnyEnd::Memory(bytes) => uncopied::copy(source, bytes),
        AnyEnd::Through(bytes) => {
            let mut writer = std::io::BufWriter::new(bytes);
            let report = uncopied::copy(source, Through(&mut writer));
            writer.flush().unwrap();
            report
        }
    }
}

#[cfg(feature = "tokio")]
pub(crate) mod on_tokio {
    use super::*;
    use crate::harness::set_nonblocking;
    use tokio::net::unix::pipe;
    use tokio::net::{TcpStream, UnixStream};

    pub(super) fn tcp(fd: &OwnedFd) -> TcpStream {
        set_nonblocking(fd);
        TcpStream::from_std(fd.try_clone().unwrap().into()).unwrap()
    }

    fn unix(fd: &OwnedFd) -> UnixStream {
        set_nonblocking(fd);
        UnixStream::from_std(fd.try_clone().unwrap().into()).unwrap()
    }

    pub(super) fn run(source: &mut AnyEnd, sink: &mut AnyEnd) -> Result<Report, Error> {
        crate::harness::runtime().block_on(copy(source, sink))
    }

    pub(crate) async fn copy(source: &mut AnyEnd, sink: &mut AnyEnd) -> Result<Report, Error> {
        let mut slice: &[u8];
        let source: &mut dyn uncopied::tokio::CopySource = match source {
            AnyEnd::File(file) => file,
            AnyEnd::Tcp(fd) => &mut tcp(fd),
            AnyEnd::Unix(fd) => &mut unix(fd),
            AnyEnd::Pipe(fd) => {
                &mut pipe::Receiver::from_owned_fd(fd.try_clone().unwrap()).unwrap()
            }
            AnyEnd::Memory(bytes) => {
                slice = bytes;
                &mut slice
            }
            AnyEnd::Through(bytes) => &mut Through(tokio::io::BufReader::new(&**bytes)),
        };
        match sink {
            AnyEnd::File(file) => uncopied::tokio::copy(source, file).await,
            AnyEnd::Tcp(fd) => uncopied::tokio::copy(source, &mut tcp(fd)).await,
            AnyEnd::Unix(fd) => uncopied::tokio::copy(source, &mut unix(fd)).await,
            AnyEnd::Pipe(fd) => {
                let mut pipe = pipe::Sender::from_owned_fd(fd.try_clone().unwrap()).unwrap();
                uncopied::tokio::copy(source, &mut pipe).await
            }
            AnyEnd::Memory(bytes) => uncopied::tokio::copy(source, bytes).await,
            // The copy flushes the writer.
            AnyEnd::Through(bytes) => {
                let mut writer = tokio::io::BufWriter::new(bytes);
                uncopied::tokio::copy(source, Through(&mut writer)).await
            }
        }
    }
}

/// Returns the mechanism that moves the bytes of this pair, if there is only one.
fn mechanism(from: Kind, to: Kind) -> Option<Mechanism> {
    let is_socket = |kind| matches!(kind, Tcp | Unix);
    match (from, to) {
        (Memory | Kind::Through, _) | (_, Memory | Kind::Through) => Some(Mechanism::Copy),
        (Kind::File, Kind::File) => Some(Mechanism::CopyFileRange),
        (Kind::File, Tcp | Unix) => Some(Mechanism::Sendfile),
        // Small messages are copied.
        (from, to) if is_socket(from) && is_socket(to) => None,
        _ => Some(Mechanism::Splice),
    }
}

#[test]
fn every_byte_arrives_between_any_two_ends() {
    let boundaries = [4 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, 2 * MIB];
    let around = boundaries.map(|size| [size - 1, size, size + 1]);
    for size in [0, 1].into_iter().chain(around.into_iter().flatten()) {
        let bytes = pattern(size);
        for (from, to) in KINDS.iter().flat_map(|from| KINDS.map(|to| (*from, to))) {
            for &driver in DRIVERS {
                let case = format!("{size} bytes from {from:?} to {to:?}, {driver:?}");
                let mut source = SourceOf::new(from, bytes.clone());
                let mut sink = SinkOf::new(to);
                let report = run(driver, &mut source.end, &mut sink.end).expect(&case);
                assert_eq!(report.bytes(), size as u64, "{case}: {report}");
                assert!(report.fallbacks().is_empty(), "{case}: {report}");
                if let Some(mechanism) = mechanism(from, to) {
                    assert_eq!(report.by(mechanism), size as u64, "{case}: {report}");
                }
                if to == Kind::File {
                    assert_eq!(report.zero_copy_bytes(), 0, "files copy: {report}");
                }
                source.finish(size);
                assert!(sink.finish() == bytes, "{case}: other bytes arrived");
            }
        }
    }
}

/// Two file systems do not share blocks, so `copy_file_range` is refused.
#[test]
fn files_of_two_file_systems_are_copied_by_the_kernel() {
    let name = "copies::files_of_two_file_systems_are_copied_by_the_kernel";
    let in_memory = tempfile::tempfile_in("/dev/shm").ok();
    let device = |file: &File| rustix::fs::fstat(file).unwrap().st_dev;
    let here = file_of(0, &pattern(3 * MIB));
    let Some(in_memory) = in_memory.filter(|file| device(file) != device(&here)) else {
        return skip(
            name,
            "needs two file systems: /dev/shm and the temporary folder",
        );
    };
    for &driver in DRIVERS {
        let [mut source, mut sink] = [&here, &in_memory].map(|file| {
            let mut file = file.try_clone().unwrap();
            file.rewind().unwrap();
            AnyEnd::File(file)
        });
        in_memory.set_len(0).unwrap();
        let report = run(driver, &mut source, &mut sink).unwrap();
        assert_eq!(report.by(Mechanism::Sendfile), 3 * MIB as u64, "{report}");
        assert_eq!(report.copied_bytes(), 3 * MIB as u64, "{report}");
        let fallback = report.fallbacks()[0];
        assert_eq!(
            fallback.errno,
            uncopied::Errno::from_raw_os_error(libc::EXDEV)
        );
        let mut written = vec![0; 3 * MIB];
        in_memory.read_exact_at(&mut written, 0).unwrap();
        assert!(written == pattern(3 * MIB), "{driver:?}");
    }
}

/// What callers of `std::io::copy` pass, with nothing changed but the name of the function.
#[test]
#[allow(clippy::needless_borrows_for_generic_args)] // That is what callers of std have to write.
fn the_arguments_are_those_of_std() {
    let bytes = pattern(100_000);
    let (socket, mut peer) = socket_pair(Family::Tcp);
    let mut socket = std::net::TcpStream::from(socket);
    let mut file = file_of(0, &bytes);
    uncopied::copy(&mut file, &mut socket).unwrap();
    file.rewind().unwrap();
    uncopied::copy(&file, &socket).unwrap();
    let (file, socket) = (Arc::new(file), Arc::new(socket));
    file.as_ref().rewind().unwrap();
    uncopied::copy(&file, &socket).unwrap();
    let mut slice = &bytes[..];
    uncopied::copy(&mut slice, &*socket).unwrap();
    assert!(slice.is_empty(), "what was copied is removed");
    uncopied::copy(Cursor::new(&bytes), &*socket).unwrap();
    let mut owned = Bytes::from(bytes.clone());
    uncopied::copy(&mut owned, socket.as_fd()).unwrap();
    assert!(owned.is_empty(), "what was copied is removed");
    for _ in 0..6 {
        expect_bytes(&mut peer, &bytes);
    }
    drop(socket);
    expect_eof(&mut peer);
}

#[test]
fn the_output_of_a_child_is_copied() {
    let bytes = pattern(300_000);
    let mut cat = std::process::Command::new("cat")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
    let file = file_of(0, &bytes);
    let feeding = thread::spawn(move || uncopied::copy(&file, &mut input).unwrap());
    let mut sink = file_of(0, b"");
    let report = uncopied::copy(&mut output, &mut sink).unwrap();
    assert_eq!(report.by(Mechanism::Splice), bytes.len() as u64, "{report}");
    assert_eq!(
        feeding.join().unwrap().zero_copy_bytes(),
        bytes.len() as u64
    );
    let mut written = vec![0; bytes.len()];
    sink.read_exact_at(&mut written, 0).unwrap();
    assert!(written == bytes);
    assert!(cat.wait().unwrap().success());
}

/// A blocking copy waits for ends that are non-blocking.
#[test]
fn nonblocking_ends_are_waited_for() {
    for (from, to) in [
        (Pipe, Pipe),
        (Pipe, Tcp),
        (Pipe, Kind::File),
        (Pipe, Memory),
    ] {
        let bytes = pattern(3 * MIB);
        let mut source = SourceOf::new(from, bytes.clone());
        let mut sink = SinkOf::new(to);
        for end in [&source.end, &sink.end] {
            if let AnyEnd::Pipe(fd) | AnyEnd::Tcp(fd) = end {
                rustix::io::ioctl_fionbio(fd, true).unwrap();
            }
        }
        blocking(&mut source.end, &mut sink.end).unwrap();
        source.finish(bytes.len());
        assert!(sink.finish() == bytes, "{from:?} to {to:?}");
    }
}

/// A file that was opened with `O_APPEND` is written to at its end.
#[test]
fn bytes_are_appended() {
    for from in KINDS {
        for &driver in DRIVERS {
            let path = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(path.path(), b"before").unwrap();
            let file = OpenOptions::new().append(true).open(path.path()).unwrap();
            let mut source = SourceOf::new(from, pattern(300_000));
            run(driver, &mut source.end, &mut AnyEnd::File(file)).unwrap();
            source.finish(300_000);
            let written = std::fs::read(path.path()).unwrap();
            assert_eq!(&written[..6], b"before", "{from:?}");
            assert!(written[6..] == pattern(300_000), "{from:?}, {driver:?}");
        }
    }
}

/// Files of procfs have contents, but no size. `copy_file_range` and `sendfile` find nothing there.
#[test]
fn files_without_a_size_are_read_to_their_end() {
    let path = "/proc/filesystems";
    let expected = std::fs::read(path).unwrap();
    for to in KINDS {
        for &driver in DRIVERS {
            let mut sink = SinkOf::new(to);
            let mut source = AnyEnd::File(File::open(path).unwrap());
            let report = run(driver, &mut source, &mut sink.end).unwrap();
            assert_eq!(
                report.by(Mechanism::Copy),
                expected.len() as u64,
                "{report}"
            );
            assert!(sink.finish() == expected, "{to:?}, {driver:?}");
        }
    }
}

#[test]
fn devices_can_be_ends() {
    for kind in KINDS {
        for &driver in DRIVERS {
            let null = || {
                let mut options = OpenOptions::new();
                AnyEnd::File(options.read(true).write(true).open("/dev/null").unwrap())
            };
            let mut source = SourceOf::new(kind, pattern(MIB));
            let report = run(driver, &mut source.end, &mut null()).unwrap();
            assert_eq!(report.bytes(), MIB as u64, "{kind:?}: {report}");
            source.finish(MIB);
            let mut sink = SinkOf::new(kind);
            let report = run(driver, &mut null(), &mut sink.end).unwrap();
            assert_eq!((report.bytes(), sink.finish().len()), (0, 0), "{kind:?}");
        }
    }
}

/// `std::io::copy` would never end.
#[test]
fn a_file_is_appended_to_itself_once() {
    for size in [0, 1, 5_000, 600_000] {
        for &driver in DRIVERS {
            let path = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(path.path(), pattern(size)).unwrap();
            let open = |options: &mut OpenOptions| options.open(path.path()).unwrap();
            let mut appended = open(OpenOptions::new().append(true));
            let mut at_end = open(OpenOptions::new().write(true));
            at_end.seek(SeekFrom::End(0)).unwrap();
            for (nth, sink) in [at_end, appended.try_clone().unwrap()]
                .into_iter()
                .enumerate()
            {
                let before = size << nth;
                let mut source = AnyEnd::File(open(OpenOptions::new().read(true)));
                let report = run(driver, &mut source, &mut AnyEnd::File(sink)).unwrap();
                assert_eq!(report.bytes(), before as u64, "{report}");
                let written = std::fs::read(path.path()).unwrap();
                assert_eq!(written.len(), 2 * before);
                assert!(written[..before] == written[before..]);
            }
            appended.flush().unwrap();
        }
    }
}

/// A buffered reader has bytes that its file does not.
#[test]
fn what_a_reader_has_read_ahead_is_not_lost() {
    for to in KINDS {
        let bytes = pattern(200_000);
        let mut reader = BufReader::new(file_of(0, &bytes));
        reader.read_exact(&mut [0; 100]).unwrap();
        let mut sink = SinkOf::new(to);
        let through = Through(&mut reader);
        match &mut sink.end {
            AnyEnd::File(file) => uncopied::copy(through, file),
            AnyEnd::Tcp(fd) | AnyEnd::Unix(fd) | AnyEnd::Pipe(fd) => uncopied::copy(through, fd),
            AnyEnd::Memory(bytes) | AnyEnd::Through(bytes) => uncopied::copy(through, bytes),
        }
        .unwrap();
        assert!(sink.finish() == bytes[100..], "{to:?}");
    }
}

#[test]
fn while_zero_copy_is_off_every_byte_is_copied() {
    in_child(
        "copies::while_zero_copy_is_off_every_byte_is_copied",
        |_| {},
        || {
            uncopied::set_zero_copy_send(false);
            uncopied::set_zero_copy_receive(false);
            for (from, to) in KINDS.iter().flat_map(|from| KINDS.map(|to| (*from, to))) {
                for &driver in DRIVERS {
                    let mut source = SourceOf::new(from, pattern(MIB));
                    let mut sink = SinkOf::new(to);
                    let report = run(driver, &mut source.end, &mut sink.end).unwrap();
                    let case = format!("{from:?} to {to:?}, {driver:?}: {report}");
                    assert_eq!(report.by(Mechanism::Copy), MIB as u64, "{case}");
                    let is_through = |kind| matches!(kind, Memory | Kind::Through);
                    let has_choice = !is_through(from) && !is_through(to);
                    assert_eq!(report.switched_off(), has_choice, "{case}");
                    source.finish(MIB);
                    assert!(sink.finish() == pattern(MIB), "{case}");
                }
            }
        },
    );
}

/// A file of tokio reads ahead.
#[cfg(feature = "tokio")]
#[test]
fn a_file_of_tokio_is_copied_from_where_its_user_is() {
    use tokio::io::{AsyncReadExt, AsyncSeekExt};
    let bytes = pattern(3 * MIB);
    for to in [Kind::File, Tcp, Memory] {
        crate::harness::runtime().block_on(async {
            let mut source = tokio::fs::File::from_std(file_of(0, &bytes));
            source.read_exact(&mut [0; 1000]).await.unwrap();
            let mut sink = SinkOf::new(to);
            let report = match &mut sink.end {
                AnyEnd::File(file) => uncopied::tokio::copy(&mut source, file).await,
                AnyEnd::Tcp(fd) => uncopied::tokio::copy(&mut source, &on_tokio::tcp(fd)).await,
                AnyEnd::Memory(bytes) => uncopied::tokio::copy(&mut source, bytes).await,
                _ => panic!("{to:?}"),
            };
            assert_eq!(report.unwrap().bytes(), bytes.len() as u64 - 1000);
            assert_eq!(source.stream_position().await.unwrap(), bytes.len() as u64);
            assert!(sink.finish() == bytes[1000..], "{to:?}");
        });
    }
}

/// A file of tokio writes later.
#[cfg(feature = "tokio")]
#[test]
fn a_file_of_tokio_is_written_to_where_its_user_is() {
    use tokio::io::AsyncWriteExt;
    let bytes = pattern(3 * MIB);
    for from in [Kind::File, Tcp, Memory] {
        crate::harness::runtime().block_on(async {
            let written = file_of(0, b"");
            let mut sink = tokio::fs::File::from_std(written.try_clone().unwrap());
            sink.write_all(b"head").await.unwrap();
            let mut source = SourceOf::new(from, bytes.clone());
            let report = match &mut source.end {
                AnyEnd::File(file) => uncopied::tokio::copy(&*file, &mut sink).await,
                AnyEnd::Tcp(fd) => uncopied::tokio::copy(on_tokio::tcp(fd), &mut sink).await,
                AnyEnd::Memory(bytes) => uncopied::tokio::copy(&mut &bytes[..], &mut sink).await,
                _ => panic!("{from:?}"),
            };
            assert_eq!(report.unwrap().bytes(), bytes.len() as u64);
            sink.write_all(b"tail").await.unwrap();
            sink.flush().await.unwrap();
            let mut found = vec![0; bytes.len() + 8];
            written.read_exact_at(&mut found, 0).unwrap();
            let (head, rest) = found.split_at(4);
            let (middle, tail) = rest.split_at(bytes.len());
            assert_eq!((head, tail), (&b"head"[..], &b"tail"[..]), "{from:?}");
            assert!(middle == bytes, "{from:?}");
        });
    }
}

/// A FIFO that was opened as a file of std may make a thread wait. The event loop must not: the
/// task that writes to the FIFO runs on it.
#[cfg(feature = "tokio")]
#[test]
fn a_fifo_does_not_stop_the_event_loop() {
    use tokio::io::AsyncWriteExt;
    use tokio::net::unix::pipe;
    for to in KINDS {
        crate::harness::runtime().block_on(async {
            let (reader, writer) = std::io::pipe().unwrap();
            let mut sink = SinkOf::new(to);
            let mut source = AnyEnd::File(File::from(OwnedFd::from(reader)));
            let copying = on_tokio::copy(&mut source, &mut sink.end);
            let writing = tokio::spawn(async move {
                let mut writer = pipe::Sender::from_owned_fd(writer.into()).unwrap();
                for piece in pattern(300_000).chunks(9_001) {
                    tokio::task::yield_now().await;
                    writer.write_all(piece).await.unwrap();
                }
            });
            assert_eq!(copying.await.unwrap().bytes(), 300_000);
            writing.await.unwrap();
            assert!(sink.finish() == pattern(300_000), "{to:?}");
        });
    }
}

/// A peer that waits for what was written before it sends more gets it, although the writer
/// buffers. The copy runs in a task of its own, so its future can be sent to another thread.
#[cfg(feature = "tokio")]
#[test]
fn a_writer_is_flushed_while_the_source_has_no_bytes() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter, duplex};
    crate::harness::runtime().block_on(async {
        let (mut request, source) = duplex(64);
        let (sink, mut response) = duplex(64);
        let copying = tokio::spawn(async move {
            uncopied::tokio::copy(Through(source), Through(BufWriter::new(sink))).await
        });
        for _ in 0..3 {
            request.write_all(b"ping").await.unwrap();
            let mut echoed = [0; 4];
            response.read_exact(&mut echoed).await.unwrap();
            assert_eq!(&echoed, b"ping");
        }
        drop(request);
        assert_eq!(copying.await.unwrap().unwrap().bytes(), 12);
    });
}

/// The futures of copies between descriptors can be sent to another thread.
#[cfg(feature = "tokio")]
#[test]
fn a_copy_can_be_a_task() {
    crate::harness::runtime().block_on(async {
        let (socket, mut peer) = socket_pair(Family::Tcp);
        let socket = on_tokio::tcp(&socket);
        let copying = tokio::spawn(async move {
            let file = tokio::fs::File::from_std(file_of(0, b"from a file"));
            uncopied::tokio::copy(file, &socket).await.unwrap();
            uncopied::tokio::copy(&b", and from memory"[..], socket).await
        });
        copying.await.unwrap().unwrap();
        expect_bytes(&mut peer, b"from a file, and from memory");
    });
}

/// The halves of a split socket are ends of their own.
#[cfg(feature = "tokio")]
#[test]
fn halves_of_sockets_are_copied() {
    for family in crate::harness::FAMILIES {
        crate::harness::runtime().block_on(async {
            let (socket, mut peer) = socket_pair(family);
            peer.write_all(b"there and back").unwrap();
            rustix::net::shutdown(&peer, rustix::net::Shutdown::Write).unwrap();
            crate::harness::set_nonblocking(&socket);
            match family {
                Family::Tcp => {
                    let socket = tokio::net::TcpStream::from_std(socket.into()).unwrap();
                    let (mut reader, mut writer) = socket.into_split();
                    uncopied::tokio::copy(&mut reader, &mut writer)
                        .await
                        .unwrap();
                }
                Family::Unix => {
                    let mut socket = tokio::net::UnixStream::from_std(socket.into()).unwrap();
                    let (reader, writer) = socket.split();
                    uncopied::tokio::copy(reader, writer).await.unwrap();
                }
            }
            expect_bytes(&mut peer, b"there and back");
            expect_eof(&mut peer);
        });
    }
}
