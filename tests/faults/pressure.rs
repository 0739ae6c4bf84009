//! Floods: more packets than the socket or the queue has room for.

use std::os::fd::AsFd;
use std::sync::{Mutex, mpsc};
use std::thread;

use netfilterqueue::{Batch, Queue, QueueBuilder, RetainedPacket, Stats};
use netfilterqueue_netns::Namespace;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBuf;

use crate::accounts::{Counted, Fate, Ledger, Traffic, balance, number};
use crate::support::{SOON, judge_while, queue_udp};
use crate::{Test, faults};

pub const TESTS: [Test; 6] = faults![
    an_overrun_flood_is_lost_and_counted,
    an_overrun_flood_passes_a_queue_that_fails_open,
    an_overrun_that_is_reported_is_survived,
    a_flood_over_a_full_queue_is_dropped,
    a_flood_over_a_full_queue_that_fails_open_passes,
    threads_commit_while_the_socket_overruns,
];

const FLOOD: u64 = 10_000;

/// Small enough to overrun, large enough for batches.
const SMALL_BUFFER: usize = 50_000;

/// Floods a queue whose judge falls behind again and again.
fn flood(builder: QueueBuilder, traffic: &Traffic, ledger: &Ledger) -> (Stats, Option<u64>) {
    flood_queue(builder.bind().unwrap(), traffic, ledger)
}

fn flood_queue(mut queue: Queue, traffic: &Traffic, ledger: &Ledger) -> (Stats, Option<u64>) {
    let _rules = queue_udp(1);
    let mut judged = 0;
    let mut fall_behind = || {
        judged += 1;
        if judged % 500 == 1 {
            traffic.wait_for(FLOOD.min(traffic.sent() + 1_000));
        }
    };
    let send = || traffic.send(FLOOD as usize, 4);
    judge_while(
        &mut queue,
        |packet| {
            fall_behind();
            ledger.judge(packet)
        },
        send,
    );
    judge_rest(&mut queue, traffic, ledger);
    (queue.stats(), balance(1, &queue.stats(), ledger))
}

/// Judges what still waits, and a last packet, by which losses before it are seen.
fn judge_rest(queue: &mut Queue, traffic: &Traffic, ledger: &Ledger) {
    queue.set_nonblocking(true);
    for last in [0, 1] {
        traffic.send(last, 4);
        queue.run(|packet| ledger.judge(packet)).unwrap();
    }
}

fn new() -> (Traffic, Ledger) {
    (Traffic::new(FLOOD as usize, 4), Ledger::default())
}

fn an_overrun_flood_is_lost_and_counted(_: &Namespace) {
    let (traffic, ledger) = new();
    let builder = Queue::builder(1).receive_buffer(SMALL_BUFFER).max_len(100_000);
    let (stats, queue_dropped) = flood(builder, &traffic, &ledger);
    assert_eq!(queue_dropped.unwrap_or(0), 0);
    assert!(stats.lost > 100, "{stats:?}");
    traffic.settle(&ledger, Counted { lost: stats.lost, ..Counted::default() });
    expect_gaps(&ledger, 0);
}

fn an_overrun_flood_passes_a_queue_that_fails_open(_: &Namespace) {
    let (traffic, ledger) = new();
    let builder = Queue::builder(1).receive_buffer(SMALL_BUFFER).max_len(100_000);
    let (stats, _) = flood(builder.fail_open(true), &traffic, &ledger);
    assert!(stats.lost > 100, "{stats:?}");
    traffic.settle(&ledger, Counted { passed: stats.lost, ..Counted::default() });
    expect_gaps(&ledger, 0);
}

/// A socket from elsewhere without `NETLINK_NO_ENOBUFS`: the kernel reports the overrun, and drops
/// everything from then on until the socket is empty.
fn an_overrun_that_is_reported_is_survived(_: &Namespace) {
    let (traffic, ledger) = new();
    let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    setsockopt(&socket, RcvBuf, &SMALL_BUFFER).unwrap();
    let socket = socket.as_fd().try_clone_to_owned().unwrap();
    let builder = Queue::builder(1).receive_buffer(SMALL_BUFFER).max_len(100_000);
    let queue = builder.bind_on(socket).unwrap();
    let (stats, _) = flood_queue(queue, &traffic, &ledger);
    assert!(stats.lost > 100 && stats.overruns > 0, "{stats:?}");
    traffic.settle(&ledger, Counted { lost: stats.lost, ..Counted::default() });
    expect_gaps(&ledger, 0);
}

