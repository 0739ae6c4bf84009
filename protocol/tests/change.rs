//! `NFQA_CT` in a verdict: changes of a conntrack entry.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod common;

use common::{attribute, changes, list};
use netfilterqueue_protocol::ParseError;
use netfilterqueue_protocol::attribute::Attributes;
use netfilterqueue_protocol::conntrack::{
    ConntrackChange, ConntrackStatus, LabelsChange, MarkChange,
};
use netfilterqueue_protocol::constants::*;
use netlink_packet_core::{DefaultNla, Emitable};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, Status};
use proptest::prelude::*;

/// What `push` appends, which must be as long as it says and leave alone what was there before,
/// also where the buffer was used for something else.
fn pushed(change: &ConntrackChange) -> Vec<u8> {
    let mut out = vec![0xa5; 200];
    out.truncate(7);
    change.push(&mut out);
    assert_eq!(out[..7], [0xa5; 7]);
    let appended = out.split_off(7);
    assert_eq!(appended.len(), change.encoded_len());
    assert_eq!(appended.len() % 4, 0);
    appended
}

/// The attributes inside the one that `push` appends, which must be nested and of the right length.
fn tree(bytes: &[u8]) -> Attributes<'_> {
    let mut outer = Attributes::new(bytes);
    let nest = outer.next().unwrap().unwrap();
    assert_eq!((nest.kind(), nest.is_nested(), outer.next()), (NFQA_CT, true, None));
    nest.nested()
}

fn parsed(tree: &[u8]) -> Result<ConntrackChange, ParseError> {
    ConntrackChange::parse(Attributes::new(tree))
}

fn full() -> ConntrackChange {
    ConntrackChange {
        timeout: Some(600),
        status: Some(ConntrackStatus::SEEN_REPLY | ConntrackStatus::ASSURED),
        labels: Some(LabelsChange { value: [1; 16], mask: [3; 16] }),
        mark: Some(MarkChange { value: 0x0102_0304, mask: 0xffff_0000 }),
    }
}

/// Byte for byte. Headers in host order, so for the byte order they are written out in.
#[cfg(target_endian = "little")]
mod golden {
    use super::common::unhex;
    use super::*;

    #[test]
    fn everything() {
        let expected = unhex(
            "4c00 0b80
             0800 0700 00000258
             0800 0300 00000006
             1400 1600 01010101 01010101 01010101 01010101
             1400 1700 03030303 03030303 03030303 03030303
             0800 0800 01020304
             0800 1500 ffff0000",
        );
        assert_eq!(pushed(&full()), expected);
    }

    /// A mask of all ones is what the kernel takes a missing one for.
    #[test]
    fn whole_values() {
        let change = ConntrackChange {
            labels: Some(LabelsChange::set([2; 16])),
            mark: Some(MarkChange::set(7)),
            ..Default::default()
        };
        let expected = unhex(
            "2000 0b80
             1400 1600 02020202 02020202 02020202 02020202
             0800 0800 00000007",
        );
        assert_eq!(pushed(&change), expected);
    }

    #[test]
    fn nothing() {
        assert_eq!(pushed(&ConntrackChange::default()), unhex("0400 0b80"));
    }
}

/// The formula of the kernel's `ctnetlink_change_mark` and `replace_u32`.
#[test]
fn bits_outside_the_mask_are_toggled() {
    let mark = |value, mask| MarkChange { value, mask };
    assert_eq!(MarkChange::set(5).apply(0xffff_ffff), 5);
    assert_eq!(mark(0x0f, 0x0f).apply(0xf0f0), 0xf0ff);
    assert_eq!(mark(0x00, 0xf0).apply(0xf0f0), 0xf000);
    assert_eq!(mark(0x3c, 0x0f).apply(0xf0f0), 0xf0f0 ^ 0x30 | 0x0c);
    assert_eq!(mark(1, 0).apply(1), 0);
    assert_eq!(MarkChange::bits(0x3c, 0x0f), mark(0x0c, 0x0f));
    assert_eq!(MarkChange::bits(0x3c, 0x0f).apply(0xf0f0), 0xf0fc);

    let labels = LabelsChange { value: [0x3c; 16], mask: [0x0f; 16] };
    assert_eq!(labels.apply([0xf0; 16]), [0xcc; 16]);
    let labels = LabelsChange::bits([0x3c; 16], [0x0f; 16]);
    assert_eq!(labels, LabelsChange { value: [0x0c; 16], mask: [0x0f; 16] });
    assert_eq!(labels.apply([0xf0; 16]), [0xfc; 16]);
    assert_eq!(LabelsChange::set([9; 16]).apply([0xf0; 16]), [9; 16]);
}

