//! The walk over a packet message, once per packet, and what it remembers.

use byteorder::{BigEndian, ByteOrder, NativeEndian};

use super::PacketMessage;
use crate::attribute::{HEADER_LEN, HEADER_LEN_U16, align};
use crate::constants::*;
use crate::error::ParseError;
use crate::message::{ATTRIBUTES_OFFSET, Message, NLMSG_HEADER_LEN, Nfgenmsg};

/// Numbers below this have a bit of their own in [`PacketIndex::present`].
const INDEXED: usize = 31;

/// Length, header included, of `NFQA_PACKET_HDR`: packet id, link protocol, hook.
const PACKET_HDR_LEN: u16 = HEADER_LEN_U16 + 4 + 2 + 1;

/// Length of what the kernel starts every message with: both headers and `NFQA_PACKET_HDR`, padded.
const FRONT_LEN: usize = ATTRIBUTES_OFFSET + align(PACKET_HDR_LEN as usize);

/// Length, header included, of an attribute whose value is a u32.
const NUMBER_LEN: u16 = HEADER_LEN_U16 + 4;

/// The attributes, as bits, whose value is a u32.
const NUMBERS: u32 = 1 << NFQA_MARK
    | 1 << NFQA_IFINDEX_INDEV
    | 1 << NFQA_IFINDEX_OUTDEV
    | 1 << NFQA_IFINDEX_PHYSINDEV
    | 1 << NFQA_IFINDEX_PHYSOUTDEV
    | 1 << NFQA_CT_INFO
    | 1 << NFQA_CAP_LEN
    | 1 << NFQA_SKB_INFO
    | 1 << NFQA_UID
    | 1 << NFQA_GID
    | 1 << NFQA_PRIORITY
    | 1 << NFQA_CGROUP_CLASSID;

/// Shortest length, header included, that the kernel's type of each attribute allows, by number.
const MIN_LEN: [u16; INDEXED + 1] = {
    let mut min = [HEADER_LEN_U16; INDEXED + 1];
    let mut kind = 0;
    while kind < INDEXED {
        if NUMBERS & 1 << kind != 0 {
            min[kind] = NUMBER_LEN;
        }
        kind += 1;
    }
    min[NFQA_PACKET_HDR as usize] = PACKET_HDR_LEN;
    min[NFQA_VERDICT_HDR as usize] += 8;
    min[NFQA_TIMESTAMP as usize] += 16;
    min[NFQA_HWADDR as usize] += 12;
    min
};

/// What one walk over a packet message found: enough to make a [`PacketMessage`] of the same bytes
/// again without another walk.
///
/// Plain data for buffers that are reused: 28 bytes, no borrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PacketIndex {
    pub(super) id: u32,
    message_len: u32,
    payload_offset: u32,
    payload_len: u32,
    /// Bit per attribute number; the last one is for all higher numbers.
    present: u32,
    pub(super) queue: u16,
    pub(super) hw_protocol: u16,
    pub(super) hook: u8,
    pub(super) family: u8,
}

