//! Retained packets that must have a verdict by some time.
//!
//! Whoever comes first decides: the program, which takes the claim before it sends a verdict, or
//! the queue, which ends the claims whose time is up.

use std::cmp::Ordering as Order;
use std::collections::BinaryHeap;
use std::sync::PoisonError;
use std::time::Instant;

use crate::sync::{AtomicBool, AtomicU8, Mutex, MutexGuard, Ordering, Shared};

/// The right to judge one packet.
#[derive(Debug, Default)]
pub(crate) struct Claim(AtomicU8);

const OPEN: u8 = 0;
const TAKEN: u8 = 1;
const EXPIRED: u8 = 2;

impl Claim {
    /// For the program: false if time was up before.
    pub(crate) fn take(&self) -> bool {
        self.0.compare_exchange(OPEN, TAKEN, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn expire(&self) -> bool {
        self.0.compare_exchange(OPEN, EXPIRED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn is_open(&self) -> bool {
        self.0.load(Ordering::SeqCst) == OPEN
    }
}

/// A packet of a queue and when its time is up.
#[derive(Debug)]
struct Entry {
    at: Instant,
    queue: u16,
    id: u32,
    claim: Shared<Claim>,
}

/// The earliest is the greatest, so that it lies on top of the heap.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Order {
        other.at.cmp(&self.at)
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}

impl Eq for Entry {}

/// The deadlines of a binding's retained packets.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    /// Most programs set none and pay for none.
    is_used: AtomicBool,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    heap: BinaryHeap<Entry>,
    /// At this length, entries whose packets are judged are thrown out.
    tidy_at: usize,
}

/// Below this, tidying up is not worth it.
const TIDY_AT_LEAST: usize = 64;

impl Deadlines {
    /// Sets a packet's deadline. Returns its claim, and whether no other deadline is earlier.
    pub(crate) fn set(&self, at: Instant, queue: u16, id: u32) -> (Shared<Claim>, bool) {
        let claim = Shared::new(Claim::default());
        let mut pending = self.pending();
        let is_next = pending.heap.peek().is_none_or(|next| at < next.at);
        if pending.heap.len() >= pending.tidy_at {
            pending.heap.retain(|entry| entry.claim.is_open());
            pending.tidy_at = TIDY_AT_LEAST.max(2 * pending.heap.len());
        }
        pending.heap.push(Entry { at, queue, id, claim: Shared::clone(&claim) });
        self.is_used.store(true, Ordering::SeqCst);
        (claim, is_next)
    }

    /// Ends the claims whose time is up, and returns the packets' queue numbers and ids.
    pub(crate) fn expire(&self, now: Instant) -> Vec<(u16, u32)> {
        let mut expired = Vec::new();
        let mut pending = self.pending();
        while let Some(entry) = pending.heap.peek() {
            if entry.at > now {
                break;
            }
            if entry.claim.expire() {
                expired.push((entry.queue, entry.id));
            }
            pending.heap.pop();
        }
        expired
    }

    /// The next time that [`Deadlines::expire`] has something to do.
    pub(crate) fn next(&self) -> Option<Instant> {
        if !self.is_used.load(Ordering::SeqCst) {
            return None;
        }
        let mut pending = self.pending();
        while let Some(entry) = pending.heap.peek() {
            if entry.claim.is_open() {
                return Some(entry.at);
            }
            pending.heap.pop();
        }
        None
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn packets_expire_in_the_order_of_their_deadlines() {
        let deadlines = Deadlines::default();
        assert_eq!(deadlines.next(), None);
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(deadlines.set(after(3), 1, 30).1, "the first is the next");
        assert!(!deadlines.set(after(5), 1, 50).1);
        assert!(deadlines.set(after(1), 2, 10).1);
        assert_eq!(deadlines.next(), Some(after(1)));
        assert_eq!(deadlines.expire(now), []);
        assert_eq!(deadlines.expire(after(3)), [(2, 10), (1, 30)]);
        assert_eq!(deadlines.next(), Some(after(5)));
    }

    #[test]
    fn a_claim_goes_to_whoever_is_first() {
        let deadlines = Deadlines::default();
        let now = Instant::now();
        let (taken, _) = deadlines.set(now, 1, 1);
        let (late, _) = deadlines.set(now, 1, 2);
        assert!(taken.take());
        assert_eq!(deadlines.expire(now), [(1, 2)]);
        assert!(!late.take(), "its time was up");
        assert!(!taken.take(), "a claim is taken once");
        assert_eq!(deadlines.next(), None);
    }

    #[test]
    fn judged_packets_do_not_pile_up() {
        let deadlines = Deadlines::default();
        let far = Instant::now() + Duration::from_secs(3_600);
        for id in 0..10_000 {
            assert!(deadlines.set(far, 1, id).0.take());
        }
        assert!(deadlines.pending().heap.len() <= TIDY_AT_LEAST);
        assert_eq!(deadlines.next(), None);
    }
}
