//! What holds for every message and for every sequence of bytes.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod common;

use common::{
    changes, list, message, packet_hdr, queue_message, state_length, touch, touch_packet,
};
use netfilterqueue_protocol::ParseError;
use netfilterqueue_protocol::attribute::{Attribute, Attributes, pad, push, push_nested};
use netfilterqueue_protocol::config::{Command, ConfigFlags, ConfigMessage, CopyMode, FlagChange};
use netfilterqueue_protocol::conntrack::{Conntrack, ConntrackInfo};
use netfilterqueue_protocol::constants::*;
use netfilterqueue_protocol::message::{Message, Nfgenmsg};
use netfilterqueue_protocol::packet::{PacketIndex, PacketMessage, SkbInfo, Vlan};
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

/// What a packet message of the test's own making holds.
#[derive(Debug, Clone)]
struct Model {
    queue: u16,
    family: u8,
    id: u32,
    protocol: u16,
    hook: u8,
    /// Attributes whose value is one u32: number, value.
    numbers: Vec<(u16, u32)>,
    secctx: Option<Vec<u8>>,
    vlan: Option<Vlan>,
    l2_header: Option<Vec<u8>>,
    conntrack: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    unknown: Vec<(u16, Vec<u8>)>,
}

const NUMBERS: [u16; 12] = [
    NFQA_MARK,
    NFQA_IFINDEX_INDEV,
    NFQA_IFINDEX_OUTDEV,
    NFQA_IFINDEX_PHYSINDEV,
    NFQA_IFINDEX_PHYSOUTDEV,
    NFQA_CT_INFO,
    NFQA_CAP_LEN,
    NFQA_SKB_INFO,
    NFQA_UID,
    NFQA_GID,
    NFQA_PRIORITY,
    NFQA_CGROUP_CLASSID,
];

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

impl Model {
    fn attributes(&self) -> Vec<(u16, Vec<u8>)> {
        let mut out = vec![(NFQA_PACKET_HDR, packet_hdr(self.id, self.protocol, self.hook))];
        out.extend(self.numbers.iter().map(|(kind, n)| (*kind, n.to_be_bytes().to_vec())));
        if let Some(Vlan { proto, tci }) = self.vlan {
            let halves = [
                (NFQA_VLAN_TCI, tci.to_be_bytes().to_vec()),
                (NFQA_VLAN_PROTO, proto.to_be_bytes().to_vec()),
            ];
            out.push((NFQA_VLAN | NLA_F_NESTED, list(&halves)));
        }
        let blobs = [
            (NFQA_SECCTX, &self.secctx),
            (NFQA_L2HDR, &self.l2_header),
            (NFQA_CT | NLA_F_NESTED, &self.conntrack),
            (NFQA_PAYLOAD, &self.payload),
        ];
        out.extend(blobs.into_iter().filter_map(|(kind, value)| Some((kind, value.clone()?))));
        out.extend(self.unknown.clone());
        out
    }

    /// The last value given to an attribute.
    fn number(&self, wanted: u16) -> Option<u32> {
        self.numbers.iter().rfind(|(kind, _)| *kind == wanted).map(|(_, number)| *number)
    }

