//! Rules in the kernel's terms: a list of nft expressions that load a value into a register and
//! compare it, and one last expression that queues or does something else.
//!
//! Registers hold what the packet holds: ports in network order, but marks and interface names as
//! the host keeps them.

use std::array;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Meta,
    MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

use super::Mechanism;
use super::rule::{Mark, Matches, Rule};
use crate::error::Error;

// linux/netfilter/nf_tables.h: enum nft_queue_attributes, all be16

/// The first queue's number.
const NFTA_QUEUE_NUM: u16 = 1;
/// How many queues.
const NFTA_QUEUE_TOTAL: u16 = 2;
/// `NFT_QUEUE_FLAG_*`.
const NFTA_QUEUE_FLAGS: u16 = 3;

// linux/netfilter/nf_tables.h: enum nft_ct_attributes, all be32

/// The register that is written.
const NFTA_CT_DREG: u16 = 1;
/// `NFT_CT_*`: what is loaded or set.
const NFTA_CT_KEY: u16 = 2;
/// The register that is read.
const NFTA_CT_SREG: u16 = 4;
/// The mark of the packet's conntrack entry. Loading it ends the rule where there is no entry.
const NFT_CT_MARK: u32 = 3;

// linux/netfilter/nf_tables_compat.h: enum nft_target_attributes

/// The target's name, NUL-terminated.
const NFTA_TARGET_NAME: u16 = 1;
/// The target's revision, be32.
const NFTA_TARGET_REV: u16 = 2;
/// The target's own structure, in host order.
const NFTA_TARGET_INFO: u16 = 3;

// linux/netfilter/xt_NFQUEUE.h

const XT_NFQUEUE: &[u8] = b"NFQUEUE\0";
/// The first revision with flags; since 3.13.
const XT_NFQUEUE_REVISION: u32 = 3;
/// `XT_ALIGN(sizeof(struct xt_NFQ_info_v3))`: three u16, padded to the alignment of u64.
const XT_NFQUEUE_INFO_LEN: usize = 8;

// Both mechanisms give the flags the same values: NFT_QUEUE_FLAG_* and NFQ_FLAG_*.
const FLAG_BYPASS: u16 = 1;
const FLAG_CPU_FANOUT: u16 = 2;

/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
const TRANSPORT_HEADER: u32 = 2;
const SOURCE_PORT_OFFSET: u32 = 0;
const DESTINATION_PORT_OFFSET: u32 = 2;
const PORT_LEN: u32 = 2;
const MARK_LEN: u32 = 4;

// linux/netfilter.h
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// The register everything is compared in: 16 bytes, enough for an interface name.
const REGISTER: Register = Register::Reg1;

pub(super) type Expression = ListAttribute<ExpressionAttribute>;

/// The whole rule; evaluation stops at the first comparison that fails.
pub(super) fn rule(rule: &Rule, mechanism: Mechanism) -> Result<Vec<Expression>, Error> {
    let mut out: Vec<Expression> = matches(&rule.matches).into_iter().map(Into::into).collect();
    let total = rule.queue_count().map_err(Error::invalid_rules)?;
    let first = *rule.queues.start();
    let flags = (if rule.bypass { FLAG_BYPASS } else { 0 })
        | (if rule.cpu_fanout { FLAG_CPU_FANOUT } else { 0 });
    out.push(match mechanism {
        Mechanism::NftQueue => nft_queue(first, total, flags).into(),
        Mechanism::XtNfqueue => xt_nfqueue(first, total, flags).into(),
    });
    Ok(out)
}

fn matches(matches: &Matches) -> Vec<Expressions> {
    let mut out = Vec::new();
    if let Some(name) = &matches.input_interface {
        out.extend([meta(MetaKey::Iifname), equals(interface(name))]);
    }
    if let Some(name) = &matches.output_interface {
        out.extend([meta(MetaKey::Oifname), equals(interface(name))]);
    }
    if let Some(Mark { value, mask }) = matches.mark {
        out.push(meta(MetaKey::Mark));
        if mask != u32::MAX {
            out.push(mask_and_flip(mask, 0));
        }
        out.push(equals(value.to_ne_bytes().to_vec()));
    }
    if let Some(ethertype) = matches.ethertype {
        out.push(meta(MetaKey::EtherTypeProtocol));
        out.push(equals(ethertype.to_be_bytes().to_vec()));
    }
    if let Some(protocol) = matches.protocol {
        out.extend([meta(MetaKey::L4Proto), equals(vec![protocol.0])]);
    }
    if let Some(port) = matches.source_port {
        out.extend([transport(SOURCE_PORT_OFFSET), equals(port.to_be_bytes().to_vec())]);
    }
    if let Some(port) = matches.destination_port {
        out.extend([transport(DESTINATION_PORT_OFFSET), equals(port.to_be_bytes().to_vec())]);
    }
    out
}

