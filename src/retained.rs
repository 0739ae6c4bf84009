//! A packet that is kept beyond its batch.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use netfilterqueue_protocol::attribute::Attribute;
use netfilterqueue_protocol::conntrack::{Conntrack, ConntrackChange, ConntrackInfo};
use netfilterqueue_protocol::packet::{PacketMessage, SkbInfo, Timestamp, Vlan};
use netfilterqueue_protocol::verdict::Verdict;

use crate::access::packet_methods;
use crate::binding::Binding;
use crate::changes::L2Header;
use crate::checksum::Completion;
use crate::deadlines::Claim;
use crate::display;
use crate::edit::EditMode;
use crate::error::{EditError, Error};
use crate::flow::FlowBypass;
use crate::hook::{Family, Hook};
use crate::slot::Slot;
use crate::sync::Shared;
use crate::verdicts::{Answer, Datagram, Run};

/// A packet that was taken out of its batch. Owned, `Send` and `Sync`; its verdict is sent at once.
///
/// Dropped without a verdict, it gets the queue's default verdict; leaked ([`std::mem::forget`]),
/// it waits until the queue is closed. While packets are retained, the queue sends one verdict
/// message per packet instead of one per run of packets.
///
/// The kernel holds what is retained, and counts it against
/// [`QueueBuilder::max_len`](crate::QueueBuilder::max_len): a program that retains more must raise
/// that. Kernels since January 2026 (7.0, 6.19.4, 6.18.14, 6.12.75) hold 65,536 packets at most and
/// drop what comes then, which shows as [`Stats::lost`](crate::Stats::lost).
/// [`Stats::retained`](crate::Stats::retained) tells how many there are.
pub struct RetainedPacket {
    binding: Arc<Binding>,
    slot: Slot,
    /// The kernel's message, exactly, until an edit makes it longer.
    buffer: Vec<u8>,
    deadline: Option<Deadline>,
    answered: bool,
}

#[derive(Debug)]
struct Deadline {
    at: Instant,
    claim: Shared<Claim>,
}

impl RetainedPacket {
    /// Copies a packet out of `buffer`, with what was done to it so far.
    pub(crate) fn new(binding: Arc<Binding>, slot: Slot, buffer: &[u8]) -> Self {
        let edited = slot.edit().map_or(0, |edit| edit.range().end);
        let len = slot.index.message_len().max(edited);
        let buffer = buffer.get(..len).unwrap_or(buffer).to_vec();
        binding.retention().add(slot.index.message_len());
        Self { binding, slot, buffer, deadline: None, answered: false }
    }

    /// Accepts the packet, with its changes: one `sendmsg`.
    ///
    /// # Errors
    ///
    /// As [`RetainedPacket::verdict`].
    #[expect(clippy::result_large_err, reason = "a failure gives the packet back")]
    pub fn accept(self) -> Result<(), NotSent> {
        self.verdict(Verdict::Accept)
    }

    /// Gives the packet a verdict, with its changes: one `sendmsg`. The edited bytes of a packet
    /// that is dropped are not sent.
    ///
    /// # Errors
    ///
    /// [`NotSent`] gives the packet back: [`Error::Closed`] if its queue is closed,
    /// [`Error::Expired`] if its deadline has passed, [`Error::System`] if the kernel could not
    /// take the message now.
    #[expect(clippy::result_large_err, reason = "a failure gives the packet back")]
    pub fn verdict(mut self, verdict: Verdict) -> Result<(), NotSent> {
        self.slot.finish_edit(&mut self.buffer, verdict, &self.binding);
        match self.send(Some(verdict)) {
            Ok(()) => Ok(()),
            Err(error) => Err(NotSent { packet: self, error }),
        }
    }

    /// As [`Packet::accept_flow`](crate::Packet::accept_flow): one `sendmsg`.
    ///
    /// # Errors
    ///
    /// As [`RetainedPacket::verdict`]; the packet comes back with the mark that it had.
    #[expect(clippy::result_large_err, reason = "a failure gives the packet back")]
    pub fn accept_flow(self, bypass: FlowBypass) -> Result<(), NotSent> {
        let mark = bypass.accepting(self.mark());
        self.accept_marked(mark)
    }

    /// As [`Packet::drop_flow`](crate::Packet::drop_flow), which tells what it relies on: one
    /// `sendmsg`.
    ///
    /// # Errors
    ///
    /// As [`RetainedPacket::verdict`]; the packet comes back with the mark that it had.
    #[expect(clippy::result_large_err, reason = "a failure gives the packet back")]
    pub fn drop_flow(self, bypass: FlowBypass) -> Result<(), NotSent> {
        let mark = bypass.dropping(self.mark());
        self.accept_marked(mark)
    }

