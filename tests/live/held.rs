//! Packets that are held: no other packet's verdict reaches them, and a verdict on one that the
//! kernel has flushed meanwhile is reported aside.

use std::thread;

use netfilterqueue::rules::{Family, Hook, Rule, Rules};
use netfilterqueue::{Batch, Errno, Error, Packet, Queue, Refusal, RetainedPacket, Verdict};
use netfilterqueue_netns::Namespace;

use crate::craft::data;
use crate::support::{UdpPair, V4, queue_udp, queue_udp_at, receive_exactly};
use crate::{Test, tests};

pub const TESTS: [Test; 16] = tests![
    a_retained_packet_is_not_overtaken_and_then_accepted,
    a_retained_packet_is_not_overtaken_and_then_dropped,
    cumulative_verdicts_resume_after_the_last_retained_packet,
    retained_packets_arrive_in_the_order_of_their_verdicts,
    a_retained_packet_keeps_what_it_is,
    a_retained_packet_is_judged_in_another_thread,
    a_retained_packet_takes_its_mark_along,
    a_retained_packet_goes_to_another_queue,
    two_batches_in_flight_are_committed_in_reverse,
    a_batch_is_committed_in_another_thread,
    an_empty_batch_commits_nothing,
    a_flushed_packet_is_a_refusal_of_its_id,
    a_flushed_run_is_one_refusal,
    a_partly_flushed_run_is_no_refusal,
    a_refusal_shows_up_without_a_packet,
    a_flushed_retained_packet_is_a_refusal,
];

pub fn bind() -> Queue {
    Queue::builder(1).bind().unwrap()
}

pub fn byte(packet: &Packet<'_>) -> u8 {
    data(packet.payload())[0]
}

/// Decides that all packets of the batch are accepted.
pub fn accept(batch: &mut Batch) {
    for packet in batch {
        packet.accept();
    }
}

/// Retains the packets with these bytes and decides that the others are accepted.
fn retain(batch: &mut Batch, bytes: &[u8]) -> Vec<RetainedPacket> {
    let mut retained = Vec::new();
    for packet in batch {
        if bytes.contains(&byte(&packet)) {
            retained.push(packet.retain().0);
        } else {
            packet.accept();
        }
    }
    retained
}

pub fn retain_one(queue: &mut Queue) -> RetainedPacket {
    let mut batch = receive_exactly(queue, 1);
    let packet = batch.iter_mut().next().unwrap();
    packet.retain().0
}

/// Makes the kernel drop all packets that wait in queues: it does so when any hook goes away.
fn flush() {
    let unrelated = Rules::new(Hook::FORWARD).family(Family::IPV6).rule(Rule::queue(9));
    drop(unrelated.install().unwrap());
}

/// Sends a datagram through the queue, which shows that it works, and returns the refusals found
/// along.
pub fn refusals_until_next_packet(queue: &mut Queue, udp: &UdpPair) -> Vec<(u32, bool, Errno)> {
    udp.send(b"next");
    let mut batch = Batch::new(8);
    assert_eq!(queue.recv(&mut batch).unwrap(), 1);
    accept(&mut batch);
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(1), [b"next"]);
    refusals(queue)
}

fn refusals(queue: &mut Queue) -> Vec<(u32, bool, Errno)> {
    let entry = |refusal: Refusal| (refusal.id, refusal.cumulative, refusal.errno);
    queue.take_refusals().into_iter().map(entry).collect()
}

fn a_retained_packet_is_not_overtaken_and_then_accepted(_: &Namespace) {
    expect_retained_waits(Verdict::Accept, 1);
}

fn a_retained_packet_is_not_overtaken_and_then_dropped(_: &Namespace) {
    expect_retained_waits(Verdict::Drop, 0);
}

fn expect_retained_waits(verdict: Verdict, arriving: usize) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..5);
    let mut batch = receive_exactly(&mut queue, 5);
    let retained = retain(&mut batch, &[1]).remove(0);
    assert_eq!((retained.id(), batch.len()), (2, 4));
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(4), [[0], [2], [3], [4]]);
    let stats = queue.stats();
    assert_eq!((stats.exact_verdicts, stats.cumulative_verdicts), (4, 0));
    assert_eq!((stats.send_calls, stats.answered, stats.held), (1, 4, 1));
    retained.verdict(verdict).unwrap();
    assert_eq!(udp.receive_all(arriving), vec![[1]; arriving]);
    assert!(refusals_until_next_packet(&mut queue, &udp).is_empty());
    assert_eq!(queue.stats().held, 0);
}