fn a_flood_over_a_full_queue_is_dropped(_: &Namespace) {
    let (traffic, ledger) = new();
    let (stats, queue_dropped) = flood(Queue::builder(1).max_len(50), &traffic, &ledger);
    assert_eq!(stats.lost, 0);
    let unseen = traffic.sent() - stats.received;
    assert!(unseen > 100, "{stats:?}");
    assert_eq!(queue_dropped.unwrap_or(unseen), unseen);
    traffic.settle(&ledger, Counted { lost: unseen, ..Counted::default() });
    expect_gaps(&ledger, unseen as u32);
}

fn a_flood_over_a_full_queue_that_fails_open_passes(_: &Namespace) {
    let (traffic, ledger) = new();
    let builder = Queue::builder(1).max_len(50).fail_open(true);
    let (stats, queue_dropped) = flood(builder, &traffic, &ledger);
    assert_eq!((stats.lost, queue_dropped.unwrap_or(0)), (0, 0));
    let unseen = traffic.sent() - stats.received;
    assert!(unseen > 100, "{stats:?}");
    traffic.settle(&ledger, Counted { passed: unseen, ..Counted::default() });
    expect_gaps(&ledger, unseen as u32);
}

/// One thread sends, so ids and numbers rise together; packets lost on the way up have ids, while
/// `without_id` that found the queue full have none.
fn expect_gaps(ledger: &Ledger, without_id: u32) {
    let numbers = ledger.numbers(1);
    let mut behind = 0;
    for (id, number) in &numbers {
        // The first id is 1, the first number 0.
        let now = number + 1 - id;
        assert!(now >= behind, "packet {id} has the number {number}, after {behind} without id");
        behind = now;
    }
    assert_eq!(behind, without_id);
}

/// A reader, three threads that commit its batches, and one that judges what they retain, last come
/// first served.
fn threads_commit_while_the_socket_overruns(_: &Namespace) {
    let (traffic, ledger) = new();
    let builder = Queue::builder(1).receive_buffer(SMALL_BUFFER).max_len(100_000);
    let mut queue = builder.bind().unwrap();
    let _rules = queue_udp(1);
    let (to_commit, batches) = mpsc::channel();
    let (to_reader, empty) = mpsc::channel();
    (0..6).for_each(|_| to_reader.send(Batch::new(32)).unwrap());
    let batches = Mutex::new(batches);
    let (to_judge, retained) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..3 {
            let (to_reader, to_judge) = (to_reader.clone(), to_judge.clone());
            let (batches, ledger) = (&batches, &ledger);
            scope.spawn(move || {
                loop {
                    let next = batches.lock().unwrap().recv();
                    let Ok(mut batch) = next else { return };
                    decide(&mut batch, ledger, &to_judge);
                    // The reader is gone when it has seen all.
                    let _ = to_reader.send(batch);
                }
            });
        }
        drop(to_judge);
        let judged = &ledger;
        scope.spawn(move || judge_newest_first(retained, judged));
        let flood = scope.spawn(|| traffic.send(FLOOD as usize, 4));
        loop {
            let mut batch = empty.recv_timeout(SOON).expect("a batch comes back");
            let is_over = flood.is_finished();
            match queue.recv_timeout(&mut batch, SOON / 100) {
                Ok(_) => to_commit.send(batch).unwrap(),
                Err(netfilterqueue::Error::WouldBlock) if is_over => break,
                Err(netfilterqueue::Error::WouldBlock) => to_reader.send(batch).unwrap(),
                Err(error) => panic!("{error}"),
            }
        }
        drop(to_commit);
    });
    judge_rest(&mut queue, &traffic, &ledger);
    let stats = queue.stats();
    balance(1, &stats, &ledger);
    assert!(stats.lost > 100, "{stats:?}");
    assert_eq!(stats.refused, 0, "{:?}", queue.take_refusals());
    traffic.settle(&ledger, Counted { lost: stats.lost, ..Counted::default() });
    expect_gaps(&ledger, 0);
}

/// Decides about a batch, retains every seventh packet, and commits.
fn decide(batch: &mut Batch, ledger: &Ledger, to_judge: &mpsc::Sender<RetainedPacket>) {
    for packet in &mut *batch {
        if packet.id().is_multiple_of(7) {
            to_judge.send(packet.retain().0).unwrap();
        } else {
            ledger.judge(packet);
        }
    }
    batch.commit().unwrap();
}

#[expect(clippy::needless_pass_by_value, reason = "a receiver belongs to one thread")]
fn judge_newest_first(retained: mpsc::Receiver<RetainedPacket>, ledger: &Ledger) {
    while let Ok(first) = retained.recv() {
        let mut held = vec![first];
        held.extend(retained.try_iter());
        while let Some(packet) = held.pop() {
            let number = number(packet.payload());
            let fate = Fate::of(number);
            ledger.note(packet.queue(), packet.id(), number, fate);
            packet.verdict(fate.verdict()).unwrap();
        }
    }
}
