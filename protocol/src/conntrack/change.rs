//! Changes of a conntrack entry, sent with the verdict on one of its packets.

use crate::attribute::{self, Attribute, Attributes, HEADER_LEN};
use crate::conntrack::ConntrackStatus;
use crate::constants::*;
use crate::error::ParseError;

/// Bytes of an attribute with a u32, and of one with label bits. Neither needs padding.
const U32_LEN: usize = HEADER_LEN + 4;
const LABELS_LEN: usize = HEADER_LEN + 16;

/// `NFQA_CT` in a verdict: what to change on the packet's conntrack entry. What is `None` stays as
/// it is.
///
/// The kernel works through the fields in the order below and stops at the first one it refuses.
/// What came before stays changed, and nobody is told: the verdict counts, and its acknowledgement
/// says success. All of it is ignored for packets without an entry, without the module
/// `nf_conntrack_netlink`, and in a batch verdict.
///
/// The default changes nothing on the entry and is not the same as no change at all: with any
/// change, the kernel adjusts the TCP sequence numbers of a translated connection to the new length
/// of a replaced payload. For that the connection must have a helper; without one the kernel prints
/// a warning and adjusts nothing.
///
/// There is no field for the helper (`CTA_HELP`), because the kernel refuses to give one to an
/// entry that exists, nor for the rest of what [`Conntrack`](super::Conntrack) can read: the kernel
/// ignores it here. Since 3.6.
///
/// ```
/// use netfilterqueue_protocol::conntrack::{ConntrackChange, MarkChange};
/// use netfilterqueue_protocol::verdict::{Verdict, VerdictMessage};
///
/// // Let the packet go, and remember in the flow's lowest mark bit that it was seen.
/// let change = ConntrackChange { mark: Some(MarkChange::bits(1, 1)), ..Default::default() };
/// let verdict =
///     VerdictMessage { conntrack: Some(change), ..VerdictMessage::new(1, 42, Verdict::Accept) };
/// # verdict.push(&mut Vec::new()).unwrap();
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::exhaustive_structs,
    reason = "filled in with `..`; a new attribute of the kernel's makes a new minor version"
)]
pub struct ConntrackChange {
    /// Seconds from now until the entry expires; the kernel cuts them to about 24 days at 1,000
    /// ticks per second and 248 at 100. Of an entry that is not confirmed yet, the seconds from
    /// then on. The flow's next packet sets it back to the protocol's own, unless `status` makes it
    /// a [`FIXED_TIMEOUT`](ConntrackStatus::FIXED_TIMEOUT) in the same change; once it is one, the
    /// kernel refuses another. Kernels before 6.1 may do neither right: 5.10 takes another one, and
    /// gives an entry that is not confirmed yet an arbitrary one, past or future.
    pub timeout: Option<u32>,
    /// The new status, not bits to add: start from [`Conntrack::status`](super::Conntrack::status).
    ///
    /// [`SEEN_REPLY`](ConntrackStatus::SEEN_REPLY) and [`ASSURED`](ConntrackStatus::ASSURED) can be
    /// set; a status that lacks one the entry has is refused, which can also happen because another
    /// packet of the flow has set it since. [`FIXED_TIMEOUT`](ConntrackStatus::FIXED_TIMEOUT) and
    /// [`HELPER`](ConntrackStatus::HELPER) become what this says, set or cleared. All other bits
    /// are the kernel's and ignored.
    pub status: Option<ConntrackStatus>,
    /// Label bits to change. The kernel refuses it for an entry without room for labels, which an
    /// entry gets only when it is made, and only if some rule then sets labels (`ct label set`) or
    /// uses the iptables match `connlabel`. Since 3.9.
    pub labels: Option<LabelsChange>,
    /// Mark bits to change.
    pub mark: Option<MarkChange>,
}

impl ConntrackChange {
    /// What [`ConntrackChange::encoded_len`] is at most: 76 bytes.
    pub const ENCODED_LEN_MAX: usize = HEADER_LEN + 2 * U32_LEN + 2 * LABELS_LEN + 2 * U32_LEN;

    /// Appends the attribute `NFQA_CT`. Its length is a multiple of four bytes.
    pub fn push(&self, out: &mut Vec<u8>) {
        attribute::push_nested(out, NFQA_CT, |out| {
            if let Some(timeout) = self.timeout {
                attribute::push_u32_be(out, CTA_TIMEOUT, timeout);
            }
            if let Some(status) = self.status {
                attribute::push_u32_be(out, CTA_STATUS, status.0);
            }
            if let Some(labels) = self.labels {
                attribute::push(out, CTA_LABELS, &labels.value);
                if !labels.is_whole() {
                    attribute::push(out, CTA_LABELS_MASK, &labels.mask);
                }
            }
            if let Some(mark) = self.mark {
                attribute::push_u32_be(out, CTA_MARK, mark.value);
                if !mark.is_whole() {
                    attribute::push_u32_be(out, CTA_MARK_MASK, mark.mask);
                }
            }
        });
    }

