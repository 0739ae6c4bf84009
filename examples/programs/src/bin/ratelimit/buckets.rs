//! A bucket of tokens for each source.

use std::collections::hash_map::RandomState;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

/// Far from the end of the clock.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Which sources share a bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prefixes {
    pub(crate) v4: u8,
    pub(crate) v6: u8,
}

/// How fast a bucket fills, and what it holds, both in tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) per_second: u64,
    pub(crate) burst: u64,
}

/// Buckets, of so many sources at most.
///
/// They are found by a hash with a random key: senders choose their addresses, and could otherwise
/// choose such as collide.
#[derive(Debug)]
pub(crate) struct Buckets {
    rate: Rate,
    prefixes: Prefixes,
    buckets: LruCache<IpAddr, Bucket, RandomState>,
    /// Sources that were forgotten while their bucket was not full: they got more than their rate.
    pub(crate) forgotten: u64,
}

/// Instead of a number of tokens that would have to grow, the time at which it is full again.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    full_at: Instant,
    beyond: u64,
}

impl Buckets {
    pub(crate) fn new(rate: Rate, prefixes: Prefixes, sources: NonZeroUsize) -> Self {
        let buckets = LruCache::with_hasher(sources, RandomState::new());
        Self { rate, prefixes, buckets, forgotten: 0 }
    }

    /// Takes tokens out of a source's bucket, if it has as many.
    pub(crate) fn take(&mut self, source: IpAddr, tokens: u64, now: Instant) -> bool {
        let source = self.prefixes.of(source);
        let (cost, most) = (self.rate.time_for(tokens), self.rate.time_for(self.rate.burst));
        let bucket = match self.buckets.get_mut(&source) {
            Some(bucket) => bucket,
            None => {
                let new = Bucket { full_at: now, beyond: 0 };
                if let Some((_, old)) = self.buckets.push(source, new) {
                    self.forgotten += u64::from(old.full_at > now);
                }
                match self.buckets.get_mut(&source) {
                    Some(bucket) => bucket,
                    None => return false,
                }
            }
        };
        let full_at = bucket.full_at.max(now) + cost;
        let is_enough = full_at.saturating_duration_since(now) <= most;
        match is_enough {
            true => bucket.full_at = full_at,
            false => bucket.beyond += 1,
        }
        is_enough
    }

    /// How many sources are remembered.
    pub(crate) fn len(&self) -> usize {
        self.buckets.len()
    }

    /// The sources with most packets beyond the limit, with how many that were; those without any
    /// are left out.
    pub(crate) fn worst(&self, most: usize) -> Vec<(String, u64)> {
        let beyond = self.buckets.iter().map(|(source, bucket)| (*source, bucket.beyond));
        let mut worst: Vec<_> = beyond.filter(|(_, beyond)| *beyond > 0).collect();
        worst.sort_unstable_by_key(|&(source, beyond)| (std::cmp::Reverse(beyond), source));
        worst.truncate(most);
        worst.into_iter().map(|(source, beyond)| (self.prefixes.name(source), beyond)).collect()
    }
}

impl Rate {
    /// How long a bucket takes to fill by so many tokens.
    fn time_for(self, tokens: u64) -> Duration {
        let nanoseconds = u128::from(tokens) * 1_000_000_000 / u128::from(self.per_second.max(1));
        u64::try_from(nanoseconds).map_or(LONGEST, |ns| Duration::from_nanos(ns).min(LONGEST))
    }
}

impl Prefixes {
    /// How a source is called: its address, or the prefix if there are several.
    fn name(self, source: IpAddr) -> String {
        match source {
            IpAddr::V4(_) if self.v4 < 32 => format!("{source}/{}", self.v4),
            IpAddr::V6(_) if self.v6 < 128 => format!("{source}/{}", self.v6),
            _ => source.to_string(),
        }
    }

