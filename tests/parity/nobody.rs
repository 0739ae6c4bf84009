//! What the tests of no other library ask about, in the order of a packet's life: setting up,
//! receiving, judging, under pressure. Short ones; the thorough tests are the `live` ones.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use netfilterqueue::checksum::{Completion, WhyNothing};
use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{
    Batch, ConfigFlags, CopyMode, EditError, Errno, Error, Family, FlagChange, Packet, Queue,
    SkbInfo, Verdict,
};
use netfilterqueue_netns::Namespace;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use crate::craft::data_mut;
use crate::python_netfilterqueue::{pattern, queue_tcp, transfer};
use crate::support::{
    CLIENT_V4, Judging, Peers, SERVER_V4, UdpPair, V4, V6, expect_no_packet, judge, judge_while,
    kernel_stats, queue_udp, queue_udp_at, receive_exactly, udp_data, wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 14] = tests![
    nobody_tests_configuration_on_a_live_queue,
    nobody_tests_several_queues_on_a_socket,
    nobody_tests_overrun,
    nobody_tests_truncation,
    nobody_tests_gso_and_edit,
    nobody_tests_ipv6,
    nobody_tests_batch,
    nobody_tests_queue_to_other,
    nobody_tests_fail_open,
    nobody_tests_verdict_errors,
    nobody_tests_many_threads,
    nobody_tests_malformed_messages,
    nobody_tests_malformed_packets,
    nobody_tests_long_runs,
];

fn bind(number: u16) -> Queue {
    Queue::builder(number).bind().unwrap()
}

/// What waits, accepted, by its ids.
fn accept_what_waits(queue: &mut Queue) -> Vec<u32> {
    let mut ids = Vec::new();
    queue.set_nonblocking(true);
    queue
        .run(|packet| {
            ids.push(packet.id());
            packet.accept()
        })
        .unwrap();
    queue.set_nonblocking(false);
    ids
}

fn nobody_tests_configuration_on_a_live_queue(_: &Namespace) {
    let mut queue = bind(1);
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mask = ConfigFlags::FAIL_OPEN;
    for number in 0..50_u8 {
        udp.send(&[number]);
        match number % 3 {
            0 => queue.set_max_len(2_000 + u32::from(number)),
            1 => queue.set_copy_mode(CopyMode::Packet { range: 1_000 + u32::from(number) }),
            _ => queue.set_flags(FlagChange { mask, values: mask }),
        }
        .unwrap();
    }
    assert_eq!((queue.max_len(), queue.copy_mode()), (2_048, CopyMode::Packet { range: 1_049 }));
    assert!(queue.flags().contains(mask));
    assert_eq!(accept_what_waits(&mut queue), (1..=50).collect::<Vec<_>>());
    assert_eq!(udp.receive_all(50).concat(), (0..50).collect::<Vec<u8>>());
}

fn nobody_tests_several_queues_on_a_socket(_: &Namespace) {
    const NUMBERS: [u16; 3] = [1, 500, 65_535];
    let queue = Queue::builder(NUMBERS).bind().unwrap();
    assert_eq!(queue.numbers().collect::<Vec<_>>(), NUMBERS);
    let taken = Queue::builder(500).bind().unwrap_err();
    assert!(matches!(taken, Error::QueueTaken { queue: 500, .. }), "{taken}");
    let (note, seen) = mpsc::channel();
    let judging = Judging::start(queue, move |packet| {
        note.send((packet.queue(), packet.id())).unwrap();
        let drop = packet.queue() == 500;
        packet.verdict(if drop { Verdict::Drop } else { Verdict::Accept })
    });
    let pairs = NUMBERS.map(|number| (number, UdpPair::new(V4)));
    let rules = pairs.iter().fold(Rules::new(Hook::OUTPUT), |rules, (number, udp)| {
        let port = udp.receiver_address().port();
        rules.rule(Rule::queue(*number).protocol(Protocol::UDP).destination_port(port))
    });
    let _rules = rules.install().unwrap();
    for _ in 0..2 {
        pairs.iter().for_each(|(_, udp)| udp.send(b"hello"));
    }
    for (number, udp) in &pairs {
        let arriving = if *number == 500 { 0 } else { 2 };
        assert_eq!(udp.receive_all(arriving).len(), arriving);
    }
    let mut seen: Vec<_> = seen.iter().take(6).collect();
    seen.sort_unstable();
    let expected = NUMBERS.map(|number| [(number, 1), (number, 2)]).concat();
    assert_eq!(seen, expected, "ids are each number's own");
    judging.finish().close().unwrap();
    for number in NUMBERS {
        drop(bind(number));
    }
}

