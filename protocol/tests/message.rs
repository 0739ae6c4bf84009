//! The headers, a datagram's list of messages, attributes in general, and `NLMSG_ERROR`.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod common;

use common::{attribute, list, message};
use netfilterqueue_protocol::ParseError;
use netfilterqueue_protocol::ack::Ack;
use netfilterqueue_protocol::attribute::{self as attributes, Attributes, MAX_VALUE_LEN};
use netfilterqueue_protocol::constants::*;
use netfilterqueue_protocol::message::{Message, Messages, Nfgenmsg};

/// Byte for byte. Headers in host order, so for the byte order they are written out in.
#[cfg(target_endian = "little")]
mod golden {
    use super::common::unhex;
    use super::*;

    #[test]
    fn header_fields() {
        let bytes = unhex("18000000 0203 0500 04030201 0d0c0b0a 07 00 0102 0400 0180 ffff");
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.kind(), 0x0302);
        assert_eq!(message.flags(), 5);
        assert_eq!(message.sequence(), 0x0102_0304);
        assert_eq!(message.port(), 0x0a0b_0c0d);
        assert_eq!(message.bytes(), &bytes[..24]);
        assert_eq!(message.body(), &bytes[16..24]);
        let header = message.netlink_header();
        assert_eq!((header.length, header.message_type, header.flags), (24, 0x0302, 5));
        assert_eq!((header.sequence_number, header.port_number), (0x0102_0304, 0x0a0b_0c0d));
        let (nfgenmsg, mut attributes) = Nfgenmsg::parse(message.body()).unwrap();
        assert_eq!(nfgenmsg, Nfgenmsg { family: 7, version: 0, res_id: 0x0102 });
        let attribute = attributes.next().unwrap().unwrap();
        assert_eq!((attribute.kind(), attribute.is_nested(), attribute.offset()), (1, true, 20));
        assert_eq!((attribute.value(), attributes.next()), (&[][..], None));
    }

    #[test]
    fn success() {
        let bytes = unhex(
            "24000000 0200 0001 07000000 99000000 00000000
             20000000 0203 0500 07000000 01000000",
        );
        let ack = Ack::parse(Message::parse(&bytes).unwrap()).unwrap();
        assert_eq!(ack.errno(), 0);
        assert_eq!(ack.request_kind(), NFQNL_MSG_CONFIG);
        assert_eq!((ack.request_sequence(), ack.request_port()), (7, 1));
        assert_eq!((ack.request_body(), ack.text(), ack.offset()), (&[][..], None, None));
    }

    /// A request with a short attribute, on a socket with `NETLINK_EXT_ACK`.
    #[test]
    fn refusal_with_the_request_and_an_explanation() {
        let bytes = unhex(
            "54000000 0200 0002 2a000000 05000000 deffffff
             1a000000 0103 0100 2a000000 03000000
             00 00 0003 0600 0200 0001 0000
             1c00 0100 41747472696275746520 68617320612062616420 6c656e00
             0800 0200 14000000",
        );
        let ack = Ack::parse(Message::parse(&bytes).unwrap()).unwrap();
        assert_eq!(ack.errno(), 34);
        assert_eq!(ack.request_kind(), NFQNL_MSG_VERDICT);
        assert_eq!((ack.request_sequence(), ack.request_port()), (42, 3));
        assert_eq!(ack.request_body(), unhex("00 00 0003 0600 0200 0001"));
        assert_eq!(ack.text(), Some("Attribute has a bad len"));
        assert_eq!(ack.offset(), Some(20));
    }
}

/// The body of an `NLMSG_ERROR` about a request of `length` bytes: error, header, what follows.
fn error_body(error: i32, length: u32, rest: &[&[u8]]) -> Vec<u8> {
    let mut body = error.to_ne_bytes().to_vec();
    let mut request = message(0x0301, 1, 8, 9, &[]);
    request[..4].copy_from_slice(&length.to_ne_bytes());
    body.extend(request);
    body.extend(rest.concat());
    body
}

