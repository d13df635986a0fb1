//! While zero-copy sends are switched off, every byte must be copied, the totals must show that,
//! and the responses must stay the same.

use std::sync::Arc;

use uncopied::Mechanism;

use crate::delivery_harness::{
    Files, ServerConfig, Stack, TestServer, assert_same, in_own_process, runtime,
    sent_with_sendfile, with_timeout,
};

const FILE_SIZES: [usize; 4] = [1, 5000, 70_001, 3_000_000];

/// Sends every file in every mode. Returns how many bytes were sent with mechanisms other than
/// `copy`, and how many with `copy`.
async fn send_all(mechanisms: &[Mechanism]) -> (u64, u64) {
    let files = Files::of(&FILE_SIZES);
    let (mut zero_copy, mut copied) = (0, 0);
    for stack in [Stack::Http1, Stack::Axum] {
        let served = Arc::clone(&files);
        let config = ServerConfig {
            stack,
            mechanisms,
            ..ServerConfig::default()
        };
        let server = TestServer::start(&config, move |parts| served.body_for(parts));
        let mut client = server.connect().await;
        for mode in ["default", "buffered"] {
            for (at, content) in files.contents.iter().enumerate() {
                let body = with_timeout(client.get(&format!("/{at}/{mode}"))).await;
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

fn assert_all_is_copied(mechanisms: &[Mechanism]) {
    let (zero_copy, copied) = runtime().block_on(send_all(mechanisms));
    let bodies = 4 * FILE_SIZES.iter().sum::<usize>() as u64;
    assert_eq!(zero_copy, 0);
    assert!(copied > bodies && copied < bodies + 16 * 200, "{copied}");
}

#[test]
fn the_environment_switches_zero_copy_off() {
    let off = [("UNCOPIED_SEND", "off")];
    in_own_process(
        "delivery_switch::the_environment_switches_zero_copy_off",
        &off,
        || {
            assert_all_is_copied(&[]);
            assert_all_is_copied(&[Mechanism::Splice, Mechanism::MmapWrite]);
        },
    );
}

#[test]
fn a_call_switches_zero_copy_off_and_on() {
    in_own_process(
        "delivery_switch::a_call_switches_zero_copy_off_and_on",
        &[],
        || {
            let on = runtime().block_on(send_all(&[]));
            let expected = 2 * FILE_SIZES.map(sent_with_sendfile).iter().sum::<usize>();
            assert_eq!(on.0, expected as u64);
            uncopied::set_zero_copy_send(false);
            assert_all_is_copied(&[]);
            uncopied::set_zero_copy_send(true);
            assert_eq!(runtime().block_on(send_all(&[])), on);
        },
    );
}
