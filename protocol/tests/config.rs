//! `NFQNL_MSG_CONFIG`.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod common;

use common::queue_message;
use netfilterqueue_protocol::ParseError;
use netfilterqueue_protocol::config::{Command, ConfigFlags, ConfigMessage, CopyMode, FlagChange};
use netfilterqueue_protocol::constants::*;
use netfilterqueue_protocol::message::Message;

fn parsed(bytes: &[u8]) -> Result<ConfigMessage, ParseError> {
    ConfigMessage::parse(Message::parse(bytes)?)
}

fn pushed(config: &ConfigMessage, sequence: u32) -> Vec<u8> {
    let mut out = vec![0xa5; 6];
    config.push(&mut out, sequence);
    assert_eq!(out[..6], [0xa5; 6]);
    out.split_off(6)
}

fn everything() -> ConfigMessage {
    ConfigMessage {
        copy_mode: Some(CopyMode::Packet { range: 0xfffb }),
        max_len: Some(0x0001_0000),
        flags: Some(FlagChange {
            mask: ConfigFlags(0x1f),
            values: ConfigFlags::FAIL_OPEN | ConfigFlags::GSO | ConfigFlags::UID_GID,
        }),
        ..ConfigMessage::command(0x0203, Command::Bind)
    }
}

/// Byte for byte. Headers in host order, so for the byte order they are written out in.
#[cfg(target_endian = "little")]
mod golden {
    use super::common::unhex;
    use super::*;
    use netfilterqueue_protocol::interop::QueueMessage;
    use netlink_packet_core::NetlinkSerializable;

    #[test]
    fn everything_in_one_message() {
        let expected = unhex(
            "40000000 0203 0500 44332211 00000000
             00 00 0203
             0800 0100 01 00 0000
             0900 0200 0000fffb 02 000000
             0800 0300 00010000
             0800 0500 0000000d
             0800 0400 0000001f",
        );
        assert_eq!(pushed(&everything(), 0x1122_3344), expected);
        assert_eq!(parsed(&expected), Ok(everything()));

        let message = QueueMessage::from(everything());
        assert_eq!((message.message_type(), message.buffer_len()), (0x0302, 48));
        for filling in [0xa5, 0x5a] {
            let mut buffer = [filling; 52];
            message.serialize(&mut buffer[2..50]);
            assert_eq!(buffer[2..50], expected[16..]);
            assert_eq!((&buffer[..2], &buffer[50..]), (&[filling; 2][..], &[filling; 2][..]));
        }
    }

    #[test]
    fn one_thing_each() {
        let head = "0203 0500 01000000 00000000 00 00 ffff";
        let cases = [
            (ConfigMessage::new(0xffff), "14000000", ""),
            (ConfigMessage::command(0xffff, Command::Unbind), "1c000000", "0800 0100 02 00 0000"),
            (ConfigMessage::command(0xffff, Command::PfBind), "1c000000", "0800 0100 03 00 0000"),
            (ConfigMessage::command(0xffff, Command::PfUnbind), "1c000000", "0800 0100 04000000"),
            (
                ConfigMessage { copy_mode: Some(CopyMode::Meta), ..ConfigMessage::new(0xffff) },
                "20000000",
                "0900 0200 00000000 01 000000",
            ),
            (
                ConfigMessage { copy_mode: Some(CopyMode::WHOLE), ..ConfigMessage::new(0xffff) },
                "20000000",
                "0900 0200 0000fffb 02 000000",
            ),
            (
                ConfigMessage { max_len: Some(u32::MAX), ..ConfigMessage::new(0xffff) },
                "1c000000",
                "0800 0300 ffffffff",
            ),
        ];
        for (config, length, attributes) in cases {
            let expected = unhex(&[length, head, attributes].concat());
            assert_eq!(pushed(&config, 1), expected);
            assert_eq!(parsed(&expected), Ok(config));
        }
    }
}

#[test]
fn order_and_unknown_attributes_do_not_matter() {
    let mut attributes = vec![
        (NFQA_CFG_MASK, vec![0, 0, 0, 0x1f]),
        (NFQA_CFG_CMD, vec![1, 0xff, 0, 2]),
        (77, vec![1, 2, 3]),
        (NFQA_CFG_QUEUE_MAXLEN, vec![0, 1, 0, 0]),
        (NFQA_CFG_FLAGS, vec![0, 0, 0, 0x0d]),
        (NFQA_CFG_PARAMS, vec![0, 0, 0xff, 0xfb, 2]),
    ];
    for _ in 0..attributes.len() {
        attributes.rotate_left(1);
        assert_eq!(parsed(&queue_message(2, 0, 0x0203, &attributes)), Ok(everything()));
    }
}

#[test]
fn last_duplicate_counts() {
    let attributes = [
        // Both would be refused if they were the last.
        (NFQA_CFG_CMD, vec![0; 4]),
        (NFQA_CFG_PARAMS, vec![0; 5]),
        (NFQA_CFG_QUEUE_MAXLEN, vec![9; 4]),
        (NFQA_CFG_FLAGS, vec![9; 4]),
        (NFQA_CFG_MASK, vec![9; 4]),
        (NFQA_CFG_CMD, vec![1, 0, 0, 0]),
        (NFQA_CFG_PARAMS, vec![0, 0, 0xff, 0xfb, 2]),
        (NFQA_CFG_QUEUE_MAXLEN, vec![0, 1, 0, 0]),
        (NFQA_CFG_FLAGS, vec![0, 0, 0, 0x0d]),
        (NFQA_CFG_MASK, vec![0, 0, 0, 0x1f]),
    ];
    assert_eq!(parsed(&queue_message(2, 0, 0x0203, &attributes)), Ok(everything()));
}

