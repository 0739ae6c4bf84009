//! Floods: more packets than the socket or the queue has room for.

use std::thread;

use netfilterqueue::{Queue, QueueBuilder};
use netfilterqueue_netns::Namespace;

use crate::accounts::{Counted, Ledger, Traffic, balance};
use crate::support::{judge_while, queue_udp};
use crate::{Test, faults};

pub const TESTS: [Test; 2] = faults![
    a_flood_over_a_small_receive_buffer_is_accounted_for,
    a_flood_over_a_small_receive_buffer_passes_where_the_queue_fails_open,
];

const FLOOD: usize = 10_000;

/// Floods a queue while a thread judges, and lets it rest until all is judged.
fn flood(builder: QueueBuilder, traffic: &Traffic, ledger: &Ledger) -> Queue {
    let mut queue = builder.bind().unwrap();
    let _rules = queue_udp(1);
    judge_while(
        &mut queue,
        |packet| ledger.judge(packet),
        || {
            thread::scope(|scope| {
                scope.spawn(|| traffic.send(FLOOD, 4));
            });
        },
    );
    // What still waits; and a last packet, by which gaps before it are seen.
    queue.set_nonblocking(true);
    queue.run(|packet| ledger.judge(packet)).unwrap();
    traffic.send(1, 4);
    queue.run(|packet| ledger.judge(packet)).unwrap();
    queue
}

fn a_flood_over_a_small_receive_buffer_is_accounted_for(_: &Namespace) {
    let (traffic, ledger) = (Traffic::new(FLOOD, 4), Ledger::default());
    let queue = flood(Queue::builder(1).receive_buffer(1), &traffic, &ledger);
    let stats = queue.stats();
    let queue_dropped = balance(1, &stats, &ledger);
    assert_eq!(queue_dropped.unwrap_or(0), 0);
    assert!(stats.lost > 0, "{stats:?}");
    traffic.settle(&ledger, Counted { lost: stats.lost, ..Counted::default() });
}

fn a_flood_over_a_small_receive_buffer_passes_where_the_queue_fails_open(_: &Namespace) {
    let (traffic, ledger) = (Traffic::new(FLOOD, 4), Ledger::default());
    let builder = Queue::builder(1).receive_buffer(1).fail_open(true);
    let queue = flood(builder, &traffic, &ledger);
    let stats = queue.stats();
    balance(1, &stats, &ledger);
    assert!(stats.lost > 0, "{stats:?}");
    traffic.settle(&ledger, Counted { passed: stats.lost, ..Counted::default() });
}
