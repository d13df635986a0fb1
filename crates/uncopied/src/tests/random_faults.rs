//! Injects random faults into random calls of random plans, and checks that exactly the right bytes
//! arrive.

use proptest::prelude::*;
use rustix::io::Errno;

use super::*;
use crate::error::ErrorKind;

const CALLS: [Call; 10] = [
    Call::Sendfile,
    Call::Pipe,
    Call::ResizePipe,
    Call::SpliceIn,
    Call::SpliceOut,
    Call::Size,
    Call::Map,
    Call::SendMapped,
    Call::ReadAt,
    Call::Send,
];

/// Errors after which a transfer continues, with a retry or a fallback.
const SURVIVABLE: [Errno; 5] = [
    Errno::INTR,
    Errno::AGAIN,
    Errno::INVAL,
    Errno::OPNOTSUPP,
    Errno::NOMEM,
];

fn any_fault() -> impl Strategy<Value = FaultRule> {
    let call = prop::sample::select(&CALLS[..]);
    let errno = prop::sample::select(&SURVIVABLE[..]);
    (call, 0_usize..40, 1_usize..4, errno).prop_map(|(call, nth, times, errno)| {
        FaultRule::during(call, nth..nth + times, Fault::Fails(errno))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// `TransferHarness::step` checks the bytes after each step, so this test checks only how the
    /// transfer ends.
    #[test]
    fn the_bytes_are_exact_after_any_faults(
        rules in prop::collection::vec(any_fault(), 0..8),
        plan in Just(Mechanism::FILE_TO_SOCKET.to_vec()).prop_shuffle(),
        plan_len in 1..=Mechanism::FILE_TO_SOCKET.len(),
        max_bytes_per_call in 1_000_usize..60_000,
        small_pipes in any::<bool>(),
        size in 0_u64..150_000,
        offset in 0_u64..160_000,
        length in prop::option::of(0_u64..160_000),
    ) {
        let kernel = FaultyKernel::new(rules).max_bytes_per_call(max_bytes_per_call);
        let kernel = if small_pipes { kernel.pipe_capacity(16 << 10) } else { kernel };
        let available = size.saturating_sub(offset);
        let (length, expected) = match length {
            Some(length) => (Length::Exact(length), length),
            None => (Length::UntilEof, available),
        };
        let plan = &plan[..plan_len];
        let mut harness = TransferHarness::with_file(pattern(size), offset, length, plan);
        let result = harness.run(&kernel);
        let received = harness.received.len() as u64;
        prop_assert!(received <= expected);
        match result {
            Ok(()) => prop_assert_eq!(received, expected),
            Err(error) => {
                prop_assert_eq!(error.moved(), received);
                if let ErrorKind::SourceTooShort { promised } = error.kind() {
                    prop_assert_eq!((promised, received), (expected, available));
                }
            }
        }
    }
}
