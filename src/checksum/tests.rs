//! Completed packets, judged by a slow sum of its own and by etherparse.

use proptest::prelude::*;

use self::oracle::{slow_sum, slow_sum_with};
use super::*;
use crate::ip::tests::{extension, home_address_options, host_v6, ipv4, ipv6, routing};

mod oracle;

const EVERYTHING: Completion = Completion::Everything;

fn malformed(what: &'static str) -> Completion {
    Completion::Nothing(WhyNothing::Malformed { what })
}

fn completed(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    assert_eq!(complete(&mut packet), EVERYTHING);
    packet
}

/// The addresses as they stand in the IP header.
fn addresses_of(packet: &[u8]) -> Vec<u8> {
    packet[if packet[0] >> 4 == 4 { 12..20 } else { 8..40 }].to_vec()
}

#[test]
fn the_example_of_rfc_1071() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(finish(sum(&bytes)), [!0xdd, !0xf2]);
}

#[test]
fn sums_of_all_lengths_and_carries() {
    let sum_of = |bytes: &[u8]| !u16::from_be_bytes(finish(sum(bytes)));
    let bytes: Vec<u8> = (0..1_000_u32).map(|i| (i * i % 251).to_le_bytes()[0]).collect();
    for len in 0..bytes.len() {
        assert_eq!(u32::from(sum_of(&bytes[..len])), slow_sum(&bytes[..len]), "{len} bytes");
    }
    for len in [2, 31, 32, 33, 65_534, 65_535] {
        assert_eq!(u32::from(sum_of(&vec![0xff; len])), slow_sum(&vec![0xff; len]), "{len} bytes");
    }
    let mut carries = [0; 80];
    carries[..32].fill(0xff);
    carries[32] = 1;
    carries[48] = 7;
    assert_eq!(u32::from(sum_of(&carries)), slow_sum(&carries));
}

#[test]
fn a_known_ipv4_header() {
    let mut packet = vec![0; 0x73];
    packet[..20].copy_from_slice(&[
        0x45, 0, 0xee, 0xee, 0, 0, 0x40, 0, 0x40, 0x11, 0xee, 0xee, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8,
        0, 0xc7,
    ]);
    let packet = completed(&packet);
    assert_eq!((read(&packet, 2), read(&packet, 10)), (0x73, 0xb861));
}

/// Payloads of `protocol/tests/data`, checksums final: the kernel and this crate agree.
#[test]
fn packets_of_the_kernel_stay_as_they_are() {
    let udp = b"\x45\x00\x00\x21\x2f\x68\x40\x00\x40\x11\x0d\x62\x7f\x00\x00\x01\x7f\x00\x00\x01\
        \x11\x5c\x00\x63\x00\x0d\xac\x40hello"; // ipv4-output-uid-secctx-ct-udp
    let syn = b"\x60\x03\xee\x3c\x00\x28\x06\x40\
        \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\
        \x9f\xf6\x00\x62\xc6\x2f\x8f\xf0\0\0\0\0\xa0\x02\xff\xc4\x95\x72\0\0\
        \x02\x04\xff\xc4\x04\x02\x08\x0a\x26\x6d\x9b\xd0\0\0\0\0\x01\x03\x03\x07"; // ipv6-tcp-syn-ct-protoinfo
    assert_eq!(completed(udp), udp);
    assert_eq!(completed(syn), syn);
}

/// The same, where the checksum field holds the sum of the pseudo header only.
#[test]
fn packets_whose_checksum_is_not_ready() {
    let udp = b"\x45\x00\x00\x21\x8b\x50\x40\x00\x40\x11\xb1\x79\x7f\x00\x00\x01\x7f\x00\x00\x01\
        \x84\xb0\xd0\x6b\x00\x0d\xfe\x20fi\x67e!"; // as ipv4-output-udp
    let addresses = addresses_of(udp);
    assert_eq!(slow_sum(&[&addresses[..], &[0, 17, 0, 13]].concat()), 0xfe20);
    let packet = completed(udp);
    assert_eq!(packet[..26], udp[..26]);
    assert_eq!(packet[28..], udp[28..]);
    assert_eq!(slow_sum_with(&addresses, 17, &packet[20..], 13), 0xffff);
}

