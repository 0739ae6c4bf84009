//! `NFQNL_MSG_PACKET`: captured ones, cut ones and odd ones.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod common;

use std::time::{Duration, UNIX_EPOCH};

use common::{packet_hdr, queue_message, state_length, touch_packet};
use netfilterqueue_protocol::ParseError;
use netfilterqueue_protocol::constants::*;
use netfilterqueue_protocol::packet::{PacketIndex, PacketMessage, SkbInfo, Timestamp, Vlan};

/// Queue number and packet id; nothing else may be in it.
fn salvaged(bytes: &[u8]) -> Option<(u16, u32)> {
    let packet = PacketIndex::salvage(bytes)?;
    assert_eq!((packet.message_len(), packet.payload_range()), (0, None));
    assert_eq!(packet.view(bytes).attributes().count(), 0);
    Some((packet.queue(), packet.id()))
}

/// The captures were made on a little-endian host, whose byte order their headers have.
#[cfg(target_endian = "little")]
mod captured {
    use super::common::{
        BRIDGE_ARP, BRIDGE_VLAN, INPUT_SYN, IPV4_UDP, IPV6_SYN, OUTPUT_CUT, OUTPUT_UDP,
        POSTROUTING_UID, PREROUTING_META, captures, touch, unhex,
    };
    use super::*;
    use netfilterqueue_protocol::conntrack::ConntrackInfo;

    #[test]
    fn loopback_packets_per_hook() {
        let bytes =
            [OUTPUT_UDP, OUTPUT_CUT, POSTROUTING_UID, INPUT_SYN, PREROUTING_META].map(unhex);
        let [output, cut, postrouting, input, meta] =
            bytes.each_ref().map(|bytes| PacketMessage::parse(bytes).unwrap());
        assert_eq!((output.queue(), output.hook(), output.payload().len()), (7, 3, 33));
        assert_eq!(&output.payload()[28..], b"five!");
        assert_eq!((output.indev(), output.outdev(), output.cap_len()), (None, Some(1), None));
        assert_eq!((cut.queue(), cut.payload().len(), cut.cap_len()), (0, 41, Some(1028)));
        assert!(cut.index().is_truncated());
        assert_eq!(
            (postrouting.hook(), postrouting.uid(), postrouting.gid()),
            (4, Some(0), Some(0))
        );
        assert_eq!((input.queue(), input.family(), input.hook()), (65_535, NFPROTO_IPV6, 1));
        assert_eq!((input.indev(), input.outdev()), (Some(1), None));
        assert_eq!((input.hwaddr(), input.skb_info()), (Some(&[0; 6][..]), Some(SkbInfo(1))));
        assert_eq!((meta.hook(), meta.payload(), meta.cap_len()), (0, &[][..], None));
        assert_eq!(meta.index().payload_range(), None);
    }

    #[test]
    fn bridged_vlan_frame() {
        let bytes = unhex(BRIDGE_VLAN);
        let packet = PacketMessage::parse(&bytes).unwrap();
        assert_eq!(packet.bytes(), bytes);
        assert_eq!(packet.id(), 5);
        assert_eq!(packet.queue(), 2);
        assert_eq!(packet.family(), NFPROTO_BRIDGE);
        assert_eq!(packet.hook(), NF_INET_FORWARD);
        assert_eq!(packet.hw_protocol(), 0x0800);
        assert_eq!(packet.indev(), Some(6));
        assert_eq!(packet.outdev(), Some(6));
        assert_eq!(packet.physindev(), Some(4));
        assert_eq!(packet.physoutdev(), Some(5));
        assert_eq!(packet.hwaddr(), Some(&[0x62, 0x46, 0x4c, 0x91, 0xec, 0x79][..]));
        assert_eq!(packet.vlan(), Some(Vlan { proto: 0x8100, tci: 5 << 13 | 100 }));
        assert_eq!(packet.l2_header().unwrap(), unhex("56b6113219dc 62464c91ec79 0800"));
        assert_eq!(packet.skb_info(), Some(SkbInfo(4)));
        let mut payload = [0; 61];
        payload[0] = 0x45;
        assert_eq!(packet.payload(), payload);
        assert_eq!(packet.mark(), None);
        assert_eq!(packet.priority(), None);
        assert_eq!(packet.timestamp(), None);
        assert_eq!(packet.uid(), None);
        assert_eq!(packet.gid(), None);
        assert_eq!(packet.secctx(), None);
        assert_eq!(packet.cgroup_classid(), None);
        assert_eq!(packet.conntrack(), None);
        assert_eq!(packet.conntrack_info(), None);
        assert_eq!(packet.cap_len(), None);

        let index = packet.index();
        assert_eq!((index.id(), index.queue(), index.message_len()), (5, 2, 193));
        assert_eq!(index.payload_range(), Some(132..193));
        assert!(!index.is_truncated());

        let found: Vec<_> = packet
            .attributes()
            .map(Result::unwrap)
            .map(|attribute| (attribute.kind(), attribute.offset(), attribute.value().len()))
            .collect();
        let expected = [
            (1, 20, 7),
            (7, 32, 4),
            (5, 40, 4),
            (8, 48, 4),
            (6, 56, 4),
            (9, 64, 12),
            (19, 80, 16),
            (20, 100, 14),
            (14, 120, 4),
            (10, 128, 61),
        ];
        assert_eq!(found, expected);
        let nest = packet.attribute(NFQA_VLAN).unwrap();
        assert!(nest.is_nested() && !nest.is_net_byteorder());
        let offsets: Vec<_> = nest.nested().map(|inner| inner.unwrap().offset()).collect();
        assert_eq!(offsets, [84, 92]);
    }

