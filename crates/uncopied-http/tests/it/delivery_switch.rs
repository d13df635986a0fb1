//! Zero-copy sending switched off: every byte is copied, counted as copied, and right.

use std::sync::Arc;

use uncopied::Mechanism;

use crate::delivery_rig::{Files, Plan, Server, Stack, assert_same, in_own_process, runtime, soon};

const SIZES: [usize; 4] = [1, 5000, 70_001, 3_000_000];

/// The bytes sent by something else than `copy`, and by `copy`, for every file in every mode.
async fn send_all(mechanisms: &[Mechanism]) -> (u64, u64) {
    let files = Files::of(&SIZES);
    let (mut zero_copy, mut copied) = (0, 0);
    for stack in [Stack::Http1, Stack::Axum] {
        let answering = Arc::clone(&files);
        let plan = Plan {
            stack,
            mechanisms,
            ..Plan::default()
        };
        let server = Server::start(&plan, move |parts| answering.answer(parts));
        let mut client = server.connect().await;
        for mode in ["default", "direct", "read"] {
            for (at, content) in files.contents.iter().enumerate() {
                let body = soon(client.get(&format!("/{at}/{mode}"))).await;
                assert_same(&body, content, &format!("{stack:?} {mode} {at}"));
            }
        }
        for mechanism in Mechanism::FILE_TO_SOCKET {
            let bytes = server.totals.bytes(mechanism);
            match mechanism {
                Mechanism::Copy => copied += bytes,
                _ => zero_copy += bytes,
            }
        }
    }
    (zero_copy, copied)
}

fn all_is_copied(mechanisms: &[Mechanism]) {
    let (zero_copy, copied) = runtime().block_on(send_all(mechanisms));
    let bodies = 6 * SIZES.iter().sum::<usize>() as u64;
    assert_eq!(zero_copy, 0);
    assert!(copied > bodies && copied < bodies + 24 * 200, "{copied}");
}

#[test]
fn by_the_environment() {
    let off = [("UNCOPIED_SEND", "off")];
    in_own_process("delivery_switch::by_the_environment", &off, || {
        all_is_copied(&[]);
        all_is_copied(&[Mechanism::Splice, Mechanism::MmapWrite]);
    });
}

#[test]
fn by_a_call_and_back() {
    in_own_process("delivery_switch::by_a_call_and_back", &[], || {
        let on = runtime().block_on(send_all(&[]));
        assert!(on.0 > on.1);
        uncopied::set_zero_copy_send(false);
        all_is_copied(&[]);
        uncopied::set_zero_copy_send(true);
        assert_eq!(runtime().block_on(send_all(&[])), on);
    });
}
