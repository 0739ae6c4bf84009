//! `NFQNL_MSG_PACKET`: a queued packet, as the kernel hands it over.
//!
//! [`PacketMessage::parse`] walks the attributes once and checks that each is whole and as long as
//! its type. After that no accessor can fail or panic: an attribute that the kernel did not send is
//! `None`. The bytes stay where they were received.
//!
//! Attributes may come in any order. Where one occurs twice the last one counts, as in the kernel's
//! own parser. Unknown ones are kept: [`PacketMessage::attribute`] finds them by number.

mod index;

use std::time::{Duration, SystemTime};

use byteorder::{BigEndian, ByteOrder};

pub use self::index::PacketIndex;
use crate::attribute::{Attribute, Attributes, HEADER_LEN};
use crate::conntrack::{Conntrack, ConntrackInfo};
use crate::constants::*;
use crate::error::ParseError;
use crate::message::ATTRIBUTES_OFFSET;

/// A queued packet: the view of one message in the buffer it was received into.
#[derive(Debug, Clone, Copy)]
pub struct PacketMessage<'a> {
    bytes: &'a [u8],
    index: PacketIndex,
}

impl<'a> PacketMessage<'a> {
    /// Reads the packet message at the start of `bytes`.
    ///
    /// # Errors
    ///
    /// As [`PacketIndex::parse`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        Ok(PacketIndex::parse(bytes)?.view(bytes))
    }

    /// What the walk over the attributes found.
    #[must_use]
    pub const fn index(&self) -> PacketIndex {
        self.index
    }

    /// The whole message, netlink header included, without padding.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The packet id. Ids of a queue are consecutive from 1 and wrap at 2^32, so a gap is a packet
    /// that the kernel could not deliver.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.index.id
    }

    /// The queue number (`nfgenmsg.res_id`).
    #[must_use]
    pub const fn queue(&self) -> u16 {
        self.index.queue
    }

    /// The hook's family, an `NFPROTO_*` number: IPv4, IPv6 or bridge.
    #[must_use]
    pub const fn family(&self) -> u8 {
        self.index.family
    }

    /// The hook: an `NF_INET_*` number, or `NF_BR_*` with the same values in the bridge family.
    #[must_use]
    pub const fn hook(&self) -> u8 {
        self.index.hook
    }

    /// The link protocol (ethertype) in host order: 0x0800 or 0x86dd from IP hooks, the frame's own
    /// in the bridge family.
    #[must_use]
    pub const fn hw_protocol(&self) -> u16 {
        self.index.hw_protocol
    }

    /// The packet from its network header on, without link-layer header; empty if the kernel sent
    /// no payload (copy mode META, or a packet without bytes).
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.index.payload_range().and_then(|range| self.bytes.get(range)).unwrap_or_default()
    }

    /// Full length in bytes of a packet of which only a part was copied; `None` if the payload is
    /// whole, or in copy mode META. Since 3.7.
    #[must_use]
    pub fn cap_len(&self) -> Option<u32> {
        self.u32_be(NFQA_CAP_LEN)
    }

    /// The mark; absent when it is 0.
    #[must_use]
    pub fn mark(&self) -> Option<u32> {
        self.u32_be(NFQA_MARK)
    }

    /// When the packet was received. Absent at the output and postrouting hooks, and wherever
    /// nothing on the host has asked for time stamps.
    #[must_use]
    pub fn timestamp(&self) -> Option<Timestamp> {
        let value = self.attribute(NFQA_TIMESTAMP)?.value();
        Some(Timestamp {
            seconds: value.get(0..8).map(BigEndian::read_u64)?,
            microseconds: value.get(8..16).map(BigEndian::read_u64)?,
        })
    }

    /// Index of the input device; absent at the output hook. In the bridge family it is the bridge.
    #[must_use]
    pub fn indev(&self) -> Option<u32> {
        self.u32_be(NFQA_IFINDEX_INDEV)
    }

    /// Index of the output device; absent at the prerouting and input hooks.
    #[must_use]
    pub fn outdev(&self) -> Option<u32> {
        self.u32_be(NFQA_IFINDEX_OUTDEV)
    }

    /// Index of the bridge port the packet came in through; bridged packets only.
    #[must_use]
    pub fn physindev(&self) -> Option<u32> {
        self.u32_be(NFQA_IFINDEX_PHYSINDEV)
    }

    /// Index of the bridge port the packet leaves through; bridged packets only.
    #[must_use]
    pub fn physoutdev(&self) -> Option<u32> {
        self.u32_be(NFQA_IFINDEX_PHYSOUTDEV)
    }

    /// Source link-layer address at its real length, at most 8 bytes. Absent at the output hook and
    /// on links without addresses; six zero bytes on the loopback device.
    #[must_use]
    pub fn hwaddr(&self) -> Option<&'a [u8]> {
        let value = self.attribute(NFQA_HWADDR)?.value();
        let len = value.get(0..2).map(BigEndian::read_u16)?;
        value.get(4..12)?.get(..usize::from(len).min(8))
    }

    /// Bits about the state of the packet's checksum and segmentation; absent when none is set.
    /// Since 3.10.
    #[must_use]
    pub fn skb_info(&self) -> Option<SkbInfo> {
        self.u32_be(NFQA_SKB_INFO).map(SkbInfo)
    }

    /// User id of the socket the packet belongs to, as the *initial* user namespace has it. Needs
    /// the flag `NFQA_CFG_F_UID_GID`; absent where the kernel knows no socket. Since 3.14.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        self.u32_be(NFQA_UID)
    }

    /// Group id, under the same conditions as [`PacketMessage::uid`].
    #[must_use]
    pub fn gid(&self) -> Option<u32> {
        self.u32_be(NFQA_GID)
    }

    /// Security context, text without the final NUL that `SELinux` sends and Smack does not. Needs
    /// the flag `NFQA_CFG_F_SECCTX` and a security module that labels packets. Since 4.3.
    #[must_use]
    pub fn secctx(&self) -> Option<&'a [u8]> {
        let value = self.attribute(NFQA_SECCTX)?.value();
        Some(value.strip_suffix(b"\0").unwrap_or(value))
    }

    /// The packet's priority (`skb->priority`); absent when it is 0. Since 5.18.
    #[must_use]
    pub fn priority(&self) -> Option<u32> {
        self.u32_be(NFQA_PRIORITY)
    }

    /// Class id that the `net_cls` controller gave the sending cgroup; absent when it is 0. Since
    /// 6.4.
    #[must_use]
    pub fn cgroup_classid(&self) -> Option<u32> {
        self.u32_be(NFQA_CGROUP_CLASSID)
    }

    /// The VLAN tag of a bridged frame; absent unless both halves were sent. Since 4.7.
    #[must_use]
    pub fn vlan(&self) -> Option<Vlan> {
        let nest = self.attribute(NFQA_VLAN)?.nested();
        Some(Vlan {
            proto: nest.clone().last_of(NFQA_VLAN_PROTO)?.u16_be()?,
            tci: nest.last_of(NFQA_VLAN_TCI)?.u16_be()?,
        })
    }

    /// Link-layer header of a bridged frame, VLAN tag excluded: 14 bytes for Ethernet. Since 4.7.
    #[must_use]
    pub fn l2_header(&self) -> Option<&'a [u8]> {
        self.attribute(NFQA_L2HDR).map(|attribute| attribute.value())
    }

    /// The conntrack entry. Needs the flag `NFQA_CFG_F_CONNTRACK`; absent for packets that
    /// conntrack does not follow. Since 3.6.
    #[must_use]
    pub fn conntrack(&self) -> Option<Conntrack<'a>> {
        self.attribute(NFQA_CT).map(|attribute| Conntrack::new(attribute.value()))
    }

    /// The packet's relation to its conntrack entry. Comes with [`PacketMessage::conntrack`]. Since
    /// 3.6.
    #[must_use]
    pub fn conntrack_info(&self) -> Option<ConntrackInfo> {
        self.u32_be(NFQA_CT_INFO).map(ConntrackInfo)
    }

    /// The attribute with this number, known here or not.
    #[must_use]
    pub fn attribute(&self, kind: u16) -> Option<Attribute<'a>> {
        let offset = self.index.offset_of(kind, self.bytes)?;
        Attributes::at(self.bytes.get(offset..)?, offset).next()?.ok()
    }

    /// All attributes in the order the kernel sent them, as borrowed bytes.
    #[must_use]
    pub fn attributes(&self) -> Attributes<'a> {
        let attributes = self.bytes.get(ATTRIBUTES_OFFSET..).unwrap_or_default();
        Attributes::at(attributes, ATTRIBUTES_OFFSET)
    }

    fn u32_be(&self, kind: u16) -> Option<u32> {
        // The length was checked by the walk.
        let attribute = self.bytes.get(self.index.offset_of(kind, self.bytes)?..)?;
        attribute.get(HEADER_LEN..HEADER_LEN + 4).map(BigEndian::read_u32)
    }
}

