//! The messages to `nf_tables` that make and change our table.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, InetHookNumber, NfTablesMessage,
    RuleAttribute, RuleMessage, TableAttribute, TableFlags, TableMessage,
};

use super::expressions::Expression;
use super::transaction::Request;
use crate::hook::Hook;

/// The chain that queues. (`queue` itself is a word that nft's language has for itself.)
pub(super) const QUEUE: &str = "queueing";
/// The chain behind it, which carries out what is decided about flows.
pub(super) const REMEMBER: &str = "remember";

/// The type of base chain that takes any hook and priority.
const CHAIN_TYPE: &str = "filter";
/// What becomes of packets that no rule takes: `NF_ACCEPT`.
const POLICY_ACCEPT: u32 = 1;

pub(super) fn new_table(table: &str, owned: bool) -> Request {
    let flags = if owned { TableFlags::Owner } else { TableFlags::empty() };
    let attributes = vec![TableAttribute::Name(table.to_owned()), TableAttribute::Flags(flags)];
    Request {
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: NfTablesMessage::NewTable(TableMessage { attributes }),
    }
}

/// With everything in it.
pub(super) fn delete_table(table: &str) -> Request {
    let attributes = vec![TableAttribute::Name(table.to_owned())];
    Request { flags: 0, message: NfTablesMessage::DeleteTable(TableMessage { attributes }) }
}

pub(super) fn new_chain(table: &str, chain: &str, hook: Hook, priority: i32) -> Request {
    let attributes = vec![
        ChainAttribute::Table(table.to_owned()),
        ChainAttribute::Name(chain.to_owned()),
        ChainAttribute::Hook(vec![
            // The bridge family has the same numbers.
            HookAttribute::Number(InetHookNumber::from(u32::from(hook.0)).into()),
            HookAttribute::Priority(priority.cast_unsigned()),
        ]),
        ChainAttribute::Policy(POLICY_ACCEPT),
        ChainAttribute::Type(CHAIN_TYPE.to_owned()),
    ];
    Request { flags: NLM_F_CREATE, message: NfTablesMessage::NewChain(ChainMessage { attributes }) }
}

/// A chain that packets only come to from another one.
pub(super) fn new_unhooked_chain(table: &str, chain: &str) -> Request {
    let attributes =
        vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(chain.to_owned())];
    Request { flags: NLM_F_CREATE, message: NfTablesMessage::NewChain(ChainMessage { attributes }) }
}

/// Behind the rules that the chain has.
pub(super) fn new_rule(table: &str, chain: &str, expressions: Vec<Expression>) -> Request {
    let attributes = vec![
        RuleAttribute::Table(table.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(expressions),
    ];
    Request {
        flags: NLM_F_CREATE | NLM_F_APPEND,
        message: NfTablesMessage::NewRule(RuleMessage { attributes }),
    }
}

/// All of the chain; its hook stays.
pub(super) fn delete_rules(table: &str, chain: &str) -> Request {
    // Without a handle it means every rule.
    let attributes =
        vec![RuleAttribute::Table(table.to_owned()), RuleAttribute::Chain(chain.to_owned())];
    Request { flags: 0, message: NfTablesMessage::DeleteRule(RuleMessage { attributes }) }
}
