//! `NFQA_CT`: the conntrack entry of a packet.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::list;
use netfilterqueue_protocol::conntrack::{
    Conntrack, ConntrackInfo, ConntrackStatus, Icmp, TcpState, Tuple,
};

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const NESTED: u16 = 0x8000;

/// The captures were made on a little-endian host, whose byte order their headers have.
#[cfg(target_endian = "little")]
mod captured {
    use super::common::{IPV4_UDP, IPV6_SYN, touch_packet, unhex};
    use super::*;
    use netfilterqueue_protocol::attribute::Attribute;
    use netfilterqueue_protocol::constants::NFQA_CT;
    use netfilterqueue_protocol::packet::PacketMessage;

    const CTA_PROTOINFO: u16 = 4;
    const CTA_COUNTERS_ORIG: u16 = 9;
    const CTA_COUNTERS_REPLY: u16 = 10;
    const CTA_TIMESTAMP: u16 = 20;

    /// Kind, offset and value of each attribute in a nest.
    fn inside(nest: Attribute<'_>) -> Vec<(u16, usize, Vec<u8>)> {
        nest.nested()
            .map(Result::unwrap)
            .map(|inner| (inner.kind(), inner.offset(), inner.value().to_vec()))
            .collect()
    }

    #[test]
    fn udp_over_ipv4() {
        let bytes = unhex(IPV4_UDP);
        let packet = PacketMessage::parse(&bytes).unwrap();
        let conntrack = packet.conntrack().unwrap();
        let original = Tuple {
            source: Ipv4Addr::LOCALHOST.into(),
            destination: Ipv4Addr::LOCALHOST.into(),
            protocol: 17,
            source_port: Some(4444),
            destination_port: Some(99),
            icmp: None,
            zone: None,
        };
        assert_eq!(conntrack.original(), Some(original));
        let reply = Tuple { source_port: Some(99), destination_port: Some(4444), ..original };
        assert_eq!(conntrack.reply(), Some(reply));
        assert_eq!(conntrack.id(), Some(0x7ca3_c870));
        // Not confirmed yet; the timeout and a mark of 0 are there all the same.
        assert_eq!(conntrack.status(), Some(ConntrackStatus(0)));
        assert_eq!(conntrack.timeout(), Some(30));
        assert_eq!(conntrack.mark(), Some(0));
        assert_eq!(conntrack.zone(), None);
        assert_eq!(conntrack.labels(), None);
        assert_eq!(conntrack.attribute(CTA_PROTOINFO), None);
        assert_eq!(conntrack.tcp_state(), None);
        assert_eq!(packet.conntrack_info(), Some(ConntrackInfo::NEW));
    }

    /// The counters are 64 bits wide, and the kernel puts empty attributes before them where they
    /// would not lie at a multiple of eight.
    #[test]
    fn counters_and_their_padding() {
        let bytes = unhex(IPV4_UDP);
        let packet = PacketMessage::parse(&bytes).unwrap();
        let conntrack = packet.conntrack().unwrap();
        let counters = conntrack.attribute(CTA_COUNTERS_ORIG).unwrap();
        assert!(counters.is_nested());
        // Offsets in a list that is read by itself count from its start: 196 - 68.
        assert_eq!(counters.offset(), 128);
        let expected = [
            (5, 132, vec![]),
            (1, 136, 1_u64.to_be_bytes().to_vec()),
            (5, 148, vec![]),
            (2, 152, 33_u64.to_be_bytes().to_vec()),
        ];
        assert_eq!(inside(counters), expected);
        let counters = conntrack.attribute(CTA_COUNTERS_REPLY).unwrap();
        let kinds: Vec<_> = inside(counters).into_iter().map(|(kind, ..)| kind).collect();
        assert_eq!(kinds, [1, 5, 2]);
        let start = inside(conntrack.attribute(CTA_TIMESTAMP).unwrap());
        assert_eq!(start, [(1, 200, vec![0; 8])]);

        // From the packet on, offsets count from the start of the message.
        let tree = packet.attribute(NFQA_CT).unwrap();
        let counters = tree.nested().last_of(CTA_COUNTERS_ORIG).unwrap();
        assert_eq!(counters.offset(), 196);
        assert_eq!(counters.nested().last_of(5).unwrap().offset(), 216);
    }

