//! `NFQNL_MSG_VERDICT` and `NFQNL_MSG_VERDICT_BATCH`.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod common;

use common::{attribute, list, message, queue_message};
use netfilterqueue_protocol::attribute::{MAX_VALUE_LEN, pad};
use netfilterqueue_protocol::conntrack::{ConntrackChange, MarkChange};
use netfilterqueue_protocol::constants::*;
use netfilterqueue_protocol::interop::QueueMessage;
use netfilterqueue_protocol::message::{Message, Messages};
use netfilterqueue_protocol::packet::Vlan;
use netfilterqueue_protocol::verdict::{Verdict, VerdictBatchMessage, VerdictMessage};
use netfilterqueue_protocol::{EncodeError, ParseError};
use netlink_packet_core::NetlinkSerializable;

/// A change of the flow's mark to 9.
const MARK_9: ConntrackChange =
    ConntrackChange { timeout: None, status: None, labels: None, mark: Some(MarkChange::set(9)) };

/// What `push` appends, which must leave alone what was there before.
fn pushed(verdict: &VerdictMessage<'_>) -> Vec<u8> {
    let mut out = vec![0xa5; 7];
    verdict.push(&mut out).unwrap();
    assert_eq!(out[..7], [0xa5; 7]);
    out.split_off(7)
}

/// The same through a buffer that the caller has allocated. `serialize` must write every byte of
/// its part, also where the buffer held something else, and nothing around it.
fn serialized(message: &QueueMessage) -> Vec<u8> {
    let len = message.buffer_len();
    let mut runs = [0xa5, 0x5a].map(|filling| {
        let mut buffer = vec![filling; len + 8];
        message.serialize(&mut buffer[4..4 + len]);
        assert_eq!((&buffer[..4], &buffer[4 + len..]), (&[filling; 4][..], &[filling; 4][..]));
        buffer[4..4 + len].to_vec()
    });
    assert_eq!(runs[0], runs[1]);
    std::mem::take(&mut runs[0])
}

fn parsed(bytes: &[u8]) -> Result<VerdictMessage<'_>, ParseError> {
    VerdictMessage::parse(Message::parse(bytes)?)
}

fn parsed_batch(bytes: &[u8]) -> Result<VerdictBatchMessage, ParseError> {
    VerdictBatchMessage::parse(Message::parse(bytes)?)
}

/// Byte for byte. Headers in host order, so for the byte order they are written out in.
#[cfg(target_endian = "little")]
mod golden {
    use super::common::unhex;
    use super::*;

    #[test]
    fn accept() {
        let verdict = VerdictMessage::new(0x0102, 0x0a0b_0c0d, Verdict::Accept);
        let expected = unhex(
            "20000000 0103 0100 0d0c0b0a 02010000
             00 00 0102
             0c00 0200 00000001 0a0b0c0d",
        );
        assert_eq!(pushed(&verdict), expected);
        assert_eq!(serialized(&verdict.try_into().unwrap()), expected[16..]);
    }

    #[test]
    fn batch_with_a_mark() {
        let batch = VerdictBatchMessage {
            queue: 7,
            last_id: 500,
            verdict: Verdict::Drop,
            mark: Some(0x1122_3344),
            priority: None,
        };
        let expected = unhex(
            "28000000 0303 0100 f4010000 07000000
             00 00 0007
             0c00 0200 00000000 000001f4
             0800 0300 11223344",
        );
        let mut out = vec![0xa5; 5];
        batch.push(&mut out);
        assert_eq!(out[..5], [0xa5; 5]);
        assert_eq!(out[5..], expected);
        assert_eq!(serialized(&batch.into()), expected[16..]);
    }

    #[test]
    fn payload_of_odd_length() {
        let verdict = VerdictMessage {
            payload: Some(&[0x45, 1, 2, 3, 4]),
            ..VerdictMessage::new(1, 2, Verdict::Accept)
        };
        // The length, 0x29, does not count the three bytes of padding.
        let message = unhex(
            "29000000 0103 0100 02000000 01000000
             00 00 0001
             0c00 0200 00000001 00000002
             0900 0a00 45 01020304",
        );
        let padded = [&message[..], &[0; 3]].concat();
        assert_eq!(pushed(&verdict), padded);
        assert_eq!(serialized(&verdict.try_into().unwrap()), message[16..]);
    }

