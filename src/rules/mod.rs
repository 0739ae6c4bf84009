//! The firewall rule that feeds a queue, put in place by the program itself: no `iptables`, no `nft`.
//!
//! This is a convenience for queueing traffic, **not a firewall manager**: one base chain in a table
//! of its own, rules that can only queue, and nothing that reads or changes the rules of others. For
//! more, see the crates `rustables` and `nftables`.
//!
//! ```no_run
//! use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
//!
//! let rules = Rules::new(Hook::OUTPUT)
//!     .rule(Rule::queue(1).protocol(Protocol::UDP).destination_port(53).bypass(true))
//!     .rule(Rule::queue(2).protocol(Protocol::ICMP))
//!     .install()?;
//! // Packets go to queues 1 and 2 of this network namespace until `rules` is dropped.
//! # drop(rules);
//! # Ok::<(), netfilterqueue::Error>(())
//! ```
//!
//! # When the rules go away
//!
//! With the [`InstalledRules`]: its drop deletes the table before it returns. Since Linux 5.12 the
//! table is also owned by a socket of this process, so that the kernel deletes it however the process
//! ends, `SIGKILL` included, and no rule is left that sends traffic to a queue without a listener.
//! Nobody else can change an owned table, and `nft flush ruleset` spares it. On older kernels only the
//! drop deletes it, and only while the process has `CAP_NET_ADMIN`. See
//! [`InstalledRules::is_owned`].
//!
//! # Taking rules away drops queued packets
//!
//! When **any** netfilter hook of a network namespace is unregistered, the kernel drops all packets
//! that wait in **all** queues of that namespace; a later verdict on them is refused (`ENOENT`), and
//! old kernels (5.10 for one) log a warning.
//! Deleting a table with a base chain does that, whoever does it, and so does dropping
//! [`InstalledRules`]. To end without loss: [`pause`](InstalledRules::pause), which takes away the
//! rules but leaves the hook; judge what still waits; then drop.
//!
//! # Mechanism
//!
//! `nf_tables` (Linux 3.13; `inet` since 3.14) with its `queue` expression. Where the kernel lacks
//! `nft_queue`, the xtables target `NFQUEUE` through `nft_compat`; see [`Mechanism`].
//! `CAP_NET_ADMIN` is needed in the user namespace that owns the network namespace.

mod expressions;
mod rule;
mod transaction;

use std::{fmt, process};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, InetHookNumber, NfTablesMessage,
    RuleAttribute, RuleMessage, TableAttribute, TableFlags, TableMessage,
};
use nix::errno::Errno;

pub use self::rule::Rule;
use self::transaction::{Connection, Failure, Request};
use crate::error::Error;
pub use crate::hook::{Family, Hook};
pub use crate::ip::Protocol;

/// The only chain of our tables.
const CHAIN: &str = "queue";
/// The type of base chain that takes any hook and priority.
const CHAIN_TYPE: &str = "filter";
/// What becomes of packets that no rule takes: `NF_ACCEPT`.
const POLICY_ACCEPT: u32 = 1;
/// The transaction's messages before the rules: table and chain.
const TABLE: usize = 0;
const BEFORE_RULES: usize = 2;
/// How many names are tried for the table; one is enough unless a killed process left its own.
const NAMES: u32 = 16;

/// What the kernel queues with. Both do the same to packets; they look different in `nft list
/// ruleset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mechanism {
    /// The `queue` expression of `nf_tables`, module `nft_queue`.
    NftQueue,
    /// The xtables target `NFQUEUE` revision 3 (since 3.13), modules `nft_compat` and `xt_NFQUEUE`.
    XtNfqueue,
}

/// Rules to install: one base chain at one hook.
///
/// They are tried in the order given; the first that matches queues the packet, and what none matches
/// goes on. An accepted packet goes on behind this chain: the later rules do not see it.
#[derive(Debug, Clone)]
#[must_use = "rules do nothing until they are installed"]
pub struct Rules {
    hook: Hook,
    family: Family,
    priority: i32,
    rules: Vec<Rule>,
}