    #[test]
    fn bridged_arp_request() {
        let bytes = unhex(BRIDGE_ARP);
        let packet = PacketMessage::parse(&bytes).unwrap();
        assert_eq!(packet.id(), 8);
        assert_eq!(packet.queue(), 0);
        assert_eq!(packet.family(), NFPROTO_BRIDGE);
        assert_eq!(packet.hook(), NF_INET_PRE_ROUTING);
        assert_eq!(packet.hw_protocol(), 0x0806);
        assert_eq!(packet.indev(), Some(6));
        assert_eq!(packet.physindev(), Some(5));
        assert_eq!(packet.outdev(), None);
        assert_eq!(packet.physoutdev(), None);
        assert_eq!(packet.hwaddr().unwrap(), unhex("56b6113219dc"));
        assert_eq!(packet.l2_header().unwrap(), unhex("62464c91ec79 56b6113219dc 0806"));
        assert_eq!(packet.vlan(), None);
        assert!(packet.skb_info().unwrap().checksum_not_verified());
        let arp = "0001 0800 06 04 0001 56b6113219dc 0a090103 000000000000 0a090102";
        assert_eq!(packet.payload(), unhex(arp));
    }

    #[test]
    fn udp_at_the_output_hook() {
        let bytes = unhex(IPV4_UDP);
        let packet = PacketMessage::parse(&bytes).unwrap();
        assert_eq!(packet.id(), 1);
        assert_eq!(packet.queue(), 1);
        assert_eq!(packet.family(), NFPROTO_IPV4);
        assert_eq!(packet.hook(), NF_INET_LOCAL_OUT);
        assert_eq!(packet.hw_protocol(), 0x0800);
        assert_eq!(packet.indev(), None);
        assert_eq!(packet.outdev(), Some(1));
        assert_eq!(packet.uid(), Some(0));
        assert_eq!(packet.gid(), Some(0));
        assert_eq!(packet.secctx(), Some(&b"_"[..]));
        assert_eq!(packet.conntrack_info(), Some(ConntrackInfo::NEW));
        assert_eq!(packet.conntrack().unwrap().bytes(), &bytes[68..288]);
        assert!(packet.attribute(NFQA_CT).unwrap().is_nested());
        assert_eq!(packet.hwaddr(), None);
        assert_eq!(packet.l2_header(), None);
        assert_eq!(packet.skb_info(), None);
        assert_eq!(packet.payload().len(), 33);
        assert_eq!(packet.payload()[0], 0x45);
        assert_eq!(&packet.payload()[28..], b"hello");
    }