    fn check(&self, packet: PacketMessage<'_>) {
        assert_eq!((packet.queue(), packet.family()), (self.queue, self.family));
        assert_eq!((packet.id(), packet.hook()), (self.id, self.hook));
        assert_eq!(packet.hw_protocol(), self.protocol);
        assert_eq!(packet.mark(), self.number(NFQA_MARK));
        assert_eq!(packet.indev(), self.number(NFQA_IFINDEX_INDEV));
        assert_eq!(packet.outdev(), self.number(NFQA_IFINDEX_OUTDEV));
        assert_eq!(packet.physindev(), self.number(NFQA_IFINDEX_PHYSINDEV));
        assert_eq!(packet.physoutdev(), self.number(NFQA_IFINDEX_PHYSOUTDEV));
        assert_eq!(packet.conntrack_info(), self.number(NFQA_CT_INFO).map(ConntrackInfo));
        assert_eq!(packet.cap_len(), self.number(NFQA_CAP_LEN));
        assert_eq!(packet.index().is_truncated(), self.number(NFQA_CAP_LEN).is_some());
        assert_eq!(packet.skb_info(), self.number(NFQA_SKB_INFO).map(SkbInfo));
        assert_eq!(packet.uid(), self.number(NFQA_UID));
        assert_eq!(packet.gid(), self.number(NFQA_GID));
        assert_eq!(packet.priority(), self.number(NFQA_PRIORITY));
        assert_eq!(packet.cgroup_classid(), self.number(NFQA_CGROUP_CLASSID));
        let secctx = self.secctx.as_deref();
        let secctx = secctx.map(|context| context.strip_suffix(&[0]).unwrap_or(context));
        assert_eq!(packet.secctx(), secctx);
        assert_eq!(packet.vlan(), self.vlan);
        assert_eq!(packet.l2_header(), self.l2_header.as_deref());
        assert_eq!(packet.conntrack(), self.conntrack.as_deref().map(Conntrack::new));
        assert_eq!(packet.payload(), self.payload.as_deref().unwrap_or_default());
        assert_eq!(packet.index().payload_range().is_some(), self.payload.is_some());
        for (kind, value) in &self.unknown {
            let last = self.unknown.iter().rfind(|(other, _)| other == kind).unwrap();
            assert_eq!(packet.attribute(*kind).unwrap().value(), last.1, "of {value:?}");
        }
    }
}

/// Writes a parsed packet message again, with the crate's own attribute writer.
fn written_again(packet: PacketMessage<'_>) -> Vec<u8> {
    let mut attributes = Vec::new();
    for attribute in packet.attributes().map(Result::unwrap) {
        if attribute.is_nested() {
            push_nested(&mut attributes, attribute.kind(), |out| {
                out.extend_from_slice(attribute.value());
            });
        } else {
            push(&mut attributes, attribute.kind(), attribute.value());
        }
    }
    let mut body = vec![packet.family(), 0];
    body.extend(packet.queue().to_be_bytes());
    body.extend(attributes);
    let mut out = message(NFQNL_MSG_PACKET, 0, 0, 0, &body);
    // The kernel does not pad the last attribute.
    out.truncate(packet.bytes().len());
    state_length(&mut out);
    out
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

/// The attributes of a packet message by way of the iterator, each as long as its type.
fn plain_walk(bytes: &[u8]) -> Result<Vec<Attribute<'_>>, ParseError> {
    let message = Message::parse(bytes)?;
    if message.kind() != NFQNL_MSG_PACKET {
        let (expected, found) = (NFQNL_MSG_PACKET, message.kind());
        return Err(ParseError::MessageType { expected, found });
    }
    let (_, attributes) = Nfgenmsg::parse(message.body())?;
    let mut found = Vec::new();
    for attribute in attributes {
        let attribute = attribute?;
        let needed = match attribute.kind() {
            NFQA_PACKET_HDR => 7,
            NFQA_VERDICT_HDR => 8,
            NFQA_TIMESTAMP => 16,
            NFQA_HWADDR => 12,
            NFQA_MARK
            | NFQA_IFINDEX_INDEV
            | NFQA_IFINDEX_OUTDEV
            | NFQA_IFINDEX_PHYSINDEV
            | NFQA_IFINDEX_PHYSOUTDEV
            | NFQA_CT_INFO
            | NFQA_CAP_LEN
            | NFQA_SKB_INFO
            | NFQA_UID
            | NFQA_GID
            | NFQA_PRIORITY
            | NFQA_CGROUP_CLASSID => 4,
            _ => 0,
        };
        let (kind, had, offset) = (attribute.kind(), attribute.value().len(), attribute.offset());
        if had < needed {
            return Err(ParseError::ShortAttribute { kind, needed, had, offset });
        }
        found.push(attribute);
    }
    if found.iter().any(|attribute| attribute.kind() == NFQA_PACKET_HDR) {
        Ok(found)
    } else {
        Err(ParseError::Missing { attribute: "NFQA_PACKET_HDR" })
    }
}

