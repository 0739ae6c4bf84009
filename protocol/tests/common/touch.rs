//! Every parser and every accessor, called, and every text printed. No one may panic, and the work
//! is bounded by the number of bytes.

use std::fmt::{self, Display, Write};
use std::hint::black_box;

use netfilterqueue_protocol::ack::Ack;
use netfilterqueue_protocol::attribute::{Attributes, HEADER_LEN};
use netfilterqueue_protocol::config::{ConfigFlags, ConfigMessage, CopyMode, FlagChange};
use netfilterqueue_protocol::conntrack::{Conntrack, ConntrackChange, LabelsChange, MarkChange};
use netfilterqueue_protocol::interop::{QueueMessage, View};
use netfilterqueue_protocol::message::{Message, Messages, NLMSG_HEADER_LEN, Nfgenmsg};
use netfilterqueue_protocol::packet::{PacketIndex, PacketMessage, Timestamp};
use netfilterqueue_protocol::verdict::{VerdictBatchMessage, VerdictMessage};

/// Runs every parser and every accessor over `bytes`; what they find is of no interest here.
pub(crate) fn touch(bytes: &[u8]) {
    let mut messages = 0;
    for message in Messages::new(bytes) {
        messages += 1;
        match message {
            Ok(message) => touch_message(message),
            Err(error) => print(error),
        }
    }
    assert!(messages <= bytes.len() / NLMSG_HEADER_LEN + 1);
    black_box(PacketIndex::salvage(bytes));
    if let Ok(index) = PacketIndex::parse(bytes) {
        touch_packet(index.view(bytes));
    }
    touch_conntrack(Conntrack::new(bytes));
    touch_attributes(Attributes::new(bytes), bytes.len(), 4);
}

fn touch_message(message: Message<'_>) {
    black_box((message.kind(), message.flags(), message.sequence(), message.port()));
    black_box((message.bytes(), message.body(), message.netlink_header()));
    if let Ok((nfgenmsg, attributes)) = Nfgenmsg::parse(message.body()) {
        black_box(nfgenmsg);
        touch_attributes(attributes, message.body().len(), 4);
    }
    if let Ok(ack) = Ack::parse(message) {
        black_box((ack.errno(), ack.request_kind(), ack.request_sequence(), ack.request_port()));
        black_box((ack.request_body(), ack.text(), ack.offset()));
    }
    match ConfigMessage::parse(message) {
        Ok(config) => {
            black_box(config.copy_mode.map(CopyMode::effective));
            config.flags.into_iter().for_each(|change| touch_flags(change.values));
        }
        Err(error) => print(error),
    }
    black_box(VerdictBatchMessage::parse(message).is_ok());
    black_box(VerdictMessage::parse(message).map_err(print).is_ok());
    match QueueMessage::parse(message) {
        Ok(any) => match any.view() {
            View::Packet(packet) => touch_packet(packet),
            View::Verdict(verdict) => assert_eq!(VerdictMessage::parse(message), Ok(verdict)),
            View::VerdictBatch(batch) => assert_eq!(VerdictBatchMessage::parse(message), Ok(batch)),
            View::Config(config) => assert_eq!(ConfigMessage::parse(message), Ok(config)),
            _ => unreachable!("no other view"),
        },
        Err(error) => print(error),
    }
}

/// The known flags of a set and the others make the set.
fn touch_flags(flags: ConfigFlags) {
    let known = flags.iter().fold(ConfigFlags::default(), |all, flag| all | flag);
    let mut all = ConfigFlags(flags.0 & !known.0);
    assert!(flags.contains(known) && (all.is_empty() || !known.contains(all)));
    all |= known;
    assert_eq!(all, flags);
    print(format_args!("{flags} {flags:?}"));
    assert_eq!(FlagChange::set(flags).values, flags);
    assert!(FlagChange::clear(flags).values.is_empty());
}

fn touch_attributes(attributes: Attributes<'_>, len: usize, depth: usize) {
    let mut count = 0;
    for attribute in attributes {
        count += 1;
        let Ok(attribute) = attribute.map_err(print) else { continue };
        black_box((attribute.kind(), attribute.is_nested(), attribute.is_net_byteorder()));
        black_box((attribute.offset(), attribute.value(), attribute.u8()));
        black_box((attribute.u16_be(), attribute.u32_be()));
        if depth > 0 {
            touch_attributes(attribute.nested(), attribute.value().len(), depth - 1);
        }
    }
    assert!(count <= len / HEADER_LEN);
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
    if let Some(info) = packet.conntrack_info() {
        black_box(info.is_reply());
        print(info);
    }
    if let Some(info) = packet.skb_info() {
        black_box((info.checksum_not_ready(), info.is_gso(), info.checksum_not_verified()));
    }
    if let Some(conntrack) = packet.conntrack() {
        touch_conntrack(conntrack);
    }
    for kind in 0..32 {
        black_box(packet.attribute(kind));
    }
    touch_attributes(packet.attributes(), packet.bytes().len(), 4);
}

fn touch_conntrack(conntrack: Conntrack<'_>) {
    black_box((conntrack.bytes(), conntrack.id(), conntrack.timeout(), conntrack.attribute(4)));
    black_box((conntrack.mark(), conntrack.zone(), conntrack.labels()));
    black_box((conntrack.original(), conntrack.reply()));
    conntrack.status().into_iter().for_each(print);
    conntrack.tcp_state().into_iter().for_each(print);
    // The kernel's own tree, or any bytes, read as a change of it.
    match ConntrackChange::parse(Attributes::new(conntrack.bytes())) {
        Ok(change) => change_round_trip(change),
        Err(error) => print(error),
    }
    #[cfg(feature = "conntrack-attributes")]
    black_box(conntrack.to_attributes().is_ok());
}

/// A change is written in the stated length, and read again is the same.
pub(crate) fn change_round_trip(change: ConntrackChange) {
    let mut bytes = Vec::new();
    change.push(&mut bytes);
    assert_eq!(bytes.len(), change.encoded_len());
    assert!(bytes.len() <= ConntrackChange::ENCODED_LEN_MAX);
    let mut list = Attributes::new(&bytes);
    let nest = list.next().expect("one attribute").expect("a whole one");
    assert_eq!(ConntrackChange::parse(nest.nested()), Ok(change));
    assert!(list.next().is_none());
    if let Some(MarkChange { value, mask }) = change.mark {
        assert_eq!(MarkChange::bits(value, mask).apply(!value) & mask, value & mask);
        assert_eq!(MarkChange::set(value).apply(mask), value);
    }
    if let Some(LabelsChange { value, mask }) = change.labels {
        let old = value.map(|byte| !byte);
        let new = LabelsChange::bits(value, mask).apply(old);
        assert!((0..16).all(|i| new[i] ^ old[i] == mask[i]));
        assert_eq!(LabelsChange::set(value).apply(mask), value);
    }
}

fn print(text: impl Display) {
    /// Nothing is kept.
    struct Sink;

    impl Write for Sink {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            black_box(text);
            Ok(())
        }
    }

    write!(Sink, "{text}").expect("no text fails");
}
