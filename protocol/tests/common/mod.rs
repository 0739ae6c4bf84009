//! Captured messages, a writer of messages that shares no code with the crate, and a function that
//! calls every accessor.

// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

use std::hint::black_box;

use netfilterqueue_protocol::attribute::Attributes;
use netfilterqueue_protocol::config::ConfigMessage;
use netfilterqueue_protocol::conntrack::{
    Conntrack, ConntrackChange, ConntrackStatus, LabelsChange, MarkChange,
};
use netfilterqueue_protocol::interop::QueueMessage;
use netfilterqueue_protocol::message::{Ack, Message, Messages, Nfgenmsg};
use netfilterqueue_protocol::packet::{PacketIndex, PacketMessage, Timestamp};
use netfilterqueue_protocol::verdict::{VerdictBatchMessage, VerdictMessage};
use proptest::prelude::*;

pub(crate) const BRIDGE_VLAN: &str = include_str!("../data/bridge-forward-vlan-l2hdr.hex");
pub(crate) const BRIDGE_ARP: &str = include_str!("../data/bridge-prerouting-arp.hex");
pub(crate) const IPV4_UDP: &str = include_str!("../data/ipv4-output-uid-secctx-ct-udp.hex");
pub(crate) const IPV6_SYN: &str = include_str!("../data/ipv6-tcp-syn-ct-protoinfo.hex");

pub(crate) const OUTPUT_UDP: &str = include_str!("../data/ipv4-output-udp.hex");
pub(crate) const OUTPUT_CUT: &str = include_str!("../data/ipv4-output-udp-truncated.hex");
pub(crate) const POSTROUTING_UID: &str = include_str!("../data/ipv4-postrouting-udp-uid.hex");
pub(crate) const INPUT_SYN: &str = include_str!("../data/ipv6-input-tcp-syn.hex");
pub(crate) const PREROUTING_META: &str = include_str!("../data/ipv6-prerouting-udp-meta.hex");

pub(crate) const ARP_REPLY: &str = include_str!("../data/bridge-forward-arp-reply.hex");
pub(crate) const VLAN: &str = include_str!("../data/bridge-forward-vlan.hex");
pub(crate) const PORTS: &str = include_str!("../data/ipv6-forward-udp-ports.hex");
pub(crate) const CT_NEW: &str = include_str!("../data/ipv4-output-udp-ct-new.hex");
pub(crate) const CT_TCP: &str = include_str!("../data/ipv4-output-tcp-ct-established.hex");
pub(crate) const CT_ICMP: &str = include_str!("../data/ipv6-output-icmp-ct-reply.hex");
pub(crate) const CT_NAT: &str = include_str!("../data/ipv4-input-udp-ct-nat.hex");
pub(crate) const CT_LABELS: &str = include_str!("../data/ipv4-output-udp-ct-labels.hex");
pub(crate) const SECCTX: &str = include_str!("../data/ipv4-output-udp-secctx.hex");
pub(crate) const CLASSID: &str = include_str!("../data/ipv4-output-udp-classid.hex");

pub(crate) fn captures() -> [Vec<u8>; 19] {
    [
        BRIDGE_VLAN,
        BRIDGE_ARP,
        IPV4_UDP,
        IPV6_SYN,
        OUTPUT_UDP,
        OUTPUT_CUT,
        POSTROUTING_UID,
        INPUT_SYN,
        PREROUTING_META,
        ARP_REPLY,
        VLAN,
        PORTS,
        CT_NEW,
        CT_TCP,
        CT_ICMP,
        CT_NAT,
        CT_LABELS,
        SECCTX,
        CLASSID,
    ]
    .map(unhex)
}

/// Bytes of hex digits; white space between them is skipped.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| u8::try_from(c.to_digit(16).expect("hex digit")).expect("below 16"))
        .collect();
    let (pairs, odd) = digits.as_chunks::<2>();
    assert!(odd.is_empty(), "odd number of hex digits");
    pairs.iter().map(|[high, low]| high << 4 | low).collect()
}

/// An attribute without the padding after it.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("test attribute too long");
    [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
}

/// Attributes with zero padding between them and, as in the kernel's packets, none after the last.
pub(crate) fn list(attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, value) in attributes {
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(attribute(*kind, value));
    }
    out
}

/// A netlink message.
pub(crate) fn message(kind: u16, flags: u16, sequence: u32, port: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).expect("test message too long");
    let mut out = length.to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend(port.to_ne_bytes());
    out.extend(body);
    out
}

/// A message of `nfnetlink_queue`; `number` is the low byte of its type.
pub(crate) fn queue_message(
    number: u16,
    family: u8,
    queue: u16,
    attributes: &[(u16, Vec<u8>)],
) -> Vec<u8> {
    let mut body = vec![family, 0];
    body.extend(queue.to_be_bytes());
    body.extend(list(attributes));
    message(0x0300 | number, 0, 0, 0, &body)
}

/// The value of `NFQA_PACKET_HDR`.
pub(crate) fn packet_hdr(id: u32, protocol: u16, hook: u8) -> Vec<u8> {
    [&id.to_be_bytes()[..], &protocol.to_be_bytes(), &[hook]].concat()
}

