//! The packet that a user sees, borrowed from a batch or kept beyond it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use netfilterqueue_protocol::attribute::Attribute;
use netfilterqueue_protocol::conntrack::Conntrack;
use netfilterqueue_protocol::packet::{PacketIndex, PacketMessage, SkbInfo, Timestamp, Vlan};
use netfilterqueue_protocol::verdict::Verdict;

use crate::binding::Binding;
use crate::display::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::error::EditError;
use crate::hook::{Family, Hook};
use crate::retained::RetainedPacket;
use crate::slot::{Edit, Slot};

/// The accessors that borrowed and retained packets share, on top of `index` and `message`.
macro_rules! attribute_accessors {
    () => {
        /// The packet id. Ids of a queue are consecutive from 1 and wrap at 2^32.
        #[must_use]
        pub const fn id(&self) -> u32 {
            self.index().id()
        }

        /// The queue number.
        #[must_use]
        pub const fn queue(&self) -> u16 {
            self.index().queue()
        }

        /// The hook's family: IPv4, IPv6 or bridge.
        #[must_use]
        pub fn family(&self) -> Family {
            Family(self.message().family())
        }

        /// The hook it was queued at.
        #[must_use]
        pub fn hook(&self) -> Hook {
            Hook(self.message().hook())
        }

        /// The ethertype, host order: 0x0800 IPv4, 0x86dd IPv6; the frame's own in the bridge family.
        #[must_use]
        pub fn hw_protocol(&self) -> u16 {
            self.message().hw_protocol()
        }

        /// Index of the input device. `None` at the output hook and for local packets at postrouting.
        #[must_use]
        pub fn indev(&self) -> Option<u32> {
            self.message().indev()
        }

        /// Index of the output device. `None` at the prerouting and input hooks.
        #[must_use]
        pub fn outdev(&self) -> Option<u32> {
            self.message().outdev()
        }

        /// Index of the bridge port the packet came in through; bridged packets only.
        #[must_use]
        pub fn physindev(&self) -> Option<u32> {
            self.message().physindev()
        }

        /// Index of the bridge port the packet leaves through; bridged packets only.
        #[must_use]
        pub fn physoutdev(&self) -> Option<u32> {
            self.message().physoutdev()
        }

        /// Source link-layer address at its real length, at most 8 bytes. `None` at the output hook and
        /// on links without addresses; six zero bytes on the loopback device.
        #[must_use]
        pub fn hwaddr(&self) -> Option<&[u8]> {
            self.message().hwaddr()
        }

        /// When the packet was received. `None` at the output and postrouting hooks, and wherever
        /// nothing on the host has asked for time stamps.
        #[must_use]
        pub fn timestamp(&self) -> Option<Timestamp> {
            self.message().timestamp()
        }

        /// The packet's full length in bytes where only a part of it was copied, else `None`. Since 3.7.
        #[must_use]
        pub fn original_len(&self) -> Option<u32> {
            self.message().cap_len()
        }

        /// State of the packet's checksum and segmentation; `None` when there is nothing special. Since
        /// 3.10.
        #[must_use]
        pub fn skb_info(&self) -> Option<SkbInfo> {
            self.message().skb_info()
        }

        /// User id of the socket the packet belongs to, as the *initial* user namespace has it. `None`
        /// without `QueueBuilder::uid_gid` or where the kernel knows no socket. Since 3.14.
        #[must_use]
        pub fn uid(&self) -> Option<u32> {
            self.message().uid()
        }

        /// Group id, under the same conditions as the user id. Since 3.14.
        #[must_use]
        pub fn gid(&self) -> Option<u32> {
            self.message().gid()
        }

        /// Security context, text without a final NUL. `None` without `QueueBuilder::secctx` or a
        /// security module that labels packets. Since 4.3.
        #[must_use]
        pub fn secctx(&self) -> Option<&[u8]> {
            self.message().secctx()
        }

        /// The packet's priority (`skb->priority`); `None` when it is 0. Since 5.18.
        #[must_use]
        pub fn priority(&self) -> Option<u32> {
            self.message().priority()
        }

        /// `net_cls` class id of the sending cgroup; `None` when it is 0. Since 6.4.
        #[must_use]
        pub fn cgroup_classid(&self) -> Option<u32> {
            self.message().cgroup_classid()
        }

        /// The VLAN tag of a bridged frame. Since 4.7.
        #[must_use]
        pub fn vlan(&self) -> Option<Vlan> {
            self.message().vlan()
        }

        /// Link-layer header of a bridged frame, VLAN tag excluded. Since 4.7.
        #[must_use]
        pub fn l2_header(&self) -> Option<&[u8]> {
            self.message().l2_header()
        }

        /// The conntrack entry. `None` without `QueueBuilder::conntrack` or for packets that conntrack
        /// does not follow. Since 3.6.
        #[must_use]
        pub fn conntrack(&self) -> Option<Conntrack<'_>> {
            self.message().conntrack()
        }

        /// The packet's relation to its conntrack entry: 0 established, 1 related, 2 new, 3 established
        /// reply, 4 related reply. Comes with the conntrack entry.
        #[must_use]
        pub fn conntrack_info(&self) -> Option<u32> {
            self.message().conntrack_info()
        }

        /// The attribute with this `NFQA_*` number, known to this crate or not.
        #[must_use]
        pub fn attribute(&self, kind: u16) -> Option<Attribute<'_>> {
            self.message().attribute(kind)
        }
    };
}