/// Padded with NULs to the register's 16 bytes: a shorter value would match a prefix.
fn interface(name: &str) -> Vec<u8> {
    let name = name.as_bytes();
    let padded: [u8; 16] = array::from_fn(|at| name.get(at).copied().unwrap_or(0));
    padded.to_vec()
}

pub(super) fn meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::DestinationRegister(REGISTER), Meta::Key(key)])
}

pub(super) fn set_meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::Key(key), Meta::SourceRegister(REGISTER)])
}

fn transport(offset: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(REGISTER),
        Payload::Base(TRANSPORT_HEADER),
        Payload::Offset(offset),
        Payload::Len(PORT_LEN),
    ])
}

/// mark = (mark & mask) ^ xor
pub(super) fn mask_and_flip(mask: u32, xor: u32) -> Expressions {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(REGISTER),
        Bitwise::DestinationRegister(REGISTER),
        Bitwise::Length(MARK_LEN),
        Bitwise::Mask(DataAttribute::Value(mask.to_ne_bytes().to_vec())),
        Bitwise::Xor(DataAttribute::Value(xor.to_ne_bytes().to_vec())),
    ])
}

fn equals(value: Vec<u8>) -> Expressions {
    compare(Operator::Equal, value)
}

pub(super) fn compare(operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(REGISTER),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

pub(super) fn ct_mark() -> Expressions {
    ct(NFTA_CT_DREG)
}

pub(super) fn set_ct_mark() -> Expressions {
    ct(NFTA_CT_SREG)
}

fn ct(register: u16) -> Expressions {
    let be32 = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    Expressions::Other {
        expression_type: "ct".to_owned(),
        attributes: vec![be32(NFTA_CT_KEY, NFT_CT_MARK), be32(register, REGISTER.into())],
    }
}

/// Ends the chain, not the packet's way.
pub(super) fn accept() -> Expressions {
    verdict(NF_ACCEPT)
}

pub(super) fn drop() -> Expressions {
    verdict(NF_DROP)
}

fn verdict(code: u32) -> Expressions {
    let code = VerdictAttribute::Code(Verdict::Other(code));
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![code])),
    ])
}

fn nft_queue(first: u16, total: u16, flags: u16) -> Expressions {
    let be16 = |kind, value: u16| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    Expressions::Other {
        expression_type: "queue".to_owned(),
        attributes: vec![
            be16(NFTA_QUEUE_NUM, first),
            be16(NFTA_QUEUE_TOTAL, total),
            be16(NFTA_QUEUE_FLAGS, flags),
        ],
    }
}

