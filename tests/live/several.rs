//! Several queue numbers on one socket.

use std::collections::BTreeMap;
use std::thread;

use netfilterqueue::rules::{Family, Hook, Rule, Rules};
use netfilterqueue::{
    Batch, ConfigFlags, CopyMode, Errno, Error, FlagChange, KernelStats, Queue, RetainedPacket,
    Verdict,
};
use netfilterqueue_netns::Namespace;

use crate::held::byte;
use crate::support::{
    Feed, UdpPair, expect_no_packet, judge, kernel_stats, receive_exactly, wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 16] = tests![
    packets_carry_their_queue_and_its_ids,
    equal_ids_get_their_own_verdicts_by_cumulative_messages,
    equal_ids_get_their_own_verdicts_by_exact_messages,
    a_retained_packet_forbids_cumulative_messages_of_its_queue_only,
    retained_packets_with_equal_ids_are_judged_apart,
    a_packet_goes_to_another_queue_of_the_same_socket,
    refusals_carry_the_queue_number,
    gaps_are_counted_per_queue,
    unreadable_packets_of_each_queue_are_answered,
    configuring_all_numbers_under_a_flood_loses_nothing,
    one_number_taken_leaves_the_others_free,
    closing_gives_all_numbers_back,
    a_number_given_twice_counts_once,
    no_number_is_an_error,
    the_first_and_the_last_number_go_together,
    kernel_counters_are_told_per_number,
];

fn bind_1_and_5() -> Queue {
    Queue::builder([5, 1]).bind().unwrap()
}

/// Accepts the packets of queue 5 and drops those of queue 1.
fn accept_those_of_5(batch: &mut Batch) {
    for packet in &mut *batch {
        let verdict = if packet.queue() == 5 { Verdict::Accept } else { Verdict::Drop };
        packet.verdict(verdict);
    }
    batch.commit().unwrap();
}

fn packets_carry_their_queue_and_its_ids(_: &Namespace) {
    let mut queue = bind_1_and_5();
    assert_eq!(queue.numbers().collect::<Vec<_>>(), [1, 5]);
    let feed = Feed::of([1, 5]);
    feed.send_each(10..12);
    feed.udp[1].send(&[12]);
    let mut batch = receive_exactly(&mut queue, 5);
    let seen: Vec<_> =
        batch.iter_mut().map(|packet| (packet.queue(), packet.id(), byte(&packet))).collect();
    assert_eq!(seen, [(1, 1, 10), (5, 1, 10), (1, 2, 11), (5, 2, 11), (5, 3, 12)]);
    assert_eq!(queue.stats().held, 5);
    judge(&mut batch, Verdict::Accept);
    assert_eq!(feed.udp[0].receive_all(2), [[10], [11]]);
    assert_eq!(feed.udp[1].receive_all(3), [[10], [11], [12]]);
    let stats = queue.stats();
    assert_eq!((stats.received, stats.answered, stats.held, stats.lost), (5, 5, 0, 0));
}

fn equal_ids_get_their_own_verdicts_by_cumulative_messages(_: &Namespace) {
    let mut queue = bind_1_and_5();
    let feed = Feed::of([1, 5]);
    for round in 1..=2 {
        feed.send_each(0..10);
        accept_those_of_5(&mut receive_exactly(&mut queue, 20));
        assert_eq!(feed.udp[1].receive_all(10), (0..10).map(|b| vec![b]).collect::<Vec<_>>());
        feed.udp[0].expect_nothing();
        let stats = queue.stats();
        assert_eq!((stats.cumulative_verdicts, stats.exact_verdicts), (2 * round, 0));
        assert_eq!((stats.send_calls, stats.held, stats.refused), (round, 0, 0));
    }
}

fn equal_ids_get_their_own_verdicts_by_exact_messages(_: &Namespace) {
    let mut queue = bind_1_and_5();
    let feed = Feed::of([1, 5]);
    feed.send_each(0..2);
    // In the hands of somebody else until the end.
    let earlier = receive_exactly(&mut queue, 4);
    feed.send_each(2..8);
    accept_those_of_5(&mut receive_exactly(&mut queue, 12));
    assert_eq!(feed.udp[1].receive_all(6), (2..8).map(|b| vec![b]).collect::<Vec<_>>());
    let stats = queue.stats();
    assert_eq!((stats.cumulative_verdicts, stats.exact_verdicts, stats.send_calls), (0, 12, 1));
    assert_eq!(stats.held, 4);
    accept_those_of_5(&mut { earlier });
    assert_eq!(feed.udp[1].receive_all(2), [[0], [1]]);
    feed.udp[0].expect_nothing();
    assert_eq!((queue.stats().cumulative_verdicts, queue.stats().held), (2, 0));
}