pub(crate) use attribute_accessors;

/// Proof that a packet was decided about. Only a consumed packet yields one, so neither of these compiles:
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
#[non_exhaustive]
pub struct Decided<'a> {
    /// Invariant, so that the proof of one batch's packet does not pass for another's.
    packet: PhantomData<fn(&'a ()) -> &'a ()>,
}

/// A packet in a batch, borrowed from the receive buffer.
///
/// It is consumed by its verdict. One that is dropped instead stays undecided: it is yielded again by the
/// next iteration over its batch, and the commit gives it the queue's default verdict.
///
/// It cannot outlive its batch, nor the batch's next receive; [`Packet::retain`] makes it independent:
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
    pub(crate) const fn new(
        slot: &'a mut Slot,
        buffer: &'a mut [u8],
        binding: &'a Arc<Binding>,
    ) -> Self {
        Self { slot, buffer, binding }
    }

    /// Accepts the packet, with its mark and edits.
    #[expect(clippy::must_use_candidate, reason = "only a closure needs the proof")]
    pub fn accept(self) -> Decided<'a> {
        self.verdict(Verdict::Accept)
    }

    /// Gives the packet a verdict, with its mark and edits. The verdict leaves with the batch's commit. The
    /// edits of a packet that is dropped are not sent.
    #[expect(clippy::must_use_candidate, reason = "only a closure needs the proof")]
    pub fn verdict(self, verdict: Verdict) -> Decided<'a> {
        self.slot.decide(verdict);
        Decided { packet: PhantomData }
    }

    /// Takes the packet out of its batch to be judged later, by any thread. Copies it once, at its exact
    /// size, which allocates.
    ///
    /// Its verdict leaves at once when it is given, so a packet that is retained and judged before its batch
    /// is committed overtakes the rest of the batch.
    #[must_use = "a retained packet that is dropped gets the queue's default verdict"]
    pub fn retain(self) -> (RetainedPacket, Decided<'a>) {
        let retained = RetainedPacket::new(Arc::clone(self.binding), self.slot, self.buffer);
        self.slot.clear();
        (retained, Decided { packet: PhantomData })
    }

    /// Sets the mark that the packet leaves with, whatever the verdict.
    pub const fn set_mark(&mut self, mark: u32) {
        self.slot.mark = Some(mark);
    }

    /// The packet's bytes for editing in place, from the network header on. From this call on they are
    /// sent back with the verdict, changed or not.
    ///
    /// **Lengths and checksums are not corrected yet**: what is written here is what leaves. A packet whose
    /// checksum is not ready ([`SkbInfo::checksum_not_ready`], common while `gso` is on) is broken by
    /// being sent back without its whole checksum.
    ///
    /// # Errors
    ///
    /// [`EditError::NotCopied`] and [`EditError::Truncated`] if the bytes are not the whole packet;
    /// [`EditError::TooLong`] if the socket's send buffer cannot take it.
    pub fn payload_mut(&mut self) -> Result<&mut [u8], EditError> {
        let edit = match self.slot.edit {
            Some(edit) => edit,
            None => Edit::of_whole(&self.message(), self.binding.payload_max())?,
        };
        self.slot.edit = Some(edit);
        Ok(&mut self.buffer[edit.range()])
    }

    /// Replaces the packet's bytes, from the network header on, by others of any length up to 65,531.
    ///
    /// **Lengths and checksums are not corrected yet**: what is given here is what leaves.
    ///
    /// # Errors
    ///
    /// As [`Packet::payload_mut`]; [`EditError::Empty`], [`EditError::TooShort`] and
    /// [`EditError::TooLong`] for a payload that cannot be sent back.
    pub fn set_payload(&mut self, payload: &[u8]) -> Result<(), EditError> {
        let max = self.binding.payload_max();
        let (original, min) = match self.slot.edit {
            None => Edit::of_whole(&self.message(), max).map(|edit| (edit.range(), edit.min))?,
            Some(edit) => (self.slot.index.payload_range().unwrap_or_default(), edit.min),
        };
        check_payload(payload.len(), min, max)?;
        // The kernel puts the payload last. Should it ever not be, the new one must not overwrite the
        // attributes behind the old one.
        let message_len = self.slot.index.message_len();
        let start = if original.end == message_len { original.start } else { message_len };
        let max = max.min(self.buffer.len() - start);
        let target = self
            .buffer
            .get_mut(start..start + payload.len())
            .ok_or(EditError::TooLong { len: payload.len(), max })?;
        target.copy_from_slice(payload);
        self.slot.edit = Some(Edit { start, len: payload.len(), min });
        Ok(())
    }

    /// The packet's bytes from its network header on: the edited ones if there are any, else as received.
    /// Empty if the kernel copied none.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        match self.slot.edit {
            Some(edit) => &self.buffer[edit.range()],
            None => self.message().payload(),
        }
    }

    /// The mark: the one that was set, else the one the packet came with, which is absent when it is 0.
    #[must_use]
    pub fn mark(&self) -> Option<u32> {
        self.slot.mark.or_else(|| self.message().mark())
    }

    /// The kernel's message. After an edit its payload is not the original one any more.
    #[must_use]
    pub fn message(&self) -> PacketMessage<'_> {
        self.slot.index.view(self.buffer)
    }

    attribute_accessors!();

    const fn index(&self) -> &PacketIndex {
        &self.slot.index
    }
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

