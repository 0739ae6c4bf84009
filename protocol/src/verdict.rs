//! `NFQNL_MSG_VERDICT` and `NFQNL_MSG_VERDICT_BATCH`: what becomes of queued packets.
//!
//! The messages are appended to a buffer of the caller's, any number one after another: the kernel
//! works through all messages of a datagram. Each starts at a multiple of four bytes from the start
//! of the first.
//!
//! The kernel does not look at the sequence number and the port id in the netlink header of a
//! verdict, and repeats both when it refuses one. The encoders therefore write the packet id and
//! the queue number there: a refusal names its packet even when the request itself is not echoed.

use std::fmt;

use byteorder::{BigEndian, ByteOrder};

use crate::attribute::{self, Attribute, HEADER_LEN, MAX_VALUE_LEN};
use crate::conntrack::ConntrackChange;
use crate::constants::*;
use crate::error::{EncodeError, ParseError};
use crate::message::{ATTRIBUTES_OFFSET, Header, Message, Nfgenmsg, state_length};
use crate::packet::Vlan;

/// What becomes of a packet: all that the kernel has, so none will be added.
///
/// There is no `NF_STOLEN`: the kernel refuses it from userspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "all that the kernel has")]
pub enum Verdict {
    /// The packet goes on with the next hook (`NF_ACCEPT`).
    Accept,
    /// The packet is freed (`NF_DROP`). A local sender gets no error.
    Drop,
    /// The same hook runs once more (`NF_REPEAT`): without a mark that a rule tests for, the packet
    /// comes back with a new id. Acts as [`Verdict::Accept`] on 6.7.
    Repeat,
    /// The packet is accepted and skips what remains of this hook point (`NF_STOP`).
    Stop,
    /// The packet goes to another queue and gets a new id there (`NF_QUEUE`).
    Queue {
        /// The other queue's number.
        number: u16,
        /// Where nobody listens on that queue: `true` lets the packet go on with the next hook,
        /// `false` drops it.
        bypass: bool,
    },
}

/// As nft names it: `accept`, `queue to 3 bypass`.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Repeat => f.write_str("repeat"),
            Self::Stop => f.write_str("stop"),
            Self::Queue { number, bypass: false } => write!(f, "queue to {number}"),
            Self::Queue { number, bypass: true } => write!(f, "queue to {number} bypass"),
        }
    }
}

impl Verdict {
    /// The verdict word, exactly: `NF_ACCEPT` with any higher bit set would act as `NF_STOP`.
    #[must_use]
    pub const fn to_word(self) -> u32 {
        match self {
            Self::Accept => NF_ACCEPT,
            Self::Drop => NF_DROP,
            Self::Repeat => NF_REPEAT,
            Self::Stop => NF_STOP,
            Self::Queue { number, bypass } => {
                let flag = if bypass { NF_VERDICT_FLAG_QUEUE_BYPASS } else { 0 };
                NF_QUEUE | flag | (number as u32) << 16
            }
        }
    }

    /// The verdict of a word that [`Verdict::to_word`] made.
    ///
    /// # Errors
    ///
    /// [`ParseError::Value`] for any other word.
    pub const fn from_word(word: u32) -> Result<Self, ParseError> {
        let verdict = match word {
            NF_ACCEPT => Self::Accept,
            NF_DROP => Self::Drop,
            NF_REPEAT => Self::Repeat,
            NF_STOP => Self::Stop,
            _ => Self::Queue {
                number: (word >> 16) as u16,
                bypass: word & NF_VERDICT_FLAG_QUEUE_BYPASS != 0,
            },
        };
        if verdict.to_word() != word {
            return Err(ParseError::Value { what: "verdict", value: word });
        }
        Ok(verdict)
    }
}

/// The verdict on one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "filled in with `..`; a new attribute of the kernel's makes a new minor version"
)]
pub struct VerdictMessage<'a> {
    /// The queue number.
    pub queue: u16,
    /// The packet id.
    pub id: u32,
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// New mark. The kernel sets it whatever the verdict.
    pub mark: Option<u32>,
    /// New priority. Kernels before 5.18 ignore it.
    pub priority: Option<u32>,
    /// New VLAN tag of a bridged frame; ignored in other families. Since 4.7.
    pub vlan: Option<Vlan>,
    /// New link-layer header of a bridged frame, exactly as long as the present one; ignored in
    /// other families. Since 4.7.
    pub l2_header: Option<&'a [u8]>,
    /// What to change on the packet's conntrack entry. Since 3.6.
    pub conntrack: Option<ConntrackChange>,
    /// A flow to expect because of the packet's: nested `CTA_EXPECT_*` attributes, as bytes. The
    /// kernel looks at it only where `conntrack` is there too and was not refused, and tells nobody
    /// if it refuses this. Since 3.12.
    pub expectation: Option<&'a [u8]>,
    /// New bytes of the packet from its network header on, 1 to 65,531. The kernel corrects no
    /// length and no checksum.
    pub payload: Option<&'a [u8]>,
}