fn a_retained_packet_forbids_cumulative_messages_of_its_queue_only(_: &Namespace) {
    let mut queue = bind_1_and_5();
    let feed = Feed::of([1, 5]);
    feed.send_each(0..4);
    let mut batch = receive_exactly(&mut queue, 8);
    let retained: Vec<_> = batch
        .iter_mut()
        .filter_map(|packet| match (packet.queue(), packet.id()) {
            (5, 2) => Some(packet.retain().0),
            _ => {
                packet.accept();
                None
            }
        })
        .collect();
    batch.commit().unwrap();
    let stats = queue.stats();
    assert_eq!((stats.cumulative_verdicts, stats.exact_verdicts, stats.send_calls), (1, 3, 1));
    assert_eq!((stats.held, stats.retained), (1, 1));
    assert_eq!(feed.udp[0].receive_all(4), [[0], [1], [2], [3]]);
    assert_eq!(feed.udp[1].receive_all(3), [[0], [2], [3]]);
    retained.into_iter().for_each(|packet| packet.accept().unwrap());
    assert_eq!(feed.udp[1].receive_all(1), [[1]]);
    feed.udp[0].expect_nothing();
    assert_eq!((queue.stats().held, queue.stats().retained), (0, 0));
}

fn retained_packets_with_equal_ids_are_judged_apart(_: &Namespace) {
    let mut queue = bind_1_and_5();
    let feed = Feed::of([1, 5]);
    feed.send_each(0..3);
    let mut batch = receive_exactly(&mut queue, 6);
    let retained: Vec<RetainedPacket> = batch.iter_mut().map(|packet| packet.retain().0).collect();
    for packet in retained {
        let verdict = match (packet.queue(), packet.id()) {
            (1, 2) | (5, 1 | 3) => Verdict::Drop,
            _ => Verdict::Accept,
        };
        packet.verdict(verdict).unwrap();
    }
    assert_eq!(feed.udp[0].receive_all(2), [[0], [2]]);
    assert_eq!(feed.udp[1].receive_all(1), [[1]]);
    expect_no_packet(&mut queue);
    let stats = queue.stats();
    assert_eq!((stats.held, stats.retained, stats.refused), (0, 0, 0));
}

fn a_packet_goes_to_another_queue_of_the_same_socket(_: &Namespace) {
    let mut queue = bind_1_and_5();
    let feed = Feed::of([1]);
    feed.send_each(0..3);
    judge(&mut receive_exactly(&mut queue, 3), Verdict::Queue { number: 5, bypass: false });
    let mut batch = receive_exactly(&mut queue, 3);
    let seen: Vec<_> = batch.iter_mut().map(|packet| (packet.queue(), packet.id())).collect();
    assert_eq!(seen, [(5, 1), (5, 2), (5, 3)]);
    judge(&mut batch, Verdict::Accept);
    assert_eq!(feed.udp[0].receive_all(3), [[0], [1], [2]]);
    assert_eq!((queue.stats().cumulative_verdicts, queue.stats().lost), (2, 0));
}

fn refusals_carry_the_queue_number(_: &Namespace) {
    let mut queue = bind_1_and_5();
    let feed = Feed::of([1, 5]);
    feed.send_each(0..1);
    feed.udp[1].send_each(1..4);
    let mut batch = receive_exactly(&mut queue, 5);
    // The kernel drops all that waits when any hook goes away.
    let unrelated = Rules::new(Hook::FORWARD).family(Family::IPV6).rule(Rule::queue(9));
    drop(unrelated.install().unwrap());
    judge(&mut batch, Verdict::Accept);
    expect_no_packet(&mut queue);
    let refused: Vec<_> =
        queue.take_refusals().into_iter().map(|r| (r.queue, r.id, r.cumulative)).collect();
    assert_eq!(refused, [(1, 1, false), (5, 4, true)]);
    // The next ones are refused by their own numbers as well.
    feed.send_each(4..5);
    let retained: Vec<_> =
        receive_exactly(&mut queue, 2).iter_mut().map(|packet| packet.retain().0).collect();
    let unrelated = Rules::new(Hook::FORWARD).family(Family::IPV6).rule(Rule::queue(9));
    drop(unrelated.install().unwrap());
    retained.into_iter().for_each(|packet| packet.accept().unwrap());
    expect_no_packet(&mut queue);
    let refused: Vec<_> =
        queue.take_refusals().into_iter().map(|r| (r.queue, r.id, r.errno)).collect();
    assert_eq!(refused, [(1, 2, Errno::ENOENT), (5, 5, Errno::ENOENT)]);
    assert_eq!((queue.stats().refused, queue.stats().held), (4, 0));
}

