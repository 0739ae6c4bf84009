//! One rule: what it matches and which queue it feeds.

use std::ops::RangeInclusive;

use super::{Family, Hook, Protocol};
use crate::ip::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// `IFNAMSIZ`, the length of an interface name with its NUL.
const INTERFACE_NAME_MAX: usize = 16;

/// A rule: packets that match everything it names go to its queue; without a match, every packet.
///
/// What cannot be expressed is reported by [`Rules::install`](super::Rules::install).
///
/// ```
/// use netfilterqueue::rules::{Protocol, Rule};
///
/// let dns = Rule::queue(1).protocol(Protocol::UDP).destination_port(53).bypass(true);
/// let spread = Rule::queues(0..=3).input_interface("eth0").cpu_fanout(true);
/// # let _ = (dns, spread);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a rule does nothing until it is installed"]
pub struct Rule {
    pub(super) queues: RangeInclusive<u16>,
    pub(super) bypass: bool,
    pub(super) cpu_fanout: bool,
    pub(super) matches: Matches,
}

/// What a rule asks of a packet. `None` matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Matches {
    pub(super) input_interface: Option<String>,
    pub(super) output_interface: Option<String>,
    pub(super) mark: Option<Mark>,
    pub(super) ethertype: Option<u16>,
    pub(super) protocol: Option<Protocol>,
    pub(super) source_port: Option<u16>,
    pub(super) destination_port: Option<u16>,
}

/// A packet matches if its mark, cut down to `mask`, is `value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) value: u32,
    pub(super) mask: u32,
}

impl Rule {
    /// Sends packets to one queue.
    pub fn queue(number: u16) -> Self {
        Self::queues(number..=number)
    }

    /// Spreads packets over consecutive queues, at most 65535 of them. The kernel chooses by a hash
    /// over the two addresses and the protocol, the same for both directions, without the ports; so
    /// one connection stays in one queue. Each queue needs a listener.
    pub fn queues(numbers: RangeInclusive<u16>) -> Self {
        Self { queues: numbers, bypass: false, cpu_fanout: false, matches: Matches::default() }
    }

    /// Lets packets pass while no program listens on the queue, instead of dropping them (the
    /// default). Says nothing about a queue that is full: that is the queue's fail-open option.
    pub fn bypass(mut self, bypass: bool) -> Self {
        self.bypass = bypass;
        self
    }

    /// Chooses among several queues by the number of the CPU that handles the packet instead of by
    /// hash, modulo the count of queues. Of no effect with one queue.
    pub fn cpu_fanout(mut self, cpu_fanout: bool) -> Self {
        self.cpu_fanout = cpu_fanout;
        self
    }

    /// Only frames of this ethertype (host order): 0x0800 IPv4, 0x86dd IPv6, 0x0806 ARP; behind a
    /// VLAN tag the inner one. Of use in [`Family::BRIDGE`]; the other families know no others than
    /// the first two.
    pub fn ethertype(mut self, ethertype: u16) -> Self {
        self.matches.ethertype = Some(ethertype);
        self
    }