/// `NFQA_SKB_INFO`: what the kernel knows about a packet's checksum and segmentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a number of the kernel's, whatever it is")]
pub struct SkbInfo(pub u32);

impl SkbInfo {
    /// The transport checksum is only the pseudo header's sum (`NFQA_SKB_CSUMNOTREADY`). Only with
    /// the flag `NFQA_CFG_F_GSO`; without it the kernel completes the checksum first.
    #[must_use]
    pub const fn checksum_not_ready(self) -> bool {
        self.0 & NFQA_SKB_CSUMNOTREADY != 0
    }

    /// The packet is a super-packet of up to 64 KiB (`NFQA_SKB_GSO`). Only with the flag
    /// `NFQA_CFG_F_GSO`; without it the kernel cuts it into segments first.
    #[must_use]
    pub const fn is_gso(self) -> bool {
        self.0 & NFQA_SKB_GSO != 0
    }

    /// Nobody has verified the checksum (`NFQA_SKB_CSUM_NOTVERIFIED`).
    #[must_use]
    pub const fn checksum_not_verified(self) -> bool {
        self.0 & NFQA_SKB_CSUM_NOTVERIFIED != 0
    }
}

/// When a packet was received, since 1970 (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::exhaustive_structs, reason = "a struct of the kernel's")]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: u64,
    /// Microseconds, below 1,000,000.
    pub microseconds: u64,
}

impl Timestamp {
    /// The same as the standard library's type; `None` if it does not fit, which the kernel's never
    /// do.
    #[must_use]
    pub fn to_system_time(self) -> Option<SystemTime> {
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(self.seconds))?
            .checked_add(Duration::from_micros(self.microseconds))
    }
}

/// A VLAN tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a struct of the kernel's")]
pub struct Vlan {
    /// Ethertype of the tag, host order: 0x8100 for 802.1Q, 0x88a8 for 802.1ad.
    pub proto: u16,
    /// Tag control information, host order: priority in bits 13–15, drop eligibility in bit 12,
    /// VLAN id in bits 0–11.
    pub tci: u16,
}
