//! What the guide (`netfilterqueue::docs::guide`) names as the cause of a symptom, where no other
//! test has it.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::thread;

use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{Batch, EditMode, Queue, RetainedPacket};
use netfilterqueue_netns::Namespace;

use crate::support::{
    Judging, Peers, SERVER_V4, UdpPair, V4, connect, judge_while, queue_udp, receive_exactly,
    wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 6] = tests![
    guide_a_sender_at_output_waits_for_its_packets,
    guide_the_table_of_sockets_tells_of_a_full_one,
    guide_a_raw_edit_arrives_with_a_wrong_checksum,
    guide_tcp_comes_in_more_packets_without_gso,
    guide_a_range_of_queues_keeps_two_hosts_together,
    guide_bypass_does_not_help_against_a_program_that_hangs,
];

fn guide_a_sender_at_output_waits_for_its_packets(_: &Namespace) {
    /// More than any send buffer holds.
    const MANY: usize = 100_000;
    let mut queue = Queue::builder(1).max_len(MANY as u32).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.sender.set_nonblocking(true).unwrap();
    let mut held: Vec<RetainedPacket> = Vec::new();
    let mut batch = Batch::new(1);
    let error = loop {
        match udp.sender.send(&[0; 100]) {
            Ok(_) => {
                queue.recv(&mut batch).unwrap();
                held.extend((&mut batch).into_iter().map(|packet| packet.retain().0));
            }
            Err(error) => break error,
        }
        assert!(held.len() < MANY, "the sender never has to wait");
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(held.len() > 1, "only {} packets are held", held.len());
    held.into_iter().for_each(|packet| packet.accept().unwrap());
    udp.sender.send(b"goes on").unwrap();
}

/// What waits unread in a netfilter socket, in bytes, and how many packets it had no room for.
fn socket_row(port: u32) -> (u64, u64) {
    let table = fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let mut rows = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let row = rows
        .find(|row| row[1] == "12" && row[2] == port.to_string())
        .expect("a row of the queue's socket");
    (row[4].parse().unwrap(), row[8].parse().unwrap())
}

fn guide_the_table_of_sockets_tells_of_a_full_one(_: &Namespace) {
    let mut queue = Queue::builder(1).receive_buffer(10_000).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    assert_eq!(socket_row(queue.port_id()), (0, 0));
    udp.send_each(0..60);
    let (unread, dropped) = socket_row(queue.port_id());
    assert!(unread > 0 && unread <= queue.receive_buffer().unwrap() as u64, "{unread}");
    assert!((1..60).contains(&dropped), "{dropped}");
    let delivered = 60 - dropped as usize;
    drop(receive_exactly(&mut queue, delivered));
    udp.send(b"shows the gap");
    drop(receive_exactly(&mut queue, 1));
    assert_eq!(queue.stats().lost, dropped);
    assert_eq!(socket_row(queue.port_id()), (0, dropped));
}

/// `Udp: InCsumErrors`, as `nstat` has it.
fn udp_checksum_errors() -> u64 {
    let counters = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
    let (_, value) = pairs.find(|(name, _)| *name == "InCsumErrors").expect("counted since 3.7");
    value.parse().unwrap()
}

fn guide_a_raw_edit_arrives_with_a_wrong_checksum(_: &Namespace) {
    let _rules = queue_udp(1);
    for mode in [EditMode::Complete, EditMode::Raw] {
        let queue = Queue::builder(1).edit_mode(mode).bind().unwrap();
        let judging = Judging::start(queue, |mut packet| {
            *packet.payload_mut().unwrap().last_mut().unwrap() = b'!';
            packet.accept()
        });
        let udp = UdpPair::new(V4);
        let before = udp_checksum_errors();
        udp.send(b"changed.");
        if mode == EditMode::Complete {
            assert_eq!(udp.receive_all(1), [b"changed!"]);
            assert_eq!(udp_checksum_errors(), before);
        } else {
            // Counted by whoever asks the receiving socket for data.
            udp.expect_nothing();
            assert_eq!(udp_checksum_errors(), before + 1);
        }
        judging.finish().close().unwrap();
    }
}

fn guide_tcp_comes_in_more_packets_without_gso(router: &Namespace) {
    const BYTES: usize = 1 << 20;
    let peers = Peers::of(router);
    let [(few, long), (many, short)] = [true, false].map(|gso| {
        let mut queue = Queue::builder(1).gso(gso).bind().unwrap();
        let rule = Rule::queue(1).protocol(Protocol::TCP).output_interface("right");
        let _rules = Rules::new(Hook::FORWARD).rule(rule).install().unwrap();
        let (mut packets, mut longest) = (0, 0);
        judge_while(
            &mut queue,
            |packet| {
                packets += 1;
                longest = longest.max(packet.payload().len());
                packet.accept()
            },
            || {
                let listener = peers.server.run(|| TcpListener::bind((SERVER_V4, 0)).unwrap());
                let (mut client, mut server) = connect(&peers.client, &listener);
                let sending = thread::spawn(move || client.write_all(&vec![0; BYTES]).unwrap());
                let mut received = vec![1; BYTES];
                server.read_exact(&mut received).unwrap();
                sending.join().unwrap();
            },
        );
        (packets, longest)
    });
    assert!(long > 1500, "super-packets come whole, the longest has {long} bytes");
    assert_eq!(short, 1500, "packets as on the wire");
    // How many times as many depends on how fast the sender is.
    assert!(many >= BYTES / 1500 && many > few, "{few} packets with GSO, {many} without");
}

fn guide_a_range_of_queues_keeps_two_hosts_together(_: &Namespace) {
    let mut queue = Queue::builder(0..=3).nonblocking(true).bind().unwrap();
    let rule = Rule::queues(0..=3).protocol(Protocol::UDP);
    let _rules = Rules::new(Hook::OUTPUT).rule(rule).install().unwrap();
    // Each with ports of its own.
    let pairs: Vec<UdpPair> = (0..8).map(|_| UdpPair::new(V4)).collect();
    pairs.iter().for_each(|udp| udp.send(b"same addresses"));
    let mut numbers = Vec::new();
    queue
        .run(|packet| {
            numbers.push(packet.queue());
            packet.accept()
        })
        .unwrap();
    assert_eq!(numbers, [numbers[0]; 8]);
}

fn guide_bypass_does_not_help_against_a_program_that_hangs(_: &Namespace) {
    let udp = UdpPair::new(V4);
    let rule = Rule::queue(1).protocol(Protocol::UDP).bypass(true);
    let _rules = Rules::new(Hook::INPUT).rule(rule).install().unwrap();
    for (fails_open, passed) in [(false, 0), (true, 3)] {
        // It receives nothing.
        let queue = Queue::builder(1).max_len(2).fail_open(fails_open).bind().unwrap();
        udp.send_each(0..5);
        assert_eq!(udp.receive_all(passed).len(), passed);
        drop(queue);
        wait_until("bypass", || {
            udp.send(b"nobody listens");
            udp.receiver.recv(&mut [0; 100]).is_ok()
        });
    }
}