    #[test]
    fn everything() {
        let verdict = VerdictMessage {
            mark: Some(0),
            priority: Some(6),
            vlan: Some(Vlan { proto: 0x8100, tci: 0xa064 }),
            l2_header: Some(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 8, 0]),
            conntrack: Some(MARK_9),
            expectation: Some(&[4, 0, 5, 0]),
            payload: Some(&[0x60; 4]),
            ..VerdictMessage::new(0xffff, 0xffff_ffff, Verdict::Queue { number: 9, bypass: true })
        };
        let expected = unhex(
            "74000000 0103 0100 ffffffff ffff0000
             00 00 ffff
             0c00 0200 00098003 ffffffff
             0800 0300 00000000
             0800 1500 00000006
             1400 1380 0600 0200 a064 0000 0600 0100 8100 0000
             1200 1400 010203040506 0708090a0b0c 0800 0000
             0c00 0b80 0800 0800 00000009
             0800 0f80 0400 0500
             0800 0a00 60606060",
        );
        assert_eq!(pushed(&verdict), expected);
        assert_eq!(parsed(&expected), Ok(verdict));
        assert_eq!(serialized(&verdict.try_into().unwrap()), expected[16..]);
    }
}

#[test]
fn verdict_words() {
    let queue = |number, bypass| Verdict::Queue { number, bypass };
    let words = [
        (Verdict::Drop, 0),
        (Verdict::Accept, 1),
        (Verdict::Repeat, 4),
        (Verdict::Stop, 5),
        (queue(0, false), 3),
        (queue(0, true), 0x8003),
        (queue(1, false), 0x0001_0003),
        (queue(0xffff, false), 0xffff_0003),
        (queue(0xffff, true), 0xffff_8003),
    ];
    for (verdict, word) in words {
        assert_eq!(verdict.to_word(), word);
        assert_eq!(Verdict::from_word(word), Ok(verdict));
    }
    // Accept with anything above would act as stop, so it is no accept.
    let refused =
        [2, 6, 7, 0xff, 0x100, 0x101, 0x0001_0001, 0x8001, 0x0001_0000, 0x8004, 0x0103, 0x4003];
    for value in refused {
        let error = ParseError::Value { what: "verdict", value };
        assert_eq!(Verdict::from_word(value), Err(error));
        let mut hdr = value.to_be_bytes().to_vec();
        hdr.extend([0; 4]);
        let bytes = queue_message(1, 0, 1, &[(NFQA_VERDICT_HDR, hdr)]);
        assert_eq!(parsed(&bytes), Err(error));
    }
}

#[test]
fn several_in_a_datagram() {
    let payload = [7; 6];
    let first =
        VerdictMessage { payload: Some(&payload), ..VerdictMessage::new(1, 2, Verdict::Drop) };
    let second = VerdictMessage::new(3, 4, Verdict::Stop);
    let third = VerdictBatchMessage {
        queue: 5,
        last_id: 6,
        verdict: Verdict::Repeat,
        mark: None,
        priority: Some(1),
    };
    let mut datagram = Vec::new();
    first.push(&mut datagram).unwrap();
    second.push(&mut datagram).unwrap();
    third.push(&mut datagram);
    assert_eq!(datagram.len(), 44 + 32 + 40);
    let messages: Vec<_> = Messages::new(&datagram).map(Result::unwrap).collect();
    assert_eq!(messages.len(), 3);
    assert_eq!(VerdictMessage::parse(messages[0]), Ok(first));
    assert_eq!(VerdictMessage::parse(messages[1]), Ok(second));
    assert_eq!(VerdictBatchMessage::parse(messages[2]), Ok(third));
    // What lets a refusal be matched with its packet.
    assert_eq!((messages[0].sequence(), messages[0].port()), (2, 1));
    assert_eq!((messages[2].sequence(), messages[2].port()), (6, 5));
    assert!(messages.iter().all(|message| message.flags() == NLM_F_REQUEST));
}

#[test]
fn head_and_payload_apart() {
    for len in 1..9 {
        let payload = vec![0x45; len];
        let whole = VerdictMessage {
            mark: Some(1),
            payload: Some(&payload),
            ..VerdictMessage::new(1, 2, Verdict::Accept)
        };
        let mut gathered = vec![0xa5; 3];
        VerdictMessage { payload: None, ..whole }.push_head(&mut gathered, Some(len)).unwrap();
        gathered.extend(&payload);
        pad(&mut gathered, len);
        assert_eq!(gathered[..3], [0xa5; 3]);
        assert_eq!(gathered[3..], pushed(&whole));
        assert_eq!((gathered.len() - 3) % 4, 0);
    }
}