impl Rules {
    /// No rules yet, at `hook`, for IPv4 and IPv6, at priority 0.
    pub const fn new(hook: Hook) -> Self {
        Self { hook, family: Family::INET, priority: 0, rules: Vec::new() }
    }

    /// For which IP versions. [`Family::INET`] unless set.
    pub const fn family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// The place among everything else at the hook, lower is earlier; any number. 0 unless set.
    ///
    /// | priority | what the kernel and iptables do there |
    /// | --- | --- |
    /// | -400 | defragmentation (with connection tracking) |
    /// | -300 | `raw` |
    /// | -200 | connection tracking begins |
    /// | -150 | `mangle` |
    /// | -100 | destination NAT (prerouting, output) |
    /// | 0 | `filter` |
    /// | 50 | `security` |
    /// | 100 | source NAT (input, postrouting) |
    /// | 300 | connection tracking helpers |
    ///
    /// Do not rely on an order among chains of equal priority.
    pub const fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Adds a rule behind those already given. Some hundreds fit in one transaction.
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Installs the rules in the network namespace of the calling thread, all of them or none.
    ///
    /// Queue first, rules second: bind the queue before, so that no packet finds it without a
    /// listener.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidRule`]: there is no rule, too many, or one that cannot be expressed.
    /// - [`Error::NoCapability`]: `CAP_NET_ADMIN` is missing.
    /// - [`Error::NoRuleSupport`]: the kernel has no `nf_tables`, or it has neither `nft_queue` nor
    ///   `nft_compat` with `xt_NFQUEUE`.
    /// - [`Error::Refused`]: the kernel refused for another reason.
    /// - [`Error::AckTimeout`], [`Error::System`]: the kernel could not be asked.
    pub fn install(self) -> Result<InstalledRules, Error> {
        if self.rules.is_empty() {
            return Err(Error::InvalidRule("there is no rule to install"));
        }
        self.rules.iter().try_for_each(|rule| rule.check(self.hook))?;
        let mut connection = Connection::open()?;
        let mut attempt = Attempt::FIRST;
        loop {
            let table = attempt.table(connection.port());
            let rules = self.rule_requests(&table, attempt.mechanism)?;
            let requests = [self.table_request(&table, attempt.owned), self.chain_request(&table)];
            let requests = requests.into_iter().chain(rules.iter().cloned()).collect();
            match connection.commit(NetfilterProtoFamily::from(self.family.0), requests) {
                Ok(()) => {
                    let family = NetfilterProtoFamily::from(self.family.0);
                    let Attempt { owned, mechanism, .. } = attempt;
                    return Ok(InstalledRules {
                        connection,
                        family,
                        table,
                        rules,
                        mechanism,
                        owned,
                        paused: false,
                        removed: false,
                    });
                }
                Err(failure) => attempt = attempt.after(failure)?,
            }
        }
    }

    fn table_request(&self, table: &str, owned: bool) -> Request {
        let flags = if owned { TableFlags::Owner } else { TableFlags::empty() };
        let attributes = vec![TableAttribute::Name(table.to_owned()), TableAttribute::Flags(flags)];
        Request {
            flags: NLM_F_CREATE | NLM_F_EXCL,
            message: NfTablesMessage::NewTable(TableMessage { attributes }),
        }
    }

    fn chain_request(&self, table: &str) -> Request {
        let attributes = vec![
            ChainAttribute::Table(table.to_owned()),
            ChainAttribute::Name(CHAIN.to_owned()),
            ChainAttribute::Hook(vec![
                HookAttribute::Number(InetHookNumber::from(u32::from(self.hook.0)).into()),
                HookAttribute::Priority(self.priority.cast_unsigned()),
            ]),
            ChainAttribute::Policy(POLICY_ACCEPT),
            ChainAttribute::Type(CHAIN_TYPE.to_owned()),
        ];
        Request {
            flags: NLM_F_CREATE,
            message: NfTablesMessage::NewChain(ChainMessage { attributes }),
        }
    }

