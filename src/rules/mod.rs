//! The firewall rule that feeds a queue, put in place by the program itself: no `iptables`, no
//! `nft`.
//!
//! This is a convenience for queueing traffic, **not a firewall manager**: one base chain in a
//! table of its own (two with [flow bypass](self#flow-bypass)), rules that can only queue, and
//! nothing that reads or changes the rules of others. For more, see the crates `rustables` and
//! `nftables`.
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
//! table is also owned by a socket of this process, so that the kernel deletes it however the
//! process ends, `SIGKILL` included, and no rule is left that sends traffic to a queue without a
//! listener. Nobody else can change an owned table, and `nft flush ruleset` spares it. On older
//! kernels only the drop deletes it, and only while the process has `CAP_NET_ADMIN`. See
//! [`InstalledRules::is_owned`].
//!
//! # Taking rules away drops queued packets
//!
//! When **any** netfilter hook of a network namespace is unregistered, the kernel drops all packets
//! that wait in **all** queues of that namespace; a later verdict on them is refused (`ENOENT`),
//! and old kernels (5.10 for one) log a warning. Deleting a table with a base chain does that,
//! whoever does it, and so does dropping [`InstalledRules`]. To end without loss:
//! [`pause`](InstalledRules::pause), which takes away the rules but leaves the hook; judge what
//! still waits; then drop.
//!
//! # Flow bypass
//!
//! Most programs know after a few packets what to do with a flow, and every later packet still pays
//! for the way up to them and back. With [`Rules::flow_bypass`] they say it once, and the kernel
//! does the rest:
//!
//! ```no_run
//! use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
//! use netfilterqueue::{FlowMarks, Queue};
//!
//! let mut queue = Queue::builder(1).bind()?;
//! let rules = Rules::new(Hook::FORWARD)
//!     .rule(Rule::queue(1).protocol(Protocol::TCP))
//!     .flow_bypass(FlowMarks::default())
//!     .install()?;
//! let flows = rules.flow_bypass().expect("asked for above");
//! queue.run(|packet| match packet.payload() {
//!     payload if payload.ends_with(b"forbidden") => packet.drop_flow(flows),
//!     payload if payload.len() > 200 => packet.accept_flow(flows),
//!     _ => packet.accept(), // and ask again for the flow's next packet
//! })?;
//! # Ok::<(), netfilterqueue::Error>(())
//! ```
//!
//! The verdict is ACCEPT with a mark, [two bits](crate::FlowMarks) of which say what was decided. A
//! second chain of ours, at the priority behind the first, moves these bits into the mark of the
//! packet's conntrack entry, drops the packet if that was the decision, and clears the bits; later
//! rules do not see them. The first chain looks at the conntrack mark before it queues. A packet
//! that comes to it with these bits in its own mark has been decided about already and is not
//! queued either. Other bits of both marks stay as they are. Rules at several hooks with the same
//! marks share their decisions, rules with other marks have their own.
//!
//! A flow is what connection tracking takes for one, both directions of it and after address
//! translation too:
//!
//! - **Packets on their way** when the decision is made, in the queue or in a batch, still come up
//!   and need their verdicts. A decided packet overtakes them. Each verdict on a flow replaces the
//!   one before; a plain accept changes nothing.
//! - **A flow is remembered once a packet of it has been let through.** Dropping the first packet
//!   of a new flow, which [`drop_flow`](crate::Packet::drop_flow) does too, destroys its conntrack
//!   entry: the next packet comes up again, and is dropped again if that is the verdict. The same
//!   goes for packets of a new flow that wait at the same time: what is decided with the second may
//!   be lost with its entry.
//! - **Older flows**, which began before the rules, take part from their first packet that comes
//!   up.
//! - **When the entry ends**, after a time without packets
//!   (`net.netfilter.nf_conntrack_udp_timeout` and its like), by `conntrack -D`, or with the
//!   connection, so does the decision: a later packet comes up again.
//! - **Every packet of a decided flow** at this hook passes or is dropped, whether one of the rules
//!   matches it or not.
//! - **ICMP errors** about a flow belong to it: they share its fate, and a decision about one is a
//!   decision about the flow. Connections that a helper expects (FTP's data) begin with their
//!   parent's decision.
//! - **What is not tracked** has nothing to be remembered by: `notrack`, IPv6 neighbour discovery.
//!   A decision holds for the one packet. The same goes for bridged frames other than IPv4 and
//!   IPv6.
//! - While the rules are [paused](InstalledRules::pause), decisions stay in force and are still
//!   remembered. When they are removed the bits stay in the conntrack entries, and rules with the
//!   same marks find them.
//!
//! It costs connection tracking, which these rules turn on in their network namespace, and so the
//! conntrack table's limit. The verdict changes the mark, and at [`Hook::OUTPUT`] the kernel looks
//! up the route again when it did: routing rules by mark (`ip rule fwmark`) need a mask there. In
//! between, at either priority, no other rule and no other queue may write the whole mark of a
//! packet that is marked so.
//!
//! Needs the module `nft_ct` with connection marks; in [`Family::BRIDGE`] also
//! `nf_conntrack_bridge` (since 5.3). Rules made otherwise can do the same:
//! [`FlowBypass::assume_installed`](crate::FlowBypass::assume_installed).
//!
//! # Mechanism
//!
//! `nf_tables` (Linux 3.13; `inet` since 3.14) with its `queue` expression. Where the kernel lacks
//! `nft_queue`, the xtables target `NFQUEUE` through `nft_compat`; see [`Mechanism`].
//! [`Family::BRIDGE`] needs `nft_queue`. `CAP_NET_ADMIN` is needed in the user namespace that owns
//! the network namespace.

mod expressions;
mod flow;
mod install;
mod installed;
mod requests;
mod rule;
mod transaction;

pub use self::install::Rules;
pub use self::installed::InstalledRules;
pub use self::rule::Rule;
// What rules are made of, too; their pages are at the root.
#[doc(no_inline)]
pub use crate::{Family, FlowBypass, FlowMarks, Hook, Protocol};

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
