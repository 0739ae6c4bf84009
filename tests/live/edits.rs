//! Edited packets: what arrives are the edited bytes; what was not edited is left to the kernel.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{EditMode, Packet, Queue, SkbInfo, Verdict};
use netfilterqueue_netns::Namespace;

use crate::craft::{clear_udp_checksum, correct, data, data_mut, set_destination_port, with_data};
use crate::support::{
    SOON, UdpPair, V4, V6, judge_while, queue_udp, queue_udp_at, receive_exactly,
};
use crate::{Test, tests};

pub const TESTS: [Test; 22] = tests![
    bytes_change_in_place,
    bytes_change_in_place_over_ipv6,
    bytes_change_in_place_without_a_checksum,
    a_wrong_checksum_is_left_as_it_is,
    a_packet_is_replaced_by_any_length,
    a_packet_is_replaced_by_any_length_over_ipv6,
    edits_follow_one_another,
    a_port_changes,
    an_edit_and_a_mark_leave_together,
    an_edited_packet_goes_to_another_queue,
    an_edit_splits_a_run,
    many_edited_packets_leave_in_one_call,
    more_edited_packets_than_a_datagram_lists_leave_in_two,
    big_edits_leave_in_several_calls,
    the_edit_of_a_dropped_packet_is_not_sent,
    a_retained_packet_changes_in_place,
    a_retained_packet_is_replaced_by_any_length,
    a_packet_is_retained_with_its_edit,
    a_retained_packet_is_dropped_with_its_edit,
    an_unfinished_checksum_is_left_to_the_kernel,
    tcp_super_packets_pass_whole,
    tcp_super_packets_pass_edited,
];

/// The most data of UDP in a packet that can be replaced: 65,531 bytes with headers of 28 (IPv4)
/// bytes.
pub const MOST_DATA: usize = 65_503;

/// 1 to 4 bytes make all remainders of the packet's length by four.
const LENGTHS: [usize; 9] = [1, 2, 3, 4, 19, 21, 1_400, 9_001, 60_000];

pub fn bind() -> Queue {
    Queue::builder(1).bind().unwrap()
}

/// Receives one packet, edits it with `edit` and accepts it.
pub fn edit_one(queue: &mut Queue, edit: impl FnOnce(&mut Packet<'_>)) {
    let mut batch = receive_exactly(queue, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    edit(&mut packet);
    packet.accept();
    batch.commit().unwrap();
}

/// Bytes that differ from position to position and from `seed` to `seed`.
pub fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + seed * 31 + at / 256) as u8).collect()
}

pub fn replace_data(packet: &mut Packet<'_>, data: &[u8]) {
    let changed = with_data(packet.payload(), data);
    packet.set_payload(&changed).unwrap();
    assert_eq!(packet.payload(), changed);
}

fn bytes_change_in_place(_: &Namespace) {
    change_in_place(V4, correct);
}

fn bytes_change_in_place_over_ipv6(_: &Namespace) {
    change_in_place(V6, correct);
}

fn bytes_change_in_place_without_a_checksum(_: &Namespace) {
    change_in_place(V4, clear_udp_checksum);
}

fn change_in_place(address: IpAddr, finish: fn(&mut [u8])) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(address);
    udp.send(b"before it");
    edit_one(&mut queue, |packet| {
        let bytes = packet.payload_mut().unwrap();
        data_mut(bytes).copy_from_slice(b"and after");
        finish(bytes);
        assert_eq!(data(packet.payload()), b"and after");
    });
    assert_eq!(udp.receive_all(1), [b"and after"]);
    let stats = queue.stats();
    assert_eq!((stats.exact_verdicts, stats.refused, stats.held), (1, 0, 0));
}

fn a_wrong_checksum_is_left_as_it_is(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"before");
    edit_one(&mut queue, |packet| {
        packet.set_edit_mode(EditMode::Raw);
        let bytes = packet.payload_mut().unwrap();
        correct(bytes);
        data_mut(bytes)[0] ^= 1;
    });
    udp.expect_nothing();
}

