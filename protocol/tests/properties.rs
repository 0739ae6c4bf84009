//! What holds for every message and for every sequence of bytes.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod common;

use common::model::{
    Model, NUMBERS, an_index_agrees, batch_round_trip, config_round_trip, packet_round_trip,
    verdict_round_trip,
};
use common::{changes, list, message, packet_hdr, state_length, touch, touch_packet};
use netfilterqueue_protocol::attribute::Attributes;
use netfilterqueue_protocol::config::{Command, ConfigFlags, ConfigMessage, CopyMode, FlagChange};
use netfilterqueue_protocol::constants::*;
use netfilterqueue_protocol::packet::{PacketIndex, Vlan};
use netfilterqueue_protocol::verdict::{Verdict, VerdictBatchMessage, VerdictMessage};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn bytes(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), len)
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Repeat),
        Just(Verdict::Stop),
        any::<(u16, bool)>().prop_map(|(number, bypass)| Verdict::Queue { number, bypass }),
    ]
}

fn vlans() -> impl Strategy<Value = Vlan> {
    any::<(u16, u16)>().prop_map(|(proto, tci)| Vlan { proto, tci })
}

fn configs() -> impl Strategy<Value = ConfigMessage> {
    let commands = prop_oneof![
        Just(Command::Bind),
        Just(Command::Unbind),
        Just(Command::PfBind),
        Just(Command::PfUnbind),
    ];
    let modes = prop_oneof![
        Just(CopyMode::Meta),
        any::<u32>().prop_map(|range| CopyMode::Packet { range })
    ];
    let flags = any::<(u32, u32)>().prop_map(|(mask, values)| FlagChange {
        mask: ConfigFlags(mask),
        values: ConfigFlags(values),
    });
    (any::<u16>(), option::of(commands), option::of(modes), any::<Option<u32>>(), option::of(flags))
        .prop_map(|(queue, command, copy_mode, max_len, flags)| ConfigMessage {
            queue,
            command,
            copy_mode,
            max_len,
            flags,
        })
}

fn models() -> impl Strategy<Value = Model> {
    let head = (any::<u16>(), any::<u8>(), any::<u32>(), any::<u16>(), any::<u8>());
    let numbers = vec((proptest::sample::select(&NUMBERS[..]), any::<u32>()), 0..9);
    let blobs = (
        option::of(bytes(0..9)),
        option::of(vlans()),
        option::of(bytes(0..20)),
        option::of(bytes(0..60)),
        option::of(bytes(0..200)),
    );
    (head, numbers, blobs, vec((23_u16..0x3fff, bytes(0..9)), 0..4)).prop_map(
        |(head, numbers, blobs, unknown)| {
            let (queue, family, id, protocol, hook) = head;
            let (secctx, vlan, l2_header, conntrack, payload) = blobs;
            Model {
                queue,
                family,
                id,
                protocol,
                hook,
                numbers,
                secctx,
                vlan,
                l2_header,
                conntrack,
                payload,
                unknown,
            }
        },
    )
}

/// Bytes that get past the first checks: a header of a known type with the right length, and
/// attributes some of whose lengths are lies.
fn nearly_messages() -> impl Strategy<Value = Vec<u8>> {
    let attribute = (0_u16..26, any::<u16>(), bytes(0..24), proptest::bool::weighted(0.1))
        .prop_map(|(kind, length, value, lie)| {
            let mut attribute = list(&[(kind, value)]);
            if lie {
                attribute[..2].copy_from_slice(&(length % 64).to_ne_bytes());
            }
            attribute.resize(attribute.len().next_multiple_of(4), 0);
            attribute
        });
    let kinds = prop_oneof![
        Just(2_u16),
        Just(0x0300),
        Just(0x0301),
        Just(0x0302),
        Just(0x0303),
        any::<u16>()
    ];
    (kinds, any::<u16>(), bytes(4), vec(attribute, 0..8), bytes(0..4)).prop_map(
        |(kind, flags, nfgenmsg, attributes, tail)| {
            let body = [nfgenmsg, attributes.concat(), tail].concat();
            message(kind, flags, 0, 0, &body)
        },
    )
}

proptest! {
    #[test]
    fn verdicts_come_back(
        (queue, id, verdict) in (any::<u16>(), any::<u32>(), verdicts()),
        (mark, priority) in any::<(Option<u32>, Option<u32>)>(),
        vlan in option::of(vlans()),
        l2_header in option::of(bytes(0..20)),
        conntrack in option::of(changes()),
        expectation in option::of(bytes(0..40)),
        payload in option::of(bytes(1..200)),
    ) {
        verdict_round_trip(VerdictMessage {
            queue,
            id,
            verdict,
            mark,
            priority,
            vlan,
            l2_header: l2_header.as_deref(),
            conntrack,
            expectation: expectation.as_deref(),
            payload: payload.as_deref(),
        });
    }

    #[test]
    fn batches_come_back(
        (queue, last_id, verdict) in (any::<u16>(), any::<u32>(), verdicts()),
        (mark, priority) in any::<(Option<u32>, Option<u32>)>(),
    ) {
        batch_round_trip(VerdictBatchMessage { queue, last_id, verdict, mark, priority });
    }

    #[test]
    fn configurations_come_back(config in configs(), sequence in any::<u32>()) {
        config_round_trip(config, sequence);
    }

    #[test]
    fn packets_come_back(model in models(), shift in 0_usize..32) {
        packet_round_trip(&model, shift);
    }

    #[test]
    fn no_bytes_panic(bytes in bytes(0..300)) {
        touch(&bytes);
    }

    #[test]
    fn no_near_miss_panics(first in nearly_messages(), second in nearly_messages(), cut in 0..64_usize) {
        touch(&first);
        let mut datagram = first.clone();
        datagram.resize(datagram.len().next_multiple_of(4), 0);
        datagram.extend(&second);
        touch(&datagram);
        touch(&datagram[..datagram.len().saturating_sub(cut)]);
        for (one, other) in [(&first, &second), (&second, &first), (&first, &datagram)] {
            if let Ok(index) = PacketIndex::parse(one) {
                touch_packet(index.view(other));
            }
        }
    }

    /// The fast walk finds what the plain one does, and the same fault.
    #[test]
    fn an_index_agrees_with_the_attributes(
        bytes in nearly_messages(),
        starts_well in proptest::bool::weighted(0.8),
        cut in 0..40_usize,
    ) {
        let mut bytes = bytes;
        if starts_well {
            bytes[4..6].copy_from_slice(&NFQNL_MSG_PACKET.to_ne_bytes());
            bytes.splice(20..20, list(&[(NFQA_PACKET_HDR, packet_hdr(7, 0x0800, 3))]));
            state_length(&mut bytes);
        }
        for bytes in [&bytes[..], &bytes[..bytes.len().saturating_sub(cut)]] {
            an_index_agrees(bytes);
        }
    }

    /// A walk over any bytes hands out disjoint parts of them, in order, and stops.
    #[test]
    fn attributes_lie_within_their_list(bytes in bytes(0..200)) {
        let mut end = 0;
        for attribute in Attributes::new(&bytes).flatten() {
            prop_assert!(attribute.offset() >= end && attribute.offset() % 4 == 0);
            let start = attribute.offset() + 4;
            end = start + attribute.value().len();
            prop_assert_eq!(attribute.value(), &bytes[start..end]);
        }
    }
}
