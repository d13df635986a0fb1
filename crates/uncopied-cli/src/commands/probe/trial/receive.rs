//! Receiving into memory.

use std::thread;

use uncopied::{
    MapObstacle, Mechanism, PagePayload, ReceiveOptions, Receiver, SendOptions, Sender,
    arena::PageBuffer, set_zero_copy_receive, zero_copy_receive_enabled,
};

use super::{Refusal, connect_to, forced, no_thread, of_error, pattern, wrong_bytes};

/// How many bytes are received: enough for a connection to send full packets.
const RECEIVED_BYTES: usize = 1 << 20;

/// What was received.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Received {
    pub(in super::super) bytes: u64,
    /// How many of them were mapped.
    pub(in super::super) mapped: u64,
    pub(in super::super) obstacle: Option<MapObstacle>,
}

/// Receives 1 MiB over loopback by mapping, with payloads of whole pages. The peer sends with
/// `MSG_ZEROCOPY`, because the kernel then puts the bytes into pages that can be mapped.
pub(in super::super) fn map() -> Result<Received, Refusal> {
    let payload = PagePayload::new(1);
    let listener = payload.and_then(|payload| payload.bind("127.0.0.1:0"));
    let (near, far) = connect_to(listener)?;
    let bytes = pattern(7, RECEIVED_BYTES);
    let buffer = PageBuffer::copy_from_slice(&bytes);
    let buffer = buffer.map_err(|error| Refusal::Other(format!("no memory: {error}")))?;
    let options = ReceiveOptions::default();
    let options = options.force_mechanisms(forced(Mechanism::MapReceive).mechanisms());
    let mut receiver = Receiver::with(far, options);
    thread::scope(|scope| {
        let sending = thread::Builder::new().spawn_scoped(scope, move || {
            let options = SendOptions::default();
            let options = options.force_mechanisms(forced(Mechanism::MsgZerocopy).mechanisms());
            // If this fails, fewer bytes arrive.
            let _ = Sender::with(near, options).send(buffer.freeze());
        });
        sending.map_err(no_thread)?;
        let mut at = 0;
        while at < bytes.len() {
            match receiver.receive() {
                Ok(Some(chunk)) => {
                    let end = at + chunk.len();
                    if bytes.get(at..end) != Some(&chunk.to_vec()[..]) {
                        return Err(wrong_bytes());
                    }
                    at = end;
                }
                Ok(None) => return Err(wrong_bytes()),
                Err(error) => return Err(of_error(&error)),
            }
        }
        let report = receiver.report();
        Ok(Received {
            bytes: report.bytes(),
            mapped: report.by(Mechanism::MapReceive),
            obstacle: receiver.map_obstacle(),
        })
    })
}

/// Switches zero-copy receiving off and on again. Returns whether bytes were copied meanwhile.
pub(in super::super) fn receive_switch_works() -> Result<bool, Refusal> {
    let before = zero_copy_receive_enabled();
    set_zero_copy_receive(false);
    let off = map();
    set_zero_copy_receive(true);
    let on = map();
    set_zero_copy_receive(before);
    let off = off?;
    let is_off = off.mapped == 0 && off.obstacle == Some(MapObstacle::SwitchedOff);
    Ok(is_off && on?.obstacle != Some(MapObstacle::SwitchedOff))
}
