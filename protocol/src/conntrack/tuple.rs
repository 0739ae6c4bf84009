//! `CTA_TUPLE_ORIG` and `CTA_TUPLE_REPLY`: what identifies a flow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::attribute::{Attribute, Attributes};
use crate::constants::*;

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_structs, reason = "built by programs to be compared with")]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port, host order; of GRE, the key. Absent for protocols without ports.
    pub source_port: Option<u16>,
    /// Destination port, host order; of GRE, the key. Absent for protocols without ports.
    pub destination_port: Option<u16>,
    /// What ICMP and `ICMPv6` have in place of ports; absent for other protocols.
    pub icmp: Option<Icmp>,
    /// The zone of this direction; absent when it is 0 and where one zone is for both directions
    /// ([`Conntrack::zone`](super::Conntrack::zone)). Since 4.3.
    pub zone: Option<u16>,
}

/// What identifies a flow of ICMP or `ICMPv6` messages.
///
/// The two directions have the same id; the type of the reply direction is that of the answer, such
/// as 0 (echo reply) to 8 (echo request), or 129 to 128 in `ICMPv6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_structs, reason = "built by programs to be compared with")]
pub struct Icmp {
    /// The id of echo messages and other queries, host order.
    pub id: u16,
    /// The ICMP type.
    pub kind: u8,
    /// The ICMP code.
    pub code: u8,
}

impl Tuple {
    pub(super) fn read(tuple: Attributes<'_>) -> Option<Self> {
        let ip = tuple.clone().last_of(CTA_TUPLE_IP)?.nested();
        let proto = tuple.clone().last_of(CTA_TUPLE_PROTO)?.nested();
        let address = |v4, v6| {
            v4_address(ip.clone().last_of(v4)).or_else(|| v6_address(ip.clone().last_of(v6)))
        };
        let u8 = |kind| proto.clone().last_of(kind)?.u8();
        let u16 = |kind| proto.clone().last_of(kind)?.u16_be();
        let icmp = |id, kind, code| Some(Icmp { id: u16(id)?, kind: u8(kind)?, code: u8(code)? });
        Some(Self {
            source: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
            destination: address(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
            protocol: u8(CTA_PROTO_NUM)?,
            source_port: u16(CTA_PROTO_SRC_PORT),
            destination_port: u16(CTA_PROTO_DST_PORT),
            icmp: icmp(CTA_PROTO_ICMP_ID, CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMP_CODE).or_else(|| {
                icmp(CTA_PROTO_ICMPV6_ID, CTA_PROTO_ICMPV6_TYPE, CTA_PROTO_ICMPV6_CODE)
            }),
            zone: tuple.last_of(CTA_TUPLE_ZONE).and_then(|zone| zone.u16_be()),
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
