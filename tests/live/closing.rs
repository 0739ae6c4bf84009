//! Where a queue begins and ends: closing, binding again, several queues, several namespaces.

use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{Batch, Error, NotSent, Queue, RetainedPacket, Verdict};
use netfilterqueue_netns::Namespace;

use crate::support::{UdpPair, V4, expect_no_packet, judge, queue_udp, receive_exactly};
use crate::{Test, tests};

pub const TESTS: [Test; 12] = tests![
    dropping_the_queue_drops_its_packets,
    retained_packet_of_a_closed_queue_says_so,
    batch_of_a_closed_queue_says_so_and_is_empty,
    closed_queue_number_is_free_at_once,
    close_succeeds_with_packets_unread,
    old_retained_packet_cannot_judge_a_new_one,
    old_batch_cannot_judge_a_new_packet,
    old_batch_can_be_received_into_again,
    two_queues_do_not_mix,
    same_number_in_two_namespaces_is_two_queues,
    queue_stays_in_the_namespace_of_its_binding,
    handles_may_be_dropped_in_another_namespace,
];

/// Accepts the only packet that waits.
fn accept_one(queue: &mut Queue) -> u32 {
    let mut batch = receive_exactly(queue, 1);
    let packet = batch.iter_mut().next().expect("a packet");
    let id = packet.id();
    packet.accept();
    batch.commit().expect("committed");
    id
}

fn retain_one(queue: &mut Queue) -> RetainedPacket {
    let mut batch = receive_exactly(queue, 1);
    let packet = batch.iter_mut().next().expect("a packet");
    packet.retain().0
}

fn dropping_the_queue_drops_its_packets(_: &Namespace) {
    // The default verdict would accept them, but a queue that is gone cannot.
    let mut queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..2);
    let retained = retain_one_of_two(&mut queue);
    udp.send(&[2]);
    drop(queue);
    drop(retained);
    udp.expect_nothing();
}

/// Leaves the other one to the default verdict, which needs the queue.
fn retain_one_of_two(queue: &mut Queue) -> (RetainedPacket, Batch) {
    let mut batch = receive_exactly(queue, 2);
    let (retained, _) = batch.iter_mut().next().expect("a packet").retain();
    (retained, batch)
}

fn retained_packet_of_a_closed_queue_says_so(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&[1]);
    let retained = retain_one(&mut queue);
    drop(queue);
    let NotSent { packet, error } = retained.accept().unwrap_err();
    assert!(matches!(error, Error::Closed), "{error:?}");
    // It is given back whole, and trying again changes nothing.
    assert_eq!((packet.id(), packet.payload()[28]), (1, 1));
    let again = packet.verdict(Verdict::Drop).unwrap_err();
    assert!(matches!(again.error, Error::Closed), "{again}");
    assert!(again.to_string().contains("packet 1 "), "{again}");
    udp.expect_nothing();
}

fn batch_of_a_closed_queue_says_so_and_is_empty(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    let mut batch = receive_exactly(&mut queue, 3);
    batch.iter_mut().next().unwrap().accept();
    queue.close().unwrap();
    assert_eq!(batch.len(), 3);
    let error = batch.commit().unwrap_err();
    assert!(matches!(error, Error::Closed), "{error:?}");
    assert!(batch.is_empty());
    assert!(batch.iter_mut().next().is_none());
    batch.commit().expect("nothing is left to tell about");
    udp.expect_nothing();
}

fn closed_queue_number_is_free_at_once(_: &Namespace) {
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut kept = Vec::new();
    for round in 0..5 {
        let mut queue = Queue::builder(1).bind().expect("the number is free");
        udp.send_each(0..2);
        kept.push(retain_one_of_two(&mut queue));
        if round % 2 == 0 {
            queue.close().unwrap();
        } else {
            drop(queue);
        }
    }
    let mut queue = Queue::builder(1).bind().unwrap();
    udp.send(&[9]);
    assert_eq!(accept_one(&mut queue), 1, "ids begin again");
    drop(kept);
    assert_eq!(udp.receive_all(1), [[9]]);
}

fn close_succeeds_with_packets_unread(_: &Namespace) {
    // The receive buffer is full, so that the kernel's answer does not fit at first.
    let queue = Queue::builder(1).receive_buffer(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..20);
    queue.close().unwrap();
    udp.expect_nothing();
    Queue::builder(1).bind().unwrap().close().unwrap();
}

fn old_retained_packet_cannot_judge_a_new_one(_: &Namespace) {
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let (old, unjudged, mut queue) = {
        let mut queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
        udp.send_each(0..2);
        let mut batch = receive_exactly(&mut queue, 2);
        let mut packets = batch.iter_mut();
        let (old, _) = packets.next().unwrap().retain();
        let (unjudged, _) = packets.next().unwrap().retain();
        drop(queue);
        (old, unjudged, Queue::builder(1).bind().unwrap())
    };
    udp.send_each([8, 9]);
    let mut batch = receive_exactly(&mut queue, 2);
    let ids: Vec<_> = batch.iter_mut().map(|packet| packet.id()).collect();
    assert_eq!(ids, [old.id(), unjudged.id()], "the ids of the old packets");
    let not_sent = old.accept().unwrap_err();
    assert!(matches!(not_sent.error, Error::Closed));
    drop((not_sent, unjudged));
    udp.expect_nothing();
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(2), [[8], [9]]);
    assert_eq!(queue.stats().refused, 0);
}

