//! Changes of a conntrack entry that leave with a verdict.

use netfilterqueue::conntrack::{ConntrackChange, ConntrackStatus, LabelsChange, MarkChange};
use netfilterqueue::rules::Hook;
use netfilterqueue::{Packet, Queue, Verdict};
use netfilterqueue_netns::Namespace;

use crate::captures::keep;
use crate::craft::{correct, data, data_mut};
use crate::flows::{Flow, Seen, accept_one, unchanged};
use crate::kernel::{bind_with_conntrack, expect_priority, takes_bytes, version};
use crate::support::{UdpPair, V4, V6, judge, queue_udp, queue_udp_at, receive_exactly};
use crate::{Test, tests};

pub const TESTS: [Test; 12] = tests![
    a_mark_is_seen_by_the_flows_next_packets,
    a_retained_packet_marks_its_flow,
    a_dropped_packet_marks_its_flow,
    a_repeated_packet_has_marked_its_flow,
    a_new_flow_that_is_dropped_leaves_nothing,
    one_verdict_changes_packet_mark_bytes_and_flow,
    a_timeout_is_seen_by_the_flows_next_packet,
    status_bits_are_set_but_not_taken_away,
    labels_are_refused_where_no_rule_sets_them,
    labels_are_seen_by_the_flows_next_packet,
    changes_split_runs,
    without_an_entry_a_change_is_ignored,
];

const NOTHING: ConntrackChange =
    ConntrackChange { timeout: None, status: None, labels: None, mark: None };

fn mark(change: MarkChange) -> ConntrackChange {
    ConntrackChange { mark: Some(change), ..NOTHING }
}

/// For packets of which only the entry is changed.
fn with(change: ConntrackChange) -> impl FnOnce(&mut Packet<'_>) {
    move |packet| packet.set_conntrack(change)
}

fn a_mark_is_seen_by_the_flows_next_packets(namespace: &Namespace) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    for address in [V4, V6] {
        let flow = Flow::new(address);
        let seen = flow.ask(&mut queue, with(mark(MarkChange::set(0x1234_5678))));
        assert_eq!(seen.mark, 0);
        let seen = flow.ask(&mut queue, with(mark(MarkChange::bits(0xab_ffff, 0xff_0000))));
        assert_eq!(seen.mark, 0x1234_5678);
        let seen = flow.answer(&mut queue, with(mark(MarkChange { value: 0x3, mask: 0x1 })));
        assert_eq!(seen.mark, 0x12ab_5678);
        // Bit 0 cleared and toggled, bit 1 toggled.
        let seen = flow.ask(&mut queue, with(NOTHING));
        assert_eq!(seen.mark, (0x12ab_5678 & !1) ^ 3);
        assert_eq!(flow.answer(&mut queue, with(mark(MarkChange::set(0)))).mark, seen.mark);
        assert_eq!(flow.ask(&mut queue, unchanged).mark, 0);
        assert_eq!(Flow::new(address).ask(&mut queue, unchanged).mark, 0, "of another flow");
    }
    assert_eq!(queue.take_refusals().len(), 0);
}

fn a_retained_packet_marks_its_flow(namespace: &Namespace) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    let flow = Flow::new(V4);
    // The change is made before the packet is retained, or after.
    for before in [true, false] {
        flow.udp.send(b"retained");
        let mut batch = receive_exactly(&mut queue, 1);
        let mut packet = batch.iter_mut().next().unwrap();
        let change = mark(MarkChange::bits(if before { 1 } else { 2 }, 3));
        if before {
            packet.set_conntrack(change);
        }
        let (mut retained, _) = packet.retain();
        batch.commit().unwrap();
        if !before {
            retained.set_conntrack(change);
        }
        retained.accept().unwrap();
        flow.udp.receive();
        assert_eq!(flow.ask(&mut queue, unchanged).mark, if before { 1 } else { 2 });
    }
}

fn a_dropped_packet_marks_its_flow(namespace: &Namespace) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    let flow = Flow::new(V4);
    flow.ask(&mut queue, unchanged);
    flow.udp.send(b"dropped");
    judge_one(&mut queue, Verdict::Drop, with(mark(MarkChange::set(7))));
    flow.udp.expect_nothing();
    assert_eq!(flow.ask(&mut queue, unchanged).mark, 7);
}

