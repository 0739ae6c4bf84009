//! Lengths and checksums that the library sets: nobody here computes any. Real receivers check the
//! contents, the kernel's own counters the checksums.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use netfilterqueue::checksum::{Completion, WhyIpOnly};
use netfilterqueue::rules::{InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{EditMode, Family, Hook, Packet, Queue, SkbInfo, Verdict};
use netfilterqueue_netns::Namespace;
use nix::sys::socket::sockopt::{ReceiveTimeout, SndBuf};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto,
    setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::craft::{data, data_mut};
use crate::edits::pattern;
use crate::harness::{Test, tests};
use crate::pcap::Pcap;
use crate::support::{
    CLIENT_V4, CLIENT_V6, Judging, Peers, SERVER_V4, SERVER_V6, SOON, UdpPair, V4, connect,
    internet_checksum, judge_while, queue_udp, receive_exactly,
};

pub const TESTS: [Test; 10] = tests![
    udp_of_any_length,
    tcp_of_any_length,
    icmp_of_any_length,
    a_retained_packet_is_completed,
    a_stream_of_200_mb_with_every_packet_edited,
    raw_packets_leave_as_they_were_written,
    the_mode_of_a_packet_goes_before_that_of_its_queue,
    completing_tells_what_was_done,
    a_stale_length_cuts_nothing_off,
    fragments_are_reported,
];

/// What a packet's data is replaced by: as long, shorter, longer, and none of them a multiple of
/// four.
const LENGTHS: [usize; 6] = [1_001, 333, 2, 1, 1_002, 1_399];
const SENT: usize = 1_001;

/// Each family, with the addresses of client and server.
pub const FAMILIES: [(IpAddr, IpAddr); 2] = [(CLIENT_V4, SERVER_V4), (CLIENT_V6, SERVER_V6)];

/// The client's packets of a protocol pass queue 1 of the router on their way to the server.
pub struct Path {
    pub queue: Queue,
    pub _rules: InstalledRules,
}

impl Path {
    pub fn new(protocol: Protocol, gso: bool) -> Self {
        Self::of(Rule::queue(1).protocol(protocol), gso)
    }

    pub fn of(rule: Rule, gso: bool) -> Self {
        let queue = Queue::builder(1).gso(gso).bind().unwrap();
        let rule = rule.input_interface("left");
        Self { queue, _rules: Rules::new(Hook::FORWARD).rule(rule).install().unwrap() }
    }
}

/// Everything that leaves for the server passes queue 2, which writes it down for the dissector, as
/// it is on the wire.
struct Recorder {
    _judging: Judging,
    _rules: InstalledRules,
}

impl Recorder {
    fn start(name: &str) -> Self {
        let mut pcap = Pcap::create(name);
        let queue = Queue::builder(2).gso(false).bind().unwrap();
        let judging = Judging::start(queue, move |packet| {
            pcap.packet(packet.payload());
            packet.accept()
        });
        let rule = Rule::queue(2).output_interface("right");
        let rules = Rules::new(Hook::POSTROUTING).rule(rule).install().unwrap();
        Self { _judging: judging, _rules: rules }
    }
}

/// Puts other data behind the headers of a packet, whose lengths and checksums then fit no more.
fn replace_data(packet: &mut Packet<'_>, new: &[u8]) {
    let headers = packet.payload().len() - data(packet.payload()).len();
    let changed = [&packet.payload()[..headers], new].concat();
    packet.set_payload(&changed).unwrap();
}

/// How many checksums the kernel has found wrong in a namespace, and headers of IPv4.
pub fn checksum_errors(namespace: &Namespace) -> u64 {
    let read = |file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let (snmp, snmp6) = namespace.run(|| (read("snmp"), read("snmp6")));
    let lines: Vec<Vec<&str>> =
        snmp.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
    let is_error = |name: &str| name.ends_with("CsumErrors") || name == "InHdrErrors";
    let (names, values) = (lines.iter().step_by(2), lines.iter().skip(1).step_by(2));
    let pairs = names.zip(values).flat_map(|(names, values)| names.iter().zip(values));
    let v4: u64 = pairs.filter(|(name, _)| is_error(name)).map(|(_, v)| number(v)).sum();
    let v6 = snmp6.lines().filter_map(|line| line.split_once(char::is_whitespace));
    v4 + v6.filter(|(name, _)| is_error(name)).map(|(_, value)| number(value)).sum::<u64>()
}

fn number(text: &str) -> u64 {
    text.trim().parse().expect("a number")
}

pub fn expect_no_checksum_errors(peers: &Peers) {
    for namespace in [&peers.client, &peers.server] {
        assert_eq!(checksum_errors(namespace), 0, "the kernel found checksums wrong");
    }
}

/// Runs a case for each family, with GSO on and off, and each length.
fn for_all_cases(mut case: impl FnMut((IpAddr, IpAddr), bool, &[u8])) {
    for addresses in FAMILIES {
        for gso in [true, false] {
            for (seed, length) in LENGTHS.into_iter().enumerate() {
                case(addresses, gso, &pattern(seed, length));
            }
        }
    }
}

fn udp_of_any_length(router: &Namespace) {
    let peers = Peers::of(router);
    let _recorder = Recorder::start("completed-udp");
    for_all_cases(|(client, server), gso, new| {
        let mut path = Path::new(Protocol::UDP, gso);
        let udp = UdpPair::between((&peers.client, client), (&peers.server, server));
        udp.send(&pattern(9, SENT));
        let mut batch = receive_exactly(&mut path.queue, 1);
        let mut packet = batch.iter_mut().next().unwrap();
        let is_unready = packet.skb_info().is_some_and(SkbInfo::checksum_not_ready);
        assert_eq!(is_unready, gso, "the kernel leaves a checksum unfinished if it may");
        replace_data(&mut packet, new);
        packet.accept();
        batch.commit().unwrap();
        assert_eq!(udp.receive_all(1), [new], "{server}, GSO {gso}");
    });
    expect_no_checksum_errors(&peers);
}

fn tcp_of_any_length(router: &Namespace) {
    let peers = Peers::of(router);
    let _recorder = Recorder::start("completed-tcp");
    for_all_cases(|(_, server), gso, new| {
        let listener = peers.server.run(|| TcpListener::bind((server, 0)).unwrap());
        let to = listener.local_addr().unwrap();
        // Earlier connections are still being ended.
        let rule = Rule::queue(1).protocol(Protocol::TCP).destination_port(to.port());
        let mut path = Path::of(rule, gso);
        let mut edited = false;
        judge_while(
            &mut path.queue,
            |mut packet| {
                // Handshake and acknowledgements are touched, the first data is replaced.
                if data(packet.payload()).is_empty() || edited {
                    packet.payload_mut().unwrap();
                } else {
                    edited = true;
                    replace_data(&mut packet, new);
                }
                packet.accept()
            },
            || {
                let (mut client, mut server) = connect(&peers.client, &listener);
                client.write_all(&pattern(9, SENT)).unwrap();
                let mut received = vec![0; new.len()];
                server.read_exact(&mut received).expect("the edited data arrives");
                assert!(received == new, "{} bytes, {to}, GSO {gso}", new.len());
            },
        );
    });
    expect_no_checksum_errors(&peers);
}

fn icmp_of_any_length(router: &Namespace) {
    let peers = Peers::of(router);
    let _recorder = Recorder::start("completed-icmp");
    for_all_cases(|(_, server), gso, new| {
        let protocol = if server.is_ipv4() { Protocol::ICMP } else { Protocol::ICMPV6 };
        let mut path = Path::new(protocol, gso);
        let reply = judge_while(
            &mut path.queue,
            |mut packet| {
                let message = if packet.payload()[0] >> 4 == 4 { 20 } else { 40 };
                // Neighbors are asked for at any time.
                if matches!(packet.payload()[message], 8 | 128) {
                    let changed = [&packet.payload()[..message + 8], new].concat();
                    packet.set_payload(&changed).unwrap();
                } else {
                    packet.payload_mut().unwrap();
                }
                packet.accept()
            },
            || peers.client.run(|| ping(server, &pattern(9, SENT))),
        );
        assert!(reply == new, "{} bytes, {server}, GSO {gso}", new.len());
    });
    expect_no_checksum_errors(&peers);
}

/// Sends an echo request and returns the data of the reply.
fn ping(to: IpAddr, data: &[u8]) -> Vec<u8> {
    let (family, protocol, request, reply, header) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0, 20),
        // The kernel takes the IPv6 header off, and sees to the checksum.
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129, 0),
    };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
    setsockopt(&raw, ReceiveTimeout, &TimeVal::new(SOON.as_secs().cast_signed(), 0)).unwrap();
    let mut message = [&[request, 0, 0, 0, 0x12, 0x34, 0, 1], data].concat();
    let sum = internet_checksum(&[&message]);
    message[2..4].copy_from_slice(&sum);
    let to = SockaddrStorage::from(std::net::SocketAddr::from((to, 0)));
    sendto(raw.as_raw_fd(), &message, &to, MsgFlags::empty()).unwrap();
    let mut answer = vec![0; 65_536];
    loop {
        let length = recv(raw.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("a reply");
        let message = &answer[header..length];
        if message[..1] == [reply] && message[4..6] == [0x12, 0x34] {
            return message[8..].to_vec();
        }
    }
}