    #[test]
    fn tcp_over_ipv6() {
        let bytes = unhex(IPV6_SYN);
        let conntrack = PacketMessage::parse(&bytes).unwrap().conntrack().unwrap();
        let original = Tuple {
            source: Ipv6Addr::LOCALHOST.into(),
            destination: Ipv6Addr::LOCALHOST.into(),
            protocol: 6,
            source_port: Some(40950),
            destination_port: Some(98),
            icmp: None,
            zone: None,
        };
        assert_eq!(conntrack.original(), Some(original));
        let reply = Tuple { source_port: Some(98), destination_port: Some(40950), ..original };
        assert_eq!(conntrack.reply(), Some(reply));
        assert_eq!(conntrack.id(), Some(0xf873_71e0));
        assert_eq!(conntrack.status(), Some(ConntrackStatus(0)));
        assert_eq!(conntrack.timeout(), Some(120));
        assert_eq!(conntrack.mark(), Some(0));

        assert_eq!(conntrack.tcp_state(), Some(TcpState::SYN_SENT));

        // CTA_PROTOINFO_TCP: state SYN_SENT, window scales, flags and their masks.
        let protoinfo = conntrack.attribute(CTA_PROTOINFO).unwrap();
        let tcp = protoinfo.nested().last_of(1).unwrap();
        assert!(protoinfo.is_nested() && tcp.is_nested());
        let values: Vec<_> =
            inside(tcp).into_iter().map(|(kind, _, value)| (kind, value)).collect();
        let expected = [(1, vec![1]), (2, vec![7]), (3, vec![0]), (4, vec![3, 0]), (5, vec![0, 0])];
        assert_eq!(values, expected);
    }

    #[test]
    fn cut_anywhere() {
        for capture in [IPV4_UDP, IPV6_SYN] {
            let bytes = unhex(capture);
            let whole = PacketMessage::parse(&bytes).unwrap().conntrack().unwrap();
            let original = whole.original();
            // The tuple of the first direction is a whole attribute at the start of the tree.
            let tuple_len = usize::from(whole.bytes()[0]);
            for end in 0..=whole.bytes().len() {
                let cut = Conntrack::new(&whole.bytes()[..end]);
                let expected = if end < tuple_len { None } else { original };
                assert_eq!(cut.original(), expected, "cut at {end}");
                assert_eq!(cut.reply().is_some(), end >= 2 * tuple_len, "cut at {end}");
                assert_eq!(cut.id().is_some(), end >= 2 * tuple_len + 8, "cut at {end}");
                common::touch(cut.bytes());
            }
            touch_packet(PacketMessage::parse(&bytes).unwrap());
        }
    }
}

fn tuple(ip: &[(u16, Vec<u8>)], proto: &[(u16, Vec<u8>)]) -> Vec<u8> {
    list(&[(1 | NESTED, list(ip)), (2 | NESTED, list(proto))])
}

/// What the captures lack.
#[test]
fn every_other_attribute() {
    let labels = [3; 16];
    let tree = list(&[
        (3, 0x18e_u32.to_be_bytes().to_vec()),
        (8, 0x0102_0304_u32.to_be_bytes().to_vec()),
        (18, 0x0102_u16.to_be_bytes().to_vec()),
        (22, labels.to_vec()),
    ]);
    let conntrack = Conntrack::new(&tree);
    assert_eq!(conntrack.bytes(), tree);
    assert_eq!(conntrack.status(), Some(ConntrackStatus(0x18e)));
    assert_eq!(conntrack.mark(), Some(0x0102_0304));
    assert_eq!(conntrack.zone(), Some(0x0102));
    assert_eq!(conntrack.labels(), Some(&labels[..]));
    assert_eq!(conntrack.original(), None);
    assert_eq!(conntrack.timeout(), None);
    assert_eq!(conntrack.id(), None);
}

/// An echo request has an id, type and code in place of ports, and another type in its answer;
/// translated addresses differ by direction.
#[test]
fn icmp_echo() {
    let echo = |kind| [(1, vec![1]), (4, vec![1, 9]), (5, vec![kind]), (6, vec![3])];
    let tree = list(&[
        (CTA_TUPLE_ORIG, tuple(&[(1, vec![10, 0, 0, 1]), (2, vec![10, 0, 0, 2])], &echo(8))),
        (CTA_TUPLE_REPLY, tuple(&[(2, vec![192, 0, 2, 1]), (1, vec![10, 0, 0, 2])], &echo(0))),
    ]);
    let conntrack = Conntrack::new(&tree);
    let original = Tuple {
        source: Ipv4Addr::new(10, 0, 0, 1).into(),
        destination: Ipv4Addr::new(10, 0, 0, 2).into(),
        protocol: 1,
        source_port: None,
        destination_port: None,
        icmp: Some(Icmp { id: 0x0109, kind: 8, code: 3 }),
        zone: None,
    };
    assert_eq!(conntrack.original(), Some(original));
    let reply = Tuple {
        source: original.destination,
        destination: IpAddr::from([192, 0, 2, 1]),
        icmp: Some(Icmp { id: 0x0109, kind: 0, code: 3 }),
        ..original
    };
    assert_eq!(conntrack.reply(), Some(reply));
}