    /// Only packets of this protocol. IPv6 extension headers are skipped to find it.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.matches.protocol = Some(protocol);
        self
    }

    /// Only packets from this port. Needs a [`protocol`](Self::protocol) with ports: TCP, UDP,
    /// UDP-Lite, SCTP or DCCP.
    ///
    /// Fragments after the first carry no ports and do not match, unless connection tracking (or
    /// another user of the kernel's defragmentation) has put them together before.
    pub fn source_port(mut self, port: u16) -> Self {
        self.matches.source_port = Some(port);
        self
    }

    /// Only packets to this port; see [`source_port`](Self::source_port).
    pub fn destination_port(mut self, port: u16) -> Self {
        self.matches.destination_port = Some(port);
        self
    }

    /// Only packets that came in through this interface: its exact name, 1 to 15 bytes. It need not
    /// exist yet. Never matches at [`Hook::OUTPUT`], where it is refused, nor at
    /// [`Hook::POSTROUTING`] packets that this host made. In [`Family::BRIDGE`] it is the bridge's
    /// port, and refused at [`Hook::POSTROUTING`] too.
    pub fn input_interface(mut self, name: impl Into<String>) -> Self {
        self.matches.input_interface = Some(name.into());
        self
    }

    /// Only packets that will leave through this interface: its exact name, 1 to 15 bytes. It need
    /// not exist yet. Refused at [`Hook::PREROUTING`] and [`Hook::INPUT`], where none is known. In
    /// [`Family::BRIDGE`] it is the bridge's port.
    pub fn output_interface(mut self, name: impl Into<String>) -> Self {
        self.matches.output_interface = Some(name.into());
        self
    }

    /// Only packets with exactly this mark (the host's own number, never on the wire). 0 matches
    /// packets that have none.
    pub fn mark(self, mark: u32) -> Self {
        self.mark_masked(mark, u32::MAX)
    }

    /// Only packets whose mark has, in the bits that are set in `mask`, the bits of `value`.
    /// `value` may set no other bits.
    pub fn mark_masked(mut self, value: u32, mask: u32) -> Self {
        self.matches.mark = Some(Mark { value, mask });
        self
    }

    /// How many queues it feeds: the kernel counts them in 16 bits.
    pub(super) fn queue_count(&self) -> Result<u16, &'static str> {
        let (first, last) = (*self.queues.start(), *self.queues.end());
        last.checked_sub(first)
            .ok_or("the range of queues is empty")?
            .checked_add(1)
            .ok_or("a rule feeds at most 65535 queues")
    }

    /// Finds what the kernel would refuse without a word, or accept and never match.
    pub(super) fn check(&self, family: Family, hook: Hook) -> Result<(), &'static str> {
        self.queue_count()?;
        let matches = &self.matches;
        let has_ports = matches.protocol.is_some_and(Protocol::has_ports);
        if (matches.source_port.is_some() || matches.destination_port.is_some()) && !has_ports {
            return Err("a port needs a protocol that has ports: TCP, UDP, UDP-Lite, SCTP or DCCP");
        }
        if matches.ethertype.is_some_and(|ethertype| !carries(family, ethertype)) {
            return Err("the family has no packets of that ethertype");
        }
        if matches.mark.is_some_and(|mark| mark.value & !mark.mask != 0) {
            return Err("the mark has bits outside its mask");
        }
        for name in [&matches.input_interface, &matches.output_interface].into_iter().flatten() {
            if name.is_empty() || name.len() >= INTERFACE_NAME_MAX || name.contains('\0') {
                return Err("the name of an interface has 1 to 15 bytes");
            }
        }
        if matches.input_interface.is_some() && hook == Hook::OUTPUT {
            return Err("packets at the output hook came in through no interface");
        }
        // The kernel does not hand it on to there, other than with routed packets.
        if matches.input_interface.is_some()
            && (family, hook) == (Family::BRIDGE, Hook::POSTROUTING)
        {
            return Err("at the postrouting hook of the bridge family no input interface is known");
        }
        if matches.output_interface.is_some() && matches!(hook, Hook::PREROUTING | Hook::INPUT) {
            return Err("at the prerouting and input hooks no output interface is known");
        }
        Ok(())
    }
}

