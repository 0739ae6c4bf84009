//! The same bytes read by this crate and by netlink-packet-core. Where the two differ on purpose, a
//! test in `oracle.rs` says how.

use netfilterqueue_protocol::attribute::{Attributes, HEADER_LEN};
#[cfg(feature = "conntrack-attributes")]
use netfilterqueue_protocol::conntrack::{Conntrack, Tuple};
#[cfg(feature = "conntrack-attributes")]
use netfilterqueue_protocol::constants::NLA_TYPE_MASK;
use netfilterqueue_protocol::interop::QueueMessage;
use netfilterqueue_protocol::message::{Message, Messages};
#[cfg(feature = "conntrack-attributes")]
use netlink_packet_core::{Emitable, Nla};
use netlink_packet_core::{NetlinkBuffer, NetlinkHeader, NetlinkMessage, NlasIterator, Parseable};
#[cfg(feature = "conntrack-attributes")]
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Tuple as OtherTuple,
};

/// An attribute as both sides have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plain<'a> {
    pub(crate) kind: u16,
    pub(crate) nested: bool,
    pub(crate) net_byteorder: bool,
    pub(crate) value: &'a [u8],
}

/// `None` where the walk ends with an error.
pub(crate) fn ours(bytes: &[u8]) -> impl Iterator<Item = Option<Plain<'_>>> {
    Attributes::new(bytes).map(|attribute| {
        let attribute = attribute.ok()?;
        Some(Plain {
            kind: attribute.kind(),
            nested: attribute.is_nested(),
            net_byteorder: attribute.is_net_byteorder(),
            value: attribute.value(),
        })
    })
}

pub(crate) fn theirs(bytes: &[u8]) -> impl Iterator<Item = Option<Plain<'_>>> {
    NlasIterator::new(bytes).map(|attribute| {
        let attribute = attribute.ok()?;
        let (kind, nested) = (attribute.kind(), attribute.nested_flag());
        let net_byteorder = attribute.network_byte_order_flag();
        let end = HEADER_LEN + attribute.value_length();
        Some(Plain { kind, nested, net_byteorder, value: &attribute.into_inner()[HEADER_LEN..end] })
    })
}

/// The attributes of any bytes. Difference: one to three bytes behind the last attribute end our
/// walk, as in the kernel, and are an error of `NlasIterator`.
pub(crate) fn same_attributes(bytes: &[u8]) {
    let mut theirs = theirs(bytes);
    let mut walked = 0;
    for ours in ours(bytes) {
        assert_eq!(theirs.next(), Some(ours));
        walked += ours.map_or(bytes.len(), |ours| (4 + ours.value.len()).next_multiple_of(4));
    }
    if (1..4).contains(&bytes.len().saturating_sub(walked)) {
        assert_eq!(theirs.next(), Some(None));
    }
    assert_eq!(theirs.next(), None);
}

/// Headers and bodies of any datagram.
pub(crate) fn same_messages(datagram: &[u8]) {
    let mut ours = Messages::new(datagram);
    let mut rest = datagram;
    while !rest.is_empty() {
        let ours = ours.next().expect("there are bytes left");
        let Ok(buffer) = NetlinkBuffer::new_checked(&rest) else {
            assert!(ours.is_err());
            rest = &[];
            continue;
        };
        let ours = ours.expect("the other crate can read it");
        let header = ours.netlink_header();
        assert_eq!(header, NetlinkHeader::parse(&buffer).expect("a checked buffer"));
        assert_eq!((header.message_type, header.flags), (ours.kind(), ours.flags()));
        assert_eq!((header.sequence_number, header.port_number), (ours.sequence(), ours.port()));
        assert_eq!(ours.body(), buffer.payload());
        let step = ours.bytes().len().next_multiple_of(4);
        rest = rest.get(step..).unwrap_or_default();
    }
    assert!(ours.next().is_none());
}