fn explanation(text: &[u8], offset: u32) -> Vec<u8> {
    list(&[(NLMSGERR_ATTR_MSG, text.to_vec()), (NLMSGERR_ATTR_OFFS, offset.to_ne_bytes().to_vec())])
}

#[test]
fn capped_refusal_with_an_explanation() {
    let body = error_body(-34, 33, &[&explanation(b"too short\0", 32)]);
    let bytes = message(NLMSG_ERROR, NLM_F_CAPPED | NLM_F_ACK_TLVS, 1, 0, &body);
    let ack = Ack::parse(Message::parse(&bytes).unwrap()).unwrap();
    assert_eq!((ack.errno(), ack.request_body()), (34, &[][..]));
    assert_eq!((ack.text(), ack.offset()), (Some("too short"), Some(32)));
}

#[test]
fn uncapped_refusal_without_an_explanation() {
    let echo = [0, 0, 0, 3, 1, 2, 3, 4, 5];
    let body = error_body(-2, 25, &[&echo, &[0; 3]]);
    let bytes = message(NLMSG_ERROR, 0, 1, 0, &body);
    let ack = Ack::parse(Message::parse(&bytes).unwrap()).unwrap();
    assert_eq!((ack.errno(), ack.request_body()), (2, &echo[..]));
    assert_eq!((ack.text(), ack.offset()), (None, None));
}

/// Without the flag what follows the request is no explanation.
#[test]
fn explanation_needs_its_flag() {
    let body = error_body(-2, 16, &[&explanation(b"no\0", 1)]);
    for (flags, text) in [(0, None), (NLM_F_CAPPED, None), (NLM_F_ACK_TLVS, Some("no"))] {
        let bytes = message(NLMSG_ERROR, flags, 1, 0, &body);
        let ack = Ack::parse(Message::parse(&bytes).unwrap()).unwrap();
        assert_eq!((ack.text(), ack.offset().is_some()), (text, text.is_some()));
    }
}

/// Kernels before 4.12 leave the request's body out and set no flag.
#[test]
fn capped_without_the_flag() {
    for error in [0, -1] {
        let bytes = message(NLMSG_ERROR, 0, 1, 0, &error_body(error, 64, &[]));
        let ack = Ack::parse(Message::parse(&bytes).unwrap()).unwrap();
        assert_eq!((ack.errno(), ack.request_body()), (-error, &[][..]));
        assert_eq!(ack.request_sequence(), 8);
    }
}

#[test]
fn odd_explanations() {
    let ack_of = |tlvs: &[u8]| {
        let body = error_body(-22, 16, &[tlvs]);
        let bytes = message(NLMSG_ERROR, NLM_F_ACK_TLVS, 1, 0, &body);
        let ack = Ack::parse(Message::parse(&bytes).unwrap()).unwrap();
        (ack.text().map(str::to_owned), ack.offset())
    };
    assert_eq!(ack_of(&explanation(b"plain", 3)), (Some("plain".to_owned()), Some(3)));
    assert_eq!(ack_of(&explanation(b"", 3)), (Some(String::new()), Some(3)));
    assert_eq!(ack_of(&explanation(b"\xff\0", 3)), (None, Some(3)));
    assert_eq!(ack_of(&attribute(NLMSGERR_ATTR_OFFS, &[1, 2, 3])), (None, None));
    assert_eq!(ack_of(&[1, 0, 1, 0]), (None, None));
    let twice = [explanation(b"one\0", 1), explanation(b"two\0", 2)].concat();
    assert_eq!(ack_of(&twice), (Some("two".to_owned()), Some(2)));
    assert_eq!(ack_of(&attribute(99, b"later kernels")), (None, None));
}

#[test]
fn errno_of_any_number() {
    for (error, errno) in [(-524, 524), (5, -5), (i32::MIN, i32::MAX), (0, 0)] {
        let bytes = message(NLMSG_ERROR, NLM_F_CAPPED, 1, 0, &error_body(error, 20, &[]));
        assert_eq!(Ack::parse(Message::parse(&bytes).unwrap()).unwrap().errno(), errno);
    }
}