#[test]
fn largest_and_too_large() {
    let big = vec![1; MAX_VALUE_LEN + 1];
    let fits = Some(&big[..MAX_VALUE_LEN]);
    let verdict = VerdictMessage {
        l2_header: fits,
        expectation: fits,
        payload: fits,
        ..VerdictMessage::new(1, 2, Verdict::Accept)
    };
    assert_eq!(parsed(&pushed(&verdict)), Ok(verdict));

    let too_long =
        |attribute| EncodeError::TooLong { attribute, len: MAX_VALUE_LEN + 1, max: MAX_VALUE_LEN };
    let plain = VerdictMessage::new(1, 2, Verdict::Accept);
    let refused = [
        (VerdictMessage { l2_header: Some(&big), ..plain }, too_long("NFQA_L2HDR")),
        (VerdictMessage { expectation: Some(&big), ..plain }, too_long("NFQA_EXP")),
        (VerdictMessage { payload: Some(&big), ..plain }, too_long("NFQA_PAYLOAD")),
        (VerdictMessage { payload: Some(&[]), ..plain }, EncodeError::EmptyPayload),
    ];
    for (verdict, error) in refused {
        let mut out = vec![0xa5; 3];
        assert_eq!(verdict.push(&mut out), Err(error));
        assert_eq!(out, [0xa5; 3]);
        assert_eq!(QueueMessage::try_from(verdict), Err(error));
    }
}

#[test]
fn empty_values_that_mean_something() {
    let verdict = VerdictMessage {
        conntrack: Some(ConntrackChange::default()),
        expectation: Some(&[]),
        l2_header: Some(&[]),
        ..VerdictMessage::new(1, 2, Verdict::Accept)
    };
    assert_eq!(parsed(&pushed(&verdict)), Ok(verdict));
}

fn hdr(verdict: u32, id: u32) -> (u16, Vec<u8>) {
    (NFQA_VERDICT_HDR, [verdict.to_be_bytes(), id.to_be_bytes()].concat())
}

#[test]
fn order_and_unknown_attributes_do_not_matter() {
    let mut attributes = vec![
        hdr(1, 2),
        (NFQA_MARK, vec![0, 0, 0, 5]),
        (NFQA_PAYLOAD, vec![1, 2, 3]),
        (999, vec![1]),
        (NFQA_CT | NLA_F_NESTED, attribute(CTA_MARK, &[0, 0, 0, 9])),
        (NFQA_EXP | NLA_F_NESTED, vec![0; 5]),
    ];
    for _ in 0..attributes.len() {
        attributes.rotate_left(1);
        let bytes = queue_message(1, 0, 9, &attributes);
        let verdict = VerdictMessage {
            mark: Some(5),
            conntrack: Some(MARK_9),
            expectation: Some(&[0; 5]),
            payload: Some(&[1, 2, 3]),
            ..VerdictMessage::new(9, 2, Verdict::Accept)
        };
        assert_eq!(parsed(&bytes), Ok(verdict));
    }
}

#[test]
fn last_duplicate_counts() {
    let tag = |tci| {
        let halves = [(NFQA_VLAN_PROTO, vec![0x81, 0]), (NFQA_VLAN_TCI, vec![0, tci])];
        (NFQA_VLAN, list(&halves))
    };
    let attributes = [
        // A word that would be refused if it were the last.
        hdr(2, 1),
        (NFQA_MARK, vec![0, 0, 0, 1]),
        (NFQA_PRIORITY, vec![0, 0, 0, 1]),
        (NFQA_VLAN, vec![]),
        tag(1),
        (NFQA_L2HDR, vec![1]),
        // A tree that would be refused if it were the last.
        (NFQA_CT, attribute(CTA_MARK, &[])),
        (NFQA_EXP, vec![1]),
        (NFQA_PAYLOAD, vec![1]),
        hdr(5, 2),
        (NFQA_MARK, vec![0, 0, 0, 2]),
        (NFQA_PRIORITY, vec![0, 0, 0, 2]),
        tag(2),
        (NFQA_L2HDR, vec![2, 2]),
        (NFQA_CT, attribute(CTA_MARK, &[0, 0, 0, 9])),
        (NFQA_EXP, vec![2, 2]),
        (NFQA_PAYLOAD, vec![2, 2]),
    ];
    let expected = VerdictMessage {
        mark: Some(2),
        priority: Some(2),
        vlan: Some(Vlan { proto: 0x8100, tci: 2 }),
        l2_header: Some(&[2, 2]),
        conntrack: Some(MARK_9),
        expectation: Some(&[2, 2]),
        payload: Some(&[2, 2]),
        ..VerdictMessage::new(9, 2, Verdict::Stop)
    };
    assert_eq!(parsed(&queue_message(1, 0, 9, &attributes)), Ok(expected));
}

#[test]
fn short_values() {
    for (kind, needed) in [(NFQA_VERDICT_HDR, 8), (NFQA_MARK, 4), (NFQA_PRIORITY, 4)] {
        for had in 0..needed {
            let attributes = [hdr(1, 2), (kind, vec![0; had])];
            let expected = ParseError::ShortAttribute { kind, needed, had, offset: 32 };
            assert_eq!(parsed(&queue_message(1, 0, 9, &attributes)), Err(expected));
            assert_eq!(parsed_batch(&queue_message(3, 0, 9, &attributes)), Err(expected));
        }
    }
}