fn nobody_tests_overrun(_: &Namespace) {
    let mut queue = Queue::builder(1).receive_buffer(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..100);
    let fitted = accept_what_waits(&mut queue).len();
    assert!((1..100).contains(&fitted), "{fitted} fitted");
    udp.receive_all(fitted);
    udp.send(b"later");
    assert_eq!(accept_what_waits(&mut queue), [101], "it works on");
    assert_eq!(udp.receive_all(1), [b"later"]);
    assert_eq!(queue.stats().lost, 100 - fitted as u64);
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!(
            u64::from(kernel.user_dropped),
            queue.stats().lost,
            "the kernel counts the same"
        );
    }
}

fn nobody_tests_truncation(_: &Namespace) {
    let mut queue = Queue::builder(1).copy_mode(CopyMode::Packet { range: 40 }).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&[7; 1_000]);
    let mut batch = receive_exactly(&mut queue, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    assert_eq!((packet.payload().len(), packet.original_len()), (40, Some(1_028)));
    let cut = EditError::Truncated { copied: 40, full: 1_028 };
    assert_eq!(packet.payload_mut().unwrap_err(), cut);
    assert_eq!(packet.set_payload(&[0; 40]).unwrap_err(), cut);
    assert!(cut.to_string().contains("raise the copy range"), "{cut}");
    packet.set_mark(1);
    packet.accept();
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(1), [[7; 1_000]], "nothing is cut off what leaves");
    // Packets on loopback may be longer than what can be copied.
    queue.set_copy_mode(CopyMode::WHOLE).unwrap();
    udp.send(&[8; 65_507]);
    let mut batch = receive_exactly(&mut queue, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    assert_eq!((packet.payload().len(), packet.original_len()), (65_531, Some(65_535)));
    assert!(matches!(packet.payload_mut(), Err(EditError::Truncated { .. })));
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(1), [[8; 65_507]]);
}

fn nobody_tests_gso_and_edit(router: &Namespace) {
    const LENGTH: usize = 2 << 20;
    let peers = Peers::of(router);
    let super_packets = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&super_packets);
    let judging = Judging::start(bind(1), move |mut packet| {
        let is_gso = packet.skb_info().is_some_and(SkbInfo::is_gso);
        counter.fetch_add(usize::from(is_gso), Ordering::Relaxed);
        let bytes = packet.payload_mut().unwrap();
        data_mut(bytes).iter_mut().for_each(|byte| *byte = !*byte);
        packet.accept()
    });
    let _rules = queue_tcp();
    let received = transfer(&peers, CLIENT_V4, SERVER_V4, LENGTH);
    let inverted: Vec<u8> = pattern(LENGTH).iter().map(|byte| !byte).collect();
    assert!(received == inverted, "each byte arrives inverted");
    assert!(super_packets.load(Ordering::Relaxed) > 0, "there were super-packets");
    assert_eq!(judging.finish().stats().incomplete_edits, 0);
}

fn nobody_tests_ipv6(router: &Namespace) {
    let peers = Peers::of(router);
    let _judging = Judging::start(bind(1), |mut packet| {
        assert_eq!((packet.family(), packet.hw_protocol()), (Family::IPV6, 0x86dd));
        let line = packet.to_string();
        assert!(line.contains(" UDP [fd01::2]:"), "{line}");
        match packet.payload() {
            payload if payload.ends_with(b"drop") => packet.verdict(Verdict::Drop),
            payload => {
                let longer = [payload, b", edited"].concat();
                packet.set_payload(&longer).unwrap();
                packet.accept()
            }
        }
    });
    let _rules = queue_udp_at(Hook::FORWARD, 1);
    let udp = peers.udp_v6();
    ["drop", "one", "three"].iter().for_each(|data| udp.send(data.as_bytes()));
    assert_eq!(udp.receive_all(2), [&b"one, edited"[..], b"three, edited"]);
}

fn nobody_tests_batch(_: &Namespace) {
    let mut queue = bind(1);
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..64);
    let mut batch = receive_exactly(&mut queue, 64);
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(64).concat(), (0..64).collect::<Vec<u8>>());
    let stats = queue.stats();
    assert_eq!((stats.cumulative_verdicts, stats.exact_verdicts, stats.send_calls), (1, 0, 1));
    // A cumulative verdict must not reach the packet that was retained.
    udp.send_each(0..8);
    let mut batch = receive_exactly(&mut queue, 8);
    let (kept, _) = batch.iter_mut().nth(3).unwrap().retain();
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(7).concat(), [0, 1, 2, 4, 5, 6, 7]);
    kept.accept().unwrap();
    assert_eq!(udp.receive_all(1), [[3]]);
    expect_no_packet(&mut queue);
    assert_eq!(queue.stats().refused, 0);
}