    #[test]
    fn tcp_syn_over_ipv6() {
        let bytes = unhex(IPV6_SYN);
        let packet = PacketMessage::parse(&bytes).unwrap();
        assert_eq!(packet.id(), 7);
        assert_eq!(packet.queue(), 1);
        assert_eq!(packet.family(), NFPROTO_IPV6);
        assert_eq!(packet.hook(), NF_INET_LOCAL_OUT);
        assert_eq!(packet.hw_protocol(), 0x86dd);
        assert_eq!(packet.outdev(), Some(1));
        assert_eq!(packet.uid(), Some(0));
        assert_eq!(packet.gid(), Some(0));
        assert_eq!(packet.secctx(), Some(&b"_"[..]));
        assert_eq!(packet.conntrack_info(), Some(ConntrackInfo::NEW));
        assert_eq!(packet.conntrack().unwrap().bytes(), &bytes[68..384]);
        assert_eq!(packet.index().payload_range(), Some(396..476));
        assert_eq!(packet.payload()[..4], [0x60, 0x03, 0xee, 0x3c]);
    }

    #[test]
    fn cut_anywhere() {
        for bytes in captures() {
            let whole = PacketMessage::parse(&bytes).unwrap();
            for end in 0..bytes.len() {
                let cut = &bytes[..end];
                // The stated length is past the cut, except in the header's own bytes.
                let error = PacketIndex::parse(cut).unwrap_err();
                let needed = if end < 16 { 16 } else { bytes.len() };
                assert!(
                    matches!(error, ParseError::Truncated { needed: n, had, offset: 0, .. }
                        if n == needed && had == end),
                    "{error:?}"
                );
                // The first attribute lies at 20 and has 4 + 7 bytes.
                let expected = (end >= 31).then_some((whole.queue(), whole.id()));
                assert_eq!(salvaged(cut), expected, "cut at {end}");
                touch(cut);
            }
        }
    }

    /// Cut, and the header's length made to agree: what remains is legal if the cut is not inside
    /// an attribute of which the header is there.
    #[test]
    fn cut_anywhere_with_the_length_patched() {
        // Offset and length of each attribute, from a reading by hand.
        let starts: [&[(usize, usize)]; 2] = [
            &[
                (20, 11),
                (32, 8),
                (40, 8),
                (48, 8),
                (56, 8),
                (64, 16),
                (80, 20),
                (100, 18),
                (120, 8),
                (128, 65),
            ],
            &[(20, 11), (32, 8), (40, 8), (48, 16), (64, 18), (84, 8), (92, 32)],
        ];
        for (capture, starts) in [BRIDGE_VLAN, BRIDGE_ARP].into_iter().zip(starts) {
            let bytes = unhex(capture);
            for end in 16..=bytes.len() {
                let mut cut = bytes[..end].to_vec();
                state_length(&mut cut);
                let inside = starts.iter().find(|(at, len)| (at + 4..at + len).contains(&end));
                match PacketIndex::parse(&cut) {
                    Ok(index) => {
                        assert!(end >= 31 && inside.is_none(), "accepted a cut at {end}");
                        assert_eq!(index.message_len(), end);
                    }
                    Err(ParseError::Truncated { what, needed, had, offset }) => {
                        assert_eq!((what, needed, offset), ("struct nfgenmsg", 4, 16));
                        assert_eq!(had, end - 16);
                        assert!(end < 20);
                    }
                    Err(ParseError::Missing { attribute }) => {
                        assert_eq!(attribute, "NFQA_PACKET_HDR");
                        assert!((20..24).contains(&end));
                    }
                    Err(ParseError::AttributeLength { length, remaining, offset, .. }) => {
                        let &(at, len) = inside.unwrap();
                        assert_eq!((offset, length, remaining), (at, len, end - at));
                    }
                    Err(other) => panic!("{other:?}"),
                }
                let salvaged = PacketIndex::salvage(&cut).is_some();
                assert_eq!(salvaged, end >= 31, "salvage at {end}");
                touch(&cut);
            }
        }
    }

    #[test]
    fn view_of_other_bytes() {
        let captures = captures();
        for bytes in &captures {
            let index = PacketIndex::parse(bytes).unwrap();
            let payload = index.payload_range().map_or(&[][..], |range| &bytes[range]);
            assert_eq!(index.view(bytes).payload(), payload);
            for end in 0..bytes.len() {
                touch_packet(index.view(&bytes[..end]));
                touch_packet(index.view(&vec![0; end]));
                touch_packet(index.view(&vec![0xff; end]));
            }
            for other in &captures {
                touch_packet(index.view(other));
            }
            assert_eq!(index.view(&[]).payload(), b"");
            assert_eq!(index.view(&[]).indev(), None);
            // What the index itself holds does not come from the bytes.
            assert_eq!(index.view(&[]).id(), index.id());
        }
    }
}

