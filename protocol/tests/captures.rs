//! Every attribute of packets as Debian's kernel 6.12 sent them.

#![allow(clippy::unwrap_used)]
// a failed unwrap is a failed test
// The captures were made on a little-endian host, whose byte order their headers have.
#![cfg(target_endian = "little")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::{
    ARP_REPLY, CLASSID, CT_ICMP, CT_LABELS, CT_NAT, CT_NEW, CT_TCP, PORTS, SECCTX, VLAN as TAGGED,
    unhex,
};
use netfilterqueue_protocol::conntrack::{
    Conntrack, ConntrackInfo, ConntrackStatus, Icmp, TcpState, Tuple,
};
use netfilterqueue_protocol::constants::*;
use netfilterqueue_protocol::packet::{PacketMessage, SkbInfo, Vlan};

/// The numbers of a message's attributes, in the order they were sent.
fn kinds(packet: &PacketMessage<'_>) -> Vec<u16> {
    packet.attributes().map(|attribute| attribute.unwrap().kind()).collect()
}

/// The devices: input and output, and the ports under them.
type Devices = [Option<u32>; 4];

fn devices(packet: &PacketMessage<'_>) -> Devices {
    [packet.indev(), packet.outdev(), packet.physindev(), packet.physoutdev()]
}

/// What every message has.
fn head(packet: &PacketMessage<'_>) -> (u32, u16, u8, u8, u16) {
    (packet.id(), packet.queue(), packet.family(), packet.hook(), packet.hw_protocol())
}

const ONLY_OUT: Devices = [None, Some(1), None, None];
const READY: Option<SkbInfo> = Some(SkbInfo(NFQA_SKB_CSUMNOTREADY));

#[test]
fn arp_reply_in_a_bridge() {
    let bytes = unhex(ARP_REPLY);
    let packet = PacketMessage::parse(&bytes).unwrap();
    assert_eq!(kinds(&packet), [1, 7, 5, 8, 6, 9, 20, 14, 10]);
    assert_eq!(head(&packet), (3, 1, NFPROTO_BRIDGE, NF_INET_FORWARD, 0x0806));
    assert_eq!(devices(&packet), [Some(2), Some(2), Some(4), Some(3)]);
    assert_eq!(packet.hwaddr().unwrap(), unhex("12703faa9d52"));
    assert_eq!(packet.l2_header().unwrap(), unhex("a297f7f9f224 12703faa9d52 0806"));
    assert_eq!((packet.vlan(), packet.skb_info()), (None, Some(SkbInfo(4))));
    let arp = "0001 0800 06 04 0002 12703faa9d52 0a030002 a297f7f9f224 0a030001";
    assert_eq!(packet.payload(), unhex(arp));
}

#[test]
fn vlan_frame_in_a_bridge() {
    let bytes = unhex(TAGGED);
    let packet = PacketMessage::parse(&bytes).unwrap();
    assert_eq!(kinds(&packet), [1, 7, 5, 8, 6, 9, 19, 20, 14, 10]);
    assert_eq!(head(&packet), (2, 1, NFPROTO_BRIDGE, NF_INET_FORWARD, 0x0800));
    assert_eq!(devices(&packet), [Some(2), Some(2), Some(3), Some(4)]);
    assert_eq!(packet.vlan(), Some(Vlan { proto: 0x8100, tci: 8 }));
    assert_eq!(packet.hwaddr().unwrap(), unhex("fe517d6c2478"));
    assert_eq!(packet.l2_header().unwrap(), unhex("32fb8db73ce9 fe517d6c2478 0800"));
    assert_eq!(packet.skb_info(), READY);
    assert_eq!((packet.payload().len(), &packet.payload()[28..]), (34, &b"tagged"[..]));
}

#[test]
fn bridged_packet_at_an_ip_hook() {
    let bytes = unhex(PORTS);
    let packet = PacketMessage::parse(&bytes).unwrap();
    assert_eq!(kinds(&packet), [1, 5, 7, 6, 8, 9, 14, 10]);
    assert_eq!(head(&packet), (4, 1, NFPROTO_IPV6, NF_INET_FORWARD, 0x86dd));
    assert_eq!(devices(&packet), [Some(2), Some(2), Some(3), Some(4)]);
    assert_eq!((packet.vlan(), packet.l2_header()), (None, None));
    assert_eq!(packet.hwaddr().unwrap(), unhex("0e2b388dab95"));
    assert_eq!(packet.skb_info(), READY);
    assert_eq!(packet.payload().len(), 49);
}

