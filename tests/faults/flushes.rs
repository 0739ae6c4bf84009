//! What packets came in or are to go out by goes away while they are held: a link that is turned
//! off, the namespace of the sender, of the receiver, of the queue itself. The kernel drops what
//! waits and is of a link that goes; verdicts on it are refused, and nothing else is disturbed.

use std::collections::BTreeSet;
use std::fs;

use netfilterqueue::rules::{Hook, InstalledRules};
use netfilterqueue::{Batch, Errno, Error, Queue, RetainedPacket};
use netfilterqueue_netns::Namespace;

use crate::accounts::{Counted, Fate, Ledger, Traffic, number};
use crate::support::{
    CLIENT_V4, Peers, QUIET, SERVER_V4, UdpPair, kernel_stats, queue_udp, queue_udp_at,
    receive_exactly, wait_until,
};
use crate::{Test, faults};

pub const TESTS: [Test; 4] = faults![
    a_link_goes_down_and_up_with_packets_held,
    the_namespace_of_the_sender_goes_with_packets_held,
    the_namespace_of_the_receiver_goes_with_packets_held,
    a_namespace_lives_as_long_as_its_queue,
];

/// Forwarded packets that are held when their link goes, and as many that are not read by then.
const HELD: usize = 20;

/// Local packets at a time, which have nothing to do with any link but loopback.
const WAVE: usize = 50;

/// How many IPv4 packets have come in by any link of this thread's namespace. They are counted
/// right before they are queued.
fn packets_from_links() -> u64 {
    let counters = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut both = names.split(' ').zip(values.split(' '));
    both.find(|(name, _)| *name == "InReceives").unwrap().1.parse().unwrap()
}

/// A queue that gets the packets between two peers and local ones.
struct Both {
    queue: Queue,
    _rules: [InstalledRules; 2],
    /// A local packet, held all the time: so each packet has a verdict of its own, and each that is
    /// refused is told with its id.
    sentinel: RetainedPacket,
    traffic: Traffic,
    ledger: Ledger,
    /// The ids of forwarded packets, all of which are accepted.
    forwarded: BTreeSet<u32>,
}

impl Both {
    fn new(waves: usize) -> Self {
        let mut queue = Queue::builder(1).max_len(4096).bind().unwrap();
        let _rules = [queue_udp(1), queue_udp_at(Hook::FORWARD, 1)];
        let (traffic, ledger) = (Traffic::new(waves * WAVE + 1, 100), Ledger::default());
        traffic.send(1, 100);
        let sentinel = receive_exactly(&mut queue, 1).iter_mut().next().unwrap().retain().0;
        queue.set_nonblocking(true);
        Self { queue, _rules, sentinel, traffic, ledger, forwarded: BTreeSet::new() }
    }

    /// Judges all that waits. Returns the refusals.
    fn judge_all(&mut self) -> BTreeSet<u32> {
        let mut batch = Batch::new(16);
        loop {
            match self.queue.recv(&mut batch) {
                Ok(_) => {}
                Err(Error::WouldBlock) => break,
                Err(error) => panic!("{error}"),
            }
            for packet in &mut batch {
                if packet.hook() == Hook::FORWARD {
                    self.forwarded.insert(packet.id());
                    packet.accept();
                } else {
                    self.ledger.judge(packet);
                }
            }
            batch.commit().expect("refusals come later");
        }
        let refusals = self.queue.take_refusals();
        assert!(refusals.iter().all(|refusal| refusal.errno == Errno::ENOENT), "{refusals:?}");
        assert!(refusals.iter().all(|refusal| !refusal.cumulative), "{refusals:?}");
        refusals.into_iter().map(|refusal| refusal.id).collect()
    }

    /// Holds forwarded packets, and leaves as many unread, with local ones between.
    fn hold(&mut self, udp: &UdpPair) -> Vec<RetainedPacket> {
        udp.send_each(0..HELD as u8);
        let mut batch = receive_exactly(&mut self.queue, HELD);
        self.queue.set_nonblocking(true);
        let held: Vec<_> = batch.iter_mut().map(|packet| packet.retain().0).collect();
        assert!(held.iter().all(|packet| packet.hook() == Hook::FORWARD));
        self.traffic.send(WAVE, 100);
        let (waiting, came) = (kernel_stats(1).map(|kernel| kernel.waiting), packets_from_links());
        udp.send_each(0..HELD as u8);
        // They come in by another thread of the kernel, and the link must not go before.
        wait_until("all packets in the queue", || match (waiting, kernel_stats(1)) {
            (Some(before), Some(kernel)) => kernel.waiting == before + HELD as u32,
            _ => packets_from_links() >= came + HELD as u64,
        });
        held
    }

    /// Judges those that were held and all that waits: the forwarded packets, and nothing else, are
    /// refused.
    fn expect_flushed(&mut self, held: Vec<RetainedPacket>) {
        self.traffic.send(WAVE, 100);
        let mut gone: BTreeSet<_> = held.iter().map(RetainedPacket::id).collect();
        held.into_iter().for_each(|packet| packet.accept().expect("refusals come later"));
        let before = self.forwarded.clone();
        let mut refused = self.judge_all();
        // The refusals of the last batch.
        refused.extend(self.judge_all());
        gone.extend(self.forwarded.difference(&before));
        assert_eq!(gone.len(), 2 * HELD);
        assert_eq!(refused, gone);
    }

