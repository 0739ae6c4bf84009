//! What is decided about a whole flow, carried by bits of the packet mark and kept by the kernel in
//! the same bits of the conntrack mark. No I/O; the rules that make it work are in `rules`.

/// The bits of the packet mark and of the conntrack mark that stand for a decision about a flow.
/// All other bits of both marks stay as they are.
///
/// Nobody else may use them: a packet that carries them for another reason is taken for decided.
/// The default is `0x1000_0000` for accepted and `0x2000_0000` for dropped.
///
/// ```
/// use netfilterqueue::FlowMarks;
///
/// const MARKS: FlowMarks = FlowMarks::new(0x1, 0x2).unwrap();
/// assert_eq!(MARKS.mask(), 0x3);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowMarks {
    accepted: u32,
    dropped: u32,
}

impl FlowMarks {
    /// The bits that are set for a flow that is accepted and those for one that is dropped (the
    /// host's own numbers, never on the wire). `None` if one of them has no bit, or both have one
    /// in common.
    #[must_use]
    pub const fn new(accepted: u32, dropped: u32) -> Option<Self> {
        if accepted == 0 || dropped == 0 || accepted & dropped != 0 {
            return None;
        }
        Some(Self { accepted, dropped })
    }

    /// The bits of an accepted flow.
    #[must_use]
    pub const fn accepted(self) -> u32 {
        self.accepted
    }

    /// The bits of a dropped flow.
    #[must_use]
    pub const fn dropped(self) -> u32 {
        self.dropped
    }

    /// Both.
    #[must_use]
    pub const fn mask(self) -> u32 {
        self.accepted | self.dropped
    }
}

impl Default for FlowMarks {
    fn default() -> Self {
        Self { accepted: 0x1000_0000, dropped: 0x2000_0000 }
    }
}

/// Proof that rules are in place which carry out what is decided about a flow: what
/// [`Packet::accept_flow`](crate::Packet::accept_flow) and
/// [`Packet::drop_flow`](crate::Packet::drop_flow) ask for. From
/// `rules::InstalledRules::flow_bypass`, or [`FlowBypass::assume_installed`].
///
/// It is good for packets of those rules while they are installed. For packets of other rules, or
/// later, there is nobody to carry out the decision, and **a dropped packet would pass**.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowBypass {
    marks: FlowMarks,
}

impl FlowBypass {
    /// For rules that somebody else has put in place. Without them every flow passes, also one that
    /// is dropped; nothing can check that here.
    ///
    /// With nft, here at the forward hook, for the default marks:
    ///
    /// ```text
    /// table inet flows {
    ///     chain decide {
    ///         type filter hook forward priority 0;
    ///         meta mark & 0x30000000 != 0 accept
    ///         ct mark & 0x30000000 == 0x10000000 accept
    ///         ct mark & 0x30000000 == 0x20000000 drop
    ///         udp dport 53 queue num 1
    ///     }
    ///     chain remember {
    ///         type filter hook forward priority 1;
    ///         meta mark & 0x30000000 == 0 accept
    ///         meta mark & 0x30000000 == 0x10000000 ct mark set ct mark & 0xcfffffff | 0x10000000
    ///         meta mark & 0x30000000 == 0x20000000 ct mark set ct mark & 0xcfffffff | 0x20000000
    ///         meta mark & 0x30000000 == 0x20000000 drop
    ///         meta mark set meta mark & 0xcfffffff
    ///     }
    /// }
    /// ```
    ///
    /// With iptables, and the same with ip6tables. An accepted packet skips the rest of its table's
    /// chain, so the decision is carried out in the chain of a table that comes later, `filter`
    /// after `mangle`:
    ///
    /// ```text
    /// iptables -t mangle -A FORWARD -m connmark --mark 0x10000000/0x30000000 -j ACCEPT
    /// iptables -t mangle -A FORWARD -m connmark --mark 0x20000000/0x30000000 -j DROP
    /// iptables -t mangle -A FORWARD -p udp --dport 53 -j NFQUEUE --queue-num 1
    ///
    /// iptables -N REMEMBER
    /// iptables -A REMEMBER -j CONNMARK --save-mark --nfmask 0x30000000 --ctmask 0x30000000
    /// iptables -A REMEMBER -m mark --mark 0x20000000/0x30000000 -j DROP
    /// iptables -A REMEMBER -j MARK --set-xmark 0x0/0x30000000
    /// iptables -I FORWARD -m mark ! --mark 0x0/0x30000000 -j REMEMBER
    /// ```
    #[must_use]
    pub const fn assume_installed(marks: FlowMarks) -> Self {
        Self { marks }
    }

    /// The bits that its rules understand.
    #[must_use]
    pub const fn marks(self) -> FlowMarks {
        self.marks
    }

    /// The mark that tells the rules to accept the flow of a packet with this mark.
    pub(crate) fn accepting(self, mark: Option<u32>) -> u32 {
        mark.unwrap_or(0) & !self.marks.mask() | self.marks.accepted
    }

    /// The mark that tells the rules to drop it.
    pub(crate) fn dropping(self, mark: Option<u32>) -> u32 {
        mark.unwrap_or(0) & !self.marks.mask() | self.marks.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_two_sets_of_bits() {
        for (accepted, dropped) in [(0, 1), (1, 0), (1, 1), (1, 3), (6, 3)] {
            assert_eq!(FlowMarks::new(accepted, dropped), None, "{accepted} {dropped}");
        }
        assert_eq!(FlowMarks::new(0x30, 0x4).map(FlowMarks::mask), Some(0x34));
        assert_eq!(FlowMarks::default().mask(), 0x3000_0000);
    }

    #[test]
    fn decisions_leave_other_bits_alone() {
        let bypass = FlowBypass::assume_installed(FlowMarks::default());
        assert_eq!(bypass.accepting(None), 0x1000_0000);
        assert_eq!(bypass.dropping(None), 0x2000_0000);
        assert_eq!(bypass.accepting(Some(0xffff_ffff)), 0xdfff_ffff);
        assert_eq!(bypass.dropping(Some(0xffff_ffff)), 0xefff_ffff);
    }
}
