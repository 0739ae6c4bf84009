//! A packet that is kept beyond its batch.

use std::fmt;
use std::sync::Arc;

use netfilterqueue_protocol::attribute::Attribute;
use netfilterqueue_protocol::conntrack::Conntrack;
use netfilterqueue_protocol::packet::{PacketIndex, PacketMessage, SkbInfo, Timestamp, Vlan};
use netfilterqueue_protocol::verdict::Verdict;

use crate::binding::Binding;
use crate::display;
use crate::error::{EditError, Error};
use crate::hook::{Family, Hook};
use crate::packet::{attribute_accessors, check_payload};
use crate::slot::{Edit, Slot};
use crate::verdicts::{Answer, Datagram, Form};

/// A packet that was taken out of its batch. Owned, `Send` and `Sync`; its verdict is sent at once.
///
/// Dropped without a verdict, it gets the queue's default verdict; leaked ([`std::mem::forget`]), it waits
/// until the queue is closed. While packets are retained, the queue
/// sends one verdict message per packet instead of one per run of packets.
pub struct RetainedPacket {
    binding: Arc<Binding>,
    index: PacketIndex,
    /// The kernel's message, exactly.
    message: Box<[u8]>,
    mark: Option<u32>,
    edit: RetainedEdit,
    /// As [`Edit::min`], once the packet is edited.
    min: Option<usize>,
    answered: bool,
}

/// Where the bytes that go back with a retained packet are.
enum RetainedEdit {
    None,
    /// In the message.
    InPlace(Edit),
    Replaced(Box<[u8]>),
}

impl RetainedPacket {
    /// Copies a packet out of `buffer`, with what was done to it so far.
    pub(crate) fn new(binding: Arc<Binding>, slot: &Slot, buffer: &[u8]) -> Self {
        let index = slot.index;
        let message: Box<[u8]> = index.view(buffer).bytes().into();
        let edit = match slot.edit {
            None => RetainedEdit::None,
            Some(edit) if edit.range().end <= message.len() => RetainedEdit::InPlace(edit),
            Some(edit) => RetainedEdit::Replaced(buffer[edit.range()].into()),
        };
        let (mark, min) = (slot.mark, slot.edit.map(|edit| edit.min));
        Self { binding, index, message, mark, edit, min, answered: false }
    }

    /// Accepts the packet, with its mark and edits: one `sendmsg`.
    ///
    /// # Errors
    ///
    /// As [`RetainedPacket::verdict`].
    #[expect(clippy::result_large_err, reason = "a failure gives the packet back")]
    pub fn accept(self) -> Result<(), NotSent> {
        self.verdict(Verdict::Accept)
    }

    /// Gives the packet a verdict, with its mark and edits: one `sendmsg`. The edits of a packet that is
    /// dropped are not sent.
    ///
    /// # Errors
    ///
    /// [`NotSent`] gives the packet back: [`Error::Closed`] if its queue is closed, [`Error::System`] if the
    /// kernel could not take the message now.
    #[expect(clippy::result_large_err, reason = "a failure gives the packet back")]
    pub fn verdict(mut self, verdict: Verdict) -> Result<(), NotSent> {
        match self.send(verdict, true) {
            Ok(()) => Ok(()),
            Err(error) => Err(NotSent { packet: self, error }),
        }
    }

    /// Sets the mark that the packet leaves with, whatever the verdict.
    pub const fn set_mark(&mut self, mark: u32) {
        self.mark = Some(mark);
    }

    /// As [`Packet::payload_mut`](crate::Packet::payload_mut).
    ///
    /// # Errors
    ///
    /// As [`Packet::payload_mut`](crate::Packet::payload_mut).
    pub fn payload_mut(&mut self) -> Result<&mut [u8], EditError> {
        if matches!(self.edit, RetainedEdit::None) {
            let edit = Edit::of_whole(&self.message(), self.binding.payload_max())?;
            (self.edit, self.min) = (RetainedEdit::InPlace(edit), Some(edit.min));
        }
        Ok(match &mut self.edit {
            RetainedEdit::Replaced(payload) => payload,
            RetainedEdit::InPlace(edit) => &mut self.message[edit.range()],
            RetainedEdit::None => &mut [],
        })
    }

    /// As [`Packet::set_payload`](crate::Packet::set_payload); allocates.
    ///
    /// # Errors
    ///
    /// As [`Packet::set_payload`](crate::Packet::set_payload).
    pub fn set_payload(&mut self, payload: &[u8]) -> Result<(), EditError> {
        let max = self.binding.payload_max();
        let min = match self.min {
            Some(min) => min,
            None => Edit::of_whole(&self.message(), max)?.min,
        };
        check_payload(payload.len(), min, max)?;
        (self.edit, self.min) = (RetainedEdit::Replaced(payload.into()), Some(min));
        Ok(())
    }

    /// As [`Packet::payload`](crate::Packet::payload).
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        match &self.edit {
            RetainedEdit::Replaced(payload) => payload,
            RetainedEdit::InPlace(edit) => &self.message[edit.range()],
            RetainedEdit::None => self.message().payload(),
        }
    }

    /// As [`Packet::mark`](crate::Packet::mark).
    #[must_use]
    pub fn mark(&self) -> Option<u32> {
        self.mark.or_else(|| self.message().mark())
    }

    /// As [`Packet::message`](crate::Packet::message).
    #[must_use]
    pub fn message(&self) -> PacketMessage<'_> {
        self.index.view(&self.message)
    }

    attribute_accessors!();

    const fn index(&self) -> &PacketIndex {
        &self.index
    }

    /// Sends the verdict; `decided` says whether mark and edits go with it.
    fn send(&mut self, verdict: Verdict, decided: bool) -> Result<(), Error> {
        let edited = match &self.edit {
            RetainedEdit::None => None,
            RetainedEdit::InPlace(_) | RetainedEdit::Replaced(_) => Some(self.payload()),
        };
        let edited = edited.filter(|_| decided && verdict != Verdict::Drop);
        let answer = Answer {
            id: self.id(),
            verdict,
            mark: self.mark.filter(|_| decided),
            payload_len: edited.map(<[u8]>::len),
            slot: 0,
        };
        let mut datagram = Datagram::default();
        datagram.fill(self.binding.queue(), [answer].into_iter(), Form::Exact, usize::MAX)?;
        self.binding.send(&datagram, |_| edited.unwrap_or_default())?;
        self.answered = true;
        Ok(())
    }
}

impl Drop for RetainedPacket {
    fn drop(&mut self) {
        if !self.answered {
            let verdict = self.binding.on_undecided();
            if self.send(verdict, false).is_err() {
                let answer =
                    Answer { id: self.id(), verdict, mark: None, payload_len: None, slot: 0 };
                self.binding.adopt(std::iter::once(answer));
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
        display::line(f, &self.message(), self.payload(), self.mark())
    }
}

/// The verdict on a retained packet could not be sent. Holds the packet, which can be judged again.
#[derive(Debug, thiserror::Error)]
#[error("the verdict on packet {} was not sent: {error}", packet.id())]
pub struct NotSent {
    /// The packet, as it was.
    pub packet: RetainedPacket,
    /// Why.
    #[source]
    pub error: Error,
}