impl PacketIndex {
    /// Walks and checks the message at the start of `bytes`.
    ///
    /// # Errors
    ///
    /// [`ParseError`] says what is malformed and where. [`PacketIndex::salvage`] may still find out
    /// which packet it was about.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut index = Self::default();
        index.parse_into(bytes)?;
        Ok(index)
    }

    /// Walks and checks a message whose header has been read.
    ///
    /// # Errors
    ///
    /// As [`PacketIndex::parse`].
    #[inline]
    pub fn of(message: Message<'_>) -> Result<Self, ParseError> {
        let mut index = Self::default();
        index.fill(message)?;
        Ok(index)
    }

    /// As [`PacketIndex::parse`], in place, for an index that is used again and again. After an
    /// error, what is in it means nothing.
    ///
    /// # Errors
    ///
    /// As [`PacketIndex::parse`].
    #[inline]
    pub fn parse_into(&mut self, bytes: &[u8]) -> Result<(), ParseError> {
        // Straight through what every message of the kernel's starts with.
        if let Some((length, _)) = bytes.split_first_chunk()
            && let Some(message) = bytes.get(..u32::from_ne_bytes(*length) as usize)
            && let Some((front, rest)) = message.split_first_chunk::<FRONT_LEN>()
            && let (headers, packet_hdr) = front.split_at(ATTRIBUTES_OFFSET)
            && NativeEndian::read_u16(&headers[4..6]) == NFQNL_MSG_PACKET
            && read_raw_header(packet_hdr) == (PACKET_HDR_LEN, NFQA_PACKET_HDR)
        {
            self.begin(message.len(), headers[16], BigEndian::read_u16(&headers[18..20]));
            self.note(NFQA_PACKET_HDR, packet_hdr, ATTRIBUTES_OFFSET);
            self.present = self.walk(message.len(), rest)? | 1 << NFQA_PACKET_HDR;
            return Ok(());
        }
        self.fill(Message::parse(bytes)?)
    }

    #[cold]
    fn fill(&mut self, message: Message<'_>) -> Result<(), ParseError> {
        if message.kind() != NFQNL_MSG_PACKET {
            return Err(ParseError::MessageType {
                expected: NFQNL_MSG_PACKET,
                found: message.kind(),
            });
        }
        let (nfgenmsg, _) = Nfgenmsg::parse(message.body())?;
        let bytes = message.bytes();
        self.begin(bytes.len(), nfgenmsg.family, nfgenmsg.res_id);
        let attributes = bytes.get(ATTRIBUTES_OFFSET..).unwrap_or_default();
        self.present = self.walk(bytes.len(), attributes)?;
        if self.has(NFQA_PACKET_HDR) {
            Ok(())
        } else {
            Err(ParseError::Missing { attribute: "NFQA_PACKET_HDR" })
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "a message's length is a u32")]
    #[inline(always)]
    const fn begin(&mut self, message_len: usize, family: u8, queue: u16) {
        self.message_len = message_len as u32;
        self.family = family;
        self.queue = queue;
        self.payload_offset = 0;
        self.payload_len = 0;
        self.present = 0;
    }

    /// Finds which of the attributes at the end of a message there are, and notes what stands in
    /// those that every packet has.
    ///
    /// Does what a loop over [`Attributes`] did for a third of the instructions (328 for a small
    /// packet then, 120 now), which is worth it once per packet: items that may be errors go
    /// through memory.
    #[inline(always)]
    fn walk(&mut self, message_len: usize, attributes: &[u8]) -> Result<u32, ParseError> {
        let mut present = 0;
        let mut rest = attributes;
        while rest.len() >= HEADER_LEN {
            // Most are numbers, and need nothing but their bit.
            while let Some((number, after)) = rest.split_first_chunk::<{ NUMBER_LEN as usize }>() {
                let (length, kind) = read_raw_header(number);
                let is_number = length == NUMBER_LEN
                    && usize::from(kind) <= INDEXED
                    && NUMBERS & 1 << kind != 0;
                if !is_number {
                    break;
                }
                present |= 1 << kind;
                rest = after;
            }
            if rest.len() < HEADER_LEN {
                break;
            }
            let offset = message_len - rest.len();
            let (length, raw_kind) = read_raw_header(rest);
            let (length, kind) = (usize::from(length), raw_kind & NLA_TYPE_MASK);
            // The payload comes last and is not padded.
            if raw_kind == NFQA_PAYLOAD && length == rest.len() {
                self.note(NFQA_PAYLOAD, rest, offset);
                return Ok(present | 1 << NFQA_PAYLOAD);
            }
            let at = usize::from(kind).min(INDEXED);
            let needed = usize::from(MIN_LEN[at]);
            let attribute = rest.get(..length).filter(|_| length >= needed);
            let Some(attribute) = attribute else { return Err(fault_at(offset, rest, needed)) };
            present |= 1 << at;
            self.note(kind, attribute, offset);
            rest = match rest.get(align(length)..) {
                Some(rest) => rest,
                None => break,
            };
        }
        Ok(present)
    }

    /// Takes in what stands in the attributes that every packet has. `offset` counts from the start
    /// of the message.
    #[inline(always)]
    fn note(&mut self, kind: u16, attribute: &[u8], offset: usize) {
        #[expect(clippy::cast_possible_truncation, reason = "a message's length is a u32")]
        if kind == NFQA_PAYLOAD {
            self.payload_offset = (offset + HEADER_LEN) as u32;
            self.payload_len = (attribute.len() - HEADER_LEN) as u32;
        } else if kind == NFQA_PACKET_HDR
            && let Some(header) = attribute.first_chunk::<{ PACKET_HDR_LEN as usize }>()
        {
            self.id = BigEndian::read_u32(&header[4..8]);
            self.hw_protocol = BigEndian::read_u16(&header[8..10]);
            self.hook = header[10];
        }
    }

    /// Queue number and packet id of a message that [`PacketIndex::parse`] refused, as far as they
    /// can be read: enough to give the packet a verdict, without which it stays in the kernel's
    /// queue for ever. Nothing else is in this index.
    ///
    /// `None` if the bytes do not start like a packet message or end before its first attribute.
    #[must_use]
    pub fn salvage(bytes: &[u8]) -> Option<Self> {
        let length = NativeEndian::read_u32(bytes.get(0..4)?) as usize;
        let kind = NativeEndian::read_u16(bytes.get(4..6)?);
        if kind != NFQNL_MSG_PACKET {
            return None;
        }
        // What follows the stated end is another message's.
        let message = bytes.get(..length).unwrap_or(bytes);
        let (nfgenmsg, attributes) = Nfgenmsg::parse(message.get(NLMSG_HEADER_LEN..)?).ok()?;
        let id = attributes.last_of(NFQA_PACKET_HDR)?.u32_be()?;
        Some(Self { id, queue: nfgenmsg.res_id, ..Self::default() })
    }

    /// Offset of the last attribute with this number in `bytes`, those that the index was made of.
    pub(super) fn offset_of(&self, kind: u16, bytes: &[u8]) -> Option<usize> {
        if !self.has(kind) {
            return None;
        }
        let mut found = None;
        let mut rest = bytes.get(ATTRIBUTES_OFFSET..)?;
        while rest.len() >= HEADER_LEN {
            let (length, raw_kind) = read_raw_header(rest);
            if raw_kind & NLA_TYPE_MASK == kind {
                found = Some(bytes.len() - rest.len());
            }
            // Bytes of another message than the index may say anything here.
            rest = match rest.get(align(length.max(HEADER_LEN_U16).into())..) {
                Some(rest) => rest,
                None => break,
            };
        }
        found
    }

    /// The view of `bytes`, which must be the ones this index was made from: with others the
    /// accessors return wrong values or `None`, but never panic.
    #[inline]
    #[must_use]
    pub fn view<'a>(&self, bytes: &'a [u8]) -> PacketMessage<'a> {
        let bytes = bytes.get(..self.message_len as usize).unwrap_or(bytes);
        PacketMessage { bytes, index: *self }
    }

    /// The packet id. Ids of a queue are consecutive from 1 and wrap at 2^32.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The queue number.
    #[must_use]
    pub const fn queue(&self) -> u16 {
        self.queue
    }

    /// Length of the whole message in bytes, without padding.
    #[must_use]
    pub const fn message_len(&self) -> usize {
        self.message_len as usize
    }

    /// Where the payload lies in the message, in bytes; `None` if the kernel sent none.
    #[must_use]
    pub const fn payload_range(&self) -> Option<std::ops::Range<usize>> {
        if !self.has(NFQA_PAYLOAD) {
            return None;
        }
        let start = self.payload_offset as usize;
        Some(start..start + self.payload_len as usize)
    }

    /// Whether the kernel copied less than the whole packet (`NFQA_CAP_LEN`).
    #[must_use]
    pub const fn is_truncated(&self) -> bool {
        self.has(NFQA_CAP_LEN)
    }

    /// Whether there may be an attribute with this number.
    pub(super) const fn has(&self, kind: u16) -> bool {
        let at = if kind as usize > INDEXED { INDEXED } else { kind as usize };
        self.present & (1 << at) != 0
    }
}

/// Length, header included, and number of an attribute; the number with its flags.
#[inline(always)]
fn read_raw_header(header: &[u8]) -> (u16, u16) {
    (NativeEndian::read_u16(&header[0..2]), NativeEndian::read_u16(&header[2..4]))
}

/// What is wrong with the first attribute of `rest`, at `offset` in its message: it is not
/// whole, or shorter than `needed`.
#[cold]
fn fault_at(offset: usize, rest: &[u8], needed: usize) -> ParseError {
    let (length, raw_kind) = read_raw_header(rest);
    let (length, kind) = (usize::from(length), raw_kind & NLA_TYPE_MASK);
    if length < HEADER_LEN || length > rest.len() {
        return ParseError::AttributeLength { kind, length, remaining: rest.len(), offset };
    }
    let needed = needed - HEADER_LEN;
    ParseError::ShortAttribute { kind, needed, had: length - HEADER_LEN, offset }
}
