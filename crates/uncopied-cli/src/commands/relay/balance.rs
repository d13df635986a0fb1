//! Chooses one of several targets.
//!
//! | rule | choice |
//! |---|---|
//! | `round-robin` | in turn, each as often as its weight says, and spread evenly |
//! | `least-connections` | the fewest connections relative to the weight; equal ones in turn |
//! | `source-hash` | by the client's IP address; in turn for clients that have none |
//!
//! Each rule chooses among the candidates that the caller allows, so it needs no state for targets
//! that are down or that have been tried before.
//!
//! `source-hash` uses weighted rendezvous hashing: each pair of client and target has a score, and
//! the highest score wins. If a target is lost, the order of the others does not change, so only
//! its own clients move, to the target with their second highest score. The score depends on the
//! target's address alone, so all relays of a fleet, also after a restart, make the same choice. It
//! costs one multiplication and one logarithm for each target. A ring of hashes would be cheaper
//! for thousands of targets, but its shares follow the weights only roughly.
//!
//! # References
//!
//! Smooth weighted round-robin: nginx, `ngx_http_upstream_round_robin.c`. Weighted rendezvous
//! hashing: Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", 2005.

use std::net::IpAddr;

use crate::flags::{Balance, TargetAddress};

/// A rule with its state, for a fixed list of targets.
#[derive(Debug)]
pub(crate) struct Balancer {
    rule: Balance,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    weight: u32,
    /// A hash of the target's address.
    key: u64,
    /// How far this target is behind its share, in units of the sum of the weights.
    current: i64,
}

impl Balancer {
    /// Creates the state for a list of targets and their weights, which are at least 1.
    pub(crate) fn new<'a>(
        rule: Balance,
        targets: impl IntoIterator<Item = (&'a TargetAddress, u32)>,
    ) -> Self {
        let entries = targets.into_iter().map(|(address, weight)| Entry {
            weight,
            key: hash(address.to_string().as_bytes()),
            current: 0,
        });
        Self {
            rule,
            entries: entries.collect(),
        }
    }

    /// Chooses among the targets whose indexes are candidates, and returns the index. `None` if
    /// there is no candidate.
    ///
    /// `connections` returns how many connections a target has.
    pub(crate) fn choose(
        &mut self,
        client: Option<IpAddr>,
        is_candidate: impl Fn(usize) -> bool,
        connections: impl Fn(usize) -> usize,
    ) -> Option<usize> {
        match (self.rule, client) {
            (Balance::SourceHash, Some(client)) => self.by_source(client, is_candidate),
            (Balance::RoundRobin | Balance::SourceHash, _) => self.in_turn(is_candidate),
            (Balance::LeastConnections, _) => self.by_connections(is_candidate, connections),
        }
    }

    /// Every candidate gains its weight. The one that is ahead is chosen, and loses what all have
    /// gained.
    fn in_turn(&mut self, is_candidate: impl Fn(usize) -> bool) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<(i64, usize)> = None;
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if !is_candidate(index) {
                continue;
            }
            entry.current += i64::from(entry.weight);
            total += i64::from(entry.weight);
            if best.is_none_or(|(current, _)| entry.current > current) {
                best = Some((entry.current, index));
            }
        }
        let (_, index) = best?;
        self.entries[index].current -= total;
        Some(index)
    }

    fn by_connections(
        &mut self,
        is_candidate: impl Fn(usize) -> bool,
        connections: impl Fn(usize) -> usize,
    ) -> Option<usize> {
        // Read every number only once, because other threads change them.
        let loads: Vec<Option<Load>> = self
            .entries
            .iter()
            .enumerate()
            .map(|(index, entry)| {
                is_candidate(index).then(|| Load {
                    connections: connections(index),
                    weight: entry.weight,
                })
            })
            .collect();
        let least = *loads.iter().flatten().reduce(|least, load| {
            if load.is_less_than(least) {
                load
            } else {
                least
            }
        })?;
        let is_least = |index: usize| loads[index].is_some_and(|load| !least.is_less_than(&load));
        self.in_turn(is_least)
    }

    fn by_source(&self, client: IpAddr, is_candidate: impl Fn(usize) -> bool) -> Option<usize> {
        let client = hash_of_client(client);
        let candidates = self.entries.iter().enumerate();
        candidates
            .filter(|(index, _)| is_candidate(*index))
            .max_by(|(_, a), (_, b)| a.score(client).total_cmp(&b.score(client)))
            .map(|(index, _)| index)
    }
}