/// What another program could send: other order, attributes without a field, flags in the types,
/// longer values, values twice.
#[test]
fn foreign_attributes() {
    let attributes = [
        (CTA_MARK_MASK, vec![0xff, 0xff, 0, 0, 9]),
        (CTA_MARK | NLA_F_NET_BYTEORDER, vec![0, 0, 0, 1]),
        (CTA_HELP | NLA_F_NESTED, attribute(CTA_HELP_NAME, b"ftp\0")),
        (CTA_LABELS_MASK, vec![3; 16]),
        (CTA_STATUS, vec![0, 0, 0, 6]),
        (CTA_TUPLE_ORIG | NLA_F_NESTED, vec![1; 5]),
        (CTA_LABELS, vec![1; 16]),
        (CTA_TIMEOUT, vec![0, 0, 2, 0x58]),
        (CTA_MARK, vec![1, 2, 3, 4]),
        (999, vec![]),
    ];
    assert_eq!(parsed(&list(&attributes)), Ok(full()));
    assert_eq!(parsed(&[]), Ok(ConntrackChange::default()));
    // Only the last counts, of labels as well: the first ones would be refused.
    let attributes = [
        (CTA_LABELS, vec![1]),
        (CTA_LABELS, vec![1; 16]),
        (CTA_LABELS_MASK, vec![1]),
        (CTA_LABELS_MASK, vec![3; 16]),
    ];
    let labels = full().labels;
    assert_eq!(parsed(&list(&attributes)), Ok(ConntrackChange { labels, ..Default::default() }));
}

#[test]
fn masks_without_values_do_nothing() {
    let masks = list(&[(CTA_MARK_MASK, vec![1; 4]), (CTA_LABELS_MASK, vec![1; 3])]);
    assert_eq!(parsed(&masks), Ok(ConntrackChange::default()));
}

/// The kernel clears the label words that are not there.
#[test]
fn short_labels() {
    let labels = |value: &[u8], mask: Option<&[u8]>| {
        let mut attributes = vec![(CTA_LABELS, value.to_vec())];
        attributes.extend(mask.map(|mask| (CTA_LABELS_MASK, mask.to_vec())));
        parsed(&list(&attributes)).map(|change| change.labels.unwrap())
    };
    assert_eq!(labels(&[], None).unwrap().apply([0xff; 16]), [0; 16]);
    let padded = |start: u8, rest: u8| {
        let mut bytes = [rest; 16];
        bytes[..8].fill(start);
        bytes
    };
    let expected = LabelsChange { value: padded(1, 0), mask: padded(3, 0xff) };
    assert_eq!(labels(&[1; 8], Some(&[3; 8])), Ok(expected));
    assert_eq!(expected.apply([0xf0; 16]), padded(0xf1, 0));

    let refused =
        |what, len: usize| Err(ParseError::Value { what, value: u32::try_from(len).unwrap() });
    for len in [1, 2, 3, 5, 15, 17, 20, 0xff00] {
        let expected = refused("length of CTA_LABELS", len);
        assert_eq!(labels(&vec![1; len], None), expected);
        assert_eq!(labels(&vec![1; len], Some(&vec![1; len])), expected);
    }
    for (value, mask) in [(0, 0), (0, 4), (4, 0), (4, 3), (4, 8), (16, 12), (16, 20)] {
        let expected = refused("length of CTA_LABELS_MASK", mask);
        assert_eq!(labels(&vec![1; value], Some(&vec![1; mask])), expected, "{value} {mask}");
    }
}

#[test]
fn short_values() {
    for kind in [CTA_TIMEOUT, CTA_STATUS, CTA_MARK, CTA_MARK_MASK] {
        for had in 0..4 {
            let bytes = list(&[(CTA_USE, vec![0; 4]), (kind, vec![0; had])]);
            let error = ParseError::ShortAttribute { kind, needed: 4, had, offset: 8 };
            assert_eq!(parsed(&bytes), Err(error));
        }
    }
}