    fn rule_requests(&self, table: &str, mechanism: Mechanism) -> Result<Vec<Request>, Error> {
        let request = |rule| {
            let attributes = vec![
                RuleAttribute::Table(table.to_owned()),
                RuleAttribute::Chain(CHAIN.to_owned()),
                RuleAttribute::Expressions(expressions::rule(rule, mechanism)?),
            ];
            let message = NfTablesMessage::NewRule(RuleMessage { attributes });
            Ok(Request { flags: NLM_F_CREATE | NLM_F_APPEND, message })
        };
        self.rules.iter().map(request).collect()
    }
}

/// One way to install; a refusal leads to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attempt {
    name: u32,
    owned: bool,
    mechanism: Mechanism,
}

impl Attempt {
    const FIRST: Self = Self { name: 0, owned: true, mechanism: Mechanism::NftQueue };

    /// Unique among living processes by the socket's port id, and telling an administrator which
    /// process it is.
    fn table(self, port: u32) -> String {
        let process = process::id();
        let number = if self.name == 0 { String::new() } else { format!("-{}", self.name) };
        format!("netfilterqueue-{process}-{port:x}{number}")
    }

    fn after(self, failure: Failure) -> Result<Self, Error> {
        let Failure::Refused { request: Some(request), errno, .. } = &failure else {
            return Err(failure.into());
        };
        match (*request, *errno) {
            (TABLE, Errno::EEXIST) if self.name + 1 < NAMES => {
                Ok(Self { name: self.name + 1, ..self })
            }
            // Kernels before 5.12 do not know the owner flag.
            (TABLE, Errno::EINVAL | Errno::EOPNOTSUPP) if self.owned => {
                Ok(Self { owned: false, ..self })
            }
            (BEFORE_RULES.., Errno::ENOENT) => match self.mechanism {
                Mechanism::NftQueue => Ok(Self { mechanism: Mechanism::XtNfqueue, ..self }),
                Mechanism::XtNfqueue => Err(Error::NoRuleSupport),
            },
            _ => Err(failure.into()),
        }
    }
}

/// Rules in place. Dropping it deletes them and with them **all packets that wait in any queue of the
/// network namespace**; see [the module](self#taking-rules-away-drops-queued-packets) for how to end
/// without loss.
///
/// It holds a socket, which keeps its network namespace alive, and to which it all belongs: moving the
/// thread to another namespace changes nothing.
#[must_use = "dropping it deletes the rules"]
pub struct InstalledRules {
    connection: Connection,
    family: NetfilterProtoFamily,
    table: String,
    rules: Vec<Request>,
    mechanism: Mechanism,
    owned: bool,
    paused: bool,
    removed: bool,
}

impl InstalledRules {
    /// Takes the rules away and leaves the hook: packets are no longer queued, those already queued
    /// stay and can be judged. Does nothing if paused.
    ///
    /// Packets that are passing the rules in this very moment may still be queued just after.
    ///
    /// # Errors
    ///
    /// [`Error::NoCapability`] if the process gave up `CAP_NET_ADMIN`; [`Error::Refused`],
    /// [`Error::AckTimeout`] and [`Error::System`] as for [`Rules::install`].
    pub fn pause(&mut self) -> Result<(), Error> {
        if self.paused {
            return Ok(());
        }
        let attributes =
            vec![RuleAttribute::Table(self.table.clone()), RuleAttribute::Chain(CHAIN.to_owned())];
        // Without a handle: every rule of the chain.
        let message = NfTablesMessage::DeleteRule(RuleMessage { attributes });
        self.connection.commit(self.family, vec![Request { flags: 0, message }])?;
        self.paused = true;
        Ok(())
    }

    /// Puts paused rules back in place. Does nothing if not paused.
    ///
    /// # Errors
    ///
    /// As for [`InstalledRules::pause`].
    pub fn resume(&mut self) -> Result<(), Error> {
        if self.paused {
            self.connection.commit(self.family, self.rules.clone())?;
            self.paused = false;
        }
        Ok(())
    }

