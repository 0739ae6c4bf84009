//! The two headers every message starts with, and a datagram's list of messages.
//!
//! ```text
//! struct nlmsghdr   16 bytes   length | type | flags | sequence | port id      host byte order
//! struct nfgenmsg    4 bytes   family | version | res_id                       res_id in network order
//! ```

use std::ops::Range;

use byteorder::{BigEndian, ByteOrder, NativeEndian};
#[cfg(feature = "interop")]
use netlink_packet_core::NetlinkHeader;

use crate::attribute::{Attributes, align};
use crate::constants::NFNETLINK_V0;
use crate::error::ParseError;

/// `sizeof(struct nlmsghdr)`.
pub const NLMSG_HEADER_LEN: usize = 16;
/// `sizeof(struct nfgenmsg)`.
pub const NFGENMSG_LEN: usize = 4;
/// Where the attributes of an nfnetlink message start.
pub const ATTRIBUTES_OFFSET: usize = NLMSG_HEADER_LEN + NFGENMSG_LEN;

pub(crate) const LENGTH: Range<usize> = 0..4;
pub(crate) const KIND: Range<usize> = 4..6;
const FLAGS: Range<usize> = 6..8;
pub(crate) const SEQUENCE: Range<usize> = 8..12;
pub(crate) const PORT: Range<usize> = 12..16;

const FAMILY: usize = 0;
const VERSION: usize = 1;
const RES_ID: Range<usize> = 2..4;

/// One netlink message, borrowed from the datagram it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    bytes: &'a [u8],
    kind: u16,
}

impl<'a> Message<'a> {
    /// Reads the message at the start of `bytes`; what follows its stated length is ignored.
    ///
    /// # Errors
    ///
    /// [`ParseError::Truncated`] if the header or the stated length does not fit in `bytes`.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let Some((header, _)) = bytes.split_first_chunk::<NLMSG_HEADER_LEN>() else {
            return Err(ParseError::Truncated {
                what: "struct nlmsghdr",
                needed: NLMSG_HEADER_LEN,
                had: bytes.len(),
                offset: 0,
            });
        };
        let kind = NativeEndian::read_u16(&header[KIND]);
        let length = NativeEndian::read_u32(&header[LENGTH]) as usize;
        if length < NLMSG_HEADER_LEN {
            return Err(ParseError::Truncated {
                what: "struct nlmsghdr",
                needed: NLMSG_HEADER_LEN,
                had: length,
                offset: 0,
            });
        }
        match bytes.get(..length) {
            Some(bytes) => Ok(Self { bytes, kind }),
            None => Err(ParseError::Truncated {
                what: "netlink message",
                needed: length,
                had: bytes.len(),
                offset: 0,
            }),
        }
    }

    /// The message type: subsystem in the high byte for nfnetlink, below 16 for netlink's own.
    #[must_use]
    pub const fn kind(&self) -> u16 {
        self.kind
    }

    /// `NLM_F_*` flags.
    #[must_use]
    pub fn flags(&self) -> u16 {
        NativeEndian::read_u16(&self.bytes[FLAGS])
    }

    /// The sequence number, which an answer repeats.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        NativeEndian::read_u32(&self.bytes[SEQUENCE])
    }

    /// The header's port id. Not proof of the sender: only the socket address is.
    #[must_use]
    pub fn port(&self) -> u32 {
        NativeEndian::read_u32(&self.bytes[PORT])
    }

    /// The whole message, header included, without padding.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// What follows the netlink header.
    #[inline]
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[NLMSG_HEADER_LEN..]
    }

    /// The header as netlink-packet-core has it.
    #[cfg(feature = "interop")]
    #[cfg_attr(docsrs, doc(cfg(feature = "interop")))]
    #[must_use]
    pub fn netlink_header(&self) -> NetlinkHeader {
        let mut header = NetlinkHeader::default();
        header.length = NativeEndian::read_u32(&self.bytes[LENGTH]);
        header.message_type = self.kind;
        header.flags = self.flags();
        header.sequence_number = self.sequence();
        header.port_number = self.port();
        header
    }
}

