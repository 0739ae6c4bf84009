//! One readable line per packet.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use netfilterqueue_protocol::packet::PacketMessage;

use crate::hook::{Family, Hook};

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Writes `17 UDP 10.0.0.1:53 → 10.0.0.2:4242 84 bytes, output to if2, mark 0x7`.
pub(crate) fn line(
    f: &mut fmt::Formatter<'_>,
    message: &PacketMessage<'_>,
    payload: &[u8],
    mark: Option<u32>,
    name_of: &dyn Fn(u32) -> Option<Arc<str>>,
) -> fmt::Result {
    let _ = name_of;
    write!(f, "{} ", message.id())?;
    match Flow::read(message.hw_protocol(), payload) {
        Some(flow) => write!(f, "{flow} ")?,
        None => match message.hw_protocol() {
            ETHERTYPE_IPV4 => f.write_str("IPv4 ")?,
            ETHERTYPE_IPV6 => f.write_str("IPv6 ")?,
            other => write!(f, "ethertype {other:#06x} ")?,
        },
    }
    match message.cap_len() {
        Some(full) => write!(f, "{full} bytes ({} copied)", payload.len())?,
        None if payload.is_empty() => f.write_str("bytes not copied")?,
        None => write!(f, "{} bytes", payload.len())?,
    }
    let hook = Hook(message.hook());
    match hook.name(Family(message.family())) {
        Some(name) => write!(f, ", {name}")?,
        None => write!(f, ", {hook}")?,
    }
    if let Some(indev) = message.indev() {
        write!(f, " if{indev}")?;
    }
    if let Some(outdev) = message.outdev() {
        write!(f, " to if{outdev}")?;
    }
    if let Some(mark) = mark {
        write!(f, ", mark {mark:#x}")?;
    }
    Ok(())
}

/// Who talks to whom.
struct Flow {
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    transport: Transport,
}

enum Transport {
    Ports(u16, u16),
    IcmpType(u8),
    /// A protocol without ports, a fragment after the first, or too few bytes.
    Opaque,
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

const IPV6_HOP_BY_HOP: u8 = 0;
const IPV6_ROUTING: u8 = 43;
const IPV6_FRAGMENT: u8 = 44;
const IPV6_DESTINATION: u8 = 60;

impl Flow {
    fn read(ethertype: u16, payload: &[u8]) -> Option<Self> {
        match ethertype {
            ETHERTYPE_IPV4 => Self::read_ipv4(payload),
            ETHERTYPE_IPV6 => Self::read_ipv6(payload),
            _ => None,
        }
    }

    fn read_ipv4(payload: &[u8]) -> Option<Self> {
        let header = payload.first_chunk::<20>()?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        if header_len < header.len() {
            return None;
        }
        let is_first_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
        let transport = payload.get(header_len..).filter(|_| is_first_fragment);
        let [source, destination] =
            [12, 16].map(|at| payload[at..].first_chunk::<4>().copied().map(Ipv4Addr::from));
        Some(Self {
            protocol: header[9],
            source: source?.into(),
            destination: destination?.into(),
            transport: Transport::read(header[9], transport.unwrap_or_default()),
        })
    }

    fn read_ipv6(payload: &[u8]) -> Option<Self> {
        let (header, mut rest) = payload.split_first_chunk::<40>()?;
        let [source, destination] =
            [8, 24].map(|at| header[at..].first_chunk::<16>().copied().map(Ipv6Addr::from));
        let mut protocol = header[6];
        // Each extension header is at least eight bytes, so the walk ends with the packet.
        while let (
            IPV6_HOP_BY_HOP | IPV6_ROUTING | IPV6_FRAGMENT | IPV6_DESTINATION,
            Some(extension),
        ) = (protocol, rest.first_chunk::<8>())
        {
            let mut len = 8;
            if protocol == IPV6_FRAGMENT {
                if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 {
                    protocol = extension[0];
                    rest = &[];
                    break;
                }
            } else {
                len += usize::from(extension[1]) * 8;
            }
            protocol = extension[0];
            rest = rest.get(len..).unwrap_or_default();
        }
        Some(Self {
            protocol,
            source: source?.into(),
            destination: destination?.into(),
            transport: Transport::read(protocol, rest),
        })
    }
}

impl Transport {
    fn read(protocol: u8, bytes: &[u8]) -> Self {
        match (protocol, bytes) {
            (TCP | UDP | DCCP | SCTP | UDPLITE, &[a, b, c, d, ..]) => {
                Self::Ports(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
            }
            (ICMP | ICMPV6, &[kind, ..]) => Self::IcmpType(kind),
            _ => Self::Opaque,
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            ICMP => f.write_str("ICMP")?,
            TCP => f.write_str("TCP")?,
            UDP => f.write_str("UDP")?,
            DCCP => f.write_str("DCCP")?,
            ICMPV6 => f.write_str("ICMPv6")?,
            SCTP => f.write_str("SCTP")?,
            UDPLITE => f.write_str("UDP-Lite")?,
            other => write!(f, "protocol {other}")?,
        }
        let (source, destination) = (self.source, self.destination);
        match (&self.transport, source.is_ipv6()) {
            (Transport::Ports(from, to), false) => {
                write!(f, " {source}:{from} → {destination}:{to}")
            }
            (Transport::Ports(from, to), true) => {
                write!(f, " [{source}]:{from} → [{destination}]:{to}")
            }
            (Transport::IcmpType(kind), _) => write!(f, " {source} → {destination} type {kind}"),
            (Transport::Opaque, _) => write!(f, " {source} → {destination}"),
        }
    }
}
