//! Batches, retained packets and commits against a model of the kernel's queues.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use netfilterqueue_protocol::message::Messages;
use netfilterqueue_protocol::packet::Vlan;
use netfilterqueue_protocol::verdict::Verdict;

use super::*;
use crate::changes::Changes;
use crate::edit::Edit;
use crate::intake::{Consecutive, Intake};
use crate::sample::{self, Shape};
use crate::slot::Slot;
use crate::socket::{Arrival, RECEIVE_MAX, Received};
use crate::sweep::sweep;
use crate::verdicts::{Answer, Form, Orphan, Outstanding, PAYLOADS_MAX, Run, send_orphans};

mod kernel;
mod steps;

use self::kernel::Waiting;
pub(super) use self::kernel::{Kernel, Key};

#[cfg(fuzzing)]
pub(crate) use self::steps::play;
#[cfg(test)]
pub(super) use self::steps::{Play, STEP_LEN};

/// Two queues on one socket, and one that somebody else has bound to it.
pub(super) const QUEUES: [u16; 2] = [3, 8];
pub(super) const QUEUE: u16 = QUEUES[0];
const FOREIGN: u16 = 5;
pub(super) const ON_UNDECIDED: Verdict = Verdict::Drop;

/// The number of a thread that there is not.
const OTHER_THREAD: u64 = u64::MAX - 1;

/// How a packet left the kernel's queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) verdict: Verdict,
    pub(super) mark: Option<u32>,
    pub(super) priority: Option<u32>,
    pub(super) vlan: Option<Vlan>,
    pub(super) payload: Option<Vec<u8>>,
}

impl Fate {
    const UNDECIDED: Self = Self::plain(ON_UNDECIDED);

    pub(super) const fn plain(verdict: Verdict) -> Self {
        Self { verdict, mark: None, priority: None, vlan: None, payload: None }
    }

    /// As it leaves: the bytes of a dropped packet are not sent.
    fn sent(self) -> Self {
        Self { payload: self.payload.filter(|_| self.verdict != Verdict::Drop), ..self }
    }

    fn change(&self, changes: &mut Changes, payload_at: usize) {
        changes.mark = self.mark;
        changes.priority = self.priority;
        if self.vlan.is_some() {
            changes.extras_mut().vlan = self.vlan;
        }
        changes.edit =
            self.payload.as_ref().map(|payload| Edit::at(payload_at..payload_at + payload.len()));
    }
}

/// What verdicts go through on their way to the kernel: `Binding`, with the kernel replaced.
pub(super) struct Wire {
    pub(super) kernel: Kernel,
    pub(super) outstanding: Outstanding,
    pub(super) failing_sends: usize,
    limit: usize,
    /// Which thread has the capability.
    permitted: [bool; 2],
}

impl Wire {
    fn form(&self, queue: u16, pending: u64, sender: usize) -> Form {
        match sender {
            0 => self.outstanding.form(queue, pending),
            _ => self.outstanding.form_by(queue, pending, OTHER_THREAD),
        }
    }

    fn send<'a>(
        &mut self,
        datagram: &'a Datagram,
        payload: impl Fn(usize) -> &'a [u8],
        sender: usize,
    ) -> Result<(), Error> {
        match sender {
            0 => self.outstanding.sending(),
            _ => self.outstanding.sending_by(OTHER_THREAD),
        }
        if self.failing_sends > 0 {
            self.failing_sends -= 1;
            return Err(Error::WouldBlock);
        }
        let bytes = gather(datagram, payload);
        assert!(bytes.len() <= self.limit || datagram.answered() == 1, "datagram too long");
        assert!(datagram.gaps().len() <= PAYLOADS_MAX);
        let messages = datagram.exact() + datagram.cumulative();
        assert_eq!(Messages::new(&bytes).count() as u64, messages);
        self.kernel.take(&bytes, self.permitted[sender]);
        for (queue, answers) in datagram.answers() {
            self.outstanding.answered(*queue, *answers);
        }
        Ok(())
    }
}

/// The library's side: what `Queue`, `Batch` and `RetainedPacket` do.
pub(super) struct Library {
    pub(super) wire: Wire,
    intake: Intake,
    pub(super) batches: Vec<(Slots, Order, Datagram)>,
    retained: Vec<Key>,
    orphans: Vec<Orphan>,
    /// What each packet should meet with.
    wanted: BTreeMap<Key, Fate>,
    /// The newest id of each queue of ours, and what the counters should say.
    last_ids: BTreeMap<u16, u32>,
    lost: u64,
    refused: u64,
}

impl Library {
    #[cfg(test)]
    pub(super) fn new(first_id: u32, limit: usize) -> Self {
        Self::with(&QUEUES, first_id, limit)
    }

