//! What passes, by flow: a bounded number of them.

use std::collections::hash_map::RandomState;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use netfilterqueue_programs::Flow;

/// Flows with their counters; both directions are one.
#[derive(Debug)]
pub(crate) struct Flows {
    /// By the direction of their first packet.
    flows: LruCache<Flow, Counters, RandomState>,
    idle: Duration,
    counted_at: Instant,
    /// Packets that were no IP packets, or cut off.
    pub(crate) unreadable: u64,
    /// Flows that were forgotten for want of room.
    pub(crate) forgotten: u64,
}

#[derive(Debug, Clone, Copy)]
struct Counters {
    there: Traffic,
    back: Traffic,
    /// Bytes both ways when they were last read.
    bytes_before: u64,
    last_seen: Instant,
}

/// What has gone one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Traffic {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// A flow as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) flow: Flow,
    pub(crate) there: Traffic,
    pub(crate) back: Traffic,
    /// Bytes per second since it was last looked at.
    pub(crate) rate: u64,
    pub(crate) silent_for: Duration,
}

/// By what flows are sorted, most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Order {
    /// Bytes per second
    Rate,
    /// Bytes
    Bytes,
    /// Packets
    Packets,
    /// Who was heard of last
    Recent,
}

impl Order {
    pub(crate) const fn next(self) -> Self {
        match self {
            Self::Rate => Self::Bytes,
            Self::Bytes => Self::Packets,
            Self::Packets => Self::Recent,
            Self::Recent => Self::Rate,
        }
    }

    pub(crate) fn sort(self, rows: &mut [Row]) {
        rows.sort_by_cached_key(|row| {
            let key = match self {
                Self::Rate => row.rate,
                Self::Bytes => row.there.bytes + row.back.bytes,
                Self::Packets => row.there.packets + row.back.packets,
                Self::Recent => {
                    u64::MAX - u64::try_from(row.silent_for.as_millis()).unwrap_or(u64::MAX)
                }
            };
            // Equal ones keep their places from picture to picture.
            (std::cmp::Reverse(key), row.flow.to_string())
        });
    }
}

impl Flows {
    pub(crate) fn new(most: NonZeroUsize, idle: Duration, now: Instant) -> Self {
        let flows = LruCache::with_hasher(most, RandomState::new());
        Self { flows, idle, counted_at: now, unreadable: 0, forgotten: 0 }
    }

    /// Counts a packet of which the beginning is at hand.
    pub(crate) fn count(&mut self, packet: &[u8], bytes: u64, now: Instant) {
        let Some(flow) = Flow::of(packet) else {
            self.unreadable += 1;
            return;
        };
        if let Some(counters) = self.flows.get_mut(&flow) {
            counters.there.add(bytes);
            counters.last_seen = now;
        } else if let Some(counters) = self.flows.get_mut(&flow.reversed()) {
            counters.back.add(bytes);
            counters.last_seen = now;
        } else {
            let there = Traffic { packets: 1, bytes };
            let back = Traffic::default();
            let counters = Counters { there, back, bytes_before: 0, last_seen: now };
            self.forgotten += u64::from(self.flows.push(flow, counters).is_some());
        }
    }

    /// Forgets who is silent, and reads the others; rates are those since this was last called.
    pub(crate) fn read(&mut self, now: Instant) -> Vec<Row> {
        while let Some((_, oldest)) = self.flows.peek_lru()
            && now.saturating_duration_since(oldest.last_seen) >= self.idle
        {
            self.flows.pop_lru();
        }
        let elapsed = now.saturating_duration_since(self.counted_at);
        self.counted_at = now;
        let row = |(flow, counters): (&Flow, &mut Counters)| {
            let bytes = counters.there.bytes + counters.back.bytes;
            let rate = per_second(bytes - counters.bytes_before, elapsed);
            counters.bytes_before = bytes;
            let silent_for = now.saturating_duration_since(counters.last_seen);
            Row { flow: *flow, there: counters.there, back: counters.back, rate, silent_for }
        };
        self.flows.iter_mut().map(row).collect()
    }
}

impl Traffic {
    fn add(&mut self, bytes: u64) {
        self.packets += 1;
        self.bytes += bytes;
    }
}

/// How much that is in a second; nothing if no time has passed.
pub(crate) fn per_second(count: u64, elapsed: Duration) -> u64 {
    let rate = u128::from(count) * 1_000_000_000 / elapsed.as_nanos().max(1);
    if elapsed.is_zero() { 0 } else { u64::try_from(rate).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn packet(from: u16, to: u16) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 1], 64).udp(from, to);
        builder.write(&mut packet, b"body").unwrap();
        packet
    }

    fn flows(most: usize, now: Instant) -> Flows {
        Flows::new(NonZeroUsize::new(most).unwrap(), 10 * SECOND, now)
    }

    #[test]
    fn both_directions_are_one_flow() {
        let now = Instant::now();
        let mut flows = flows(10, now);
        flows.count(&packet(1, 2), 100, now);
        flows.count(&packet(2, 1), 40, now);
        flows.count(&packet(1, 2), 60, now);
        let rows = flows.read(now + 2 * SECOND);
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!(row.flow.ports, Some((1, 2)));
        assert_eq!(row.there, Traffic { packets: 2, bytes: 160 });
        assert_eq!(row.back, Traffic { packets: 1, bytes: 40 });
        assert_eq!((row.rate, row.silent_for), (100, 2 * SECOND));
        assert_eq!(flows.read(now + 3 * SECOND)[0].rate, 0, "since then");
    }

    #[test]
    fn the_silent_are_forgotten() {
        let now = Instant::now();
        let mut flows = flows(2, now);
        flows.count(&packet(1, 1), 1, now);
        flows.count(&packet(2, 2), 1, now + SECOND);
        flows.count(&packet(3, 3), 1, now + 2 * SECOND);
        assert_eq!((flows.read(now + 3 * SECOND).len(), flows.forgotten), (2, 1));
        let rows = flows.read(now + 11 * SECOND);
        assert_eq!(rows.iter().map(|row| row.flow.ports).collect::<Vec<_>>(), [Some((3, 3))]);
        assert!(flows.read(now + 100 * SECOND).is_empty());
    }

    #[test]
    fn what_is_no_packet_is_counted() {
        let now = Instant::now();
        let mut flows = flows(1, now);
        flows.count(&[0xff; 30], 30, now);
        flows.count(&[], 0, now);
        assert_eq!((flows.unreadable, flows.read(now).len()), (2, 0));
    }

    #[test]
    fn orders_put_most_first() {
        let row = |port, rate, packets, bytes, silent| Row {
            flow: Flow::of(&packet(port, 9)).unwrap(),
            there: Traffic { packets, bytes },
            back: Traffic::default(),
            rate,
            silent_for: silent * SECOND,
        };
        let mut rows = [row(1, 1, 2, 3, 3), row(2, 2, 3, 1, 2), row(3, 3, 1, 2, 4)];
        let mut order = Order::Rate;
        for expected in [[3, 2, 1], [1, 3, 2], [2, 1, 3], [2, 1, 3]] {
            order.sort(&mut rows);
            let ports = rows.each_ref().map(|row| row.flow.ports.unwrap().0);
            assert_eq!(ports, expected, "{order:?}");
            order = order.next();
        }
        assert_eq!(order, Order::Rate);
    }

    #[test]
    fn no_time_has_no_rate() {
        assert_eq!(per_second(1000, Duration::ZERO), 0);
        assert_eq!(per_second(u64::MAX, Duration::from_nanos(1)), u64::MAX);
        assert_eq!(per_second(1500, 3 * SECOND / 2), 1000);
    }
}