/// Iterates over the messages of a datagram. After an error it is at its end.
///
/// The kernel sends one `NFQNL_MSG_PACKET` per datagram; several messages per datagram go the other
/// way.
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Reads `datagram` from its first byte.
    #[must_use]
    pub const fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let message = Message::parse(self.rest);
        self.rest = match &message {
            Ok(message) => self.rest.get(align(message.bytes.len())..).unwrap_or_default(),
            Err(_) => &[],
        };
        Some(message)
    }
}

/// `struct nfgenmsg`, the header of every nfnetlink message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a struct of the kernel's")]
pub struct Nfgenmsg {
    /// `NFPROTO_*` family of the packet; not looked at by the kernel in requests.
    pub family: u8,
    /// [`NFNETLINK_V0`].
    pub version: u8,
    /// The queue number.
    pub res_id: u16,
}

impl Nfgenmsg {
    /// The header of a request about `queue`.
    #[must_use]
    pub const fn new(queue: u16) -> Self {
        Self { family: 0, version: NFNETLINK_V0, res_id: queue }
    }

    /// Reads the header at the start of a message's body and returns it with the attributes after
    /// it.
    ///
    /// # Errors
    ///
    /// [`ParseError::Truncated`] if the body has fewer than four bytes.
    #[inline]
    pub fn parse(body: &[u8]) -> Result<(Self, Attributes<'_>), ParseError> {
        let Some((header, attributes)) = body.split_first_chunk::<NFGENMSG_LEN>() else {
            return Err(ParseError::Truncated {
                what: "struct nfgenmsg",
                needed: NFGENMSG_LEN,
                had: body.len(),
                offset: NLMSG_HEADER_LEN,
            });
        };
        let header = Self {
            family: header[FAMILY],
            version: header[VERSION],
            res_id: BigEndian::read_u16(&header[RES_ID]),
        };
        Ok((header, Attributes::at(attributes, ATTRIBUTES_OFFSET)))
    }

    #[inline]
    pub(crate) fn emit(self) -> [u8; NFGENMSG_LEN] {
        let mut out = [0; NFGENMSG_LEN];
        out[FAMILY] = self.family;
        out[VERSION] = self.version;
        BigEndian::write_u16(&mut out[RES_ID], self.res_id);
        out
    }
}

/// Appends a message: both headers, then what `attributes` appends, which pads it to four bytes.
///
/// The length is patched at the end. `beyond` is the number of bytes that belong to the message but
/// are sent from another buffer; they follow what `attributes` appended, and the caller pads.
pub(crate) fn push_message(
    out: &mut Vec<u8>,
    header: Header,
    beyond: usize,
    attributes: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    let mut head = [0; ATTRIBUTES_OFFSET];
    header.write(&mut head);
    out.extend_from_slice(&head);
    attributes(out);
    state_length(out, start, beyond);
}

/// Writes the length of the message that starts at `start`, now that it is known.
#[inline]
pub(crate) fn state_length(out: &mut [u8], start: usize, beyond: usize) {
    let length = u32::try_from(out.len() - start + beyond).expect("netlink message above 4 GiB");
    NativeEndian::write_u32(&mut out[start..][LENGTH], length);
}

/// What [`push_message`] writes into the two headers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) port: u32,
    pub(crate) nfgenmsg: Nfgenmsg,
}

impl Header {
    /// Writes both headers. The length stays zero, which every parser refuses, until it is known.
    #[inline]
    pub(crate) fn write(self, head: &mut [u8; ATTRIBUTES_OFFSET]) {
        NativeEndian::write_u32(&mut head[LENGTH], 0);
        NativeEndian::write_u16(&mut head[KIND], self.kind);
        NativeEndian::write_u16(&mut head[FLAGS], self.flags);
        NativeEndian::write_u32(&mut head[SEQUENCE], self.sequence);
        NativeEndian::write_u32(&mut head[PORT], self.port);
        head[NLMSG_HEADER_LEN..].copy_from_slice(&self.nfgenmsg.emit());
    }
}