fn a_packet_is_replaced_by_any_length(_: &Namespace) {
    replace_by_any_length(V4, MOST_DATA);
}

fn a_packet_is_replaced_by_any_length_over_ipv6(_: &Namespace) {
    replace_by_any_length(V6, MOST_DATA - 20);
}

fn replace_by_any_length(address: IpAddr, most: usize) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(address);
    for (seed, length) in LENGTHS.into_iter().chain([most]).enumerate() {
        for original in [20, 3_000, 40_000] {
            udp.send(&pattern(seed + 1, original));
            let replacement = pattern(seed, length);
            edit_one(&mut queue, |packet| replace_data(packet, &replacement));
            assert_eq!(udp.receive(), replacement, "{original} bytes became {length}");
        }
    }
    udp.expect_nothing();
}

fn edits_follow_one_another(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"first");
    edit_one(&mut queue, |packet| {
        data_mut(packet.payload_mut().unwrap()).make_ascii_uppercase();
        assert_eq!(data(packet.payload()), b"FIRST");
        let second = [data(packet.payload()), b" and longer"].concat();
        replace_data(packet, &second);
        data_mut(packet.payload_mut().unwrap())[0] = b'f';
        let third = [data(packet.payload()), b" and longer still"].concat();
        replace_data(packet, &third);
        replace_data(packet, b"shortest");
        data_mut(packet.payload_mut().unwrap()).make_ascii_uppercase();
        correct(packet.payload_mut().unwrap());
    });
    assert_eq!(udp.receive_all(1), [b"SHORTEST"]);
}

fn a_port_changes(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let (meant, other) = (UdpPair::new(V4), UdpPair::new(V4));
    meant.send(b"a");
    edit_one(&mut queue, |packet| {
        let bytes = packet.payload_mut().unwrap();
        set_destination_port(bytes, other.receiver_address().port());
        correct(bytes);
    });
    assert_eq!(other.receive_all(1), [b"a"]);
    meant.expect_nothing();
}

fn an_edit_and_a_mark_leave_together(_: &Namespace) {
    let (mut first, mut second) = (bind(), Queue::builder(2).bind().unwrap());
    let _rules = (queue_udp(1), queue_udp_at(Hook::INPUT, 2));
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    edit_one(&mut first, |packet| {
        replace_data(packet, b"edited and marked");
        packet.set_mark(8);
    });
    edit_one(&mut second, |packet| {
        assert_eq!((data(packet.payload()), packet.mark()), (&b"edited and marked"[..], Some(8)));
    });
    assert_eq!(udp.receive_all(1), [b"edited and marked"]);
}

fn an_edited_packet_goes_to_another_queue(_: &Namespace) {
    let (mut first, mut second) = (bind(), Queue::builder(2).bind().unwrap());
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let mut batch = receive_exactly(&mut first, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    replace_data(&mut packet, b"edited once");
    packet.verdict(Verdict::Queue { number: 2, bypass: false });
    batch.commit().unwrap();
    edit_one(&mut second, |packet| {
        assert_eq!(data(packet.payload()), b"edited once");
        replace_data(packet, b"edited twice");
    });
    assert_eq!(udp.receive_all(1), [b"edited twice"]);
}

fn an_edit_splits_a_run(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..5);
    let mut batch = receive_exactly(&mut queue, 5);
    for mut packet in &mut batch {
        if packet.id() == 3 {
            replace_data(&mut packet, b"edited");
        }
        packet.accept();
    }
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(5), [&[0][..], &[1], b"edited", &[3], &[4]]);
    let stats = queue.stats();
    assert_eq!((stats.send_calls, stats.exact_verdicts, stats.cumulative_verdicts), (1, 1, 2));
}

fn many_edited_packets_leave_in_one_call(_: &Namespace) {
    edit_many(64, 1);
}

fn more_edited_packets_than_a_datagram_lists_leave_in_two(_: &Namespace) {
    edit_many(100, 2);
}

