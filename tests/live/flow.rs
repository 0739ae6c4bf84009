//! Flow bypass: what is decided about a flow is carried out by the kernel, for this flow only and
//! for as long as it lives.
//!
//! A datagram that arrives while nobody judges has not been queued: that is how "does not come up"
//! is seen.

use std::fs;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use netfilterqueue::rules::{Family, Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Batch, Decided, Error, FlowBypass, FlowMarks, Packet, Queue, Verdict};
use netfilterqueue_netns::Namespace;
use nix::sys::socket::{setsockopt, sockopt};

use crate::support::{
    CLIENT_V6, Peers, QUIET, ROUTER_V6, SOON, UdpPair, V4, V6, expect_no_packet, receive_exactly,
};
use crate::{Test, tests};

pub const TESTS: [Test; 10] = tests![
    an_accepted_flow_stays_in_the_kernel,
    a_dropped_flow_stays_in_the_kernel,
    every_hook_remembers_flows,
    a_new_flow_that_is_dropped_is_not_remembered,
    packets_on_their_way_still_come_up,
    the_last_decision_holds,
    a_retained_packet_decides_about_its_flow,
    an_expired_flow_comes_up_again,
    an_untracked_packet_is_dropped_alone,
    an_icmp_error_belongs_to_its_flow,
];

pub const MARKS: FlowMarks = FlowMarks::new(0x40, 0x80).unwrap();

pub type Decide = for<'p> fn(Packet<'p>, FlowBypass) -> Decided<'p>;
pub type Expect = fn(&mut Queue, &UdpPair);

/// What can be decided, and what is seen of it.
pub const OUTCOMES: [(Decide, Expect); 2] =
    [(accept_flow, expect_passing), (drop_flow, expect_dropped)];