#[test]
fn lengths_follow_the_slice() {
    for body in [0, 1, 2, 57, 1_472] {
        let udp = [&[0, 1, 0, 2, 0xee, 0xee, 0, 1][..], &vec![7; body]].concat();
        let packet = completed(&ipv4(17, &[1; 12], &udp));
        assert_eq!(read(&packet, 2), u16::try_from(32 + 8 + body).expect("a length that fits"));
        assert_eq!(read(&packet, 32 + 4), u16::try_from(8 + body).expect("a length that fits"));
        let packet = completed(&ipv6(60, &[&extension(17, &[0; 6]), &udp[..]].concat()));
        assert_eq!(read(&packet, 4), u16::try_from(8 + 8 + body).expect("a length that fits"));
        assert_eq!(read(&packet, 48 + 4), u16::try_from(8 + body).expect("a length that fits"));
    }
}

#[test]
fn udp_without_checksum() {
    let udp = [0, 1, 0, 2, 0, 0, 0, 0, b'x'];
    assert_eq!(completed(&ipv4(17, &[], &udp))[26..28], [0, 0]);
    assert_ne!(completed(&ipv6(17, &udp))[46..48], [0, 0]);
}

#[test]
fn a_computed_zero() {
    for (protocol, at, expected) in
        [(17, 6, [0xff; 2]), (136, 6, [0xff; 2]), (6, 16, [0; 2]), (1, 2, [0; 2]), (58, 2, [0; 2])]
    {
        let mut transport = [0; 22];
        transport[at] = 1; // not "none"
        for (mut packet, start) in
            [(ipv4(protocol, &[], &transport), 20), (ipv6(protocol, &transport), 40)]
        {
            if complete(&mut packet) != EVERYTHING {
                continue; // ICMP of the other version
            }
            // A last word that makes up for all the rest.
            let checksum = [packet[start + at], packet[start + at + 1]];
            packet.truncate(packet.len() - 2);
            packet.extend(checksum);
            assert_eq!(completed(&packet)[start + at..][..2], expected, "protocol {protocol}");
        }
    }
}

#[test]
fn udp_lite_coverage() {
    for (coverage, written, covered) in
        [(0, 0, 29), (8, 8, 8), (9, 9, 9), (28, 28, 28), (29, 29, 29), (30, 0, 29), (0xffff, 0, 29)]
    {
        let mut udp_lite = vec![3; 29];
        udp_lite[4..6].copy_from_slice(&u16::to_be_bytes(coverage));
        for (packet, start) in [(ipv4(136, &[], &udp_lite), 20), (ipv6(136, &udp_lite), 40)] {
            let packet = completed(&packet);
            assert_eq!(read(&packet, start + 4), written, "coverage {coverage}");
            let addresses = addresses_of(&packet);
            let sum = slow_sum_with(&addresses, 136, &packet[start..], covered);
            assert_eq!(sum, 0xffff, "coverage {coverage}");
        }
    }
    for coverage in 1..8 {
        let mut packet = ipv4(136, &[], &[0, 1, 0, 2, 0, coverage, 0, 0]);
        let before = packet.clone();
        assert_eq!(complete(&mut packet), malformed("UDP-Lite coverage"));
        assert_eq!(packet, before);
    }
}

#[test]
fn only_the_ip_header() {
    let fragment = WhyIpOnly::Fragment;
    let unknown = |protocol| WhyIpOnly::UnknownProtocol(Protocol(protocol));
    let protected = |protocol| WhyIpOnly::Protected(Protocol(protocol));
    let rest = [0xee; 40];
    let ipv4_fragment = |high: u8, low| {
        let mut packet = ipv4(17, &[], &rest);
        (packet[6], packet[7]) = (high, low);
        packet
    };
    let ipv6_fragment = |low| ipv6(44, &[&[17, 0, 0, low, 0, 0, 0, 0], &rest[..]].concat());
    for (packet, why) in [
        (ipv4_fragment(0x20, 0), fragment),
        (ipv4_fragment(0x00, 1), fragment),
        (ipv6_fragment(1), fragment),
        (ipv6_fragment(8), fragment),
        (ipv4(50, &[], &rest), protected(50)),
        (ipv4(51, &[], &rest), protected(51)),
        (ipv6(50, &rest), protected(50)),
        (ipv6(51, &rest), protected(51)),
        (ipv4(132, &[], &rest), unknown(132)),
        (ipv6(33, &rest), unknown(33)),
        (ipv4(58, &[], &rest), unknown(58)),
        (ipv6(1, &rest), unknown(1)),
        (ipv4(47, &[], &[]), unknown(47)),
        (ipv6(59, &[]), unknown(59)),
        (ipv6(43, &[&routing(17, 3, 1, 0, &[9])[..], &rest].concat()), WhyIpOnly::UnknownRoute(3)),
    ] {
        let mut completed = packet.clone();
        assert_eq!(complete(&mut completed), Completion::IpOnly(why));
        if packet[0] >> 4 == 4 {
            assert_eq!(usize::from(read(&completed, 2)), packet.len());
            assert_eq!(slow_sum(&completed[..20]), 0xffff);
            assert_eq!(completed[12..], packet[12..]);
        } else {
            assert_eq!(usize::from(read(&completed, 4)), packet.len() - 40);
            assert_eq!(completed[6..], packet[6..]);
        }
    }
    let atomic = ipv6_fragment(0);
    assert_eq!(slow_sum_with(&addresses_of(&atomic), 17, &completed(&atomic)[48..], 40), 0xffff);
}