impl<'a> VerdictMessage<'a> {
    /// A verdict that changes nothing on the packet.
    #[must_use]
    pub const fn new(queue: u16, id: u32, verdict: Verdict) -> Self {
        Self {
            queue,
            id,
            verdict,
            mark: None,
            priority: None,
            vlan: None,
            l2_header: None,
            conntrack: None,
            expectation: None,
            payload: None,
        }
    }

    /// Appends the message, padded to four bytes. On an error nothing is appended.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] if the payload is empty (the kernel would drop the packet) or a value does
    /// not fit in an attribute.
    pub fn push(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let payload = self.payload.unwrap_or_default();
        self.push_head(out, self.payload.map(<[u8]>::len))?;
        out.extend_from_slice(payload);
        attribute::pad(out, payload.len());
        Ok(())
    }

    /// Appends all of the message but the payload's bytes, for a gathered send: `payload_len` bytes
    /// from elsewhere must follow, then padding to four bytes ([`attribute::pad`]). `self.payload`
    /// is not looked at. On an error nothing is appended.
    ///
    /// # Errors
    ///
    /// As [`VerdictMessage::push`].
    #[inline(always)]
    pub fn push_head(
        &self,
        out: &mut Vec<u8>,
        payload_len: Option<usize>,
    ) -> Result<(), EncodeError> {
        check_payload_len(payload_len)?;
        check_value("NFQA_L2HDR", self.l2_header)?;
        check_value("NFQA_EXP", self.expectation)?;
        let start = out.len();
        let Self { queue, id, verdict, mark, priority, .. } = *self;
        push_common(out, NFQNL_MSG_VERDICT, queue, id, verdict, mark, priority);
        if self.is_rare() {
            self.push_rare(out);
        }
        if let Some(len) = payload_len {
            attribute::push_header(out, NFQA_PAYLOAD, len);
        }
        state_length(out, start, payload_len.unwrap_or(0));
        Ok(())
    }

    /// Whether there are attributes that few verdicts have.
    #[inline]
    const fn is_rare(&self) -> bool {
        self.vlan.is_some()
            || self.l2_header.is_some()
            || self.conntrack.is_some()
            || self.expectation.is_some()
    }

    #[cold]
    fn push_rare(&self, out: &mut Vec<u8>) {
        if let Some(vlan) = self.vlan {
            attribute::push_nested(out, NFQA_VLAN, |out| {
                attribute::push_u16_be(out, NFQA_VLAN_TCI, vlan.tci);
                attribute::push_u16_be(out, NFQA_VLAN_PROTO, vlan.proto);
            });
        }
        if let Some(l2_header) = self.l2_header {
            attribute::push(out, NFQA_L2HDR, l2_header);
        }
        if let Some(conntrack) = self.conntrack {
            conntrack.push(out);
        }
        if let Some(expectation) = self.expectation {
            attribute::push(out, NFQA_EXP | NLA_F_NESTED, expectation);
        }
    }

    /// Reads a verdict message. Stricter than the kernel, which takes what stands before a
    /// malformed attribute; attributes without a field here are left out.
    ///
    /// # Errors
    ///
    /// [`ParseError`] says what is malformed and where.
    pub fn parse(message: Message<'a>) -> Result<Self, ParseError> {
        let fields = Fields::parse(message, NFQNL_MSG_VERDICT)?;
        Ok(Self {
            queue: fields.queue,
            id: fields.id,
            verdict: fields.verdict,
            mark: fields.mark,
            priority: fields.priority,
            vlan: fields.vlan.map(read_vlan).transpose()?,
            l2_header: fields.l2_header,
            conntrack: fields
                .conntrack
                .map(|tree| ConntrackChange::parse(tree.nested()))
                .transpose()?,
            expectation: fields.expectation,
            payload: fields.payload,
        })
    }
}

/// One verdict on every packet of the queue whose id is at or before `last_id`, by signed distance.
///
/// It applies to packets that were received and not yet answered, and to those that wait unread in
/// the socket. Since 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "filled in with `..`; a new attribute of the kernel's makes a new minor version"
)]
pub struct VerdictBatchMessage {
    /// The queue number.
    pub queue: u16,
    /// The highest packet id that is meant; it need not exist.
    pub last_id: u32,
    /// What becomes of the packets.
    pub verdict: Verdict,
    /// New mark of each packet.
    pub mark: Option<u32>,
    /// New priority of each packet. Kernels before 5.18 ignore it.
    pub priority: Option<u32>,
}

impl VerdictBatchMessage {
    /// Appends the message.
    #[inline]
    pub fn push(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let Self { queue, last_id, verdict, mark, priority } = *self;
        push_common(out, NFQNL_MSG_VERDICT_BATCH, queue, last_id, verdict, mark, priority);
        state_length(out, start, 0);
    }

    /// Reads a batch verdict message. Attributes that the kernel ignores in it are ignored here.
    ///
    /// # Errors
    ///
    /// [`ParseError`] says what is malformed and where.
    pub fn parse(message: Message<'_>) -> Result<Self, ParseError> {
        let fields = Fields::parse(message, NFQNL_MSG_VERDICT_BATCH)?;
        Ok(Self {
            queue: fields.queue,
            last_id: fields.id,
            verdict: fields.verdict,
            mark: fields.mark,
            priority: fields.priority,
        })
    }
}