pub fn accept(packet: Packet<'_>) -> Decided<'_> {
    packet.accept()
}

pub fn accept_flow(packet: Packet<'_>, bypass: FlowBypass) -> Decided<'_> {
    packet.accept_flow(bypass)
}

pub fn drop_flow(packet: Packet<'_>, bypass: FlowBypass) -> Decided<'_> {
    packet.drop_flow(bypass)
}

pub fn udp_rules(hook: Hook, number: u16) -> Rules {
    Rules::new(hook).rule(Rule::queue(number).protocol(Protocol::UDP))
}

pub fn install(rules: Rules) -> (InstalledRules, FlowBypass) {
    let rules = rules.flow_bypass(MARKS).install().expect("rules");
    let bypass = rules.flow_bypass().expect("flow bypass");
    assert_eq!(bypass.marks(), MARKS);
    (rules, bypass)
}

/// Judges the one packet that waits.
pub fn judge_next(queue: &mut Queue, judge: impl for<'p> FnOnce(Packet<'p>) -> Decided<'p>) {
    let mut batch = receive_exactly(queue, 1);
    judge(batch.iter_mut().next().expect("a packet"));
    batch.commit().expect("the kernel takes the message");
}

impl UdpPair {
    /// A datagram that may arrive, or be dropped on its way.
    pub fn take_one(&self) {
        self.receiver.set_read_timeout(Some(QUIET)).expect("a timeout");
        let _ = self.receiver.recv(&mut [0; 16]);
        self.receiver.set_read_timeout(Some(SOON)).expect("a timeout");
    }
}

fn reply(udp: &UdpPair, data: &[u8]) {
    let sent = udp.receiver.send_to(data, udp.sender.local_addr().expect("an address"));
    assert_eq!(sent.expect("sent"), data.len());
}

/// What came back; `None` if nothing does.
fn replied(udp: &UdpPair, within: Duration) -> Option<Vec<u8>> {
    udp.sender.set_read_timeout(Some(within)).expect("a timeout");
    let mut buffer = [0; 64];
    let length = udp.sender.recv(&mut buffer).ok()?;
    Some(buffer[..length].to_vec())
}

/// Both directions of a flow pass, and do not come up.
pub fn expect_passing(queue: &mut Queue, udp: &UdpPair) {
    udp.send_each(0..5);
    assert_eq!(udp.receive_all(5).concat(), [0, 1, 2, 3, 4]);
    reply(udp, b"back");
    assert_eq!(replied(udp, SOON).as_deref(), Some(&b"back"[..]));
    expect_no_packet(queue);
}

/// Both directions of a flow are dropped, and do not come up.
pub fn expect_dropped(queue: &mut Queue, udp: &UdpPair) {
    for byte in 0..5 {
        // A sender at the output hook may be told.
        let _ = udp.sender.send(&[byte]);
    }
    let _ = udp.receiver.send_to(b"back", udp.sender.local_addr().expect("an address"));
    udp.expect_nothing();
    assert_eq!(replied(udp, QUIET), None);
    expect_no_packet(queue);
}

/// The next packet of a flow comes up; accepted, it arrives.
pub fn expect_queued(queue: &mut Queue, udp: &UdpPair) {
    udp.send(b"queued");
    judge_next(queue, accept);
    assert_eq!(udp.receive_all(1), [b"queued"]);
}

fn an_accepted_flow_stays_in_the_kernel(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = Queue::builder(1).bind().unwrap();
    let (_rules, bypass) = install(udp_rules(Hook::FORWARD, 1));
    for (udp, other) in [(peers.udp_v4(), peers.udp_v4()), (peers.udp_v6(), peers.udp_v6())] {
        expect_queued(&mut queue, &udp);
        udp.send(b"enough");
        judge_next(&mut queue, |packet| packet.accept_flow(bypass));
        assert_eq!(udp.receive_all(1), [b"enough"]);
        expect_passing(&mut queue, &udp);
        expect_queued(&mut queue, &other);
        expect_queued(&mut queue, &other);
        expect_passing(&mut queue, &udp);
    }
    // The first packet of a new flow may decide as well.
    let udp = peers.udp_v4();
    udp.send(b"first");
    judge_next(&mut queue, |packet| packet.accept_flow(bypass));
    assert_eq!(udp.receive_all(1), [b"first"]);
    expect_passing(&mut queue, &udp);
    // Flows of the one before are not mistaken for it, nor does a flow begin decided.
    expect_queued(&mut queue, &peers.udp_v4());
    assert_eq!(queue.stats().refused, 0);
}

fn a_dropped_flow_stays_in_the_kernel(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = Queue::builder(1).bind().unwrap();
    let (_rules, bypass) = install(udp_rules(Hook::FORWARD, 1));
    for (udp, other) in [(peers.udp_v4(), peers.udp_v4()), (peers.udp_v6(), peers.udp_v6())] {
        expect_queued(&mut queue, &udp);
        udp.send(b"enough");
        judge_next(&mut queue, |packet| packet.drop_flow(bypass));
        expect_dropped(&mut queue, &udp);
        expect_queued(&mut queue, &other);
        expect_dropped(&mut queue, &udp);
    }
}

/// On loopback both directions pass every hook but the forward hook.
fn every_hook_remembers_flows(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    for (hook, family, address) in [
        (Hook::PREROUTING, Family::INET, V6),
        (Hook::INPUT, Family::IPV4, V4),
        (Hook::OUTPUT, Family::INET, V4),
        (Hook::POSTROUTING, Family::IPV6, V6),
    ] {
        let (rules, bypass) = install(udp_rules(hook, 1).family(family));
        for (decide, expect) in OUTCOMES {
            let (udp, other) = (UdpPair::new(address), UdpPair::new(address));
            expect_queued(&mut queue, &udp);
            udp.send(b"decided");
            judge_next(&mut queue, |packet| decide(packet, bypass));
            udp.take_one();
            expect(&mut queue, &udp);
            expect_queued(&mut queue, &other);
        }
        rules.remove().unwrap();
    }
}

fn a_new_flow_that_is_dropped_is_not_remembered(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = Queue::builder(1).bind().unwrap();
    let (_rules, bypass) = install(udp_rules(Hook::FORWARD, 1));
    for udp in [peers.udp_v4(), peers.udp_v6()] {
        for _ in 0..3 {
            udp.send(b"dropped, and forgotten");
            judge_next(&mut queue, |packet| packet.drop_flow(bypass));
            udp.expect_nothing();
        }
        expect_queued(&mut queue, &udp);
        udp.send(b"dropped, and remembered");
        judge_next(&mut queue, |packet| packet.drop_flow(bypass));
        expect_dropped(&mut queue, &udp);
    }
}

fn packets_on_their_way_still_come_up(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let (_rules, bypass) = install(udp_rules(Hook::INPUT, 1));
    let udp = UdpPair::new(V4);
    expect_queued(&mut queue, &udp);
    udp.send_each(0..3);
    // One in the batch, two that the kernel holds.
    judge_next_of(&mut queue, |packet| packet.accept_flow(bypass));
    assert_eq!(udp.receive_all(1), [[0]]);
    udp.send(&[3]);
    assert_eq!(udp.receive_all(1), [[3]], "it overtakes those that wait");
    let mut batch = receive_exactly(&mut queue, 2);
    for packet in &mut batch {
        packet.accept();
    }
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(2).concat(), [1, 2]);
    expect_passing(&mut queue, &udp);
    assert_eq!(queue.stats().received, 4);
}

/// Judges the first of several packets that wait.
fn judge_next_of(queue: &mut Queue, judge: impl for<'p> FnOnce(Packet<'p>) -> Decided<'p>) {
    let mut batch = Batch::new(1);
    assert_eq!(queue.recv(&mut batch).expect("a packet"), 1);
    judge(batch.iter_mut().next().expect("a packet"));
    batch.commit().expect("the kernel takes the message");
}