#[test]
fn view_with_an_empty_index() {
    let bytes = queue_message(0, 2, 1, &[(NFQA_PACKET_HDR, packet_hdr(1, 0x0800, 0))]);
    let packet = PacketIndex::default().view(&bytes);
    touch_packet(packet);
    assert_eq!((packet.bytes().len(), packet.payload().len()), (0, 0));
    assert_eq!(packet.index().payload_range(), None);
}

#[test]
fn index_is_small() {
    assert_eq!(size_of::<PacketIndex>(), 28);
}

/// What the captures lack.
#[test]
fn every_other_attribute() {
    let mut timestamp = 1_700_000_000_u64.to_be_bytes().to_vec();
    timestamp.extend(250_001_u64.to_be_bytes());
    let bytes = queue_message(
        0,
        2,
        0xfffe,
        &[
            (NFQA_PACKET_HDR, packet_hdr(0xffff_fffe, 0x88cc, 4)),
            (NFQA_MARK, 0xdead_beef_u32.to_be_bytes().to_vec()),
            (NFQA_TIMESTAMP, timestamp),
            (NFQA_PRIORITY, 6_u32.to_be_bytes().to_vec()),
            (NFQA_CGROUP_CLASSID, 0x0010_0001_u32.to_be_bytes().to_vec()),
            (NFQA_UID, 1000_u32.to_be_bytes().to_vec()),
            (NFQA_GID, 100_u32.to_be_bytes().to_vec()),
            (NFQA_CAP_LEN, 1500_u32.to_be_bytes().to_vec()),
            (NFQA_SKB_INFO, 3_u32.to_be_bytes().to_vec()),
            (NFQA_PAYLOAD, vec![0x45]),
        ],
    );
    let packet = PacketMessage::parse(&bytes).unwrap();
    assert_eq!((packet.id(), packet.queue()), (0xffff_fffe, 0xfffe));
    assert_eq!((packet.hw_protocol(), packet.hook()), (0x88cc, NF_INET_POST_ROUTING));
    assert_eq!(packet.mark(), Some(0xdead_beef));
    let timestamp = packet.timestamp().unwrap();
    assert_eq!(timestamp, Timestamp { seconds: 1_700_000_000, microseconds: 250_001 });
    let expected = UNIX_EPOCH + Duration::new(1_700_000_000, 250_001_000);
    assert_eq!(timestamp.to_system_time(), Some(expected));
    assert_eq!(packet.priority(), Some(6));
    assert_eq!(packet.cgroup_classid(), Some(0x0010_0001));
    assert_eq!(packet.uid(), Some(1000));
    assert_eq!(packet.gid(), Some(100));
    assert_eq!(packet.cap_len(), Some(1500));
    assert!(packet.index().is_truncated());
    let info = packet.skb_info().unwrap();
    assert!(info.checksum_not_ready() && info.is_gso() && !info.checksum_not_verified());
    assert_eq!(packet.payload(), [0x45]);
    let never = Timestamp { seconds: u64::MAX, microseconds: u64::MAX };
    assert_eq!(never.to_system_time(), None);
}

#[test]
fn attributes_in_any_order() {
    let mut attributes = vec![
        (NFQA_PAYLOAD, vec![1, 2, 3]),
        (NFQA_IFINDEX_INDEV, 9_u32.to_be_bytes().to_vec()),
        (NFQA_SECCTX, b"label".to_vec()),
        (NFQA_PACKET_HDR, packet_hdr(77, 0x0800, 1)),
    ];
    for _ in 0..attributes.len() {
        attributes.rotate_left(1);
        let bytes = queue_message(0, 2, 3, &attributes);
        let packet = PacketMessage::parse(&bytes).unwrap();
        assert_eq!((packet.id(), packet.hook()), (77, 1));
        assert_eq!(packet.payload(), [1, 2, 3]);
        assert_eq!(packet.indev(), Some(9));
        assert_eq!(packet.secctx(), Some(&b"label"[..]));
        assert_eq!(salvaged(&bytes), Some((3, 77)));
    }
}

