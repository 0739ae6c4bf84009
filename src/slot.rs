//! Receive buffers, and what is known and decided about the packet in each.

use std::fmt;

use netfilterqueue_protocol::constants::{NFQNL_MSG_PACKET, NLMSG_ERROR};
use netfilterqueue_protocol::message::{Ack, Message};
use netfilterqueue_protocol::packet::PacketIndex;
use netfilterqueue_protocol::verdict::Verdict;

use crate::binding::Binding;
use crate::checksum::Completion;
use crate::edit::{Edit, EditMode, EditTerms};
use crate::error::EditError;
use crate::socket::Received;
use crate::verdicts::{Answer, Extras};

/// Room for the longest message: 65,531 bytes of payload and everything else (about 250 bytes with
/// a conntrack entry) with plenty to spare.
pub(crate) const WHOLE_PACKET_LEN: usize = 65_536 + 4_096;

/// Room for what must always be readable: a packet's id, and the kernel's answer to a request with
/// its explanation.
const BUFFER_LEN_MIN: usize = 256;

/// Distance between buffers beyond their length. Buffers a multiple of 4 KiB apart would all start
/// in the same few sets of the processor's caches; three lines more spread them over all sets.
const STRIDE_EXTRA: usize = 192;

/// What has been decided about the packet in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// There is no packet, it is answered, or its answer is somebody else's task.
    #[default]
    Empty,
    /// The packet waits for a decision.
    Undecided,
    /// The packet waits for the commit.
    Decided(Verdict),
    /// The packet cannot be shown to anyone and waits for the commit.
    Unreadable,
}

/// The packet in one buffer.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    state: State,
    /// Queue number and packet id; apart from the index because a message that cannot be parsed may
    /// still have them.
    queue: u16,
    id: u32,
    pub(crate) index: PacketIndex,
    pub(crate) mark: Option<u32>,
    pub(crate) priority: Option<u32>,
    pub(crate) edit: Option<Edit>,
    /// As the queue has it, if `None`.
    pub(crate) edit_mode: Option<EditMode>,
    /// Stays allocated from packet to packet.
    extras: Option<Box<Extras>>,
}

/// What a received datagram was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    /// A packet, ready to be judged.
    Packet { queue: u16, id: u32 },
    /// A packet message that was cut off or malformed, but whose packet can be answered: it gets
    /// the verdict of undecided packets.
    Unreadable { queue: u16, id: u32, truncated: bool },
    /// The kernel's answer to a request.
    Ack(Ack<'a>),
    /// Not from the kernel.
    Foreign,
    /// Nothing that can be understood or answered.
    Unknown,
}

impl Slot {
    /// Takes in a received datagram.
    pub(crate) fn load<'a>(&mut self, datagram: &'a [u8], received: Received) -> Content<'a> {
        let mut extras = self.extras.take();
        if let Some(extras) = &mut extras {
            **extras = Extras::default();
        }
        *self = Self { extras, ..Self::default() };
        let content = classify(datagram, received, &mut self.index);
        (self.state, self.queue, self.id) = match content {
            Content::Packet { queue, id } => (State::Undecided, queue, id),
            Content::Unreadable { queue, id, .. } => (State::Unreadable, queue, id),
            _ => (State::Empty, 0, 0),
        };
        content
    }

    /// Whether the packet can be handed to the caller.
    pub(crate) const fn is_undecided(&self) -> bool {
        matches!(self.state, State::Undecided)
    }

    /// Whether the packet is to be answered by the commit of its batch.
    pub(crate) const fn is_pending(&self) -> bool {
        !matches!(self.state, State::Empty)
    }

    /// The packet's queue number.
    pub(crate) const fn queue(&self) -> u16 {
        self.queue
    }

    /// The rarer changes, if there are any.
    pub(crate) fn extras(&self) -> Option<&Extras> {
        self.extras.as_deref().filter(|extras| !extras.is_empty())
    }

    pub(crate) fn extras_mut(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }

    pub(crate) const fn decide(&mut self, verdict: Verdict) {
        self.state = State::Decided(verdict);
    }

    /// The packet is answered, or no longer this batch's task.
    pub(crate) const fn clear(&mut self) {
        self.state = State::Empty;
    }

    /// Takes the packet out, with all that was done to it; the slot is empty afterwards.
    pub(crate) fn take(&mut self) -> Self {
        let taken = std::mem::take(self);
        Self { state: State::Empty, ..taken }
    }

    /// The answer that the commit sends; `at` says where the slot is. An undecided packet gets
    /// `on_undecided` and nothing else: half made changes stay here.
    pub(crate) fn answer(&self, at: usize, on_undecided: Verdict) -> Option<Answer<'_>> {
        match self.state {
            State::Empty => None,
            State::Undecided | State::Unreadable => {
                Some(Answer { slot: at, ..Answer::plain(self.queue, self.id, on_undecided) })
            }
            State::Decided(verdict) => Some(Answer { slot: at, ..self.decided(verdict) }),
        }
    }

    /// The answer that carries what was done to the packet; the bytes of a dropped one stay here.
    pub(crate) fn decided(&self, verdict: Verdict) -> Answer<'_> {
        let edit = self.edit.filter(|_| verdict != Verdict::Drop);
        Answer {
            mark: self.mark,
            priority: self.priority,
            extras: self.extras(),
            payload_len: edit.map(|edit| edit.len),
            ..Answer::plain(self.queue, self.id, verdict)
        }
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
        let edit = Edit::in_place(self.edit, &self.index.view(buffer), terms)?;
        self.edit = Some(edit);
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
        Edit::replacement(self.edit, &self.index.view(buffer), room, payload, terms)
    }

    /// Completes an edited packet that is about to get its verdict, as its mode says.
    pub(crate) fn finish_edit(&mut self, buffer: &mut [u8], verdict: Verdict, binding: &Binding) {
        if verdict == Verdict::Drop || self.edit_terms(binding).mode == EditMode::Raw {
            return;
        }
        self.complete(buffer);
        if self.edit.as_mut().is_some_and(Edit::is_news) {
            binding.counters().incomplete_edit();
        }
    }

    /// Sets lengths and checksums of an edited packet, if that has not been done since it was last
    /// touched.
    pub(crate) fn complete(&mut self, buffer: &mut [u8]) -> Option<Completion> {
        let edit = self.edit.as_mut()?;
        let ethertype = self.index.view(buffer).hw_protocol();
        edit.complete(ethertype, buffer)
    }

    fn edit_terms(&self, binding: &Binding) -> EditTerms {
        let mode = self.edit_mode.unwrap_or(binding.terms().edit_mode);
        EditTerms { mode, max: binding.payload_max() }
    }
}

