//! The walk over IP headers, and protocol names.

use proptest::prelude::*;

use super::*;

/// An IPv4 packet from 192.0.2.1 to 192.0.2.2 with lengths and checksums of 0. The options' length
/// is a multiple of 4.
pub(crate) fn ipv4(protocol: u8, options: &[u8], rest: &[u8]) -> Vec<u8> {
    let first = 0x45 + u8::try_from(options.len() / 4).expect("a length that fits");
    let header = [first, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
    [&header, options, rest].concat()
}

/// An IPv6 packet from `2001:db8::1` to `2001:db8::2` with a length of 0.
pub(crate) fn ipv6(next_header: u8, rest: &[u8]) -> Vec<u8> {
    let addresses = [1, 2].map(|host| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host).octets());
    [&[0x60, 0, 0, 0, 0, 0, next_header, 64], addresses.as_flattened(), rest].concat()
}

/// An extension header; the content's length is 6 more than a multiple of 8.
pub(crate) fn extension(next_header: u8, content: &[u8]) -> Vec<u8> {
    assert_eq!(content.len() % 8, 6);
    [&[next_header, u8::try_from(content.len() / 8).expect("a length that fits")], content].concat()
}

/// A routing header with these hosts of `2001:db8::/64`; `entries` is its fifth byte.
pub(crate) fn routing(next: u8, kind: u8, left: u8, entries: u8, hosts: &[u16]) -> Vec<u8> {
    let mut content = vec![kind, left, entries, 0, 0, 0];
    content.extend(hosts.iter().flat_map(|host| host_v6(*host).octets()));
    extension(next, &content)
}

pub(crate) fn host_v6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host)
}

/// A Home Address option with its header.
pub(crate) fn home_address_options(next: u8, host: u16) -> Vec<u8> {
    // Padding to the option's alignment: one byte, then one of 5 bytes. More behind it.
    let content =
        [&[0, 1, 3, 7, 7, 7][..], &[0xc9, 16], &host_v6(host).octets(), &[1, 4, 0, 0, 0, 0]];
    extension(next, &content.concat())
}

fn read(packet: &[u8]) -> Headers {
    Headers::read(packet).expect("headers")
}

#[test]
fn ipv4_headers() {
    let headers = read(&ipv4(17, &[], &[1, 2]));
    assert_eq!(headers.source, IpAddr::from([192, 0, 2, 1]));
    assert_eq!(headers.destination, IpAddr::from([192, 0, 2, 2]));
    assert_eq!(headers.checksum_source, headers.source);
    assert_eq!(headers.checksum_destination, Ok(headers.destination));
    assert_eq!((headers.protocol, headers.transport), (Protocol::UDP, 20));
    assert_eq!((headers.fragment, headers.fault), (Fragment::Whole, None));
    assert_eq!(read(&ipv4(6, &[1; 40], &[])).transport, 60);
}

#[test]
fn ipv4_fragments() {
    for (word, fragment) in [
        (0x4000, Fragment::Whole),
        (0x8000, Fragment::Whole),
        (0x2000, Fragment::First),
        (0x2001, Fragment::Later),
        (0x1000, Fragment::Later),
        (0x0001, Fragment::Later),
    ] {
        let mut packet = ipv4(17, &[], &[]);
        packet[6..8].copy_from_slice(&u16::to_be_bytes(word));
        assert_eq!(read(&packet).fragment, fragment, "{word:#06x}");
    }
}

