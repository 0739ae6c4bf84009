//! The headers of an IP packet up to its transport header.
//!
//! [`Headers::read`] walks them once, over any bytes, without a panic; what it found is plain data.
//! A packet that was copied only in part is walked as far as its bytes go.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Length of the IPv4 header without options, in bytes.
const IPV4_HEADER_LEN: usize = 20;
/// Length of the IPv6 header without extension headers, in bytes.
pub(crate) const IPV6_HEADER_LEN: usize = 40;

/// A protocol number of the IP header (IPv4 `protocol`, IPv6 the last `next header`), as IANA
/// assigns them. Any number can be given: `Protocol(47)` is GRE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_structs, reason = "a number of the kernel's, whatever it is")]
pub struct Protocol(
    /// The number.
    pub u8,
);

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// DCCP.
    pub const DCCP: Self = Self(33);
    /// Encapsulating Security Payload of `IPsec`: what follows is encrypted.
    pub const ESP: Self = Self(50);
    /// Authentication Header of `IPsec`: what follows is readable, but sealed together with the
    /// addresses.
    pub const AH: Self = Self(51);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
    /// UDP-Lite.
    pub const UDP_LITE: Self = Self(136);

    /// The keyword that IANA has for it (`UDP`, `IPv6-ICMP`), or its description where there is
    /// none. `None` for 141 to 254.
    ///
    /// The names are those of python-netfilterqueue's `PROTOCOLS`.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        match self.0 {
            255 => Some("Reserved"),
            number => NAMES.get(usize::from(number)).copied(),
        }
    }

    /// Its header starts with a source and a destination port of 16 bits each.
    pub(crate) const fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::DCCP | Self::SCTP | Self::UDP_LITE)
    }
}

/// The name, or `protocol 200`.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "protocol {}", self.0),
        }
    }
}

/// What the headers of an IP packet say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Headers {
    /// Source in the IP header.
    pub(crate) source: IpAddr,
    /// Destination in the IP header: the next hop named, where the packet has a route to follow.
    pub(crate) destination: IpAddr,
    /// The source that checksums cover: the sender's home address if it names one (Mobile IPv6).
    pub(crate) checksum_source: IpAddr,
    /// The destination that checksums cover: the last one of a route that is not used up. The type
    /// of a routing header that hides it, else.
    pub(crate) checksum_destination: Result<IpAddr, u8>,
    /// What follows the IP header and its extensions. AH and ESP end the walk, and so do the
    /// Mobility Header, HIP and Shim6: the first two have nothing behind them, and behind Shim6 the
    /// checksum covers addresses that the packet does not carry.
    pub(crate) protocol: Protocol,
    /// Where the header of `protocol` starts; beyond the end of a packet that was cut off.
    pub(crate) transport: usize,
    pub(crate) fragment: Fragment,
    /// The header that is cut off or contradicts itself. The fields say what could be read before.
    pub(crate) fault: Option<&'static str>,
}

/// Which part of a packet this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fragment {
    /// All of it. An IPv6 fragment header may be present ("atomic fragment").
    Whole,
    /// The one with the transport header.
    First,
    /// One without.
    Later,
}

/// Why there are no headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// The version is neither 4 nor 6, or there are no bytes.
    NotIp,
    /// The named header is cut off or states an impossible length.
    Malformed(&'static str),
}

impl Headers {
    /// Walks the headers of the packet that starts with `packet`. Its stated length is not looked
    /// at.
    pub(crate) fn read(packet: &[u8]) -> Result<Self, Unreadable> {
        match packet.first().map(|first| first >> 4) {
            Some(4) => Self::read_ipv4(packet).ok_or(Unreadable::Malformed("IPv4 header")),
            Some(6) => Self::read_ipv6(packet).ok_or(Unreadable::Malformed("IPv6 header")),
            _ => Err(Unreadable::NotIp),
        }
    }

    fn read_ipv4(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<IPV4_HEADER_LEN>()?;
        let header_len = ipv4_header_len(header[0]);
        if header_len < IPV4_HEADER_LEN {
            return None;
        }
        let options = packet.get(IPV4_HEADER_LEN..header_len);
        let (source, destination) = (ipv4_address(packet, 12)?, ipv4_address(packet, 16)?);
        let fragmentation = u16::from_be_bytes([header[6], header[7]]);
        Some(Self {
            source,
            destination,
            checksum_source: source,
            checksum_destination: Ok(options.and_then(source_route).unwrap_or(destination)),
            protocol: Protocol(header[9]),
            transport: header_len,
            fragment: Fragment::new(fragmentation & 0x1fff, fragmentation & 0x2000 != 0),
            fault: options.is_none().then_some("IPv4 header"),
        })
    }

