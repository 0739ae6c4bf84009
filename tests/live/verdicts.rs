//! What each verdict and mark does to packets, and with how many messages a batch's verdicts leave.

use std::net::IpAddr;

use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Batch, Decided, Error, Family, Packet, Queue, Verdict};
use netfilterqueue_netns::Namespace;

use crate::craft::data;
use crate::support::{
    UdpPair, V4, V6, expect_no_packet, judge, judge_while, queue_udp, queue_udp_at, receive_exactly,
};
use crate::{Test, tests};

pub const TESTS: [Test; 26] = tests![
    accept_lets_a_packet_pass,
    accept_lets_an_ipv6_packet_pass,
    drop_frees_a_packet,
    drop_frees_an_ipv6_packet,
    repeat_with_a_mark_passes_a_rule_that_tests_for_it,
    repeat_without_a_mark_test_queues_the_packet_again,
    repeat_of_a_run_queues_each_packet_once_more,
    accept_goes_on_to_a_later_chain,
    stop_skips_a_later_chain,
    stop_of_a_run_skips_a_later_chain,
    a_mark_is_seen_by_later_queues,
    a_mark_of_zero_takes_the_mark_away,
    a_mark_goes_along_to_another_queue,
    a_packet_goes_to_another_queue,
    a_run_goes_to_another_queue_in_order,
    a_packet_for_a_queue_without_a_listener_is_dropped,
    a_packet_for_a_queue_without_a_listener_passes_with_bypass,
    a_packet_for_its_own_queue_gets_a_new_id,
    mixed_verdicts_of_a_batch_leave_in_one_call,
    marks_split_the_runs_of_a_batch,
    a_run_of_like_verdicts_is_one_message,
    a_single_packet_gets_an_exact_verdict,
    more_packets_than_a_batch_holds_come_in_several,
    one_queue_serves_several_hooks,
    families_mix_in_a_batch,
    run_judges_until_it_is_stopped,
];

/// Queues UDP at the output hook in two chains, one behind the other.
fn two_chains(first: u16, second: u16) -> [InstalledRules; 2] {
    [(first, 0), (second, 10)].map(|(queue, priority)| {
        let rule = Rule::queue(queue).protocol(Protocol::UDP);
        Rules::new(Hook::OUTPUT).priority(priority).rule(rule).install().unwrap()
    })
}

fn queues<const N: usize>() -> [Queue; N] {
    std::array::from_fn(|at| Queue::builder(at as u16 + 1).bind().unwrap())
}

/// Receives one packet, gives it a mark and a verdict, and returns its id and the mark it came
/// with.
fn judge_one(queue: &mut Queue, mark: Option<u32>, verdict: Verdict) -> (u32, Option<u32>) {
    let mut batch = receive_exactly(queue, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    let seen = (packet.id(), packet.mark());
    if let Some(mark) = mark {
        packet.set_mark(mark);
        assert_eq!(packet.mark(), Some(mark));
    }
    packet.verdict(verdict);
    batch.commit().unwrap();
    seen
}

/// One byte of data and the mark of each packet, in order.
fn bytes_and_marks(batch: &mut Batch) -> Vec<(u8, Option<u32>)> {
    batch.iter_mut().map(|packet| (data(packet.payload())[0], packet.mark())).collect()
}

fn accept_lets_a_packet_pass(_: &Namespace) {
    expect_pass(V4);
}

fn accept_lets_an_ipv6_packet_pass(_: &Namespace) {
    expect_pass(V6);
}

fn expect_pass(address: IpAddr) {
    let [mut queue] = queues();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(address);
    udp.send(b"through");
    let mut batch = receive_exactly(&mut queue, 1);
    udp.expect_nothing();
    let packet = batch.iter_mut().next().unwrap();
    assert_eq!((packet.id(), packet.queue(), packet.hook()), (1, 1, Hook::OUTPUT));
    assert_eq!(packet.family(), if address.is_ipv6() { Family::IPV6 } else { Family::IPV4 });
    assert_eq!(packet.hw_protocol(), if address.is_ipv6() { 0x86dd } else { 0x0800 });
    assert_eq!(data(packet.payload()), b"through");
    packet.accept();
    udp.expect_nothing();
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(1), [b"through"]);
    assert!(batch.is_empty());
}

fn drop_frees_a_packet(_: &Namespace) {
    expect_drop(V4);
}

fn drop_frees_an_ipv6_packet(_: &Namespace) {
    expect_drop(V6);
}