fn judge_one(queue: &mut Queue, verdict: Verdict, change: impl FnOnce(&mut Packet<'_>)) -> Seen {
    let mut batch = receive_exactly(queue, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    let seen = Seen::in_packet(&packet);
    change(&mut packet);
    packet.verdict(verdict);
    batch.commit().unwrap();
    seen
}

fn a_repeated_packet_has_marked_its_flow(namespace: &Namespace) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    let flow = Flow::new(V4);
    flow.udp.send(b"twice");
    let first = judge_one(&mut queue, Verdict::Repeat, |packet| {
        packet.set_mark(5);
        packet.set_conntrack(mark(MarkChange::set(9)));
    });
    let second = accept_one(&mut queue, |packet| assert_eq!(packet.mark(), Some(5)));
    assert_eq!((first.mark, second.mark), (0, 9));
    assert_eq!((second.id, second.info), (first.id, first.info), "still the flow's first packet");
    assert_eq!(flow.udp.receive_all(1), [b"twice"]);
}

fn a_new_flow_that_is_dropped_leaves_nothing(namespace: &Namespace) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    let flow = Flow::new(V4);
    flow.udp.send(b"dropped");
    judge_one(&mut queue, Verdict::Drop, with(mark(MarkChange::set(7))));
    let next = flow.ask(&mut queue, unchanged);
    assert!(!next.is_confirmed(), "{next:?}");
    assert_eq!(next.mark, 0);
}

fn one_verdict_changes_packet_mark_bytes_and_flow(namespace: &Namespace) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    let mut later = bind_with_conntrack(Queue::builder(2)).unwrap();
    let _later_rules = queue_udp_at(Hook::POSTROUTING, 2);
    for address in [V4, V6] {
        let flow = Flow::new(address);
        flow.udp.send(b"before");
        accept_one(&mut queue, |packet| {
            if takes_bytes() {
                let payload = packet.payload_mut().unwrap();
                data_mut(payload).copy_from_slice(b"AFTER!");
                correct(payload);
            }
            packet.set_mark(0x11);
            packet.set_priority(0x22);
            packet.set_conntrack(mark(MarkChange::set(0x33)));
        });
        let changed = if takes_bytes() { b"AFTER!" } else { b"before" };
        let seen = accept_one(&mut later, |packet| {
            assert_eq!(data(packet.payload()), changed);
            assert_eq!(packet.mark(), Some(0x11));
            expect_priority(packet.priority(), 0x22);
        });
        assert_eq!(seen.mark, 0x33);
        assert_eq!(flow.udp.receive_all(1), [changed]);
    }
}

fn a_timeout_is_seen_by_the_flows_next_packet(namespace: &Namespace) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    let flow = Flow::new(V4);
    flow.ask(&mut queue, unchanged);
    // The flow's next packet sets it back.
    flow.ask(&mut queue, with(ConntrackChange { timeout: Some(4000), ..NOTHING }));
    let seen = flow.ask(&mut queue, unchanged);
    assert!(seen.timeout <= 180, "{seen:?}");

    let fixed = ConntrackChange {
        timeout: Some(4000),
        status: Some(seen.status | ConntrackStatus::FIXED_TIMEOUT),
        ..NOTHING
    };
    assert!(!seen.status.contains(ConntrackStatus::FIXED_TIMEOUT));
    flow.ask(&mut queue, with(fixed));
    for _ in 0..2 {
        let seen = flow.answer(&mut queue, unchanged);
        assert!(seen.status.contains(ConntrackStatus::FIXED_TIMEOUT), "{seen:?}");
        assert!((3900..=4000).contains(&seen.timeout), "{seen:?}");
    }
    // A fixed one stays, and with it all that comes after it in the change.
    let other = ConntrackChange { timeout: Some(5000), ..mark(MarkChange::set(1)) };
    flow.ask(&mut queue, with(other));
    let seen = flow.ask(&mut queue, unchanged);
    if version() >= (6, 1) {
        assert!((3900..=4000).contains(&seen.timeout), "{seen:?}");
        assert_eq!(seen.mark, 0);
    }
    let status = ConntrackStatus(seen.status.0 & !ConntrackStatus::FIXED_TIMEOUT.0);
    flow.ask(&mut queue, with(ConntrackChange { status: Some(status), ..NOTHING }));
    let seen = flow.ask(&mut queue, unchanged);
    assert!(!seen.status.contains(ConntrackStatus::FIXED_TIMEOUT), "{seen:?}");
    assert!(seen.timeout <= 180, "{seen:?}");
}

fn status_bits_are_set_but_not_taken_away(namespace: &Namespace) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    let flow = Flow::new(V4);
    let seen = flow.ask(&mut queue, unchanged);
    assert!(!seen.status.contains(ConntrackStatus::ASSURED));
    let assured = ConntrackChange {
        status: Some(seen.status | ConntrackStatus::ASSURED),
        ..mark(MarkChange::set(1))
    };
    flow.ask(&mut queue, with(assured));
    let seen = flow.ask(&mut queue, unchanged);
    assert!(seen.status.contains(ConntrackStatus::ASSURED), "{seen:?}");
    assert!(seen.is_confirmed(), "bits of the kernel's own stay: {seen:?}");
    assert_eq!(seen.mark, 1);
    // Refused, and the mark with it, which comes later.
    let without = ConntrackChange { status: Some(ConntrackStatus(0)), ..mark(MarkChange::set(2)) };
    flow.ask(&mut queue, with(without));
    let next = flow.ask(&mut queue, unchanged);
    assert_eq!((next.status, next.mark), (seen.status, 1));
}