fn xt_nfqueue(first: u16, total: u16, flags: u16) -> Expressions {
    let mut info = Vec::with_capacity(XT_NFQUEUE_INFO_LEN);
    for field in [first, total, flags] {
        info.extend(field.to_ne_bytes());
    }
    info.resize(XT_NFQUEUE_INFO_LEN, 0);
    Expressions::Other {
        expression_type: "target".to_owned(),
        attributes: vec![
            DefaultNla::new(NFTA_TARGET_NAME, XT_NFQUEUE.to_vec()),
            DefaultNla::new(NFTA_TARGET_REV, XT_NFQUEUE_REVISION.to_be_bytes().to_vec()),
            DefaultNla::new(NFTA_TARGET_INFO, info),
        ],
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::rules::Protocol;
    use netfilterqueue_protocol::attribute::{Attribute, Attributes};
    use netlink_packet_core::Emitable;

    const NFTA_LIST_ELEM: u16 = 1;
    const NFTA_EXPR_NAME: u16 = 1;
    const NFTA_EXPR_DATA: u16 = 2;

    /// An expression's name, and the number and value of each of its attributes.
    pub(in crate::rules) type Named = (String, Vec<(u16, Vec<u8>)>);

    fn encoded(rule: &Rule, mechanism: Mechanism) -> Vec<Named> {
        encoded_list(&super::rule(rule, mechanism).expect("a valid rule"))
    }

    /// Encodes and takes apart again with our own reader.
    pub(in crate::rules) fn encoded_list(list: &[Expression]) -> Vec<Named> {
        let mut bytes = vec![0xa5; list.buffer_len()];
        list.emit(&mut bytes);
        Attributes::new(&bytes)
            .map(|element| {
                let element = element.expect("a list element");
                assert_eq!(element.kind(), NFTA_LIST_ELEM);
                let name = element.nested().last_of(NFTA_EXPR_NAME).expect("a name").value();
                let name = std::str::from_utf8(name).expect("text").trim_end_matches('\0');
                let data = element.nested().last_of(NFTA_EXPR_DATA).expect("data");
                (name.to_owned(), data.nested().map(|a| flat(&a.expect("intact"))).collect())
            })
            .collect()
    }

    /// `NFTA_DATA_VALUE` is unwrapped, and so is the code of `NFTA_DATA_VERDICT`.
    fn flat(attribute: &Attribute<'_>) -> (u16, Vec<u8>) {
        let value = if !attribute.is_nested() {
            attribute.value()
        } else if let Some(value) = attribute.nested().last_of(1) {
            value.value()
        } else {
            let verdict = attribute.nested().last_of(2).expect("NFTA_DATA_VERDICT");
            verdict.nested().last_of(1).expect("NFTA_VERDICT_CODE").value()
        };
        (attribute.kind(), value.to_vec())
    }

    pub(in crate::rules) fn be32(value: u32) -> Vec<u8> {
        value.to_be_bytes().to_vec()
    }

    #[test]
    fn the_queue_expression_is_in_network_order() {
        let rule = Rule::queues(0x0102..=0x0105).bypass(true).cpu_fanout(true);
        let attributes = vec![(1, vec![1, 2]), (2, vec![0, 4]), (3, vec![0, 3])];
        assert_eq!(encoded(&rule, Mechanism::NftQueue), [("queue".to_owned(), attributes)]);
    }

    /// What nft 1.0.6 sends for `queue flags bypass,fanout num 258-261`, seen with strace.
    #[test]
    #[cfg(target_endian = "little")]
    fn the_queue_expression_is_nfts() {
        let feeding = Rule::queues(258..=261).bypass(true).cpu_fanout(true);
        let list = rule(&feeding, Mechanism::NftQueue).expect("valid");
        let mut bytes = vec![0xa5; list.as_slice().buffer_len()];
        list.as_slice().emit(&mut bytes);
        #[rustfmt::skip]
        let expected = [
            44, 0, 1, 0x80,
                10, 0, 1, 0, b'q', b'u', b'e', b'u', b'e', 0, 0, 0,
                28, 0, 2, 0x80,
                    6, 0, 1, 0, 1, 2, 0, 0,
                    6, 0, 2, 0, 0, 4, 0, 0,
                    6, 0, 3, 0, 0, 3, 0, 0,
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn the_target_is_in_host_order_and_padded() {
        let rule = Rule::queues(0x0102..=0x0105).bypass(true);
        let info: Vec<u8> = [0x0102_u16, 4, 1, 0].into_iter().flat_map(u16::to_ne_bytes).collect();
        let attributes = vec![(1, b"NFQUEUE\0".to_vec()), (2, be32(3)), (3, info)];
        assert_eq!(encoded(&rule, Mechanism::XtNfqueue), [("target".to_owned(), attributes)]);
    }

    #[test]
    fn matches_load_and_compare() {
        let rule = Rule::queue(1)
            .protocol(Protocol::UDP)
            .source_port(0x1234)
            .destination_port(53)
            .input_interface("eth0")
            .output_interface("wlan0")
            .mark(7);
        let interface = |name: &[u8]| {
            let mut padded = name.to_vec();
            padded.resize(16, 0);
            padded
        };
        let meta = |key| ("meta".to_owned(), vec![(1, be32(1)), (2, be32(key))]);
        let port = |offset| {
            let load = [1, 2, offset, 2].map(be32);
            ("payload".to_owned(), (1..).zip(load).collect::<Vec<_>>())
        };
        let cmp = |value: Vec<u8>| ("cmp".to_owned(), vec![(1, be32(1)), (2, be32(0)), (3, value)]);
        let mut expressions = encoded(&rule, Mechanism::NftQueue);
        assert_eq!(expressions.pop().expect("the last").0, "queue");
        let expected = [
            meta(6),
            cmp(interface(b"eth0")),
            meta(7),
            cmp(interface(b"wlan0")),
            meta(3),
            cmp(7_u32.to_ne_bytes().to_vec()),
            meta(16),
            cmp(vec![17]),
            port(0),
            cmp(vec![0x12, 0x34]),
            port(2),
            cmp(vec![0, 53]),
        ];
        assert_eq!(expressions, expected);
    }

    #[test]
    fn a_masked_mark_is_cut_down_first() {
        let rule = Rule::queue(1).mark_masked(0x10, 0xf0);
        let expressions = encoded(&rule, Mechanism::NftQueue);
        let names: Vec<_> = expressions.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["meta", "bitwise", "cmp", "queue"]);
        let mask = 0xf0_u32.to_ne_bytes().to_vec();
        let expected = vec![(1, be32(1)), (2, be32(1)), (3, be32(4)), (4, mask), (5, vec![0; 4])];
        assert_eq!(expressions[1].1, expected);
    }
}
