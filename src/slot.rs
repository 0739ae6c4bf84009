//! What is known and decided about the packet in a receive buffer.

use std::mem;

use netfilterqueue_protocol::ack::Ack;
use netfilterqueue_protocol::constants::{NFQNL_MSG_PACKET, NLMSG_ERROR};
use netfilterqueue_protocol::message::Message;
use netfilterqueue_protocol::packet::PacketIndex;
use netfilterqueue_protocol::verdict::Verdict;

use crate::binding::Binding;
use crate::changes::Changes;
use crate::checksum::Completion;
use crate::edit::{Edit, EditMode, EditTerms};
use crate::error::EditError;
use crate::socket::{Arrival, Received};
use crate::verdicts::Answer;

/// What has been decided about the packet in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// There is no packet, it is answered, or its answer is somebody else's task.
    #[default]
    Empty,
    /// The packet waits for a decision.
    Undecided,
    /// The packet waits for the commit.
    Decided,
    /// The packet cannot be shown to anyone and waits for the commit.
    Unreadable,
}

/// The packet in one buffer. As small as it can be: commits walk over all slots of a batch.
#[derive(Debug)]
pub(crate) struct Slot {
    state: State,
    is_changed: bool,
    /// Of a packet that is decided.
    verdict: Verdict,
    pub(crate) index: PacketIndex,
    /// Means something only if `is_changed`; stays allocated from packet to packet.
    changes: Option<Box<Changes>>,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            state: State::Empty,
            is_changed: false,
            verdict: Verdict::Drop,
            index: PacketIndex::default(),
            changes: None,
        }
    }
}

/// What a received datagram was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    /// A packet, ready to be judged.
    Packet(PacketIndex),
    /// A packet message that was cut off or malformed, but whose packet can be answered: it gets
    /// the verdict of undecided packets.
    Unreadable { packet: PacketIndex, truncated: bool },
    /// The kernel's answer to a request.
    Ack(Ack<'a>),
    /// Not from the kernel.
    Foreign,
    /// Nothing that can be understood or answered.
    Unknown,
}

impl Slot {
    /// Takes in a received datagram if it is a packet that can be handed to the caller. Else the
    /// slot is to [`Slot::load_other`].
    #[inline]
    pub(crate) fn load_packet(&mut self, datagram: &[u8], received: Received) -> bool {
        let is_packet =
            received.arrival == Arrival::Whole && self.index.parse_into(datagram).is_ok();
        self.is_changed = false;
        if is_packet {
            self.state = State::Undecided;
        }
        is_packet
    }

    /// Takes in any other datagram.
    #[cold]
    pub(crate) fn load_other<'a>(&mut self, datagram: &'a [u8], received: Received) -> Content<'a> {
        let content = classify(datagram, received);
        (self.state, self.index) = match content {
            Content::Packet(packet) => (State::Undecided, packet),
            Content::Unreadable { packet, .. } => (State::Unreadable, packet),
            _ => (State::Empty, PacketIndex::default()),
        };
        content
    }

    /// Whether the packet can be handed to the caller.
    #[inline]
    pub(crate) const fn is_undecided(&self) -> bool {
        matches!(self.state, State::Undecided)
    }

    /// Whether the packet is to be answered by the commit of its batch.
    #[inline]
    pub(crate) const fn is_pending(&self) -> bool {
        !matches!(self.state, State::Empty)
    }

    /// The packet's queue number.
    #[inline]
    pub(crate) const fn queue(&self) -> u16 {
        self.index.queue()
    }

    /// What was done to the packet, if anything was.
    #[inline]
    pub(crate) fn changes(&self) -> Option<&Changes> {
        self.changes.as_deref().filter(|_| self.is_changed)
    }

    /// To do something to the packet.
    pub(crate) fn changes_mut(&mut self) -> &mut Changes {
        let changes = self.changes.get_or_insert_default();
        if !self.is_changed {
            self.is_changed = true;
            changes.clear();
        }
        changes
    }

    /// The edit of its payload.
    #[inline]
    pub(crate) fn edit(&self) -> Option<Edit> {
        self.changes()?.edit
    }

    /// Whether both packets wait for the same verdict of the same queue, and nothing else was said
    /// about them, which holds for most.
    #[inline]
    pub(crate) fn is_plain_like(&self, other: &Self) -> bool {
        self.state == other.state
            && (self.state != State::Decided || self.verdict == other.verdict)
            && self.queue() == other.queue()
            && !self.is_changed
            && !other.is_changed
    }

    /// The packet's id.
    #[inline]
    pub(crate) const fn id(&self) -> u32 {
        self.index.id()
    }

    #[inline]
    pub(crate) const fn decide(&mut self, verdict: Verdict) {
        (self.state, self.verdict) = (State::Decided, verdict);
    }

    /// The packet is answered, or no longer this batch's task.
    #[inline]
    pub(crate) const fn clear(&mut self) {
        self.state = State::Empty;
    }

    /// Takes the packet out, with all that was done to it; the slot is empty afterwards.
    pub(crate) fn take(&mut self) -> Self {
        let changes = if self.is_changed { self.changes.take() } else { None };
        let Self { verdict, index, .. } = *self;
        let is_changed = mem::take(&mut self.is_changed);
        self.clear();
        Self { state: State::Empty, is_changed, verdict, index, changes }
    }

    /// The answer that the commit sends; `at` says where the slot is. An undecided packet gets
    /// `on_undecided` and nothing else: half made changes stay here.
    #[inline]
    pub(crate) fn answer(&self, at: usize, on_undecided: Verdict) -> Option<Answer<'_>> {
        let answer = if self.state == State::Decided {
            self.decided(self.verdict)
        } else if self.is_pending() {
            Answer::plain(self.queue(), self.id(), on_undecided)
        } else {
            return None;
        };
        Some(Answer { slot: at, ..answer })
    }

    /// The answer that carries what was done to the packet.
    #[inline]
    pub(crate) fn decided(&self, verdict: Verdict) -> Answer<'_> {
        Answer { changes: self.changes(), ..Answer::plain(self.queue(), self.id(), verdict) }
    }
}

