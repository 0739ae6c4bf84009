//! Panics of the program, under load: in what judges, in one of several threads, in a thread that
//! holds retained packets, in a loop over a batch.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::thread;

use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{Batch, Decided, Error, Packet, Queue, RetainedPacket, Stats, Verdict};
use netfilterqueue_netns::Namespace;

use crate::accounts::{Counted, Fate, Ledger, Traffic, number};
use crate::children::wait_patiently;
use crate::support::{SOON, StopOnDrop, queue_udp};
use crate::{Test, faults};

pub const TESTS: [Test; 6] = faults![
    in_what_judges_the_queue_goes_on_and_drops_the_undecided,
    in_what_judges_the_queue_goes_on_and_accepts_the_undecided_on_request,
    in_what_judges_the_queue_ends_and_the_next_takes_over,
    in_one_of_several_threads_all_end_and_all_go_on,
    in_a_thread_that_holds_packets,
    in_a_loop_over_a_batch,
];

/// Packets of each test.
const PACKETS: usize = 1_500;

/// Packets of a batch: no panic leaves more undecided.
const BATCH: usize = 32;

/// One packet in so many ends its judge.
const FATAL: u32 = 97;

/// A panic that does not print.
fn fail() -> ! {
    resume_unwind(Box::new("on purpose"))
}

/// Judges, or panics at some packets, which are not in the ledger then.
fn judge<'p>(ledger: &Ledger, packet: Packet<'p>) -> Decided<'p> {
    if number(packet.payload()) % FATAL == FATAL - 1 {
        fail();
    }
    ledger.judge(packet)
}

/// How many panics there are, at least: each ends a batch, in which there may be more.
fn expect_panics(panics: usize, packets: usize) {
    let fatal = packets / FATAL as usize;
    assert!((1..=fatal).contains(&panics), "{panics} panics for {fatal} packets");
}

/// Each panic leaves at least the packet undecided that it came at, and at most its batch.
fn expect_undecided(undecided: u64, panics: usize) {
    let bounds = panics as u64..=(panics * BATCH) as u64;
    assert!(bounds.contains(&undecided), "{undecided} undecided after {panics} panics");
}

/// Sends in another thread while `work` runs; `work` is told whether all is sent.
fn under_load<T>(
    traffic: &Traffic,
    packets: usize,
    work: impl FnOnce(&dyn Fn() -> bool) -> T,
) -> T {
    thread::scope(|scope| {
        let sending = scope.spawn(|| (0..packets / 50).for_each(|_| traffic.send(50, 100)));
        work(&|| sending.is_finished())
    })
}

fn in_what_judges_the_queue_goes_on_and_drops_the_undecided(_: &Namespace) {
    panic_in_run(Verdict::Drop);
}

fn in_what_judges_the_queue_goes_on_and_accepts_the_undecided_on_request(_: &Namespace) {
    panic_in_run(Verdict::Accept);
}

fn panic_in_run(on_undecided: Verdict) {
    let mut queue =
        Queue::builder(1).max_len(4096).on_undecided(on_undecided).batch_len(BATCH).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(PACKETS, 100), Ledger::default());
    queue.set_nonblocking(true);
    let panics = under_load(&traffic, PACKETS, |is_over| {
        let mut panics = 0;
        loop {
            let is_last = is_over();
            let run = AssertUnwindSafe(|| queue.run(|packet| judge(&ledger, packet)));
            match catch_unwind(run) {
                Ok(result) => result.unwrap(),
                Err(_) => {
                    panics += 1;
                    continue;
                }
            }
            if is_last {
                return panics;
            }
        }
    });
    expect_panics(panics, PACKETS);
    let undecided = settle(&queue.stats(), &traffic, &ledger, panics, on_undecided);
    // The same queue goes on as if nothing had been.
    let judged = ledger.numbers(1).len();
    traffic.send(30, 100);
    queue.run(|packet| ledger.judge(packet)).unwrap();
    assert_eq!(ledger.numbers(1).len(), judged + 30);
    traffic.settle(&ledger, undecided_are(on_undecided, undecided));
}

/// What is found of packets that get the default verdict.
fn undecided_are(on_undecided: Verdict, packets: u64) -> Counted {
    match on_undecided {
        Verdict::Accept => Counted { passed: packets, ..Counted::default() },
        _ => Counted { lost: packets, ..Counted::default() },
    }
}