/// One line a person can read: `17 UDP 10.0.0.1:53 → 10.0.0.2:4242 84 bytes, output to if2, mark 0x7`.
impl fmt::Display for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display::line(f, &self.message(), self.payload(), self.mark())
    }
}

impl Edit {
    /// The original payload, if it is the whole packet and can be sent back.
    pub(crate) fn of_whole(message: &PacketMessage<'_>, max: usize) -> Result<Self, EditError> {
        let range = message.index().payload_range().filter(|range| !range.is_empty());
        let range = range.ok_or(EditError::NotCopied)?;
        if let Some(full) = message.cap_len() {
            return Err(EditError::Truncated { copied: range.len(), full });
        }
        let min = network_header_len(message);
        check_payload(range.len(), 0, max)?;
        Ok(Self { start: range.start, len: range.len(), min })
    }
}

/// Whether a payload of `len` bytes can be sent back.
pub(crate) const fn check_payload(len: usize, min: usize, max: usize) -> Result<(), EditError> {
    match len {
        0 => Err(EditError::Empty),
        _ if len < min => Err(EditError::TooShort { len, min }),
        _ if len > max => Err(EditError::TooLong { len, max }),
        _ => Ok(()),
    }
}

/// Where the transport header of an unedited packet starts, without extension headers of IPv6; 0 for
/// other protocols.
fn network_header_len(message: &PacketMessage<'_>) -> usize {
    match (message.hw_protocol(), message.payload().first()) {
        (ETHERTYPE_IPV4, Some(first)) => usize::from(first & 0x0f) * 4,
        (ETHERTYPE_IPV6, _) => 40,
        _ => 0,
    }
}