/// Writes the length of the first message of `bytes`: all of them.
pub(crate) fn state_length(bytes: &mut [u8]) {
    let length = u32::try_from(bytes.len()).expect("test message too long");
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
}

/// Any change of a conntrack entry; a mask of all ones, which is written differently, is not rare.
pub(crate) fn changes() -> impl Strategy<Value = ConntrackChange> {
    let mark_masks = prop_oneof![Just(u32::MAX), any::<u32>()];
    let marks = (any::<u32>(), mark_masks).prop_map(|(value, mask)| MarkChange { value, mask });
    let labels_masks = prop_oneof![Just([0xff; 16]), any::<[u8; 16]>()];
    let labels =
        (any::<[u8; 16]>(), labels_masks).prop_map(|(value, mask)| LabelsChange { value, mask });
    let numbers = any::<(Option<u32>, Option<u32>)>();
    (numbers, proptest::option::of(labels), proptest::option::of(marks)).prop_map(
        |((timeout, status), labels, mark)| ConntrackChange {
            timeout,
            status: status.map(ConntrackStatus),
            labels,
            mark,
        },
    )
}

/// Runs every parser and every accessor over `bytes`; what they find is of no interest here.
pub(crate) fn touch(bytes: &[u8]) {
    for message in Messages::new(bytes).flatten() {
        touch_message(message);
    }
    black_box(PacketIndex::salvage(bytes));
    if let Ok(index) = PacketIndex::parse(bytes) {
        touch_packet(index.view(bytes));
    }
    touch_conntrack(Conntrack::new(bytes));
    if let Ok(change) = ConntrackChange::parse(Attributes::new(bytes)) {
        black_box((change, change.encoded_len()));
    }
    touch_attributes(Attributes::new(bytes), 4);
}

fn touch_message(message: Message<'_>) {
    black_box((message.kind(), message.flags(), message.sequence(), message.port()));
    black_box((message.bytes(), message.body(), message.netlink_header()));
    if let Ok((_, attributes)) = Nfgenmsg::parse(message.body()) {
        touch_attributes(attributes, 4);
    }
    if let Ok(ack) = Ack::parse(message) {
        black_box((ack.errno(), ack.request_kind(), ack.request_sequence(), ack.request_port()));
        black_box((ack.request_body(), ack.text(), ack.offset()));
    }
    if let Ok(verdict) = VerdictMessage::parse(message) {
        black_box(verdict);
    }
    if let Ok(batch) = VerdictBatchMessage::parse(message) {
        black_box(batch);
    }
    if let Ok(config) = ConfigMessage::parse(message) {
        black_box(format!("{config:?}"));
    }
    if let Ok(any) = QueueMessage::parse(message) {
        black_box(any.view());
    }
    if let Ok(packet) = PacketMessage::parse(message.bytes()) {
        touch_packet(packet);
    }
}

fn touch_attributes(attributes: Attributes<'_>, depth: usize) {
    for attribute in attributes.flatten() {
        black_box((attribute.kind(), attribute.is_nested(), attribute.is_net_byteorder()));
        black_box((attribute.offset(), attribute.value(), attribute.u8()));
        black_box((attribute.u16_be(), attribute.u32_be()));
        if depth > 0 {
            touch_attributes(attribute.nested(), depth - 1);
        }
    }
}

pub(crate) fn touch_packet(packet: PacketMessage<'_>) {
    let index = packet.index();
    black_box((index.id(), index.queue(), index.message_len(), index.payload_range()));
    black_box((index.is_truncated(), packet.bytes(), packet.id(), packet.queue()));
    black_box((packet.family(), packet.hook(), packet.hw_protocol(), packet.payload()));
    black_box((packet.cap_len(), packet.mark(), packet.indev(), packet.outdev()));
    black_box(packet.timestamp().map(Timestamp::to_system_time));
    black_box((packet.physindev(), packet.physoutdev(), packet.hwaddr(), packet.uid()));
    black_box((packet.gid(), packet.secctx(), packet.priority(), packet.cgroup_classid()));
    black_box((packet.vlan(), packet.l2_header()));
    black_box(packet.conntrack_info().map(|info| (info.to_string(), info.is_reply())));
    if let Some(info) = packet.skb_info() {
        black_box((info.checksum_not_ready(), info.is_gso(), info.checksum_not_verified()));
    }
    if let Some(conntrack) = packet.conntrack() {
        touch_conntrack(conntrack);
    }
    for kind in 0..32 {
        black_box(packet.attribute(kind));
    }
    touch_attributes(packet.attributes(), 4);
}

fn touch_conntrack(conntrack: Conntrack<'_>) {
    black_box((conntrack.bytes(), conntrack.id(), conntrack.status(), conntrack.timeout()));
    black_box((conntrack.mark(), conntrack.zone(), conntrack.labels()));
    black_box((conntrack.original(), conntrack.reply(), conntrack.attribute(4)));
    black_box(conntrack.status().map(|status| status.to_string()));
    black_box(conntrack.tcp_state().map(|state| state.to_string()));
    #[cfg(feature = "conntrack")]
    black_box(conntrack.to_attributes().is_ok());
}