#[test]
fn short_values() {
    let needed = [
        (NFQA_CFG_CMD, 4),
        (NFQA_CFG_PARAMS, 5),
        (NFQA_CFG_QUEUE_MAXLEN, 4),
        (NFQA_CFG_FLAGS, 4),
        (NFQA_CFG_MASK, 4),
    ];
    for (kind, needed) in needed {
        for had in 0..needed {
            let bytes = queue_message(2, 0, 1, &[(kind, vec![1; had])]);
            let expected = ParseError::ShortAttribute { kind, needed, had, offset: 20 };
            assert_eq!(parsed(&bytes), Err(expected));
        }
    }
    // Some programs send the parameters as 8 bytes, the size of the unpacked struct.
    let bytes = queue_message(2, 0, 1, &[(NFQA_CFG_PARAMS, vec![0, 0, 0, 9, 2, 0, 0, 0])]);
    assert_eq!(parsed(&bytes).unwrap().copy_mode, Some(CopyMode::Packet { range: 9 }));
}

#[test]
fn numbers_without_a_meaning() {
    for command in [0, 5, 255] {
        let bytes = queue_message(2, 0, 1, &[(NFQA_CFG_CMD, vec![command, 0, 0, 0])]);
        let error = ParseError::Value { what: "NFQA_CFG_CMD", value: command.into() };
        assert_eq!(parsed(&bytes), Err(error));
    }
    for mode in [0, 3, 255] {
        let bytes = queue_message(2, 0, 1, &[(NFQA_CFG_PARAMS, vec![0, 0, 0, 1, mode])]);
        let error = ParseError::Value { what: "copy mode", value: mode.into() };
        assert_eq!(parsed(&bytes), Err(error));
    }
}

#[test]
fn flags_and_mask() {
    let mask = (NFQA_CFG_MASK, vec![0, 0, 0, 3]);
    let flags = (NFQA_CFG_FLAGS, vec![0xff, 0, 0, 1]);
    let alone = queue_message(2, 0, 1, std::slice::from_ref(&mask));
    assert_eq!(parsed(&alone), Ok(ConfigMessage::new(1)));
    let alone = queue_message(2, 0, 1, std::slice::from_ref(&flags));
    assert_eq!(parsed(&alone), Err(ParseError::Missing { attribute: "NFQA_CFG_MASK" }));
    let both = queue_message(2, 0, 1, &[flags, mask]);
    let expected = FlagChange { mask: ConfigFlags(3), values: ConfigFlags(0xff00_0001) };
    assert_eq!(parsed(&both).unwrap().flags, Some(expected));
}

#[test]
fn flag_sets() {
    let mut set = ConfigFlags::FAIL_OPEN | ConfigFlags::SECCTX;
    assert_eq!(set.0, 0x11);
    set |= ConfigFlags::CONNTRACK;
    assert!(set.contains(ConfigFlags::FAIL_OPEN | ConfigFlags::CONNTRACK));
    assert!(!set.contains(ConfigFlags::FAIL_OPEN | ConfigFlags::GSO));
    assert!(ConfigFlags::default().is_empty() && !set.is_empty());
    let listed: Vec<_> = ConfigFlags(0xffff_ffff).iter().map(|flag| flag.0).collect();
    assert_eq!(listed, [1, 2, 4, 8, 16]);
    assert_eq!(set.iter().count(), 3);
    let names = "NFQA_CFG_F_FAIL_OPEN|NFQA_CFG_F_CONNTRACK|NFQA_CFG_F_SECCTX";
    assert_eq!(set.to_string(), names);
    assert_eq!(ConfigFlags(0x24).to_string(), "NFQA_CFG_F_GSO|0x20");
    assert_eq!(format!("{:?}", ConfigFlags(0)), "ConfigFlags(0x0)");
}

#[test]
fn not_a_configuration() {
    let error = ParseError::MessageType { expected: 0x0302, found: 0x0301 };
    assert_eq!(parsed(&queue_message(1, 0, 1, &[])), Err(error));
}

#[test]
fn cut_anywhere() {
    let bytes = pushed(&everything(), 1);
    for end in 0..bytes.len() {
        assert!(parsed(&bytes[..end]).is_err());
        common::touch(&bytes[..end]);
        if end < 16 {
            continue;
        }
        let mut cut = bytes[..end].to_vec();
        common::state_length(&mut cut);
        // CMD at 20, PARAMS at 28 (9 bytes), MAXLEN at 40, FLAGS at 48, MASK at 56. Between the end
        // of FLAGS and that of MASK there are flags without a mask.
        let legal = [20..24, 28..32, 37..44, 48..52].iter().any(|legal| legal.contains(&end));
        assert_eq!(parsed(&cut).is_ok(), legal, "cut at {end}");
        common::touch(&cut);
    }
}
