//! The same bytes read by this library and by the crates of rust-netlink: headers and attributes by
//! netlink-packet-core, conntrack trees by netlink-packet-netfilter.
#![no_main]

#[path = "../common.rs"]
mod common;

use common::differential::{same_attributes, same_messages, same_tree};
use libfuzzer_sys::fuzz_target;
use netfilterqueue_protocol::message::{Messages, Nfgenmsg};
use netfilterqueue_protocol::packet::PacketMessage;

fuzz_target!(|datagram: &[u8]| {
    same_messages(datagram);
    for message in Messages::new(datagram).flatten() {
        if Nfgenmsg::parse(message.body()).is_ok() {
            same_attributes(&message.body()[4..]);
        }
        if let Ok(packet) = PacketMessage::parse(message.bytes()) {
            let tree = packet.conntrack().map(|conntrack| conntrack.bytes());
            tree.into_iter().for_each(same_tree);
        }
    }
    // Not only what has found its way into a message.
    same_attributes(datagram);
    same_tree(datagram);
});