/// Appends what both messages have in common, without the message's length.
#[inline(always)]
fn push_common(
    out: &mut Vec<u8>,
    kind: u16,
    queue: u16,
    id: u32,
    verdict: Verdict,
    mark: Option<u32>,
    priority: Option<u32>,
) {
    let header = Header {
        kind,
        flags: NLM_F_REQUEST,
        sequence: id,
        port: u32::from(queue),
        nfgenmsg: Nfgenmsg::new(queue),
    };
    // Both headers and the attribute that every verdict has, in one piece.
    let mut head = [0; ATTRIBUTES_OFFSET + HEADER_LEN + 8];
    if let Some((headers, attribute)) = head.split_first_chunk_mut() {
        header.write(headers);
        attribute::write_header(attribute, NFQA_VERDICT_HDR, 8);
        BigEndian::write_u32(&mut attribute[4..8], verdict.to_word());
        BigEndian::write_u32(&mut attribute[8..12], id);
    }
    out.extend_from_slice(&head);
    if let Some(mark) = mark {
        attribute::push_u32_be(out, NFQA_MARK, mark);
    }
    if let Some(priority) = priority {
        attribute::push_u32_be(out, NFQA_PRIORITY, priority);
    }
}

fn check_payload_len(len: Option<usize>) -> Result<(), EncodeError> {
    match len {
        Some(0) => Err(EncodeError::EmptyPayload),
        Some(len) if len > MAX_VALUE_LEN => {
            Err(EncodeError::TooLong { attribute: "NFQA_PAYLOAD", len, max: MAX_VALUE_LEN })
        }
        _ => Ok(()),
    }
}

fn check_value(attribute: &'static str, value: Option<&[u8]>) -> Result<(), EncodeError> {
    match value {
        Some(value) if value.len() > MAX_VALUE_LEN => {
            Err(EncodeError::TooLong { attribute, len: value.len(), max: MAX_VALUE_LEN })
        }
        _ => Ok(()),
    }
}

/// What both verdict messages can hold.
struct Fields<'a> {
    queue: u16,
    id: u32,
    verdict: Verdict,
    mark: Option<u32>,
    priority: Option<u32>,
    /// Not read yet: a batch ignores it.
    vlan: Option<Attribute<'a>>,
    l2_header: Option<&'a [u8]>,
    /// Not read yet: a batch ignores it.
    conntrack: Option<Attribute<'a>>,
    expectation: Option<&'a [u8]>,
    payload: Option<&'a [u8]>,
}

/// Both halves of a tag, which the kernel wants.
fn read_vlan(nest: Attribute<'_>) -> Result<Vlan, ParseError> {
    let (mut proto, mut tci) = (None, None);
    for attribute in nest.nested() {
        let attribute = attribute?;
        match attribute.kind() {
            NFQA_VLAN_PROTO => {
                attribute.require(2)?;
                proto = attribute.u16_be();
            }
            NFQA_VLAN_TCI => {
                attribute.require(2)?;
                tci = attribute.u16_be();
            }
            _ => {}
        }
    }
    Ok(Vlan {
        proto: proto.ok_or(ParseError::Missing { attribute: "NFQA_VLAN_PROTO" })?,
        tci: tci.ok_or(ParseError::Missing { attribute: "NFQA_VLAN_TCI" })?,
    })
}

impl<'a> Fields<'a> {
    fn parse(message: Message<'a>, expected: u16) -> Result<Self, ParseError> {
        if message.kind() != expected {
            return Err(ParseError::MessageType { expected, found: message.kind() });
        }
        let (nfgenmsg, attributes) = Nfgenmsg::parse(message.body())?;
        let mut verdict_hdr = None;
        let mut fields = Self {
            queue: nfgenmsg.res_id,
            id: 0,
            verdict: Verdict::Drop,
            mark: None,
            priority: None,
            vlan: None,
            l2_header: None,
            conntrack: None,
            expectation: None,
            payload: None,
        };
        for attribute in attributes {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                NFQA_VERDICT_HDR => {
                    attribute.require(8)?;
                    verdict_hdr = Some(value);
                }
                NFQA_MARK => {
                    attribute.require(4)?;
                    fields.mark = attribute.u32_be();
                }
                NFQA_PRIORITY => {
                    attribute.require(4)?;
                    fields.priority = attribute.u32_be();
                }
                NFQA_VLAN => fields.vlan = Some(attribute),
                NFQA_L2HDR => fields.l2_header = Some(value),
                NFQA_CT => fields.conntrack = Some(attribute),
                NFQA_EXP => fields.expectation = Some(value),
                NFQA_PAYLOAD => fields.payload = Some(value),
                _ => {}
            }
        }
        let verdict_hdr =
            verdict_hdr.ok_or(ParseError::Missing { attribute: "NFQA_VERDICT_HDR" })?;
        fields.verdict = Verdict::from_word(BigEndian::read_u32(&verdict_hdr[0..4]))?;
        fields.id = BigEndian::read_u32(&verdict_hdr[4..8]);
        Ok(fields)
    }
}