fn a_retained_packet_is_completed(router: &Namespace) {
    let peers = Peers::of(router);
    for (client, server) in FAMILIES {
        let mut path = Path::new(Protocol::UDP, true);
        let udp = UdpPair::between((&peers.client, client), (&peers.server, server));
        for length in LENGTHS {
            udp.send(&pattern(9, SENT));
            let mut batch = receive_exactly(&mut path.queue, 1);
            let (mut packet, _) = batch.iter_mut().next().unwrap().retain();
            let headers = packet.payload().len() - SENT;
            let changed = [&packet.payload()[..headers], &pattern(1, length)].concat();
            packet.set_payload(&changed).unwrap();
            packet.accept().unwrap();
            assert_eq!(udp.receive_all(1), [pattern(1, length)]);
        }
        assert_eq!(path.queue.stats().incomplete_edits, 0);
    }
    expect_no_checksum_errors(&peers);
}

fn a_stream_of_200_mb_with_every_packet_edited(router: &Namespace) {
    const LENGTH: usize = 200 << 20;
    const KEY: u8 = 0x5a;
    let peers = Peers::of(router);
    let queue = Queue::builder(1).receive_buffer(32 << 20).bind().unwrap();
    let rules =
        Rules::new(Hook::FORWARD).rule(Rule::queue(1).protocol(Protocol::TCP)).install().unwrap();
    let (packets, super_packets) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&packets), Arc::clone(&super_packets));
    let judging = Judging::start(queue, move |mut packet| {
        counts.0.fetch_add(1, Ordering::Relaxed);
        let is_gso = packet.skb_info().is_some_and(SkbInfo::is_gso);
        counts.1.fetch_add(usize::from(is_gso), Ordering::Relaxed);
        // Acknowledgements have no data, and are sent back all the same.
        data_mut(packet.payload_mut().unwrap()).iter_mut().for_each(|byte| *byte ^= KEY);
        packet.accept()
    });
    let listener = peers.server.run(|| TcpListener::bind((SERVER_V4, 0)).unwrap());
    let (mut client, mut server) = connect(&peers.client, &listener);
    // A prime number of bytes, so that no block of them lies twice at the same place of a packet.
    let block = pattern(3, 65_521);
    let expected: Vec<u8> = block.iter().map(|byte| byte ^ KEY).collect();
    let sent = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sent = 0;
            while sent < LENGTH {
                client.write_all(&block).expect("all of it is sent");
                sent += block.len();
            }
            client.shutdown(std::net::Shutdown::Write).unwrap();
            sent
        });
        let mut received = vec![0; block.len()];
        let mut total = 0;
        while total < LENGTH {
            server.read_exact(&mut received).expect("all of it arrives");
            assert!(received == expected, "a byte differs after {total}");
            total += received.len();
        }
        assert_eq!(server.read(&mut received).unwrap(), 0, "nothing comes behind it");
        sending.join().unwrap()
    });
    drop(rules);
    let stats = judging.finish().stats();
    assert!(sent >= LENGTH);
    assert_eq!((stats.lost, stats.truncated, stats.incomplete_edits), (0, 0, 0));
    assert!(super_packets.load(Ordering::Relaxed) > 100, "there were super-packets");
    assert!(packets.load(Ordering::Relaxed) <= stats.exact_verdicts, "each was sent back");
    expect_no_checksum_errors(&peers);
}

