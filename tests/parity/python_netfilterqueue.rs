//! The tests of python-netfilterqueue, one for one: a router's queue between a client and a server.
//!
//! Its tests 9 (signals) and 10 (the socket of another namespace) are in `python_process.rs`. Bulk
//! TCP, the last one here, it does not test.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Batch, CopyMode, EditError, Error, Packet, Queue, Verdict};
use netfilterqueue_netns::Namespace;
use nix::sys::socket::{setsockopt, sockopt};

use crate::support::{
    CLIENT_V4, CLIENT_V6, Judging, Peers, QUIET, ROUTER_V4, ROUTER_V6, SERVER_V4, SERVER_V6, SOON,
    UdpPair, V4, expect_no_packet, queue_udp, queue_udp_at, receive_exactly, udp_data,
    with_udp_data,
};
use crate::{Test, tests};

pub const TESTS: [Test; 10] = tests![
    parity_1_traffic_without_a_queue,
    parity_2_two_queues_drop_by_content_and_pass_after_unbind,
    parity_3_edit_with_length_change_and_reorder,
    parity_4_meta_mode_mark_and_repeat_five_times,
    parity_5_hwaddr_and_devices_per_hook,
    parity_6_errors_buffer_warning_busy_double_bind,
    parity_7_payload_of_a_packet_needs_retain,
    parity_8_callback_failure_leaves_packets_decidable,
    parity_8_callback_panic_leaves_packets_to_the_default_verdict,
    parity_bulk_tcp_through_a_queue_arrives_intact,
];

fn parity_1_traffic_without_a_queue(router: &Namespace) {
    let peers = Peers::of(router);
    for udp in [peers.udp_v4(), peers.udp_v6()] {
        udp.send(b"hello");
        assert_eq!(udp.receive_all(1), [b"hello"]);
    }
}

fn parity_2_two_queues_drop_by_content_and_pass_after_unbind(router: &Namespace) {
    let peers = Peers::of(router);
    let (v4, v6) = (peers.udp_v4(), peers.udp_v6());
    let one = dropping(Queue::builder(1).bind().unwrap(), b"one");
    let two = dropping(Queue::builder(2).bind().unwrap(), b"two");
    let to = |udp: &UdpPair| udp.receiver_address().port();
    let rule = |number, udp| {
        Rule::queue(number).protocol(Protocol::UDP).destination_port(to(udp)).bypass(true)
    };
    assert_ne!(to(&v4), to(&v6), "the rules tell the two by their ports");
    let _rules = Rules::new(Hook::FORWARD).rule(rule(1, &v4)).rule(rule(2, &v6)).install().unwrap();

    let words = ["one", "two", "three"];
    let send = |udp: &UdpPair| words.iter().for_each(|word| udp.send(word.as_bytes()));
    [&v4, &v6].into_iter().for_each(send);
    assert_eq!(v4.receive_all(2), [&b"two"[..], b"three"]);
    assert_eq!(v6.receive_all(2), [&b"one"[..], b"three"]);

    let received = [one, two].map(|judging| {
        let queue = judging.finish();
        let received = queue.stats().received;
        queue.close().unwrap();
        received
    });
    assert_eq!(received, [3, 3], "each queue saw its own traffic only");
    [&v4, &v6].into_iter().for_each(send);
    assert_eq!(v4.receive_all(3), words.map(str::as_bytes));
    assert_eq!(v6.receive_all(3), words.map(str::as_bytes));
}

/// Drops packets with this data and accepts all others.
fn dropping(queue: Queue, data: &'static [u8]) -> Judging {
    Judging::start(queue, move |packet| {
        let drop = udp_data(packet.payload()) == data;
        packet.verdict(if drop { Verdict::Drop } else { Verdict::Accept })
    })
}

