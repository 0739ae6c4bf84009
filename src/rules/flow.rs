//! Flow bypass in the kernel's terms: rules that let decided flows pass the queue, and rules that
//! remember a decision.

use netlink_packet_netfilter::nftables::{Expressions, MetaKey, Operator};

use super::expressions::{
    Expression, accept, compare, ct_mark, drop, mask_and_flip, meta, set_ct_mark, set_meta,
};
use crate::flow::FlowMarks;

/// What the queueing chain starts with.
///
/// A packet that carries a decision already has it from another chain with the same marks, perhaps
/// one of the same priority, and is on its way to where it is remembered.
pub(super) fn decided(marks: FlowMarks) -> [Vec<Expression>; 3] {
    [
        rule(mark_is(marks, Operator::NotEqual, 0), [accept()]),
        rule(ct_mark_is(marks, marks.accepted()), [accept()]),
        rule(ct_mark_is(marks, marks.dropped()), [drop()]),
    ]
}

/// The chain behind it.
///
/// A packet without a conntrack entry ends its rule at the load of the conntrack mark; hence
/// dropping is a rule of its own. The bits are cleared last: behind here they mean nothing.
pub(super) fn remember(marks: FlowMarks) -> [Vec<Expression>; 5] {
    let is = |bits| mark_is(marks, Operator::Equal, bits);
    let save = |bits| [ct_mark(), replace(marks, bits), set_ct_mark()];
    let clear = [meta(MetaKey::Mark), replace(marks, 0), set_meta(MetaKey::Mark)];
    [
        rule(is(0), [accept()]),
        rule(is(marks.accepted()), save(marks.accepted())),
        rule(is(marks.dropped()), save(marks.dropped())),
        rule(is(marks.dropped()), [drop()]),
        rule([], clear),
    ]
}

fn rule(
    matches: impl IntoIterator<Item = Expressions>,
    then: impl IntoIterator<Item = Expressions>,
) -> Vec<Expression> {
    matches.into_iter().chain(then).map(Into::into).collect()
}

fn mark_is(marks: FlowMarks, operator: Operator, bits: u32) -> [Expressions; 3] {
    [meta(MetaKey::Mark), only(marks), compare(operator, bits.to_ne_bytes().to_vec())]
}

fn ct_mark_is(marks: FlowMarks, bits: u32) -> [Expressions; 3] {
    [ct_mark(), only(marks), compare(Operator::Equal, bits.to_ne_bytes().to_vec())]
}

fn only(marks: FlowMarks) -> Expressions {
    mask_and_flip(marks.mask(), 0)
}

/// Leaves the other bits as they are.
fn replace(marks: FlowMarks, bits: u32) -> Expressions {
    mask_and_flip(!marks.mask(), bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::expressions::tests::{Named, be32, encoded_list};

    const MARKS: FlowMarks = FlowMarks::new(0x100, 0x200).unwrap();
    const REGISTER: u32 = 1;

    fn named(name: &str, attributes: impl IntoIterator<Item = (u16, Vec<u8>)>) -> Named {
        (name.to_owned(), attributes.into_iter().collect())
    }

    /// Marks are kept in host order.
    fn host(mark: u32) -> Vec<u8> {
        mark.to_ne_bytes().to_vec()
    }

    fn bitwise(mask: u32, xor: u32) -> Named {
        let registers = [(1, be32(REGISTER)), (2, be32(REGISTER)), (3, be32(4))];
        named("bitwise", registers.into_iter().chain([(4, host(mask)), (5, host(xor))]))
    }

    #[test]
    fn a_decided_flow_is_told_by_its_conntrack_mark() {
        let [_, accepted, dropped] = decided(MARKS);
        for (rule, bits, verdict) in [(accepted, 0x100, 1), (dropped, 0x200, 0)] {
            let expected = [
                named("ct", [(2, be32(3)), (1, be32(REGISTER))]),
                bitwise(0x300, 0),
                named("cmp", [(1, be32(REGISTER)), (2, be32(0)), (3, host(bits))]),
                named("immediate", [(1, be32(0)), (2, be32(verdict))]),
            ];
            assert_eq!(encoded_list(&rule), expected);
        }
    }

    #[test]
    fn remembering_keeps_the_other_bits() {
        let [_, accepted, _, _, clear] = remember(MARKS);
        let saving = &encoded_list(&accepted)[3..];
        let expected = [
            named("ct", [(2, be32(3)), (1, be32(REGISTER))]),
            bitwise(0xffff_fcff, 0x100),
            named("ct", [(2, be32(3)), (4, be32(REGISTER))]),
        ];
        assert_eq!(saving, expected);
        let expected = [
            named("meta", [(1, be32(REGISTER)), (2, be32(3))]),
            bitwise(0xffff_fcff, 0),
            named("meta", [(2, be32(3)), (3, be32(REGISTER))]),
        ];
        assert_eq!(encoded_list(&clear), expected);
    }
}
