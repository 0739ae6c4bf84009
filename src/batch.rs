//! The packets of one receive call, and the verdicts that leave in one commit.

mod commit;

use std::sync::Arc;

use self::commit::{Order, Terms, commit_slots};
use crate::binding::Binding;
use crate::error::Error;
use crate::packet::Packet;
use crate::slot::Slot;
use crate::slots::{Pairs, Slots, WHOLE_PACKET_LEN};
use crate::verdicts::Datagram;

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