    /// With some of the queues; the others are somebody else's.
    fn with(queues: &[u16], first_id: u32, limit: usize) -> Self {
        let next_ids = [QUEUES[0], QUEUES[1], FOREIGN].map(|queue| (queue, first_id)).into();
        let last_id = first_id.wrapping_sub(1);
        Self {
            wire: Wire {
                kernel: Kernel { next_ids, ..Kernel::default() },
                outstanding: Outstanding::new(queues),
                failing_sends: 0,
                limit,
                permitted: [true; 2],
            },
            intake: Intake::new(queues.iter().copied()).after(last_id),
            batches: Vec::new(),
            retained: Vec::new(),
            orphans: Vec::new(),
            wanted: BTreeMap::new(),
            last_ids: queues.iter().map(|queue| (*queue, last_id)).collect(),
            lost: 0,
            refused: 0,
        }
    }

    /// As many receive calls as it takes, and what `Queue` does with their results.
    pub(super) fn receive(&mut self, most: usize) {
        let socket = &mut self.wire.kernel.socket;
        let waiting: Vec<Waiting> = socket.drain(..most.min(socket.len())).collect();
        let mut slots = Slots::new(waiting.len(), 256);
        let outstanding = &self.wire.outstanding;
        let mut run = Consecutive::default();
        let (mut filled, mut packets) = (0, 0);
        for waiting in waiting.chunks(RECEIVE_MAX) {
            slots.receive_by(filled, waiting.len(), |buffers, received| {
                for ((buffer, received), waiting) in buffers.zip(received).zip(waiting) {
                    let (datagram, arrival) = waiting.datagram();
                    buffer[..datagram.len()].copy_from_slice(&datagram);
                    *received = Received { length: datagram.len(), arrival };
                }
            });
            let received = slots.received(filled, waiting.len());
            packets += self.intake.load(received, &mut run, outstanding);
            filled += waiting.len();
        }
        self.intake.count_packets(run, outstanding);
        let mut came = slots.filled().iter().filter(|slot| slot.is_pending());
        let mut expected = 0;
        for waiting in waiting {
            let Waiting::Packet(packet, shape) = waiting else {
                self.refused += u64::from(matches!(waiting, Waiting::Refusal(_)));
                continue;
            };
            let slot = came.next().expect("a packet is lost");
            assert_eq!(key(slot), packet);
            // A packet whose message is damaged is answered and not shown.
            assert_eq!(slot.is_undecided(), shape == Shape::Whole);
            expected += 1;
            self.wire.kernel.unread.remove(&packet);
            assert!(self.wanted.insert(packet, Fate::UNDECIDED).is_none());
            if let Some(last_id) = self.last_ids.get_mut(&packet.0) {
                self.lost += u64::from(packet.1.wrapping_sub(*last_id) - 1);
                *last_id = packet.1;
            }
        }
        assert!(came.next().is_none());
        assert_eq!(packets, expected);
        self.batches.push((slots, Order::default(), Datagram::default()));
    }

    pub(super) fn decide(&mut self, batch: usize, at: usize, fate: Fate) {
        let Some((slots, ..)) = pick(&mut self.batches, batch) else { return };
        let (slot, buffer) = slots.at_mut(at % slots.capacity());
        if !slot.is_undecided() {
            return;
        }
        if fate != Fate::plain(fate.verdict) {
            fate.change(slot.changes_mut(), 100);
        }
        if let Some(payload) = &fate.payload {
            buffer[100..100 + payload.len()].copy_from_slice(payload);
        }
        slot.decide(fate.verdict);
        self.wanted.insert(key(slot), fate.sent());
    }

    /// All of a batch alike, which is what makes long runs.
    fn decide_all(&mut self, batch: usize, fate: &Fate) {
        let slots = pick(&mut self.batches, batch).map_or(0, |(slots, ..)| slots.capacity());
        (0..slots).for_each(|at| self.decide(batch, at, fate.clone()));
    }

    pub(super) fn retain(&mut self, batch: usize, at: usize) {
        let Some((slots, ..)) = pick(&mut self.batches, batch) else { return };
        let (slot, _) = slots.at_mut(at % slots.capacity());
        if slot.is_undecided() {
            self.retained.push(key(slot));
            slot.clear();
        }
    }

    pub(super) fn judge_retained(&mut self, at: usize, fate: Fate, sender: usize) {
        let Some(at) = at.checked_rem(self.retained.len()) else { return };
        let (queue, id) = self.retained[at];
        let mut changes = Changes::default();
        fate.change(&mut changes, 0);
        let answer = Answer { changes: Some(&changes), ..Answer::plain(queue, id, fate.verdict) };
        let mut datagram = Datagram::default();
        let limit = self.wire.limit;
        datagram.fill([Run::one(answer)].into_iter(), limit).expect("payloads are valid");
        let payload = fate.payload.clone().unwrap_or_default();
        // A failure gives the packet back.
        if self.wire.send(&datagram, |_| &payload, sender).is_ok() {
            self.retained.remove(at);
            self.wanted.insert((queue, id), fate.sent());
        }
    }

