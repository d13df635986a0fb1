//! Any faults, anywhere, in any plan: what arrives is exact.

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

/// What a mechanism survives, by trying again or by giving way to the next.
const SURVIVED: [Errno; 5] = [
    Errno::INTR,
    Errno::AGAIN,
    Errno::INVAL,
    Errno::OPNOTSUPP,
    Errno::NOMEM,
];

fn rule() -> impl Strategy<Value = FaultRule> {
    let call = prop::sample::select(&CALLS[..]);
    let errno = prop::sample::select(&SURVIVED[..]);
    (call, 0_usize..40, 1_usize..4, errno).prop_map(|(call, nth, times, errno)| {
        FaultRule::during(call, nth..nth + times, Fault::Fails(errno))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// `Bench::step` compares all that has arrived after each step; here the end is checked.
    #[test]
    fn whatever_fails_the_bytes_are_exact(
        rules in prop::collection::vec(rule(), 0..8),
        plan in Just(Mechanism::FILE_TO_SOCKET.to_vec()).prop_shuffle(),
        mechanisms in 1..=Mechanism::FILE_TO_SOCKET.len(),
        at_most in 1_000_usize..60_000,
        narrow in any::<bool>(),
        size in 0_u64..150_000,
        offset in 0_u64..160_000,
        length in prop::option::of(0_u64..160_000),
    ) {
        let kernel = Faulty::new(rules).at_most(at_most);
        let kernel = if narrow { kernel.narrow_pipes(16 << 10) } else { kernel };
        let left = size.saturating_sub(offset);
        let (length, owed) = match length {
            Some(length) => (Length::Exact(length), length),
            None => (Length::UntilEof, left),
        };
        let mut bench = Bench::of(content(size), offset, length, &plan[..mechanisms]);
        let result = bench.run(&kernel);
        let arrived = bench.received.len() as u64;
        prop_assert!(arrived <= owed);
        match result {
            Ok(()) => prop_assert_eq!(arrived, owed),
            Err(error) => {
                prop_assert_eq!(error.moved(), arrived);
                if let ErrorKind::SourceTooShort { promised } = error.kind() {
                    prop_assert_eq!((promised, arrived), (owed, left));
                }
            }
        }
    }
}
