//! More packets held at once than 16 bits can count, and than new kernels allow in one queue.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use allocation_counter::measure;
use netfilterqueue::{Batch, Queue, RetainedPacket};
use netfilterqueue_netns::Namespace;

use crate::accounts::{
    Counted, Fate, Ledger, Traffic, balance, feed, fell_short, number, patience, received,
};
use crate::support::SOON;
use crate::{Test, faults};

pub const TESTS: [Test; 1] = faults![packets_beyond_65536_are_held_and_judged_in_any_order];

/// Kernels since January 2026 hold 65,536 in one queue and drop the rest, which have ids.
const AT_LEAST: u64 = 65_536;
const MANY: u64 = 66_000;
const FEW: u64 = 1_000;

/// So many are sent before they are received: they fit in the smallest receive buffer.
const ROUND: usize = 40;

/// More than a short packet and its handle need.
const BYTES_PER_PACKET: u64 = 1_000;

/// One of the two queues, and what was sent to it.
struct Side {
    queue: Queue,
    traffic: Traffic,
    ledger: Ledger,
}

impl Side {
    fn new(number: u16, traffic: Traffic) -> Self {
        let queue = Queue::builder(number).max_len(1 << 20).bind().unwrap();
        Self { queue, traffic, ledger: Ledger::default() }
    }

    /// Sends packets and retains them.
    fn hold(&mut self, count: u64, until: Instant) -> Vec<RetainedPacket> {
        let mut held = Vec::new();
        let mut batch = Batch::with_buffer_len(64, 512);
        self.queue.set_nonblocking(true);
        while self.traffic.sent() < count && Instant::now() < until {
            self.traffic.send(ROUND, 4);
            while received(self.queue.recv(&mut batch)) {
                held.extend(batch.iter_mut().map(|packet| packet.retain().0));
            }
        }
        held
    }

    /// One in eight is accepted: few enough for the receiving sockets.
    fn judge(&self, packet: RetainedPacket) {
        let number = number(packet.payload());
        let fate = match number.wrapping_mul(0x9e37_79b1) >> 29 {
            0 => Fate::Accepted,
            _ => Fate::Dropped,
        };
        self.ledger.note(packet.queue(), packet.id(), number, fate);
        packet.verdict(fate.verdict()).unwrap();
    }

    /// A last packet shows what was lost before it.
    fn settle(mut self, number: u16) {
        let last = self.traffic.sent() + 1;
        let last = self.hold(last, Instant::now() + SOON);
        assert_eq!(last.len(), ROUND);
        last.into_iter().for_each(|packet| self.judge(packet));
        let stats = self.queue.stats();
        let queue_dropped = balance(number, &stats, &self.ledger);
        assert_eq!(queue_dropped.unwrap_or(stats.lost), stats.lost, "beyond the kernel's limit");
        assert_eq!(stats.refused, 0);
        assert_eq!(stats.received + stats.lost, self.traffic.sent(), "held or counted");
        self.traffic.settle(&self.ledger, Counted { lost: stats.lost, ..Counted::default() });
    }
}

fn packets_beyond_65536_are_held_and_judged_in_any_order(_: &Namespace) {
    let traffics = [(1, MANY as usize / 4), (2, 2 * FEW as usize)];
    let traffics = traffics.map(|(queue, accepted)| (queue, Traffic::new(accepted, 4)));
    let _rules = feed(&traffics);
    let [mut first, mut second] = traffics.map(|(queue, traffic)| Side::new(queue, traffic));
    let until = Instant::now() + patience();
    let mut held = Vec::new();
    let memory = measure(|| {
        held.extend(first.hold(MANY, until));
        held.extend(second.hold(FEW, Instant::now() + SOON));
    });
    let count = held.len() as u64;
    let of_first = held.iter().filter(|packet| packet.queue() == 1).count() as u64;
    let each = memory.bytes_current.cast_unsigned() / count;
    println!("{count} packets held, {each} bytes each");
    assert!(each < BYTES_PER_PACKET, "{memory:?}");
    if first.traffic.sent() < MANY {
        fell_short("65536 packets held in a queue", of_first);
    } else {
        assert!(of_first >= AT_LEAST, "{of_first} of {} held", first.traffic.sent());
    }
    assert_eq!(count - of_first, second.traffic.sent(), "none is beyond the limit here");
    assert_eq!(first.queue.stats().retained + second.queue.stats().retained, count);
    judge_in_threads(held, |packet| match packet.queue() {
        1 => first.judge(packet),
        _ => second.judge(packet),
    });
    first.settle(1);
    second.settle(2);
}

/// Some from anywhere first, then shuffled stretches, several at a time. (Before 2026 the kernel
/// looks a packet up from the oldest one on, so that to shuffle all takes it very long.)
fn judge_in_threads(mut held: Vec<RetainedPacket>, judge: impl Fn(RetainedPacket) + Sync) {
    let shuffled = |packet: &RetainedPacket| packet.id().wrapping_mul(0x85eb_ca6b);
    let mut work = VecDeque::new();
    work.push_back((0..100).map(|at| held.swap_remove(at * held.len() / 100)).collect());
    held.sort_by_key(|packet| (packet.queue(), packet.id()));
    while !held.is_empty() {
        let rest = held.split_off(held.len().min(250));
        held.sort_by_key(shuffled);
        work.push_back(std::mem::replace(&mut held, rest));
    }
    let work = Mutex::new(work);
    let next = || -> Option<Vec<RetainedPacket>> { work.lock().unwrap().pop_front() };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(packets) = next() {
                    packets.into_iter().for_each(&judge);
                }
            });
        }
    });
}
