//! In which order the files of a case are requested. All contenders get the same order.

use crate::random::Random;

/// From this number of files on, some files are requested much more often than others, as on a real
/// site. With fewer files, all are requested equally often.
pub(super) const ZIPF_MIN_FILES: u32 = 10_000;

/// The number of requests after which the order repeats. It is longer than a measurement of small
/// files, and takes up 2 MiB.
const ORDER_REQUESTS: usize = 1 << 19;

/// Whether the popularity of the files follows Zipf's law, so that most of them are cold.
pub(super) fn is_zipf(files: u32) -> bool {
    files >= ZIPF_MIN_FILES
}

/// Returns the order in which `files` files are requested, as numbers of files.
pub(super) fn order(files: u32) -> Vec<u32> {
    if files == 1 {
        return vec![0];
    }
    let mut random = Random::new(u64::from(files));
    if !is_zipf(files) {
        let index = |_| ((random.fraction() * f64::from(files)) as u32).min(files - 1);
        return (0..ORDER_REQUESTS).map(index).collect();
    }
    // The file with rank n, counted from 1, is requested in proportion to 1/n.
    let mut sums = Vec::with_capacity(files as usize);
    let mut sum = 0.0;
    for rank in 1..=files {
        sum += 1.0 / f64::from(rank);
        sums.push(sum);
    }
    (0..ORDER_REQUESTS)
        .map(|_| {
            let wanted = random.fraction() * sum;
            let rank = sums.partition_point(|&sum| sum < wanted) as u32;
            file_of_rank(rank.min(files - 1), files)
        })
        .collect()
}

/// Returns the ranks, counted from 0, of the files that are cold when a measurement begins.
///
/// Under Zipf's law, the most popular tenth of 100,000 files gets four fifths of all requests, and
/// would be in the page cache of any server.
pub(super) fn cold_ranks(files: u32) -> std::ops::Range<u32> {
    if is_zipf(files) {
        files / 10..files
    } else {
        0..0
    }
}

/// Returns the number of the file with a rank counted from 0. Spreads popular files over all
/// directories.
pub(super) fn file_of_rank(rank: u32, files: u32) -> u32 {
    // Multiplying by a number that has no divisor in common with `files` reorders them.
    let factor = [7919, 7907, 7901]
        .into_iter()
        .find(|factor| !files.is_multiple_of(*factor))
        .unwrap_or(1);
    (u64::from(rank) * u64::from(factor) % u64::from(files)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how often each file is requested.
    fn counts(files: u32) -> Vec<usize> {
        let mut counts = vec![0; files as usize];
        for file in order(files) {
            counts[file as usize] += 1;
        }
        counts
    }

    #[test]
    fn few_files_are_requested_equally_often() {
        let counts = counts(1000);
        let mean = ORDER_REQUESTS / 1000;
        let is_near = |&count: &usize| count > mean * 3 / 4 && count < mean * 5 / 4;
        assert!(counts.iter().all(is_near), "{counts:?}");
        assert_eq!(order(1), [0]);
    }

    #[test]
    fn many_files_are_requested_as_zipf_says() {
        let files = 100_000;
        let counts = counts(files);
        let of_rank = |rank| counts[file_of_rank(rank, files) as usize] as f64;
        assert!((of_rank(0) / of_rank(1) - 2.0).abs() < 0.1);
        assert!((of_rank(0) / of_rank(9) - 10.0).abs() < 1.0);
        let popular: f64 = (0..cold_ranks(files).start).map(of_rank).sum();
        let share = popular / ORDER_REQUESTS as f64;
        assert!((share - 0.81).abs() < 0.01, "{share}");
    }

    #[test]
    fn every_rank_has_a_file_of_its_own() {
        for files in [10_000, 7919 * 2, 12_345] {
            let mut seen: Vec<u32> = (0..files).map(|rank| file_of_rank(rank, files)).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), files as usize);
        }
    }
}