fn cumulative_verdicts_resume_after_the_last_retained_packet(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&[0]);
    let retained = retain_one(&mut queue);
    assert_eq!(messages_for_three(&mut queue, &udp), (3, 0));
    retained.accept().unwrap();
    assert_eq!(messages_for_three(&mut queue, &udp), (0, 1));
    assert_eq!(udp.receive_all(7), [[1], [2], [3], [0], [1], [2], [3]]);
}

/// How many exact and cumulative messages it takes to accept three packets.
fn messages_for_three(queue: &mut Queue, udp: &UdpPair) -> (u64, u64) {
    udp.send_each(1..4);
    let mut batch = receive_exactly(queue, 3);
    accept(&mut batch);
    let before = queue.stats();
    batch.commit().unwrap();
    let after = queue.stats();
    (
        after.exact_verdicts - before.exact_verdicts,
        after.cumulative_verdicts - before.cumulative_verdicts,
    )
}

fn retained_packets_arrive_in_the_order_of_their_verdicts(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..4);
    let mut batch = receive_exactly(&mut queue, 4);
    let mut retained = retain(&mut batch, &[0, 1, 2, 3]);
    assert!(batch.is_empty());
    batch.commit().unwrap();
    udp.expect_nothing();
    for at in [2, 0, 1, 0] {
        retained.remove(at).accept().unwrap();
    }
    assert_eq!(udp.receive_all(4), [[2], [0], [3], [1]]);
}

fn a_retained_packet_keeps_what_it_is(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"the same");
    let mut batch = receive_exactly(&mut queue, 1);
    let packet = batch.iter_mut().next().unwrap();
    let (line, bytes) = (packet.to_string(), packet.message().bytes().to_vec());
    let retained = packet.retain().0;
    // The buffers of the batch are filled with other packets now.
    udp.send(b"other data in another packet");
    assert_eq!(queue.recv(&mut batch).unwrap(), 1);
    assert_eq!(retained.to_string(), line);
    assert_eq!(retained.message().bytes(), bytes);
    assert_eq!(data(retained.payload()), b"the same");
    drop(batch);
    retained.accept().unwrap();
    assert_eq!(udp.receive_all(1), [b"the same"]);
}

fn a_retained_packet_is_judged_in_another_thread(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let retained = retain_one(&mut queue);
    thread::spawn(move || retained.accept().unwrap()).join().unwrap();
    assert_eq!(udp.receive_all(1), [b"a"]);
}

fn a_retained_packet_takes_its_mark_along(_: &Namespace) {
    let mut first = bind();
    let mut second = Queue::builder(2).bind().unwrap();
    let _rules = (queue_udp(1), queue_udp_at(Hook::INPUT, 2));
    let udp = UdpPair::new(V4);
    udp.send_each(0..2);
    let mut batch = receive_exactly(&mut first, 2);
    let mut retained = Vec::new();
    for mut packet in &mut batch {
        packet.set_mark(0x10 + u32::from(byte(&packet)));
        retained.push(packet.retain().0);
    }
    assert_eq!(retained[1].mark(), Some(0x11));
    retained[1].set_mark(0x22);
    retained.into_iter().for_each(|packet| packet.accept().unwrap());
    let mut batch = receive_exactly(&mut second, 2);
    let marks: Vec<_> = batch.iter_mut().map(|packet| packet.mark()).collect();
    assert_eq!(marks, [Some(0x10), Some(0x22)]);
}

fn a_retained_packet_goes_to_another_queue(_: &Namespace) {
    let mut first = bind();
    let mut second = Queue::builder(2).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    retain_one(&mut first).verdict(Verdict::Queue { number: 2, bypass: false }).unwrap();
    retain_one(&mut second).accept().unwrap();
    assert_eq!(udp.receive_all(1), [b"a"]);
}

