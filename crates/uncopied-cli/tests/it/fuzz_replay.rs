//! Replays the inputs of the fuzz targets, and changed copies of them, for a bounded time.
//!
//! Each run prints its seed. To reproduce the run, set `UNCOPIED_FUZZ_SEED` to that seed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::fuzz_checks::{check_connection, check_head};
use crate::rng::{Rng, seed};

/// The time for which changed copies of the inputs are checked, unless `UNCOPIED_FUZZ_SECONDS` is
/// set.
const SECONDS: u64 = 4;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let entries = fs::read_dir(folder.join(target)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "there is no input");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Changes a copy of one input: bytes, the order of parts, or the end.
fn changed(rng: &mut Rng, inputs: &[Vec<u8>]) -> Vec<u8> {
    const PIECES: [&[u8]; 12] = [
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"\0",
        b"%",
        b",",
        b"\xff",
        b"0",
        b"HTTP/1.1",
    ];
    let mut bytes = inputs[rng.below(inputs.len())].clone();
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len() + 1);
        match rng.below(5) {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..at, PIECES[rng.below(PIECES.len())].iter().copied())),
            2 if at < bytes.len() => bytes[at] = rng.next_u64() as u8,
            3 if at < bytes.len() => drop(bytes.remove(at)),
            _ => {
                let other = &inputs[rng.below(inputs.len())];
                bytes.extend_from_slice(&other[rng.below(other.len() + 1)..]);
            }
        }
    }
    bytes
}

fn replay(target: &str, check: impl Fn(&[u8])) {
    let inputs = corpus(target);
    inputs.iter().for_each(|input| check(input));
    let seed = seed("UNCOPIED_FUZZ_SEED");
    println!("UNCOPIED_FUZZ_SEED={seed}");
    let mut rng = Rng::new(seed, 0);
    let seconds = std::env::var("UNCOPIED_FUZZ_SECONDS").map(|text| text.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(SECONDS));
    while Instant::now() < end {
        check(&changed(&mut rng, &inputs));
    }
}

#[test]
fn heads_that_the_server_accepts_are_read_the_same_way_by_hyper() {
    replay("head", check_head);
}

#[test]
fn any_bytes_get_complete_responses_or_none() {
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("file"), "content\n").unwrap();
    fs::write(site.path().join("large"), vec![b'x'; 200_000]).unwrap();
    replay("connection", |bytes| check_connection(site.path(), bytes));
}
