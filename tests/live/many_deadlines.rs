//! Many deadlines, and deadlines against verdicts: each packet gets one.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use netfilterqueue::rules::Hook;
use netfilterqueue::{Error, NotSent, Queue, RetainedPacket, Verdict};
use netfilterqueue_netns::Namespace;

use crate::deadlines::{bind_accepting, let_expire, let_pass, retain_all};
use crate::held::{bind, retain_one};
use crate::support::{
    Feed, SOON, UdpPair, V4, judge_while, kernel_stats, queue_udp, queue_udp_at, wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 7] = tests![
    a_packet_dropped_before_its_deadline_gets_one_verdict,
    a_packet_judged_before_its_deadline_gets_one_verdict,
    a_packet_judged_in_time_is_left_alone_when_others_expire,
    a_thousand_deadlines_pass,
    packets_leave_in_the_order_of_their_deadlines,
    deadlines_of_equal_ids_in_two_queues_are_apart,
    verdicts_race_with_deadlines,
];

/// Asserts that the kernel was told once about each of the packets, also after their deadlines.
fn expect_one_verdict_each(queue: &mut Queue, packets: u64) {
    let_pass(queue, Duration::from_millis(40));
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.refused, stats.expired), (packets, 0, 0));
    assert_eq!((stats.held, stats.retained, queue.next_deadline()), (0, 0, None));
}

fn a_packet_dropped_before_its_deadline_gets_one_verdict(_: &Namespace) {
    let mut queue = bind_accepting();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let mut packet = retain_one(&mut queue);
    packet.set_deadline(Some(Instant::now() + Duration::from_millis(20)));
    drop(packet);
    assert_eq!(udp.receive(), b"a");
    expect_one_verdict_each(&mut queue, 1);
}

fn a_packet_judged_before_its_deadline_gets_one_verdict(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    for mut packet in retain_all(&mut queue, 3) {
        packet.set_deadline(Some(Instant::now() + Duration::from_millis(20)));
        packet.accept().unwrap();
    }
    expect_one_verdict_each(&mut queue, 3);
    assert_eq!(udp.receive_all(3), [[0], [1], [2]]);
}

fn a_packet_judged_in_time_is_left_alone_when_others_expire(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..5);
    let deadline = Instant::now();
    let mut packets = retain_all(&mut queue, 5);
    for (at, packet) in (0..).zip(&mut packets) {
        packet.set_deadline(Some(deadline + Duration::from_micros(at)));
    }
    let last = packets.split_off(4);
    for packet in packets.split_off(1) {
        packet.accept().unwrap();
    }
    let_expire(&mut queue, 2);
    drop((packets, last));
    let_pass(&mut queue, Duration::ZERO);
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.refused, stats.held), (5, 0, 0));
    assert_eq!(udp.receive_all(3), [[1], [2], [3]]);
}

fn a_thousand_deadlines_pass(_: &Namespace) {
    const PACKETS: usize = 1_000;
    let mut queue = bind();
    let _rules = queue_udp_at(Hook::INPUT, 1);
    let udp = UdpPair::new(V4);
    let mut packets = Vec::new();
    while packets.len() < PACKETS {
        udp.send_each(0..50);
        packets.extend(retain_all(&mut queue, 50));
    }
    let now = Instant::now();
    for (at, packet) in (0_u64..).zip(&mut packets) {
        // All in an order of their own, and none equal.
        packet.set_deadline(Some(now + Duration::from_micros(20 * (at * 7 % 1_000))));
    }
    let_expire(&mut queue, PACKETS as u64);
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.held, stats.refused), (PACKETS as u64, 0, 0));
    assert_eq!(stats.retained, PACKETS as u64);
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!(kernel.waiting, 0);
    }
    for packet in packets {
        let error = packet.accept().unwrap_err().error;
        assert!(matches!(error, Error::Expired), "{error:?}");
    }
    let_pass(&mut queue, Duration::ZERO);
    assert_eq!((queue.stats().refused, queue.stats().retained), (0, 0));
}

fn packets_leave_in_the_order_of_their_deadlines(_: &Namespace) {
    let mut queue = bind_accepting();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..100);
    let mut packets = retain_all(&mut queue, 100);
    let now = Instant::now();
    let place = |packet: u64| packet * 37 % 100;
    for (at, packet) in (0..).zip(&mut packets) {
        packet.set_deadline(Some(now + Duration::from_micros(50 * place(at))));
    }
    let_expire(&mut queue, 100);
    let mut order: Vec<u8> = (0..100).collect();
    order.sort_by_key(|packet| place(u64::from(*packet)));
    let arrived: Vec<u8> = (0..100).map(|_| udp.receive()[0]).collect();
    assert_eq!(arrived, order);
}

fn deadlines_of_equal_ids_in_two_queues_are_apart(_: &Namespace) {
    let mut queue = Queue::builder([1, 5]).on_undecided(Verdict::Accept).bind().unwrap();
    let feed = Feed::of([1, 5]);
    feed.send_each([7]);
    let mut packets = retain_all(&mut queue, 2);
    assert_eq!((packets[1].queue(), packets[1].id()), (5, packets[0].id()));
    packets[1].set_deadline(Some(Instant::now()));
    let_expire(&mut queue, 1);
    assert_eq!(feed.udp[1].receive(), [7]);
    feed.udp[0].expect_nothing();
    packets.remove(0).accept().expect("it has no deadline");
    assert_eq!(feed.udp[0].receive(), [7]);
}

fn verdicts_race_with_deadlines(_: &Namespace) {
    const ROUNDS: u64 = 200;
    let mut queue = bind_accepting();
    let _rules = queue_udp_at(Hook::INPUT, 1);
    let udp = UdpPair::new(V4);
    let stats = queue.stats_handle();
    let (to_judge, packets) = mpsc::channel::<RetainedPacket>();
    let mut late = 0;
    judge_while(
        &mut queue,
        move |packet| {
            let (mut retained, decided) = packet.retain();
            let now = Instant::now();
            retained.set_deadline(Some(now + Duration::from_micros(100)));
            to_judge.send(retained).unwrap();
            decided
        },
        || {
            for round in 0..ROUNDS {
                udp.send(b"a");
                let packet = packets.recv_timeout(SOON).unwrap();
                let at = packet.deadline().unwrap() + Duration::from_micros(8 * round);
                while Instant::now() < at {
                    std::hint::spin_loop();
                }
                match packet.verdict(Verdict::Accept) {
                    Ok(()) => {}
                    Err(NotSent { error: Error::Expired, .. }) => late += 1,
                    Err(error) => panic!("{error}"),
                }
                assert_eq!(udp.receive(), b"a");
            }
            wait_until("all verdicts", || stats.stats().held == 0);
        },
    );
    let_pass(&mut queue, Duration::ZERO);
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.refused, stats.expired), (ROUNDS, 0, late));
}
