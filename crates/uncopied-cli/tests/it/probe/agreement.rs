//! What the probe says is what the library finds out.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;

use uncopied::arena::{PageBuffer, Protection, Region};
use uncopied::interface::{HeaderSplit, Interface, Offload};
use uncopied::zcrx::{Builder, Cause};
use uncopied::{
    FreeReason, Mechanism, PagePayload, ReceiveOptions, Receiver, SendFile, SendOptions,
    SendOutcome, Sender,
};

use super::{probe, row, status};

const BYTES: usize = 256 << 10;

/// Runs `send` with one end of a connection, while the other end is read, and returns its result.
fn send_over<T>(send: impl FnOnce(TcpStream) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut far = listener.accept().unwrap().0;
    thread::scope(|scope| {
        scope.spawn(move || far.read_to_end(&mut Vec::new()).unwrap());
        send(near)
    })
}

/// Sends memory with this mechanism alone. Returns `None` if it is refused.
fn send_memory(mechanism: Mechanism) -> Option<SendOutcome> {
    let buffer = PageBuffer::copy_from_slice(&[7; BYTES]).unwrap();
    let pages = match mechanism {
        Mechanism::Vmsplice => buffer.freeze_permanently(),
        _ => buffer.freeze(),
    };
    let options = SendOptions::default();
    let options = options.force_mechanisms(&[mechanism, Mechanism::Copy]);
    send_over(|socket| {
        let sent = Sender::with(socket, options).send(pages).unwrap();
        let is_used = sent.report().by(mechanism) > 0;
        is_used.then(|| sent.completion().wait(None).unwrap())
    })
}

/// Whether a network interface other than `lo`, which is up, has scatter-gather off.
fn lacks_gathering() -> bool {
    let interfaces = Interface::all().unwrap();
    let mut cards = interfaces.iter().filter(|it| it.is_up && !it.is_loopback);
    cards.any(|it| it.offloads.unwrap().scatter_gather != Offload::On)
}

#[test]
fn files() {
    let probe = probe(&[]);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[1; BYTES]).unwrap();
    for (key, mechanism) in [
        ("copy", Mechanism::Copy),
        ("mmap_write", Mechanism::MmapWrite),
        ("sendfile", Mechanism::Sendfile),
        ("splice", Mechanism::Splice),
    ] {
        let works = send_over(|socket| {
            let file = SendFile::new(&file).range(..BYTES as u64);
            let forced = file.force_mechanisms(&[mechanism, Mechanism::Copy]);
            forced.to(&socket).unwrap().by(mechanism) == BYTES as u64
        });
        let expected = match (works, lacks_gathering() && mechanism.is_zero_copy()) {
            (false, _) => "no",
            (true, true) => "partly",
            (true, false) => "yes",
        };
        assert_eq!(status(&probe, key), expected, "{:#}", row(&probe, key));
    }
}

#[test]
fn memory_and_its_completions() {
    let probe = probe(&[]);
    let mut is_notified = false;
    for (key, mechanism) in [
        ("vmsplice", Mechanism::Vmsplice),
        ("msg_zerocopy", Mechanism::MsgZerocopy),
        ("send_zc", Mechanism::SendZc),
    ] {
        let outcome = send_memory(mechanism);
        let expected = match outcome {
            None => "no",
            Some(outcome) if outcome.copied > 0 || lacks_gathering() => "partly",
            Some(_) => "yes",
        };
        is_notified |= outcome.is_some_and(|it| it.reason == FreeReason::Notification);
        let row = row(&probe, key);
        assert_eq!(row["status"], expected, "{row:#}");
        if outcome.is_some_and(|it| it.copied > 0) {
            // A copy by the kernel is never called anything else.
            let why = row["why"].as_str().unwrap();
            assert!(why.contains("the kernel copied 65536 of them"), "{why}");
        }
    }
    let expected = if is_notified { "yes" } else { "partly" };
    assert_eq!(status(&probe, "completions"), expected);
}

