//! How much of a queue is retained, for whoever waits until it is less.

use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// The retained packets of a binding.
#[derive(Debug, Default)]
pub(crate) struct Retention {
    packets: AtomicU64,
    bytes: AtomicU64,
    /// Somebody waits for a packet to be let go.
    is_awaited: AtomicBool,
}

/// How much may be retained.
#[cfg(any(feature = "tokio", test))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Retention {
    pub(crate) fn add(&self, bytes: usize) {
        self.packets.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    /// Returns whether somebody waits for it, and is to be woken.
    #[must_use]
    pub(crate) fn remove(&self, bytes: usize) -> bool {
        self.bytes.fetch_sub(bytes as u64, Ordering::SeqCst);
        self.packets.fetch_sub(1, Ordering::SeqCst);
        // Looked at after the counts are less: who has said before that he waits is seen here, who
        // says so later sees the counts.
        self.is_awaited.swap(false, Ordering::SeqCst)
    }

    /// How many packets are retained.
    pub(crate) fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Whether one more packet may be retained. If not, the next [`Retention::remove`] tells that
    /// somebody waits for it.
    #[cfg(any(feature = "tokio", test))]
    pub(crate) fn has_room(&self, limit: Limit) -> bool {
        if self.is_below(limit) {
            return true;
        }
        // As cheap as a store; loom has a store overtaken by the loads that come after it.
        self.is_awaited.swap(true, Ordering::SeqCst);
        self.is_below(limit)
    }

    #[cfg(any(feature = "tokio", test))]
    fn is_below(&self, limit: Limit) -> bool {
        self.packets.load(Ordering::SeqCst) < limit.packets
            && self.bytes.load(Ordering::SeqCst) < limit.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { packets: 2, bytes: 100 };

    #[test]
    fn there_is_room_below_both_limits() {
        let retention = Retention::default();
        retention.add(99);
        assert!(retention.has_room(LIMIT));
        assert!(!retention.remove(99), "nobody waits");
        retention.add(100);
        assert!(!retention.has_room(LIMIT), "the bytes are reached");
        assert!(retention.remove(100), "that was waited for");
        retention.add(0);
        retention.add(0);
        assert!(!retention.has_room(LIMIT), "the packets are reached");
    }

    #[test]
    fn who_waits_is_woken_once() {
        let retention = Retention::default();
        (0..4).for_each(|_| retention.add(1));
        assert!(!retention.has_room(LIMIT));
        assert!(retention.remove(1));
        assert!(!retention.remove(1), "whoever was woken has not asked again");
        assert!(!retention.has_room(LIMIT));
        assert!(retention.remove(1));
        assert!(retention.has_room(LIMIT));
    }
}
