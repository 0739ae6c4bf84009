//! When packets leave: a link with a rate and a delay, and those that are on it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::fate::Jitter;

/// Nobody waits for a link of one byte per second until the clock ends.
const LONGEST: Duration = Duration::from_secs(86_400);

/// A link: packets enter it one after another, at its rate, and come out of it after the delay.
#[derive(Debug)]
pub(crate) struct Link {
    rate: Option<u64>,
    delay: Duration,
    keep_order: bool,
    /// When the packet before has entered it.
    free_at: Option<Instant>,
    /// When the last one comes out.
    last_out: Option<Instant>,
}

impl Link {
    pub(crate) const fn new(rate: Option<u64>, delay: Duration, keep_order: bool) -> Self {
        Self { rate, delay, keep_order, free_at: None, last_out: None }
    }

    /// When a packet of so many bytes comes out that is to be sent now.
    pub(crate) fn send(&mut self, now: Instant, bytes: usize, jitter: Jitter) -> Instant {
        let start = self.free_at.map_or(now, |free_at| free_at.max(now));
        let entered = start + self.time_of(bytes);
        self.free_at = Some(entered);
        let mut out = entered + jitter.applied_to(self.delay);
        if self.keep_order {
            out = self.last_out.map_or(out, |last| last.max(out));
            self.last_out = Some(out);
        }
        out
    }

    fn time_of(&self, bytes: usize) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let nanoseconds = bytes as u128 * 1_000_000_000 / u128::from(rate.max(1));
        u64::try_from(nanoseconds).map_or(LONGEST, |ns| Duration::from_nanos(ns).min(LONGEST))
    }
}

/// What is on its way, in the order in which it arrives.
#[derive(Debug)]
pub(crate) struct Underway<T> {
    /// By arrival; of those that arrive at once, by when they were sent.
    arrivals: BTreeMap<(Instant, u64), T>,
    /// Those that let others pass before them.
    aside: Vec<Aside<T>>,
    sent: u64,
}

#[derive(Debug)]
struct Aside<T> {
    item: T,
    let_pass: u32,
    latest: Instant,
}

impl<T> Underway<T> {
    pub(crate) const fn new() -> Self {
        Self { arrivals: BTreeMap::new(), aside: Vec::new(), sent: 0 }
    }

    /// Sends something that arrives at a given time, and behind it those that have let enough pass.
    pub(crate) fn send(&mut self, at: Instant, item: T) {
        self.push(at, item);
        for aside in &mut self.aside {
            aside.let_pass = aside.let_pass.saturating_sub(1);
        }
        self.return_those(at, |aside| aside.let_pass == 0);
    }

    /// Sets something aside until so many others have been sent, or until it is late.
    pub(crate) fn set_aside(&mut self, item: T, let_pass: u32, latest: Instant) {
        self.aside.push(Aside { item, let_pass, latest });
    }

    /// How many are on their way.
    pub(crate) fn len(&self) -> usize {
        self.arrivals.len() + self.aside.len()
    }

    /// When the next one arrives.
    pub(crate) fn next(&self) -> Option<Instant> {
        let first = self.arrivals.first_key_value().map(|((at, _), _)| *at);
        first.into_iter().chain(self.aside.iter().map(|aside| aside.latest)).min()
    }

    /// One that has arrived by now: in order, if taken until there is none.
    pub(crate) fn arrived(&mut self, now: Instant) -> Option<T> {
        self.return_those(now, |aside| aside.latest <= now);
        let first = self.arrivals.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// Everything, in order.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        let last = self.arrivals.last_key_value().map(|((at, _), _)| *at);
        self.return_those(last.unwrap_or_else(Instant::now), |_| true);
        std::mem::take(&mut self.arrivals).into_values().collect()
    }

    fn push(&mut self, at: Instant, item: T) {
        self.arrivals.insert((at, self.sent), item);
        self.sent += 1;
    }

    fn return_those(&mut self, at: Instant, which: impl Fn(&Aside<T>) -> bool) {
        let returned: Vec<T> =
            self.aside.extract_if(.., |aside| which(aside)).map(|aside| aside.item).collect();
        for item in returned {
            self.push(at, item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Jitter = Jitter::Longer(Duration::ZERO);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_rate_puts_packets_one_behind_another() {
        let now = Instant::now();
        let mut link = Link::new(Some(1000), SECOND, false);
        assert_eq!(link.send(now, 500, NONE), now + SECOND * 3 / 2);
        assert_eq!(link.send(now, 500, NONE), now + SECOND * 2);
        let later = now + 10 * SECOND;
        assert_eq!(link.send(later, 1000, NONE), later + 2 * SECOND, "what is unused is gone");
    }

    #[test]
    fn jitter_overtakes_unless_order_is_kept() {
        let now = Instant::now();
        for (keep_order, second) in [(false, now + SECOND), (true, now + 3 * SECOND)] {
            let mut link = Link::new(None, 2 * SECOND, keep_order);
            assert_eq!(link.send(now, 1, Jitter::Longer(SECOND)), now + 3 * SECOND);
            assert_eq!(link.send(now, 1, Jitter::Shorter(SECOND)), second);
        }
    }

    #[test]
    fn the_slowest_link_does_not_reach_the_end_of_the_clock() {
        let mut link = Link::new(Some(1), Duration::ZERO, false);
        let now = Instant::now();
        assert_eq!(link.send(now, usize::MAX, NONE), now + LONGEST);
    }

    fn arrived(underway: &mut Underway<u32>, now: Instant) -> Vec<u32> {
        std::iter::from_fn(|| underway.arrived(now)).collect()
    }

    #[test]
    fn what_is_underway_arrives_in_time_and_order() {
        let now = Instant::now();
        let mut underway = Underway::new();
        assert_eq!(underway.next(), None);
        underway.send(now + SECOND, 2);
        underway.send(now + 2 * SECOND, 4);
        underway.send(now + SECOND, 3);
        underway.send(now, 1);
        assert_eq!(underway.next(), Some(now));
        assert_eq!(arrived(&mut underway, now), [1]);
        assert_eq!(arrived(&mut underway, now + SECOND), [2, 3]);
        assert_eq!((underway.len(), underway.next()), (1, Some(now + 2 * SECOND)));
        assert_eq!(underway.take_all(), [4]);
    }

    #[test]
    fn what_is_set_aside_lets_others_pass() {
        let now = Instant::now();
        let mut underway = Underway::new();
        underway.set_aside(1, 2, now + SECOND);
        underway.send(now, 2);
        assert_eq!(arrived(&mut underway, now), [2]);
        underway.send(now, 3);
        underway.send(now, 4);
        assert_eq!(arrived(&mut underway, now), [3, 1, 4]);
    }

    #[test]
    fn what_is_set_aside_does_not_wait_for_ever() {
        let now = Instant::now();
        let mut underway = Underway::new();
        underway.set_aside(1, 5, now + SECOND);
        assert_eq!(underway.next(), Some(now + SECOND));
        assert_eq!(arrived(&mut underway, now), []);
        assert_eq!(arrived(&mut underway, now + SECOND), [1]);
        underway.set_aside(2, 5, now + SECOND);
        underway.send(now, 3);
        assert_eq!(underway.take_all(), [3, 2]);
    }
}