fn expect_drop(address: IpAddr) {
    let [mut queue] = queues();
    let rules = queue_udp(1);
    let udp = UdpPair::new(address);
    udp.send(b"stays");
    judge_one(&mut queue, None, Verdict::Drop);
    udp.expect_nothing();
    drop(rules);
    udp.send(b"unqueued");
    assert_eq!(udp.receive_all(1), [b"unqueued"]);
    let stats = queue.stats();
    assert_eq!((stats.received, stats.answered, stats.held, stats.refused), (1, 1, 0, 0));
}

fn repeat_with_a_mark_passes_a_rule_that_tests_for_it(_: &Namespace) {
    let [mut queue] = queues();
    let unmarked = Rule::queue(1).protocol(Protocol::UDP).mark(0);
    let _rules = Rules::new(Hook::OUTPUT).rule(unmarked).install().unwrap();
    let udp = UdpPair::new(V4);
    udp.send(b"again");
    assert_eq!(judge_one(&mut queue, Some(7), Verdict::Repeat), (1, None));
    assert_eq!(udp.receive_all(1), [b"again"]);
    expect_no_packet(&mut queue);
}

fn repeat_without_a_mark_test_queues_the_packet_again(_: &Namespace) {
    let [mut queue] = queues();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"again");
    for id in 1..=3 {
        assert_eq!(judge_one(&mut queue, None, Verdict::Repeat), (id, None));
    }
    udp.expect_nothing();
    assert_eq!(judge_one(&mut queue, None, Verdict::Accept), (4, None));
    assert_eq!(udp.receive_all(1), [b"again"]);
}

fn repeat_of_a_run_queues_each_packet_once_more(_: &Namespace) {
    let [mut queue] = queues();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    judge(&mut receive_exactly(&mut queue, 3), Verdict::Repeat);
    let mut batch = receive_exactly(&mut queue, 3);
    let ids: Vec<u32> = batch.iter_mut().map(|packet| packet.id()).collect();
    assert_eq!(ids, [4, 5, 6]);
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(3), [[0], [1], [2]]);
    assert_eq!(queue.stats().cumulative_verdicts, 2);
}

fn accept_goes_on_to_a_later_chain(_: &Namespace) {
    let [mut first, mut second] = queues();
    let _rules = two_chains(1, 2);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    judge_one(&mut first, None, Verdict::Accept);
    udp.expect_nothing();
    judge_one(&mut second, None, Verdict::Accept);
    assert_eq!(udp.receive_all(1), [b"a"]);
    expect_no_packet(&mut first);
}

fn stop_skips_a_later_chain(_: &Namespace) {
    let [mut first, mut second] = queues();
    let _rules = two_chains(1, 2);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    judge_one(&mut first, None, Verdict::Stop);
    assert_eq!(udp.receive_all(1), [b"a"]);
    expect_no_packet(&mut second);
}

fn stop_of_a_run_skips_a_later_chain(_: &Namespace) {
    let [mut first, mut second] = queues();
    let _rules = two_chains(1, 2);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    judge(&mut receive_exactly(&mut first, 3), Verdict::Stop);
    assert_eq!(udp.receive_all(3), [[0], [1], [2]]);
    expect_no_packet(&mut second);
    assert_eq!(first.stats().cumulative_verdicts, 1);
}

fn a_mark_is_seen_by_later_queues(_: &Namespace) {
    let [mut first, mut second, mut third] = queues();
    let _rules = (two_chains(1, 2), queue_udp_at(Hook::POSTROUTING, 3));
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let mut batch = receive_exactly(&mut first, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    assert_eq!(packet.mark(), None);
    packet.set_mark(0xdead_beef);
    assert_eq!(packet.mark(), Some(0xdead_beef));
    assert_eq!(packet.message().mark(), None);
    packet.accept();
    batch.commit().unwrap();
    assert_eq!(judge_one(&mut second, None, Verdict::Accept), (1, Some(0xdead_beef)));
    assert_eq!(judge_one(&mut third, None, Verdict::Accept), (1, Some(0xdead_beef)));
    assert_eq!(udp.receive_all(1), [b"a"]);
}

fn a_mark_of_zero_takes_the_mark_away(_: &Namespace) {
    let [mut first, mut second, mut third] = queues();
    let _rules = (two_chains(1, 2), queue_udp_at(Hook::POSTROUTING, 3));
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    judge_one(&mut first, Some(5), Verdict::Accept);
    assert_eq!(judge_one(&mut second, Some(0), Verdict::Accept), (1, Some(5)));
    assert_eq!(judge_one(&mut third, None, Verdict::Accept), (1, None));
    assert_eq!(udp.receive_all(1), [b"a"]);
}

fn a_mark_goes_along_to_another_queue(_: &Namespace) {
    let [mut first, mut second] = queues();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    judge_one(&mut first, Some(6), Verdict::Queue { number: 2, bypass: false });
    assert_eq!(judge_one(&mut second, None, Verdict::Accept), (1, Some(6)));
    assert_eq!(udp.receive_all(1), [b"a"]);
}

fn a_packet_goes_to_another_queue(_: &Namespace) {
    let mut first = Queue::builder(1).bind().unwrap();
    let mut second = Queue::builder(65_535).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    let mut batch = receive_exactly(&mut first, 3);
    for packet in &mut batch {
        let is_last = packet.id() == 3;
        let onward = Verdict::Queue { number: 65_535, bypass: false };
        packet.verdict(if is_last { onward } else { Verdict::Accept });
    }
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(2), [[0], [1]]);
    assert_eq!(judge_one(&mut second, None, Verdict::Accept), (1, None));
    assert_eq!(udp.receive_all(1), [[2]]);
}

