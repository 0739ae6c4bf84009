//! `NLMSG_ERROR`: the kernel's answer to a request.
//!
//! ```text
//! struct nlmsgerr   error 4 | header of the request 16 | its body, unless left out | attributes
//! ```

use byteorder::{ByteOrder, NativeEndian};

use crate::attribute::{Attributes, align};
use crate::constants::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NLMSG_ERROR, NLMSGERR_ATTR_MSG, NLMSGERR_ATTR_OFFS,
};
use crate::error::ParseError;
use crate::message::{KIND, LENGTH, Message, NLMSG_HEADER_LEN, PORT, SEQUENCE};

/// An `NLMSG_ERROR`: the kernel's answer to one request.
///
/// A refused request is always answered, a successful one only if it asked with `NLM_F_ACK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack<'a> {
    error: i32,
    header: [u8; NLMSG_HEADER_LEN],
    echo: &'a [u8],
    extended: &'a [u8],
}

impl<'a> Ack<'a> {
    /// Reads an `NLMSG_ERROR`.
    ///
    /// # Errors
    ///
    /// [`ParseError::MessageType`] if the message is something else, [`ParseError::Truncated`] if
    /// it is too short for `struct nlmsgerr`.
    pub fn parse(message: Message<'a>) -> Result<Self, ParseError> {
        if message.kind() != NLMSG_ERROR {
            return Err(ParseError::MessageType { expected: NLMSG_ERROR, found: message.kind() });
        }
        let truncated = |needed| ParseError::Truncated {
            what: "struct nlmsgerr",
            needed,
            had: message.body().len(),
            offset: NLMSG_HEADER_LEN,
        };
        let needed = 4 + NLMSG_HEADER_LEN;
        let (error, request) = message.body().split_first_chunk::<4>().ok_or(truncated(needed))?;
        let (header, after_header) =
            request.split_first_chunk::<NLMSG_HEADER_LEN>().ok_or(truncated(needed))?;
        // Kernels before 4.12 leave the request out as well and have no flag to say so.
        let echo_len = if message.flags() & NLM_F_CAPPED != 0 || after_header.is_empty() {
            0
        } else {
            (NativeEndian::read_u32(&header[LENGTH]) as usize).saturating_sub(NLMSG_HEADER_LEN)
        };
        let echo = after_header
            .get(..echo_len)
            .ok_or_else(|| truncated(needed.saturating_add(echo_len)))?;
        let extended = if message.flags() & NLM_F_ACK_TLVS != 0 {
            after_header.get(align(echo_len)..).unwrap_or_default()
        } else {
            &[]
        };
        Ok(Self { error: NativeEndian::read_i32(error), header: *header, echo, extended })
    }

    /// The errno, positive, or 0 for success.
    ///
    /// The kernel can send 524 (`ENOTSUPP`), which no libc names.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        self.error.saturating_neg()
    }

    /// Type of the request that is answered.
    #[must_use]
    pub fn request_kind(&self) -> u16 {
        NativeEndian::read_u16(&self.header[KIND])
    }

    /// Sequence number of the request.
    #[must_use]
    pub fn request_sequence(&self) -> u32 {
        NativeEndian::read_u32(&self.header[SEQUENCE])
    }

    /// Port id that the request's header carried. The kernel echoes it and does not look at it.
    #[must_use]
    pub fn request_port(&self) -> u32 {
        NativeEndian::read_u32(&self.header[PORT])
    }

    /// The request after its netlink header; empty where the kernel left it out, which it does for
    /// successes and on sockets with `NETLINK_CAP_ACK`.
    #[must_use]
    pub const fn request_body(&self) -> &'a [u8] {
        self.echo
    }

    /// The kernel's explanation. `None` unless the socket has `NETLINK_EXT_ACK` (since 4.12) and
    /// the kernel gave one; it does so for malformed attributes, not for `EPERM`, `EBUSY` or
    /// `ENOENT`.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        let text = Attributes::new(self.extended).last_of(NLMSGERR_ATTR_MSG)?.value();
        std::str::from_utf8(text.strip_suffix(&[0]).unwrap_or(text)).ok()
    }

    /// Offset in the request of the attribute at fault, in bytes; `None` under the same conditions
    /// as [`Ack::text`].
    #[must_use]
    pub fn offset(&self) -> Option<u32> {
        let offset = Attributes::new(self.extended).last_of(NLMSGERR_ATTR_OFFS)?;
        offset.value().get(..4).map(NativeEndian::read_u32)
    }
}
