//! What is on its way: how much may be, so that no buffer overflows, and what has come of it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::plan::{Fate, Stream};

/// At most so much is on its way of one stream, by [`Stream::cost`]: about 400 small datagrams,
/// because the loopback device keeps no more than 1,000 between sending and receiving.
const MOST: u64 = 800 << 10;

/// After this long the sender looks again by itself.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How many datagrams of each fate.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Tally([AtomicU64; Fate::ALL.len()]);

impl Tally {
    pub(crate) fn count(&self, fate: Fate) {
        self.0[fate as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn of(&self, fate: Fate) -> u64 {
        self.0[fate as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn sum(&self) -> u64 {
        Fate::ALL.iter().map(|fate| self.of(*fate)).sum()
    }
}

/// A stream under way, shared by who sends, judges and receives it.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) stream: Stream,
    /// How much may be on its way.
    limit: u64,
    /// All numbers below have been sent, or are just being sent.
    pub(crate) sent_to: AtomicU64,
    /// Of all numbers below it is known what became of them.
    pub(crate) settled_to: AtomicU64,
    /// By [`Stream::cost`].
    cost_sent: AtomicU64,
    cost_settled: AtomicU64,
    /// What was sent, seen by its first queue, seen by the other one, and received.
    pub(crate) sent: Tally,
    pub(crate) judged: Tally,
    pub(crate) seen_again: Tally,
    pub(crate) arrived: Tally,
    /// Datagrams that must arrive.
    pub(crate) due: AtomicU64,
    /// Datagrams that did not arrive, for which the kernel has counted a loss.
    pub(crate) written_off: AtomicU64,
    /// Asks the receiver to give up what has not arrived.
    pub(crate) give_up: AtomicBool,
    /// Nothing more is sent.
    pub(crate) is_sent: AtomicBool,
    pub(crate) is_settled: AtomicBool,
    sender: OnceLock<Thread>,
    sender_waits: AtomicBool,
}

impl Flight {
    /// `room` is what the smallest buffer on the way holds, in bytes.
    pub(crate) fn new(stream: Stream, room: u64) -> Self {
        Self {
            stream,
            limit: MOST.min(room / 2),
            sent_to: AtomicU64::new(0),
            settled_to: AtomicU64::new(0),
            cost_sent: AtomicU64::new(0),
            cost_settled: AtomicU64::new(0),
            sent: Tally::default(),
            judged: Tally::default(),
            seen_again: Tally::default(),
            arrived: Tally::default(),
            due: AtomicU64::new(0),
            written_off: AtomicU64::new(0),
            give_up: AtomicBool::new(false),
            is_sent: AtomicBool::new(false),
            is_settled: AtomicBool::new(false),
            sender: OnceLock::new(),
            sender_waits: AtomicBool::new(false),
        }
    }

    /// How many numbers may be open at a time: what the receiver remembers, and less than half of
    /// what the numbers in the datagrams can tell apart.
    pub(crate) const fn span(&self) -> u64 {
        if self.stream.number_len < 8 { 64 } else { 1 << 16 }
    }

    /// What may be sent now, by cost.
    pub(crate) fn room(&self) -> u64 {
        let settled = self.cost_settled.load(Ordering::Acquire);
        let open = self.cost_sent.load(Ordering::Acquire).saturating_sub(settled);
        self.limit.saturating_sub(open)
    }

    pub(crate) fn launch(&self, cost: u64) {
        self.cost_sent.fetch_add(cost, Ordering::AcqRel);
    }

    /// For who knows that a datagram has arrived, or will not.
    pub(crate) fn settle(&self, cost: u64) {
        self.cost_settled.fetch_add(cost, Ordering::AcqRel);
    }

    /// Nothing is on its way any more.
    pub(crate) fn settle_all(&self) {
        self.cost_settled.store(self.cost_sent.load(Ordering::Acquire), Ordering::Release);
    }

    /// Pauses the sender until there is room again.
    pub(crate) fn wait_for_room(&self) {
        self.sender.get_or_init(thread::current);
        self.sender_waits.store(true, Ordering::SeqCst);
        thread::park_timeout(LOOK_AGAIN);
    }

    /// Wakes the sender, if it waits and there is enough to do.
    pub(crate) fn wake_sender(&self) {
        if self.room() >= self.limit / 2
            && self.sender_waits.swap(false, Ordering::SeqCst)
            && let Some(sender) = self.sender.get()
        {
            sender.unpark();
        }
    }

    /// How many must have arrived and have not.
    pub(crate) fn missing(&self) -> u64 {
        let arrived = self.arrived.sum() + self.written_off.load(Ordering::Relaxed);
        self.due.load(Ordering::Relaxed).saturating_sub(arrived)
    }
}