/// Replaces each of `count` packets by one of another length.
fn edit_many(count: usize, send_calls: u64) {
    let mut queue = bind();
    let _rules = queue_udp_at(Hook::INPUT, 1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..count as u8);
    let mut batch = receive_exactly(&mut queue, count);
    for mut packet in &mut batch {
        let seed = packet.id() as usize;
        replace_data(&mut packet, &pattern(seed, seed));
        packet.accept();
    }
    batch.commit().unwrap();
    let replacements: Vec<_> = (1..=count).map(|seed| pattern(seed, seed)).collect();
    assert_eq!(udp.receive_all(count), replacements);
    let stats = queue.stats();
    assert_eq!((stats.send_calls, stats.exact_verdicts), (send_calls, count as u64));
}

fn big_edits_leave_in_several_calls(_: &Namespace) {
    const EACH: usize = 8_192;
    let mut queue = bind();
    let _rules = queue_udp(1);
    // The receive buffer of one socket would not hold all of it.
    let pairs: [UdpPair; 16] = std::array::from_fn(|_| UdpPair::new(V4));
    for seed in 0..64 {
        pairs[seed % 16].send(&[seed as u8]);
    }
    let mut batch = receive_exactly(&mut queue, 64);
    for mut packet in &mut batch {
        let seed = usize::from(data(packet.payload())[0]);
        replace_data(&mut packet, &pattern(seed, EACH));
        packet.accept();
    }
    batch.commit().unwrap();
    for seed in 0..64 {
        assert!(pairs[seed % 16].receive() == pattern(seed, EACH), "packet {seed} differs");
    }
    pairs[0].expect_nothing();
    let stats = queue.stats();
    assert!(stats.send_calls > 1, "one call cannot take half a megabyte");
    assert_eq!((stats.exact_verdicts, stats.refused, stats.held), (64, 0, 0));
}

fn the_edit_of_a_dropped_packet_is_not_sent(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    let mut batch = receive_exactly(&mut queue, 3);
    for mut packet in &mut batch {
        replace_data(&mut packet, b"edited");
        packet.verdict(Verdict::Drop);
    }
    batch.commit().unwrap();
    udp.expect_nothing();
    let stats = queue.stats();
    assert_eq!((stats.exact_verdicts, stats.cumulative_verdicts), (0, 1), "a run without edits");
}

fn a_retained_packet_changes_in_place(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    for address in [V4, V6] {
        let udp = UdpPair::new(address);
        udp.send(b"before it");
        let mut packet = receive_exactly(&mut queue, 1).iter_mut().next().unwrap().retain().0;
        let bytes = packet.payload_mut().unwrap();
        data_mut(bytes).copy_from_slice(b"and after");
        correct(bytes);
        assert_eq!(data(packet.payload()), b"and after");
        packet.accept().unwrap();
        assert_eq!(udp.receive_all(1), [b"and after"]);
    }
}

fn a_retained_packet_is_replaced_by_any_length(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    for (seed, length) in LENGTHS.into_iter().chain([MOST_DATA]).enumerate() {
        udp.send(b"twenty bytes of data");
        let mut packet = receive_exactly(&mut queue, 1).iter_mut().next().unwrap().retain().0;
        let replacement = pattern(seed, length);
        let changed = with_data(packet.payload(), &replacement);
        packet.set_payload(&changed).unwrap();
        assert_eq!(packet.payload(), changed);
        packet.accept().unwrap();
        assert_eq!(udp.receive(), replacement, "20 bytes became {length}");
    }
}

fn a_packet_is_retained_with_its_edit(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..4);
    let mut batch = receive_exactly(&mut queue, 4);
    let replacements = [vec![9], pattern(1, 5_000), b"edited again".to_vec(), vec![3]];
    let mut retained = Vec::new();
    for (mut packet, replacement) in (&mut batch).into_iter().zip(&replacements) {
        match packet.id() {
            1 | 2 => replace_data(&mut packet, replacement),
            3 => replace_data(&mut packet, b"EDITED AGAIN"),
            _ => {}
        }
        retained.push(packet.retain().0);
    }
    data_mut(retained[2].payload_mut().unwrap()).make_ascii_lowercase();
    correct(retained[2].payload_mut().unwrap());
    drop(batch);
    for packet in retained {
        packet.accept().unwrap();
    }
    assert_eq!(udp.receive_all(4), replacements);
}