fn parity_3_edit_with_length_change_and_reorder(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp_at(Hook::FORWARD, 1);
    for udp in [peers.udp_v4(), peers.udp_v6()] {
        let mut batch = next_packet(&mut queue, &udp, b"held");
        let (mut held, _) = batch.iter_mut().next().unwrap().retain();
        for (sent, edited) in [("longer", "longer than it was"), ("emptied", "")] {
            let mut batch = next_packet(&mut queue, &udp, sent.as_bytes());
            accept_edited(batch.iter_mut().next().unwrap(), edited.as_bytes());
            batch.commit().unwrap();
        }
        assert_eq!(udp.receive_all(2), [&b"longer than it was"[..], b""]);

        let shorter = with_udp_data(held.payload(), b"was");
        held.set_payload(&shorter).unwrap();
        assert_eq!(udp_data(held.payload()), b"was", "the edit is shown");
        held.accept().unwrap();
        assert_eq!(udp.receive_all(1), [b"was"]);
    }
}

/// Sends a datagram and takes it from the queue.
fn next_packet(queue: &mut Queue, udp: &UdpPair, data: &[u8]) -> Batch {
    udp.send(data);
    receive_exactly(queue, 1)
}

fn accept_edited(mut packet: Packet<'_>, data: &[u8]) {
    let edited = with_udp_data(packet.payload(), data);
    packet.set_payload(&edited).unwrap();
    packet.accept();
}

fn parity_4_meta_mode_mark_and_repeat_five_times(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = Queue::builder(1).copy_mode(CopyMode::Meta).bind().unwrap();
    let rules = (0..5).map(|mark| Rule::queue(1).protocol(Protocol::UDP).mark(mark));
    let _rules = rules.fold(Rules::new(Hook::FORWARD), Rules::rule).install().unwrap();
    let udp = peers.udp_v4();
    // The kernel begins to stamp packets a moment after it was asked.
    setsockopt(&udp.receiver, sockopt::ReceiveTimestamp, &true).unwrap();
    thread::sleep(QUIET);
    udp.send(b"again and again");
    let mut times = Vec::new();
    for mark in 0..5 {
        let mut batch = receive_exactly(&mut queue, 1);
        let mut packet = batch.iter_mut().next().unwrap();
        // A mark of 0 is not among the attributes.
        assert_eq!((packet.id(), packet.mark()), (mark + 1, Some(mark).filter(|mark| *mark > 0)));
        assert!(packet.payload().is_empty(), "META copies no bytes");
        assert_eq!(packet.payload_mut().unwrap_err(), EditError::NotCopied);
        times.push(packet.timestamp().expect("a time stamp"));
        packet.set_mark(mark + 1);
        packet.verdict(Verdict::Repeat);
        batch.commit().unwrap();
    }
    assert_eq!(times, [times[0]; 5], "it was received once");
    assert_eq!(udp.receive_all(1), [b"again and again"], "no rule matches mark 5");
    expect_no_packet(&mut queue);
}

/// What a packet at a hook says of the links: hook, input and output device, source hardware
/// address.
type Links = (u8, Option<u32>, Option<u32>, Option<Vec<u8>>);

fn parity_5_hwaddr_and_devices_per_hook(router: &Namespace) {
    let peers = Peers::of(router);
    let (judging, seen) = noting_links(Queue::builder(1).bind().unwrap());
    let _rules = [Hook::PREROUTING, Hook::INPUT, Hook::FORWARD, Hook::OUTPUT, Hook::POSTROUTING]
        .map(|hook| queue_udp_at(hook, 1));
    let left = Some(router.link_index("left").unwrap());
    let right = Some(router.link_index("right").unwrap());
    let links_of = |from: (&Namespace, IpAddr), to: (&Namespace, IpAddr)| -> Vec<Links> {
        let udp = UdpPair::between(from, to);
        udp.send(b"hello");
        assert_eq!(udp.receive_all(1), [b"hello"]);
        seen.try_iter().collect()
    };
    let mut hwaddr = None;
    for (client, near, server) in
        [(CLIENT_V4, ROUTER_V4, SERVER_V4), (CLIENT_V6, ROUTER_V6, SERVER_V6)]
    {
        let client = (&peers.client, client);
        let server = (&peers.server, server);
        let forwarded = links_of(client, server);
        // The client has asked by ARP for the router, which remembers who asked.
        hwaddr = hwaddr.or_else(|| Some(neighbor(&CLIENT_V4.to_string())));
        let from_client = [
            (0, left, None, hwaddr.clone()),
            (2, left, right, hwaddr.clone()),
            (4, left, right, hwaddr.clone()),
        ];
        assert_eq!(forwarded, from_client);
        let for_router = [(0, left, None, hwaddr.clone()), (1, left, None, hwaddr.clone())];
        assert_eq!(links_of(client, (router, near)), for_router);
        let from_router = [(3, None, left, None), (4, None, left, None)];
        assert_eq!(links_of((router, near), client), from_router);
    }
    assert_eq!(judging.finish().stats().held, 0);
}