#[test]
fn last_duplicate_counts() {
    let bytes = queue_message(
        0,
        2,
        3,
        &[
            (NFQA_PACKET_HDR, packet_hdr(1, 0x0800, 1)),
            (NFQA_MARK, vec![0, 0, 0, 1]),
            (NFQA_PAYLOAD, vec![1; 9]),
            (NFQA_PACKET_HDR, packet_hdr(2, 0x86dd, 3)),
            (NFQA_MARK, vec![0, 0, 0, 2]),
            (NFQA_PAYLOAD, vec![2; 5]),
        ],
    );
    let packet = PacketMessage::parse(&bytes).unwrap();
    assert_eq!((packet.id(), packet.hw_protocol(), packet.hook()), (2, 0x86dd, 3));
    assert_eq!(packet.mark(), Some(2));
    assert_eq!(packet.payload(), [2; 5]);
    assert_eq!(salvaged(&bytes), Some((3, 2)));
}

#[test]
fn unknown_attributes_are_kept() {
    let unknown = 1000 | NLA_F_NET_BYTEORDER;
    let nest = 23 | NLA_F_NESTED;
    let bytes = queue_message(
        0,
        2,
        3,
        &[
            (unknown, vec![1, 2, 3]),
            (NFQA_PACKET_HDR, packet_hdr(1, 0x0800, 1)),
            (nest, common::attribute(6, &[9])),
            (NLA_TYPE_MASK, vec![]),
        ],
    );
    let packet = PacketMessage::parse(&bytes).unwrap();
    let attribute = packet.attribute(1000).unwrap();
    assert_eq!((attribute.kind(), attribute.value()), (1000, &[1, 2, 3][..]));
    assert!(attribute.is_net_byteorder() && !attribute.is_nested());
    let attribute = packet.attribute(23).unwrap();
    assert!(attribute.is_nested() && !attribute.is_net_byteorder());
    let inner = attribute.nested().last_of(6).unwrap();
    assert_eq!((inner.value(), inner.offset()), (&[9][..], attribute.offset() + 4));
    assert_eq!(packet.attribute(NLA_TYPE_MASK).unwrap().value(), b"");
    assert_eq!(packet.attribute(24), None);
    assert_eq!(packet.attributes().count(), 4);
}

/// A flag in the type does not change which attribute it is.
#[test]
fn flags_are_not_part_of_the_number() {
    let hdr = packet_hdr(5, 0x0800, 1);
    for flags in [NLA_F_NESTED, NLA_F_NET_BYTEORDER, NLA_F_NESTED | NLA_F_NET_BYTEORDER] {
        let bytes = queue_message(0, 2, 3, &[(NFQA_PACKET_HDR | flags, hdr.clone())]);
        assert_eq!(PacketMessage::parse(&bytes).unwrap().id(), 5);
    }
}

#[test]
fn short_values() {
    let needed = [
        (NFQA_PACKET_HDR, 7),
        (NFQA_VERDICT_HDR, 8),
        (NFQA_MARK, 4),
        (NFQA_TIMESTAMP, 16),
        (NFQA_IFINDEX_INDEV, 4),
        (NFQA_IFINDEX_OUTDEV, 4),
        (NFQA_IFINDEX_PHYSINDEV, 4),
        (NFQA_IFINDEX_PHYSOUTDEV, 4),
        (NFQA_HWADDR, 12),
        (NFQA_CT_INFO, 4),
        (NFQA_CAP_LEN, 4),
        (NFQA_SKB_INFO, 4),
        (NFQA_UID, 4),
        (NFQA_GID, 4),
        (NFQA_PRIORITY, 4),
        (NFQA_CGROUP_CLASSID, 4),
    ];
    let hdr = (NFQA_PACKET_HDR, packet_hdr(6, 0x0800, 1));
    for (kind, needed) in needed {
        for had in 0..needed {
            let bytes = queue_message(0, 2, 3, &[hdr.clone(), (kind, vec![0; had])]);
            let expected = ParseError::ShortAttribute { kind, needed, had, offset: 32 };
            assert_eq!(PacketIndex::parse(&bytes), Err(expected));
            if kind != NFQA_PACKET_HDR {
                assert_eq!(salvaged(&bytes), Some((3, 6)));
            }
        }
        // Longer than the type is fine, as in the kernel.
        let bytes = queue_message(0, 2, 3, &[hdr.clone(), (kind, vec![0; needed + 1])]);
        PacketIndex::parse(&bytes).unwrap();
    }
    for kind in [NFQA_PAYLOAD, NFQA_CT, NFQA_SECCTX, NFQA_VLAN, NFQA_L2HDR, NFQA_EXP] {
        let bytes = queue_message(0, 2, 3, &[hdr.clone(), (kind, vec![])]);
        let packet = PacketMessage::parse(&bytes).unwrap();
        assert_eq!(packet.attribute(kind).unwrap().value(), b"");
        assert_eq!((packet.payload(), packet.vlan()), (&[][..], None));
    }
}