fn a_run_goes_to_another_queue_in_order(_: &Namespace) {
    let [mut first, mut second] = queues();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..4);
    let onward = Verdict::Queue { number: 2, bypass: true };
    judge(&mut receive_exactly(&mut first, 4), onward);
    assert_eq!(first.stats().cumulative_verdicts, 1);
    let mut batch = receive_exactly(&mut second, 4);
    assert!(batch.iter_mut().all(|packet| packet.queue() == 2));
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(4), [[0], [1], [2], [3]]);
}

fn a_packet_for_a_queue_without_a_listener_is_dropped(_: &Namespace) {
    let [mut queue] = queues();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    judge_one(&mut queue, None, Verdict::Queue { number: 2, bypass: false });
    udp.expect_nothing();
    assert_eq!(queue.stats().refused, 0);
}

fn a_packet_for_a_queue_without_a_listener_passes_with_bypass(_: &Namespace) {
    let [mut queue] = queues();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    judge_one(&mut queue, None, Verdict::Queue { number: 2, bypass: true });
    assert_eq!(udp.receive_all(1), [b"a"]);
}

fn a_packet_for_its_own_queue_gets_a_new_id(_: &Namespace) {
    let [mut queue] = queues();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let own = Verdict::Queue { number: 1, bypass: false };
    assert_eq!(judge_one(&mut queue, None, own), (1, None));
    assert_eq!(judge_one(&mut queue, None, Verdict::Accept), (2, None));
    assert_eq!(udp.receive_all(1), [b"a"]);
}

fn mixed_verdicts_of_a_batch_leave_in_one_call(_: &Namespace) {
    let [mut queue] = queues();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..10);
    let mut batch = receive_exactly(&mut queue, 10);
    for packet in &mut batch {
        let is_third = data(packet.payload())[0].is_multiple_of(3);
        packet.verdict(if is_third { Verdict::Drop } else { Verdict::Accept });
    }
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(6), [[1], [2], [4], [5], [7], [8]]);
    let stats = queue.stats();
    assert_eq!((stats.received, stats.answered, stats.held, stats.lost), (10, 10, 0, 0));
    assert_eq!(stats.send_calls, 1);
    assert_eq!((stats.exact_verdicts, stats.cumulative_verdicts), (4, 3));
}

fn marks_split_the_runs_of_a_batch(_: &Namespace) {
    let [mut first, mut second] = queues();
    let _rules = two_chains(1, 2);
    let udp = UdpPair::new(V4);
    udp.send_each(0..8);
    let mut batch = receive_exactly(&mut first, 8);
    let marks = [Some(1), Some(1), Some(2), None, None, Some(1), Some(1), Some(1)];
    for (mut packet, mark) in (&mut batch).into_iter().zip(marks) {
        if let Some(mark) = mark {
            packet.set_mark(mark);
        }
        let is_sixth = data(packet.payload()) == [5];
        packet.verdict(if is_sixth { Verdict::Drop } else { Verdict::Accept });
    }
    batch.commit().unwrap();
    let stats = first.stats();
    assert_eq!((stats.send_calls, stats.exact_verdicts, stats.cumulative_verdicts), (1, 2, 3));
    let mut batch = receive_exactly(&mut second, 7);
    let seen = [(0, 1), (1, 1), (2, 2), (3, 0), (4, 0), (6, 1), (7, 1)];
    let seen = seen.map(|(byte, mark)| (byte, Some(mark).filter(|mark| *mark != 0)));
    assert_eq!(bytes_and_marks(&mut batch), seen);
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(7), [[0], [1], [2], [3], [4], [6], [7]]);
}