/// Whether a family has packets of an ethertype.
const fn carries(family: Family, ethertype: u16) -> bool {
    match family {
        Family::BRIDGE => true,
        Family::IPV4 => ethertype == ETHERTYPE_IPV4,
        Family::IPV6 => ethertype == ETHERTYPE_IPV6,
        _ => matches!(ethertype, ETHERTYPE_IPV4 | ETHERTYPE_IPV6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(rule: &Rule, hook: Hook) -> &'static str {
        refusal_in(Family::INET, rule, hook)
    }

    fn refusal_in(family: Family, rule: &Rule, hook: Hook) -> &'static str {
        match rule.check(family, hook) {
            Err(reason) => reason,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn ports_need_a_protocol_that_has_them() {
        for protocol in [6, 17, 33, 132, 136] {
            let rule = Rule::queue(1).protocol(Protocol(protocol)).source_port(1);
            assert!(rule.check(Family::INET, Hook::INPUT).is_ok(), "{protocol}");
        }
        for rule in [
            Rule::queue(1).source_port(1),
            Rule::queue(1).destination_port(1),
            Rule::queue(1).protocol(Protocol::ICMP).destination_port(1),
        ] {
            assert!(refusal(&rule, Hook::INPUT).starts_with("a port needs"));
        }
    }

    #[test]
    fn interface_names_have_1_to_15_bytes() {
        for name in ["", "sixteen-bytes-16", "nul\0"] {
            let rule = Rule::queue(1).input_interface(name);
            assert!(refusal(&rule, Hook::INPUT).starts_with("the name"), "{name:?}");
        }
        assert!(
            Rule::queue(1)
                .input_interface("fifteen-bytes15")
                .check(Family::INET, Hook::INPUT)
                .is_ok()
        );
    }

    #[test]
    fn interfaces_only_where_the_hook_knows_them() {
        let input = Rule::queue(1).input_interface("lo");
        let output = Rule::queue(1).output_interface("lo");
        for (hook, input_ok, output_ok) in [
            (Hook::PREROUTING, true, false),
            (Hook::INPUT, true, false),
            (Hook::FORWARD, true, true),
            (Hook::OUTPUT, false, true),
            (Hook::POSTROUTING, true, true),
        ] {
            assert_eq!(input.check(Family::INET, hook).is_ok(), input_ok, "{hook:?}");
            assert_eq!(output.check(Family::INET, hook).is_ok(), output_ok, "{hook:?}");
        }
    }

    #[test]
    fn bridged_frames_at_postrouting_have_forgotten_where_they_came_from() {
        let rule = Rule::queue(1).input_interface("left");
        assert!(rule.check(Family::BRIDGE, Hook::FORWARD).is_ok());
        let reason = refusal_in(Family::BRIDGE, &rule, Hook::POSTROUTING);
        assert!(reason.contains("bridge"), "{reason}");
    }

    #[test]
    fn ethertypes_are_those_of_the_family() {
        for (family, [ipv4, ipv6, arp]) in [
            (Family::INET, [true, true, false]),
            (Family::IPV4, [true, false, false]),
            (Family::IPV6, [false, true, false]),
            (Family::BRIDGE, [true, true, true]),
        ] {
            for (ethertype, ok) in [(0x0800, ipv4), (0x86dd, ipv6), (0x0806, arp)] {
                let rule = Rule::queue(1).ethertype(ethertype);
                assert_eq!(rule.check(family, Hook::FORWARD).is_ok(), ok, "{family} {ethertype:x}");
            }
        }
    }

    #[test]
    #[expect(clippy::reversed_empty_ranges)]
    fn ranges_of_queues() {
        assert_eq!(Rule::queues(2..=5).queue_count().ok(), Some(4));
        assert_eq!(Rule::queue(65535).queue_count().ok(), Some(1));
        assert_eq!(Rule::queues(1..=65535).queue_count().ok(), Some(65535));
        assert!(refusal(&Rule::queues(0..=65535), Hook::INPUT).contains("65535"));
        assert!(refusal(&Rule::queues(5..=4), Hook::INPUT).contains("empty"));
    }

    #[test]
    fn a_mark_stays_within_its_mask() {
        assert!(Rule::queue(1).mark(0).check(Family::INET, Hook::INPUT).is_ok());
        assert!(Rule::queue(1).mark_masked(0x10, 0xf0).check(Family::INET, Hook::INPUT).is_ok());
        assert!(refusal(&Rule::queue(1).mark_masked(0x11, 0xf0), Hook::INPUT).contains("mask"));
    }
}
