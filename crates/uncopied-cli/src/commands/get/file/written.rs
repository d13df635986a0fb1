//! Which bytes of a file have been written.

use serde::{Deserialize, Serialize};

/// A set of positions: ranges of a first position and an end, in order, that do not touch each
/// other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub(crate) struct Written(Vec<(u64, u64)>);

impl Written {
    /// Adds the positions from `first` up to but not including `end`.
    pub(crate) fn add(&mut self, first: u64, end: u64) {
        if first >= end {
            return;
        }
        let from = self.0.partition_point(|range| range.1 < first);
        let to = self.0.partition_point(|range| range.0 <= end);
        let merged = self.0[from..to].iter().fold((first, end), |all, range| {
            (all.0.min(range.0), all.1.max(range.1))
        });
        self.0.splice(from..to, [merged]);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (first, end) in &other.0 {
            self.add(*first, *end);
        }
    }

    /// Returns the number of positions from 0 on without a gap.
    pub(crate) fn prefix(&self) -> u64 {
        match self.0.first() {
            Some((0, end)) => *end,
            _ => 0,
        }
    }

    /// Returns the position after the last one.
    pub(crate) fn end(&self) -> u64 {
        self.0.last().map_or(0, |range| range.1)
    }

    /// Whether there is a gap.
    pub(crate) fn has_gap(&self) -> bool {
        self.prefix() != self.end()
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|(first, end)| end - first).sum()
    }

    /// Returns the ranges between `first` and `end` that are not in the set.
    pub(crate) fn missing(&self, first: u64, end: u64) -> Vec<(u64, u64)> {
        let mut missing = Vec::new();
        let mut at = first;
        for (start, stop) in self.0.iter().filter(|range| range.1 > first) {
            if *start >= end {
                break;
            }
            if at < *start {
                missing.push((at, *start));
            }
            at = at.max(*stop);
        }
        if at < end {
            missing.push((at, end));
        }
        missing
    }
}

impl From<Written> for Vec<(u64, u64)> {
    fn from(set: Written) -> Self {
        set.0
    }
}

impl TryFrom<Vec<(u64, u64)>> for Written {
    type Error = &'static str;

    /// Checks what was read from a file.
    fn try_from(ranges: Vec<(u64, u64)>) -> Result<Self, &'static str> {
        let are_ordered = ranges.windows(2).all(|pair| pair[0].1 < pair[1].0);
        if !are_ordered || ranges.iter().any(|(first, end)| first >= end) {
            return Err("the ranges are not in order");
        }
        Ok(Self(ranges))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let mut set = Written::default();
        for (first, end, expected) in [
            (10, 20, vec![(10, 20)]),
            (30, 40, vec![(10, 20), (30, 40)]),
            (5, 5, vec![(10, 20), (30, 40)]),
            (20, 25, vec![(10, 25), (30, 40)]),
            (0, 5, vec![(0, 5), (10, 25), (30, 40)]),
            (4, 31, vec![(0, 40)]),
            (10, 20, vec![(0, 40)]),
            (41, 42, vec![(0, 40), (41, 42)]),
        ] {
            set.add(first, end);
            assert_eq!(set.0, expected);
        }
        assert_eq!((set.prefix(), set.end(), set.count()), (40, 42, 41));
        assert!(set.has_gap());
        assert_eq!(set.missing(0, 50), [(40, 41), (42, 50)]);
        assert_eq!(set.missing(45, 50), [(45, 50)]);
        assert_eq!(set.missing(0, 40), []);
        assert_eq!(set.missing(0, 41), [(40, 41)]);
        assert!(!Written::default().has_gap());
    }

    #[test]
    fn a_set_from_a_file_is_checked() {
        let set: Written = serde_json::from_str("[[0,5],[7,9]]").unwrap();
        assert_eq!(set.missing(0, 9), [(5, 7)]);
        for text in [
            "[[5,0]]",
            "[[0,5],[5,6]]",
            "[[7,9],[0,5]]",
            "[[0,-1]]",
            "[[0]]",
        ] {
            assert!(serde_json::from_str::<Written>(text).is_err(), "{text}");
        }
    }
}