/// Editing.
impl Slot {
    /// The payload in `buffer`, from now on to be sent back.
    pub(crate) fn payload_mut<'b>(
        &mut self,
        buffer: &'b mut [u8],
        binding: &Binding,
    ) -> Result<&'b mut [u8], EditError> {
        let terms = self.edit_terms(binding);
        let edit = Edit::in_place(self.edit(), &self.index.view(buffer), terms)?;
        self.changes_mut().edit = Some(edit);
        Ok(buffer.get_mut(edit.range()).unwrap_or_default())
    }

    /// Where in a buffer of `room` bytes another payload can lie. Nothing is changed yet.
    pub(crate) fn place_payload(
        &self,
        buffer: &[u8],
        room: usize,
        payload: &[u8],
        binding: &Binding,
    ) -> Result<Edit, EditError> {
        let terms = self.edit_terms(binding);
        Edit::replacement(self.edit(), &self.index.view(buffer), room, payload, terms)
    }

    /// Completes an edited packet that is about to get its verdict, as its mode says.
    pub(crate) fn finish_edit(&mut self, buffer: &mut [u8], verdict: Verdict, binding: &Binding) {
        if self.edit().is_none()
            || verdict == Verdict::Drop
            || self.edit_terms(binding).mode == EditMode::Raw
        {
            return;
        }
        self.complete(buffer);
        if let Some(edit) = &mut self.changes_mut().edit
            && edit.is_news()
        {
            binding.counters().incomplete_edit();
        }
    }

    /// Sets lengths and checksums of an edited packet, if that has not been done since it was last
    /// touched.
    pub(crate) fn complete(&mut self, buffer: &mut [u8]) -> Option<Completion> {
        let ethertype = self.index.view(buffer).hw_protocol();
        // Asked first, so that a packet without changes keeps none.
        self.edit()?;
        self.changes_mut().edit.as_mut()?.complete(ethertype, buffer)
    }

    fn edit_terms(&self, binding: &Binding) -> EditTerms {
        let own = self.changes().and_then(|changes| changes.edit_mode);
        let mode = own.unwrap_or(binding.terms().edit_mode);
        EditTerms { mode, max: binding.payload_max() }
    }
}

/// What a datagram is.
pub(crate) fn classify(datagram: &[u8], received: Received) -> Content<'_> {
    if received.arrival == Arrival::Foreign {
        return Content::Foreign;
    }
    let truncated = received.arrival == Arrival::Truncated;
    if let Ok(message) = Message::parse(datagram)
        && !truncated
    {
        match message.kind() {
            NFQNL_MSG_PACKET => {
                if let Ok(packet) = PacketIndex::of(message) {
                    return Content::Packet(packet);
                }
            }
            NLMSG_ERROR => return Ack::parse(message).map_or(Content::Unknown, Content::Ack),
            _ => return Content::Unknown,
        }
    }
    match PacketIndex::salvage(datagram) {
        Some(packet) => Content::Unreadable { packet, truncated },
        None => Content::Unknown,
    }
}