fn nobody_tests_queue_to_other(_: &Namespace) {
    let [mut first, mut second] = [1, 2].map(bind);
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    // The packet gets an id of the other queue.
    udp.send_each(0..2);
    judge(&mut receive_exactly(&mut first, 2), Verdict::Drop);
    udp.send(b"sent on");
    judge(&mut receive_exactly(&mut first, 1), Verdict::Queue { number: 2, bypass: false });
    let mut batch = receive_exactly(&mut second, 1);
    let packet = batch.iter_mut().next().unwrap();
    assert_eq!((packet.queue(), packet.id(), udp_data(packet.payload())), (2, 1, &b"sent on"[..]));
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(1), [b"sent on"]);
    for (bypass, arriving) in [(true, 1), (false, 0)] {
        udp.send(b"to nobody");
        judge(&mut receive_exactly(&mut first, 1), Verdict::Queue { number: 3, bypass });
        assert_eq!(udp.receive_all(arriving).len(), arriving);
    }
}

fn nobody_tests_fail_open(_: &Namespace) {
    let udp = UdpPair::new(V4);
    for (fail_open, passing) in [(false, &[][..]), (true, &[2, 3, 4])] {
        let mut queue = Queue::builder(1).max_len(2).fail_open(fail_open).bind().unwrap();
        let _rules = queue_udp(1);
        udp.send_each(0..5);
        assert_eq!(udp.receive_all(passing.len()).concat(), passing, "not asked about");
        assert_eq!(accept_what_waits(&mut queue), [1, 2]);
        assert_eq!(udp.receive_all(2), [[0], [1]]);
    }
}

/// Removing a base chain, whoever's it is, makes the kernel drop what waits.
fn nobody_tests_verdict_errors(_: &Namespace) {
    let mut queue = bind(1);
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let unrelated = Rules::new(Hook::INPUT).rule(Rule::queue(9).mark(9)).install().unwrap();
    udp.send_each(0..2);
    let mut batch = receive_exactly(&mut queue, 2);
    let (kept, _) = batch.iter_mut().next().unwrap().retain();
    unrelated.remove().unwrap();
    judge(&mut batch, Verdict::Accept);
    kept.accept().expect("sent, whatever the kernel makes of it");
    udp.expect_nothing();
    expect_no_packet(&mut queue);
    let mut refused: Vec<_> = queue
        .take_refusals()
        .into_iter()
        .map(|refusal| (refusal.queue, refusal.id, refusal.cumulative, refusal.errno))
        .collect();
    refused.sort_unstable_by_key(|refusal| refusal.1);
    assert_eq!(refused, [(1, 1, false, Errno::ENOENT), (1, 2, false, Errno::ENOENT)]);
    assert_eq!((queue.stats().refused, queue.take_refusals().len()), (2, 0));
    udp.send(b"later");
    judge(&mut receive_exactly(&mut queue, 1), Verdict::Accept);
    assert_eq!(udp.receive_all(1), [b"later"]);
}

/// Packets are judged by the thread whose turn it is, each as its first byte says.
fn nobody_tests_many_threads(_: &Namespace) {
    const PACKETS: usize = 1_600;
    const THREADS: usize = 8;
    let mut queue = Queue::builder(1).max_len(4_096).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut received = thread::scope(|scope| {
        let workers: [_; THREADS] = std::array::from_fn(|_| {
            let (work, packets) = mpsc::channel::<netfilterqueue::RetainedPacket>();
            scope.spawn(move || {
                for packet in packets {
                    let drop = udp_data(packet.payload())[0].is_multiple_of(2);
                    packet.verdict(if drop { Verdict::Drop } else { Verdict::Accept }).unwrap();
                }
            });
            work
        });
        let judge = |packet: Packet<'_>| {
            let (retained, _) = packet.retain();
            workers[retained.id() as usize % THREADS].send(retained).unwrap();
        };
        let mut received = Vec::new();
        let mut batch = Batch::new(64);
        for numbers in (0..PACKETS).collect::<Vec<_>>().chunks(100) {
            numbers.iter().for_each(|number| udp.send(&[*number as u8]));
            let mut waiting = numbers.len();
            while waiting > 0 {
                waiting -= queue.recv(&mut batch).unwrap();
                batch.iter_mut().for_each(judge);
            }
            received.extend((0..numbers.len() / 2).map(|_| udp.receive()[0]));
        }
        received
    });
    udp.expect_nothing();
    received.sort_unstable();
    let mut expected: Vec<u8> = (0..PACKETS).map(|number| number as u8).collect();
    expected.retain(|number| number % 2 == 1);
    expected.sort_unstable();
    assert!(received == expected, "other packets than the odd ones arrived");
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.retained, stats.refused), (PACKETS as u64, 0, 0));
}