#[test]
fn icmpv6_echo() {
    let ip = [(3, vec![1; 16]), (4, vec![2; 16])];
    let icmp = |proto: &[(u16, Vec<u8>)]| {
        let tree = list(&[(CTA_TUPLE_ORIG, tuple(&ip, proto))]);
        let original = Conntrack::new(&tree).original().unwrap();
        assert_eq!((original.protocol, original.source_port), (58, None));
        original.icmp
    };
    let echo = [(1, vec![58]), (7, vec![2, 1]), (8, vec![128]), (9, vec![5])];
    assert_eq!(icmp(&echo), Some(Icmp { id: 0x0201, kind: 128, code: 5 }));
    // The three come together or not at all.
    assert_eq!(icmp(&echo[..3]), None);
    assert_eq!(icmp(&[echo[0].clone(), echo[1].clone(), (8, vec![]), echo[3].clone()]), None);
    assert_eq!(icmp(&[echo[0].clone(), (7, vec![2]), echo[2].clone(), echo[3].clone()]), None);
    assert_eq!(icmp(&echo[..1]), None);
}

/// A zone of one direction is inside its tuple; one of both is beside them.
#[test]
fn zones() {
    let zoned = |zone: Vec<u8>| {
        let ip = list(&[(1, vec![10, 0, 0, 1]), (2, vec![10, 0, 0, 2])]);
        list(&[(1 | NESTED, ip), (2 | NESTED, list(&[(1, vec![17])])), (3, zone)])
    };
    let tree = list(&[(CTA_TUPLE_ORIG, zoned(vec![1, 2])), (CTA_TUPLE_REPLY, zoned(vec![3]))]);
    let conntrack = Conntrack::new(&tree);
    assert_eq!(conntrack.original().unwrap().zone, Some(0x0102));
    assert_eq!(conntrack.reply().unwrap().zone, None);
    assert_eq!(conntrack.zone(), None);
}

#[test]
fn tcp_states() {
    let state_in = |kind, nest, value: &[u8]| {
        let protoinfo = list(&[(nest | NESTED, list(&[(kind, value.to_vec())]))]);
        Conntrack::new(&list(&[(4 | NESTED, protoinfo)])).tcp_state()
    };
    let state = |number| state_in(1, 1, &[number]).unwrap();
    assert_eq!(state(3), TcpState::ESTABLISHED);
    assert_eq!(state(200), TcpState(200));
    // DCCP, and an attribute that is not the state.
    assert_eq!(state_in(1, 2, &[3]), None);
    assert_eq!(state_in(2, 1, &[3]), None);
    assert_eq!(state_in(1, 1, &[]), None);
    let names: Vec<_> = (0..11).map(|number| state(number).to_string()).collect();
    let expected = [
        "NONE",
        "SYN_SENT",
        "SYN_RECV",
        "ESTABLISHED",
        "FIN_WAIT",
        "CLOSE_WAIT",
        "LAST_ACK",
        "TIME_WAIT",
        "CLOSE",
        "SYN_SENT2",
        "TCP state 10",
    ];
    assert_eq!(names, expected);
}

#[test]
fn relations_to_the_entry() {
    let names: Vec<_> = (0..6).map(|number| ConntrackInfo(number).to_string()).collect();
    let expected =
        ["established", "related", "new", "established reply", "related reply", "conntrack info 5"];
    assert_eq!(names, expected);
    let replies: Vec<_> = (0..6).map(|number| ConntrackInfo(number).is_reply()).collect();
    assert_eq!(replies, [false, false, false, true, true, true]);
    assert_eq!(ConntrackInfo::ESTABLISHED_REPLY, ConntrackInfo(3));
}

