//! Edits of a packet's bytes: where they lie in the buffer, which can be sent back, and how they
//! are completed.

use std::ops::Range;

use netfilterqueue_protocol::packet::{PacketMessage, SkbInfo};

use crate::checksum::{self, Completion};
use crate::error::EditError;
use crate::hook::Family;
use crate::ip::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Headers, Protocol};

/// How edited packets leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum EditMode {
    /// With the lengths and checksums that belong to them, as
    /// [`checksum::complete`](crate::checksum) makes them.
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
    /// Of the packet's bytes where they are: those of an earlier edit, or the original ones.
    pub(crate) fn in_place(
        earlier: Option<Self>,
        message: &PacketMessage<'_>,
        terms: EditTerms,
    ) -> Result<Self, EditError> {
        let edit = match earlier {
            Some(edit) => Self { completion: None, ..edit },
            None => Self::of_whole(message, terms)?,
        };
        check_len(edit.len, 0, terms.max)?;
        Ok(edit)
    }

    /// Where in a buffer of `room` bytes another payload can lie. Nothing is copied yet.
    pub(crate) fn replacement(
        earlier: Option<Self>,
        message: &PacketMessage<'_>,
        room: usize,
        payload: &[u8],
        terms: EditTerms,
    ) -> Result<Self, EditError> {
        let len = payload.len();
        let edit = match earlier {
            Some(edit) => edit,
            None => Self::of_whole(message, terms)?,
        };
        check_len(len, edit.min, terms.max)?;
        let original = message.index().payload_range().unwrap_or_default();
        if terms.mode == EditMode::Complete
            && len < original.len()
            && message.skb_info().is_some_and(SkbInfo::is_gso)
        {
            return Err(EditError::ShorterSuperPacket);
        }
        // The kernel puts the payload last. Should it ever not be, the new one must not overwrite
        // the attributes behind the old one.
        let message_len = message.index().message_len();
        let start = if original.end == message_len { original.start } else { message_len };
        let fits = room.saturating_sub(start);
        if len > fits {
            return Err(EditError::TooLong { len, max: terms.max.min(fits) });
        }
        // A frame of the same length may be filled up as before. Who hands in another length has
        // seen the filling and decided about it.
        let padding = if len == original.len() { padding(message, payload) } else { 0 };
        Ok(Self { start, len, padding, completion: None, ..edit })
    }

    /// The original payload, if it is the whole packet and can be sent back.
    fn of_whole(message: &PacketMessage<'_>, terms: EditTerms) -> Result<Self, EditError> {
        let range = message.index().payload_range().filter(|range| !range.is_empty());
        let range = range.ok_or(EditError::NotCopied)?;
        if let Some(full) = message.cap_len() {
            return Err(EditError::Truncated { copied: range.len(), full });
        }
        let payload = message.payload();
        let padding = padding(message, payload);
        if terms.mode == EditMode::Complete
            && let Some(info) = message.skb_info()
        {
            check_offloads(info, &payload[..payload.len() - padding])?;
        }
        Ok(Self {
            start: range.start,
            len: range.len(),
            min: ip::transport_offset(message.hw_protocol(), payload),
            padding,
            completion: None,
            is_counted: false,
        })
    }

    /// For tests.
    #[cfg(any(test, fuzzing))]
    pub(crate) const fn at(range: Range<usize>) -> Self {
        let len = range.end - range.start;
        Self { start: range.start, len, min: 0, padding: 0, completion: None, is_counted: false }
    }

    pub(crate) const fn range(self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Sets lengths and checksums, if that has not been done since the packet was last touched.
    /// `None` if it is not IP.
    pub(crate) fn complete(&mut self, ethertype: u16, buffer: &mut [u8]) -> Option<Completion> {
        let is_ip = matches!(ethertype, ETHERTYPE_IPV4 | ETHERTYPE_IPV6);
        if self.completion.is_none() && is_ip {
            let payload = buffer.get_mut(self.range()).unwrap_or_default();
            let len = payload.len().saturating_sub(self.padding);
            self.completion = Some(checksum::complete(&mut payload[..len]));
        }
        self.completion
    }

    /// Whether the statistics have to know of an edit that was completed only in part, for the
    /// first time.
    pub(crate) fn is_news(&mut self) -> bool {
        let is_whole = matches!(self.completion, None | Some(Completion::Everything));
        !is_whole && !std::mem::replace(&mut self.is_counted, true)
    }
}

/// What edits of a packet are bound by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EditTerms {
    pub(crate) mode: EditMode,
    /// The longest payload that can be sent back.
    pub(crate) max: usize,
}

/// Whether the kernel could still do after an edit what it has left for later.
fn check_offloads(info: SkbInfo, packet: &[u8]) -> Result<(), EditError> {
    if !info.is_gso() && !info.checksum_not_ready() {
        return Ok(());
    }
    let headers = Headers::read(packet).ok();
    // It forgets where the checksum of a super-packet is to go. For TCP it starts anew, for UDP it
    // does not.
    if info.is_gso() && headers.is_some_and(|headers| headers.protocol == Protocol::UDP) {
        return Err(EditError::UdpSuperPacket);
    }
    let is_finished = headers.is_some_and(|headers| checksum::finishes(&headers, packet));
    if info.checksum_not_ready() && !is_finished {
        return Err(EditError::UnfinishedChecksum);
    }
    Ok(())
}

/// Bytes of `payload` behind the end of the IP packet. Only frames in a bridge have them;
/// everywhere else the kernel has cut them off, and a stated length that does not fit is one that
/// is still to be set.
fn padding(message: &PacketMessage<'_>, payload: &[u8]) -> usize {
    if Family(message.family()) == Family::BRIDGE { ip::padding(payload) } else { 0 }
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