fn the_last_decision_holds(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let (_rules, bypass) = install(udp_rules(Hook::OUTPUT, 1));
    for (first, last, expect) in [
        (accept_flow as Decide, drop_flow as Decide, expect_dropped as Expect),
        (drop_flow, accept_flow, expect_passing),
    ] {
        let udp = UdpPair::new(V6);
        expect_queued(&mut queue, &udp);
        udp.send_each(0..3);
        let mut batch = receive_exactly(&mut queue, 3);
        let mut packets = batch.iter_mut();
        first(packets.next().unwrap(), bypass);
        last(packets.next().unwrap(), bypass);
        // A plain verdict is none about the flow.
        packets.next().unwrap().verdict(Verdict::Accept);
        batch.commit().unwrap();
        assert_eq!(udp.receive_all(2).len(), 2);
        expect(&mut queue, &udp);
    }
}

fn a_retained_packet_decides_about_its_flow(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let (rules, bypass) = install(udp_rules(Hook::INPUT, 1));
    let (accepted, dropped) = (UdpPair::new(V4), UdpPair::new(V6));
    for udp in [&accepted, &dropped] {
        expect_queued(&mut queue, udp);
    }
    for udp in [&accepted, &dropped] {
        udp.send(b"decided");
    }
    let mut batch = receive_exactly(&mut queue, 2);
    let [first, second] = {
        let mut packets = batch.iter_mut();
        [(); 2].map(|()| packets.next().unwrap().retain().0)
    };
    first.accept_flow(bypass).unwrap();
    second.drop_flow(bypass).unwrap();
    assert_eq!(accepted.receive_all(1), [b"decided"]);
    expect_passing(&mut queue, &accepted);
    expect_dropped(&mut queue, &dropped);
    // A decision that cannot be sent leaves no trace.
    let udp = UdpPair::new(V4);
    setsockopt(&udp.sender, sockopt::Mark, &0x3000).unwrap();
    udp.send(b"too late");
    let mut batch = receive_exactly(&mut queue, 1);
    let (retained, _) = batch.iter_mut().next().unwrap().retain();
    queue.close().unwrap();
    let not_sent = retained.drop_flow(bypass).unwrap_err();
    assert!(matches!(not_sent.error, Error::Closed), "{not_sent}");
    assert_eq!(not_sent.packet.mark(), Some(0x3000));
    drop(rules);
}

