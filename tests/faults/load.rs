//! A queue that is changed, or has buffers too short, while packets keep coming.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use netfilterqueue::{
    Batch, ConfigFlags, CopyMode, Error, FlagChange, Packet, Queue, QueueBuilder, Stats, Verdict,
};
use netfilterqueue_netns::Namespace;

use crate::accounts::{
    Counted, Fate, Ledger, Traffic, balance, fell_short, keep_up, number, patience, received,
};
use crate::support::{kernel_stats, queue_udp};
use crate::{Test, faults};

pub const TESTS: [Test; 4] = faults![
    packets_longer_than_the_buffers_are_dropped_and_counted,
    packets_longer_than_the_buffers_pass_and_are_counted,
    a_thousand_changes_under_a_flood_lose_nothing_uncounted,
    changes_under_an_overrun_lose_nothing_uncounted,
];

const FLOOD: usize = 4_000;

/// Floods a queue with short packets and such as the batch's buffers cannot hold; some of them come
/// while it is being configured.
fn flood_with_long_packets(on_undecided: Verdict, traffic: &Traffic, ledger: &Ledger) -> Stats {
    let builder = Queue::builder(1).max_len(100_000).on_undecided(on_undecided);
    let mut queue = builder.nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    let mut batch = Batch::with_buffer_len(32, 300);
    let mut judge_what_waits = |queue: &mut Queue| {
        let mut changes = 0;
        while received(queue.recv(&mut batch)) {
            for packet in &mut batch {
                ledger.judge(packet);
            }
            batch.commit().unwrap();
            changes += 1;
            queue.set_max_len(100_000 + changes).unwrap();
        }
    };
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            for _ in 0..FLOOD / 4 {
                traffic.send(3, 4);
                traffic.send(1, 1_000);
            }
        });
        while !flood.is_finished() {
            judge_what_waits(&mut queue);
        }
    });
    // A last packet shows what was lost before it.
    judge_what_waits(&mut queue);
    traffic.send(1, 4);
    judge_what_waits(&mut queue);
    let stats = queue.stats();
    assert_eq!(balance(1, &stats, ledger).unwrap_or(0), 0);
    // Each fourth is too long; the last one is not.
    let short = FLOOD as u64 * 3 / 4 + 1;
    let judged = ledger.numbers(1);
    assert!(judged.values().all(|number| number % 4 != 3), "a long one was judged");
    // No other than these is missing, whether they were lost or did not fit.
    let (short_missing, long) = (short - judged.len() as u64, FLOOD as u64 / 4);
    assert_eq!(short_missing + (long - stats.truncated), stats.lost, "{stats:?}");
    assert!(stats.truncated > 100, "{stats:?}");
    assert_eq!((stats.malformed, stats.refused), (0, 0));
    stats
}

fn packets_longer_than_the_buffers_are_dropped_and_counted(_: &Namespace) {
    let (traffic, ledger) = (Traffic::new(FLOOD, 300), Ledger::default());
    let stats = flood_with_long_packets(Verdict::Drop, &traffic, &ledger);
    let lost = stats.lost + stats.truncated;
    traffic.settle(&ledger, Counted { lost, ..Counted::default() });
}

fn packets_longer_than_the_buffers_pass_and_are_counted(_: &Namespace) {
    let (traffic, ledger) = (Traffic::new(FLOOD, 300), Ledger::default());
    let stats = flood_with_long_packets(Verdict::Accept, &traffic, &ledger);
    let counted = Counted { lost: stats.lost, passed: stats.truncated, flushed: 0 };
    traffic.settle(&ledger, counted);
}

const PER_CHANGE: usize = 15;

