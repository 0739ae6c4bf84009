//! Whatever a socket could hand over: no parser and no accessor may panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netfilterqueue_protocol::attribute::Attributes;
use netfilterqueue_protocol::conntrack::ConntrackChange;
use netfilterqueue_protocol::message::{Ack, Messages};
use netfilterqueue_protocol::packet::{PacketIndex, PacketMessage};

fuzz_target!(|datagram: &[u8]| {
    let _ = PacketIndex::salvage(datagram);
    for message in Messages::new(datagram).flatten() {
        if let Ok(ack) = Ack::parse(message) {
            let _ = (ack.errno(), ack.request_kind(), ack.request_sequence(), ack.request_port());
            let _ = (ack.request_body(), ack.text(), ack.offset());
        }
        if let Ok(index) = PacketIndex::parse(message.bytes()) {
            let salvaged = PacketIndex::salvage(message.bytes());
            let salvaged = salvaged.map(|packet| (packet.queue(), packet.id()));
            assert_eq!(salvaged, Some((index.queue(), index.id())));
            read(index.view(message.bytes()));
            // Not the bytes that the index is of.
            read(index.view(datagram));
            read(index.view(message.body()));
        }
    }
});

fn read(packet: PacketMessage<'_>) {
    let _ = (packet.id(), packet.queue(), packet.family(), packet.hook(), packet.hw_protocol());
    let _ = (packet.payload(), packet.cap_len(), packet.mark(), packet.indev(), packet.outdev());
    let _ = packet.timestamp().map(|timestamp| timestamp.to_system_time());
    let _ = (packet.physindev(), packet.physoutdev(), packet.hwaddr(), packet.skb_info());
    let _ = (packet.uid(), packet.gid(), packet.secctx(), packet.priority(), packet.vlan());
    let _ = (packet.cgroup_classid(), packet.l2_header(), packet.conntrack_info());
    let _ = (packet.index(), packet.attribute(30), packet.attributes().count());
    if let Some(conntrack) = packet.conntrack() {
        let _ = (conntrack.id(), conntrack.status(), conntrack.timeout(), conntrack.mark());
        let _ = (conntrack.zone(), conntrack.labels(), conntrack.original(), conntrack.reply());
        let _ = (conntrack.tcp_state(), conntrack.to_attributes());
        if let Ok(change) = ConntrackChange::parse(Attributes::new(conntrack.bytes())) {
            change_round_trip(change);
        }
    }
}

/// The kernel's own tree read as a change of it.
fn change_round_trip(change: ConntrackChange) {
    let mut bytes = Vec::new();
    change.push(&mut bytes);
    assert_eq!(bytes.len(), change.encoded_len());
    let nest = Attributes::new(&bytes).next().unwrap().unwrap();
    assert_eq!(ConntrackChange::parse(nest.nested()), Ok(change));
}