/// What a datagram is, with `index` filled in for a packet.
pub(crate) fn classify<'a>(
    datagram: &'a [u8],
    received: Received,
    index: &mut PacketIndex,
) -> Content<'a> {
    if !received.from_kernel {
        return Content::Foreign;
    }
    if let Ok(message) = Message::parse(datagram)
        && !received.truncated
    {
        match message.kind() {
            NFQNL_MSG_PACKET => {
                if let Ok(parsed) = PacketIndex::of(message) {
                    *index = parsed;
                    return Content::Packet { queue: parsed.queue(), id: parsed.id() };
                }
            }
            NLMSG_ERROR => return Ack::parse(message).map_or(Content::Unknown, Content::Ack),
            _ => return Content::Unknown,
        }
    }
    match PacketIndex::salvage(datagram) {
        Some((queue, id)) => Content::Unreadable { queue, id, truncated: received.truncated },
        None => Content::Unknown,
    }
}

/// A row of buffers in one allocation, with a slot each.
pub(crate) struct Slots {
    slots: Box<[Slot]>,
    /// Allocated zeroed, so that the system gives each page only when a packet fills it.
    memory: Vec<u8>,
    stride: usize,
    buffer_len: usize,
}

impl Slots {
    pub(crate) fn new(count: usize, buffer_len: usize) -> Self {
        let count = count.max(1);
        let buffer_len = buffer_len.max(BUFFER_LEN_MIN);
        let stride = buffer_len.checked_next_multiple_of(64);
        let stride = stride.and_then(|stride| stride.checked_add(STRIDE_EXTRA));
        let stride = stride.expect("buffers longer than the address space");
        let total = stride.checked_mul(count).expect("more buffers than the address space holds");
        Self {
            slots: std::iter::repeat_with(Slot::default).take(count).collect(),
            memory: vec![0; total],
            stride,
            buffer_len,
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// The buffers from the one at `first` on.
    pub(crate) fn buffers_mut(&mut self, first: usize) -> impl Iterator<Item = &mut [u8]> {
        let buffer_len = self.buffer_len;
        let rest = self.memory.chunks_exact_mut(self.stride).skip(first);
        rest.map(move |chunk| &mut chunk[..buffer_len])
    }

    /// The edited payload of the packet in a slot; empty if it was not edited.
    pub(crate) fn edited(&self, at: usize) -> &[u8] {
        self.slots[at].edit.map_or(&[], |edit| &self.memory[at * self.stride..][edit.range()])
    }

    pub(crate) fn at(&self, at: usize) -> &Slot {
        &self.slots[at]
    }

    /// One slot with its buffer.
    pub(crate) fn at_mut(&mut self, at: usize) -> (&mut Slot, &mut [u8]) {
        (&mut self.slots[at], &mut self.memory[at * self.stride..][..self.buffer_len])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut()
    }

    /// Each slot with its buffer.
    pub(crate) fn pairs_mut(&mut self) -> Pairs<'_> {
        Pairs { slots: self.slots.iter_mut(), chunks: self.memory.chunks_exact_mut(self.stride) }
    }
}

impl fmt::Debug for Slots {
    /// Without the megabytes of memory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().filter(|slot| slot.is_pending())).finish()
    }
}

/// Iterates over slots with their buffers (padding included).
pub(crate) struct Pairs<'a> {
    slots: std::slice::IterMut<'a, Slot>,
    chunks: std::slice::ChunksExactMut<'a, u8>,
}

impl fmt::Debug for Pairs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pairs").finish_non_exhaustive()
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a mut Slot, &'a mut [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        Some((self.slots.next()?, self.chunks.next()?))
    }
}