#[test]
fn cut_acknowledgements() {
    let echo = [0, 0, 0, 3, 1, 2, 3, 4, 5];
    let body = error_body(-34, 25, &[&echo, &[0; 3], &explanation(b"text\0", 20)]);
    let whole = message(NLMSG_ERROR, NLM_F_ACK_TLVS, 1, 0, &body);
    for end in 16..=whole.len() {
        let mut bytes = whole[..end].to_vec();
        assert_eq!(Message::parse(&bytes).is_ok(), end == whole.len());
        common::touch(&bytes);
        common::state_length(&mut bytes);
        common::touch(&bytes);
        let ack = Ack::parse(Message::parse(&bytes).unwrap());
        let truncated = |needed| {
            let had = end - 16;
            Err(ParseError::Truncated { what: "struct nlmsgerr", needed, had, offset: 16 })
        };
        match end {
            ..36 => assert_eq!(ack, truncated(20)),
            // Cut right behind the header it is an answer that leaves the request out.
            36 => assert_eq!(ack.unwrap().request_body(), b""),
            37..45 => assert_eq!(ack, truncated(29)),
            _ => {
                let ack = ack.unwrap();
                assert_eq!(ack.request_body(), echo);
                // 48 is where the text's attribute starts: 4 + 5 bytes, 3 of padding.
                assert_eq!(ack.text(), (end >= 57).then_some("text"));
                assert_eq!(ack.offset(), (end >= 68).then_some(20));
            }
        }
    }
}

#[test]
fn not_an_acknowledgement() {
    let bytes = message(0x0300, 0, 0, 0, &[0; 20]);
    let error = ParseError::MessageType { expected: 2, found: 0x0300 };
    assert_eq!(Ack::parse(Message::parse(&bytes).unwrap()), Err(error));
}

