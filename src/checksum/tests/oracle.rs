//! A second opinion on completed packets: RFC 1071 to the letter, headers walked by index, and
//! etherparse's sums. The unit tests and the fuzz target share it.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::{Completion, WhyIpOnly};

/// RFC 1071 to the letter. 0xffff over bytes that hold their own checksum.
pub(super) fn slow_sum(bytes: &[u8]) -> u32 {
    let mut sum = 0;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8;
        sum += word.get(1).map_or(0, |&low| u32::from(low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// The sum over the transport's bytes and a pseudo header with these addresses.
pub(super) fn slow_sum_with(
    addresses: &[u8],
    protocol: u8,
    transport: &[u8],
    covered: usize,
) -> u32 {
    let len = u32::try_from(transport.len()).expect("a length that fits").to_be_bytes();
    slow_sum(&[addresses, &len, &[0, 0, 0, protocol], &transport[..covered]].concat())
}

/// What must hold of any packet and what became of it.
pub(super) fn judge(before: &[u8], outcome: Completion, after: &[u8]) {
    assert_eq!(before.len(), after.len());
    if let Completion::Nothing(_) = outcome {
        assert_eq!(before, after);
        // Too short, contradictory or too long; nothing else is refused.
        assert!(Walk::over(before).is_none() || before.len() > 65_535);
        return;
    }
    let is_ipv4 = before[0] >> 4 == 4;
    let mut fields = if is_ipv4 {
        assert_eq!(field(after, 2), after.len());
        assert_eq!(slow_sum(&after[..usize::from(after[0] & 15) * 4]), 0xffff);
        vec![2, 10]
    } else {
        assert_eq!(field(after, 4), after.len() - 40);
        vec![4]
    };
    let walk = Walk::over(after).expect("whole headers");
    let is_known = matches!((walk.protocol, is_ipv4), (6 | 17 | 136, _) | (1, true) | (58, false));
    match outcome {
        Completion::IpOnly(WhyIpOnly::Fragment) => assert!(walk.is_fragment),
        Completion::IpOnly(WhyIpOnly::UnknownRoute(kind)) => {
            assert!(is_known && walk.unknown_route == Some(kind));
        }
        Completion::IpOnly(_) => assert!(!is_known && !walk.is_fragment),
        _ => {
            assert!(is_known && !walk.is_fragment && walk.unknown_route.is_none());
            transport(before, after, &walk);
            let at = walk.start;
            fields.extend(match walk.protocol {
                6 => [at + 16, at + 16],
                17 | 136 => [at + 4, at + 6],
                _ => [at + 2, at + 2],
            });
            etherparse(after, &walk);
        }
    }
    for (at, (before, after)) in before.iter().zip(after).enumerate() {
        assert!(before == after || fields.contains(&(at & !1)), "byte {at} was written");
    }
}

fn transport(before: &[u8], after: &[u8], walk: &Walk) {
    let transport = &after[walk.start..];
    let (len, mut covered) = (transport.len(), transport.len());
    match (walk.protocol, field(transport, 4)) {
        (17, stated) => assert_eq!(stated, len),
        (136, 0) => {
            let stated = field(before, walk.start + 4);
            assert!(stated == 0 || stated > len);
        }
        (136, _) => {
            covered = field(transport, 4);
            assert!((8..=len).contains(&covered) && field(before, walk.start + 4) == covered);
        }
        _ => {}
    }
    let sum = match walk.protocol {
        17 if after[0] >> 4 == 4 && field(before, walk.start + 6) == 0 => {
            assert_eq!(field(transport, 6), 0, "there was none");
            return;
        }
        17 | 136 => {
            assert_ne!(field(transport, 6), 0, "0 would mean that there is none");
            slow_sum_with(&walk.addresses, walk.protocol, transport, covered)
        }
        1 => slow_sum(transport),
        _ => slow_sum_with(&walk.addresses, walk.protocol, transport, covered),
    };
    assert_eq!(sum, 0xffff);
}

/// Differences: etherparse takes extension headers only once each and in their usual order, and
/// knows neither source routes nor home addresses nor UDP-Lite.
fn etherparse(after: &[u8], walk: &Walk) {
    let Ok(sliced) = SlicedPacket::from_ip(after) else { return };
    let (Some(net), Some(transport)) = (sliced.net, sliced.transport) else { return };
    let expected = match (net, transport) {
        (NetSlice::Ipv4(ip), transport) => {
            let ip = ip.header().to_header();
            // Its header has no place for the reserved bit.
            if after[6] & 0x80 == 0 {
                assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
            }
            let (from, to) = (ip.source, ip.destination);
            if walk.addresses != [from, to].concat() {
                return;
            }
            match transport {
                TransportSlice::Tcp(tcp) => tcp.calc_checksum_ipv4(from, to).ok(),
                TransportSlice::Udp(udp) if udp.checksum() != 0 => {
                    udp.to_header().calc_checksum_ipv4_raw(from, to, udp.payload()).ok()
                }
                _ => None,
            }
        }
        (NetSlice::Ipv6(ip), transport) => {
            let (from, to) = (ip.header().source(), ip.header().destination());
            if walk.addresses != [from, to].concat() {
                return;
            }
            match transport {
                TransportSlice::Tcp(tcp) => tcp.calc_checksum_ipv6(from, to).ok(),
                TransportSlice::Udp(udp) => {
                    udp.to_header().calc_checksum_ipv6_raw(from, to, udp.payload()).ok()
                }
                TransportSlice::Icmpv6(icmp) => {
                    assert!(icmp.is_checksum_valid(from, to));
                    None
                }
                _ => None,
            }
        }
        _ => None,
    };
    if let Some(expected) = expected {
        let at = walk.start + if walk.protocol == 6 { 16 } else { 6 };
        assert_eq!(field(after, at), usize::from(expected));
    }
}

/// Where the transport header is, and which addresses its checksum covers.
struct Walk {
    protocol: u8,
    start: usize,
    /// The sender's own, then the final one.
    addresses: Vec<u8>,
    is_fragment: bool,
    unknown_route: Option<u8>,
}

impl Walk {
    /// `None` if the headers are cut off or contradict themselves.
    fn over(packet: &[u8]) -> Option<Self> {
        let walk = match packet.first()? >> 4 {
            4 => Self::over_ipv4(packet)?,
            6 => Self::over_ipv6(packet)?,
            _ => return None,
        };
        let transport = packet.get(walk.start..)?;
        let needed = match (walk.protocol, packet[0] >> 4) {
            _ if walk.is_fragment || walk.unknown_route.is_some() => 0,
            (6, _) => 20,
            (17 | 136, _) | (1, 4) | (58, 6) => 8,
            _ => 0,
        };
        let is_covered = needed == 0 || walk.protocol != 136;
        let is_whole =
            transport.len() >= needed && (is_covered || !(1..8).contains(&field(transport, 4)));
        is_whole.then_some(walk)
    }

    fn over_ipv4(packet: &[u8]) -> Option<Self> {
        let start = usize::from(packet[0] & 15) * 4;
        if start < 20 || packet.len() < start {
            return None;
        }
        let mut addresses = packet[12..20].to_vec();
        let mut at = 20;
        while at + 1 < start && packet[at] != 0 {
            let len = if packet[at] == 1 { 1 } else { usize::from(packet[at + 1]).max(2) };
            if matches!(packet[at], 131 | 137) {
                // Used up when the pointer is behind the end.
                if len >= 7 && at + len <= start && usize::from(packet[at + 2]) <= len {
                    addresses[4..].copy_from_slice(&packet[at + len - 4..at + len]);
                }
                break;
            }
            at += len;
        }
        Some(Self {
            protocol: packet[9],
            start,
            addresses,
            is_fragment: field(packet, 6) & 0x3fff != 0,
            unknown_route: None,
        })
    }

    fn over_ipv6(packet: &[u8]) -> Option<Self> {
        if packet.len() < 40 {
            return None;
        }
        let mut walk = Self {
            protocol: packet[6],
            start: 40,
            addresses: packet[8..40].to_vec(),
            is_fragment: false,
            unknown_route: None,
        };
        let mut is_later = false;
        while !is_later && matches!(walk.protocol, 0 | 43 | 44 | 60) {
            let units = usize::from(*packet.get(walk.start + 1)?);
            let len = if walk.protocol == 44 { 8 } else { 8 + 8 * units };
            let header = packet.get(walk.start..walk.start + len)?;
            match walk.protocol {
                43 if header[3] != 0 => walk.route(header, units)?,
                44 => {
                    walk.is_fragment |= field(header, 2) & 0xfff9 != 0;
                    is_later = field(header, 2) & 0xfff8 != 0;
                }
                60 => walk.home_address(header),
                _ => {}
            }
            walk.protocol = header[0];
            walk.start += len;
        }
        Some(walk)
    }

    /// RFC 5095, 6275 and 8754: segments of 16 bytes, the last one at the end or, in segment
    /// routing, at the start.
    fn route(&mut self, header: &[u8], units: usize) -> Option<()> {
        let (segments, left, last_entry) = (units / 2, usize::from(header[3]), header[4]);
        let (is_sound, last) = match header[2] {
            0 => (units.is_multiple_of(2) && left <= segments, header.len().checked_sub(16)?),
            2 => (units == 2 && left == 1, 8),
            4 => {
                let last_entry = usize::from(last_entry);
                (last_entry < segments && left <= last_entry + 1, 8)
            }
            kind => {
                self.unknown_route = Some(kind);
                return Some(());
            }
        };
        self.unknown_route = None;
        self.addresses[16..].copy_from_slice(header.get(last..last + 16).filter(|_| is_sound)?);
        Some(())
    }

    fn home_address(&mut self, header: &[u8]) {
        let mut at = 2;
        while at < header.len() {
            let len = match header[at] {
                0 => 1,
                _ if at + 1 == header.len() => return,
                _ => 2 + usize::from(header[at + 1]),
            };
            if header[at] == 0xc9 && len == 18 {
                if at + len <= header.len() {
                    self.addresses[..16].copy_from_slice(&header[at + 2..at + 18]);
                }
                return;
            }
            at += len;
        }
    }
}

/// A field in network order.
fn field(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}