/// Through the other crate's envelope and back: the same bytes that `push` writes.
pub(crate) fn through_netlink_message(pushed: &[u8], message: QueueMessage) {
    let ours = Message::parse(pushed).expect("a message");
    let mut envelope = NetlinkMessage::from(message.clone());
    envelope.header.flags = ours.flags();
    envelope.header.sequence_number = ours.sequence();
    envelope.header.port_number = ours.port();
    envelope.finalize();
    for filling in [0xa5, 0x5a] {
        let mut buffer = vec![filling; envelope.buffer_len() + 4];
        envelope.serialize(&mut buffer);
        assert_eq!(&buffer[..envelope.buffer_len()], ours.bytes());
        assert_eq!(&buffer[envelope.buffer_len()..], &[filling; 4]);
        let back = NetlinkMessage::<QueueMessage>::deserialize(&buffer).expect("the same message");
        assert_eq!(back, envelope);
    }
    // However it was made, it is the same message.
    assert_eq!(QueueMessage::parse(ours), Ok(message));
}

/// A conntrack tree that the other crate can read says the same in both, and the other crate's
/// writer fills no more than its length.
#[cfg(feature = "conntrack-attributes")]
pub(crate) fn same_tree(tree: &[u8]) {
    let conntrack = Conntrack::new(tree);
    let Ok(attributes) = conntrack.to_attributes() else { return };
    let mut out = vec![0xa5; attributes.as_slice().buffer_len()];
    attributes.as_slice().emit(&mut out);
    assert!(out.len() <= tree.len().next_multiple_of(4));
    for attribute in &attributes {
        let is_last = attributes.iter().rfind(|other| other.kind() == attribute.kind());
        if !is_last.is_some_and(|last| std::ptr::eq(last, attribute)) {
            continue;
        }
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => same_tuple(tuple, conntrack.original()),
            ConntrackAttribute::CtaTupleReply(tuple) => same_tuple(tuple, conntrack.reply()),
            ConntrackAttribute::CtaStatus(status) => {
                assert_eq!(conntrack.status().map(|status| status.0), Some(status.bits()));
            }
            ConntrackAttribute::CtaTimeout(timeout) => {
                assert_eq!(conntrack.timeout(), Some(*timeout));
            }
            ConntrackAttribute::CtaMark(mark) => assert_eq!(conntrack.mark(), Some(*mark)),
            ConntrackAttribute::CtaProtoInfo(info) => {
                let tcp = info.iter().rev().find_map(|info| match info {
                    ProtoInfo::TCP(tcp) => Some(tcp),
                    _ => None,
                });
                let state = tcp.into_iter().flatten().rev().find_map(|tcp| match tcp {
                    ProtoInfoTCP::State(state) => Some(*state),
                    _ => None,
                });
                assert_eq!(conntrack.tcp_state().map(|state| state.0), state);
            }
            ConntrackAttribute::Other(other) => {
                let ours = conntrack.attribute(other.kind() & NLA_TYPE_MASK);
                // Their number has the flags, so that there may be a later one with others.
                assert!(ours.is_some());
            }
            _ => unreachable!("no other attribute"),
        }
    }
}

/// Compared where each part occurs once: they keep all, and do not say which of an address's two
/// numbers it had.
#[cfg(feature = "conntrack-attributes")]
fn same_tuple(theirs: &[OtherTuple], ours: Option<Tuple>) {
    let [OtherTuple::Ip(ip), OtherTuple::Proto(proto)] = theirs else { return };
    let mut addresses = [const { Vec::new() }; 2];
    for address in ip {
        match address {
            IPTuple::SourceAddress(source) => addresses[0].push(*source),
            IPTuple::DestinationAddress(destination) => addresses[1].push(*destination),
            _ => {}
        }
    }
    let mut numbers = [const { Vec::new() }; 3];
    for part in proto {
        match part {
            ProtoTuple::Protocol(number) => numbers[0].push(u16::from(u8::from(*number))),
            ProtoTuple::SourcePort(port) => numbers[1].push(*port),
            ProtoTuple::DestinationPort(port) => numbers[2].push(*port),
            _ => {}
        }
    }
    let ([source], [destination]) = (&addresses[0][..], &addresses[1][..]) else { return };
    let Some(protocol) = numbers[0].last() else {
        assert_eq!(ours, None);
        return;
    };
    // An address under the other version's number is theirs alone, and cut off in ours.
    let Some(ours) = ours.filter(|ours| ours.source.is_ipv4() == source.is_ipv4()) else { return };
    if ours.destination.is_ipv4() != destination.is_ipv4() {
        return;
    }
    assert_eq!((ours.source, ours.destination), (*source, *destination));
    assert_eq!(u16::from(ours.protocol), *protocol);
    assert_eq!(ours.source_port, numbers[1].last().copied());
    assert_eq!(ours.destination_port, numbers[2].last().copied());
}
