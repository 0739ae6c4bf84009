//! Reading and writing messages, without a socket.
//!
//! As in [`crate::live`], only functions called `measured_*` count; here they include the loop
//! around the work, some five instructions a round.

use std::hint::black_box;

use netfilterqueue_benches::messages;
use netfilterqueue_protocol::message::{Message, Nfgenmsg};
use netfilterqueue_protocol::packet::PacketIndex;
use netfilterqueue_protocol::verdict::{Verdict, VerdictBatchMessage, VerdictMessage};

use crate::PACKETS;

/// As long as the longest message that is written here.
const ROOM: usize = 128;

const ACCEPT: VerdictMessage<'_> = VerdictMessage::new(1, 42, Verdict::Accept);

pub(crate) fn parse_udp() {
    measured_parse(&messages::of(messages::OUTPUT_UDP));
}

pub(crate) fn parse_tcp_conntrack() {
    measured_parse(&messages::of(messages::TCP_CONNTRACK));
}

pub(crate) fn iterate_attributes() {
    measured_attributes(&messages::of(messages::OUTPUT_UDP));
}

pub(crate) fn encode_exact() {
    measured_verdict(&ACCEPT, None);
}

/// What an edited packet's verdict has in front of its payload.
pub(crate) fn encode_exact_mark_head() {
    measured_verdict(&VerdictMessage { mark: Some(7), ..ACCEPT }, Some(1_400));
}

pub(crate) fn encode_cumulative() {
    measured_batch_verdict(&VerdictBatchMessage {
        queue: 1,
        last_id: 42,
        verdict: Verdict::Accept,
        mark: None,
        priority: None,
    });
}

#[inline(never)]
fn measured_parse(message: &[u8]) {
    for _ in 0..PACKETS {
        black_box(PacketIndex::parse(black_box(message))).expect("a whole packet message");
    }
}

#[inline(never)]
fn measured_attributes(message: &[u8]) {
    for _ in 0..PACKETS {
        let message = Message::parse(black_box(message)).expect("a whole message");
        let (_, attributes) = Nfgenmsg::parse(message.body()).expect("an nfnetlink message");
        for attribute in attributes {
            black_box(attribute).expect("a whole attribute");
        }
    }
}

#[inline(never)]
fn measured_verdict(verdict: &VerdictMessage<'_>, payload_len: Option<usize>) {
    let mut out = Vec::with_capacity(ROOM);
    for _ in 0..PACKETS {
        out.clear();
        black_box(verdict).push_head(&mut out, payload_len).expect("a payload that fits");
        black_box(&out);
    }
}

#[inline(never)]
fn measured_batch_verdict(verdict: &VerdictBatchMessage) {
    let mut out = Vec::with_capacity(ROOM);
    for _ in 0..PACKETS {
        out.clear();
        black_box(verdict).push(&mut out);
        black_box(&out);
    }
}