fn two_batches_in_flight_are_committed_in_reverse(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    let mut older = receive_exactly(&mut queue, 3);
    udp.send_each(3..6);
    let mut newer = receive_exactly(&mut queue, 3);
    accept(&mut newer);
    newer.commit().unwrap();
    assert_eq!(udp.receive_all(3), [[3], [4], [5]]);
    assert_eq!((queue.stats().exact_verdicts, queue.stats().held), (3, 3));
    accept(&mut older);
    older.commit().unwrap();
    assert_eq!(udp.receive_all(3), [[0], [1], [2]]);
    let stats = queue.stats();
    assert_eq!((stats.exact_verdicts, stats.cumulative_verdicts, stats.held), (3, 1, 0));
}

fn a_batch_is_committed_in_another_thread(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    let mut older = receive_exactly(&mut queue, 3);
    udp.send_each(3..6);
    let newer = receive_exactly(&mut queue, 3);
    let judging = thread::spawn(move || {
        accept(&mut older);
        older.commit().unwrap();
    });
    judging.join().unwrap();
    assert_eq!(udp.receive_all(3), [[0], [1], [2]]);
    drop(newer);
    udp.expect_nothing();
}

fn an_empty_batch_commits_nothing(_: &Namespace) {
    let mut queue = Queue::builder(1).nonblocking(true).bind().unwrap();
    let mut batch = Batch::new(0);
    assert_eq!((batch.capacity(), batch.len(), batch.is_empty()), (1, 0, true));
    batch.commit().unwrap();
    assert!(batch.iter_mut().next().is_none());
    assert!(matches!(queue.recv(&mut batch), Err(Error::WouldBlock)));
    batch.commit().unwrap();
    drop(batch);
    assert_eq!(queue.stats().send_calls, 0);
}

fn a_flushed_packet_is_a_refusal_of_its_id(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    let mut batch = receive_exactly(&mut queue, 3);
    for packet in &mut batch {
        let verdict = if packet.id() == 2 { Verdict::Drop } else { Verdict::Accept };
        packet.verdict(verdict);
    }
    flush();
    batch.commit().unwrap();
    assert_eq!(queue.stats().held, 0);
    udp.expect_nothing();
    let refused = [1, 2, 3].map(|id| (id, false, Errno::ENOENT));
    assert_eq!(refusals_until_next_packet(&mut queue, &udp), refused);
    assert_eq!(queue.stats().refused, 3);
    assert!(refusals(&mut queue).is_empty());
    assert!(refusals_until_next_packet(&mut queue, &udp).is_empty());
}

fn a_flushed_run_is_one_refusal(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    let mut batch = receive_exactly(&mut queue, 3);
    accept(&mut batch);
    flush();
    batch.commit().unwrap();
    udp.expect_nothing();
    let refused = refusals_until_next_packet(&mut queue, &udp);
    assert_eq!(refused, [(3, true, Errno::ENOENT)]);
    assert_eq!(queue.stats().refused, 1);
    assert_eq!(messages_for_three(&mut queue, &udp), (0, 1));
    assert_eq!(udp.receive_all(3), [[1], [2], [3]]);
}

fn a_partly_flushed_run_is_no_refusal(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    flush();
    udp.send_each(3..5);
    let mut batch = receive_exactly(&mut queue, 5);
    accept(&mut batch);
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(2), [[3], [4]]);
    assert!(refusals_until_next_packet(&mut queue, &udp).is_empty());
    assert_eq!((queue.stats().refused, queue.stats().lost), (0, 0));
}

fn a_refusal_shows_up_without_a_packet(_: &Namespace) {
    let mut queue = Queue::builder(1).nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let mut batch = Batch::new(4);
    assert_eq!(queue.recv(&mut batch).unwrap(), 1);
    accept(&mut batch);
    flush();
    batch.commit().unwrap();
    assert_eq!(queue.stats().refused, 0);
    assert!(matches!(queue.recv(&mut batch), Err(Error::WouldBlock)));
    assert_eq!(queue.stats().refused, 1);
    assert_eq!(refusals(&mut queue), [(1, false, Errno::ENOENT)]);
}

fn a_flushed_retained_packet_is_a_refusal(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    let mut batch = receive_exactly(&mut queue, 3);
    let retained = retain(&mut batch, &[0, 2]);
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(1), [[1]]);
    flush();
    retained.into_iter().for_each(|packet| packet.accept().unwrap());
    udp.expect_nothing();
    let refused = [1, 3].map(|id| (id, false, Errno::ENOENT));
    assert_eq!(refusals_until_next_packet(&mut queue, &udp), refused);
    assert_eq!(queue.stats().held, 0);
}