#[test]
fn cut_anywhere() {
    let bytes = pushed(&full());
    let whole = &bytes[4..];
    // Where each attribute ends: up to three stray bytes after that are skipped.
    let ends = [0, 8, 16, 36, 56, 64, 72];
    for end in 0..whole.len() {
        let at_boundary = ends.iter().any(|boundary| (*boundary..boundary + 4).contains(&end));
        let cut = parsed(&whole[..end]);
        assert_eq!(cut.is_ok(), at_boundary, "cut at {end}");
        if let Ok(cut) = cut {
            assert_eq!(cut.timeout.is_some(), end >= 8);
            assert_eq!(cut.status.is_some(), end >= 16);
            assert_eq!(cut.labels.is_some(), end >= 36);
            assert_eq!(cut.mark.is_some(), end >= 64);
        }
        common::touch(&whole[..end]);
        common::touch(&bytes[..end]);
    }
    assert_eq!(parsed(whole), Ok(full()));
}

/// The same attributes as netlink-packet-netfilter writes them.
fn theirs(change: &ConntrackChange) -> Vec<u8> {
    let other = |kind, value: &[u8]| ConntrackAttribute::Other(DefaultNla::new(kind, value.into()));
    let mut attributes = Vec::new();
    attributes.extend(change.timeout.map(ConntrackAttribute::CtaTimeout));
    let status = change.status.map(|status| Status::from_bits_retain(status.0));
    attributes.extend(status.map(ConntrackAttribute::CtaStatus));
    if let Some(LabelsChange { value, mask }) = change.labels {
        attributes.push(other(CTA_LABELS, &value));
        attributes.extend((mask != [0xff; 16]).then(|| other(CTA_LABELS_MASK, &mask)));
    }
    if let Some(MarkChange { value, mask }) = change.mark {
        attributes.push(ConntrackAttribute::CtaMark(value));
        let mask = (mask != u32::MAX).then(|| other(CTA_MARK_MASK, &mask.to_be_bytes()));
        attributes.extend(mask);
    }
    let mut value = vec![0xa5; attributes.as_slice().buffer_len()];
    attributes.as_slice().emit(&mut value);
    let nest = DefaultNla::new(NFQA_CT | NLA_F_NESTED, value);
    let mut out = vec![0xa5; nest.buffer_len()];
    nest.emit(&mut out);
    out
}

proptest! {
    #[test]
    fn round_trip(change in changes()) {
        let first = pushed(&change);
        let parsed = ConntrackChange::parse(tree(&first)).unwrap();
        prop_assert_eq!(parsed, change);
        prop_assert_eq!(pushed(&parsed), first);
    }

    #[test]
    fn same_bytes_as_the_other_encoder(change in changes()) {
        prop_assert_eq!(pushed(&change), theirs(&change));
    }

    /// A masked change leaves the bits outside its mask alone, whatever the value has there.
    #[test]
    fn masked_bits(value in any::<u32>(), mask in any::<u32>(), old in any::<u32>()) {
        let new = MarkChange::bits(value, mask).apply(old);
        prop_assert_eq!(new & mask, value & mask);
        prop_assert_eq!(new & !mask, old & !mask);
    }

    /// What parses is what is written and parsed again.
    #[test]
    fn any_attributes(
        attributes in proptest::collection::vec(
            (
                proptest::sample::select(&[
                    CTA_TIMEOUT, CTA_STATUS, CTA_MARK, CTA_MARK_MASK, CTA_LABELS, CTA_LABELS_MASK,
                    CTA_HELP,
                ][..]),
                prop_oneof![Just(4_usize), Just(8), Just(16), 0_usize..24],
                any::<u8>(),
            )
                .prop_map(|(kind, len, byte)| (kind, vec![byte; len])),
            0..8,
        ),
    ) {
        if let Ok(change) = parsed(&list(&attributes)) {
            let bytes = pushed(&change);
            prop_assert_eq!(ConntrackChange::parse(tree(&bytes)), Ok(change));
        }
    }
}
