//! Netlink attributes (`struct nlattr`): a list of them read from bytes or appended to a buffer.
//!
//! ```text
//! u16 length, header included | u16 type, two flag bits on top | value | padding to 4 bytes
//! ```
//!
//! The header is in host byte order, integers in values of this subsystem are in network byte
//! order.

use byteorder::{BigEndian, ByteOrder, NativeEndian};

use crate::constants::{NLA_F_NESTED, NLA_F_NET_BYTEORDER, NLA_TYPE_MASK};
use crate::error::ParseError;

/// `sizeof(struct nlattr)`.
pub const HEADER_LEN: usize = HEADER_LEN_U16 as usize;
/// The same, as lengths stand in the header.
pub(crate) const HEADER_LEN_U16: u16 = 4;
/// The longest value that the 16-bit length field can describe, in bytes.
pub const MAX_VALUE_LEN: usize = u16::MAX as usize - HEADER_LEN;

/// `NLA_ALIGN(len)`: `(len + 3) & ~3`.
#[must_use]
pub const fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// One attribute, borrowed from the bytes it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// The type field as it stands, flags included.
    raw_kind: u16,
    /// Where the attribute's header starts, counted from where the list's offsets count from.
    offset: usize,
    /// The value, without padding.
    value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attribute's number, without flags.
    #[must_use]
    pub const fn kind(&self) -> u16 {
        self.raw_kind & NLA_TYPE_MASK
    }

    /// Whether [`NLA_F_NESTED`] is set. Old kernels do not set it on every nest.
    #[must_use]
    pub const fn is_nested(&self) -> bool {
        self.raw_kind & NLA_F_NESTED != 0
    }

    /// Whether [`NLA_F_NET_BYTEORDER`] is set.
    #[must_use]
    pub const fn is_net_byteorder(&self) -> bool {
        self.raw_kind & NLA_F_NET_BYTEORDER != 0
    }

    /// Where the attribute's header starts, in bytes from the start of the message; of an attribute
    /// in a list that was read by itself ([`Attributes::new`]), from the start of that list.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// The value, without padding; may be empty.
    #[must_use]
    pub const fn value(&self) -> &'a [u8] {
        self.value
    }

    /// The value's first byte; `None` if it is empty.
    #[must_use]
    pub fn u8(&self) -> Option<u8> {
        self.value.first().copied()
    }

    /// The value as a network-order u16; `None` if it is shorter.
    #[must_use]
    pub fn u16_be(&self) -> Option<u16> {
        self.value.get(..2).map(BigEndian::read_u16)
    }

    /// The value as a network-order u32; `None` if it is shorter.
    #[must_use]
    pub fn u32_be(&self) -> Option<u32> {
        self.value.get(..4).map(BigEndian::read_u32)
    }

    /// The value as a list of attributes, whose offsets count from where this one's does.
    #[must_use]
    pub const fn nested(&self) -> Attributes<'a> {
        Attributes::at(self.value, self.offset + HEADER_LEN)
    }

    /// Whether the value has at least `needed` bytes, as an error that says where and how many.
    pub(crate) fn require(&self, needed: usize) -> Result<(), ParseError> {
        if self.value.len() < needed {
            return Err(ParseError::ShortAttribute {
                kind: self.kind(),
                needed,
                had: self.value.len(),
                offset: self.offset,
            });
        }
        Ok(())
    }
}

/// Iterates over a list of attributes.
///
/// Fewer than four bytes left at the end are padding and are skipped, as the kernel does. After an
/// error the iterator is at its end.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Attributes<'a> {
    /// Reads `bytes` from the header of the first attribute on.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, offset: 0 }
    }

    /// As [`Attributes::new`], with offsets that count from `offset` bytes before `bytes`.
    pub(crate) const fn at(bytes: &'a [u8], offset: usize) -> Self {
        Self { rest: bytes, offset }
    }

    /// The last attribute with this number, which is the one that the kernel's own parser takes
    /// when one occurs twice. Attributes after a malformed one are not seen.
    #[must_use]
    pub fn last_of(self, kind: u16) -> Option<Attribute<'a>> {
        self.map_while(Result::ok).filter(|attribute| attribute.kind() == kind).last()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, ParseError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (header, _) = self.rest.split_first_chunk::<HEADER_LEN>()?;
        let length = usize::from(NativeEndian::read_u16(&header[0..2]));
        let raw_kind = NativeEndian::read_u16(&header[2..4]);
        let Some(value) = self.rest.get(HEADER_LEN..length) else {
            let error = ParseError::AttributeLength {
                kind: raw_kind & NLA_TYPE_MASK,
                length,
                remaining: self.rest.len(),
                offset: self.offset,
            };
            self.rest = &[];
            return Some(Err(error));
        };
        let attribute = Attribute { raw_kind, offset: self.offset, value };
        let step = align(length);
        self.rest = self.rest.get(step..).unwrap_or_default();
        self.offset += step;
        Some(Ok(attribute))
    }
}

/// Appends one attribute and its padding.
///
/// # Panics
///
/// If `value` is longer than [`MAX_VALUE_LEN`]; the message types check their values before.
pub fn push(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    push_header(out, kind, value.len());
    out.extend_from_slice(value);
    pad(out, value.len());
}

/// Appends an attribute with a network-order u32.
#[inline]
pub fn push_u32_be(out: &mut Vec<u8>, kind: u16, value: u32) {
    let mut attribute = [0; HEADER_LEN + 4];
    write_header(&mut attribute, kind, 4);
    BigEndian::write_u32(&mut attribute[HEADER_LEN..], value);
    out.extend_from_slice(&attribute);
}

/// Appends an attribute with a network-order u16, padded.
pub fn push_u16_be(out: &mut Vec<u8>, kind: u16, value: u16) {
    push(out, kind, &value.to_be_bytes());
}

/// Writes the header of an attribute over the start of `out`.
#[inline]
pub(crate) fn write_header(out: &mut [u8], kind: u16, value_len: u16) {
    NativeEndian::write_u16(&mut out[0..2], HEADER_LEN_U16 + value_len);
    NativeEndian::write_u16(&mut out[2..4], kind);
}

/// Appends only the header of an attribute, for a value that is sent from another buffer.
///
/// # Panics
///
/// If `value_len` is more than [`MAX_VALUE_LEN`].
pub fn push_header(out: &mut Vec<u8>, kind: u16, value_len: usize) {
    let length = u16::try_from(HEADER_LEN + value_len).expect("attribute value above 65,531 bytes");
    let mut header = [0; HEADER_LEN];
    NativeEndian::write_u16(&mut header[0..2], length);
    NativeEndian::write_u16(&mut header[2..4], kind);
    out.extend_from_slice(&header);
}

/// Appends the zero bytes that follow a value of `value_len` bytes.
pub fn pad(out: &mut Vec<u8>, value_len: usize) {
    const ZEROS: [u8; 3] = [0; 3];
    out.extend_from_slice(&ZEROS[..align(value_len) - value_len]);
}

/// Appends a nested attribute whose content is what `fill` appends.
///
/// # Panics
///
/// If `fill` appends more than [`MAX_VALUE_LEN`] bytes.
pub fn push_nested(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    // Zero is no valid length, so a nest that is never closed is refused by every parser.
    out.extend_from_slice(&[0; HEADER_LEN]);
    fill(out);
    let length = u16::try_from(out.len() - start).expect("attribute nest above 65,531 bytes");
    NativeEndian::write_u16(&mut out[start..start + 2], length);
    NativeEndian::write_u16(&mut out[start + 2..start + 4], kind | NLA_F_NESTED);
    pad(out, usize::from(length));
}