    /// The deadline of a retained packet has passed.
    fn expire(&mut self, at: usize) {
        let Some(at) = at.checked_rem(self.retained.len()) else { return };
        let (queue, id) = self.retained.remove(at);
        self.orphans.push(Orphan::new(&Answer::plain(queue, id, ON_UNDECIDED)));
    }

    pub(super) fn commit(&mut self, batch: usize, sender: usize) {
        let Some(at) = batch.checked_rem(self.batches.len()) else { return };
        if self.send_batch(at, sender).is_ok() {
            assert!(!self.batches[at].0.filled().iter().any(Slot::is_pending));
            self.batches.remove(at);
        }
    }

    fn send_batch(&mut self, at: usize, sender: usize) -> Result<(), Error> {
        let (slots, order, datagram) = &mut self.batches[at];
        let wire = std::cell::RefCell::new(&mut self.wire);
        let limit = wire.borrow().limit;
        let terms = Terms {
            on_undecided: ON_UNDECIDED,
            limit,
            form: |queue, pending| wire.borrow().form(queue, pending, sender),
        };
        commit_slots(slots, order, datagram, &terms, |datagram, slots| {
            wire.borrow_mut().send(datagram, |at| slots.edited(at), sender)
        })
    }

    /// A batch is dropped: what cannot be sent is left to the queue's thread.
    fn drop_batch(&mut self, batch: usize, sender: usize) {
        let Some(at) = batch.checked_rem(self.batches.len()) else { return };
        let result = self.send_batch(at, sender);
        let (slots, ..) = self.batches.remove(at);
        if result.is_ok() {
            return;
        }
        for slot in slots.filled() {
            let Some(answer) = slot.answer(0, ON_UNDECIDED) else { continue };
            self.orphans.push(Orphan::of_unsent(&answer, ON_UNDECIDED));
            let wanted = self.wanted.get_mut(&key(slot)).expect("it was received");
            if wanted.payload.take().is_some() | wanted.vlan.take().is_some() {
                wanted.verdict = ON_UNDECIDED;
            }
        }
    }

    /// A thread gets the capability or loses it. It gets it back only after the refusals of what it
    /// sent without have been read: the policy knows nothing of them before.
    pub(super) fn permit(&mut self, sender: usize, is_permitted: bool) {
        let Kernel { socket, denied, is_full, .. } = &self.wire.kernel;
        let is_unknown = socket.iter().any(|waiting| matches!(waiting, Waiting::Refusal(_)))
            || *is_full && !denied.is_empty();
        self.wire.permitted[sender] &= is_permitted;
        self.wire.permitted[sender] |= is_permitted && !is_unknown;
    }

    fn send_orphans(&mut self, sender: usize) {
        let Self { orphans, wire, .. } = self;
        let is_left =
            send_orphans(orphans, wire.limit, |datagram| wire.send(datagram, |_| &[], sender));
        assert_eq!(is_left, !orphans.is_empty());
    }

    /// As `Queue::sweep`, when it is time.
    fn sweep(&mut self, sender: usize) {
        let Wire { kernel, outstanding, permitted, .. } = &mut self.wire;
        for (queue, last_id) in self.intake.unpermitted() {
            if outstanding.is_idle(queue) {
                kernel.sweep(&sweep(queue, last_id), permitted[sender]);
            }
        }
    }

    /// Everything that is left gets its verdict, and all books must balance.
    pub(super) fn finish(mut self) {
        self.wire.failing_sends = 0;
        while !self.retained.is_empty() {
            self.judge_retained(0, Fate::UNDECIDED, 0);
        }
        self.send_orphans(0);
        // Refusals come until there is nothing left to refuse.
        while !(self.batches.is_empty() && self.wire.kernel.socket.is_empty()) {
            self.receive(9);
            while !self.batches.is_empty() {
                self.commit(0, 0);
            }
        }
        self.sweep(0);
        self.receive(9);
        let Self { mut wanted, intake, wire, .. } = self;
        let Kernel { list, fates, flushed, denied, swept, unread, is_full, .. } = wire.kernel;
        let list = BTreeSet::from_iter(list);
        assert_eq!(list, denied, "packets left without a verdict");
        if wire.permitted[0] && !is_full {
            let is_ours = |(queue, _): &Key| wire.outstanding.is_ours(*queue);
            assert!(!list.iter().any(is_ours), "refused, and never dropped");
            assert!(!intake.has_unpermitted());
        }
        assert!(unread.is_empty());
        wanted.retain(|packet, _| {
            ![&flushed, &denied, &swept].iter().any(|others| others.contains(packet))
        });
        assert_eq!(fates, wanted);
        assert_eq!(wire.outstanding.count(), 0);
        assert!(wire.outstanding.queues().eq(self.last_ids.into_keys()));
        assert_eq!((intake.stats.lost, intake.stats.refused), (self.lost, self.refused));
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
    (slot.queue(), slot.id())
}
