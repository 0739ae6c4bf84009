//! Edits of a packet's bytes: where they lie in the buffer, which can be sent back, and how they are
//! completed.

use std::ops::Range;

use netfilterqueue_protocol::packet::{PacketMessage, SkbInfo};
use netfilterqueue_protocol::verdict::Verdict;

use crate::binding::Binding;
use crate::checksum::{self, Completion};
use crate::error::EditError;
use crate::ip::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Headers, Protocol};
use crate::slot::Slot;

/// How edited packets leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum EditMode {
    /// With the lengths and checksums that belong to them, as [`checksum::complete`](crate::checksum)
    /// makes them.
    #[default]
    Complete,
    /// Byte for byte as written: for those who want broken packets, or complete them themselves.
    Raw,
}

/// Where in the buffer the edited payload lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edit {
    pub(crate) start: usize,
    pub(crate) len: usize,
    /// The shortest payload that the kernel can take: up to the original packet's transport header.
    pub(crate) min: usize,
    /// Bytes behind the end of the IP packet: short frames in a bridge are filled up.
    padding: usize,
    /// What completing it has come to, since it was last touched.
    completion: Option<Completion>,
    /// Whether the statistics know: a verdict that fails is given again.
    is_counted: bool,
}

impl Edit {
    /// The original payload, if it is the whole packet and can be sent back.
    fn of_whole(message: &PacketMessage<'_>, terms: EditTerms) -> Result<Self, EditError> {
        let range = message.index().payload_range().filter(|range| !range.is_empty());
        let range = range.ok_or(EditError::NotCopied)?;
        if let Some(full) = message.cap_len() {
            return Err(EditError::Truncated { copied: range.len(), full });
        }
        let payload = message.payload();
        if terms.mode == EditMode::Complete && is_super_packet(message, Protocol::UDP) {
            return Err(EditError::UdpSuperPacket);
        }
        Ok(Self {
            start: range.start,
            len: range.len(),
            min: ip::transport_offset(message.hw_protocol(), payload),
            padding: ip::padding(payload),
            completion: None,
            is_counted: false,
        })
    }

    /// For tests.
    #[cfg(test)]
    pub(crate) const fn at(range: Range<usize>) -> Self {
        let len = range.end - range.start;
        Self { start: range.start, len, min: 0, padding: 0, completion: None, is_counted: false }
    }

    pub(crate) const fn range(self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// What edits of a packet are bound by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EditTerms {
    mode: EditMode,
    /// The longest payload that can be sent back.
    max: usize,
}

/// Once it is edited, the kernel forgets where the checksum of a super-packet is to go. For TCP it starts
/// anew, for UDP it does not.
fn is_super_packet(message: &PacketMessage<'_>, protocol: Protocol) -> bool {
    message.skb_info().is_some_and(SkbInfo::is_gso)
        && Headers::read(message.payload()).is_ok_and(|headers| headers.protocol == protocol)
}

/// Whether a payload of `len` bytes can be sent back.
const fn check_len(len: usize, min: usize, max: usize) -> Result<(), EditError> {
    match len {
        0 => Err(EditError::Empty),
        _ if len < min => Err(EditError::TooShort { len, min }),
        _ if len > max => Err(EditError::TooLong { len, max }),
        _ => Ok(()),
    }
}

impl Slot {
    /// What edits of this packet are bound by.
    pub(crate) fn edit_terms(&self, binding: &Binding) -> EditTerms {
        let mode = self.edit_mode.unwrap_or(binding.terms().edit_mode);
        EditTerms { mode, max: binding.payload_max() }
    }

    /// The payload in `buffer`, from now on to be sent back.
    pub(crate) fn payload_mut<'b>(
        &mut self,
        buffer: &'b mut [u8],
        terms: EditTerms,
    ) -> Result<&'b mut [u8], EditError> {
        let edit = match self.edit {
            Some(edit) => Edit { completion: None, ..edit },
            None => Edit::of_whole(&self.index.view(buffer), terms)?,
        };
        check_len(edit.len, 0, terms.max)?;
        self.edit = Some(edit);
        Ok(buffer.get_mut(edit.range()).unwrap_or_default())
    }

    /// Where in a buffer of `room` bytes a new payload can lie. Nothing is changed yet.
    pub(crate) fn place_payload(
        &self,
        buffer: &[u8],
        room: usize,
        payload: &[u8],
        terms: EditTerms,
    ) -> Result<Edit, EditError> {
        let message = self.index.view(buffer);
        let len = payload.len();
        let edit = match self.edit {
            Some(edit) => edit,
            None => Edit::of_whole(&message, terms)?,
        };
        check_len(len, edit.min, terms.max)?;
        let original = self.index.payload_range().unwrap_or_default();
        if terms.mode == EditMode::Complete
            && len < original.len()
            && is_super_packet(&message, Protocol::TCP)
        {
            return Err(EditError::ShorterSuperPacket);
        }
        // The kernel puts the payload last. Should it ever not be, the new one must not overwrite the
        // attributes behind the old one.
        let message_len = self.index.message_len();
        let start = if original.end == message_len { original.start } else { message_len };
        let fits = room.saturating_sub(start);
        if len > fits {
            return Err(EditError::TooLong { len, max: terms.max.min(fits) });
        }
        // A frame of the same length may be filled up as before. Who hands in another length has seen the
        // filling and decided about it.
        let padding = if len == original.len() { ip::padding(payload) } else { 0 };
        Ok(Edit { start, len, padding, completion: None, ..edit })
    }

    /// Completes an edited packet that is about to get its verdict, as its mode says.
    pub(crate) fn finish_edit(&mut self, buffer: &mut [u8], verdict: Verdict, binding: &Binding) {
        let mode = self.edit_terms(binding).mode;
        if self.edit.is_none() || mode == EditMode::Raw || verdict == Verdict::Drop {
            return;
        }
        let Some(completion) = self.complete(buffer) else { return };
        let is_counted =
            self.edit.as_mut().is_none_or(|edit| std::mem::replace(&mut edit.is_counted, true));
        if completion != Completion::Everything && !is_counted {
            binding.counters().incomplete_edit();
        }
    }

    /// Sets lengths and checksums of an edited packet, if that has not been done since it was last touched.
    pub(crate) fn complete(&mut self, buffer: &mut [u8]) -> Option<Completion> {
        let ethertype = self.index.view(buffer).hw_protocol();
        let is_ip = matches!(ethertype, ETHERTYPE_IPV4 | ETHERTYPE_IPV6);
        let edit = self.edit.as_mut()?;
        if edit.completion.is_none() && is_ip {
            let payload = buffer.get_mut(edit.range()).unwrap_or_default();
            let len = payload.len().saturating_sub(edit.padding);
            edit.completion = Some(checksum::complete(&mut payload[..len]));
        }
        edit.completion
    }
}