    fn read_ipv6(packet: &[u8]) -> Option<Self> {
        let header = packet.first_chunk::<IPV6_HEADER_LEN>()?;
        let (source, destination) = (ipv6_address(packet, 8)?, ipv6_address(packet, 24)?);
        let mut headers = Self {
            source,
            destination,
            checksum_source: source,
            checksum_destination: Ok(destination),
            protocol: Protocol(header[6]),
            transport: IPV6_HEADER_LEN,
            fragment: Fragment::Whole,
            fault: None,
        };
        // Each extension header is at least eight bytes, so the walk ends with the packet.
        while headers.fault.is_none() && headers.fragment != Fragment::Later {
            let extension = headers.protocol;
            if !matches!(extension, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
                break;
            }
            headers.walk(extension, packet.get(headers.transport..).unwrap_or_default());
        }
        Some(headers)
    }

    /// Goes past the extension header that `rest` starts with.
    fn walk(&mut self, extension: Protocol, rest: &[u8]) {
        let Some(&[next, units, third, fourth, ..]) = rest.first_chunk::<8>() else {
            self.fault = Some("extension header");
            return;
        };
        // The fragment header has a fixed length, and nothing that is sure to be 0 in its place.
        let len = 8 + if extension == FRAGMENT { 0 } else { usize::from(units) * 8 };
        self.protocol = Protocol(next);
        self.transport += len;
        let Some(header) = rest.get(..len) else {
            self.fault = Some("extension header");
            return;
        };
        match extension {
            FRAGMENT => {
                let word = u16::from_be_bytes([third, fourth]);
                self.fragment = self.fragment.max(Fragment::new(word >> 3, word & 1 != 0));
            }
            // Segments left: at 0 the destination is the last one already.
            ROUTING if fourth != 0 => match final_segment(header) {
                Some(destination) => self.checksum_destination = destination,
                None => self.fault = Some("routing header"),
            },
            DESTINATION_OPTIONS => {
                self.checksum_source = home_address(header).unwrap_or(self.checksum_source);
            }
            _ => {}
        }
    }
}

impl Fragment {
    const fn new(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}

/// Where the transport header of a packet with this ethertype starts: the shortest payload that the
/// kernel takes in its place. At most the payload's length; 0 for other protocols than IP.
///
/// The kernel may put the border of an IPv6 packet earlier, among the extension headers, but never
/// later.
pub(crate) fn transport_offset(hw_protocol: u16, payload: &[u8]) -> usize {
    let offset = match hw_protocol {
        ETHERTYPE_IPV4 => payload.first().map_or(0, |&first| ipv4_header_len(first)),
        ETHERTYPE_IPV6 => {
            Headers::read_ipv6(payload).map_or(IPV6_HEADER_LEN, |headers| headers.transport)
        }
        _ => 0,
    };
    offset.min(payload.len())
}

/// How many bytes follow the end that the IP header states: the padding of a short Ethernet frame,
/// which the bridge family leaves in place. 0 if the header states no end within the payload, or is
/// not IP.
///
/// An IPv4 length of 0, or an IPv6 length of 0 with something to follow, states no end: the kernel
/// writes that into packets beyond 64 KiB.
pub(crate) fn padding(payload: &[u8]) -> usize {
    let end = match (payload.first().map(|first| first >> 4), payload) {
        (Some(4), &[first, _, high, low, ..]) => {
            let end = usize::from(u16::from_be_bytes([high, low]));
            (end >= ipv4_header_len(first).max(IPV4_HEADER_LEN)).then_some(end)
        }
        (Some(6), &[_, _, _, _, high, low, next, ..]) => {
            let len = usize::from(u16::from_be_bytes([high, low]));
            (len != 0 || Protocol(next) == NO_NEXT_HEADER).then_some(IPV6_HEADER_LEN + len)
        }
        _ => None,
    };
    end.map_or(0, |end| payload.len().saturating_sub(end))
}

const HOP_BY_HOP: Protocol = Protocol(0);
const ROUTING: Protocol = Protocol(43);
const FRAGMENT: Protocol = Protocol(44);
const NO_NEXT_HEADER: Protocol = Protocol(59);
const DESTINATION_OPTIONS: Protocol = Protocol(60);

/// Length of the IPv4 header in bytes, by its first byte.
fn ipv4_header_len(first: u8) -> usize {
    usize::from(first & 0x0f) * 4
}

fn ipv4_address(bytes: &[u8], at: usize) -> Option<IpAddr> {
    bytes.get(at..)?.first_chunk::<4>().map(|&octets| Ipv4Addr::from(octets).into())
}

fn ipv6_address(bytes: &[u8], at: usize) -> Option<IpAddr> {
    bytes.get(at..)?.first_chunk::<16>().map(|&octets| Ipv6Addr::from(octets).into())
}

/// Where a source route among IPv4 options ends (RFC 791), unless it is used up.
fn source_route(mut options: &[u8]) -> Option<IpAddr> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    loop {
        match options {
            [] | [END, ..] => return None,
            [NO_OPERATION, rest @ ..] => options = rest,
            [kind, len, ..] => {
                let (option, rest) = options.split_at_checked(usize::from(*len).max(2))?;
                if matches!(*kind, LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE) {
                    // The pointer counts the option's bytes from 1.
                    let [_, _, pointer, route @ ..] = option else { return None };
                    let hops = route.last_chunk::<4>().filter(|_| pointer <= len)?;
                    return Some(Ipv4Addr::from(*hops).into());
                }
                options = rest;
            }
            [_] => return None,
        }
    }
}