fn edit_first_byte(mut packet: Packet<'_>, mode: Option<EditMode>) {
    if let Some(mode) = mode {
        packet.set_edit_mode(mode);
    }
    data_mut(packet.payload_mut().unwrap())[0] ^= 0xff;
    packet.accept();
}

fn raw_packets_leave_as_they_were_written(namespace: &Namespace) {
    let mut queue = Queue::builder(1).edit_mode(EditMode::Raw).gso(false).bind().unwrap();
    let rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"broken");
    let mut batch = receive_exactly(&mut queue, 1);
    edit_first_byte(batch.iter_mut().next().unwrap(), None);
    batch.commit().unwrap();
    udp.expect_nothing();
    assert_eq!(checksum_errors(namespace), 1, "the receiver has found it wrong");
    assert_eq!(queue.stats().incomplete_edits, 0, "it was not to be completed");
    drop(rules);
}

fn the_mode_of_a_packet_goes_before_that_of_its_queue(namespace: &Namespace) {
    for (number, of_queue, of_packet) in
        [(1, EditMode::Raw, EditMode::Complete), (2, EditMode::Complete, EditMode::Raw)]
    {
        let mut queue = Queue::builder(number).edit_mode(of_queue).gso(false).bind().unwrap();
        let _rules = queue_udp(number);
        let udp = UdpPair::new(V4);
        let before = checksum_errors(namespace);
        for mode in [None, Some(of_packet)] {
            udp.send(b"?");
            let mut batch = receive_exactly(&mut queue, 1);
            edit_first_byte(batch.iter_mut().next().unwrap(), mode);
            batch.commit().unwrap();
        }
        assert_eq!(udp.receive_all(1), [[b'?' ^ 0xff]], "one of two is right");
        assert_eq!(checksum_errors(namespace), before + 1);
    }
}