    /// Sets the time after which the packet gets the queue's default verdict, or takes it away. A
    /// verdict that comes later fails with [`Error::Expired`].
    ///
    /// The default verdict is given by the thread that receives on the queue; until it has been,
    /// another one still counts. [`Queue::run`](crate::Queue::run) and a blocked
    /// [`Queue::recv`](crate::Queue::recv) wake up for it, to the millisecond. A program with an
    /// event loop of its own finds the next deadline in
    /// [`Queue::next_deadline`](crate::Queue::next_deadline). Of no effect once the deadline has
    /// passed.
    pub fn set_deadline(&mut self, at: Option<Instant>) {
        let has_passed = self.deadline.as_ref().is_some_and(|deadline| !deadline.claim.take());
        if !has_passed {
            self.deadline = at.map(|at| self.register(at));
        }
    }

    /// The time that [`RetainedPacket::set_deadline`] has set.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.as_ref().map(|deadline| deadline.at)
    }

    /// As [`Packet::set_payload`](crate::Packet::set_payload); may allocate.
    ///
    /// # Errors
    ///
    /// As [`Packet::set_payload`](crate::Packet::set_payload).
    pub fn set_payload(&mut self, payload: &[u8]) -> Result<(), EditError> {
        let edit = self.slot.place_payload(&self.buffer, usize::MAX, payload, &self.binding)?;
        let len = self.buffer.len().max(edit.range().end);
        self.buffer.resize(len, 0);
        if let Some(target) = self.buffer.get_mut(edit.range()) {
            target.copy_from_slice(payload);
            self.slot.changes_mut().edit = Some(edit);
        }
        Ok(())
    }

    packet_methods!();

    #[expect(clippy::result_large_err, reason = "a failure gives the packet back")]
    fn accept_marked(mut self, mark: u32) -> Result<(), NotSent> {
        let before = self.slot.changes_mut().mark.replace(mark);
        self.accept().map_err(|mut not_sent| {
            // Whatever is said next must not be taken for a decision about the flow.
            not_sent.packet.slot.changes_mut().mark = before;
            not_sent
        })
    }

    fn register(&self, at: Instant) -> Deadline {
        let (claim, is_next) = self.binding.deadlines().set(at, self.queue(), self.id());
        if is_next {
            // It may be sleeping for longer.
            self.binding.wake().wake();
        }
        Deadline { at, claim }
    }

    /// Sends a verdict with the packet's changes, or the default verdict without them.
    fn send(&mut self, verdict: Option<Verdict>) -> Result<(), Error> {
        if self.binding.is_closed() {
            // Nobody is left to whom a deadline means anything.
            self.deadline = None;
            return Err(Error::Closed);
        }
        if self.deadline.as_ref().is_some_and(|deadline| !deadline.claim.take()) {
            return Err(Error::Expired);
        }
        let result = self.send_claimed(verdict);
        match &result {
            Ok(()) => {}
            Err(Error::Closed) => self.deadline = None,
            Err(_) => self.deadline = self.deadline().map(|at| self.register(at)),
        }
        result
    }

    fn send_claimed(&mut self, verdict: Option<Verdict>) -> Result<(), Error> {
        let answer = match verdict {
            Some(verdict) => self.slot.decided(verdict),
            None => self.default_answer(),
        };
        let mut datagram = Datagram::default();
        datagram.fill(std::iter::once(Run::one(answer)), usize::MAX).map_err(Error::Encode)?;
        self.binding.send(&datagram, |_| self.payload())?;
        self.answered = true;
        Ok(())
    }

    fn default_answer(&self) -> Answer<'static> {
        Answer::plain(self.queue(), self.id(), self.binding.terms().on_undecided)
    }
}

impl Drop for RetainedPacket {
    fn drop(&mut self) {
        if self.binding.retention().remove(self.slot.index.message_len()) {
            self.binding.wake().wake();
        }
        if self.answered {
            return;
        }
        match self.send(None) {
            // It is answered here, by the queue, or by the kernel.
            Ok(()) | Err(Error::Expired | Error::Closed) => {}
            Err(_) => {
                if self.deadline.take().is_none_or(|deadline| deadline.claim.take()) {
                    self.binding.hand_over(std::iter::once(self.default_answer()));
                }
            }
        }
    }
}

impl fmt::Debug for RetainedPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetainedPacket")
            .field("id", &self.id())
            .field("queue", &self.queue())
            .field("mark", &self.mark())
            .field("payload_len", &self.payload().len())
            .finish_non_exhaustive()
    }
}

/// As that of [`Packet`](crate::Packet).
impl fmt::Display for RetainedPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name_of = |index| self.binding.interfaces().name(index);
        display::line(f, &self.message(), self.payload(), self.mark(), &name_of)
    }
}

/// The verdict on a retained packet could not be sent. Holds the packet, which can be judged again
/// unless its queue is closed or its deadline has passed.
#[derive(Debug, thiserror::Error)]
#[error("the verdict on packet {} was not sent: {error}", packet.id())]
#[expect(clippy::exhaustive_structs, reason = "to be taken apart")]
pub struct NotSent {
    /// The packet, as it was.
    pub packet: RetainedPacket,
    /// Why.
    pub error: Error,
}

/// The packet is dropped, so that it gets its queue's default verdict, unless that cannot be sent
/// either: then the queue sends it.
impl From<NotSent> for Error {
    fn from(not_sent: NotSent) -> Self {
        not_sent.error
    }
}