proptest! {
    #[test]
    fn verdict_round_trip(
        (queue, id, verdict) in (any::<u16>(), any::<u32>(), verdicts()),
        (mark, priority) in any::<(Option<u32>, Option<u32>)>(),
        vlan in option::of(vlans()),
        l2_header in option::of(bytes(0..20)),
        conntrack in option::of(changes()),
        expectation in option::of(bytes(0..40)),
        payload in option::of(bytes(1..200)),
    ) {
        let verdict = VerdictMessage {
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
        };
        let mut first = Vec::new();
        verdict.push(&mut first).unwrap();
        prop_assert_eq!(first.len() % 4, 0);
        let parsed = VerdictMessage::parse(Message::parse(&first).unwrap()).unwrap();
        prop_assert_eq!(parsed, verdict);
        let mut second = Vec::new();
        parsed.push(&mut second).unwrap();
        prop_assert_eq!(&first, &second);
        prop_assert_eq!(VerdictMessage::parse(Message::parse(&second).unwrap()).unwrap(), verdict);
        // Padding is zero, whatever the values.
        let mut gathered = Vec::new();
        parsed.push_head(&mut gathered, payload.as_deref().map(<[u8]>::len)).unwrap();
        let payload = payload.unwrap_or_default();
        gathered.extend(&payload);
        pad(&mut gathered, payload.len());
        prop_assert_eq!(first, gathered);
    }

    #[test]
    fn batch_round_trip(
        (queue, last_id, verdict) in (any::<u16>(), any::<u32>(), verdicts()),
        (mark, priority) in any::<(Option<u32>, Option<u32>)>(),
    ) {
        let batch = VerdictBatchMessage { queue, last_id, verdict, mark, priority };
        let mut first = Vec::new();
        batch.push(&mut first);
        let parsed = VerdictBatchMessage::parse(Message::parse(&first).unwrap()).unwrap();
        prop_assert_eq!(parsed, batch);
        let mut second = Vec::new();
        parsed.push(&mut second);
        prop_assert_eq!(&first, &second);
        prop_assert_eq!(VerdictBatchMessage::parse(Message::parse(&second).unwrap()), Ok(batch));
    }

    #[test]
    fn config_round_trip(config in configs(), sequence in any::<u32>()) {
        let mut first = Vec::new();
        config.push(sequence, &mut first);
        let message = Message::parse(&first).unwrap();
        prop_assert_eq!((message.sequence(), message.bytes().len()), (sequence, first.len()));
        let parsed = ConfigMessage::parse(message).unwrap();
        prop_assert_eq!(parsed, config);
        let mut second = Vec::new();
        parsed.push(sequence, &mut second);
        prop_assert_eq!(&first, &second);
        prop_assert_eq!(ConfigMessage::parse(Message::parse(&second).unwrap()), Ok(config));
    }

    #[test]
    fn packet_round_trip(model in models(), shift in 0_usize..32) {
        let mut attributes = model.attributes();
        // Any attribute may come first; those with the same number keep their order.
        attributes.sort_by_key(|(kind, _)| (usize::from(kind & NLA_TYPE_MASK) + shift) % 32);
        let first = queue_message(0, model.family, model.queue, &attributes);
        let packet = PacketMessage::parse(&first).unwrap();
        model.check(packet);
        let second = written_again(packet);
        prop_assert_eq!(&first, &second);
        let again = PacketMessage::parse(&second).unwrap();
        prop_assert_eq!(again.index(), packet.index());
        model.check(again);
        let salvaged = PacketIndex::salvage(&first).map(|packet| (packet.queue(), packet.id()));
        prop_assert_eq!(salvaged, Some((model.queue, model.id)));
        let mut used_before = packet.index();
        prop_assert_eq!(used_before.parse_into(&second), Ok(()));
        prop_assert_eq!(used_before, packet.index());
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
            let mut used = PacketIndex::default();
            let parsed = used.parse_into(bytes).map(|()| used);
            prop_assert_eq!(parsed, PacketIndex::parse(bytes));
            match (parsed, plain_walk(bytes)) {
                (Ok(index), Ok(attributes)) => {
                    let packet = index.view(bytes);
                    for kind in 0..64 {
                        let last = attributes.iter().rfind(|found| found.kind() == kind);
                        prop_assert_eq!(packet.attribute(kind), last.copied(), "{}", kind);
                    }
                    let payload = packet.attribute(NFQA_PAYLOAD).map(|found| found.value());
                    prop_assert_eq!(packet.payload(), payload.unwrap_or_default());
                    let id = packet.attribute(NFQA_PACKET_HDR).and_then(|found| found.u32_be());
                    prop_assert_eq!(Some(packet.id()), id);
                }
                (parsed, walked) => prop_assert_eq!(parsed.err(), walked.err()),
            }
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