#[test]
fn status_bits() {
    // A translated connection that was answered, as `conntrack -o id` shows it.
    let status = ConntrackStatus(0x18e | 1 << 20);
    assert!(status.contains(ConntrackStatus::SEEN_REPLY | ConntrackStatus::ASSURED));
    assert!(!status.contains(ConntrackStatus::SEEN_REPLY | ConntrackStatus::SRC_NAT));
    assert!(!status.is_empty() && ConntrackStatus::default().is_empty());
    let text =
        "IPS_SEEN_REPLY|IPS_ASSURED|IPS_CONFIRMED|IPS_SRC_NAT_DONE|IPS_DST_NAT_DONE|0x100000";
    assert_eq!(status.to_string(), text);
    assert_eq!(format!("{status:?}"), format!("ConntrackStatus({text})"));
    assert_eq!(ConntrackStatus::default().to_string(), "0x0");

    // All sixteen, from the header.
    let names = [
        "EXPECTED",
        "SEEN_REPLY",
        "ASSURED",
        "CONFIRMED",
        "SRC_NAT",
        "DST_NAT",
        "SEQ_ADJUST",
        "SRC_NAT_DONE",
        "DST_NAT_DONE",
        "DYING",
        "FIXED_TIMEOUT",
        "TEMPLATE",
        "UNTRACKED",
        "HELPER",
        "OFFLOAD",
        "HW_OFFLOAD",
    ];
    for (bit, name) in names.into_iter().enumerate() {
        assert_eq!(ConntrackStatus(1 << bit).to_string(), format!("IPS_{name}"));
    }
    let mut status = ConntrackStatus::HELPER;
    status |= ConntrackStatus::HW_OFFLOAD;
    assert_eq!(status, ConntrackStatus(0xa000));
}

/// A value longer than its type counts from its start.
#[test]
fn addresses_that_differ() {
    let (mut source, mut destination) = (vec![0x20; 16], vec![0x30; 16]);
    source.push(9);
    destination.extend([9; 3]);
    let udp = [(1, vec![17, 9]), (2, vec![0, 1, 9]), (3, vec![0, 2, 9])];
    let tree = list(&[
        (CTA_TUPLE_ORIG, tuple(&[(4, destination), (3, source)], &udp)),
        (CTA_TUPLE_REPLY, tuple(&[(1, vec![10, 0, 0, 1, 9]), (2, vec![10, 0, 0, 2, 9])], &udp)),
    ]);
    let original = Tuple {
        source: IpAddr::from([0x20; 16]),
        destination: IpAddr::from([0x30; 16]),
        protocol: 17,
        source_port: Some(1),
        destination_port: Some(2),
        icmp: None,
        zone: None,
    };
    let conntrack = Conntrack::new(&tree);
    assert_eq!(conntrack.original(), Some(original));
    let (source, destination) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    assert_eq!(conntrack.reply(), Some(Tuple { source, destination, ..original }));
}

#[test]
fn incomplete_tuples() {
    let v4 = [(1, vec![10, 0, 0, 1]), (2, vec![10, 0, 0, 2])];
    let udp = [(1, vec![17]), (2, vec![0, 1]), (3, vec![0, 2])];
    let original = |value: Vec<u8>| {
        let tree = list(&[(CTA_TUPLE_ORIG | NESTED, value)]);
        Conntrack::new(&tree).original()
    };
    assert!(original(tuple(&v4, &udp)).is_some());
    assert_eq!(original(vec![]), None);
    assert_eq!(original(tuple(&v4[..1], &udp)), None);
    assert_eq!(original(tuple(&v4[1..], &udp)), None);
    assert_eq!(original(tuple(&v4, &udp[1..])), None);
    assert_eq!(original(tuple(&v4, &[(1, vec![])])), None);
    assert_eq!(original(tuple(&[(1, vec![10, 0, 0]), v4[1].clone()], &udp)), None);
    assert_eq!(original(tuple(&[(3, vec![0; 15]), (4, vec![0; 16])], &udp)), None);
    assert_eq!(original(list(&[(1 | NESTED, list(&v4))])), None);
    let short_port = original(tuple(&v4, &[(1, vec![17]), (2, vec![1])])).unwrap();
    assert_eq!(short_port.source_port, None);
}

#[test]
fn last_duplicate_counts() {
    let tree = list(&[(12, vec![0, 0, 0, 1]), (12, vec![0, 0, 0, 2])]);
    assert_eq!(Conntrack::new(&tree).id(), Some(2));
}