#[test]
fn ipv4_source_routes() {
    let route = |kind, pointer| {
        vec![1, kind, 11, pointer, 192, 0, 2, 3, 192, 0, 2, 4] // a no-operation before it
    };
    let destination =
        |options: &[u8]| read(&ipv4(17, options, &[])).checksum_destination.expect("a route");
    let (next, last) = (IpAddr::from([192, 0, 2, 2]), IpAddr::from([192, 0, 2, 4]));
    for kind in [131, 137] {
        for pointer in [4, 8, 11] {
            assert_eq!(destination(&route(kind, pointer)), last, "{kind} at {pointer}");
        }
        assert_eq!(destination(&route(kind, 12)), next, "used up");
    }
    // Behind another option; but not behind the end, nor in a record of the route.
    let other = [&[148, 4, 0, 0], &route(131, 4)[..]].concat();
    assert_eq!(destination(&other), last);
    let ended = [&[0, 0, 0, 0], &route(131, 4)[..]].concat();
    assert_eq!(destination(&ended), next);
    assert_eq!(destination(&route(7, 4)), next);
    for malformed in
        [[131, 0, 0, 0], [131, 2, 4, 4], [131, 3, 3, 4], [131, 5, 4, 4], [1, 1, 1, 131]]
    {
        assert_eq!(destination(&malformed), next, "{malformed:?}");
    }
}

#[test]
fn unreadable_and_cut_off() {
    let not_ip = Err(Unreadable::NotIp);
    for packet in [&[][..], &[0x05], &[0x55; 60], &[0xff; 60]] {
        assert_eq!(Headers::read(packet), not_ip);
    }
    let malformed = Err(Unreadable::Malformed("IPv4 header"));
    assert_eq!(Headers::read(&ipv4(17, &[], &[])[..19]), malformed);
    let mut short = ipv4(17, &[], &[0; 20]);
    short[0] = 0x44;
    assert_eq!(Headers::read(&short), malformed);
    let options_cut = read(&ipv4(17, &[1; 8], &[])[..27]);
    assert_eq!((options_cut.fault, options_cut.transport), (Some("IPv4 header"), 28));
    let malformed = Err(Unreadable::Malformed("IPv6 header"));
    assert_eq!(Headers::read(&ipv6(17, &[])[..39]), malformed);

    let packet = ipv6(0, &extension(17, &[0; 14]));
    for len in 40..packet.len() {
        let headers = read(&packet[..len]);
        assert_eq!(headers.fault, Some("extension header"), "{len}");
        // As far as the bytes go.
        let (protocol, at) = if len < 48 { (HOP_BY_HOP, 40) } else { (Protocol::UDP, 56) };
        assert_eq!((headers.protocol, headers.transport), (protocol, at), "{len}");
    }
    assert_eq!(read(&packet).fault, None);
}