/// Accepts packets and hands on what they say of the links.
fn noting_links(queue: Queue) -> (Judging, mpsc::Receiver<Links>) {
    let (note, seen) = mpsc::channel();
    let judging = Judging::start(queue, move |packet| {
        let hwaddr = packet.hwaddr().map(<[u8]>::to_vec);
        note.send((packet.hook().0, packet.indev(), packet.outdev(), hwaddr)).unwrap();
        packet.accept()
    });
    (judging, seen)
}

/// The hardware address that this namespace knows for an IPv4 neighbor.
fn neighbor(address: &str) -> Vec<u8> {
    let table = std::fs::read_to_string("/proc/thread-self/net/arp").unwrap();
    let columns = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let line = table.lines().map(columns).find(|line| line[0] == address).expect("a neighbor");
    line[3].split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn parity_6_errors_buffer_warning_busy_double_bind(_: &Namespace) {
    const ASKED: usize = 32 << 10;
    let queue = Queue::builder(1).receive_buffer(ASKED).bind().unwrap();
    assert_eq!(queue.receive_buffer().unwrap(), 2 * ASKED, "the kernel doubles what it grants");
    let taken = Queue::builder(1).bind().unwrap_err();
    assert!(matches!(taken, Error::QueueTaken { queue: 1, .. }), "{taken}");
    assert!(taken.to_string().contains("queue 1 is taken by another socket"), "{taken}");
    let other = Queue::builder(2).bind().expect("another number is free");
    drop(queue);
    // Privileged or not, no one gets as much as this: a program can tell, and warn.
    let queue = Queue::builder(1).receive_buffer(8 << 30).bind().expect("the number is free again");
    let reached = queue.receive_buffer().unwrap();
    assert!((2 * ASKED..=2 << 30).contains(&reached), "{reached} of 8 GiB reached");
    other.close().unwrap();
}

fn parity_7_payload_of_a_packet_needs_retain(router: &Namespace) {
    // That a Packet does not outlive its batch, nor its verdict, is checked by the compiler.
    let peers = Peers::of(router);
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp_at(Hook::FORWARD, 1);
    let udp = peers.udp_v4();
    udp.send(b"kept");
    let mut batch = receive_exactly(&mut queue, 1);
    let (kept, _) = batch.iter_mut().next().unwrap().retain();
    assert!(batch.is_empty(), "a retained packet is no longer in its batch");
    batch.commit().unwrap();
    // The batch's buffers are filled anew, and then freed.
    udp.send(b"next");
    assert_eq!(queue.recv(&mut batch).unwrap(), 1);
    assert_eq!(udp_data(batch.iter_mut().next().unwrap().payload()), b"next");
    drop(batch);
    udp.expect_nothing();
    assert_eq!((udp_data(kept.payload()), kept.id()), (&b"kept"[..], 1));
    assert_eq!(queue.stats().held, 1);
    kept.accept().unwrap();
    assert_eq!(udp.receive_all(1), [b"kept"]);

    let mut batch = Batch::new(1);
    udp.send(b"late");
    assert_eq!(queue.recv(&mut batch).unwrap(), 1);
    let (late, _) = batch.iter_mut().next().unwrap().retain();
    queue.close().unwrap();
    let not_sent = late.accept().expect_err("its queue is gone");
    assert!(matches!(not_sent.error, Error::Closed), "{not_sent}");
    assert_eq!(udp_data(not_sent.packet.payload()), b"late", "still readable");
}

fn parity_8_callback_failure_leaves_packets_decidable(_: &Namespace) {
    // At the output hook: there the packets wait as soon as they are sent.
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(*b"0123");
    let mut batch = receive_exactly(&mut queue, 4);
    assert_eq!(accept_digits_below(b'2', &mut batch), Err("too large"));
    assert_eq!(batch.len(), 4, "nothing is sent before the commit");
    let left = batch.iter_mut().map(|packet| udp_data(packet.payload())[0]).collect::<Vec<_>>();
    assert_eq!(left, *b"23", "those that were judged are not offered again");
    let mut packets = batch.iter_mut();
    packets.next().unwrap().accept();
    packets.next().unwrap().verdict(Verdict::Drop);
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(3), [b"0", b"1", b"2"]);
}