const fn udp(source_port: u16, destination_port: u16) -> Tuple {
    Tuple {
        source: IpAddr::V4(Ipv4Addr::LOCALHOST),
        destination: IpAddr::V4(Ipv4Addr::LOCALHOST),
        protocol: 17,
        source_port: Some(source_port),
        destination_port: Some(destination_port),
        icmp: None,
        zone: None,
    }
}

const fn mirrored(tuple: Tuple) -> Tuple {
    Tuple {
        source: tuple.destination,
        destination: tuple.source,
        source_port: tuple.destination_port,
        destination_port: tuple.source_port,
        ..tuple
    }
}

/// Id, status, timeout, mark, zone, and whether there are labels.
type Entry = (Option<u32>, Option<ConntrackStatus>, Option<u32>, Option<u32>, Option<u16>, bool);

fn entry(conntrack: Conntrack<'_>) -> Entry {
    (
        conntrack.id(),
        conntrack.status(),
        conntrack.timeout(),
        conntrack.mark(),
        conntrack.zone(),
        conntrack.labels().is_some(),
    )
}

#[test]
fn first_packet_of_a_flow() {
    let bytes = unhex(CT_NEW);
    let packet = PacketMessage::parse(&bytes).unwrap();
    assert_eq!(kinds(&packet), [1, 6, 11, 12, 14, 10]);
    assert_eq!(head(&packet), (1, 1, NFPROTO_IPV4, NF_INET_LOCAL_OUT, 0x0800));
    assert_eq!((devices(&packet), packet.skb_info()), (ONLY_OUT, READY));
    assert_eq!(&packet.payload()[28..], b"question");
    assert_eq!(packet.conntrack_info(), Some(ConntrackInfo::NEW));
    let conntrack = packet.conntrack().unwrap();
    let original = udp(0xc2b5, 0xc393);
    assert_eq!(conntrack.original(), Some(original));
    assert_eq!(conntrack.reply(), Some(mirrored(original)));
    let status = ConntrackStatus::default();
    let expected = (Some(0x5863_9f2f), Some(status), Some(30), Some(0), None, false);
    assert_eq!(entry(conntrack), expected);
    assert_eq!(conntrack.tcp_state(), None);
}

#[test]
fn last_packet_of_a_handshake() {
    let bytes = unhex(CT_TCP);
    let packet = PacketMessage::parse(&bytes).unwrap();
    assert_eq!(kinds(&packet), [1, 6, 11, 12, 14, 10]);
    assert_eq!(head(&packet), (3, 1, NFPROTO_IPV4, NF_INET_LOCAL_OUT, 0x0800));
    assert_eq!(packet.conntrack_info(), Some(ConntrackInfo::ESTABLISHED));
    let conntrack = packet.conntrack().unwrap();
    let original = Tuple { protocol: 6, ..udp(0x81fc, 0x9083) };
    assert_eq!(conntrack.original(), Some(original));
    assert_eq!(conntrack.reply(), Some(mirrored(original)));
    let status =
        ConntrackStatus::SEEN_REPLY | ConntrackStatus::ASSURED | ConntrackStatus::CONFIRMED;
    // Five days.
    let expected = (Some(0xcb2e_8a0d), Some(status), Some(432_000), Some(0), None, false);
    assert_eq!(entry(conntrack), expected);
    assert_eq!(conntrack.tcp_state(), Some(TcpState::ESTABLISHED));
    let tcp = conntrack.attribute(CTA_PROTOINFO).unwrap().nested().last_of(CTA_PROTOINFO_TCP);
    let parts: Vec<_> = tcp.unwrap().nested().map(|part| part.unwrap().value().to_vec()).collect();
    // State, the window scale of either side, the flags of either side with their masks.
    assert_eq!(parts, [vec![3], vec![7], vec![7], vec![0x23, 0], vec![0x23, 0]]);
}