#[test]
fn ipv6_extension_headers_are_skipped() {
    let chain = [
        extension(60, &[0; 6]), // hop-by-hop
        extension(43, &[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        routing(44, 0, 0, 0, &[7]),
        vec![60, 0xff, 0, 0, 1, 2, 3, 4], // an atomic fragment's header: its second byte is no length
        extension(6, &[1, 4, 0, 0, 0, 0]),
    ];
    let headers = read(&ipv6(0, &chain.concat()));
    assert_eq!((headers.protocol, headers.transport), (Protocol::TCP, 40 + 8 + 16 + 24 + 8 + 8));
    assert_eq!((headers.fragment, headers.fault), (Fragment::Whole, None));
    assert_eq!(headers.checksum_destination, Ok(headers.destination), "no segments left");
    assert_eq!(headers.checksum_source, headers.source);
}

#[test]
fn what_ends_the_walk_over_ipv6() {
    for protocol in [50, 51, 59, 135, 139, 140, 6, 17, 41, 253] {
        let headers = read(&ipv6(60, &[&extension(protocol, &[0; 6])[..], &[17; 16]].concat()));
        assert_eq!((headers.protocol, headers.transport), (Protocol(protocol), 48));
        assert_eq!(headers.fault, None);
    }
}

#[test]
fn ipv6_fragments() {
    for (low, fragment, protocol, at) in [
        (0, Fragment::Whole, Protocol::UDP, 56),
        (0b110, Fragment::Whole, Protocol::UDP, 56), // reserved bits
        (1, Fragment::First, Protocol::UDP, 56),
        // What is called destination options lies in the first fragment.
        (8, Fragment::Later, DESTINATION_OPTIONS, 48),
        (9, Fragment::Later, DESTINATION_OPTIONS, 48),
    ] {
        let options = extension(17, &[0; 6]);
        let headers = read(&ipv6(44, &[&[60, 0, 0, low, 0, 0, 0, 0], &options[..]].concat()));
        assert_eq!(headers.fragment, fragment, "{low}");
        assert_eq!((headers.protocol, headers.transport), (protocol, at), "{low}");
    }
    let two = [[44, 0, 0, 1, 0, 0, 0, 0], [17, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(read(&ipv6(44, &two)).fragment, Fragment::First, "an atomic one does not undo it");
}

#[test]
fn final_destinations_of_routing_headers() {
    let through = |header: &[u8]| {
        let headers = read(&ipv6(43, header));
        (headers.checksum_destination, headers.fault)
    };
    let to = |host| (Ok(IpAddr::from(host_v6(host))), None);
    assert_eq!(through(&routing(17, 0, 1, 0, &[7, 8, 9])), to(9));
    assert_eq!(through(&routing(17, 0, 3, 0, &[7, 8, 9])), to(9));
    assert_eq!(through(&routing(17, 2, 1, 0, &[7])), to(7));
    assert_eq!(through(&routing(17, 4, 1, 2, &[7, 8, 9])), to(7));
    assert_eq!(through(&routing(17, 4, 3, 2, &[7, 8, 9])), to(7), "its first segment left out");
    let with_tlv = [&routing(17, 4, 1, 0, &[7])[..], &[5, 6, 0, 0, 0, 0, 0, 0]].concat();
    let with_tlv = [&[17, 3], &with_tlv[2..]].concat();
    assert_eq!(through(&with_tlv), to(7));
    for kind in [0, 2, 4, 3, 5] {
        assert_eq!(through(&routing(17, kind, 0, 0, &[7])), to(2), "type {kind}, none left");
    }
    assert_eq!(through(&routing(17, 3, 1, 0, &[7])), (Err(3), None));

    let first = routing(43, 3, 1, 0, &[7]);
    let both = [&first[..], &routing(17, 0, 1, 0, &[8])].concat();
    assert_eq!(through(&both), to(8), "the last one counts");
}

#[test]
fn contradictory_routing_headers() {
    for header in [
        routing(17, 0, 4, 0, &[7, 8, 9]), // more segments left than there are
        routing(17, 0, 1, 0, &[]),
        extension(17, &[&[0, 1][..], &[0; 28]].concat()), // one and a half addresses
        routing(17, 2, 2, 0, &[7]),
        routing(17, 2, 1, 0, &[7, 8]),
        routing(17, 2, 1, 0, &[]),
        routing(17, 4, 4, 2, &[7, 8, 9]),
        routing(17, 4, 1, 3, &[7, 8, 9]),
        routing(17, 4, 1, 0, &[]),
    ] {
        assert_eq!(read(&ipv6(43, &header)).fault, Some("routing header"), "{header:?}");
    }
}

#[test]
fn home_addresses() {
    let source = |options: &[u8]| read(&ipv6(60, options)).checksum_source;
    assert_eq!(source(&home_address_options(17, 9)), host_v6(9));
    let own = host_v6(1);
    let mut other_kind = home_address_options(17, 9);
    other_kind[8] = 0xc8;
    assert_eq!(source(&other_kind), own);
    let mut other_len = home_address_options(17, 9);
    other_len[9] = 15;
    assert_eq!(source(&other_len), own);
    assert_eq!(source(&extension(17, &[0, 0, 0, 0, 0xc9, 16])), own, "beyond the end");
    assert_eq!(source(&extension(17, &[1, 9, 0, 0, 0, 0])), own, "beyond the end");
    assert_eq!(read(&ipv6(0, &home_address_options(17, 9))).checksum_source, own, "hop-by-hop");
}

#[test]
fn transport_offsets() {
    let of = transport_offset;
    assert_eq!(of(ETHERTYPE_IPV4, &ipv4(51, &[1; 8], &[0; 9])), 28);
    assert_eq!(of(ETHERTYPE_IPV4, &ipv4(51, &[1; 8], &[])[..26]), 26);
    assert_eq!(of(ETHERTYPE_IPV4, &[]), 0);
    let packet = ipv6(0, &[&extension(17, &[0; 14])[..], &[0; 9]].concat());
    assert_eq!(of(ETHERTYPE_IPV6, &packet), 56);
    assert_eq!(of(ETHERTYPE_IPV6, &packet[..50]), 50);
    assert_eq!(of(ETHERTYPE_IPV6, &packet[..30]), 30);
    assert_eq!(of(0x0806, &packet), 0);
    assert_eq!(of(0x0806, &ipv4(17, &[], &[0; 8])), 0);
}

#[test]
fn paddings() {
    let mut packet = ipv4(17, &[1; 4], &[0; 22]);
    for (stated, expected) in [(0, 0), (23, 0), (24, 22), (40, 6), (46, 0), (47, 0), (0xffff, 0)] {
        packet[2..4].copy_from_slice(&u16::to_be_bytes(stated));
        assert_eq!(padding(&packet), expected, "{stated}");
    }
    packet[0] = 0x44;
    packet[2..4].copy_from_slice(&[0, 16]);
    assert_eq!(padding(&packet), 0, "no header is that short");

    let mut packet = ipv6(17, &[0; 20]);
    for (stated, expected) in [(0, 0), (1, 19), (14, 6), (20, 0), (21, 0), (0xffff, 0)] {
        packet[4..6].copy_from_slice(&u16::to_be_bytes(stated));
        assert_eq!(padding(&packet), expected, "{stated}");
    }
    assert_eq!(padding(&ipv6(59, &[0; 6])), 6, "nothing follows");
    for not_ip in [&[][..], &[0x45], &[0x60, 0, 0, 0, 0], &[0; 60]] {
        assert_eq!(padding(not_ip), 0);
    }
}

#[test]
fn protocol_names() {
    for (number, name) in [
        (0, "HOPOPT"),
        (9, "IGP"),
        (10, "BBN-RCC-MON"),
        (20, "HMP"),
        (29, "ISO-TP4"),
        (30, "NETBLT"),
        (41, "IPv6"),
        (50, "ESP"),
        (61, "any host internal protocol"),
        (70, "VISA"),
        (80, "ISO-IP"),
        (89, "OSPFIGP"),
        (99, "any private encryption scheme"),
        (100, "GMTP"),
        (112, "VRRP"),
        (120, "UTI"),
        (130, "SPS"),
        (136, "UDPLite"),
        (139, "HIP"),
        (140, "Shim6"),
        (255, "Reserved"),
    ] {
        assert_eq!(Protocol(number).name(), Some(name), "{number}");
        assert_eq!(Protocol(number).to_string(), name);
    }
    for number in 141..255 {
        assert_eq!(Protocol(number).name(), None);
    }
    assert_eq!(Protocol(141).to_string(), "protocol 141");
}

proptest! {
    /// Whatever the bytes, the walk ends, and what it says is consistent.
    #[test]
    fn any_bytes_can_be_walked(
        version in prop_oneof![Just(0x45), Just(0x4f), Just(0x60), any::<u8>()],
        // Many extension headers, short ones above all.
        mut packet in prop::collection::vec(
            prop_oneof![Just(0), Just(0), Just(1), Just(43), Just(44), Just(60), any::<u8>()],
            0..400,
        ),
    ) {
        if let Some(first) = packet.first_mut() {
            *first = version;
        }
        for ethertype in [ETHERTYPE_IPV4, ETHERTYPE_IPV6, 0x0806] {
            prop_assert!(transport_offset(ethertype, &packet) <= packet.len());
        }
        prop_assert!(padding(&packet) <= packet.len());
        if let Ok(headers) = Headers::read(&packet) {
            prop_assert!(headers.transport >= 20);
            if headers.fault.is_none() {
                prop_assert!(headers.transport <= packet.len());
            }
        }
    }
}
