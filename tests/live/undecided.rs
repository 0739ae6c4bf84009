//! Packets that nobody decided about: forgotten, half edited, or left behind by a panic.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use netfilterqueue::rules::Hook;
use netfilterqueue::{Decided, Packet, Queue, Verdict};
use netfilterqueue_netns::Namespace;

use crate::craft::{data, data_mut, with_data};
use crate::held::{accept, bind, byte, refusals_until_next_packet, retain_one};
use crate::support::{UdpPair, V4, queue_udp, queue_udp_at, receive_exactly};
use crate::{Test, tests};

pub const TESTS: [Test; 12] = tests![
    a_forgotten_retained_packet_is_dropped,
    a_forgotten_retained_packet_is_accepted_on_request,
    a_packet_forgotten_in_a_batch_is_dropped,
    a_packet_forgotten_in_a_batch_is_accepted_on_request,
    a_dropped_batch_is_committed,
    a_batch_is_committed_by_the_next_receive,
    an_undecided_packet_is_yielded_again,
    an_undecided_packet_leaves_without_its_mark_and_edit,
    a_retained_undecided_packet_leaves_without_its_mark_and_edit,
    a_panic_in_run_drops_the_undecided,
    a_panic_in_run_accepts_the_undecided_on_request,
    a_panic_while_iterating_keeps_the_verdicts_so_far,
];

fn accepting_undecided() -> Queue {
    Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap()
}

fn a_forgotten_retained_packet_is_dropped(_: &Namespace) {
    forget_retained(bind(), 0);
}

fn a_forgotten_retained_packet_is_accepted_on_request(_: &Namespace) {
    forget_retained(accepting_undecided(), 1);
}

fn forget_retained(mut queue: Queue, arriving: usize) {
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let retained = retain_one(&mut queue);
    udp.expect_nothing();
    drop(retained);
    assert_eq!(udp.receive_all(arriving), vec![b"a"; arriving]);
    assert_eq!((queue.stats().answered, queue.stats().held), (1, 0));
}

fn a_packet_forgotten_in_a_batch_is_dropped(_: &Namespace) {
    forget_every_second(bind(), &[[0], [2], [4]]);
}

fn a_packet_forgotten_in_a_batch_is_accepted_on_request(_: &Namespace) {
    forget_every_second(accepting_undecided(), &[[0], [1], [2], [3], [4]]);
}

fn forget_every_second(mut queue: Queue, arriving: &[[u8; 1]]) {
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..5);
    let mut batch = receive_exactly(&mut queue, 5);
    for packet in &mut batch {
        if byte(&packet).is_multiple_of(2) {
            packet.accept();
        }
    }
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(arriving.len()), arriving);
    assert_eq!((queue.stats().answered, queue.stats().held), (5, 0));
}

fn a_dropped_batch_is_committed(_: &Namespace) {
    let mut queue = accepting_undecided();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    let mut batch = receive_exactly(&mut queue, 3);
    batch.iter_mut().next().unwrap().verdict(Verdict::Drop);
    drop(batch);
    assert_eq!(udp.receive_all(2), [[1], [2]]);
    assert_eq!(queue.stats().held, 0);
}

fn a_batch_is_committed_by_the_next_receive(_: &Namespace) {
    let mut queue = accepting_undecided();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    let mut batch = receive_exactly(&mut queue, 3);
    batch.iter_mut().next().unwrap().verdict(Verdict::Drop);
    udp.expect_nothing();
    udp.send(&[3]);
    assert_eq!(queue.recv(&mut batch).unwrap(), 1);
    assert_eq!(udp.receive_all(2), [[1], [2]]);
    assert_eq!((batch.len(), queue.stats().held), (1, 1));
    assert_eq!(batch.iter_mut().map(|packet| packet.id()).collect::<Vec<_>>(), [4]);
}

