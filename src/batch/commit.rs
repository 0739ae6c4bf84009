//! What leaves in one commit: the slots that wait, by queue, in runs of like verdicts. No I/O.

use std::slice;

use netfilterqueue_protocol::verdict::Verdict;

use crate::error::Error;
use crate::slot::Slot;
use crate::slots::Slots;
use crate::verdicts::{Datagram, Form, Run};

/// What a commit has to know besides its packets.
pub(super) struct Terms<F> {
    pub(super) on_undecided: Verdict,
    /// Most bytes of one datagram.
    pub(super) limit: usize,
    /// The form that so many packets of a queue may be answered in.
    pub(super) form: F,
}

/// Where the slots are that wait for their verdicts, those of a queue together, which is what makes
/// long runs. Kept from one commit to the next for its memory.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Neighbours of one queue, nearly always a single stretch. Some of its slots may be empty.
    stretches: Vec<Stretch>,
}

#[derive(Debug, Clone, Copy)]
struct Stretch {
    queue: u16,
    form: Form,
    /// The first slot and the one after the last.
    start: usize,
    end: usize,
    pending: u64,
}

impl Order {
    /// Returns how many slots wait.
    pub(super) fn make(&mut self, slots: &[Slot], form: impl Fn(u16, u64) -> Form) -> u64 {
        self.stretches.clear();
        let mut at = 0;
        while let Some(slot) = slots.get(at) {
            if !slot.is_pending() {
                at += 1;
                continue;
            }
            let (queue, start) = (slot.queue(), at);
            let mut pending = 0;
            let same = |slot: &Slot| slot.queue() == queue || !slot.is_pending();
            while let Some(slot) = slots.get(at).filter(|slot| same(slot)) {
                pending += u64::from(slot.is_pending());
                at += 1;
            }
            self.stretches.push(Stretch { queue, form: Form::Exact, start, end: at, pending });
        }
        self.stretches.sort_unstable_by_key(|stretch| (stretch.queue, stretch.start));
        let mut all = 0;
        for of_queue in self.stretches.chunk_by_mut(|one, next| one.queue == next.queue) {
            let pending = of_queue.iter().map(|stretch| stretch.pending).sum();
            let form = form(of_queue[0].queue, pending);
            of_queue.iter_mut().for_each(|stretch| stretch.form = form);
            all += pending;
        }
        all
    }
}

/// Divides the slots that wait into runs of the longest length.
pub(super) struct Runs<'a> {
    slots: &'a [Slot],
    stretches: slice::Iter<'a, Stretch>,
    /// What is left of the present stretch.
    at: usize,
    end: usize,
    form: Form,
    on_undecided: Verdict,
}

impl<'a> Runs<'a> {
    pub(super) fn new(slots: &'a [Slot], order: &'a Order, on_undecided: Verdict) -> Self {
        let stretches = order.stretches.iter();
        Self { slots, stretches, at: 0, end: 0, form: Form::Exact, on_undecided }
    }

    /// Goes on with the next stretch, if that `is_wanted`.
    fn enter_next(&mut self, is_wanted: impl Fn(&Stretch) -> bool) -> bool {
        let Some(stretch) = self.stretches.clone().next().filter(|next| is_wanted(next)) else {
            return false;
        };
        self.stretches.next();
        (self.at, self.end, self.form) = (stretch.start, stretch.end, stretch.form);
        true
    }

    /// What is left of the present stretch.
    #[inline]
    fn rest(&self) -> &'a [Slot] {
        self.slots.get(self.at..self.end).unwrap_or_default()
    }

    /// The next slot that waits.
    #[inline]
    fn next_pending(&mut self) -> Option<&'a Slot> {
        loop {
            while self.at < self.end {
                let slot = self.slots.get(self.at)?;
                self.at += 1;
                if slot.is_pending() {
                    return Some(slot);
                }
            }
            if !self.enter_next(|_| true) {
                return None;
            }
        }
    }
}

impl<'a> Iterator for Runs<'a> {
    type Item = Run<'a>;

    #[inline]
    fn next(&mut self) -> Option<Run<'a>> {
        let slot = self.next_pending()?;
        let first = slot.answer(self.at - 1, self.on_undecided)?;
        let mut run = Run::one(first);
        if self.form == Form::Exact || first.needs_its_own() {
            return Some(run);
        }
        // Nearly always the rest of the batch.
        let rest = self.rest();
        let alike = rest.iter().take_while(|next| next.is_plain_like(slot)).count();
        if let Some(last) = rest[..alike].last() {
            run.last_id = last.id();
            run.packets += alike as u64;
            self.at += alike;
        }
        loop {
            for next in self.rest() {
                if let Some(answer) = next.answer(self.at, self.on_undecided) {
                    if !first.is_like(&answer) {
                        return Some(run);
                    }
                    run.add(next.id());
                }
                self.at += 1;
            }
            if !self.enter_next(|stretch| stretch.queue == slot.queue()) {
                return Some(run);
            }
        }
    }
}

/// Sends the verdicts of all pending slots, in as many datagrams as it takes, and clears each
/// slot once its verdict is sent. An error leaves the rest as it was.
pub(super) fn commit_slots(
    slots: &mut Slots,
    order: &mut Order,
    datagram: &mut Datagram,
    terms: &Terms<impl Fn(u16, u64) -> Form>,
    mut send: impl FnMut(&Datagram, &Slots) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut pending = order.make(slots.filled(), &terms.form);
    while pending > 0 {
        // Those whose verdict has been sent are empty by now.
        datagram
            .fill(Runs::new(slots.filled(), order, terms.on_undecided), terms.limit)
            .map_err(Error::Encode)?;
        send(datagram, slots)?;
        let answered = datagram.answered();
        pending = pending.saturating_sub(answered);
        if pending == 0 {
            slots.clear_all();
        } else {
            let mut left = answered;
            for Stretch { start, end, .. } in &order.stretches {
                left -= slots.clear(*start..*end, left);
            }
        }
    }
    Ok(())
}