#[test]
fn lengths_of_a_message() {
    let truncated = |what, needed, had| Err(ParseError::Truncated { what, needed, had, offset: 0 });
    let mut bytes = message(1, 0, 0, 0, &[1, 2, 3, 4]);
    assert_eq!(Message::parse(&bytes).unwrap().body(), [1, 2, 3, 4]);
    for end in 0..16 {
        assert_eq!(Message::parse(&bytes[..end]), truncated("struct nlmsghdr", 16, end));
    }
    for end in 16..20 {
        assert_eq!(Message::parse(&bytes[..end]), truncated("netlink message", 20, end));
    }
    for stated in [0_u32, 15] {
        bytes[..4].copy_from_slice(&stated.to_ne_bytes());
        let error = truncated("struct nlmsghdr", 16, usize::try_from(stated).unwrap());
        assert_eq!(Message::parse(&bytes), error);
    }
    for stated in [16_u32, 17, 20] {
        bytes[..4].copy_from_slice(&stated.to_ne_bytes());
        let len = Message::parse(&bytes).unwrap().bytes().len();
        assert_eq!(len, usize::try_from(stated).unwrap());
    }
    bytes[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert_eq!(Message::parse(&bytes), truncated("netlink message", 0xffff_ffff, 20));
}

#[test]
fn messages_of_a_datagram() {
    let bodies = [&[1][..], &[], &[1, 2, 3, 4], &[1, 2, 3]];
    let mut datagram = Vec::new();
    for body in bodies {
        datagram.resize(datagram.len().next_multiple_of(4), 0xa5);
        datagram.extend(message(1, 0, 0, 0, body));
    }
    let found: Vec<_> = Messages::new(&datagram).map(|message| message.unwrap().body()).collect();
    assert_eq!(found, bodies);
    // The last one's padding may be there in part.
    datagram.push(0);
    assert_eq!(Messages::new(&datagram).filter(Result::is_ok).count(), 4);
    assert_eq!(Messages::new(&datagram).count(), 4);
    // Anything else behind it is a message that is cut off, and ends the walk.
    datagram.extend([1, 2, 3]);
    let mut messages = Messages::new(&datagram);
    assert_eq!(messages.by_ref().take_while(Result::is_ok).count(), 4);
    assert_eq!(messages.next(), None);
    assert_eq!(Messages::new(&[]).next(), None);
}

#[test]
fn attributes_of_a_list() {
    let bytes = list(&[(1, vec![]), (2, vec![7]), (3 | 0x8000, vec![1, 2, 3, 4]), (1, vec![8; 2])]);
    let found: Vec<_> = Attributes::new(&bytes)
        .map(Result::unwrap)
        .map(|attribute| (attribute.kind(), attribute.offset(), attribute.value()))
        .collect();
    let expected = [(1, 0, &[][..]), (2, 4, &[7]), (3, 12, &[1, 2, 3, 4]), (1, 20, &[8; 2])];
    assert_eq!(found, expected);
    assert_eq!(Attributes::new(&bytes).last_of(1).unwrap().value(), [8; 2]);
    assert_eq!(Attributes::new(&bytes).last_of(4), None);

    let two = attribute(1, &[1, 2]);
    let two = Attributes::new(&two).next().unwrap().unwrap();
    assert_eq!((two.u16_be(), two.u32_be()), (Some(0x0102), None));
    let five = attribute(1, &[1, 2, 3, 4, 5]);
    let five = Attributes::new(&five).next().unwrap().unwrap();
    assert_eq!((five.u16_be(), five.u32_be()), (Some(0x0102), Some(0x0102_0304)));
}

#[test]
fn malformed_attributes() {
    let good = attribute(5, &[1, 2, 3, 4]);
    for length in [0_u16, 3, 9, u16::MAX] {
        let mut bad = attribute(6 | 0x4000, &[1, 2, 3, 4]);
        bad[..2].copy_from_slice(&length.to_ne_bytes());
        let bytes = [good.clone(), bad].concat();
        let mut attributes = Attributes::new(&bytes);
        assert_eq!(attributes.next().unwrap().unwrap().kind(), 5);
        let error =
            ParseError::AttributeLength { kind: 6, length: length.into(), remaining: 8, offset: 8 };
        assert_eq!(attributes.next(), Some(Err(error)));
        assert_eq!(attributes.next(), None);
        assert_eq!(Attributes::new(&bytes).last_of(5).unwrap().value(), [1, 2, 3, 4]);
    }
}

#[test]
fn writing_attributes() {
    for len in 0..9_u8 {
        let value = vec![7; len.into()];
        let mut out = vec![0xa5; 5];
        attributes::push(&mut out, 9, &value);
        attributes::push_nested(&mut out, 10, |out| attributes::push(out, 1, &value));
        let mut one = attribute(9, &value);
        one.resize(one.len().next_multiple_of(4), 0);
        let mut inner = attribute(1, &value);
        inner.resize(inner.len().next_multiple_of(4), 0);
        let nest = attribute(10 | 0x8000, &inner);
        assert_eq!(out, [vec![0xa5; 5], one, nest].concat());
    }
    // A nest need not end at a multiple of four.
    let mut out = Vec::new();
    attributes::push_nested(&mut out, 3, |out| out.push(1));
    assert_eq!(out, [attribute(3 | 0x8000, &[1]), vec![0; 3]].concat());
    let mut out = Vec::new();
    attributes::push(&mut out, 1, &vec![1; MAX_VALUE_LEN]);
    assert_eq!(Attributes::new(&out).next().unwrap().unwrap().value().len(), MAX_VALUE_LEN);
}

#[test]
#[should_panic(expected = "above 65,531 bytes")]
fn writing_too_much() {
    attributes::push(&mut Vec::new(), 1, &vec![1; MAX_VALUE_LEN + 1]);
}

#[test]
#[should_panic(expected = "above 65,531 bytes")]
fn nesting_too_much() {
    attributes::push_nested(&mut Vec::new(), 1, |out| out.resize(4 + MAX_VALUE_LEN + 1, 0));
}

/// An error says what, how much it needed and had, and where.
#[test]
fn errors_in_words() {
    let short = ParseError::ShortAttribute { kind: 9, needed: 12, had: 3, offset: 48 };
    assert_eq!(short.to_string(), "value of attribute 9 at offset 48 needs 12 bytes, has 3");
    let error = Message::parse(&[0; 3]).unwrap_err();
    assert_eq!(error.to_string(), "struct nlmsghdr needs 16 bytes, 3 are left at offset 0");
}