#[test]
fn nothing_at_all() {
    let too_long = |len| Completion::Nothing(WhyNothing::TooLong { len });
    let not_ip = Completion::Nothing(WhyNothing::NotIp);
    let mut short_header = ipv4(17, &[], &[0; 40]);
    short_header[0] = 0x44;
    let cut_options = ipv4(17, &[1; 40], &[])[..59].to_vec();
    for (mut packet, outcome) in [
        (vec![], not_ip),
        (vec![0x50; 100], not_ip),
        (vec![0x45; 19], malformed("IPv4 header")),
        (short_header, malformed("IPv4 header")),
        (cut_options, malformed("IPv4 header")),
        (vec![0x60; 39], malformed("IPv6 header")),
        (ipv6(0, &[17, 0, 0, 0, 0, 0, 0]), malformed("extension header")),
        (ipv6(60, &[17, 1, 0, 0, 0, 0, 0, 0, 0]), malformed("extension header")),
        (ipv6(43, &routing(17, 0, 9, 0, &[7])), malformed("routing header")),
        (ipv4(6, &[], &[0; 19]), malformed("TCP header")),
        (ipv4(17, &[], &[0; 7]), malformed("UDP header")),
        (ipv6(17, &[0; 7]), malformed("UDP header")),
        (ipv4(136, &[], &[0; 7]), malformed("UDP-Lite header")),
        (ipv4(1, &[], &[0; 7]), malformed("ICMP header")),
        (ipv6(58, &[0; 7]), malformed("ICMP header")),
        (ipv6(6, &[]), malformed("TCP header")),
        (ipv4(17, &[], &[1; 65_516]), too_long(65_536)),
        (ipv6(17, &[1; 65_536]), too_long(65_576)),
        (ipv6(60, &[&extension(17, &[0; 6])[..], &[1; 65_528]].concat()), too_long(65_576)),
        (ipv4(200, &[], &[1; 70_000]), too_long(70_020)),
    ] {
        let before = packet.clone();
        assert_eq!(complete(&mut packet), outcome);
        assert_eq!(packet, before);
    }
    assert_eq!(completed(&ipv4(17, &[], &[1; 65_515]))[2..4], [0xff; 2]);
    assert_eq!(completed(&ipv6(17, &[1; 65_535]))[4..6], [0xff; 2]);
}

#[test]
fn shortest_transport_headers() {
    for (protocol, len) in [(6, 20), (17, 8), (136, 8), (1, 8)] {
        completed(&ipv4(protocol, &[], &vec![0; len]));
    }
    completed(&ipv6(58, &[0; 8]));
}

#[test]
fn addresses_that_are_not_in_the_ip_header() {
    let udp = [0x30, 0x39, 0, 53, 0, 0, 0, 1, b'h', b'i'];
    for (packet, source, destination) in [
        (ipv6(43, &[&routing(17, 0, 1, 0, &[8, 9])[..], &udp].concat()), 1, 9),
        (ipv6(43, &[&routing(17, 2, 1, 0, &[9])[..], &udp].concat()), 1, 9),
        (ipv6(43, &[&routing(17, 4, 1, 1, &[9, 8])[..], &udp].concat()), 1, 9),
        (ipv6(43, &[&routing(17, 4, 0, 1, &[9, 8])[..], &udp].concat()), 1, 2),
        (ipv6(60, &[&home_address_options(17, 9)[..], &udp].concat()), 9, 2),
    ] {
        let packet = completed(&packet);
        let addresses = [source, destination].map(|host| host_v6(host).octets());
        let transport = &packet[packet.len() - udp.len()..];
        assert_eq!(slow_sum_with(addresses.as_flattened(), 17, transport, 10), 0xffff);
    }
    let route = [131, 7, 4, 198, 51, 100, 9, 0];
    let packet = completed(&ipv4(17, &route, &udp));
    let addresses = [192, 0, 2, 1, 198, 51, 100, 9];
    assert_eq!(slow_sum_with(&addresses, 17, &packet[28..], 10), 0xffff);
}

