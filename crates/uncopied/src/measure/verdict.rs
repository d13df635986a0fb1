//! From the measured ratios to a threshold.

use crate::policy::Tuning;

/// By how much the CPU times must differ to move a threshold away from its default.
///
/// If `copy` is measured against itself, the median of a dozen repetitions is up to 0.11 away from
/// 1 on a machine with two busy virtual CPUs, but then the repetitions disagree.
const MARGIN: f64 = 0.1;

/// The fewest repetitions that say something.
const MIN_REPETITIONS: usize = 7;

/// The CPU times of a mechanism at one length, each divided by that of `copy` next to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample(Vec<f64>);

/// Which of the two takes less CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cheaper {
    Mechanism,
    Copy,
    /// They do not differ enough, or the repetitions disagree.
    Unclear,
}

impl Sample {
    pub(super) fn add(&mut self, ratio: f64) {
        self.0.push(ratio);
    }

    /// `None` if there are too few repetitions.
    fn cheaper(&self) -> Option<Cheaper> {
        if self.0.len() < MIN_REPETITIONS {
            return None;
        }
        let mut ratios = self.0.clone();
        ratios.sort_by(f64::total_cmp);
        let at = |part: usize| ratios[(ratios.len() - 1) * part / 4];
        let (lower, median, upper) = (at(1), at(2), at(3));
        Some(match () {
            () if median > 1.0 + MARGIN && lower > 1.0 => Cheaper::Copy,
            () if median < 1.0 - MARGIN && upper < 1.0 => Cheaper::Mechanism,
            () => Cheaper::Unclear,
        })
    }
}

/// Returns the length from which on the mechanism is cheaper than `copy`, or not clearly dearer
/// where the default is to use it. The samples are those of lengths in ascending order. If any of
/// them is missing, returns the default.
pub(super) fn threshold(samples: &[(u64, &Sample)], default: u64) -> u64 {
    let mut threshold = Tuning::NEVER;
    for (length, sample) in samples.iter().rev() {
        let is_used = match sample.cheaper() {
            None => return default,
            Some(Cheaper::Mechanism) => true,
            Some(Cheaper::Copy) => false,
            Some(Cheaper::Unclear) => *length >= default,
        };
        if !is_used {
            break;
        }
        threshold = *length;
    }
    let shortest_by_default = samples.iter().find(|(length, _)| *length >= default);
    match shortest_by_default {
        // Nothing is known of shorter lengths.
        Some((length, _)) if *length == threshold => default,
        // Nor of longer ones.
        None if threshold == Tuning::NEVER => default,
        _ => threshold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: u64 = 64;

    /// Returns the threshold that follows if at each of these lengths, the first quartile, the
    /// median and the third quartile of the ratios have these values.
    fn threshold_of(samples: &[(u64, [f64; 3])]) -> u64 {
        let samples: Vec<_> = samples
            .iter()
            .map(|(length, [lower, median, upper])| {
                let ratios = [lower, lower, lower, median, upper, upper, upper];
                (*length, Sample(ratios.map(|it| *it).to_vec()))
            })
            .collect();
        let samples: Vec<_> = samples.iter().map(|(length, it)| (*length, it)).collect();
        threshold(&samples, DEFAULT)
    }

    const CHEAPER: [f64; 3] = [0.8, 0.89, 0.99];
    const DEARER: [f64; 3] = [1.01, 1.11, 1.2];

    #[test]
    fn a_clear_difference_moves_a_threshold() {
        for (at_lengths, expected) in [
            ([DEARER, DEARER, CHEAPER, CHEAPER, CHEAPER], DEFAULT),
            ([DEARER, CHEAPER, CHEAPER, CHEAPER, CHEAPER], 32),
            ([CHEAPER, CHEAPER, CHEAPER, CHEAPER, CHEAPER], 16),
            ([DEARER, DEARER, DEARER, CHEAPER, CHEAPER], 128),
            ([CHEAPER, CHEAPER, DEARER, CHEAPER, CHEAPER], 128),
            ([DEARER, DEARER, DEARER, DEARER, CHEAPER], 256),
            ([CHEAPER, CHEAPER, CHEAPER, CHEAPER, DEARER], Tuning::NEVER),
        ] {
            let lengths = [16, 32, 64, 128, 256];
            let samples: Vec<_> = lengths.into_iter().zip(at_lengths).collect();
            assert_eq!(threshold_of(&samples), expected, "{at_lengths:?}");
        }
    }

    /// Neither a difference of 10 % nor repetitions that disagree turn a mechanism on or off.
    #[test]
    fn noise_leaves_the_default() {
        for noise in [
            [0.89, 0.901, 0.91],
            [1.09, 1.099, 1.11],
            [0.5, 0.9, 1.001],
            [0.999, 1.1, 1.5],
            [1.0, 1.0, 1.0],
        ] {
            let samples = [16, 32, 64, 128, 256].map(|length| (length, noise));
            assert_eq!(threshold_of(&samples), DEFAULT, "{noise:?}");
        }
    }

    #[test]
    fn a_default_between_two_lengths_stays_if_both_agree_with_it() {
        assert_eq!(threshold_of(&[(50, DEARER), (100, CHEAPER)]), DEFAULT);
        assert_eq!(threshold_of(&[(100, CHEAPER), (200, CHEAPER)]), DEFAULT);
        assert_eq!(threshold_of(&[(50, CHEAPER), (100, CHEAPER)]), 50);
        assert_eq!(threshold_of(&[(16, DEARER), (32, DEARER)]), DEFAULT);
    }

    #[test]
    fn too_few_repetitions_leave_the_default() {
        let enough = Sample(vec![0.5; MIN_REPETITIONS]);
        let too_few = Sample(vec![0.5; MIN_REPETITIONS - 1]);
        assert_eq!(threshold(&[(16, &enough), (64, &enough)], DEFAULT), 16);
        assert_eq!(
            threshold(&[(16, &enough), (64, &too_few)], DEFAULT),
            DEFAULT
        );
        assert_eq!(
            threshold(&[(16, &too_few), (64, &enough)], DEFAULT),
            DEFAULT
        );
    }
}