fn completing_tells_what_was_done(_: &Namespace) {
    let mut queue = Queue::builder(1).edit_mode(EditMode::Raw).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let mut batch = receive_exactly(&mut queue, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    assert_eq!(packet.complete(), None, "it was not edited");
    replace_data(&mut packet, b"and more");
    assert_eq!(packet.complete(), Some(Completion::Everything));
    packet.accept();
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(1), [b"and more"]);
}

/// Only in a bridge may a packet be longer than its header says.
fn a_stale_length_cuts_nothing_off(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&pattern(1, 36));
    let mut batch = receive_exactly(&mut queue, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    replace_data(&mut packet, &pattern(2, 26));
    packet.complete();
    // As long as the original, with a header that says otherwise.
    replace_data(&mut packet, &pattern(3, 36));
    packet.accept();
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(1), [pattern(3, 36)]);
}

fn fragments_are_reported(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = Queue::builder(1).bind().unwrap();
    // Before anything puts fragments together, and where they are queued one by one.
    let _rules = Rules::new(Hook::PREROUTING)
        .priority(-450)
        .rule(Rule::queue(1).input_interface("left"))
        .install()
        .unwrap();
    let udp = judge_while(&mut queue, |packet| packet.verdict(Verdict::Accept), || peers.udp_v4());
    setsockopt(&udp.sender, SndBuf, &65_536).unwrap();
    let before = queue.stats();
    let sent = pattern(1, 4_000);
    judge_while(
        &mut queue,
        |mut packet| {
            // Others ask for neighbors at any time.
            if packet.family() == Family::IPV4 && packet.payload()[9] == 17 {
                packet.payload_mut().unwrap();
                let completion = packet.complete();
                assert_eq!(completion, Some(Completion::IpOnly(WhyIpOnly::Fragment)), "{packet}");
            }
            packet.accept()
        },
        || {
            udp.send(&sent);
            assert!(udp.receive() == sent, "the fragments are as they were");
        },
    );
    let stats = queue.stats();
    assert_eq!(stats.incomplete_edits - before.incomplete_edits, 3, "4,008 bytes in 1,480 each");
    expect_no_checksum_errors(&peers);
}
