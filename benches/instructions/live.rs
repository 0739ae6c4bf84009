//! Packets of a queue in a private network namespace, judged through the public API.
//!
//! Only the functions called `measured_*` are counted, without the time they spend in `uncounted_*`
//! ones, and only what they do in user space: filling the queue does not count, nor does the
//! kernel.

use std::net::{Ipv4Addr, UdpSocket};

use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Batch, Decided, EditMode, Packet, Queue, RetainedPacket, Verdict};
use netfilterqueue_netns::enter_private;

use crate::{BATCH, PACKETS};

const QUEUE: u16 = 1;

/// Bytes behind the headers of IPv4 and UDP: packets of 100 bytes, and of nearly as many as an
/// Ethernet frame holds.
const SMALL: usize = 100 - 28;
const LARGE: usize = 1_400 - 28;

/// The way a program takes its packets.
pub(crate) fn run() {
    let Traffic { mut queue, source, _rules } = Traffic::new(EditMode::Complete, SMALL);
    queue.set_nonblocking(true);
    source.send();
    queue.run(accept_one).expect("packets are received and answered");
    let mut left = PACKETS;
    source.send();
    measured_run(&mut queue, |packet| {
        left -= 1;
        if left.is_multiple_of(BATCH) && left > 0 {
            uncounted_send(&source);
        }
        packet.accept()
    });
    check(&queue, Form::Cumulative, BATCH + PACKETS);
}

pub(crate) fn accept() {
    let mut traffic = Traffic::new(EditMode::Complete, SMALL);
    measure(&mut traffic, Form::Cumulative, accept_one);
}

pub(crate) fn drop() {
    let mut traffic = Traffic::new(EditMode::Complete, SMALL);
    measure(&mut traffic, Form::Cumulative, |packet| packet.verdict(Verdict::Drop));
}

/// The same accepts, and nothing is done that calls for exact verdicts but that another packet
/// waits meanwhile: what is more than [`accept`] is the messages' own.
pub(crate) fn accept_exact() {
    let mut traffic = Traffic::new(EditMode::Complete, SMALL);
    let retained = traffic.retain();
    measure(&mut traffic, Form::Exact, accept_one);
    retained.accept().expect("the verdict is sent");
}

/// Marks by which no two packets are alike.
pub(crate) fn mark() {
    let mut traffic = Traffic::new(EditMode::Complete, SMALL);
    measure(&mut traffic, Form::Exact, |mut packet| {
        packet.set_mark(packet.id());
        packet.accept()
    });
}

/// One byte of a large packet is changed; nothing is completed.
pub(crate) fn edit_raw() {
    measure(&mut Traffic::new(EditMode::Raw, LARGE), Form::Exact, edit);
}

/// One byte of a large packet is changed, and the checksums are made anew.
pub(crate) fn edit_complete() {
    measure(&mut Traffic::new(EditMode::Complete, LARGE), Form::Exact, edit);
}

fn accept_one(packet: Packet<'_>) -> Decided<'_> {
    packet.accept()
}

fn edit(mut packet: Packet<'_>) -> Decided<'_> {
    let payload = packet.payload_mut().expect("it can be edited");
    *payload.last_mut().expect("it has data") ^= 0xff;
    packet.accept()
}

/// A large packet is replaced by another one, which is copied; nothing is completed.
pub(crate) fn replace_raw() {
    let other = [0x45; 1_400];
    measure(&mut Traffic::new(EditMode::Raw, LARGE), Form::Exact, |mut packet| {
        packet.set_payload(&other).expect("it can be edited");
        packet.accept()
    });
}

/// Judges all packets, a batch at a time.
fn measure<F>(traffic: &mut Traffic, form: Form, mut judge: F)
where
    F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
{
    let Traffic { queue, source, .. } = traffic;
    let mut batch = Batch::new(BATCH);
    // Not counted: makes the buffers that stay, and resolves the functions of the C library.
    source.send();
    judge_batch(queue, &mut batch, &mut judge);
    for _ in 0..PACKETS / BATCH {
        source.send();
        measured_batch(queue, &mut batch, &mut judge);
    }
    check(queue, form, BATCH + PACKETS);
}

#[inline(never)]
fn measured_run<F>(queue: &mut Queue, judge: F)
where
    F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
{
    queue.run(judge).expect("packets are received and answered");
}

#[inline(never)]
fn measured_batch<F>(queue: &mut Queue, batch: &mut Batch, judge: &mut F)
where
    F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
{
    judge_batch(queue, batch, judge);
}

/// Not inlined, so that a batch that is not counted runs the very same code.
#[inline(never)]
fn judge_batch<F>(queue: &mut Queue, batch: &mut Batch, judge: &mut F)
where
    F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
{
    let received = queue.recv(batch).expect("packets wait");
    assert_eq!(received, BATCH, "all of them at once");
    for packet in &mut *batch {
        judge(packet);
    }
    batch.commit().expect("verdicts are sent");
}

/// Called by measured functions.
#[inline(never)]
fn uncounted_send(source: &Source) {
    source.send();
}

/// A queue and what fills it.
struct Traffic {
    queue: Queue,
    source: Source,
    _rules: InstalledRules,
}

impl Traffic {
    fn new(mode: EditMode, data_len: usize) -> Self {
        enter_private().expect("a network namespace of our own");
        let queue = Queue::builder(QUEUE).edit_mode(mode).bind().expect("a queue");
        let rules = Rules::new(Hook::OUTPUT).rule(Rule::queue(QUEUE).protocol(Protocol::UDP));
        let rules = rules.install().expect("a rule");
        Self { queue, source: Source::new(data_len), _rules: rules }
    }

    /// A packet that stays unanswered.
    fn retain(&mut self) -> RetainedPacket {
        self.source.send_one();
        let mut batch = Batch::new(1);
        self.queue.recv(&mut batch).expect("a packet waits");
        batch.iter_mut().next().expect("a packet was received").retain().0
    }
}

/// Sends datagrams to a socket that nobody reads: those that it has no room for are dropped there,
/// behind the queue.
struct Source {
    sender: UdpSocket,
    data: Vec<u8>,
    _receiver: UdpSocket,
}

impl Source {
    fn new(data_len: usize) -> Self {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let (sender, receiver) = (bind(), bind());
        sender.connect(receiver.local_addr().expect("an address")).expect("connected");
        Self { sender, data: vec![b'x'; data_len], _receiver: receiver }
    }

    /// A batch: as many packets as the buffers of an ordinary user's sockets hold in any case. At
    /// the output hook they wait in the queue as soon as they are sent.
    fn send(&self) {
        (0..BATCH).for_each(|_| self.send_one());
    }

    fn send_one(&self) {
        self.sender.send(&self.data).expect("sent");
    }
}

/// Which messages the verdicts leave in.
#[derive(Debug, Clone, Copy)]
enum Form {
    Exact,
    Cumulative,
}

/// A count must be of what its name says.
fn check(queue: &Queue, form: Form, packets: usize) {
    let stats = queue.stats();
    let packets = packets as u64;
    let messages = match form {
        Form::Exact => (packets, 0),
        Form::Cumulative => (0, packets / BATCH as u64),
    };
    assert_eq!((stats.exact_verdicts, stats.cumulative_verdicts), messages, "{stats:?}");
    assert_eq!((stats.answered, stats.refused, stats.lost), (packets, 0, 0), "{stats:?}");
}