#[test]
fn echo_reply() {
    let bytes = unhex(CT_ICMP);
    let packet = PacketMessage::parse(&bytes).unwrap();
    assert_eq!(kinds(&packet), [1, 6, 11, 12, 10]);
    assert_eq!(head(&packet), (4, 1, NFPROTO_IPV6, NF_INET_LOCAL_OUT, 0x86dd));
    assert_eq!((devices(&packet), packet.skb_info()), (ONLY_OUT, None));
    assert_eq!(packet.conntrack_info(), Some(ConntrackInfo::ESTABLISHED_REPLY));
    let conntrack = packet.conntrack().unwrap();
    let tuple = |kind| Tuple {
        source: Ipv6Addr::LOCALHOST.into(),
        destination: Ipv6Addr::LOCALHOST.into(),
        protocol: 58,
        source_port: None,
        destination_port: None,
        icmp: Some(Icmp { id: 0x1234, kind, code: 0 }),
        zone: None,
    };
    assert_eq!(conntrack.original(), Some(tuple(128)));
    assert_eq!(conntrack.reply(), Some(tuple(129)));
    let status = ConntrackStatus::SEEN_REPLY | ConntrackStatus::CONFIRMED;
    let expected = (Some(0x6b2e_0738), Some(status), Some(30), Some(0), None, false);
    assert_eq!(entry(conntrack), expected);
}

#[test]
fn translated_addresses() {
    let bytes = unhex(CT_NAT);
    let packet = PacketMessage::parse(&bytes).unwrap();
    assert_eq!(kinds(&packet), [1, 5, 9, 11, 12, 14, 10]);
    assert_eq!(head(&packet), (1, 1, NFPROTO_IPV4, NF_INET_LOCAL_IN, 0x0800));
    assert_eq!(devices(&packet), [Some(1), None, None, None]);
    assert_eq!(packet.hwaddr(), Some(&[0; 6][..]));
    assert_eq!(packet.conntrack_info(), Some(ConntrackInfo::NEW));
    let conntrack = packet.conntrack().unwrap();
    let original = udp(0x8635, 0x81ed);
    assert_eq!(conntrack.original(), Some(original));
    let reply = Tuple {
        source: Ipv4Addr::new(127, 0, 0, 2).into(),
        destination: Ipv4Addr::new(127, 0, 0, 3).into(),
        ..mirrored(original)
    };
    assert_eq!(conntrack.reply(), Some(reply));
    let text = "IPS_CONFIRMED|IPS_SRC_NAT|IPS_DST_NAT|IPS_SRC_NAT_DONE|IPS_DST_NAT_DONE";
    assert_eq!(conntrack.status().unwrap().to_string(), text);
    assert_eq!((conntrack.id(), conntrack.timeout()), (Some(0xf330_3d3d), Some(30)));
}

#[test]
fn label_bits() {
    let bytes = unhex(CT_LABELS);
    let packet = PacketMessage::parse(&bytes).unwrap();
    assert_eq!(kinds(&packet), [1, 6, 11, 12, 14, 10]);
    assert_eq!(packet.conntrack_info(), Some(ConntrackInfo::ESTABLISHED));
    let conntrack = packet.conntrack().unwrap();
    let labels = [0x5a, 0, 0x0f, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0x50];
    assert_eq!(conntrack.labels(), Some(&labels[..]));
    let status = ConntrackStatus::SEEN_REPLY | ConntrackStatus::CONFIRMED;
    let expected = (Some(0xf1e5_314e), Some(status), Some(30), Some(0), None, true);
    assert_eq!(entry(conntrack), expected);
}

#[test]
fn security_context_with_a_nul() {
    let bytes = unhex(SECCTX);
    let packet = PacketMessage::parse(&bytes).unwrap();
    assert_eq!(kinds(&packet), [1, 6, 18, 14, 10]);
    assert_eq!(packet.attribute(NFQA_SECCTX).unwrap().value(), b"unlabeled\0");
    assert_eq!(packet.secctx(), Some(&b"unlabeled"[..]));
    assert_eq!((packet.uid(), packet.cgroup_classid()), (None, None));
}

#[test]
fn class_of_a_control_group() {
    let bytes = unhex(CLASSID);
    let packet = PacketMessage::parse(&bytes).unwrap();
    assert_eq!(kinds(&packet), [1, 6, 22, 14, 10]);
    assert_eq!(packet.cgroup_classid(), Some(0x0010_0001));
    assert_eq!((packet.uid(), packet.secctx(), packet.conntrack()), (None, None, None));
}