/// All packets were answered, and those that a panic left undecided have the default verdict.
/// Returns how many these are.
fn settle(
    stats: &Stats,
    traffic: &Traffic,
    ledger: &Ledger,
    panics: usize,
    on_undecided: Verdict,
) -> u64 {
    assert_eq!((stats.received, stats.answered, stats.held), (traffic.sent(), traffic.sent(), 0));
    assert_eq!((stats.lost, stats.refused), (0, 0));
    let undecided = stats.received - ledger.numbers(1).len() as u64;
    expect_undecided(undecided, panics);
    traffic.settle(ledger, undecided_are(on_undecided, undecided));
    undecided
}

/// The queue is dropped after the panic, with packets unread and one retained.
fn in_what_judges_the_queue_ends_and_the_next_takes_over(_: &Namespace) {
    const ROUNDS: u32 = 10;
    const WAVE: usize = 100;
    let _rules = queue_udp(1);
    let traffic = Traffic::new(WAVE * ROUNDS as usize, 100);
    let (mut judged, mut undecided, mut kept) = (Vec::new(), 0, Vec::new());
    for round in 0..ROUNDS {
        let ledger = Ledger::default();
        let mut queue = Queue::builder(1).batch_len(16).bind().expect("the number is free");
        traffic.send(WAVE, 100);
        let first = round * WAVE as u32;
        let ended = thread::scope(|scope| {
            let run = scope.spawn(|| {
                queue.run(|packet| match number(packet.payload()) - first {
                    40 => fail(),
                    39 => {
                        let (retained, decided) = packet.retain();
                        kept.push(retained);
                        decided
                    }
                    _ => ledger.judge(packet),
                })
            });
            run.join()
        });
        assert!(ended.is_err(), "it panicked");
        let stats = queue.stats();
        assert_eq!((stats.received, stats.answered, stats.held), (48, 47, 1), "three batches");
        drop(queue);
        let numbers = ledger.numbers(1);
        assert_eq!(numbers.len(), 39);
        undecided += WAVE - numbers.len();
        judged.extend(numbers.into_values());
    }
    // What outlives its queue has none to be judged in.
    for packet in kept {
        let not_sent = packet.accept().unwrap_err();
        assert!(matches!(not_sent.error, Error::Closed), "{not_sent}");
    }
    // Ids begin again with each queue; the numbers do not.
    let ledger = Ledger::default();
    for (id, number) in judged.into_iter().enumerate() {
        ledger.note(1, id as u32, number, Fate::of(number));
    }
    traffic.settle(&ledger, undecided_are(Verdict::Drop, undecided as u64));
}

fn in_one_of_several_threads_all_end_and_all_go_on(_: &Namespace) {
    const EACH: usize = 300;
    let mut fanout = Queue::builder(1..=3).max_len(4096).batch_len(BATCH).bind_fanout().unwrap();
    let traffics: Vec<_> = (0..3).map(|_| Traffic::new(EACH, 100)).collect();
    let ledgers: Vec<_> = (0..3).map(|_| Ledger::default()).collect();
    let mut rules = Rules::new(Hook::OUTPUT);
    for (queue, traffic) in (1..).zip(&traffics) {
        for port in traffic.ports() {
            rules = rules.rule(Rule::queue(queue).protocol(Protocol::UDP).destination_port(port));
        }
    }
    let _rules = rules.install().unwrap();
    let mut panics = 0;
    let stop = fanout.stop_handle();
    let stats = fanout.stats_handle();
    thread::scope(|scope| {
        scope.spawn(|| {
            // Also when it never comes to that end.
            let _stop = StopOnDrop(stop);
            for _ in 0..EACH / 50 {
                traffics.iter().for_each(|traffic| traffic.send(50, 100));
            }
            wait_patiently("the end of all packets", || stats.stats().answered == 3 * EACH as u64);
        });
        loop {
            let run = AssertUnwindSafe(|| {
                fanout.run(|number| {
                    let ledger = &ledgers[usize::from(number) - 1];
                    // Only one of the queues is judged badly.
                    move |packet| match number {
                        2 => judge(ledger, packet),
                        _ => ledger.judge(packet),
                    }
                })
            });
            match catch_unwind(run) {
                Ok(result) => break result.unwrap(),
                Err(_) => panics += 1,
            }
        }
    });
    expect_panics(panics, EACH);
    assert_eq!(fanout.stats().received, 3 * EACH as u64);
    for (at, (queue, number)) in fanout.queues().iter().zip(1..).enumerate() {
        let stats = queue.stats();
        assert_eq!((stats.answered, stats.held, stats.lost), (EACH as u64, 0, 0), "queue {number}");
        let undecided = EACH as u64 - ledgers[at].numbers(number).len() as u64;
        match number {
            2 => expect_undecided(undecided, panics),
            _ => assert_eq!(undecided, 0, "queue {number}"),
        }
        traffics[at].settle(&ledgers[at], undecided_are(Verdict::Drop, undecided));
    }
}

