//! The packet that a user sees, borrowed from a batch or kept beyond it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use netfilterqueue_protocol::attribute::Attribute;
use netfilterqueue_protocol::conntrack::{Conntrack, ConntrackChange, ConntrackInfo};
use netfilterqueue_protocol::packet::{PacketMessage, SkbInfo, Timestamp, Vlan};
use netfilterqueue_protocol::verdict::Verdict;

use crate::access::packet_methods;
use crate::binding::Binding;
use crate::changes::L2Header;
use crate::checksum::Completion;
use crate::display;
use crate::edit::EditMode;
use crate::error::EditError;
use crate::flow::FlowBypass;
use crate::hook::{Family, Hook};
use crate::retained::RetainedPacket;
use crate::slot::Slot;

/// Proof that a packet was decided about. Only a consumed packet yields one, so neither of these
/// compiles:
///
/// ```compile_fail,E0308
/// # fn forgotten(queue: &mut netfilterqueue::Queue) {
/// queue.run(|packet| println!("{packet}"));
/// # }
/// ```
///
/// ```compile_fail,E0382
/// # fn twice(packet: netfilterqueue::Packet<'_>) {
/// packet.accept();
/// packet.accept();
/// # }
/// ```
#[derive(Debug)]
pub struct Decided<'a> {
    /// Invariant, so that the proof of one batch's packet does not pass for another's.
    packet: PhantomData<fn(&'a ()) -> &'a ()>,
}

/// A packet in a batch, borrowed from the receive buffer.
///
/// It is consumed by its verdict. One that is dropped instead stays undecided: it is yielded again
/// by the next iteration over its batch, and the commit gives it the queue's default verdict.
///
/// It cannot outlive its batch, nor the batch's next receive; [`Packet::retain`] makes it
/// independent:
///
/// ```compile_fail,E0499
/// # use netfilterqueue::{Batch, Error, Queue};
/// # fn kept(queue: &mut Queue, batch: &mut Batch) -> Result<(), Error> {
/// let first = batch.iter_mut().next();
/// queue.recv(batch)?;
/// drop(first);
/// # Ok(())
/// # }
/// ```
pub struct Packet<'a> {
    slot: &'a mut Slot,
    buffer: &'a mut [u8],
    binding: &'a Arc<Binding>,
}

impl<'a> Packet<'a> {
    #[inline]
    pub(crate) const fn new(
        slot: &'a mut Slot,
        buffer: &'a mut [u8],
        binding: &'a Arc<Binding>,
    ) -> Self {
        Self { slot, buffer, binding }
    }

    /// Accepts the packet, with its mark and edits.
    #[expect(clippy::must_use_candidate, reason = "only a closure needs the proof")]
    #[inline]
    pub fn accept(self) -> Decided<'a> {
        self.verdict(Verdict::Accept)
    }

    /// Gives the packet a verdict, with its mark and edits. The verdict leaves with the batch's
    /// commit. The edits of a packet that is dropped are not sent.
    ///
    /// The packet is consumed first, so what the verdict depends on must be known before:
    ///
    /// ```
    /// # use netfilterqueue::{Decided, Packet, Verdict};
    /// # fn judge(packet: Packet<'_>) -> Decided<'_> {
    /// let drop = packet.payload().len() > 500;
    /// packet.verdict(if drop { Verdict::Drop } else { Verdict::Accept })
    /// # }
    /// ```
    #[doc(alias = "drop")]
    #[expect(clippy::must_use_candidate, reason = "only a closure needs the proof")]
    #[inline]
    pub fn verdict(self, verdict: Verdict) -> Decided<'a> {
        if self.slot.changes().is_some() {
            self.slot.finish_edit(self.buffer, verdict, self.binding);
        }
        self.slot.decide(verdict);
        Decided { packet: PhantomData }
    }

    /// Takes the packet out of its batch to be judged later, by any thread. Copies it once, at its
    /// exact size, which allocates.
    ///
    /// Its verdict leaves at once when it is given, so a packet that is retained and judged before
    /// its batch is committed overtakes the rest of the batch.
    #[must_use = "a retained packet that is dropped gets the queue's default verdict"]
    pub fn retain(self) -> (RetainedPacket, Decided<'a>) {
        let retained = RetainedPacket::new(Arc::clone(self.binding), self.slot.take(), self.buffer);
        (retained, Decided { packet: PhantomData })
    }

    /// Replaces the packet's bytes, from the network header on, by others of any length up to
    /// 65,531.
    ///
    /// Lengths and checksums are set when the verdict is given; see [`EditMode`] and
    /// [`checksum`](crate::checksum). What a transport protocol counts by bytes is not: a TCP
    /// segment of another length shifts the sequence numbers of the rest of its stream, both ways.
    /// What the kernel may not take back stands at [`Packet::payload_mut`].
    ///
    /// # Errors
    ///
    /// As [`Packet::payload_mut`]; [`EditError::Empty`], [`EditError::TooShort`],
    /// [`EditError::TooLong`] and [`EditError::ShorterSuperPacket`] for a payload that cannot be
    /// sent back.
    pub fn set_payload(&mut self, payload: &[u8]) -> Result<(), EditError> {
        let room = self.buffer.len();
        let edit = self.slot.place_payload(self.buffer, room, payload, self.binding)?;
        if let Some(target) = self.buffer.get_mut(edit.range()) {
            target.copy_from_slice(payload);
            self.slot.changes_mut().edit = Some(edit);
        }
        Ok(())
    }

    /// Accepts the packet, with its changes, and with it all later packets of its flow, both
    /// directions: they do not come up any more. The bits of [`FlowBypass::marks`] in the mark tell
    /// the kernel; they do not stay there. What counts as a flow, and when one comes up again, is
    /// told in the module `rules`.
    #[expect(clippy::must_use_candidate, reason = "only a closure needs the proof")]
    pub fn accept_flow(mut self, bypass: FlowBypass) -> Decided<'a> {
        self.set_mark(bypass.accepting(self.mark()));
        self.accept()
    }

    /// Drops the packet and with it all later packets of its flow, both directions: they do not
    /// come up any more. The kernel remembers that only of a flow of which some packet has been let
    /// through before: dropping the first packet of a new flow drops that packet alone, and the
    /// next one comes up again. At the output hook, a local sender of later packets gets `EPERM`.
    ///
    /// The verdict is not a drop but an accept that the rules behind the queue turn into one.
    /// **Where they are missing the packet passes**: `bypass` must be that of the rules which
    /// queued this packet, and they must still be installed.
    #[expect(clippy::must_use_candidate, reason = "only a closure needs the proof")]
    pub fn drop_flow(mut self, bypass: FlowBypass) -> Decided<'a> {
        self.set_mark(bypass.dropping(self.mark()));
        self.accept()
    }

    packet_methods!();
}

impl fmt::Debug for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packet")
            .field("id", &self.id())
            .field("queue", &self.queue())
            .field("mark", &self.mark())
            .field("payload_len", &self.payload().len())
            .finish_non_exhaustive()
    }
}

/// One line a person can read: `17 UDP 10.0.0.1:53 → 10.0.0.2:4242 84 bytes, output to eth0, mark
/// 0x7`.
impl fmt::Display for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name_of = |index| self.binding.interfaces().name(index);
        display::line(f, &self.message(), self.payload(), self.mark(), &name_of)
    }
}
