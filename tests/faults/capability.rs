//! `CAP_NET_ADMIN` is lost while a queue is at work, and regained.

use std::thread;

use netfilterqueue::{Batch, Errno, Error, Queue, RetainedPacket};
use netfilterqueue_netns::Namespace;

use crate::accounts::{Counted, Fate, Ledger, Traffic, balance, number};
use crate::support::{kernel_stats, queue_udp, receive_exactly, wait_until, without_capability};
use crate::{Test, faults};

pub const TESTS: [Test; 3] = faults![
    lost_and_regained_under_traffic,
    packets_that_are_held_meanwhile_are_judged_afterwards,
    a_thread_without_it_does_not_stop_the_others,
];

/// So many packets fill the queue: if any stayed behind, the next wave would not fit.
const WAVE: usize = 64;

/// Judges all that waits, a batch at a time. Returns the ids that each datagram of verdicts was
/// about: one per batch.
fn judge_all(queue: &mut Queue, ledger: &Ledger) -> Vec<Vec<u32>> {
    let mut batch = Batch::new(16);
    let mut datagrams = Vec::new();
    loop {
        match queue.recv(&mut batch) {
            Ok(_) => {}
            Err(Error::WouldBlock) => return datagrams,
            Err(error) => panic!("{error}"),
        }
        let mut ids = Vec::new();
        for packet in &mut batch {
            ids.push(packet.id());
            ledger.judge(packet);
        }
        batch.commit().expect("refusals come later");
        datagrams.push(ids);
    }
}

/// Calls the receive that drops what was refused, until the kernel has done so.
fn sweep(queue: &mut Queue) {
    queue.set_nonblocking(true);
    wait_until("the end of refused packets", || {
        let result = queue.recv(&mut Batch::new(1));
        assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
        queue.next_deadline().is_none()
    });
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!(kernel.waiting, 0, "{kernel:?}");
    }
}

fn lost_and_regained_under_traffic(_: &Namespace) {
    const ROUNDS: usize = 8;
    let mut queue = Queue::builder(1).max_len(WAVE as u32).nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(2 * ROUNDS * WAVE, 100), Ledger::default());
    let (mut refused, mut expected) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        traffic.send(WAVE, 100);
        judge_all(&mut queue, &ledger);
        traffic.send(WAVE, 100);
        without_capability(|| {
            let datagrams = judge_all(&mut queue, &ledger);
            assert_eq!(datagrams.concat().len(), WAVE, "nothing had stayed behind");
            expected.extend(datagrams);
            // Nor can they be dropped as long as it lacks.
            for _ in 0..5 {
                let result = queue.recv(&mut Batch::new(1));
                assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
            }
            assert!(queue.next_deadline().is_some(), "it is tried again");
            if let Some(kernel) = kernel_stats(1) {
                assert_eq!(kernel.waiting, WAVE as u32, "they wait");
            }
        });
        refused.extend(queue.take_refusals());
        sweep(&mut queue);
    }
    let stats = queue.stats();
    assert_eq!(balance(1, &stats, &ledger).unwrap_or(0), 0);
    // Each datagram is refused once, with the id of its first message.
    assert_eq!(refused.len(), expected.len());
    for (refusal, ids) in refused.iter().zip(&expected) {
        assert_eq!(refusal.errno, Errno::EPERM);
        let is_first = ids.first() == Some(&refusal.id);
        assert!(is_first || refusal.cumulative && ids.contains(&refusal.id), "{refusal:?} {ids:?}");
    }
    assert_eq!(stats.refused, refused.len() as u64, "the attempts to drop them do not count");
    let numbers = ledger.numbers(1);
    let accepted = |id: &&u32| Fate::of(numbers[*id]) == Fate::Accepted;
    let flushed = expected.iter().flatten().filter(accepted).count() as u64;
    traffic.settle(&ledger, Counted { flushed, ..Counted::default() });
}

/// A packet that somebody holds is not dropped with those that were refused, and no packet that
/// came later.
fn packets_that_are_held_meanwhile_are_judged_afterwards(_: &Namespace) {
    let mut queue = Queue::builder(1).max_len(4096).nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(4 * WAVE, 100), Ledger::default());
    traffic.send(WAVE, 100);
    let mut batch = receive_exactly(&mut queue, WAVE);
    queue.set_nonblocking(true);
    let mut held: Vec<_> = batch.iter_mut().map(|packet| packet.retain().0).collect();
    let judge = |packet: RetainedPacket| {
        let number = number(packet.payload());
        ledger.note(1, packet.id(), number, Fate::of(number));
        packet.verdict(Fate::of(number).verdict()).expect("refusals come later");
        Fate::of(number)
    };
    // Every other one is judged now, and refused.
    let mut flushed = 0;
    let mut kept = Vec::new();
    without_capability(|| {
        for (at, packet) in held.drain(..).enumerate() {
            if at % 2 == 0 {
                kept.push(packet);
            } else {
                flushed += u64::from(judge(packet) == Fate::Accepted);
            }
        }
    });
    traffic.send(WAVE, 100);
    // More are judged, while the refused ones cannot be dropped because of those that are held.
    judge_all(&mut queue, &ledger);
    traffic.send(WAVE, 100);
    judge_all(&mut queue, &ledger);
    assert_eq!(queue.stats().refused, WAVE as u64 / 2);
    assert_eq!(queue.stats().held, WAVE as u64 / 2);
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!(kernel.waiting, WAVE as u32, "those that are held and those that were refused");
    }
    kept.into_iter().for_each(|packet| _ = judge(packet));
    // These are not read when the others are dropped.
    traffic.send(WAVE, 100);
    let mut none = Batch::new(1);
    assert_eq!(queue.recv(&mut none).unwrap(), 1);
    for packet in &mut none {
        ledger.judge(packet);
    }
    drop(none);
    judge_all(&mut queue, &ledger);
    sweep(&mut queue);
    assert_eq!(balance(1, &queue.stats(), &ledger).unwrap_or(0), 0);
    traffic.settle(&ledger, Counted { flushed, ..Counted::default() });
}

/// One thread judges what is retained, and lacks the capability for a time; another one receives
/// and judges, and never lacks it.
fn a_thread_without_it_does_not_stop_the_others(_: &Namespace) {
    const ROUNDS: usize = 10;
    let mut queue = Queue::builder(1).max_len(4096).nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(ROUNDS * WAVE, 100), Ledger::default());
    let mut flushed = 0;
    for _ in 0..ROUNDS {
        traffic.send(WAVE, 100);
        let mut batch = receive_exactly(&mut queue, WAVE);
        queue.set_nonblocking(true);
        let mut given = Vec::new();
        for packet in &mut batch {
            if number(packet.payload()) % 3 == 1 {
                given.push(packet.retain().0);
            } else {
                ledger.judge(packet);
            }
        }
        let ledger = &ledger;
        let refused = thread::scope(|scope| {
            let worker = scope.spawn(move || {
                without_capability(|| {
                    let mut accepted = 0;
                    for packet in given {
                        let number = number(packet.payload());
                        ledger.note(1, packet.id(), number, Fate::of(number));
                        accepted += u64::from(Fate::of(number) == Fate::Accepted);
                        packet.verdict(Fate::of(number).verdict()).expect("refusals come later");
                    }
                    accepted
                })
            });
            batch.commit().expect("this thread has it");
            worker.join().unwrap()
        });
        flushed += refused;
        sweep(&mut queue);
    }
    assert_eq!(balance(1, &queue.stats(), &ledger).unwrap_or(0), 0);
    traffic.settle(&ledger, Counted { flushed, ..Counted::default() });
}