fn an_undecided_packet_is_yielded_again(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..5);
    let mut batch = receive_exactly(&mut queue, 5);
    for mut packet in &mut batch {
        match byte(&packet) {
            1 => packet.set_mark(9),
            3 => {}
            _ => drop(packet.accept()),
        }
    }
    let left: Vec<_> = batch.iter_mut().map(|packet| (byte(&packet), packet.mark())).collect();
    assert_eq!(left, [(1, Some(9)), (3, None)]);
    accept(&mut batch);
    assert!(batch.iter_mut().next().is_none());
    assert_eq!(batch.len(), 5);
    batch.commit().unwrap();
    assert!(batch.is_empty());
    assert_eq!(udp.receive_all(5), [[0], [1], [2], [3], [4]]);
}

fn an_undecided_packet_leaves_without_its_mark_and_edit(_: &Namespace) {
    let mut first = accepting_undecided();
    let mut second = Queue::builder(2).bind().unwrap();
    let _rules = (queue_udp(1), queue_udp_at(Hook::INPUT, 2));
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    let mut batch = receive_exactly(&mut first, 3);
    for mut packet in &mut batch {
        packet.set_mark(9);
        match byte(&packet) {
            0 => data_mut(packet.payload_mut().unwrap()).fill(0xff),
            1 => packet.set_payload(b"certainly no packet at all").unwrap(),
            _ => drop(packet.accept()),
        }
    }
    batch.commit().unwrap();
    let mut batch = receive_exactly(&mut second, 3);
    let seen: Vec<_> = batch.iter_mut().map(|packet| (byte(&packet), packet.mark())).collect();
    assert_eq!(seen, [(0, None), (1, None), (2, Some(9))]);
    accept(&mut batch);
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(3), [[0], [1], [2]]);
}

fn a_retained_undecided_packet_leaves_without_its_mark_and_edit(_: &Namespace) {
    let mut first = accepting_undecided();
    let mut second = Queue::builder(2).bind().unwrap();
    let _rules = (queue_udp(1), queue_udp_at(Hook::INPUT, 2));
    let udp = UdpPair::new(V4);
    udp.send(&[0]);
    let mut retained = retain_one(&mut first);
    retained.set_mark(9);
    let longer = with_data(retained.payload(), b"never sent");
    retained.set_payload(&longer).unwrap();
    drop(retained);
    let packet = retain_one(&mut second);
    assert_eq!((packet.mark(), data(packet.payload())), (None, &[0][..]));
    packet.accept().unwrap();
    assert_eq!(udp.receive_all(1), [[0]]);
}

fn a_panic_in_run_drops_the_undecided(_: &Namespace) {
    panic_at_the_third_of_five(bind(), &[[0], [1]]);
}

fn a_panic_in_run_accepts_the_undecided_on_request(_: &Namespace) {
    panic_at_the_third_of_five(accepting_undecided(), &[[0], [1], [2], [3], [4]]);
}

fn panic_at_the_third_of_five(mut queue: Queue, arriving: &[[u8; 1]]) {
    fn judge(packet: Packet<'_>) -> Decided<'_> {
        if byte(&packet) == 2 {
            resume_unwind(Box::new("the judge fails"));
        }
        packet.accept()
    }
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..5);
    let panic = catch_unwind(AssertUnwindSafe(|| queue.run(judge))).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"the judge fails"));
    assert_eq!(udp.receive_all(arriving.len()), arriving);
    let stats = queue.stats();
    assert_eq!((stats.received, stats.answered, stats.held), (5, 5, 0));
    assert!(refusals_until_next_packet(&mut queue, &udp).is_empty());
}

fn a_panic_while_iterating_keeps_the_verdicts_so_far(_: &Namespace) {
    let mut queue = accepting_undecided();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..4);
    let batch = receive_exactly(&mut queue, 4);
    let panic = catch_unwind(move || {
        let mut batch = batch;
        for packet in &mut batch {
            match byte(&packet) {
                0 => drop(packet.verdict(Verdict::Drop)),
                1 => drop(packet.accept()),
                _ => resume_unwind(Box::new("the loop fails")),
            }
        }
    });
    assert!(panic.is_err());
    assert_eq!(queue.stats().held, 0);
    assert_eq!(udp.receive_all(3), [[1], [2], [3]]);
    assert!(refusals_until_next_packet(&mut queue, &udp).is_empty());
}