fn a_run_of_like_verdicts_is_one_message(_: &Namespace) {
    let [mut queue] = queues();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..64);
    let mut batch = receive_exactly(&mut queue, 64);
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(64), (0..64).map(|byte| vec![byte]).collect::<Vec<_>>());
    let stats = queue.stats();
    assert_eq!((stats.send_calls, stats.exact_verdicts, stats.cumulative_verdicts), (1, 0, 1));
    assert_eq!((stats.received, stats.answered, stats.held), (64, 64, 0));
}

fn a_single_packet_gets_an_exact_verdict(_: &Namespace) {
    let [mut queue] = queues();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    judge_one(&mut queue, None, Verdict::Accept);
    let stats = queue.stats();
    assert_eq!((stats.exact_verdicts, stats.cumulative_verdicts), (1, 0));
    assert_eq!(udp.receive_all(1), [b"a"]);
}

fn more_packets_than_a_batch_holds_come_in_several(_: &Namespace) {
    let mut queue = Queue::builder(1).nonblocking(true).bind().unwrap();
    let _rules = queue_udp_at(Hook::INPUT, 1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..200);
    let mut batch = Batch::new(64);
    let mut lengths = Vec::new();
    loop {
        match queue.recv(&mut batch) {
            Ok(received) => lengths.push(received),
            Err(Error::WouldBlock) => break,
            Err(error) => panic!("{error}"),
        }
        judge(&mut batch, Verdict::Accept);
    }
    assert_eq!(lengths, [64, 64, 64, 8]);
    assert_eq!(udp.receive_all(200), (0..200).map(|byte| vec![byte]).collect::<Vec<_>>());
    let stats = queue.stats();
    assert_eq!((stats.received, stats.answered, stats.lost, stats.held), (200, 200, 0, 0));
    assert_eq!((stats.send_calls, stats.cumulative_verdicts, stats.exact_verdicts), (4, 4, 0));
}

fn one_queue_serves_several_hooks(_: &Namespace) {
    let [mut queue] = queues();
    let hooks = [Hook::OUTPUT, Hook::POSTROUTING, Hook::PREROUTING, Hook::INPUT];
    let _rules = hooks.map(|hook| queue_udp_at(hook, 1));
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    for (id, hook) in (1..).zip(hooks) {
        udp.expect_nothing();
        let mut batch = receive_exactly(&mut queue, 1);
        let packet = batch.iter_mut().next().unwrap();
        assert_eq!((packet.id(), packet.hook()), (id, hook));
        assert_eq!(packet.outdev().is_some(), hook >= Hook::OUTPUT, "output device at hook {hook}");
        assert_eq!(packet.indev().is_some(), hook < Hook::OUTPUT, "input device at hook {hook}");
        packet.accept();
        batch.commit().unwrap();
    }
    assert_eq!(udp.receive_all(1), [b"a"]);
}

fn families_mix_in_a_batch(_: &Namespace) {
    let [mut queue] = queues();
    let _rules = queue_udp(1);
    let (v4, v6) = (UdpPair::new(V4), UdpPair::new(V6));
    for byte in 0..3 {
        v4.send(&[byte]);
        v6.send(&[byte + 10]);
    }
    let mut batch = receive_exactly(&mut queue, 6);
    let families: Vec<Family> = batch.iter_mut().map(|packet| packet.family()).collect();
    assert_eq!(families, [Family::IPV4, Family::IPV6].repeat(3));
    judge(&mut batch, Verdict::Accept);
    assert_eq!(v4.receive_all(3), [[0], [1], [2]]);
    assert_eq!(v6.receive_all(3), [[10], [11], [12]]);
    assert_eq!(queue.stats().cumulative_verdicts, 1);
}

fn accept_even(packet: Packet<'_>) -> Decided<'_> {
    let is_even = data(packet.payload())[0].is_multiple_of(2);
    packet.verdict(if is_even { Verdict::Accept } else { Verdict::Drop })
}

fn run_judges_until_it_is_stopped(_: &Namespace) {
    let mut queue = Queue::builder(1).batch_len(4).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let received = judge_while(&mut queue, accept_even, || {
        udp.send_each(0..50);
        udp.receive_all(25)
    });
    assert_eq!(received, (0..25).map(|byte| vec![2 * byte]).collect::<Vec<_>>());
    let stats = queue.stats();
    assert_eq!((stats.received, stats.answered, stats.held), (50, 50, 0));
}
