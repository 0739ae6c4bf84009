//! Packet messages made of known parts, and what must hold of every message.

use netfilterqueue_protocol::ParseError;
use netfilterqueue_protocol::attribute::{Attribute, pad, push, push_nested};
use netfilterqueue_protocol::config::ConfigMessage;
use netfilterqueue_protocol::conntrack::{Conntrack, ConntrackInfo};
use netfilterqueue_protocol::constants::*;
use netfilterqueue_protocol::interop::QueueMessage;
use netfilterqueue_protocol::message::{Message, Nfgenmsg};
use netfilterqueue_protocol::packet::{PacketIndex, PacketMessage, SkbInfo, Vlan};
use netfilterqueue_protocol::verdict::{VerdictBatchMessage, VerdictMessage};

use super::differential::through_netlink_message;
use super::wire::{list, message, packet_hdr, queue_message, state_length};

/// What a packet message of the test's own making holds.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) queue: u16,
    pub(crate) family: u8,
    pub(crate) id: u32,
    pub(crate) protocol: u16,
    pub(crate) hook: u8,
    /// Attributes whose value is one u32: number, value.
    pub(crate) numbers: Vec<(u16, u32)>,
    pub(crate) secctx: Option<Vec<u8>>,
    pub(crate) vlan: Option<Vlan>,
    pub(crate) l2_header: Option<Vec<u8>>,
    pub(crate) conntrack: Option<Vec<u8>>,
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) unknown: Vec<(u16, Vec<u8>)>,
}

pub(crate) const NUMBERS: [u16; 12] = [
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

impl Model {
    pub(crate) fn attributes(&self) -> Vec<(u16, Vec<u8>)> {
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

    pub(crate) fn check(&self, packet: PacketMessage<'_>) {
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

/// Written, read, and written again, twice: the same.
pub(crate) fn verdict_round_trip(verdict: VerdictMessage<'_>) {
    fn parse(bytes: &[u8]) -> Result<VerdictMessage<'_>, ParseError> {
        VerdictMessage::parse(Message::parse(bytes)?)
    }
    let (mut first, mut second) = (Vec::new(), Vec::new());
    verdict.push(&mut first).expect("it can be written");
    assert_eq!(first.len() % 4, 0);
    let parsed = parse(&first).expect("it was written");
    assert_eq!(parsed, verdict);
    parsed.push(&mut second).expect("it was written before");
    assert_eq!(first, second);
    assert_eq!(parse(&second), Ok(verdict));
    // Padding is zero, whatever the values.
    let mut gathered = Vec::new();
    let payload = verdict.payload.unwrap_or_default();
    verdict.push_head(&mut gathered, verdict.payload.map(<[u8]>::len)).expect("as before");
    gathered.extend(payload);
    pad(&mut gathered, payload.len());
    assert_eq!(first, gathered);
    through_netlink_message(&first, QueueMessage::try_from(verdict).expect("as before"));
}

/// Written, read, and written again, twice: the same.
pub(crate) fn batch_round_trip(batch: VerdictBatchMessage) {
    let parse = |bytes| VerdictBatchMessage::parse(Message::parse(bytes)?);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    batch.push(&mut first);
    let parsed = parse(&first).expect("it was written");
    assert_eq!(parsed, batch);
    parsed.push(&mut second);
    assert_eq!(first, second);
    assert_eq!(parse(&second), Ok(batch));
    through_netlink_message(&first, batch.into());
}

/// Written, read, and written again, twice: the same.
pub(crate) fn config_round_trip(config: ConfigMessage, sequence: u32) {
    let parse = |bytes| ConfigMessage::parse(Message::parse(bytes)?);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    config.push(&mut first, sequence);
    let message = Message::parse(&first).expect("it was written");
    assert_eq!((message.sequence(), message.bytes().len()), (sequence, first.len()));
    let parsed = ConfigMessage::parse(message).expect("it was written");
    assert_eq!(parsed, config);
    parsed.push(&mut second, sequence);
    assert_eq!(first, second);
    assert_eq!(parse(&second), Ok(config));
    through_netlink_message(&first, config.into());
}

/// Written by other means, read, and written again by this crate's: the same. The attributes are
/// in another order for each `shift`.
pub(crate) fn packet_round_trip(model: &Model, shift: usize) {
    let mut attributes = model.attributes();
    // Any attribute may come first; those with the same number keep their order.
    attributes.sort_by_key(|(kind, _)| (usize::from(kind & NLA_TYPE_MASK) + shift) % 32);
    let first = queue_message(0, model.family, model.queue, &attributes);
    let packet = PacketMessage::parse(&first).expect("a whole packet");
    model.check(packet);
    let second = written_again(packet);
    assert_eq!(first, second);
    let again = PacketMessage::parse(&second).expect("it was written");
    assert_eq!(again.index(), packet.index());
    model.check(again);
    let salvaged = PacketIndex::salvage(&first).map(|packet| (packet.queue(), packet.id()));
    assert_eq!(salvaged, Some((model.queue, model.id)));
    let mut used_before = packet.index();
    assert_eq!(used_before.parse_into(&second), Ok(()));
    assert_eq!(used_before, packet.index());
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

/// The fast walk over a packet message finds what the plain one does, and the same fault.
pub(crate) fn an_index_agrees(bytes: &[u8]) {
    let mut used = PacketIndex::default();
    let parsed = used.parse_into(bytes).map(|()| used);
    assert_eq!(parsed, PacketIndex::parse(bytes));
    match (parsed, plain_walk(bytes)) {
        (Ok(index), Ok(attributes)) => {
            let packet = index.view(bytes);
            for kind in 0..64 {
                let last = attributes.iter().rfind(|found| found.kind() == kind);
                assert_eq!(packet.attribute(kind), last.copied(), "{kind}");
            }
            let payload = packet.attribute(NFQA_PAYLOAD).map(|found| found.value());
            assert_eq!(packet.payload(), payload.unwrap_or_default());
            let id = packet.attribute(NFQA_PACKET_HDR).and_then(|found| found.u32_be());
            assert_eq!(Some(packet.id()), id);
        }
        (parsed, walked) => assert_eq!(parsed.err(), walked.err()),
    }
}