fn accept_digits_below(limit: u8, batch: &mut Batch) -> Result<(), &'static str> {
    for packet in batch {
        if udp_data(packet.payload())[0] >= limit {
            return Err("too large");
        }
        packet.accept();
    }
    Ok(())
}

fn parity_8_callback_panic_leaves_packets_to_the_default_verdict(_: &Namespace) {
    let udp = UdpPair::new(V4);
    for (number, on_undecided) in [(1, Verdict::Drop), (2, Verdict::Accept)] {
        let mut queue =
            Queue::builder(number).on_undecided(on_undecided).nonblocking(true).bind().unwrap();
        let _rules = queue_udp(number);
        udp.send_each(0..4);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            queue.run(|packet| match udp_data(packet.payload())[0] {
                0 => packet.verdict(Verdict::Drop),
                1 => packet.accept(),
                // Without the panic hook, which would print it.
                _ => std::panic::resume_unwind(Box::new("the callback fails")),
            })
        }));
        assert!(outcome.is_err(), "the panic is passed on");
        let expected = if on_undecided == Verdict::Accept { &[1, 2, 3][..] } else { &[1] };
        assert_eq!(udp.receive_all(expected.len()).concat(), expected);
        udp.send_each([1]);
        queue.run(|packet| packet.verdict(Verdict::Accept)).expect("the queue works on");
        assert_eq!(udp.receive_all(1), [[1]]);
    }
}

fn parity_bulk_tcp_through_a_queue_arrives_intact(router: &Namespace) {
    const LENGTH: usize = 4 << 20;
    let peers = Peers::of(router);
    for (gso, client, server) in [(true, CLIENT_V4, SERVER_V4), (false, CLIENT_V6, SERVER_V6)] {
        let longest = Arc::new(AtomicUsize::new(0));
        let noted = Arc::clone(&longest);
        let queue = Queue::builder(1).gso(gso).bind().unwrap();
        let judging = Judging::start(queue, move |packet| {
            noted.fetch_max(packet.payload().len(), Ordering::Relaxed);
            packet.accept()
        });
        let rules = queue_tcp();
        let received = transfer(&peers, client, server, LENGTH);
        assert!(received == pattern(LENGTH), "other bytes came than were sent");
        drop(rules);
        let stats = judging.finish().stats();
        assert_eq!((stats.truncated, stats.malformed, stats.unknown), (0, 0, 0));
        let is_super = longest.load(Ordering::Relaxed) > 1500;
        assert_eq!(is_super, gso, "super-packets come whole if asked for, and only then");
    }
}

pub fn queue_tcp() -> InstalledRules {
    Rules::new(Hook::FORWARD).rule(Rule::queue(1).protocol(Protocol::TCP)).install().unwrap()
}

/// Bytes that tell their place.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect()
}

/// Sends from the client to the server; returns what the server has read.
pub fn transfer(peers: &Peers, client: IpAddr, server: IpAddr, length: usize) -> Vec<u8> {
    let listener = peers.server.run(|| TcpListener::bind((server, 0)).unwrap());
    let to = listener.local_addr().unwrap();
    let mut sender = peers.client.run(|| TcpStream::connect_timeout(&to, SOON)).expect("connected");
    assert_eq!(sender.local_addr().unwrap().ip(), client);
    sender.set_write_timeout(Some(SOON)).unwrap();
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.set_read_timeout(Some(SOON)).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).expect("all of it arrives");
            received
        });
        sender.write_all(&pattern(length)).expect("all of it is sent");
        drop(sender);
        reading.join().unwrap()
    })
}