/// The last destination of a routing header with segments left, or its type if that is one whose
/// list cannot be read. `None` if it contradicts itself.
fn final_segment(header: &[u8]) -> Option<Result<IpAddr, u8>> {
    const SOURCE_ROUTE: u8 = 0;
    const HOME_ADDRESS: u8 = 2;
    const SEGMENT_ROUTING: u8 = 4;
    let &[_, units, kind, left, last_entry, ..] = header else { return None };
    // An address takes two units.
    let (room, left, last_entry) = (units / 2, left, usize::from(last_entry));
    let at = match kind {
        SOURCE_ROUTE if units % 2 == 0 && left <= room => header.len().checked_sub(16)?,
        HOME_ADDRESS if units == 2 && left == 1 => 8,
        // The list is in reverse order; a first segment may be left out of it.
        SEGMENT_ROUTING if last_entry < room.into() && usize::from(left) <= last_entry + 1 => 8,
        SOURCE_ROUTE | HOME_ADDRESS | SEGMENT_ROUTING => return None,
        other => return Some(Err(other)),
    };
    ipv6_address(header, at).map(Ok)
}

/// The Home Address option (RFC 6275) of a destination options header.
fn home_address(header: &[u8]) -> Option<IpAddr> {
    const PAD1: u8 = 0;
    const HOME_ADDRESS: u8 = 0xc9;
    let mut options = header.get(2..)?;
    loop {
        match options {
            [PAD1, rest @ ..] => options = rest,
            [HOME_ADDRESS, 16, address @ ..] => return ipv6_address(address, 0),
            [_, len, rest @ ..] => options = rest.get(usize::from(*len)..)?,
            [] | [_] => return None,
        }
    }
}

/// By number, from 0.
#[rustfmt::skip]
const NAMES: [&str; 141] = [
    "HOPOPT", "ICMP", "IGMP", "GGP", "IP", "ST", "TCP", "CBT", "EGP", "IGP",
    // 10
    "BBN-RCC-MON", "NVP-II", "PUP", "ARGUS", "EMCON", "XNET", "CHAOS", "UDP", "MUX", "DCN-MEAS",
    // 20
    "HMP", "PRM", "XNS-IDP", "TRUNK-1", "TRUNK-2", "LEAF-1", "LEAF-2", "RDP", "IRTP", "ISO-TP4",
    // 30
    "NETBLT", "MFE-NSP", "MERIT-INP", "DCCP", "3PC", "IDPR", "XTP", "DDP", "IDPR-CMTP", "TP++",
    // 40
    "IL", "IPv6", "SDRP", "IPv6-Route", "IPv6-Frag", "IDRP", "RSVP", "GRE", "DSR", "BNA",
    // 50
    "ESP", "AH", "I-NLSP", "SWIPE", "NARP", "MOBILE", "TLSP", "SKIP", "IPv6-ICMP", "IPv6-NoNxt",
    // 60
    "IPv6-Opts", "any host internal protocol", "CFTP", "any local network", "SAT-EXPAK",
    "KRYPTOLAN", "RVD", "IPPC", "any distributed file system", "SAT-MON",
    // 70
    "VISA", "IPCV", "CPNX", "CPHB", "WSN", "PVP", "BR-SAT-MON", "SUN-ND", "WB-MON", "WB-EXPAK",
    // 80
    "ISO-IP", "VMTP", "SECURE-VMTP", "VINES", "TTP", "NSFNET-IGP", "DGP", "TCF", "EIGRP",
    "OSPFIGP",
    // 90
    "Sprite-RPC", "LARP", "MTP", "AX.25", "IPIP", "MICP", "SCC-SP", "ETHERIP", "ENCAP",
    "any private encryption scheme",
    // 100
    "GMTP", "IFMP", "PNNI", "PIM", "ARIS", "SCPS", "QNX", "A/N", "IPComp", "SNP",
    // 110
    "Compaq-Peer", "IPX-in-IP", "VRRP", "PGM", "any 0-hop protocol", "L2TP", "DDX", "IATP", "STP",
    "SRP",
    // 120
    "UTI", "SMP", "SM", "PTP", "ISIS", "FIRE", "CRTP", "CRUDP", "SSCOPMCE", "IPLT",
    // 130
    "SPS", "PIPE", "SCTP", "FC", "RSVP-E2E-IGNORE", "Mobility", "UDPLite", "MPLS-in-IP",
    "manet", "HIP",
    // 140
    "Shim6",
];

#[cfg(test)]
pub(crate) mod tests;
