//! One readable line per packet.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use netfilterqueue_protocol::packet::PacketMessage;

use crate::hook::{Family, Hook};
use crate::ip::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Fragment, Headers, Protocol};

/// Writes `17 UDP 10.0.0.1:53 → 10.0.0.2:4242 84 bytes, forward eth0 to eth1, vlan 5, mark 0x7`.
///
/// `name_of` has the names of interfaces by index; one without is written `if3`.
pub(crate) fn line(
    f: &mut fmt::Formatter<'_>,
    message: &PacketMessage<'_>,
    payload: &[u8],
    mark: Option<u32>,
    name_of: &dyn Fn(u32) -> Option<Arc<str>>,
) -> fmt::Result {
    write!(f, "{} {} ", message.id(), Contents { ethertype: message.hw_protocol(), payload })?;
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
    if let Some(index) = message.indev() {
        write!(f, " {}", Interface { index, name: name_of(index) })?;
    }
    if let Some(index) = message.outdev() {
        write!(f, " to {}", Interface { index, name: name_of(index) })?;
    }
    if let Some(vlan) = message.vlan() {
        write!(f, ", vlan {}", vlan.tci & 0x0fff)?;
    }
    if let Some(mark) = mark {
        write!(f, ", mark {mark:#x}")?;
    }
    Ok(())
}

/// What a packet is about.
struct Contents<'a> {
    ethertype: u16,
    payload: &'a [u8],
}

impl fmt::Display for Contents<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ETHERTYPE_ARP: u16 = 0x0806;
        match self.ethertype {
            ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => match Headers::read(self.payload) {
                Ok(headers) => flow(f, &headers, self.payload),
                Err(_) if self.ethertype == ETHERTYPE_IPV4 => f.write_str("IPv4"),
                Err(_) => f.write_str("IPv6"),
            },
            ETHERTYPE_ARP => arp(f, self.payload),
            other => write!(f, "ethertype {other:#06x}"),
        }
    }
}

/// Who talks to whom: `UDP 10.0.0.1:53 → 10.0.0.2:4242`, `ICMP 10.0.0.1 → 10.0.0.2 type 8`.
fn flow(f: &mut fmt::Formatter<'_>, headers: &Headers, packet: &[u8]) -> fmt::Result {
    let (protocol, source, destination) = (headers.protocol, headers.source, headers.destination);
    let transport = match headers.fragment {
        Fragment::Later => &[],
        _ => packet.get(headers.transport..).unwrap_or_default(),
    };
    write!(f, "{protocol} ")?;
    match *transport {
        [a, b, c, d, ..] if protocol.has_ports() => {
            let (from, to) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            write!(f, "{}:{from} → {}:{to}", Host(source), Host(destination))
        }
        [kind, ..] if matches!(protocol, Protocol::ICMP | Protocol::ICMPV6) => {
            write!(f, "{source} → {destination} type {kind}")
        }
        _ => write!(f, "{source} → {destination}"),
    }
}

/// `ARP who has 10.0.0.2, tell 10.0.0.1`; only `ARP` if it is not about an IPv4 address.
fn arp(f: &mut fmt::Formatter<'_>, packet: &[u8]) -> fmt::Result {
    const REQUEST: u16 = 1;
    const REPLY: u16 = 2;
    f.write_str("ARP")?;
    let Some(arp) = Arp::read(packet) else { return Ok(()) };
    match arp.operation {
        REQUEST => write!(f, " who has {}, tell {}", arp.target, arp.sender),
        REPLY => {
            write!(f, " {} is at ", arp.sender)?;
            for (i, byte) in arp.hardware.iter().enumerate() {
                write!(f, "{}{byte:02x}", if i == 0 { "" } else { ":" })?;
            }
            Ok(())
        }
        other => write!(f, " operation {other}"),
    }
}

/// An ARP packet about IPv4 addresses (RFC 826).
struct Arp<'a> {
    operation: u16,
    /// The sender's hardware address.
    hardware: &'a [u8],
    sender: Ipv4Addr,
    target: Ipv4Addr,
}