/// The number of connections of a target, to be compared relative to its weight.
#[derive(Clone, Copy)]
struct Load {
    connections: usize,
    weight: u32,
}

impl Load {
    fn is_less_than(&self, other: &Self) -> bool {
        // Compare the quotients without rounding.
        self.connections as u128 * u128::from(other.weight)
            < other.connections as u128 * u128::from(self.weight)
    }
}

impl Entry {
    fn score(&self, client: u64) -> f64 {
        // The upper 53 bits, which a f64 holds exactly, as a number between 0 and 1 that is
        // neither.
        let uniform = ((mix(client ^ self.key) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -f64::from(self.weight) / uniform.ln()
    }
}

/// Returns a hash of a client's IP address, for `source-hash`.
pub(crate) fn hash_of_client(client: IpAddr) -> u64 {
    // A socket that accepts both families shows IPv4 clients as IPv4-mapped addresses.
    match client.to_canonical() {
        IpAddr::V4(ip) => hash(&ip.octets()),
        IpAddr::V6(ip) => hash(&ip.octets()),
    }
}

/// Returns a hash that is the same on every machine and in every version of this program.
fn hash(bytes: &[u8]) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    u64::from_le_bytes(eight)
}

/// Distributes the bits of a number over all bits of the result: the finalizer of SplitMix64.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn balancer(rule: Balance, weights: &[u32]) -> Balancer {
        let addresses: Vec<TargetAddress> = (0..weights.len())
            .map(|n| format!("10.0.0.{n}:5432").parse().unwrap())
            .collect();
        Balancer::new(rule, addresses.iter().zip(weights.iter().copied()))
    }

    fn client(n: u32) -> Option<IpAddr> {
        Some(IpAddr::from(n.to_be_bytes()))
    }

    fn no_connections(_: usize) -> usize {
        0
    }

    #[test]
    fn turns_are_spread_evenly() {
        let mut balancer = balancer(Balance::RoundRobin, &[5, 1, 1]);
        let mut next = || balancer.choose(None, |_| true, no_connections).unwrap();
        let turns: Vec<_> = (0..14).map(|_| next()).collect();
        assert_eq!(turns, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn without_candidates_there_is_no_choice() {
        for rule in [
            Balance::RoundRobin,
            Balance::LeastConnections,
            Balance::SourceHash,
        ] {
            let mut balancer = balancer(rule, &[1, 2]);
            assert_eq!(balancer.choose(client(1), |_| false, no_connections), None);
            let only = balancer.choose(client(1), |index| index == 1, no_connections);
            assert_eq!(only, Some(1));
        }
    }

    #[test]
    fn the_least_loaded_target_is_chosen_relative_to_its_weight() {
        let mut balancer = balancer(Balance::LeastConnections, &[1, 3]);
        for (connections, chosen) in [
            ([1, 0], 1),
            ([0, 1], 0),
            ([1, 2], 1),
            ([1, 4], 0),
            ([2, 5], 1),
        ] {
            let choice = balancer.choose(None, |_| true, |index| connections[index]);
            assert_eq!(choice, Some(chosen), "{connections:?}");
        }
        // Equal loads take turns, by weight.
        let mut next = || balancer.choose(None, |_| true, |index| [2, 6][index]);
        let chosen = (0..40).filter(|_| next() == Some(1)).count();
        assert_eq!(chosen, 30);
    }

    #[test]
    fn an_ipv4_client_is_the_same_over_a_socket_for_both_families() {
        let mut balancer = balancer(Balance::SourceHash, &[1; 10]);
        for n in 0..100 {
            let v4 = std::net::Ipv4Addr::from(n);
            let plain = balancer.choose(Some(v4.into()), |_| true, no_connections);
            let mapped = Some(v4.to_ipv6_mapped().into());
            assert_eq!(balancer.choose(mapped, |_| true, no_connections), plain);
        }
    }

    #[test]
    fn choices_by_hash_never_change_between_versions() {
        let mut balancer = balancer(Balance::SourceHash, &[1, 2, 3, 4]);
        let choices: Vec<_> = (0..16)
            .filter_map(|n| balancer.choose(client(n), |_| true, no_connections))
            .collect();
        assert_eq!(choices, [3, 2, 1, 2, 2, 2, 1, 3, 0, 2, 3, 2, 2, 3, 3, 0]);
    }

    #[test]
    fn clients_without_an_address_take_turns() {
        let mut balancer = balancer(Balance::SourceHash, &[1, 1]);
        let mut next = || balancer.choose(None, |_| true, no_connections).unwrap();
        assert_eq!([next(), next(), next(), next()], [0, 1, 0, 1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        /// After as many turns as the sum of the weights, everyone has had exactly its share.
        #[test]
        fn turns_follow_the_weights(weights in vec(1..50_u32, 1..8)) {
            let mut balancer = balancer(Balance::RoundRobin, &weights);
            let mut counts = vec![0; weights.len()];
            for _ in 0..weights.iter().sum() {
                counts[balancer.choose(None, |_| true, no_connections).unwrap()] += 1;
            }
            prop_assert_eq!(counts, weights);
        }

        /// With connections that stay, everyone has exactly its share.
        #[test]
        fn open_connections_follow_the_weights(weights in vec(1..20_u32, 1..8)) {
            let mut balancer = balancer(Balance::LeastConnections, &weights);
            let open: Vec<_> = weights.iter().map(|_| Cell::new(0)).collect();
            let rounds = 10;
            for _ in 0..weights.iter().sum::<u32>() * rounds {
                let chosen = balancer.choose(None, |_| true, |index| open[index].get());
                let open = &open[chosen.unwrap()];
                open.set(open.get() + 1);
            }
            for (open, weight) in open.iter().zip(&weights) {
                prop_assert_eq!(open.get(), (weight * rounds) as usize);
            }
        }

        #[test]
        fn clients_follow_the_weights(weights in vec(1..5_u32, 2..6), first in any::<u32>()) {
            let mut balancer = balancer(Balance::SourceHash, &weights);
            let mut counts = vec![0_u32; weights.len()];
            let clients = 20_000;
            for n in 0..clients {
                let chosen = balancer.choose(client(first.wrapping_add(n)), |_| true, no_connections);
                counts[chosen.unwrap()] += 1;
            }
            let sum: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let share = f64::from(clients * weight) / f64::from(sum);
                // Five standard deviations of a binomial distribution.
                let p = f64::from(*weight) / f64::from(sum);
                let tolerance = 5.0 * (f64::from(clients) * p * (1.0 - p)).sqrt();
                prop_assert!((f64::from(*count) - share).abs() < tolerance, "{count} of {share}");
            }
        }

        /// A lost target moves only its own clients, to more than one other target. Once it is
        /// back, every client is where it was.
        #[test]
        fn a_lost_target_moves_only_its_own_clients(
            weights in vec(1..10_u32, 3..12),
            lost in any::<prop::sample::Index>(),
        ) {
            let mut balancer = balancer(Balance::SourceHash, &weights);
            let lost = lost.index(weights.len());
            let mut moved_to = vec![0; weights.len()];
            for n in 0..2_000 {
                let before = balancer.choose(client(n), |_| true, no_connections).unwrap();
                let during = balancer.choose(client(n), |i| i != lost, no_connections).unwrap();
                if before == lost {
                    moved_to[during] += 1;
                } else {
                    prop_assert_eq!(during, before);
                }
                let after = balancer.choose(client(n), |_| true, no_connections);
                prop_assert_eq!(after, Some(before));
            }
            prop_assert_eq!(moved_to[lost], 0);
            prop_assert!(moved_to.iter().filter(|count| **count > 0).count() > 1);
        }

        /// A target that is added takes clients from the others, and moves no other client.
        #[test]
        fn an_added_target_moves_clients_only_to_itself(weights in vec(1..10_u32, 2..10)) {
            let mut more = balancer(Balance::SourceHash, &weights);
            let added = weights.len() - 1;
            let mut fewer = balancer(Balance::SourceHash, &weights[..added]);
            for n in 0..1_000 {
                let before = fewer.choose(client(n), |_| true, no_connections);
                let after = more.choose(client(n), |_| true, no_connections);
                prop_assert!(after == before || after == Some(added));
            }
        }
    }
}