/// The queue and id of all packets that wait, which are accepted.
pub fn accept_what_waits(queue: &mut Queue) -> Vec<(u16, u32)> {
    let mut seen = Vec::new();
    queue.set_nonblocking(true);
    queue
        .run(|packet| {
            seen.push((packet.queue(), packet.id()));
            packet.accept()
        })
        .unwrap();
    queue.set_nonblocking(false);
    seen
}

fn gaps_are_counted_per_queue(_: &Namespace) {
    const SENT: u8 = 30;
    let mut queue = Queue::builder([1, 5]).receive_buffer(1).bind().unwrap();
    let feed = Feed::of([1, 5]);
    feed.send_each(0..SENT);
    let first = accept_what_waits(&mut queue);
    assert!(first.len() < 2 * usize::from(SENT), "{} packets fit", first.len());
    let delivered = |number| first.iter().filter(|(queue, _)| *queue == number).count() as u64;
    assert_eq!(queue.stats().lost, 0, "no later packet shows the gaps yet");
    let last = u32::from(SENT) + 1;
    feed.udp[1].send(&[SENT]);
    assert_eq!(accept_what_waits(&mut queue), [(5, last)]);
    let lost_of_5 = u64::from(SENT) - delivered(5);
    assert_eq!(queue.stats().lost, lost_of_5, "the other queue's gap is not known yet");
    feed.udp[0].send(&[SENT]);
    assert_eq!(accept_what_waits(&mut queue), [(1, last)]);
    let lost_of_1 = u64::from(SENT) - delivered(1);
    assert_eq!(queue.stats().lost, lost_of_1 + lost_of_5);
    for (number, lost) in [(1, lost_of_1), (5, lost_of_5)] {
        if let Some(kernel) = kernel_stats(number) {
            assert_eq!(u64::from(kernel.user_dropped), lost, "of queue {number}");
        }
    }
}

fn unreadable_packets_of_each_queue_are_answered(_: &Namespace) {
    let mut queue = Queue::builder([1, 5]).on_undecided(Verdict::Accept).bind().unwrap();
    let feed = Feed::of([1, 5]);
    for length in [1, 1000, 1] {
        feed.udp.iter().for_each(|udp| udp.send(&vec![7; length]));
    }
    let mut batch = Batch::with_buffer_len(8, 300);
    assert_eq!(queue.recv(&mut batch).unwrap(), 6);
    let shown: Vec<_> = batch.iter_mut().map(|packet| (packet.queue(), packet.id())).collect();
    assert_eq!(shown, [(1, 1), (5, 1), (1, 3), (5, 3)]);
    judge(&mut batch, Verdict::Drop);
    for udp in &feed.udp {
        assert_eq!(udp.receive_all(1), [[7; 1000]]);
    }
    let stats = queue.stats();
    assert_eq!((stats.truncated, stats.malformed, stats.lost, stats.held), (2, 0, 0, 0));
    assert_eq!((stats.received, stats.answered, stats.refused), (6, 6, 0));
}

fn configuring_all_numbers_under_a_flood_loses_nothing(_: &Namespace) {
    const FLOOD: u32 = 150;
    let numbers = [2, 3, 4, 5];
    let mut queue = Queue::builder(2..=5).nonblocking(true).bind().unwrap();
    let feed = Feed::of(numbers);
    let mut ids = BTreeMap::<u16, Vec<u32>>::new();
    thread::scope(|scope| {
        for udp in &feed.udp {
            scope.spawn(|| (0..FLOOD).for_each(|number| udp.send(&number.to_be_bytes())));
        }
        wait_until("all packets", || {
            let round = queue.stats().answered as u32;
            queue.set_max_len(4000 + round).unwrap();
            queue.set_copy_mode(CopyMode::Packet { range: 50_000 + round }).unwrap();
            let values =
                if round.is_multiple_of(2) { ConfigFlags::UID_GID } else { ConfigFlags(0) };
            queue.set_flags(FlagChange { mask: ConfigFlags::UID_GID, values }).unwrap();
            queue
                .run(|packet| {
                    ids.entry(packet.queue()).or_default().push(packet.id());
                    packet.accept()
                })
                .unwrap();
            ids.values().map(Vec::len).sum::<usize>() == numbers.len() * FLOOD as usize
        });
    });
    let each: Vec<u32> = (1..=FLOOD).collect();
    assert_eq!(ids, numbers.map(|number| (number, each.clone())).into());
    feed.udp.iter().for_each(|udp| drop(udp.receive_all(FLOOD as usize)));
    assert_eq!((queue.stats().lost, queue.stats().held), (0, 0));
    // The setting is in force for each.
    queue.set_max_len(1).unwrap();
    feed.send_each(0..3);
    assert_eq!(accept_what_waits(&mut queue).len(), numbers.len());
}