#[test]
fn regions() {
    let probe = probe(&[]);
    let (region, _) = Region::new(BYTES).unwrap();
    let is_sent = send_memory(Mechanism::Vmsplice).is_some();
    let expected = match region.protection() {
        Ok(Protection::AllWrites) if is_sent && region.is_huge() => "yes",
        Ok(_) if is_sent => "partly",
        _ => "no",
    };
    let row = row(&probe, "copy_on_write");
    assert_eq!(row["status"], expected, "{row:#}");
    if expected != "no" {
        let why = row["why"].as_str().unwrap();
        assert!(why.contains("65536 bytes were copied on write"), "{why}");
    }
}

/// Mapping over loopback depends on the peer. The rest depends on the card.
#[test]
fn receiving() {
    let probe = probe(&[]);
    let listener = PagePayload::new(1).unwrap().bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let options = ReceiveOptions::default();
    let options = options.force_mechanisms(&[Mechanism::MapReceive, Mechanism::Copy]);
    let mut receiver = Receiver::with(listener.accept().unwrap().0, options);
    let sending = thread::spawn(move || {
        let options = SendOptions::default();
        let options = options.force_mechanisms(&[Mechanism::MsgZerocopy, Mechanism::Copy]);
        let buffer = PageBuffer::copy_from_slice(&[7; 1 << 20]).unwrap();
        Sender::with(near, options).send(buffer.freeze()).unwrap();
    });
    while receiver.receive().unwrap().is_some() {}
    sending.join().unwrap();
    let maps = receiver.report().by(Mechanism::MapReceive) > 0;

    let interfaces = Interface::all().unwrap();
    let cards: Vec<_> = interfaces
        .iter()
        .filter(|it| it.is_up && !it.is_loopback)
        .collect();
    let splits = cards.iter().any(|it| it.header_split == HeaderSplit::On);
    assert_eq!(status(&probe, "header_split") != "no", splits);
    let map_receive = status(&probe, "map_receive");
    assert_eq!(map_receive != "no", maps);
    assert!(map_receive != "yes" || splits);

    // The number of a queue that does not exist, so that no connection is disturbed.
    let has_driver = cards.iter().any(|card| {
        let queue = card.rx_queues.unwrap_or(1 << 16);
        let refusal = Builder::for_interface(&card.name, queue).register::<TcpStream>();
        refusal.is_err_and(|refusal| refusal.cause() == Cause::NoSuchQueue)
    });
    let has_copying_queue = Builder::without_device().register::<TcpStream>().is_ok();
    let zcrx = status(&probe, "zcrx");
    assert_eq!(zcrx != "no", has_driver || has_copying_queue);
    assert_ne!(zcrx, "yes", "no queue was registered");
}

#[test]
fn the_rule_about_pages_and_the_switches() {
    let probe = probe(&[]);
    let is_sent = send_memory(Mechanism::Vmsplice).is_some();
    let expected = if is_sent { "yes" } else { "partly" };
    assert_eq!(status(&probe, "page_alignment"), expected);
    assert_eq!(status(&probe, "switches"), "yes");
}

/// The probe loads no module for an ordinary user. For root the kernel may.
#[test]
fn kernel_tls() {
    let tls = probe(&[]);
    let protocols = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp").unwrap();
    let has_tls = protocols.split_whitespace().any(|name| name == "tls");
    let row = row(&tls, "kernel_tls");
    // A socket may have it although the ciphers are missing.
    assert!(has_tls || row["status"] == "no", "{row:#}");
    let is_attached = !row["why"].as_str().unwrap().contains("cannot have it");
    assert_eq!(is_attached, has_tls, "{row:#}");
    let is_loaded = File::open("/proc/net/tls_stat").is_ok();
    let settings = tls["settings"].as_array().unwrap();
    let module = settings.iter().find(|it| it["name"] == "module tls");
    assert_eq!(module.unwrap()["value"] != "not loaded", is_loaded);
}