#[test]
fn outcomes_are_readable() {
    for (outcome, text) in [
        (WhyIpOnly::Fragment, "the packet is a fragment"),
        (WhyIpOnly::Protected(Protocol::ESP), "the packet is protected by ESP"),
        (WhyIpOnly::UnknownProtocol(Protocol::SCTP), "the checksum of SCTP is not known"),
        (WhyIpOnly::UnknownRoute(3), "a routing header of type 3 hides the final destination"),
    ] {
        let outcome = Completion::IpOnly(outcome).to_string();
        assert_eq!(outcome, format!("only the IP header completed: {text}"));
    }
    for (outcome, text) in [
        (WhyNothing::NotIp, "the packet is neither IPv4 nor IPv6"),
        (WhyNothing::Malformed { what: "TCP header" }, "malformed TCP header"),
        (WhyNothing::TooLong { len: 70_000 }, "70000 bytes are too long for an IP packet"),
    ] {
        assert_eq!(Completion::Nothing(outcome).to_string(), format!("not completed: {text}"));
    }
    assert_eq!(EVERYTHING.to_string(), "completed");
}

/// Packets that can be completed.
fn samples() -> impl Strategy<Value = Vec<u8>> {
    let extensions =
        prop::collection::vec((prop_oneof![Just(60), Just(43), Just(44)], 0..4_usize), 0..4);
    let transport = prop::collection::vec(any::<u8>(), 20..1_600);
    let small = prop::collection::vec(prop_oneof![Just(0), Just(0xff)], 20..70);
    let transport = prop_oneof![3 => transport, 1 => small];
    (any::<bool>(), 0..4_usize, 0..11_usize, extensions, transport, any::<[u8; 32]>()).prop_map(
        |(is_ipv4, which, options, extensions, mut transport, addresses)| {
            let protocol = [6, 17, 136, if is_ipv4 { 1 } else { 58 }][which];
            if protocol == 136 && (1..8).contains(&read(&transport, 4)) {
                transport[4] = 1;
            }
            let mut packet = if is_ipv4 {
                ipv4(protocol, &vec![1; options * 4], &transport)
            } else {
                let mut next = protocol;
                let mut rest = transport;
                for (kind, units) in extensions {
                    let units = if kind == 44 { 0 } else { units };
                    rest = [extension(next, &vec![0; 6 + units * 8]), rest].concat();
                    next = kind;
                }
                ipv6(next, &rest)
            };
            let at = if is_ipv4 { 12..20 } else { 8..40 };
            let len = at.len();
            packet[at].copy_from_slice(&addresses[..len]);
            packet
        },
    )
}

/// Bytes that are often nearly a packet.
fn nearly_packets() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![Just(0x45), Just(0x46), Just(0x4f), Just(0x60), any::<u8>()];
    let number = prop_oneof![
        Just(0),
        Just(1),
        Just(6),
        Just(17),
        Just(43),
        Just(44),
        Just(50),
        Just(51),
        Just(58),
        Just(60),
        Just(136),
        any::<u8>(),
    ];
    let bytes = prop::collection::vec(prop_oneof![2 => number.clone(), 1 => any::<u8>()], 0..200);
    (first, number.clone(), number, any::<bool>(), bytes).prop_map(
        |(first, ipv4_protocol, ipv6_protocol, whole, mut bytes)| {
            for (at, value) in [(0, first), (9, ipv4_protocol), (6, ipv6_protocol)] {
                // The fragment offset of IPv4 lies where IPv6 has the next header.
                if let Some(byte) = bytes.get_mut(at).filter(|_| at != 6 || first >> 4 == 6) {
                    *byte = value;
                }
            }
            if let Some(fragmentation) = bytes.get_mut(6..8).filter(|_| whole && first >> 4 == 4) {
                fragmentation.fill(0);
            }
            bytes
        },
    )
}

proptest! {
    #[test]
    fn completed_packets_are_valid(sample in samples()) {
        let packet = completed(&sample);
        oracle::judge(&sample, EVERYTHING, &packet);
        prop_assert_eq!(completed(&packet), packet);
    }

    #[test]
    fn any_bytes_are_safe(bytes in nearly_packets()) {
        let mut packet = bytes.clone();
        let outcome = complete(&mut packet);
        oracle::judge(&bytes, outcome, &packet);
        let once = packet.clone();
        prop_assert_eq!(complete(&mut packet), outcome);
        prop_assert_eq!(packet, once);
    }
}