fn one_number_taken_leaves_the_others_free(_: &Namespace) {
    let _taken = Queue::builder(4).bind().unwrap();
    let error = Queue::builder(2..=5).bind().unwrap_err();
    assert!(matches!(error, Error::QueueTaken { queue: 4, .. }), "{error:?}");
    drop(Queue::builder([2, 3, 5]).bind().expect("the others are free"));
    let error = Queue::builder(2..=5).bind_each().unwrap_err();
    assert!(matches!(error, Error::QueueTaken { queue: 4, .. }), "{error:?}");
    Queue::builder([2, 3, 5]).bind_each().expect("the others are free");
}

fn closing_gives_all_numbers_back(_: &Namespace) {
    let feed = Feed::of([1, 5]);
    for round in 0..4 {
        let mut queue = bind_1_and_5();
        feed.send_each(0..2);
        let batch = receive_exactly(&mut queue, 4);
        if round % 2 == 0 {
            queue.close().unwrap();
        } else {
            drop(queue);
        }
        [1, 5].into_iter().for_each(|number| drop(Queue::builder(number).bind().expect("free")));
        drop(batch);
    }
    feed.udp.iter().for_each(UdpPair::expect_nothing);
}

fn a_number_given_twice_counts_once(_: &Namespace) {
    let mut queue = Queue::builder([4, 2, 4, 4]).bind().unwrap();
    assert_eq!(queue.numbers().collect::<Vec<_>>(), [2, 4]);
    let feed = Feed::of([2, 4]);
    feed.send_each(0..3);
    judge(&mut receive_exactly(&mut queue, 6), Verdict::Accept);
    feed.udp.iter().for_each(|udp| assert_eq!(udp.receive_all(3), [[0], [1], [2]]));
    assert_eq!(queue.stats().cumulative_verdicts, 2);
    queue.close().unwrap();
    let queues = Queue::builder([4, 2, 4, 4]).bind_each().unwrap();
    let numbers: Vec<u16> = queues.iter().flat_map(Queue::numbers).collect();
    assert_eq!(numbers, [2, 4]);
}

fn no_number_is_an_error(_: &Namespace) {
    let error = Queue::builder([]).bind().unwrap_err();
    assert!(matches!(error, Error::InvalidQueue(_)), "{error:?}");
    let error = Queue::builder(Vec::new()).bind_each().unwrap_err();
    assert!(matches!(error, Error::InvalidQueue(_)), "{error:?}");
}

fn the_first_and_the_last_number_go_together(_: &Namespace) {
    let mut queue = Queue::builder([65_535, 0]).bind().unwrap();
    let feed = Feed::of([0, 65_535]);
    feed.send_each(0..3);
    let mut batch = receive_exactly(&mut queue, 6);
    let last: Vec<_> = batch
        .iter_mut()
        .filter(|packet| packet.queue() == 65_535)
        .map(|packet| packet.id())
        .collect();
    assert_eq!(last, [1, 2, 3]);
    judge(&mut batch, Verdict::Accept);
    feed.udp.iter().for_each(|udp| assert_eq!(udp.receive_all(3), [[0], [1], [2]]));
    assert_eq!((queue.stats().cumulative_verdicts, queue.stats().held), (2, 0));
}

fn kernel_counters_are_told_per_number(_: &Namespace) {
    let mut queue = Queue::builder([9, 1, 5]).bind().unwrap();
    let feed = Feed::of([1, 5]);
    feed.send_each(0..2);
    feed.udp[1].send(&[2]);
    if kernel_stats(1).is_none() {
        return;
    }
    let port = queue.port_id();
    let rows = queue.kernel_stats().unwrap();
    let seen: Vec<_> =
        rows.iter().map(|row| (row.queue, row.waiting, row.last_id, row.peer_port_id)).collect();
    assert_eq!(seen, [(1, 2, 2, port), (5, 3, 3, port), (9, 0, 0, port)]);
    let each = [1, 5, 9].map(|number| KernelStats::read(number).unwrap().unwrap());
    assert_eq!(rows, each);
    judge(&mut receive_exactly(&mut queue, 5), Verdict::Accept);
    assert!(queue.kernel_stats().unwrap().iter().all(|row| row.waiting == 0));
}