    /// The first address of those that share a bucket with `source`. An IPv4 address in IPv6
    /// clothes stays what it is: on the wire there is none.
    fn of(self, source: IpAddr) -> IpAddr {
        match source {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.v4.min(32))).unwrap_or(0);
                Ipv4Addr::from_bits(v4.to_bits() & mask).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.v6.min(128))).unwrap_or(0);
                Ipv6Addr::from_bits(v6.to_bits() & mask).into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOSTS: Prefixes = Prefixes { v4: 32, v6: 64 };

    fn buckets(per_second: u64, burst: u64, sources: usize) -> Buckets {
        let sources = NonZeroUsize::new(sources).unwrap();
        Buckets::new(Rate { per_second, burst }, HOSTS, sources)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_bucket_empties_and_fills() {
        let mut buckets = buckets(10, 5, 10);
        let now = Instant::now();
        let passed = |buckets: &mut Buckets, now| {
            (0..100).filter(|_| buckets.take(ip("10.0.0.1"), 1, now)).count()
        };
        assert_eq!(passed(&mut buckets, now), 5);
        assert_eq!(passed(&mut buckets, now + SECOND / 5), 2);
        assert_eq!(passed(&mut buckets, now + 1000 * SECOND), 5, "no more than it holds");
        assert_eq!(buckets.worst(1), [("10.0.0.1".to_owned(), 95 + 98 + 95)]);
    }

    #[test]
    fn every_source_has_its_own() {
        let mut buckets = buckets(1, 1, 10);
        let now = Instant::now();
        assert!(buckets.take(ip("10.0.0.1"), 1, now));
        assert!(buckets.take(ip("10.0.0.2"), 1, now));
        assert!(!buckets.take(ip("10.0.0.1"), 1, now));
        assert!(buckets.take(ip("fd00::1"), 1, now));
        assert!(!buckets.take(ip("fd00::2"), 1, now), "of the same 64 bits");
        assert!(buckets.take(ip("fd00:0:0:1::1"), 1, now));
        assert_eq!(buckets.len(), 4);
        let worst = [("10.0.0.1", 1), ("fd00::/64", 1)].map(|(name, n)| (name.to_owned(), n));
        assert_eq!(buckets.worst(5), worst);
    }

    #[test]
    fn a_packet_larger_than_the_bucket_takes_nothing() {
        let mut buckets = buckets(1000, 1500, 1);
        let now = Instant::now();
        assert!(!buckets.take(ip("::1"), 1501, now));
        assert!(buckets.take(ip("::1"), 1500, now));
    }

    #[test]
    fn who_was_silent_for_longest_is_forgotten() {
        let mut buckets = buckets(1, 1, 2);
        let now = Instant::now();
        for source in ["10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.3"] {
            buckets.take(ip(source), 1, now);
        }
        assert_eq!((buckets.len(), buckets.forgotten), (2, 1));
        assert!(!buckets.take(ip("10.0.0.1"), 1, now), "is remembered");
        assert!(buckets.take(ip("10.0.0.2"), 1, now), "was forgotten");
        buckets.take(ip("10.0.0.4"), 1, now + 10 * SECOND);
        assert_eq!(buckets.forgotten, 2, "a full bucket is no loss");
    }

    #[test]
    fn prefixes_of_all_lengths() {
        for (v4, v6, expected) in [
            (0, 0, ["0.0.0.0", "::"]),
            (8, 16, ["10.0.0.0", "fd01::"]),
            (32, 128, ["10.1.2.3", "fd01:2::3"]),
        ] {
            let prefixes = Prefixes { v4, v6 };
            assert_eq!([ip("10.1.2.3"), ip("fd01:2::3")].map(|a| prefixes.of(a)), expected.map(ip));
        }
    }

    proptest! {
        /// Whatever comes when: never more than the burst and the rate together.
        #[test]
        fn the_limit_holds(
            per_second in 1_u64..1000, burst in 1_u64..100,
            steps in proptest::collection::vec((0_u64..500, 1_u64..10), 1..300),
        ) {
            let mut buckets = buckets(per_second, burst, 1);
            let start = Instant::now();
            let (mut now, mut taken) = (start, 0);
            for (milliseconds, tokens) in steps {
                now += Duration::from_millis(milliseconds);
                if buckets.take(ip("::1"), tokens, now) {
                    taken += tokens;
                }
                let filled = (now - start).as_secs_f64() * per_second as f64;
                // A nanosecond per token is lost by rounding.
                prop_assert!(taken as f64 <= burst as f64 + filled + 0.01);
            }
        }
    }
}
