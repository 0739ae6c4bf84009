//! What the tests have in common: captured messages, a writer of messages that shares no code with
//! the crate, a function that calls every accessor, and comparisons with other crates. The files
//! without proptest serve the fuzz targets as well.

// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code, unused_imports)]

pub(crate) mod differential;
pub(crate) mod model;
mod touch;
mod wire;

use netfilterqueue_protocol::conntrack::{
    ConntrackChange, ConntrackStatus, LabelsChange, MarkChange,
};
use proptest::prelude::*;

pub(crate) use self::touch::{touch, touch_packet};
pub(crate) use self::wire::{attribute, list, message, packet_hdr, queue_message, state_length};

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
