//! The packets of one receive call, and the verdicts that leave in one commit.

use std::slice;
use std::sync::Arc;

use netfilterqueue_protocol::verdict::Verdict;

use crate::binding::Binding;
use crate::error::Error;
use crate::packet::Packet;
use crate::slot::Slot;
use crate::slots::{Pairs, Slots, WHOLE_PACKET_LEN};
use crate::verdicts::{Datagram, Form, Run};

/// Receive buffers that belong to the caller, filled by [`Queue::recv`](crate::Queue::recv).
///
/// Iterating over `&mut batch` yields the packets that have no decision yet. [`Batch::commit`]
/// sends all verdicts; packets without one get the queue's default verdict
/// ([`QueueBuilder::on_undecided`](crate::QueueBuilder::on_undecided)). The same happens when the
/// batch is received into again or dropped, also by a panic.
///
/// A batch may be sent to another thread and committed there while its queue receives into the next
/// one.
#[derive(Debug)]
pub struct Batch {
    slots: Slots,
    binding: Option<Arc<Binding>>,
    datagram: Datagram,
    order: Order,
}

impl Batch {
    /// Makes a batch of `capacity` packets of any size; 0 is taken as 1.
    ///
    /// It reserves 68 KiB of address space per packet, of which the system backs only what packets
    /// have filled. More than 64 brings no more speed: 64 is the most that one system call
    /// receives.
    ///
    /// # Panics
    ///
    /// If that is more memory than the address space holds.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self::with_buffer_len(capacity, WHOLE_PACKET_LEN)
    }

    /// Makes a batch whose buffers hold messages of up to `buffer_len` bytes each: the copied part
    /// of a packet and about 150 bytes more, 400 with a conntrack entry. For programs that set a
    /// short copy range and want to use little memory.
    ///
    /// A longer message is cut off; its packet cannot be shown and gets the queue's default
    /// verdict, which is counted as [`Stats::truncated`](crate::Stats::truncated). Below 256 is
    /// taken as 256, so that packet ids and the kernel's refusals always fit.
    ///
    /// # Panics
    ///
    /// As [`Batch::new`].
    #[must_use]
    pub fn with_buffer_len(capacity: usize, buffer_len: usize) -> Self {
        let slots = Slots::new(capacity, buffer_len);
        Self { slots, binding: None, datagram: Datagram::default(), order: Order::default() }
    }

    /// Sends the verdicts of all packets: one `sendmsg`, or several when edited packets are more
    /// than fit in one datagram (the socket's send buffer, 208 KiB by default). Does nothing if
    /// there are none.
    ///
    /// Runs of like verdicts leave as one cumulative message, while no other packet of the queue
    /// waits for its verdict and all verdicts of the queue have come from one thread. Else each
    /// packet has its own message in the same datagram, which costs the kernel a little more.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the kernel could not take a datagram; what was not sent stays, and can
    /// be committed again. [`Error::Closed`] if the queue is closed: the kernel drops its packets,
    /// and the batch is empty after this. A verdict that the kernel refuses later is no error of
    /// this call: see [`Queue::take_refusals`](crate::Queue::take_refusals).
    pub fn commit(&mut self) -> Result<(), Error> {
        let Some(binding) = &self.binding else { return Ok(()) };
        let terms = Terms {
            on_undecided: binding.terms().on_undecided,
            limit: binding.socket().send_limit(),
            form: |queue, pending| binding.outstanding().form(queue, pending),
        };
        let result = commit_slots(
            &mut self.slots,
            &mut self.order,
            &mut self.datagram,
            &terms,
            |datagram, slots| binding.send(datagram, |at| slots.edited(at)),
        );
        match result {
            Ok(()) => {}
            // The queue may be closed at any moment, and then its packets are gone.
            Err(Error::Closed) => self.slots.clear_all(),
            Err(error) => return Err(error),
        }
        // An empty batch must not keep the socket of a closed queue open.
        self.binding = None;
        result
    }

    /// How many packets have no verdict sent yet, decided or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.filled().iter().filter(|slot| slot.is_pending()).count()
    }

    /// Whether all packets are answered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.slots.filled().iter().any(Slot::is_pending)
    }

    /// How many packets it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.capacity()
    }

    /// The packets that have no decision yet, in the order they were received.
    pub fn iter_mut(&mut self) -> Packets<'_> {
        Packets { pairs: self.slots.pairs_mut(), binding: self.binding.as_ref() }
    }

    /// Answers what is left of an earlier receive, so that the batch is empty.
    pub(crate) fn commit_leftovers(&mut self) -> Result<(), Error> {
        match self.commit() {
            // The packets of a closed queue are gone; this queue's are to be received.
            Ok(()) | Err(Error::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Says whose packets have been received into its slots.
    pub(crate) fn attach(&mut self, binding: &Arc<Binding>) {
        self.binding = Some(Arc::clone(binding));
    }

    pub(crate) const fn slots_mut(&mut self) -> &mut Slots {
        &mut self.slots
    }
}

/// What a commit has to know besides its packets.
struct Terms<F> {
    on_undecided: Verdict,
    /// Most bytes of one datagram.
    limit: usize,
    /// The form that so many packets of a queue may be answered in.
    form: F,
}

/// Where the slots are that wait for their verdicts, those of a queue together, which is what makes
/// long runs. Kept from one commit to the next for its memory.
#[derive(Debug, Default)]
struct Order {
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
    fn make(&mut self, slots: &[Slot], form: impl Fn(u16, u64) -> Form) -> u64 {
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
struct Runs<'a> {
    slots: &'a [Slot],
    stretches: slice::Iter<'a, Stretch>,
    /// What is left of the present stretch.
    at: usize,
    end: usize,
    form: Form,
    on_undecided: Verdict,
}

impl<'a> Runs<'a> {
    fn new(slots: &'a [Slot], order: &'a Order, on_undecided: Verdict) -> Self {
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
fn commit_slots(
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

impl Drop for Batch {
    fn drop(&mut self) {
        if self.commit().is_err()
            && let Some(binding) = &self.binding
        {
            let on_undecided = binding.terms().on_undecided;
            let slots = self.slots.filled().iter().enumerate();
            binding.hand_over(slots.filter_map(|(at, slot)| slot.answer(at, on_undecided)));
        }
    }
}

impl<'a> IntoIterator for &'a mut Batch {
    type Item = Packet<'a>;
    type IntoIter = Packets<'a>;

    fn into_iter(self) -> Packets<'a> {
        self.iter_mut()
    }
}

/// Iterates over the undecided packets of a batch.
#[derive(Debug)]
pub struct Packets<'a> {
    pairs: Pairs<'a>,
    binding: Option<&'a Arc<Binding>>,
}

impl<'a> Iterator for Packets<'a> {
    type Item = Packet<'a>;

    #[inline]
    fn next(&mut self) -> Option<Packet<'a>> {
        let binding = self.binding?;
        self.pairs
            .find(|(slot, _)| slot.is_undecided())
            .map(|(slot, buffer)| Packet::new(slot, buffer, binding))
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod model;

#[cfg(test)]
mod tests;