/// The change of a round: what is copied, how many packets fit, what else comes along.
fn change(queue: &mut Queue, round: u64, may_fail_open: bool) -> Result<(), Error> {
    const LENGTHS: [u32; 4] = [4_000, 5, 100, 30];
    let turn = (round / 3) as usize;
    match round % 3 {
        0 => {
            let range = 32 + (round % 40) as u32;
            let modes = [CopyMode::WHOLE, CopyMode::Meta, CopyMode::Packet { range }];
            queue.set_copy_mode(modes[turn % modes.len()])
        }
        1 => queue.set_max_len(LENGTHS[turn % LENGTHS.len()]),
        _ => {
            let fail_open = if may_fail_open { ConfigFlags::FAIL_OPEN } else { ConfigFlags(0) };
            let mask = ConfigFlags::UID_GID | ConfigFlags::GSO | fail_open;
            let values = ConfigFlags(mask.0 & [!0, 0, ConfigFlags::GSO.0][turn % 3]);
            queue.set_flags(FlagChange { mask, values })
        }
    }
}

/// By its mark, since not all packets are copied.
fn number_of(packet: &Packet<'_>) -> u32 {
    let marked = packet.mark().expect("a mark") - 1;
    if packet.payload().len() >= 32 {
        assert_eq!(number(packet.payload()), marked);
    }
    marked
}

fn a_thousand_changes_under_a_flood_lose_nothing_uncounted(_: &Namespace) {
    let stats = change_under_a_flood(Queue::builder(1), 1_000);
    assert_eq!(stats.lost, 0, "it all had room in the socket");
}

/// Answers of the kernel get lost as well, each of which takes some milliseconds to ask again.
fn changes_under_an_overrun_lose_nothing_uncounted(_: &Namespace) {
    let stats = change_under_a_flood(Queue::builder(1).receive_buffer(5_000), 200);
    assert!(stats.lost > 0, "{stats:?}");
}

fn change_under_a_flood(builder: QueueBuilder, changes: u64) -> Stats {
    let total = changes as usize * PER_CHANGE;
    let (traffic, ledger) = (Traffic::new(total, 64).marking(), Ledger::default());
    let mut queue = builder.nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    // How many packets passed a full queue, only the kernel can tell.
    let is_readable = kernel_stats(1).is_some();
    let (changed, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut batch = Batch::new(16);
    let mut judge = |queue: &mut Queue| {
        while received(queue.recv(&mut batch)) {
            for packet in &mut batch {
                let number = number_of(&packet);
                let fate = Fate::of(number);
                ledger.note(1, packet.id(), number, fate);
                packet.verdict(fate.verdict());
            }
            batch.commit().unwrap();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..changes {
                let is_over = || is_over.load(Ordering::SeqCst);
                keep_up("a change", || is_over() || changed.load(Ordering::SeqCst) >= round);
                if is_over() {
                    return;
                }
                traffic.send(PER_CHANGE, 64);
            }
        });
        let until = Instant::now() + patience();
        for round in 0..changes {
            if Instant::now() > until {
                break;
            }
            // At the start of a burst, in the middle, or after it.
            let part = PER_CHANGE as u64 * (round % 3) / 2;
            traffic.wait_for(round * PER_CHANGE as u64 + part);
            change(&mut queue, round, is_readable).unwrap();
            changed.store(round + 1, Ordering::SeqCst);
            if round.is_multiple_of(4) {
                judge(&mut queue);
            }
        }
        is_over.store(true, Ordering::SeqCst);
    });
    let done = changed.into_inner();
    if done < changes {
        fell_short(&format!("{changes} changes under a flood"), done);
    }
    judge(&mut queue);
    queue.set_max_len(10).unwrap();
    traffic.send(1, 64);
    judge(&mut queue);
    let stats = queue.stats();
    let unseen = traffic.sent() - stats.received;
    assert!(unseen > 0, "{stats:?}");
    balance(1, &stats, &ledger);
    assert_eq!((stats.truncated, stats.refused, stats.overruns), (0, 0, 0));
    let lost = kernel_stats(1)
        .map_or(unseen, |kernel| u64::from(kernel.queue_dropped) + u64::from(kernel.user_dropped));
    traffic.settle(&ledger, Counted { lost, passed: unseen - lost, flushed: 0 });
    stats
}