const LABELS: [u8; 16] = [0xf0, 0, 0x0f, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0x80];

fn labels_are_refused_where_no_rule_sets_them(namespace: &Namespace) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    let flow = Flow::new(V4);
    let change =
        ConntrackChange { labels: Some(LabelsChange::set(LABELS)), ..mark(MarkChange::set(1)) };
    flow.ask(&mut queue, with(change));
    flow.ask(&mut queue, with(change));
    let seen = flow.ask(&mut queue, unchanged);
    assert_eq!((seen.labels, seen.mark), (None, 0), "what comes after the labels stays as well");
}

fn labels_are_seen_by_the_flows_next_packet(namespace: &Namespace) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    namespace.label_connections().unwrap();
    let flow = Flow::new(V4);
    let labels = |labels| ConntrackChange { labels: Some(labels), ..NOTHING };
    let first = flow.ask(&mut queue, with(labels(LabelsChange::set(LABELS))));
    assert_eq!(first.labels, None, "none is set");
    let mut mask = [0; 16];
    mask[0] = 0xff;
    mask[15] = 0xf0;
    let change = LabelsChange::bits([0x5a; 16], mask);
    let second = flow.answer(&mut queue, with(labels(change)));
    assert_eq!(second.labels, Some(LABELS));
    let mut expected = LABELS;
    expected[0] = 0x5a;
    expected[15] = 0x50;
    let third = flow.ask(&mut queue, |packet| {
        keep("ipv4-output-udp-ct-labels", &packet.message());
        packet.set_conntrack(labels(LabelsChange::set([0; 16])));
    });
    assert_eq!(third.labels, Some(expected));
    assert_eq!(change.apply(LABELS), expected);
    assert_eq!(flow.ask(&mut queue, unchanged).labels, None);
}

fn changes_split_runs(namespace: &Namespace) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    let flow = Flow::new(V4);
    flow.ask(&mut queue, unchanged);
    let before = queue.stats();
    flow.udp.send_each(0..8);
    let mut batch = receive_exactly(&mut queue, 8);
    for (at, mut packet) in batch.iter_mut().enumerate() {
        // Two alike next to each other are two messages.
        match at {
            3 | 4 => packet.set_conntrack(mark(MarkChange { value: 1 << at, mask: 0 })),
            6 => packet.set_mark(6),
            _ => {}
        }
        packet.accept();
    }
    batch.commit().unwrap();
    assert_eq!(flow.udp.receive_all(8).concat(), [0, 1, 2, 3, 4, 5, 6, 7]);
    let after = queue.stats();
    let messages = (
        after.exact_verdicts - before.exact_verdicts,
        after.cumulative_verdicts - before.cumulative_verdicts,
    );
    assert_eq!(messages, (5, 1), "0–2 together; 3, 4, 5, 6 and 7 by themselves");
    assert_eq!(flow.ask(&mut queue, unchanged).mark, 1 << 3 | 1 << 4);

    // Nothing is left in the buffers for the packets that come after.
    flow.udp.send_each(0..8);
    let receive = |queue: &mut Queue, batch: &mut _| {
        assert_eq!(queue.recv(batch).unwrap(), 8);
    };
    receive(&mut queue, &mut batch);
    judge(&mut batch, Verdict::Accept);
    flow.udp.receive_all(8);
    assert_eq!(queue.stats().cumulative_verdicts, after.cumulative_verdicts + 1);
    assert_eq!(flow.ask(&mut queue, unchanged).mark, 1 << 3 | 1 << 4);
}

/// The verdict counts all the same, whatever the kernel lacks.
fn without_an_entry_a_change_is_ignored(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let change = ConntrackChange {
        timeout: Some(60),
        status: Some(ConntrackStatus::ASSURED),
        labels: Some(LabelsChange::bits([1; 16], [3; 16])),
        ..mark(MarkChange::bits(1, 3))
    };
    for (verdict, arrives) in [(Verdict::Accept, true), (Verdict::Drop, false)] {
        udp.send(b"?");
        let mut batch = receive_exactly(&mut queue, 1);
        let mut packet = batch.iter_mut().next().unwrap();
        packet.set_conntrack(change);
        packet.verdict(verdict);
        batch.commit().unwrap();
        assert_eq!(udp.receive_all(usize::from(arrives)).len(), usize::from(arrives));
    }
    assert_eq!(queue.take_refusals().len(), 0);
}
