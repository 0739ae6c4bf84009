//! Batches, retained packets and commits against a model of the kernel's queue.
//!
//! The model reads the very bytes that would be sent and does with them what the kernel does: an
//! exact verdict takes one packet off the list, a cumulative one takes every packet off whose id is
//! at or before the given one by signed distance. Ids begin anywhere, so that they also wrap; some
//! packets are lost on the way up and some come truncated.

use std::collections::HashMap;

use netfilterqueue_protocol::attribute;
use netfilterqueue_protocol::constants::*;
use netfilterqueue_protocol::message::Messages;
use netfilterqueue_protocol::verdict::{VerdictBatchMessage, VerdictMessage};
use proptest::prelude::*;

use super::*;
use crate::changes::Changes;
use crate::edit::Edit;
use crate::intake::{Consecutive, Intake};
use crate::socket::{Arrival, Received};
use crate::verdicts::{Answer, Outstanding};

/// Two queues on one socket.
const QUEUES: [u16; 2] = [3, 8];
const QUEUE: u16 = QUEUES[0];
const ON_UNDECIDED: Verdict = Verdict::Drop;

/// How a packet left the kernel's queue.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fate {
    verdict: Verdict,
    mark: Option<u32>,
    payload: Option<Vec<u8>>,
}

impl Fate {
    const UNDECIDED: Self = Self { verdict: ON_UNDECIDED, mark: None, payload: None };
}

/// Queue number and packet id.
type Key = (u16, u32);

#[derive(Debug, Default)]
struct Kernel {
    /// Queue numbers and ids that wait for a verdict, oldest first.
    list: Vec<Key>,
    /// Those that nobody has received yet are the last ones of the list.
    unread: usize,
    fates: HashMap<Key, Fate>,
    next_ids: HashMap<u16, u32>,
    /// Those that had no room in the socket.
    lost: Vec<Key>,
    refused: usize,
}

impl Kernel {
    fn enqueue(&mut self, queue: u16) {
        let packet = self.number(queue);
        self.list.push(packet);
        self.unread += 1;
    }

    fn lose(&mut self, queue: u16) {
        let packet = self.number(queue);
        self.lost.push(packet);
    }

    fn number(&mut self, queue: u16) -> Key {
        let next_id = self.next_ids.get_mut(&queue).expect("a known queue");
        let id = *next_id;
        *next_id = next_id.wrapping_add(1);
        (queue, id)
    }

    fn deliver(&mut self, most: usize) -> Vec<Key> {
        let start = self.list.len() - self.unread;
        let packets: Vec<Key> = self.list[start..].iter().copied().take(most).collect();
        self.unread -= packets.len();
        packets
    }

    fn take(&mut self, datagram: &[u8]) {
        for message in Messages::new(datagram) {
            let message = message.expect("well-formed message");
            if message.kind() == NFQNL_MSG_VERDICT {
                let verdict = VerdictMessage::parse(message).expect("well-formed verdict");
                let payload = verdict.payload.map(<[u8]>::to_vec);
                let fate = Fate { verdict: verdict.verdict, mark: verdict.mark, payload };
                match self.list.iter().position(|packet| *packet == (verdict.queue, verdict.id)) {
                    Some(at) => self.settle(at, fate),
                    None => self.refused += 1,
                }
            } else {
                let verdict = VerdictBatchMessage::parse(message).expect("well-formed batch");
                let fate = Fate { verdict: verdict.verdict, mark: verdict.mark, payload: None };
                let reaches = |(queue, id): &Key| {
                    *queue == verdict.queue && id.wrapping_sub(verdict.last_id).cast_signed() <= 0
                };
                self.refused += usize::from(!self.list.iter().any(reaches));
                while let Some(at) = self.list.iter().position(reaches) {
                    self.settle(at, fate.clone());
                }
            }
        }
    }

    fn settle(&mut self, at: usize, fate: Fate) {
        assert!(at < self.list.len() - self.unread, "a verdict reached a packet nobody received");
        let packet = self.list.remove(at);
        assert!(self.fates.insert(packet, fate).is_none());
    }
}