fn old_batch_cannot_judge_a_new_packet(_: &Namespace) {
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let (mut old, undecided) = {
        let mut queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
        udp.send(&[1]);
        let mut old = receive_exactly(&mut queue, 1);
        old.iter_mut().next().unwrap().accept();
        udp.send(&[2]);
        (old, receive_exactly(&mut queue, 1))
    };
    let mut queue = Queue::builder(1).bind().unwrap();
    udp.send_each([8, 9]);
    let mut batch = receive_exactly(&mut queue, 2);
    assert!(matches!(old.commit(), Err(Error::Closed)));
    drop((old, undecided));
    udp.expect_nothing();
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(2), [[8], [9]]);
}

fn old_batch_can_be_received_into_again(_: &Namespace) {
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut batch = Batch::new(4);
    for round in 0..3 {
        // Each round the batch still holds the packet of the queue before.
        let mut queue = Queue::builder(1).bind().unwrap();
        udp.send(&[round]);
        assert_eq!(queue.recv(&mut batch).unwrap(), 1);
        let packet = batch.iter_mut().next().unwrap();
        assert_eq!((packet.id(), packet.payload()[28]), (1, round));
        packet.accept();
    }
    udp.expect_nothing();
}

fn two_queues_do_not_mix(_: &Namespace) {
    let mut first = Queue::builder(1).bind().unwrap();
    let mut second = Queue::builder(2).bind().unwrap();
    assert_ne!(first.port_id(), second.port_id());
    let (udp, other_udp) = (UdpPair::new(V4), UdpPair::new(V4));
    let rule = |number, udp: &UdpPair| {
        Rule::queue(number).protocol(Protocol::UDP).destination_port(udp.receiver_address().port())
    };
    let rules = Rules::new(Hook::OUTPUT).rule(rule(1, &udp)).rule(rule(2, &other_udp));
    let _rules = rules.install().unwrap();
    udp.send(&[1]);
    other_udp.send(&[2]);
    let from_first = retain_one(&mut first);
    let from_second = retain_one(&mut second);
    assert_eq!((from_first.queue(), from_first.id(), from_first.payload()[28]), (1, 1, 1));
    assert_eq!((from_second.queue(), from_second.id(), from_second.payload()[28]), (2, 1, 2));
    from_second.accept().unwrap();
    assert_eq!(other_udp.receive_all(1), [[2]]);
    udp.expect_nothing();
    drop(second);
    from_first.accept().expect("the other queue's end does not matter");
    assert_eq!(udp.receive_all(1), [[1]]);
}

fn same_number_in_two_namespaces_is_two_queues(_: &Namespace) {
    let other = Namespace::new().unwrap();
    let mut here = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let (mut there, _there_rules, there_udp) =
        other.run(|| (Queue::builder(1).bind().unwrap(), queue_udp(1), UdpPair::new(V4)));
    there_udp.send(&[2]);
    expect_no_packet(&mut here);
    udp.send(&[1]);
    assert_eq!(accept_one(&mut here), 1);
    assert_eq!(udp.receive_all(1), [[1]]);
    there_udp.expect_nothing();
    drop(here);
    assert_eq!(accept_one(&mut there), 1, "not gone with the other queue");
    assert_eq!(there_udp.receive_all(1), [[2]]);
}

fn queue_stays_in_the_namespace_of_its_binding(_: &Namespace) {
    let elsewhere = Namespace::new().unwrap();
    let mut queue = Queue::builder(1).bind().unwrap();
    let rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&[1]);
    elsewhere.run(|| {
        // Here the number belongs to somebody else, who must not be touched.
        let mut other = Queue::builder(1).bind().unwrap();
        queue.set_max_len(1).unwrap();
        assert_eq!(accept_one(&mut queue), 1);
        assert_eq!(udp.receive_all(1), [[1]]);
        udp.send_each([2, 3]);
        assert_eq!(accept_one(&mut queue), 2);
        assert_eq!(udp.receive_all(1), [[2]], "the setting took effect there");
        queue.close().unwrap();
        other.set_max_len(10).expect("still bound");
    });
    rules.remove().expect("rules");
    drop(Queue::builder(1).bind().expect("the number here is free"));
}

fn handles_may_be_dropped_in_another_namespace(_: &Namespace) {
    let elsewhere = Namespace::new().unwrap();
    let mut queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..2);
    let handles = retain_one_of_two(&mut queue);
    elsewhere.run(move || drop(handles));
    assert_eq!(udp.receive_all(2).len(), 2, "the default verdict went home");
    udp.send(&[2]);
    elsewhere.run(move || drop(queue));
    drop(Queue::builder(1).bind().expect("the number is free at once"));
}
