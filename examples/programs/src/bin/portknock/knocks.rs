//! Who has knocked how far, and who may come in.

use std::collections::hash_map::RandomState;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::sequence::{Port, Sequence};

/// What came of a knock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It was this one of the sequence, counted from 1.
    Right(usize),
    /// It was the last one: the source may come in.
    Opened,
    /// It was the one before once more, as systems send it again. It changes nothing.
    Again,
    /// It was another one: the source starts anew.
    Wrong,
}

/// Sources in bounded memory, by a hash with a random key: senders choose their addresses.
///
/// Of those that are knocking, the ones that have been silent for the longest time are forgotten
/// when there are too many; the same apart from them for those that may come in, so that no crowd
/// of knockers shuts them out.
#[derive(Debug)]
pub(crate) struct Knocks {
    sequence: Sequence,
    within: Duration,
    open_for: Duration,
    knocking: LruCache<IpAddr, Progress, RandomState>,
    /// Since when.
    open: LruCache<IpAddr, Instant, RandomState>,
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    done: usize,
    since: Instant,
}

impl Knocks {
    /// All of the sequence within a time opens for a time. At most `most` sources are remembered as
    /// knocking and as many as open.
    pub(crate) fn new(
        sequence: Sequence,
        within: Duration,
        open_for: Duration,
        most: NonZeroUsize,
    ) -> Self {
        let knocking = LruCache::with_hasher(most, RandomState::new());
        let open = LruCache::with_hasher(most, RandomState::new());
        Self { sequence, within, open_for, knocking, open }
    }

    pub(crate) fn knock(&mut self, source: IpAddr, port: Port, now: Instant) -> Heard {
        let before = self.knocking.pop(&source);
        let before = before.filter(|it| now.saturating_duration_since(it.since) <= self.within);
        let ports = self.sequence.ports();
        let Progress { done, since } = before.unwrap_or(Progress { done: 0, since: now });
        if done > 0 && ports.get(done - 1) == Some(&port) {
            self.knocking.push(source, Progress { done, since });
            return Heard::Again;
        }
        let (done, since) = match ports.get(done) == Some(&port) {
            true => (done + 1, since),
            // It may be the beginning of another attempt.
            false if ports.first() == Some(&port) => (1, now),
            false => return Heard::Wrong,
        };
        if done == ports.len() {
            self.open.push(source, now);
            return Heard::Opened;
        }
        self.knocking.push(source, Progress { done, since });
        Heard::Right(done)
    }

    /// Whether a source may come in.
    pub(crate) fn is_open(&mut self, source: IpAddr, now: Instant) -> bool {
        match self.open.get(&source) {
            Some(&since) if now.saturating_duration_since(since) < self.open_for => true,
            Some(_) => {
                self.open.pop(&source);
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const SECOND: Duration = Duration::from_secs(1);

    fn source(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    fn knocks(most: usize) -> Knocks {
        let sequence = "7,9,7,8/udp".parse().expect("a sequence");
        Knocks::new(sequence, 10 * SECOND, HOUR, NonZeroUsize::new(most).expect("some"))
    }

    fn knock_at(knocks: &mut Knocks, ports: &[&str], now: Instant) -> Vec<Heard> {
        let ports = ports.iter().map(|port| port.parse().expect("a port"));
        ports.map(|port| knocks.knock(source(1), port, now)).collect()
    }

    #[test]
    fn the_whole_sequence_opens_for_its_time_and_its_source() {
        let (mut knocks, now) = (knocks(9), Instant::now());
        let heard = knock_at(&mut knocks, &["7", "9", "7", "8/udp"], now);
        assert_eq!(heard, [Heard::Right(1), Heard::Right(2), Heard::Right(3), Heard::Opened]);
        assert!(knocks.is_open(source(1), now) && !knocks.is_open(source(2), now));
        assert!(knocks.is_open(source(1), now + HOUR - SECOND));
        assert!(!knocks.is_open(source(1), now + HOUR));
    }

    #[test]
    fn a_wrong_one_starts_anew_and_repetitions_do_not() {
        let (mut knocks, now) = (knocks(9), Instant::now());
        use Heard::{Again, Opened, Right, Wrong};
        assert_eq!(
            knock_at(&mut knocks, &["7", "9", "8", "7", "8/udp"], now)[2..],
            [Wrong, Right(1), Wrong]
        );
        // 7 after 7, 9, 7 is a repetition; after 7, 9, 7, 9 everything begins again.
        let heard = knock_at(
            &mut knocks,
            &["7", "7", "9", "9", "7", "7", "9", "7", "9", "7", "8/udp"],
            now,
        );
        assert_eq!(heard[..6], [Right(1), Again, Right(2), Again, Right(3), Again]);
        assert_eq!(heard[6..], [Wrong, Right(1), Right(2), Right(3), Opened]);
        assert_eq!(knock_at(&mut knocks, &["8"], now), [Wrong], "another protocol");
    }

    #[test]
    fn the_sequence_has_its_time() {
        let (mut knocks, now) = (knocks(9), Instant::now());
        knock_at(&mut knocks, &["7", "9", "7"], now);
        assert_eq!(knock_at(&mut knocks, &["8/udp"], now + 11 * SECOND), [Heard::Wrong]);
        knock_at(&mut knocks, &["7", "9", "7"], now);
        assert_eq!(knock_at(&mut knocks, &["8/udp"], now + 10 * SECOND), [Heard::Opened]);
    }

    #[test]
    fn the_longest_time_does_not_reach_the_end_of_the_clock() {
        let (mut knocks, now) = (knocks(9), Instant::now());
        knocks.open_for = Duration::MAX;
        knock_at(&mut knocks, &["7", "9", "7", "8/udp"], now);
        assert!(knocks.is_open(source(1), now + HOUR));
    }

    #[test]
    fn crowds_are_forgotten_and_shut_nobody_out() {
        let (mut knocks, now) = (knocks(4), Instant::now());
        knock_at(&mut knocks, &["7", "9", "7", "8/udp"], now);
        let first = "7".parse().expect("a port");
        for number in 2..200 {
            knocks.knock(source(number), first, now);
        }
        assert_eq!((knocks.knocking.len(), knocks.open.len()), (4, 1));
        assert!(knocks.is_open(source(1), now));
    }

    proptest::proptest! {
        /// Only those who have knocked at all ports in order come in.
        #[test]
        fn nobody_else_comes_in(tried in proptest::collection::vec(0_usize..4, 0..30)) {
            let ports = ["7", "9", "8/udp", "8"];
            let (mut knocks, now) = (knocks(4), Instant::now());
            let tried: Vec<_> = tried.iter().map(|&index| ports[index]).collect();
            let heard = knock_at(&mut knocks, &tried, now);
            let mut distinct = tried.clone();
            distinct.dedup();
            let is_there = distinct.windows(4).any(|four| four == ["7", "9", "7", "8/udp"]);
            let is_open = knocks.is_open(source(1), now);
            proptest::prop_assert_eq!(heard.contains(&Heard::Opened), is_open);
            proptest::prop_assert!(!is_open || is_there, "{:?}", tried);
            // However it began, a wrong port and then the sequence open.
            knock_at(&mut knocks, &["8", "7", "9", "7", "8/udp"], now);
            proptest::prop_assert!(knocks.is_open(source(1), now));
        }
    }
}