/// The library's side: what `Queue`, `Batch` and `RetainedPacket` do, with the kernel replaced.
struct Library {
    kernel: Kernel,
    outstanding: Outstanding,
    intake: Intake,
    /// The newest packet of each queue that was received.
    newest: HashMap<u16, u32>,
    batches: Vec<(Slots, Order, Datagram)>,
    retained: Vec<Key>,
    /// What each packet should meet with.
    wanted: HashMap<Key, Fate>,
    limit: usize,
    failing_sends: usize,
}

impl Library {
    fn new(first_id: u32, limit: usize) -> Self {
        Self {
            kernel: Kernel {
                next_ids: QUEUES.map(|queue| (queue, first_id)).into(),
                ..Kernel::default()
            },
            outstanding: Outstanding::new(&QUEUES),
            intake: Intake::after(QUEUES.into_iter(), first_id.wrapping_sub(1)),
            newest: HashMap::new(),
            batches: Vec::new(),
            retained: Vec::new(),
            wanted: HashMap::new(),
            limit,
            failing_sends: 0,
        }
    }

    /// Those at multiples of `truncated`, unless that is 0, do not fit in their buffers.
    fn receive(&mut self, most: usize, truncated: usize) {
        let packets = self.kernel.deliver(most);
        let mut slots = Slots::new(most, 256);
        slots.receive_by(0, most, |buffers, received| {
            let packets = buffers.zip(received).zip(&packets).enumerate();
            for (at, ((buffer, received), (queue, id))) in packets {
                let datagram = packet_message(*queue, *id);
                buffer[..datagram.len()].copy_from_slice(&datagram);
                *received = if truncated > 0 && at.is_multiple_of(truncated) {
                    Received { length: datagram.len() - 2, arrival: Arrival::Truncated }
                } else {
                    Received { length: datagram.len(), arrival: Arrival::Whole }
                };
            }
        });
        // As `Queue::recv` has it.
        let mut run = Consecutive::default();
        for (slot, datagram, received) in slots.received(0, packets.len()) {
            if !slot.load_packet(datagram, received) {
                let content = slot.load_other(datagram, received);
                self.intake.count_content(&content, &self.outstanding);
            }
            assert!(slot.is_pending());
            if !run.takes(slot.queue(), slot.id()) {
                self.intake.count_packets(run, &self.outstanding);
                run = Consecutive::new(slot.queue(), slot.id());
            }
            self.wanted.insert(key(slot), Fate::UNDECIDED);
            self.newest.insert(slot.queue(), slot.id());
        }
        self.intake.count_packets(run, &self.outstanding);
        self.batches.push((slots, Order::default(), Datagram::default()));
    }

    fn decide(&mut self, batch: usize, at: usize, fate: Fate) {
        let Some((slots, ..)) = pick(&mut self.batches, batch) else { return };
        let (slot, buffer) = slots.at_mut(at % slots.capacity());
        if !slot.is_undecided() {
            return;
        }
        if fate.mark.is_some() {
            slot.changes_mut().mark = fate.mark;
        }
        if let Some(payload) = &fate.payload {
            buffer[100..100 + payload.len()].copy_from_slice(payload);
            slot.changes_mut().edit = Some(Edit::at(100..100 + payload.len()));
        }
        slot.decide(fate.verdict);
        let payload = fate.payload.filter(|_| fate.verdict != Verdict::Drop);
        self.wanted.insert(key(slot), Fate { payload, ..fate });
    }

    fn retain(&mut self, batch: usize, at: usize) {
        let Some((slots, ..)) = pick(&mut self.batches, batch) else { return };
        let (slot, _) = slots.at_mut(at % slots.capacity());
        if slot.is_undecided() {
            self.retained.push(key(slot));
            slot.clear();
        }
    }