#[test]
fn half_a_vlan_tag() {
    let with = |value: Vec<u8>| queue_message(1, 0, 9, &[hdr(1, 2), (NFQA_VLAN, value)]);
    let missing = |attribute| Err(ParseError::Missing { attribute });
    let proto = attribute(NFQA_VLAN_PROTO, &[0x81, 0]);
    let tci = attribute(NFQA_VLAN_TCI, &[0, 1]);
    assert_eq!(parsed(&with(vec![])), missing("NFQA_VLAN_PROTO"));
    assert_eq!(parsed(&with(tci)), missing("NFQA_VLAN_PROTO"));
    assert_eq!(parsed(&with(proto.clone())), missing("NFQA_VLAN_TCI"));

    // The nest starts at 32, its second attribute at 32 + 4 + 8; offsets count from the message.
    let mut short = proto.clone();
    short.extend([0; 2]);
    short.extend(attribute(NFQA_VLAN_TCI, &[0]));
    let error = ParseError::ShortAttribute { kind: NFQA_VLAN_TCI, needed: 2, had: 1, offset: 44 };
    assert_eq!(parsed(&with(short.clone())), Err(error));
    short.truncate(12);
    let error =
        ParseError::AttributeLength { kind: NFQA_VLAN_TCI, length: 5, remaining: 4, offset: 44 };
    assert_eq!(parsed(&with(short)), Err(error));

    // The kernel does not look at it in a batch.
    let batch = queue_message(3, 0, 9, &[hdr(1, 2), (NFQA_VLAN, proto)]);
    assert_eq!(parsed_batch(&batch).unwrap().last_id, 2);
}

/// As with the tag: judged in a verdict, with offsets from the message's start, and ignored in a
/// batch.
#[test]
fn malformed_conntrack_changes() {
    let tree = list(&[(CTA_TIMEOUT, vec![0; 4]), (CTA_MARK, vec![0; 3])]);
    let attributes = [hdr(1, 2), (NFQA_CT | NLA_F_NESTED, tree)];
    let error = ParseError::ShortAttribute { kind: CTA_MARK, needed: 4, had: 3, offset: 44 };
    assert_eq!(parsed(&queue_message(1, 0, 9, &attributes)), Err(error));
    assert_eq!(parsed_batch(&queue_message(3, 0, 9, &attributes)).unwrap().last_id, 2);
}

#[test]
fn not_a_verdict() {
    let verdict = queue_message(1, 0, 9, &[hdr(1, 2)]);
    let batch = queue_message(3, 0, 9, &[hdr(1, 2)]);
    let error = |expected, found| ParseError::MessageType { expected, found };
    assert_eq!(parsed(&batch), Err(error(0x0301, 0x0303)));
    assert_eq!(parsed_batch(&verdict), Err(error(0x0303, 0x0301)));
    let error = ParseError::Missing { attribute: "NFQA_VERDICT_HDR" };
    assert_eq!(parsed(&queue_message(1, 0, 9, &[])), Err(error));
    assert_eq!(parsed_batch(&queue_message(3, 0, 9, &[])), Err(error));
    let error = ParseError::Truncated { what: "struct nfgenmsg", needed: 4, had: 3, offset: 16 };
    assert_eq!(parsed(&message(NFQNL_MSG_VERDICT, 0, 0, 0, &[0; 3])), Err(error));
}

#[test]
fn cut_anywhere() {
    let payload = [9; 5];
    let verdict = VerdictMessage {
        mark: Some(1),
        vlan: Some(Vlan { proto: 0x8100, tci: 1 }),
        payload: Some(&payload),
        ..VerdictMessage::new(1, 2, Verdict::Accept)
    };
    let bytes = pushed(&verdict);
    let message_len = Message::parse(&bytes).unwrap().bytes().len();
    // Header and VERDICT_HDR, MARK, VLAN, PAYLOAD: where each ends.
    assert_eq!(message_len, 32 + 8 + 20 + 9);
    for end in 0..message_len {
        assert!(parsed(&bytes[..end]).is_err());
        common::touch(&bytes[..end]);
        if end < 16 {
            continue;
        }
        let mut cut = bytes[..end].to_vec();
        common::state_length(&mut cut);
        // Whole attributes and up to three stray bytes.
        let legal = [32..36, 40..44, 60..64].iter().any(|legal| legal.contains(&end));
        assert_eq!(parsed(&cut).is_ok(), legal, "cut at {end}");
        common::touch(&cut);
    }
}