    /// How many bytes [`ConntrackChange::push`] appends, 4 to 76.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let masked = |whole: bool, len: usize| if whole { len } else { 2 * len };
        HEADER_LEN
            + self.timeout.map_or(0, |_| U32_LEN)
            + self.status.map_or(0, |_| U32_LEN)
            + self.labels.map_or(0, |labels| masked(labels.is_whole(), LABELS_LEN))
            + self.mark.map_or(0, |mark| masked(mark.is_whole(), U32_LEN))
    }

    /// Reads the attributes inside an `NFQA_CT`. Attributes without a field here are left out.
    ///
    /// # Errors
    ///
    /// [`ParseError`] for a malformed attribute and for what the kernel refuses whatever the entry:
    /// a short value, labels of more than 16 bytes or not a multiple of four, a mask of another
    /// length.
    pub fn parse(attributes: Attributes<'_>) -> Result<Self, ParseError> {
        let mut change = Self::default();
        let (mut mark, mut mark_mask) = (None, None);
        let (mut labels, mut labels_mask) = (None, None);
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind() {
                CTA_TIMEOUT => change.timeout = Some(u32_of(attribute)?),
                CTA_STATUS => change.status = Some(ConntrackStatus(u32_of(attribute)?)),
                CTA_LABELS => labels = Some(attribute.value()),
                CTA_LABELS_MASK => labels_mask = Some(attribute.value()),
                CTA_MARK => mark = Some(u32_of(attribute)?),
                CTA_MARK_MASK => mark_mask = Some(u32_of(attribute)?),
                _ => {}
            }
        }
        // A mask without a value does nothing, as in the kernel.
        change.mark = mark.map(|value| MarkChange { value, mask: mark_mask.unwrap_or(u32::MAX) });
        change.labels = labels.map(|value| LabelsChange::read(value, labels_mask)).transpose()?;
        Ok(change)
    }
}

fn u32_of(attribute: Attribute<'_>) -> Result<u32, ParseError> {
    attribute.require(4)?;
    Ok(attribute.u32_be().unwrap_or_default())
}

/// A change of a flow's mark: the bits of `mask` are cleared, then those of `value` are toggled.
///
/// Bits of `value` outside `mask` therefore flip what the flow has. [`MarkChange::bits`] has none
/// of them. A mask of all ones goes without the attribute `CTA_MARK_MASK`, which old kernels do not
/// know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_structs, reason = "a value and its mask")]
pub struct MarkChange {
    /// Bits to toggle after clearing (`CTA_MARK`).
    pub value: u32,
    /// Bits to clear first (`CTA_MARK_MASK`).
    pub mask: u32,
}

impl MarkChange {
    /// Sets all bits of the mark to those of `value`.
    #[must_use]
    pub const fn set(value: u32) -> Self {
        Self { value, mask: u32::MAX }
    }

    /// Sets the bits of `mask` to those of `value` and leaves the others alone, whatever `value`
    /// has there.
    #[must_use]
    pub const fn bits(value: u32, mask: u32) -> Self {
        Self { value: value & mask, mask }
    }

    /// What the kernel makes of the mark `old`.
    #[must_use]
    pub const fn apply(self, old: u32) -> u32 {
        (old & !self.mask) ^ self.value
    }

    const fn is_whole(self) -> bool {
        self.mask == u32::MAX
    }
}

/// A change of a flow's label bits, by the same arithmetic as [`MarkChange`].
///
/// The bytes are as the kernel holds them, an array of `unsigned long` in host order: on
/// little-endian machines label `n` is bit `n % 8` of byte `n / 8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_structs, reason = "a value and its mask")]
pub struct LabelsChange {
    /// Bits to toggle after clearing (`CTA_LABELS`).
    pub value: [u8; 16],
    /// Bits to clear first (`CTA_LABELS_MASK`).
    pub mask: [u8; 16],
}

impl LabelsChange {
    /// Sets all label bits to those of `value`.
    #[must_use]
    pub const fn set(value: [u8; 16]) -> Self {
        Self { value, mask: [0xff; 16] }
    }

    /// Sets the bits of `mask` to those of `value` and leaves the others alone, whatever `value`
    /// has there.
    #[must_use]
    pub fn bits(value: [u8; 16], mask: [u8; 16]) -> Self {
        Self { value: std::array::from_fn(|i| value[i] & mask[i]), mask }
    }

    /// What the kernel makes of the label bits `old`.
    #[must_use]
    pub fn apply(self, old: [u8; 16]) -> [u8; 16] {
        std::array::from_fn(|i| (old[i] & !self.mask[i]) ^ self.value[i])
    }

    fn is_whole(&self) -> bool {
        self.mask == [0xff; 16]
    }

    /// Shorter labels are legal: the kernel clears the words that are not there, masked or not.
    fn read(value: &[u8], mask: Option<&[u8]>) -> Result<Self, ParseError> {
        let mut labels = Self::set([0; 16]);
        match labels.value.get_mut(..value.len()) {
            Some(whole) if value.len().is_multiple_of(4) => whole.copy_from_slice(value),
            _ => return Err(refused("length of CTA_LABELS", value.len())),
        }
        if let Some(mask) = mask {
            // The kernel does not take an empty mask even for empty labels.
            if mask.is_empty() || mask.len() != value.len() {
                return Err(refused("length of CTA_LABELS_MASK", mask.len()));
            }
            labels.mask[..mask.len()].copy_from_slice(mask);
        }
        Ok(labels)
    }
}

fn refused(what: &'static str, len: usize) -> ParseError {
    // An attribute's length has 16 bits.
    ParseError::Value { what, value: u32::try_from(len).unwrap_or(u32::MAX) }
}