    fn judge_retained(&mut self, at: usize, fate: Fate) {
        if self.retained.is_empty() {
            return;
        }
        let (queue, id) = self.retained.remove(at % self.retained.len());
        let payload = fate.payload.filter(|_| fate.verdict != Verdict::Drop);
        let fate = Fate { payload, ..fate };
        let edit = fate.payload.as_ref().map(|payload| Edit::at(0..payload.len()));
        let changes = Changes { mark: fate.mark, edit, ..Changes::default() };
        let answer = Answer { changes: Some(&changes), ..Answer::plain(queue, id, fate.verdict) };
        let mut datagram = Datagram::default();
        datagram.fill([Run::one(answer)].into_iter(), self.limit).expect("payloads are valid");
        self.kernel.take(&gather(&datagram, |_| fate.payload.as_deref().unwrap_or_default()));
        self.outstanding.answered(queue, 1);
        self.wanted.insert((queue, id), fate);
    }

    fn commit(&mut self, batch: usize) {
        let Some(at) = batch.checked_rem(self.batches.len()) else { return };
        let (slots, order, datagram) = &mut self.batches[at];
        let terms = Terms {
            on_undecided: ON_UNDECIDED,
            limit: self.limit,
            form: |queue, pending| self.outstanding.form(queue, pending),
        };
        let result = commit_slots(slots, order, datagram, &terms, |datagram, slots| {
            if self.failing_sends > 0 {
                self.failing_sends -= 1;
                return Err(Error::WouldBlock);
            }
            let bytes = gather(datagram, |at| slots.edited(at));
            assert!(bytes.len() <= self.limit || datagram.answered() == 1, "datagram too long");
            self.kernel.take(&bytes);
            for (queue, answers) in datagram.answers() {
                self.outstanding.answered(*queue, *answers);
            }
            Ok(())
        });
        if result.is_ok() {
            assert!(!slots.filled().iter().any(Slot::is_pending));
            self.batches.remove(at);
        }
    }

    /// Everything that is left gets its verdict, and all books must balance.
    fn finish(mut self) {
        self.failing_sends = 0;
        while !self.batches.is_empty() {
            self.commit(0);
        }
        while !self.retained.is_empty() {
            self.judge_retained(0, Fate::UNDECIDED);
        }
        while self.kernel.unread > 0 {
            self.receive(4, 0);
            self.commit(0);
        }
        assert_eq!(self.kernel.list, [], "packets left without a verdict");
        assert_eq!(self.kernel.refused, 0, "verdicts on packets that were gone");
        assert_eq!(self.kernel.fates, self.wanted);
        assert_eq!(self.outstanding.count(), 0);
        let is_seen = |(queue, id): &&Key| {
            let newest = self.newest.get(queue);
            newest.is_some_and(|newest| id.wrapping_sub(*newest).cast_signed() < 0)
        };
        let lost = self.kernel.lost.iter().filter(is_seen).count();
        let stats = self.intake.stats;
        assert_eq!(stats.lost, lost as u64);
        assert_eq!(stats.received, self.kernel.fates.len() as u64);
    }
}

fn pick<T>(items: &mut [T], at: usize) -> Option<&mut T> {
    let at = at.checked_rem(items.len())?;
    items.get_mut(at)
}

fn gather<'a>(datagram: &'a Datagram, payload: impl Fn(usize) -> &'a [u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut start = 0;
    for gap in datagram.gaps() {
        bytes.extend_from_slice(&datagram.heads()[start..gap.at]);
        bytes.extend_from_slice(payload(gap.slot));
        start = gap.at;
    }
    bytes.extend_from_slice(&datagram.heads()[start..]);
    bytes
}

fn key(slot: &Slot) -> Key {
    (slot.queue(), slot.index.id())
}

/// A packet message with nothing but its id and four bytes of payload.
fn packet_message(queue: u16, id: u32) -> Vec<u8> {
    let mut attributes = Vec::new();
    let mut header = id.to_be_bytes().to_vec();
    header.extend_from_slice(&[0x08, 0x00, 3]);
    attribute::push(&mut attributes, NFQA_PACKET_HDR, &header);
    attribute::push(&mut attributes, NFQA_PAYLOAD, b"data");
    let length = u32::try_from(20 + attributes.len()).expect("short");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend_from_slice(&NFQNL_MSG_PACKET.to_ne_bytes());
    message.extend_from_slice(&[0; 10]);
    message.extend_from_slice(&[2, 0]);
    message.extend_from_slice(&queue.to_be_bytes());
    message.extend_from_slice(&attributes);
    message
}