impl<'a> Arp<'a> {
    fn read(packet: &'a [u8]) -> Option<Self> {
        let (header, rest) = packet.split_first_chunk::<8>()?;
        let [_, _, protocol_high, protocol_low, hardware_len, 4, high, low] = *header else {
            return None;
        };
        if u16::from_be_bytes([protocol_high, protocol_low]) != ETHERTYPE_IPV4 {
            return None;
        }
        let hardware_len = usize::from(hardware_len);
        let (hardware, rest) = rest.split_at_checked(hardware_len)?;
        let (sender, rest) = rest.split_first_chunk::<4>()?;
        let target = rest.get(hardware_len..)?.first_chunk::<4>()?;
        Some(Self {
            operation: u16::from_be_bytes([high, low]),
            hardware,
            sender: Ipv4Addr::from(*sender),
            target: Ipv4Addr::from(*target),
        })
    }
}

/// An address that a port follows.
struct Host(IpAddr);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => write!(f, "{address}"),
            IpAddr::V6(address) => write!(f, "[{address}]"),
        }
    }
}

struct Interface {
    index: u32,
    name: Option<Arc<str>>,
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            // The kernel takes control characters in a name, and whoever has a network namespace
            // gives names: they must not reach the terminal of who looks into it.
            Some(name) => name.chars().try_for_each(|c| match c.is_control() {
                true => write!(f, "{}", c.escape_default()),
                false => f.write_char(c),
            }),
            None => write!(f, "if{}", self.index),
        }
    }
}

#[cfg(test)]
mod tests {
    use netfilterqueue_protocol::attribute;
    use netfilterqueue_protocol::constants::*;

    use super::*;
    use crate::ip::tests::{ipv4, ipv6};

