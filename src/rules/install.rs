//! Rules to install, and the ways to do it that kernels may leave.

use std::{iter, process};

use netlink_packet_netfilter::NetfilterProtoFamily;

use super::expressions::{self, Expression};
use super::installed::{ChainRules, InstalledRules};
use super::transaction::{Connection, Failure, Request};
use super::{Mechanism, Rule, flow, requests};
use crate::errno::Errno;
use crate::error::Error;
use crate::flow::{FlowBypass, FlowMarks};
use crate::hook::{Family, Hook};

/// How many names are tried for the table; one is enough unless a killed process left its own.
const NAMES: u32 = 16;

/// `NF_IP_PRI_CONNTRACK`: where packets get their conntrack entry.
const CONNTRACK_PRIORITY: i32 = -200;

/// Rules to install: one base chain at one hook.
///
/// They are tried in the order given; the first that matches queues the packet, and what none
/// matches goes on. An accepted packet goes on behind this chain: the later rules do not see it.
#[derive(Debug, Clone)]
#[must_use = "rules do nothing until they are installed"]
pub struct Rules {
    hook: Hook,
    family: Family,
    priority: i32,
    rules: Vec<Rule>,
    flow_marks: Option<FlowMarks>,
}

impl Rules {
    /// No rules yet, at `hook`, for IPv4 and IPv6, at priority 0.
    pub const fn new(hook: Hook) -> Self {
        Self { hook, family: Family::INET, priority: 0, rules: Vec::new(), flow_marks: None }
    }

    /// For which IP versions, or for bridged frames. [`Family::INET`] unless set. Others cannot be
    /// queued.
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
    /// In [`Family::BRIDGE`] the filter has -200. `br_netfilter`, where it is loaded and told to,
    /// takes packets out at -1 and puts them back behind 0: at the forward hook, rules at 0 then
    /// miss some or all of them.
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

    /// Lets the program decide about whole flows:
    /// [`Packet::accept_flow`](crate::Packet::accept_flow) and
    /// [`Packet::drop_flow`](crate::Packet::drop_flow). Adds a second chain, at the priority behind
    /// the first; see [the module](super#flow-bypass).
    ///
    /// The lowest priorities at the prerouting and output hooks, up to -200, are too early for it,
    /// where connection tracking has not seen the packet, and the highest one has none behind it.
    pub const fn flow_bypass(mut self, marks: FlowMarks) -> Self {
        self.flow_marks = Some(marks);
        self
    }

    /// Installs the rules in the network namespace of the calling thread, all of them or none.
    /// Packets that wait in queues stay, unless it fails with [`Error::NoFlowSupport`]: then the
    /// kernel drops them, as [when rules go](super#taking-rules-away-drops-queued-packets).
    ///
    /// Queue first, rules second: bind the queue before, so that no packet finds it without a
    /// listener.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidRule`]: there is no rule, too many, or one that cannot be expressed.
    /// - [`Error::NoCapability`]: `CAP_NET_ADMIN` is missing.
    /// - [`Error::NoRuleSupport`]: the kernel has no `nf_tables`, or it has neither `nft_queue` nor
    ///   `nft_compat` with `xt_NFQUEUE`; for [`Family::BRIDGE`] only `nft_queue` will do.
    /// - [`Error::NoFlowSupport`]: the kernel cannot keep what is decided about flows.
    /// - [`Error::Refused`]: the kernel refused for another reason.
    /// - [`Error::AckTimeout`], [`Error::System`]: the kernel could not be asked.
    pub fn install(self) -> Result<InstalledRules, Error> {
        self.check()?;
        let family = NetfilterProtoFamily::from(self.family.0);
        let mut connection = Connection::open()?;
        let mut attempt = Attempt::first(self.family);
        loop {
            let table = attempt.table(connection.port());
            let plan = self.plan(&table, attempt)?;
            let mut commit = |parts| commit(&mut connection, family, parts);
            let done = commit(plan.rehearsal(&table)).and_then(|()| commit(plan.installation()));
            match done {
                Ok(()) => {
                    let bypass = self.flow_marks.map(FlowBypass::assume_installed);
                    let rules = plan.queue_chain;
                    let installed =
                        InstalledRules::new(connection, family, attempt, table, rules, bypass);
                    return Ok(installed);
                }
                Err((part, failure)) => attempt = attempt.after(part, failure)?,
            }
        }
    }