fn an_expired_flow_comes_up_again(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let (_rules, bypass) = install(udp_rules(Hook::OUTPUT, 1));
    for (decide, expect) in OUTCOMES {
        set_udp_timeout(60);
        let udp = UdpPair::new(V4);
        expect_queued(&mut queue, &udp);
        udp.send(b"decided");
        judge_next(&mut queue, |packet| decide(packet, bypass));
        udp.take_one();
        expect(&mut queue, &udp);
        // The next packet begins the last second of the entry.
        set_udp_timeout(1);
        let _ = udp.sender.send(b"last");
        udp.take_one();
        thread::sleep(Duration::from_millis(1500));
        expect_queued(&mut queue, &udp);
    }
}

fn set_udp_timeout(seconds: u32) {
    for setting in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
        let path = format!("/proc/sys/net/netfilter/{setting}");
        let written = fs::write(&path, seconds.to_string());
        written.unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

/// Connection tracking leaves IPv6 neighbour discovery alone.
fn an_untracked_packet_is_dropped_alone(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = Queue::builder(1).bind().unwrap();
    let rules = Rules::new(Hook::INPUT).rule(Rule::queue(1).protocol(Protocol::ICMPV6));
    let (_rules, bypass) = install(rules);
    let sender = peers.client.run(|| UdpSocket::bind((CLIENT_V6, 0)).unwrap());
    let receiver = UdpSocket::bind((ROUTER_V6, 0)).unwrap();
    receiver.set_read_timeout(Some(QUIET)).unwrap();
    sender.send_to(b"who are you?", receiver.local_addr().unwrap()).unwrap();
    for _ in 0..2 {
        judge_next(&mut queue, |packet| {
            assert_eq!(packet.payload()[40], NEIGHBOUR_SOLICITATION);
            packet.drop_flow(bypass)
        });
        assert!(receiver.recv(&mut [0; 16]).is_err(), "the question was answered");
    }
    judge_next(&mut queue, |packet| packet.accept_flow(bypass));
    receiver.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(receiver.recv(&mut [0; 16]).unwrap(), 12);
}

/// A type of `ICMPv6` message.
const NEIGHBOUR_SOLICITATION: u8 = 135;

fn an_icmp_error_belongs_to_its_flow(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let rules = udp_rules(Hook::OUTPUT, 1).rule(Rule::queue(1).protocol(Protocol::ICMP));
    let (_rules, bypass) = install(rules);
    let (accepted, dropped) = (UdpPair::new(V4), UdpPair::new(V4));
    for (udp, decide) in [(&accepted, accept_flow as Decide), (&dropped, drop_flow)] {
        expect_queued(&mut queue, udp);
        udp.send(b"decided");
        judge_next(&mut queue, |packet| decide(packet, bypass));
    }
    assert_eq!(accepted.receive_all(1), [b"decided"]);
    // Nobody listens any more: the answer is "port unreachable".
    let UdpPair { sender, receiver } = accepted;
    drop(receiver);
    sender.send(b"refused").expect("sent");
    sender.set_read_timeout(Some(SOON)).unwrap();
    let error = sender.recv(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    expect_no_packet(&mut queue);
    // An error about an undecided flow comes up, and decides about it: here, that it is dropped.
    let udp = UdpPair::new(V4);
    expect_queued(&mut queue, &udp);
    let UdpPair { sender, receiver } = udp;
    let address = receiver.local_addr().unwrap();
    drop(receiver);
    sender.send(b"refused").expect("sent");
    judge_next(&mut queue, accept);
    judge_next(&mut queue, |packet| {
        assert_eq!(packet.payload()[9], 1, "ICMP");
        packet.drop_flow(bypass)
    });
    let receiver = UdpSocket::bind(address).unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    expect_dropped(&mut queue, &UdpPair { sender, receiver });
}