    /// A packet message of the bridge family, id 17 at hook forward.
    fn message(ethertype: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut header = [0, 0, 0, 17, 0, 0, NF_INET_FORWARD];
        header[4..6].copy_from_slice(&ethertype.to_be_bytes());
        let mut bytes = vec![0; 16];
        bytes.extend([NFPROTO_BRIDGE, 0, 0, 1]);
        for (kind, value) in [(NFQA_PACKET_HDR, &header[..])].iter().chain(attributes) {
            let len = u16::try_from(4 + value.len()).expect("a length that fits");
            bytes.extend(len.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let len = u32::try_from(bytes.len()).expect("a length that fits");
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&NFQNL_MSG_PACKET.to_ne_bytes());
        bytes
    }

    struct Line<'a>(PacketMessage<'a>, &'a [u8], Option<u32>);

    impl fmt::Display for Line<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            line(f, &self.0, self.1, self.2, &|index| (index == 2).then(|| "eth0".into()))
        }
    }

    fn shown(message: &[u8], payload: &[u8], mark: Option<u32>) -> String {
        Line(PacketMessage::parse(message).expect("a packet"), payload, mark).to_string()
    }

    /// Only who talks to whom.
    fn contents(ethertype: u16, payload: &[u8]) -> String {
        Contents { ethertype, payload }.to_string()
    }

    #[test]
    fn interfaces_vlan_and_mark() {
        let udp = ipv4(17, &[], &[0, 53, 0x10, 0x92, 0, 8, 0, 0]);
        let indev = (NFQA_IFINDEX_INDEV, &[0, 0, 0, 2][..]);
        let outdev = (NFQA_IFINDEX_OUTDEV, &[0, 0, 0, 3][..]);
        let mut nested = Vec::new();
        attribute::push(&mut nested, NFQA_VLAN_PROTO, &[0x81, 0]);
        // Priority 5, id 5.
        attribute::push(&mut nested, NFQA_VLAN_TCI, &[0xa0, 5]);
        let vlan = (NFQA_VLAN, &nested[..]);
        let flow = "17 UDP 192.0.2.1:53 → 192.0.2.2:4242 28 bytes";
        for (attributes, mark, rest) in [
            (&[][..], None, ", forward"),
            (&[indev], None, ", forward eth0"),
            (&[outdev], None, ", forward to if3"),
            (&[indev, outdev, vlan], Some(7), ", forward eth0 to if3, vlan 5, mark 0x7"),
        ] {
            let message = message(ETHERTYPE_IPV4, attributes);
            assert_eq!(shown(&message, &udp, mark), format!("{flow}{rest}"));
        }
    }

    #[test]
    fn names_of_interfaces_say_nothing_to_a_terminal() {
        let interface = |name: &str| Interface { index: 1, name: Some(name.into()) }.to_string();
        assert_eq!(interface("a\x1b[2J\u{9b}x"), "a\\u{1b}[2J\\u{9b}x");
        assert_eq!(interface("wlan\\'ä'"), "wlan\\'ä'");
    }

    #[test]
    fn packets_copied_in_part() {
        let udp = ipv4(17, &[], &[0, 53, 0x10, 0x92, 0, 8, 0, 0]);
        let cut = message(ETHERTYPE_IPV4, &[(NFQA_CAP_LEN, &[0, 0, 4, 0])]);
        let flow = "17 UDP 192.0.2.1 → 192.0.2.2";
        assert_eq!(
            shown(&cut, &udp[..22], None),
            format!("{flow} 1024 bytes (22 copied), forward")
        );
        assert_eq!(shown(&cut, &udp[..8], None), "17 IPv4 1024 bytes (8 copied), forward");
        let meta = message(ETHERTYPE_IPV6, &[]);
        assert_eq!(shown(&meta, &[], None), "17 IPv6 bytes not copied, forward");
    }

    #[test]
    fn who_talks_to_whom() {
        let ports = [0x30, 0x39, 0, 80, 0, 0, 0, 0];
        for (packet, expected) in [
            (ipv4(6, &[1; 4], &ports), "TCP 192.0.2.1:12345 → 192.0.2.2:80"),
            (ipv4(1, &[], &[8, 0]), "ICMP 192.0.2.1 → 192.0.2.2 type 8"),
            (ipv4(47, &[], &ports), "GRE 192.0.2.1 → 192.0.2.2"),
            (ipv4(200, &[], &ports), "protocol 200 192.0.2.1 → 192.0.2.2"),
            (ipv6(132, &ports), "SCTP [2001:db8::1]:12345 → [2001:db8::2]:80"),
            (ipv6(58, &[128, 0]), "IPv6-ICMP 2001:db8::1 → 2001:db8::2 type 128"),
            (ipv6(51, &ports), "AH 2001:db8::1 → 2001:db8::2"),
        ] {
            let ethertype = if packet[0] >> 4 == 4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
            assert_eq!(contents(ethertype, &packet), expected);
        }
        let mut fragment = ipv4(17, &[], &ports);
        fragment[6] = 0x20;
        assert_eq!(contents(ETHERTYPE_IPV4, &fragment), "UDP 192.0.2.1:12345 → 192.0.2.2:80");
        fragment[7] = 1;
        assert_eq!(contents(ETHERTYPE_IPV4, &fragment), "UDP 192.0.2.1 → 192.0.2.2");
        assert_eq!(contents(0x88cc, &ports), "ethertype 0x88cc");
    }

    #[test]
    fn arp_requests_and_replies() {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0xab, 10, 0, 0, 1];
        arp.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        assert_eq!(contents(0x0806, &arp), "ARP who has 10.0.0.2, tell 10.0.0.1");
        arp[7] = 2;
        assert_eq!(contents(0x0806, &arp), "ARP 10.0.0.1 is at 02:00:00:00:00:ab");
        arp[7] = 8;
        assert_eq!(contents(0x0806, &arp), "ARP operation 8");
        for len in 0..arp.len() {
            assert_eq!(contents(0x0806, &arp[..len]), "ARP", "{len} bytes");
        }
        for (at, value) in [(2, 9), (5, 16)] {
            let mut other = arp.clone();
            other[at] = value;
            assert_eq!(contents(0x0806, &other), "ARP", "about other addresses");
        }
    }
}
