//! `NFQA_CT`: the conntrack entry that comes with a packet, and changes of it that go back with a
//! verdict.
//!
//! The numbers are those of `netfilter/nfnetlink_conntrack.h` ([`constants`](crate::constants) has
//! them). Attributes that are absent, too short or malformed read as `None`. What has no accessor
//! here, such as counters, time stamps and helpers, is found by number ([`Conntrack::attribute`]),
//! or in the full tree that `Conntrack::to_attributes` makes (feature `conntrack-attributes`).

mod change;
mod state;
mod tuple;

#[cfg(feature = "conntrack-attributes")]
use netlink_packet_core::{DecodeError, NlasIterator, Parseable};
#[cfg(feature = "conntrack-attributes")]
use netlink_packet_netfilter::conntrack::ConntrackAttribute;

pub use self::change::{ConntrackChange, LabelsChange, MarkChange};
pub use self::state::{ConntrackInfo, ConntrackStatus, TcpState};
pub use self::tuple::{Icmp, Tuple};
use crate::attribute::{Attribute, Attributes};
use crate::constants::*;

/// A conntrack entry, as it was when the kernel queued the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conntrack<'a> {
    bytes: &'a [u8],
}

impl<'a> Conntrack<'a> {
    /// Reads the value of an `NFQA_CT` attribute.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The nested `CTA_*` attributes as they were received.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The attribute with this `CTA_*` number.
    #[must_use]
    pub fn attribute(&self, kind: u16) -> Option<Attribute<'a>> {
        Attributes::new(self.bytes).last_of(kind)
    }

    /// The entry's id, the same for all packets of a flow.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.attribute(CTA_ID)?.u32_be()
    }

    /// `IPS_*` bits. The first packet of a flow comes before its entry is confirmed, which happens
    /// after the packet's last hook.
    #[must_use]
    pub fn status(&self) -> Option<ConntrackStatus> {
        self.attribute(CTA_STATUS)?.u32_be().map(ConntrackStatus)
    }

    /// Seconds until the entry expires; before it is confirmed, the seconds that it will have, for
    /// which kernels before 6.1 may send a meaningless number (5.10 does).
    #[must_use]
    pub fn timeout(&self) -> Option<u32> {
        self.attribute(CTA_TIMEOUT)?.u32_be()
    }

    /// The flow's mark; may be absent when it is 0.
    #[must_use]
    pub fn mark(&self) -> Option<u32> {
        self.attribute(CTA_MARK)?.u32_be()
    }

    /// The zone of both directions; absent when it is 0 and where only one direction has a zone,
    /// which is then in [`Tuple::zone`].
    #[must_use]
    pub fn zone(&self) -> Option<u16> {
        self.attribute(CTA_ZONE)?.u16_be()
    }

    /// The label bits, 16 bytes in the order of [`LabelsChange::value`]; absent when none is set.
    /// Since 3.9.
    #[must_use]
    pub fn labels(&self) -> Option<&'a [u8]> {
        self.attribute(CTA_LABELS).map(|attribute| attribute.value())
    }

    /// State of a TCP connection after the packet; absent for other protocols.
    #[must_use]
    pub fn tcp_state(&self) -> Option<TcpState> {
        let tcp = self.attribute(CTA_PROTOINFO)?.nested().last_of(CTA_PROTOINFO_TCP)?;
        tcp.nested().last_of(CTA_PROTOINFO_TCP_STATE)?.u8().map(TcpState)
    }

    /// The flow as its first packet had it.
    #[must_use]
    pub fn original(&self) -> Option<Tuple> {
        Tuple::read(self.attribute(CTA_TUPLE_ORIG)?.nested())
    }

    /// The flow as answers to it look, after address translation.
    #[must_use]
    pub fn reply(&self) -> Option<Tuple> {
        Tuple::read(self.attribute(CTA_TUPLE_REPLY)?.nested())
    }

    /// The full tree as netlink-packet-netfilter has it, for what the accessors leave out. Copies
    /// and allocates.
    ///
    /// Attributes that crate does not know are in it as bytes, in the order the kernel sent them.
    ///
    /// # Errors
    ///
    /// All or nothing, unlike the accessors: [`DecodeError`] if one attribute is malformed, if a
    /// value of a known one is shorter or longer than its type, or if stray bytes follow the last
    /// one.
    #[cfg(feature = "conntrack-attributes")]
    #[cfg_attr(docsrs, doc(cfg(feature = "conntrack-attributes")))]
    pub fn to_attributes(&self) -> Result<Vec<ConntrackAttribute>, DecodeError> {
        NlasIterator::new(self.bytes)
            .map(|attribute| ConntrackAttribute::parse(&attribute?))
            .collect()
    }
}