    /// Finds what the kernel would refuse without a word, or accept and never match.
    fn check(&self) -> Result<(), Error> {
        if self.rules.is_empty() {
            return Err(Error::invalid_rules("there is no rule to install"));
        }
        if !matches!(self.family, Family::INET | Family::IPV4 | Family::IPV6 | Family::BRIDGE) {
            return Err(Error::invalid_rules(
                "packets can be queued in the families inet, ip, ip6 and bridge only",
            ));
        }
        if self.hook > Hook::POSTROUTING {
            return Err(Error::invalid_rules("packets can be queued at hooks 0 to 4 only"));
        }
        if self.flow_marks.is_some() {
            let is_first = matches!(self.hook, Hook::PREROUTING | Hook::OUTPUT);
            if is_first && self.priority <= CONNTRACK_PRIORITY {
                return Err(Error::invalid_rules(
                    "flow bypass at the prerouting and output hooks needs a priority above -200, \
                     where connection tracking begins",
                ));
            }
            if self.priority == i32::MAX {
                return Err(Error::invalid_rules(
                    "flow bypass needs a priority with one behind it",
                ));
            }
        }
        self.rules.iter().enumerate().try_for_each(|(place, rule)| {
            let named = |reason| Error::InvalidRule { rule: Some(place), reason };
            rule.check(self.family, self.hook).map_err(named)
        })
    }

    fn plan(&self, table: &str, attempt: Attempt) -> Result<Plan, Error> {
        let rules = |chain, rules: Vec<Vec<Expression>>| {
            rules.into_iter().map(|rule| requests::new_rule(table, chain, rule)).collect()
        };
        let chain = |name, priority| requests::new_chain(table, name, self.hook, priority);
        let queueing: Result<_, _> =
            self.rules.iter().map(|rule| expressions::rule(rule, attempt.mechanism)).collect();
        let mut plan = Plan {
            table: requests::new_table(table, attempt.owned),
            chains: vec![chain(requests::QUEUE, self.priority)],
            remember: Vec::new(),
            queue_chain: ChainRules {
                decided: Vec::new(),
                queueing: rules(requests::QUEUE, queueing?),
            },
        };
        if let Some(marks) = self.flow_marks {
            plan.chains.push(chain(requests::REMEMBER, self.priority + 1));
            plan.remember = rules(requests::REMEMBER, flow::remember(marks).into());
            plan.queue_chain.decided = rules(requests::QUEUE, flow::decided(marks).into());
        }
        Ok(plan)
    }
}

/// The transaction that installs, by what its messages are for.
struct Plan {
    table: Request,
    chains: Vec<Request>,
    remember: Vec<Request>,
    queue_chain: ChainRules,
}

/// What a refused message was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Table,
    Chain,
    Flow,
    Queue,
}

/// The messages of a transaction, in their order.
type Parts = Vec<(Part, Request)>;

impl Plan {
    /// Finds out whether the kernel can do it, with a chain that has no hook and is gone again at
    /// once. When the kernel takes back a hook that it has just made, because a rule behind it is
    /// refused, it drops all packets that wait in queues of the network namespace.
    ///
    /// Rules about flows are left out: they turn connection tracking on, whose hooks would be taken
    /// back as well.
    fn rehearsal(&self, table: &str) -> Parts {
        let chain = requests::new_unhooked_chain(table, requests::QUEUE);
        iter::once((Part::Table, self.table.clone()))
            .chain([(Part::Chain, chain)])
            .chain(with(Part::Queue, &self.queue_chain.queueing))
            .chain([(Part::Table, requests::delete_table(table))])
            .collect()
    }

    fn installation(&self) -> Parts {
        let ChainRules { decided, queueing } = &self.queue_chain;
        iter::once((Part::Table, self.table.clone()))
            .chain(with(Part::Chain, &self.chains))
            .chain(with(Part::Flow, &self.remember))
            .chain(with(Part::Flow, decided))
            .chain(with(Part::Queue, queueing))
            .collect()
    }
}

fn with(part: Part, requests: &[Request]) -> impl Iterator<Item = (Part, Request)> {
    requests.iter().map(move |request| (part, request.clone()))
}

/// Tells of a refusal also what the refused message was for.
fn commit(
    connection: &mut Connection,
    family: NetfilterProtoFamily,
    parts: Parts,
) -> Result<(), (Option<Part>, Failure)> {
    let (parts, requests): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    connection.commit(family, requests).map_err(|failure| (refused(&parts, &failure), failure))
}