    /// Deletes the rules and the hook, as the drop does, and says whether that worked. The kernel
    /// drops all packets that wait in any queue of the network namespace.
    ///
    /// # Errors
    ///
    /// As for [`InstalledRules::pause`]. [`Error::Refused`] with `ENOENT` if somebody has deleted the
    /// table before. After an error the drop tries again.
    pub fn remove(self) -> Result<(), Error> {
        let mut this = self;
        this.delete_table()?;
        this.removed = true;
        Ok(())
    }

    /// What the kernel queues with.
    #[must_use]
    pub const fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Whether the kernel deletes the rules by itself when this process ends without dropping them,
    /// by `SIGKILL` for one: since Linux 5.12.
    ///
    /// A child process that inherited the socket by `fork` keeps them alive.
    #[must_use]
    pub const fn is_owned(&self) -> bool {
        self.owned
    }

    /// The name of the table, as `nft list tables` shows it. Unique in the network namespace.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table
    }

    fn delete_table(&mut self) -> Result<(), Error> {
        let attributes = vec![TableAttribute::Name(self.table.clone())];
        let message = NfTablesMessage::DeleteTable(TableMessage { attributes });
        Ok(self.connection.commit(self.family, vec![Request { flags: 0, message }])?)
    }
}

impl fmt::Debug for InstalledRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstalledRules")
            .field("table", &self.table)
            .field("mechanism", &self.mechanism)
            .field("owned", &self.owned)
            .field("paused", &self.paused)
            .finish_non_exhaustive()
    }
}

impl Drop for InstalledRules {
    fn drop(&mut self) {
        // For an owned table closing the socket would do, but not wait for the end of it.
        if !self.removed {
            let _ = self.delete_table();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(request: usize, errno: Errno) -> Failure {
        Failure::Refused { request: Some(request), errno, explanation: None }
    }

    #[test]
    fn a_refusal_leads_to_the_next_attempt() {
        let first = Attempt::FIRST;
        let after = |attempt: Attempt, request, errno| attempt.after(refused(request, errno)).ok();
        let unowned = Attempt { owned: false, ..first };
        assert_eq!(after(first, TABLE, Errno::EOPNOTSUPP), Some(unowned));
        assert_eq!(after(first, TABLE, Errno::EINVAL), Some(unowned));
        let compat = Attempt { mechanism: Mechanism::XtNfqueue, ..first };
        assert_eq!(after(first, BEFORE_RULES, Errno::ENOENT), Some(compat));
        assert_eq!(after(first, BEFORE_RULES + 3, Errno::ENOENT), Some(compat));
        let renamed = Attempt { name: 1, ..first };
        assert_eq!(after(first, TABLE, Errno::EEXIST), Some(renamed));
        assert_ne!(first.table(5), renamed.table(5));
    }

    #[test]
    fn attempts_come_to_an_end() {
        let last = Attempt { name: NAMES - 1, owned: false, mechanism: Mechanism::XtNfqueue };
        for errno in [Errno::EEXIST, Errno::EINVAL, Errno::EOPNOTSUPP] {
            assert!(matches!(
                last.after(refused(TABLE, errno)),
                Err(Error::Refused { errno: found, .. }) if found == errno
            ));
        }
        assert!(matches!(
            last.after(refused(BEFORE_RULES, Errno::ENOENT)),
            Err(Error::NoRuleSupport)
        ));
        assert!(matches!(
            Attempt::FIRST.after(refused(BEFORE_RULES, Errno::EPERM)),
            Err(Error::Refused { errno: Errno::EPERM, .. })
        ));
    }

    #[test]
    fn nothing_to_install() {
        assert!(matches!(Rules::new(Hook::INPUT).install(), Err(Error::InvalidRule(_))));
        let rules = Rules::new(Hook::OUTPUT).rule(Rule::queue(1).input_interface("lo"));
        assert!(matches!(rules.install(), Err(Error::InvalidRule(_))));
    }
}