/// It is given packets over a channel, ends with some in its hands and some in the channel; the
/// thread that receives goes on, and judges by itself what nobody takes.
fn in_a_thread_that_holds_packets(_: &Namespace) {
    const HOLDS: usize = 20;
    let mut queue = Queue::builder(1).max_len(4096).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(PACKETS, 100), Ledger::default());
    let judge_retained = |packet: RetainedPacket| {
        let number = number(packet.payload());
        ledger.note(1, packet.id(), number, Fate::of(number));
        packet.verdict(Fate::of(number).verdict()).expect("sent");
    };
    let mut ends = 0;
    under_load(&traffic, PACKETS, |_| {
        let mut left = PACKETS;
        while left > 0 {
            let (packets, to_judge) = mpsc::channel::<RetainedPacket>();
            let judge_retained = &judge_retained;
            thread::scope(|scope| {
                let worker = scope.spawn(move || {
                    let mut held = Vec::new();
                    for packet in to_judge {
                        held.push(packet);
                        if held.len() == HOLDS {
                            // Every other one is judged; the thread ends with the rest.
                            held.drain(..HOLDS / 2).for_each(judge_retained);
                            fail();
                        }
                    }
                    // There were too few packets to fail.
                    held.into_iter().for_each(judge_retained);
                });
                let mut batch = Batch::new(16);
                let mut is_alone = false;
                while left > 0 && !is_alone {
                    match queue.recv_timeout(&mut batch, SOON) {
                        Ok(received) => left -= received,
                        Err(error) => panic!("{error}, {left} are left"),
                    }
                    for packet in &mut batch {
                        if let Err(back) = packets.send(packet.retain().0) {
                            judge_retained(back.0);
                            is_alone = true;
                        }
                    }
                }
                drop(packets);
                ends += usize::from(worker.join().is_err());
            });
        }
    });
    assert!(ends > 0, "no thread ended");
    let stats = queue.stats();
    assert_eq!((stats.received, stats.answered, stats.held), (traffic.sent(), traffic.sent(), 0));
    assert_eq!((stats.lost, stats.refused, stats.retained), (0, 0, 0));
    let undecided = stats.received - ledger.numbers(1).len() as u64;
    assert!(undecided as usize >= ends * HOLDS / 2, "{undecided} undecided, {ends} ends");
    traffic.settle(&ledger, undecided_are(Verdict::Drop, undecided));
}

fn in_a_loop_over_a_batch(_: &Namespace) {
    let builder = Queue::builder(1).max_len(4096).on_undecided(Verdict::Accept);
    let mut queue = builder.nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(PACKETS, 100), Ledger::default());
    let mut panics = 0;
    under_load(&traffic, PACKETS, |is_over| {
        // It is committed by the next receive, or goes down with the loop.
        let mut kept = Some(Batch::new(BATCH));
        loop {
            let is_last = is_over();
            let mut batch = kept.take().unwrap_or_else(|| Batch::new(BATCH));
            match queue.recv(&mut batch) {
                Ok(_) => {}
                Err(Error::WouldBlock) if is_last => return,
                Err(Error::WouldBlock) => {
                    kept = Some(batch);
                    continue;
                }
                Err(error) => panic!("{error}"),
            }
            let survives = panics % 2 == 0;
            let judge_all =
                |batch: &mut Batch| batch.into_iter().for_each(|p| _ = judge(&ledger, p));
            let result = if survives {
                let result = catch_unwind(AssertUnwindSafe(|| judge_all(&mut batch)));
                kept = Some(batch);
                result
            } else {
                catch_unwind(AssertUnwindSafe(move || judge_all(&mut { batch })))
            };
            panics += usize::from(result.is_err());
        }
    });
    expect_panics(panics, PACKETS);
    settle(&queue.stats(), &traffic, &ledger, panics, Verdict::Accept);
}