fn refused(parts: &[Part], failure: &Failure) -> Option<Part> {
    match failure {
        Failure::Refused { request, .. } => request.and_then(|place| parts.get(place).copied()),
        Failure::Unanswered(_) => None,
    }
}

/// One way to install; a refusal leads to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    name: u32,
    pub(super) owned: bool,
    pub(super) mechanism: Mechanism,
    /// What is left to try.
    fallback: Option<Mechanism>,
}

impl Attempt {
    const fn first(family: Family) -> Self {
        let fallback = match family {
            // nft_compat knows no such target there.
            Family::BRIDGE => None,
            _ => Some(Mechanism::XtNfqueue),
        };
        Self { name: 0, owned: true, mechanism: Mechanism::NftQueue, fallback }
    }

    /// Unique among living processes by the socket's port id, and telling an administrator which
    /// process it is.
    fn table(self, port: u32) -> String {
        let process = process::id();
        let number = if self.name == 0 { String::new() } else { format!("-{}", self.name) };
        format!("netfilterqueue-{process}-{port:x}{number}")
    }

    fn after(self, part: Option<Part>, failure: Failure) -> Result<Self, Error> {
        let Failure::Refused { errno, .. } = failure else {
            return Err(failure.into());
        };
        match (part, errno) {
            (Some(Part::Table), Errno::EEXIST) if self.name + 1 < NAMES => {
                Ok(Self { name: self.name + 1, ..self })
            }
            // Kernels before 5.12 do not know the owner flag.
            (Some(Part::Table), Errno::EINVAL | Errno::EOPNOTSUPP) if self.owned => {
                Ok(Self { owned: false, ..self })
            }
            // No base chains in this family.
            (Some(Part::Chain), Errno::ENOENT) => Err(Error::NoRuleSupport),
            // No nft_ct, one without marks, no nf_conntrack_bridge.
            (Some(Part::Flow), Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EPROTO) => {
                Err(Error::NoFlowSupport)
            }
            (Some(Part::Queue), Errno::ENOENT) => match self.fallback {
                Some(mechanism) => Ok(Self { mechanism, fallback: None, ..self }),
                None => Err(Error::NoRuleSupport),
            },
            _ => Err(failure.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_netfilter::nftables::{ChainAttribute, NfTablesMessage};

    use super::*;

    #[test]
    fn a_refusal_is_told_by_the_place_of_its_message() {
        use Part::{Chain, Flow, Queue, Table};
        let rules = Rules::new(Hook::INPUT).rule(Rule::queue(1)).rule(Rule::queue(2));
        let rules = rules.flow_bypass(FlowMarks::default());
        let plan = rules.plan("t", Attempt::first(Family::INET)).expect("a plan");
        let parts = |parts: Parts| parts.into_iter().map(|(part, _)| part).collect::<Vec<_>>();
        // Five rules that remember, three that decide, two that queue.
        let installation = parts(plan.installation());
        let flow = [Flow; 8];
        assert_eq!(installation, [&[Table, Chain, Chain][..], &flow, &[Queue, Queue]].concat());
        assert_eq!(parts(plan.rehearsal("t")), [Table, Chain, Queue, Queue, Table]);
        let at = |request| Failure::Refused { request, errno: Errno::ENOENT, explanation: None };
        assert_eq!(refused(&installation, &at(Some(2))), Some(Chain));
        assert_eq!(refused(&installation, &at(Some(3))), Some(Flow));
        assert_eq!(refused(&installation, &at(Some(12))), Some(Queue));
        assert_eq!(refused(&installation, &at(Some(13))), None);
        assert_eq!(refused(&installation, &at(None)), None);
    }

    /// What is refused because of a rule must not have made a hook by then.
    #[test]
    fn a_rehearsal_has_no_hook() {
        let has_hook = |(_, request): &(Part, Request)| {
            let message = &request.message;
            matches!(message, NfTablesMessage::NewChain(chain)
                if chain.attributes.iter().any(|it| matches!(it, ChainAttribute::Hook(_))))
        };
        let rules = Rules::new(Hook::INPUT).rule(Rule::queue(1)).flow_bypass(FlowMarks::default());
        let plan = rules.plan("t", Attempt::first(Family::INET)).expect("a plan");
        assert_eq!(plan.installation().iter().filter(|part| has_hook(part)).count(), 2);
        assert_eq!(plan.rehearsal("t").iter().filter(|part| has_hook(part)).count(), 0);
    }

    fn after(attempt: Attempt, part: Part, errno: Errno) -> Result<Attempt, Error> {
        let failure = Failure::Refused { request: Some(0), errno, explanation: None };
        attempt.after(Some(part), failure)
    }

    #[test]
    fn a_refusal_leads_to_the_next_attempt() {
        let first = Attempt::first(Family::INET);
        let after = |part, errno| after(first, part, errno).ok();
        let unowned = Attempt { owned: false, ..first };
        assert_eq!(after(Part::Table, Errno::EOPNOTSUPP), Some(unowned));
        assert_eq!(after(Part::Table, Errno::EINVAL), Some(unowned));
        let compat = Attempt { mechanism: Mechanism::XtNfqueue, fallback: None, ..first };
        assert_eq!(after(Part::Queue, Errno::ENOENT), Some(compat));
        let renamed = Attempt { name: 1, ..first };
        assert_eq!(after(Part::Table, Errno::EEXIST), Some(renamed));
        assert_ne!(first.table(5), renamed.table(5));
    }

    #[test]
    fn attempts_come_to_an_end() {
        let first = Attempt::first(Family::INET);
        let last = Attempt {
            name: NAMES - 1,
            owned: false,
            mechanism: Mechanism::XtNfqueue,
            fallback: None,
        };
        for errno in [Errno::EEXIST, Errno::EINVAL, Errno::EOPNOTSUPP] {
            assert!(matches!(
                after(last, Part::Table, errno),
                Err(Error::Refused { errno: found, .. }) if found == errno
            ));
        }
        assert!(matches!(after(last, Part::Queue, Errno::ENOENT), Err(Error::NoRuleSupport)));
        assert!(matches!(
            after(first, Part::Queue, Errno::EPERM),
            Err(Error::Refused { errno: Errno::EPERM, .. })
        ));
    }

    #[test]
    fn what_is_missing_is_told_by_what_was_refused() {
        let first = Attempt::first(Family::INET);
        for errno in [Errno::ENOENT, Errno::EOPNOTSUPP, Errno::EPROTO] {
            assert!(matches!(after(first, Part::Flow, errno), Err(Error::NoFlowSupport)));
        }
        assert!(matches!(after(first, Part::Chain, Errno::ENOENT), Err(Error::NoRuleSupport)));
        let bridge = Attempt::first(Family::BRIDGE);
        assert!(matches!(after(bridge, Part::Queue, Errno::ENOENT), Err(Error::NoRuleSupport)));
    }

    fn refusal(rules: Rules) -> &'static str {
        match rules.install() {
            Err(Error::InvalidRule { reason, .. }) => reason,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn nothing_to_install() {
        assert!(refusal(Rules::new(Hook::INPUT)).contains("no rule"));
        let rules = Rules::new(Hook::OUTPUT).rule(Rule::queue(1).input_interface("lo"));
        assert!(refusal(rules).contains("interface"));
    }

    #[test]
    fn only_some_families_and_hooks_queue() {
        for number in [0, 3, 5, 12, 99] {
            let rules = Rules::new(Hook::INPUT).family(Family(number)).rule(Rule::queue(1));
            assert!(refusal(rules).contains("families"), "{number}");
        }
        for number in [5, 99] {
            let rules = Rules::new(Hook(number)).rule(Rule::queue(1));
            assert!(refusal(rules).contains("hooks"), "{number}");
        }
    }

    #[test]
    fn flow_bypass_needs_conntrack_before_and_a_chain_behind() {
        let rules = |hook, priority| {
            let rules = Rules::new(hook).priority(priority).rule(Rule::queue(1));
            rules.flow_bypass(FlowMarks::default())
        };
        for hook in [Hook::PREROUTING, Hook::OUTPUT] {
            assert!(refusal(rules(hook, -200)).contains("-200"), "{hook}");
            assert!(rules(hook, -199).check().is_ok(), "{hook}");
        }
        assert!(rules(Hook::FORWARD, i32::MIN).check().is_ok());
        assert!(refusal(rules(Hook::FORWARD, i32::MAX)).contains("behind"));
        assert!(rules(Hook::FORWARD, i32::MAX - 1).check().is_ok());
    }
}