fn a_retained_packet_is_dropped_with_its_edit(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let mut packet = receive_exactly(&mut queue, 1).iter_mut().next().unwrap().retain().0;
    let changed = with_data(packet.payload(), b"edited");
    packet.set_payload(&changed).unwrap();
    packet.verdict(Verdict::Drop).unwrap();
    udp.expect_nothing();
}

fn an_unfinished_checksum_is_left_to_the_kernel(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"as it was");
    edit_one(&mut queue, |packet| {
        assert!(packet.skb_info().is_some_and(SkbInfo::checksum_not_ready));
    });
    assert_eq!(udp.receive_all(1), [b"as it was"]);
}

/// A TCP stream over loopback whose packets to the server go to queue 1.
struct Stream {
    client: TcpStream,
    server: TcpStream,
    _rules: InstalledRules,
}

impl Stream {
    fn new() -> Self {
        let listener = TcpListener::bind((V4, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let server = listener.accept().unwrap().0;
        client.set_write_timeout(Some(SOON)).unwrap();
        server.set_read_timeout(Some(SOON)).unwrap();
        let rule = Rule::queue(1).protocol(Protocol::TCP).destination_port(address.port());
        Self { client, server, _rules: Rules::new(Hook::OUTPUT).rule(rule).install().unwrap() }
    }

    /// Sends `sent` and returns what the server reads.
    fn transfer(&mut self, sent: &[u8]) -> Vec<u8> {
        let mut received = vec![0; sent.len()];
        thread::scope(|scope| {
            scope.spawn(|| self.client.write_all(sent).unwrap());
            self.server.read_exact(&mut received).unwrap();
        });
        received
    }
}

fn tcp_super_packets_pass_whole(namespace: &Namespace) {
    // With an MTU of 64 KiB, older kernels have no need of them.
    namespace.set_mtu("lo", 1_500).unwrap();
    let super_packets = AtomicUsize::new(0);
    let mut queue = bind();
    let sent = pattern(1, 4 << 20);
    let mut stream = Stream::new();
    let received = judge_while(
        &mut queue,
        |packet| {
            let is_gso = packet.skb_info().is_some_and(SkbInfo::is_gso);
            super_packets.fetch_add(usize::from(is_gso), Ordering::Relaxed);
            packet.accept()
        },
        || stream.transfer(&sent),
    );
    assert!(received == sent, "the stream arrives as it was");
    assert!(super_packets.into_inner() > 0, "there were super-packets");
    let stats = queue.stats();
    assert_eq!((stats.lost, stats.refused, stats.held), (0, 0, 0));
}

fn tcp_super_packets_pass_edited(namespace: &Namespace) {
    // With its own MTU of 64 KiB, loopback makes super-packets that are too long to be edited.
    namespace.set_mtu("lo", 1_500).unwrap();
    let super_packets = AtomicUsize::new(0);
    let mut queue = bind();
    let sent = pattern(1, 1 << 20);
    let mut stream = Stream::new();
    let received = judge_while(
        &mut queue,
        |mut packet| {
            let is_gso = packet.skb_info().is_some_and(SkbInfo::is_gso);
            super_packets.fetch_add(usize::from(is_gso), Ordering::Relaxed);
            let bytes = packet.payload_mut().unwrap();
            data_mut(bytes).iter_mut().for_each(|byte| *byte = !*byte);
            correct(bytes);
            packet.accept()
        },
        || stream.transfer(&sent),
    );
    let inverted: Vec<u8> = sent.iter().map(|byte| !byte).collect();
    assert!(received == inverted, "each byte of the stream arrives inverted");
    assert!(super_packets.into_inner() > 0, "there were super-packets");
    assert_eq!((queue.stats().lost, queue.stats().refused), (0, 0));
}
