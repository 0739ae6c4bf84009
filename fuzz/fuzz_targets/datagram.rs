//! Whatever a socket could hand over: no parser, no accessor and no text may panic, and the walk
//! over a packet finds what the plain iterator does.
#![no_main]

#[path = "../common.rs"]
mod common;

use common::model::an_index_agrees;
use common::touch::{touch, touch_packet};
use libfuzzer_sys::fuzz_target;
use netfilterqueue_protocol::message::Messages;
use netfilterqueue_protocol::packet::PacketIndex;

fuzz_target!(|datagram: &[u8]| {
    touch(datagram);
    netfilterqueue::fuzzing::print(datagram);
    an_index_agrees(datagram);
    for message in Messages::new(datagram).flatten() {
        if let Ok(index) = PacketIndex::parse(message.bytes()) {
            let salvaged = PacketIndex::salvage(message.bytes());
            let salvaged = salvaged.map(|packet| (packet.queue(), packet.id()));
            assert_eq!(salvaged, Some((index.queue(), index.id())));
            // Not the bytes that the index is of.
            touch_packet(index.view(datagram));
            touch_packet(index.view(message.body()));
        }
    }
});