#[derive(Debug, Clone)]
enum Step {
    /// So many packets, in turn from one queue and the other if the second is set.
    Enqueue(usize, bool),
    /// So many packets, of one queue or the other.
    Lose(usize, bool),
    Receive(usize, usize),
    Decide(usize, usize, Fate),
    /// All of a batch alike, which is what makes long runs.
    DecideAll(usize, Fate),
    Retain(usize, usize),
    JudgeRetained(usize, Fate),
    Commit(usize),
    FailSends(usize),
}

fn fates() -> impl Strategy<Value = Fate> {
    let verdict = prop_oneof![
        3 => Just(Verdict::Accept),
        2 => Just(Verdict::Drop),
        1 => Just(Verdict::Stop),
        1 => any::<u16>().prop_map(|number| Verdict::Queue { number, bypass: false }),
    ];
    let mark = prop_oneof![3 => Just(None), 1 => (0..3u32).prop_map(Some)];
    let payload = proptest::option::weighted(0.15, proptest::collection::vec(any::<u8>(), 1..90));
    (verdict, mark, payload).prop_map(|(verdict, mark, payload)| Fate { verdict, mark, payload })
}

fn steps() -> impl Strategy<Value = Step> {
    let at = || 0..64usize;
    prop_oneof![
        3 => (1..12usize, any::<bool>()).prop_map(|(packets, both)| Step::Enqueue(packets, both)),
        1 => (1..5usize, any::<bool>()).prop_map(|(packets, other)| Step::Lose(packets, other)),
        3 => (1..9usize, prop_oneof![3 => Just(0), 1 => 1..4usize])
            .prop_map(|(most, truncated)| Step::Receive(most, truncated)),
        3 => (at(), at(), fates()).prop_map(|(batch, at, fate)| Step::Decide(batch, at, fate)),
        3 => (at(), fates()).prop_map(|(batch, fate)| Step::DecideAll(batch, fate)),
        1 => (at(), at()).prop_map(|(batch, at)| Step::Retain(batch, at)),
        1 => (at(), fates()).prop_map(|(at, fate)| Step::JudgeRetained(at, fate)),
        3 => at().prop_map(Step::Commit),
        1 => (1..3usize).prop_map(Step::FailSends),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Each id leaves with the verdict chosen for it, once, and none stays.
    #[test]
    fn every_packet_meets_the_fate_chosen_for_it(
        steps in proptest::collection::vec(steps(), 0..60),
        limit in 100..600usize,
        first_id in prop_oneof![Just(1), Just(u32::MAX - 20), Just(0x7fff_fff0)],
    ) {
        let mut library = Library::new(first_id, limit);
        for step in steps {
            match step {
                Step::Enqueue(packets, both) => {
                    for at in 0..packets {
                        library.kernel.enqueue(if both { QUEUES[at % 2] } else { QUEUE });
                    }
                }
                Step::Lose(packets, other) => {
                    (0..packets).for_each(|_| library.kernel.lose(QUEUES[usize::from(other)]));
                }
                Step::Receive(most, truncated) => library.receive(most, truncated),
                Step::Decide(batch, at, fate) => library.decide(batch, at, fate),
                Step::DecideAll(batch, fate) => {
                    (0..9).for_each(|at| library.decide(batch, at, fate.clone()));
                }
                Step::Retain(batch, at) => library.retain(batch, at),
                Step::JudgeRetained(at, fate) => library.judge_retained(at, fate),
                Step::Commit(batch) => library.commit(batch),
                Step::FailSends(sends) => library.failing_sends = sends,
            }
        }
        library.finish();
    }
}

#[path = "batch_cases.rs"]
mod cases;
