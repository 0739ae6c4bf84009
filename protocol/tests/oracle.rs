//! The same bytes read by this crate and by netlink-packet-core. Where the two differ on purpose, a
//! test says how.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod common;

use common::differential::{
    Plain, ours, same_attributes, same_messages, theirs, through_netlink_message,
};
use common::{list, message, packet_hdr, queue_message};
use netfilterqueue_protocol::ack::Ack;
use netfilterqueue_protocol::config::{Command, ConfigMessage, CopyMode};
use netfilterqueue_protocol::constants::*;
use netfilterqueue_protocol::interop::{QueueMessage, View};
use netfilterqueue_protocol::message::Message;
use netfilterqueue_protocol::verdict::{Verdict, VerdictBatchMessage, VerdictMessage};
use netlink_packet_core::{NLMSG_NOOP, NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use proptest::collection::vec;
use proptest::prelude::*;

#[test]
fn stray_tail() {
    let mut bytes = list(&[(1, vec![1, 2, 3, 4])]);
    for tail in 1..4 {
        bytes.push(0);
        let one = Plain { kind: 1, nested: false, net_byteorder: false, value: &[1, 2, 3, 4] };
        assert!(ours(&bytes).eq([Some(one)]), "{tail} bytes");
        assert!(theirs(&bytes).eq([Some(one), None]));
        same_attributes(&bytes);
    }
}

#[test]
fn attributes_of_captures() {
    for bytes in common::captures() {
        let attributes = &bytes[20..];
        if cfg!(target_endian = "little") {
            let attributes = ours(attributes);
            let attributes: Option<Vec<_>> = attributes.collect();
            assert!(attributes.expect("whole").len() >= 4);
        }
        same_attributes(attributes);
        same_messages(&bytes);
    }
}

fn datagrams() -> impl Strategy<Value = Vec<u8>> {
    let one = (any::<(u16, u16, u32, u32)>(), vec(any::<u8>(), 0..40), any::<u8>(), 0_u32..64);
    (vec(one, 0..5), 0_usize..24).prop_map(|(messages, cut)| {
        let mut out = Vec::new();
        for ((kind, flags, sequence, port), body, lie, length) in messages {
            out.resize(out.len().next_multiple_of(4), 0);
            let mut bytes = message(kind, flags, sequence, port, &body);
            if lie < 32 {
                bytes[..4].copy_from_slice(&length.to_ne_bytes());
            }
            out.extend(bytes);
        }
        let end = if cut < 16 { out.len() } else { out.len().saturating_sub(cut - 15) };
        out.truncate(end);
        out
    })
}

proptest! {
    #[test]
    fn any_attributes(
        attributes in vec((any::<u16>(), vec(any::<u8>(), 0..12)), 0..6),
        lie in any::<Option<(u8, u8)>>(),
        tail in vec(any::<u8>(), 0..6),
    ) {
        let mut bytes = [list(&attributes), tail].concat();
        if let Some((at, value)) = lie && let Some(byte) = bytes.get_mut(usize::from(at)) {
            *byte = value;
        }
        same_attributes(&bytes);
    }

    #[test]
    fn any_bytes_as_attributes(bytes in vec(0_u8..12, 0..100)) {
        same_attributes(&bytes);
    }

    #[test]
    fn any_datagram(datagram in datagrams()) {
        same_messages(&datagram);
    }

    #[test]
    fn any_bytes_as_a_datagram(datagram in vec(0_u8..40, 0..120)) {
        same_messages(&datagram);
    }

    #[test]
    fn any_refusal(
        error in any::<i32>(),
        (kind, flags, sequence, port) in any::<(u16, u16, u32, u32)>(),
        echo in vec(any::<u8>(), 1..40),
    ) {
        let mut body = error.to_ne_bytes().to_vec();
        body.extend(message(kind, flags, sequence, port, &echo));
        let bytes = message(NLMSG_ERROR, 0, 1, 2, &body);
        let ack = Ack::parse(Message::parse(&bytes).unwrap()).unwrap();
        let theirs = NetlinkMessage::<QueueMessage>::deserialize(&bytes).unwrap();
        let NetlinkPayload::Error(theirs) = theirs.payload else { panic!("not an error") };
        prop_assert_eq!(ack.errno(), theirs.raw_code().saturating_neg());
        let request = NetlinkBuffer::new_checked(&theirs.header[..]).unwrap();
        prop_assert_eq!(ack.request_kind(), request.message_type());
        prop_assert_eq!(ack.request_sequence(), request.sequence_number());
        prop_assert_eq!(ack.request_port(), request.port_number());
        prop_assert_eq!(ack.request_body(), request.payload());
    }
}

/// Differences: `ErrorMessage` takes whatever follows the code for the header, so it accepts an
/// answer without one, and hands out an explanation as a part of it.
#[test]
fn acknowledgements() {
    let bytes = message(NLMSG_ERROR, 0, 1, 2, &(-2_i32).to_ne_bytes());
    assert!(NetlinkMessage::<QueueMessage>::deserialize(&bytes).is_ok());
    assert!(Ack::parse(Message::parse(&bytes).unwrap()).is_err());

    let mut body = (-34_i32).to_ne_bytes().to_vec();
    let request = message(NFQNL_MSG_CONFIG, 5, 3, 0, &[0; 4]);
    body.extend(&request);
    let explanation = list(&[(NLMSGERR_ATTR_MSG, b"no\0".to_vec())]);
    body.extend(&explanation);
    let bytes = message(NLMSG_ERROR, NLM_F_ACK_TLVS, 3, 0, &body);
    let theirs = NetlinkMessage::<QueueMessage>::deserialize(&bytes).unwrap();
    let NetlinkPayload::Error(theirs) = theirs.payload else { panic!("not an error") };
    assert_eq!(theirs.header, [request, explanation].concat());
    let ack = Ack::parse(Message::parse(&bytes).unwrap()).unwrap();
    assert_eq!((ack.request_body(), ack.text()), (&[0; 4][..], Some("no")));
    assert_eq!(theirs.to_io().raw_os_error(), Some(ack.errno()));
}

#[test]
fn queue_messages_in_an_envelope() {
    let config = ConfigMessage {
        copy_mode: Some(CopyMode::WHOLE),
        ..ConfigMessage::command(9, Command::Bind)
    };
    let mut pushed = Vec::new();
    config.push(&mut pushed, 77);
    through_netlink_message(&pushed, config.into());

    let batch = VerdictBatchMessage {
        queue: 9,
        last_id: 8,
        verdict: Verdict::Drop,
        mark: Some(7),
        priority: None,
    };
    let mut pushed = Vec::new();
    batch.push(&mut pushed);
    through_netlink_message(&pushed, batch.into());

    // Also with a payload whose padding is not part of the message.
    for len in 1..6 {
        let payload = vec![0x45; len];
        let verdict = VerdictMessage {
            payload: Some(&payload),
            ..VerdictMessage::new(9, 8, Verdict::Accept)
        };
        let mut pushed = Vec::new();
        verdict.push(&mut pushed).unwrap();
        let message = QueueMessage::try_from(verdict).unwrap();
        assert!(matches!(message.view(), View::Verdict(view) if view == verdict));
        through_netlink_message(&pushed, message);
    }
}

#[cfg(target_endian = "little")]
#[test]
fn captures_in_an_envelope() {
    for bytes in common::captures() {
        let message = NetlinkMessage::<QueueMessage>::deserialize(&bytes).unwrap();
        let NetlinkPayload::InnerMessage(inner) = &message.payload else { panic!("not ours") };
        let View::Packet(packet) = inner.view() else { panic!("not a packet") };
        assert_eq!(packet.bytes(), bytes);
        let mut buffer = vec![0xa5; message.buffer_len()];
        message.serialize(&mut buffer);
        assert_eq!(buffer, bytes);
        through_netlink_message(&bytes, inner.clone());
    }
}

#[test]
fn views_by_type() {
    let hdr = [1_u32.to_be_bytes(), 2_u32.to_be_bytes()].concat();
    let view_of = |bytes: &[u8]| {
        let message = QueueMessage::parse(Message::parse(bytes).unwrap()).unwrap();
        match message.view() {
            View::Packet(packet) => format!("packet {}", packet.id()),
            View::Verdict(verdict) => format!("verdict {}", verdict.id),
            View::VerdictBatch(batch) => format!("batch {}", batch.last_id),
            View::Config(config) => format!("config {}", config.queue),
            _ => unreachable!("no other view"),
        }
    };
    let packet = queue_message(0, 2, 5, &[(NFQA_PACKET_HDR, packet_hdr(3, 0x0800, 1))]);
    assert_eq!(view_of(&packet), "packet 3");
    assert_eq!(view_of(&queue_message(1, 0, 5, &[(NFQA_VERDICT_HDR, hdr.clone())])), "verdict 2");
    assert_eq!(view_of(&queue_message(3, 0, 5, &[(NFQA_VERDICT_HDR, hdr)])), "batch 2");
    assert_eq!(view_of(&queue_message(2, 0, 5, &[])), "config 5");
}

#[test]
fn refused_in_an_envelope() {
    let refused =
        |bytes: &[u8]| NetlinkMessage::<QueueMessage>::deserialize(bytes).unwrap_err().to_string();
    let other = refused(&queue_message(4, 0, 1, &[]));
    assert!(other.contains("message type 0x0304"), "{other}");
    let short = refused(&message(NFQNL_MSG_CONFIG, 0, 0, 0, &[0; 3]));
    assert!(short.contains("struct nfgenmsg needs 4 bytes"), "{short}");
    let cut = refused(&queue_message(0, 2, 1, &[(NFQA_PACKET_HDR, vec![0; 6])]));
    assert!(cut.contains("attribute 1 at offset 20 needs 7 bytes, has 6"), "{cut}");
    // Netlink's own messages never reach this crate.
    let noop = message(NLMSG_NOOP, 0, 0, 0, &[]);
    let noop = NetlinkMessage::<QueueMessage>::deserialize(&noop).unwrap();
    assert_eq!(noop.payload, NetlinkPayload::Noop);
}

#[test]
fn equal_whatever_the_envelope() {
    let config = ConfigMessage::command(3, Command::Unbind);
    let (mut one, mut other) = (Vec::new(), Vec::new());
    config.push(&mut one, 1);
    config.push(&mut other, 2);
    let parse = |bytes: &[u8]| QueueMessage::parse(Message::parse(bytes).unwrap()).unwrap();
    assert_eq!(parse(&one), parse(&other));
    assert_ne!(parse(&one), ConfigMessage::command(4, Command::Unbind).into());
    let batch = VerdictBatchMessage {
        queue: 1,
        last_id: 2,
        verdict: Verdict::Drop,
        mark: None,
        priority: None,
    };
    let single = QueueMessage::try_from(VerdictMessage::new(1, 2, Verdict::Drop)).unwrap();
    assert_ne!(QueueMessage::from(batch), single);
}
