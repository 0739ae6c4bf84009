//! `NFQA_CT`: the conntrack entry that comes with a packet, as borrowed attributes.
//!
//! Numbers are those of `netfilter/nfnetlink_conntrack.h`. Attributes that are absent, too short or
//! malformed read as `None`. The full tree is a `ConntrackMessage` of netlink-packet-netfilter, made
//! from [`Conntrack::bytes`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::attribute::{Attribute, Attributes};

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_LABELS: u16 = 22;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;

const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// A conntrack entry.
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

    /// `IPS_*` bits.
    #[must_use]
    pub fn status(&self) -> Option<u32> {
        self.attribute(CTA_STATUS)?.u32_be()
    }

    /// Seconds until the entry expires; before it is confirmed, the seconds that it will have.
    #[must_use]
    pub fn timeout(&self) -> Option<u32> {
        self.attribute(CTA_TIMEOUT)?.u32_be()
    }

    /// The flow's mark; may be absent when it is 0.
    #[must_use]
    pub fn mark(&self) -> Option<u32> {
        self.attribute(CTA_MARK)?.u32_be()
    }

    /// The zone; absent when it is 0.
    #[must_use]
    pub fn zone(&self) -> Option<u16> {
        self.attribute(CTA_ZONE)?.u16_be()
    }

    /// The label bits, 16 bytes; absent when none is set.
    #[must_use]
    pub fn labels(&self) -> Option<&'a [u8]> {
        self.attribute(CTA_LABELS).map(|attribute| attribute.value())
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
}

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port, host order; absent for protocols without ports.
    pub source_port: Option<u16>,
    /// Destination port, host order; absent for protocols without ports.
    pub destination_port: Option<u16>,
}

impl Tuple {
    fn read(tuple: Attributes<'_>) -> Option<Self> {
        let ip = tuple.clone().last_of(CTA_TUPLE_IP)?.nested();
        let proto = tuple.last_of(CTA_TUPLE_PROTO)?.nested();
        let address = |v4, v6| {
            v4_address(ip.clone().last_of(v4)).or_else(|| v6_address(ip.clone().last_of(v6)))
        };
        let port = |kind| proto.clone().last_of(kind).and_then(|port| port.u16_be());
        Some(Self {
            source: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
            destination: address(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
            protocol: *proto.clone().last_of(CTA_PROTO_NUM)?.value().first()?,
            source_port: port(CTA_PROTO_SRC_PORT),
            destination_port: port(CTA_PROTO_DST_PORT),
        })
    }
}

fn v4_address(attribute: Option<Attribute<'_>>) -> Option<IpAddr> {
    let octets = attribute?.value().first_chunk::<4>()?;
    Some(Ipv4Addr::from(*octets).into())
}

fn v6_address(attribute: Option<Attribute<'_>>) -> Option<IpAddr> {
    let octets = attribute?.value().first_chunk::<16>()?;
    Some(Ipv6Addr::from(*octets).into())
}
