//! The full conntrack tree: what netlink-packet-netfilter makes of `NFQA_CT`, and that no bytes
//! make it panic.

#![cfg(feature = "conntrack-attributes")]
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod common;

use common::{IPV4_UDP, IPV6_SYN, list, unhex};
use netfilterqueue_protocol::attribute::Attributes;
use netfilterqueue_protocol::conntrack::Conntrack;
use netfilterqueue_protocol::constants::*;
use netlink_packet_core::{Emitable, Nla};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Tuple as OtherTuple,
};
use proptest::prelude::*;

/// The trees of the captures, with the byte order of the host that they were made on.
#[cfg(target_endian = "little")]
fn trees() -> [Vec<u8>; 2] {
    use netfilterqueue_protocol::packet::PacketMessage;
    [IPV4_UDP, IPV6_SYN].map(|capture| {
        let bytes = unhex(capture);
        PacketMessage::parse(&bytes).unwrap().conntrack().unwrap().bytes().to_vec()
    })
}

fn emitted(attributes: &[ConntrackAttribute]) -> Vec<u8> {
    let mut out = vec![0xa5; attributes.buffer_len()];
    attributes.emit(&mut out);
    out
}

#[cfg(target_endian = "little")]
#[test]
fn captures() {
    for tree in trees() {
        common::differential::same_tree(&tree);
        let conntrack = Conntrack::new(&tree);
        let attributes = conntrack.to_attributes().unwrap();
        // Written again, it is what the kernel sent, except that the other crate's writer leaves
        // out the flag of nests it does not know.
        let mut expected = tree.clone();
        for attribute in Attributes::new(&tree).map(Result::unwrap) {
            if matches!(attribute.kind(), CTA_COUNTERS_ORIG | CTA_COUNTERS_REPLY | CTA_TIMESTAMP) {
                expected[attribute.offset() + 3] &= 0x7f;
            }
        }
        assert_eq!(emitted(&attributes), expected);
        for attribute in &attributes {
            match attribute {
                ConntrackAttribute::CtaTupleOrig(tuple) => {
                    same_tuple(tuple, conntrack.original().unwrap());
                }
                ConntrackAttribute::CtaTupleReply(tuple) => {
                    same_tuple(tuple, conntrack.reply().unwrap());
                }
                ConntrackAttribute::CtaStatus(status) => {
                    assert_eq!(Some(status.bits()), conntrack.status().map(|status| status.0));
                }
                ConntrackAttribute::CtaTimeout(timeout) => {
                    assert_eq!(Some(*timeout), conntrack.timeout());
                }
                ConntrackAttribute::CtaMark(mark) => assert_eq!(Some(*mark), conntrack.mark()),
                ConntrackAttribute::CtaProtoInfo(info) => {
                    let [ProtoInfo::TCP(tcp)] = &info[..] else { panic!("not TCP") };
                    let state = conntrack.tcp_state().unwrap().0;
                    assert_eq!(tcp.first(), Some(&ProtoInfoTCP::State(state)));
                }
                ConntrackAttribute::Other(other) => {
                    let ours = conntrack.attribute(other.kind() & NLA_TYPE_MASK).unwrap();
                    assert_eq!(ours.value().len(), other.value_len());
                }
                _ => unreachable!("no other attribute"),
            }
        }
    }
}

fn same_tuple(theirs: &[OtherTuple], ours: netfilterqueue_protocol::conntrack::Tuple) {
    let [OtherTuple::Ip(ip), OtherTuple::Proto(proto)] = theirs else { panic!("{theirs:?}") };
    let expected =
        [IPTuple::SourceAddress(ours.source), IPTuple::DestinationAddress(ours.destination)];
    assert_eq!(ip[..], expected);
    let expected = [
        ProtoTuple::Protocol(ours.protocol.into()),
        ProtoTuple::SourcePort(ours.source_port.unwrap()),
        ProtoTuple::DestinationPort(ours.destination_port.unwrap()),
    ];
    assert_eq!(proto[..], expected);
}

/// Differences: where the accessors read on, the full tree is refused.
#[test]
fn all_or_nothing() {
    let refused = |tree: &[u8]| Conntrack::new(tree).to_attributes().is_err();
    let good = list(&[(CTA_MARK, vec![0, 0, 0, 1])]);
    assert!(!refused(&good) && !refused(&[]));
    // Longer and shorter than the type.
    let long = list(&[(CTA_MARK, vec![0, 0, 0, 1, 9]), (CTA_ID, vec![0; 4])]);
    assert_eq!(Conntrack::new(&long).mark(), Some(1));
    assert!(refused(&long));
    assert!(refused(&list(&[(CTA_MARK, vec![0, 0, 1])])));
    // Stray bytes and a length that runs past the end.
    let mut stray = good.clone();
    stray.extend([0; 3]);
    assert_eq!(Conntrack::new(&stray).mark(), Some(1));
    assert!(refused(&stray));
    let cut = list(&[(CTA_MARK, vec![0, 0, 0, 1]), (CTA_ID, vec![0; 4])]);
    assert_eq!(Conntrack::new(&cut[..15]).mark(), Some(1));
    assert!(refused(&cut[..15]));
}

#[cfg(target_endian = "little")]
#[test]
fn cut_anywhere() {
    for tree in trees() {
        let whole = Conntrack::new(&tree).to_attributes().unwrap();
        for end in 0..tree.len() {
            // Only cuts between attributes leave a legal tree.
            match Conntrack::new(&tree[..end]).to_attributes() {
                Ok(attributes) => {
                    assert_eq!(attributes, whole[..attributes.len()]);
                    assert_eq!(emitted(&attributes).len(), end);
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
}

#[cfg(target_endian = "little")]
proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// Captured trees with some bytes changed: mostly lengths, types and values of nests.
    #[test]
    fn no_mutation_panics(
        capture in 0_usize..2,
        changes in proptest::collection::vec((0_usize..316, prop_oneof![0_u8..32, any::<u8>()]), 1..6),
        cut in prop_oneof![Just(0_usize), 0_usize..300],
    ) {
        let mut tree = trees()[capture].clone();
        for (at, byte) in changes {
            let len = tree.len();
            tree[at % len] = byte;
        }
        tree.truncate(tree.len().saturating_sub(cut));
        if let Ok(attributes) = Conntrack::new(&tree).to_attributes() {
            // The other crate's writer is not part of the contract; it holds up all the same.
            let out = emitted(&attributes);
            prop_assert!(out.len() <= tree.len().next_multiple_of(4));
        }
        common::differential::same_tree(&tree);
        common::touch(&tree);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(0_u8..40, 0..200)) {
        common::differential::same_tree(&bytes);
    }
}
