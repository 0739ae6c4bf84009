//! What can be wrong with bytes that were received, and with what is to be written.

use thiserror::Error;

/// Why bytes are not the message they were taken for.
///
/// The kernel does not send such messages; they come from a datagram that was cut off, from another
/// program, or from a fuzzer. Offsets count from the first byte of the message (or of the attribute
/// list) that was given to the parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseError {
    /// The bytes end before a fixed-size structure or the message's stated length.
    #[error("{what} needs {needed} bytes, {had} are left at offset {offset}")]
    Truncated {
        /// The kernel's name of the structure.
        what: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes that are there.
        had: usize,
        /// Where it starts.
        offset: usize,
    },
    /// An attribute's length field is smaller than its header or runs past the end.
    #[error("attribute {kind} at offset {offset} says {length} bytes, {remaining} are left")]
    AttributeLength {
        /// The attribute's number, without flags.
        kind: u16,
        /// What its length field says, header included.
        length: usize,
        /// Bytes from its header to the end.
        remaining: usize,
        /// Where it starts.
        offset: usize,
    },
    /// An attribute's value is shorter than its type.
    #[error("value of attribute {kind} at offset {offset} needs {needed} bytes, has {had}")]
    ShortAttribute {
        /// The attribute's number, without flags.
        kind: u16,
        /// Bytes its type needs.
        needed: usize,
        /// Bytes its value has.
        had: usize,
        /// Where the attribute starts.
        offset: usize,
    },
    /// A required attribute is not there.
    #[error("{attribute} is missing")]
    Missing {
        /// The kernel's name of the attribute.
        attribute: &'static str,
    },
    /// The netlink message is of another type.
    #[error("message type {found:#06x} where {expected:#06x} was expected")]
    MessageType {
        /// The type that the parser reads.
        expected: u16,
        /// The type in the header.
        found: u16,
    },
    /// A number that the kernel does not define where only defined ones make sense.
    #[error("{what} cannot be {value:#x}")]
    Value {
        /// The kernel's name of the field.
        what: &'static str,
        /// What it holds.
        value: u32,
    },
}

#[cfg(feature = "interop")]
#[cfg_attr(docsrs, doc(cfg(feature = "interop")))]
impl From<ParseError> for netlink_packet_core::DecodeError {
    fn from(error: ParseError) -> Self {
        error.to_string().into()
    }
}

/// Why a message cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A verdict with an empty payload: the kernel would drop the packet and report success.
    #[error("an empty payload cannot be sent back: the kernel would drop the packet")]
    EmptyPayload,
    /// A value that does not fit in an attribute.
    #[error("{attribute} of {len} bytes: an attribute holds at most {max}")]
    TooLong {
        /// The kernel's name of the attribute.
        attribute: &'static str,
        /// Length of the value in bytes.
        len: usize,
        /// What fits.
        max: usize,
    },
}