#[test]
fn link_layer_address_lengths() {
    for (stated, expected) in [(0_u16, 0), (6, 6), (8, 8), (9, 8), (0xffff, 8)] {
        let mut value = stated.to_be_bytes().to_vec();
        value.extend([0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let hdr = (NFQA_PACKET_HDR, packet_hdr(1, 0x0800, 1));
        let bytes = queue_message(0, 2, 3, &[hdr, (NFQA_HWADDR, value)]);
        let packet = PacketMessage::parse(&bytes).unwrap();
        assert_eq!(packet.hwaddr(), Some(&[1, 2, 3, 4, 5, 6, 7, 8][..expected]));
    }
}

#[test]
fn vlan_needs_both_halves() {
    let hdr = (NFQA_PACKET_HDR, packet_hdr(1, 0x0800, 1));
    let vlan = |halves: &[(u16, Vec<u8>)]| {
        let nest = (NFQA_VLAN | NLA_F_NESTED, common::list(halves));
        let bytes = queue_message(0, 7, 3, &[hdr.clone(), nest]);
        PacketMessage::parse(&bytes).unwrap().vlan()
    };
    let proto = (NFQA_VLAN_PROTO, vec![0x88, 0xa8]);
    let tci = (NFQA_VLAN_TCI, vec![0x1f, 0xff]);
    let expected = Some(Vlan { proto: 0x88a8, tci: 0x1fff });
    assert_eq!(vlan(&[proto.clone(), tci.clone()]), expected);
    assert_eq!(vlan(&[tci.clone(), proto.clone()]), expected);
    assert_eq!(vlan(std::slice::from_ref(&proto)), None);
    assert_eq!(vlan(&[tci]), None);
    assert_eq!(vlan(&[proto, (NFQA_VLAN_TCI, vec![0x1f])]), None);
}

#[test]
fn not_a_packet() {
    let verdict = queue_message(1, 0, 3, &[(NFQA_VERDICT_HDR, vec![0; 8])]);
    let error = ParseError::MessageType { expected: 0x0300, found: 0x0301 };
    assert_eq!(PacketIndex::parse(&verdict), Err(error));
    assert_eq!(PacketIndex::salvage(&verdict), None);
    let empty = queue_message(0, 2, 3, &[]);
    let error = ParseError::Missing { attribute: "NFQA_PACKET_HDR" };
    assert_eq!(PacketIndex::parse(&empty), Err(error));
    assert_eq!(PacketIndex::salvage(&empty), None);
}

/// What stands behind the stated end belongs to another message, whatever it looks like.
#[test]
fn nothing_is_read_behind_the_end() {
    let hdr = |id| (NFQA_PACKET_HDR, packet_hdr(id, 0x0800, 1));
    let mut bytes = queue_message(0, 2, 3, &[hdr(1)]);
    let end = bytes.len();
    bytes.push(0);
    bytes.extend(common::attribute(NFQA_PACKET_HDR, &packet_hdr(2, 0x0800, 1)));
    let packet = PacketMessage::parse(&bytes).unwrap();
    assert_eq!((packet.id(), packet.bytes().len(), packet.attributes().count()), (1, end, 1));
    assert_eq!(salvaged(&bytes), Some((3, 1)));
    state_length(&mut bytes);
    assert_eq!(PacketMessage::parse(&bytes).unwrap().id(), 2);
}