    fn settle(mut self) {
        self.ledger.note(1, self.sentinel.id(), 0, Fate::of(0));
        self.sentinel.verdict(Fate::of(0).verdict()).expect("sent");
        let mut batch = Batch::new(1);
        assert!(matches!(self.queue.recv(&mut batch), Err(Error::WouldBlock)));
        assert_eq!(self.queue.take_refusals().len(), 0, "it was still there");
        let stats = self.queue.stats();
        assert_eq!((stats.answered, stats.held, stats.lost), (stats.received, 0, 0));
        assert_eq!(stats.cumulative_verdicts, 0);
        self.traffic.settle(&self.ledger, Counted::default());
    }
}

fn a_link_goes_down_and_up_with_packets_held(router: &Namespace) {
    const ROUNDS: usize = 4;
    let peers = Peers::of(router);
    let udp = peers.udp_v4();
    let mut both = Both::new(2 * ROUNDS);
    for round in 0..ROUNDS {
        // The one they came by or the one they were to leave by.
        let link = if round % 2 == 0 { "right" } else { "left" };
        let held = both.hold(&udp);
        router.set_link(link, false).unwrap();
        both.expect_flushed(held);
        udp.expect_nothing();
        router.set_link(link, true).unwrap();
        // With the link back, packets pass again: the same queue judges them.
        let mut arrived = false;
        wait_until("a packet over the link", || {
            if udp.sender.send(b"again").is_ok() {
                assert_eq!(both.judge_all(), BTreeSet::new());
                udp.receiver.set_read_timeout(Some(QUIET)).unwrap();
                arrived = udp.receiver.recv(&mut [0; 8]).is_ok();
            }
            arrived
        });
        drain(&udp);
    }
    both.settle();
}

/// Throws away what has arrived.
fn drain(udp: &UdpPair) {
    udp.receiver.set_read_timeout(Some(QUIET)).unwrap();
    while udp.receiver.recv(&mut [0; 8]).is_ok() {}
}

/// The kernel takes its time for the end of a namespace, and of the links that lead there.
fn wait_for_the_end(router: &Namespace, link: &str) {
    wait_until("the end of the link", || router.link_index(link).is_err());
}

fn the_namespace_of_the_sender_goes_with_packets_held(router: &Namespace) {
    let Peers { client, server } = Peers::of(router);
    let udp = UdpPair::between((&client, CLIENT_V4), (&server, SERVER_V4));
    let mut both = Both::new(2);
    let held = both.hold(&udp);
    let UdpPair { sender, receiver } = udp;
    drop((sender, client));
    wait_for_the_end(router, "left");
    both.expect_flushed(held);
    receiver.set_nonblocking(true).unwrap();
    assert!(receiver.recv(&mut [0; 8]).is_err(), "none has arrived");
    both.settle();
}

fn the_namespace_of_the_receiver_goes_with_packets_held(router: &Namespace) {
    let Peers { client, server } = Peers::of(router);
    let udp = UdpPair::between((&client, CLIENT_V4), (&server, SERVER_V4));
    let mut both = Both::new(2);
    let held = both.hold(&udp);
    let UdpPair { sender, receiver } = udp;
    drop((receiver, server));
    wait_for_the_end(router, "right");
    both.expect_flushed(held);
    // What is sent there now finds no way, and no packet comes of it.
    let _ = sender.send(b"to nobody");
    both.settle();
}

/// Nobody has it open any more but the queue; it goes with the queue.
fn a_namespace_lives_as_long_as_its_queue(here: &Namespace) {
    let other = Namespace::new().unwrap();
    here.veth("near", &other, "far").unwrap();
    let (traffic, ledger) = (other.run(|| Traffic::new(2 * WAVE, 100)), Ledger::default());
    let (mut queue, rules) = other.run(|| {
        let queue = Queue::builder(1).nonblocking(true).bind().unwrap();
        let rules = queue_udp(1);
        traffic.send(2 * WAVE, 100);
        (queue, rules)
    });
    let mut batch = receive_exactly(&mut queue, WAVE);
    queue.set_nonblocking(true);
    let held: Vec<_> = batch.iter_mut().map(|packet| packet.retain().0).collect();
    drop((batch, other));
    // Judged from here, by handles of what is elsewhere.
    queue.run(|packet| ledger.judge(packet)).unwrap();
    for packet in held {
        let number = number(packet.payload());
        ledger.note(1, packet.id(), number, Fate::of(number));
        packet.verdict(Fate::of(number).verdict()).unwrap();
    }
    traffic.settle(&ledger, Counted::default());
    drop((traffic, rules));
    std::thread::sleep(QUIET);
    here.link_index("near").expect("the queue keeps the namespace");
    let result = queue.recv(&mut Batch::new(1));
    assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.refused, stats.held), (2 * WAVE as u64, 0, 0));
    drop(queue);
    wait_for_the_end(here, "near");
}