/// Another program with the capability can send anything to a socket that it has opened for us.
fn nobody_tests_malformed_messages(_: &Namespace) {
    let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    let socket = socket.as_fd().try_clone_to_owned().unwrap();
    let mut queue = Queue::builder(1).bind_on(socket).unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut stranger = Socket::new(NETLINK_NETFILTER).unwrap();
    stranger.bind_auto().unwrap();
    let to = SocketAddr::new(queue.port_id(), 0);
    let mut state = 1_u32;
    for round in 0..200_usize {
        let garbage: Vec<u8> = (0..1 + round % 80)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        stranger.send_to(&garbage, &to, 0).unwrap();
        if round % 20 == 0 {
            udp.send(&[round as u8]);
        }
    }
    assert_eq!(accept_what_waits(&mut queue), (1..=10).collect::<Vec<_>>());
    assert_eq!(udp.receive_all(10).len(), 10);
    let stats = queue.stats();
    assert_eq!((stats.foreign, stats.unknown, stats.malformed, stats.lost), (200, 0, 0, 0));
}

/// What a packet is made into is the program's business, up to the point where the kernel would
/// suffer.
fn nobody_tests_malformed_packets(_: &Namespace) {
    let mut queue = bind(1);
    let _rules = queue_udp(1);
    for address in [V4, V6] {
        let udp = UdpPair::new(address);
        udp.send(&[0; 100]);
        let mut batch = receive_exactly(&mut queue, 1);
        let mut packet = batch.iter_mut().next().unwrap();
        assert_eq!(packet.set_payload(&[]).unwrap_err(), EditError::Empty);
        let header = if address.is_ipv4() { 20 } else { 40 };
        let short = EditError::TooShort { len: header - 1, min: header };
        assert_eq!(packet.set_payload(&vec![0x45; header - 1]).unwrap_err(), short);
        let original = packet.payload().to_vec();
        for length in header..original.len() {
            packet.set_payload(&original[..length]).unwrap();
            assert!(!packet.to_string().is_empty(), "cut off anywhere, it can be shown");
            packet.complete();
        }
        packet.set_payload(&[0xff; 77]).unwrap();
        assert!(!packet.to_string().is_empty());
        assert_eq!(packet.complete(), Some(Completion::Nothing(WhyNothing::NotIp)));
        packet.accept();
        batch.commit().unwrap();
        udp.expect_nothing();
        udp.send(b"sound");
        judge(&mut receive_exactly(&mut queue, 1), Verdict::Accept);
        assert_eq!(udp.receive_all(1), [b"sound"]);
    }
    assert_eq!(queue.stats().incomplete_edits, 2);
}

/// Everything at once, for long enough that what leaks or drifts would show.
fn nobody_tests_long_runs(_: &Namespace) {
    const PACKETS: u32 = 20_000;
    const CHUNK: usize = 50;
    let mut queue = bind(1);
    let _rules = queue_udp(1);
    let udp = UdpPair::new(IpAddr::from([127, 0, 0, 1]));
    let mut kept = std::collections::VecDeque::new();
    let handle = queue.stats_handle();
    judge_while(
        &mut queue,
        move |mut packet| {
            let number = u32::from_be_bytes(*udp_data(packet.payload()).first_chunk().unwrap());
            assert_eq!(packet.id(), number + 1, "no packet is missing, none comes twice");
            match number % 5 {
                0 => return packet.verdict(Verdict::Drop),
                1 => packet.set_mark(number),
                2 => data_mut(packet.payload_mut().unwrap()).reverse(),
                3 => {
                    let (retained, decided) = packet.retain();
                    kept.push_back(retained);
                    if kept.len() > 10 {
                        kept.pop_front().unwrap().accept().unwrap();
                    }
                    return decided;
                }
                _ => {}
            }
            packet.accept()
        },
        || {
            for first in (0..PACKETS).step_by(CHUNK) {
                let numbers = first..first + CHUNK as u32;
                numbers.clone().for_each(|number| udp.send(&number.to_be_bytes()));
                let mut expected: Vec<_> = numbers
                    .filter_map(|number| match number % 5 {
                        0 => None,
                        2 => Some(number.swap_bytes()),
                        // The retained ones come a chunk later, those of the last one not at all.
                        3 => number.checked_sub(CHUNK as u32),
                        _ => Some(number),
                    })
                    .map(u32::to_be_bytes)
                    .collect();
                let mut arrived: Vec<_> = expected.iter().map(|_| udp.receive()).collect();
                expected.sort_unstable();
                arrived.sort_unstable();
                assert_eq!(arrived, expected);
            }
            // The last one arrives before it is counted as answered.
            wait_until("ten held packets", || handle.stats().held == 10);
        },
    );
    udp.expect_nothing();
    let (stats, packets) = (queue.stats(), u64::from(PACKETS));
    assert_eq!((stats.received, stats.answered, stats.lost), (packets, packets, 0));
    assert_eq!((stats.held, stats.retained, stats.refused), (0, 0, 0));
}
