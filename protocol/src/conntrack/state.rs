//! What conntrack knows about a flow: the packet's part in it, the entry's status bits, the state
//! of a TCP connection.

use std::fmt;

use crate::bits::bit_set;
use crate::constants::*;

/// `NFQA_CT_INFO`: a packet's relation to its conntrack entry, an `IP_CT_*` number
/// (`netfilter/nf_conntrack_common.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_structs, reason = "a number of the kernel's, whatever it is")]
pub struct ConntrackInfo(
    /// The number.
    pub u32,
);

impl ConntrackInfo {
    /// Of a flow that has been answered, in its original direction (`IP_CT_ESTABLISHED`).
    pub const ESTABLISHED: Self = Self(IP_CT_ESTABLISHED);
    /// First packet of an expected flow, or an ICMP error about a flow (`IP_CT_RELATED`).
    pub const RELATED: Self = Self(IP_CT_RELATED);
    /// Of a flow that has not been answered: its first packet or a further one in the same
    /// direction (`IP_CT_NEW`).
    pub const NEW: Self = Self(IP_CT_NEW);
    /// Of a flow that has been answered, in its reply direction; the first answer as well
    /// (`IP_CT_ESTABLISHED_REPLY`).
    pub const ESTABLISHED_REPLY: Self = Self(IP_CT_ESTABLISHED_REPLY);
    /// As [`ConntrackInfo::RELATED`], in the reply direction (`IP_CT_RELATED_REPLY`).
    pub const RELATED_REPLY: Self = Self(IP_CT_RELATED_REPLY);

    /// Whether the packet goes in the reply direction of its flow.
    #[must_use]
    pub const fn is_reply(self) -> bool {
        self.0 >= IP_CT_IS_REPLY
    }

    /// The name that rules have for it (`ct state`), with ` reply` after it in the reply direction.
    /// `None` for other numbers.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::ESTABLISHED => "established",
            Self::RELATED => "related",
            Self::NEW => "new",
            Self::ESTABLISHED_REPLY => "established reply",
            Self::RELATED_REPLY => "related reply",
            _ => return None,
        })
    }
}

/// The name, or `conntrack info 7`.
impl fmt::Display for ConntrackInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "conntrack info {}", self.0),
        }
    }
}

/// `CTA_STATUS`: a set of `IPS_*` bits (`netfilter/nf_conntrack_common.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[expect(clippy::exhaustive_structs, reason = "a number of the kernel's, whatever it is")]
pub struct ConntrackStatus(
    /// The bits.
    pub u32,
);

impl ConntrackStatus {
    /// The flow was expected by another one.
    pub const EXPECTED: Self = Self(IPS_EXPECTED);
    /// Packets of both directions were seen.
    pub const SEEN_REPLY: Self = Self(IPS_SEEN_REPLY);
    /// The entry is not dropped early when the table is full.
    pub const ASSURED: Self = Self(IPS_ASSURED);
    /// The entry is in the table.
    pub const CONFIRMED: Self = Self(IPS_CONFIRMED);
    /// The source address is translated in the original direction.
    pub const SRC_NAT: Self = Self(IPS_SRC_NAT);
    /// The destination address is translated in the original direction.
    pub const DST_NAT: Self = Self(IPS_DST_NAT);
    /// TCP sequence numbers are adjusted.
    pub const SEQ_ADJUST: Self = Self(IPS_SEQ_ADJUST);
    /// Whether to translate the source address has been decided.
    pub const SRC_NAT_DONE: Self = Self(IPS_SRC_NAT_DONE);
    /// Whether to translate the destination address has been decided.
    pub const DST_NAT_DONE: Self = Self(IPS_DST_NAT_DONE);
    /// The entry is no longer in the table.
    pub const DYING: Self = Self(IPS_DYING);
    /// Packets do not prolong the timeout, and the kernel refuses another one.
    pub const FIXED_TIMEOUT: Self = Self(IPS_FIXED_TIMEOUT);
    /// Not a flow but a rule's template for flows.
    pub const TEMPLATE: Self = Self(IPS_TEMPLATE);
    /// Obsolete; newer kernels use the bit for themselves.
    pub const UNTRACKED: Self = Self(IPS_UNTRACKED);
    /// A rule or a program attached a helper.
    pub const HELPER: Self = Self(IPS_HELPER);
    /// The flow is in a flow table and bypasses the hooks. Since 4.16.
    pub const OFFLOAD: Self = Self(IPS_OFFLOAD);
    /// The flow is in the hardware's flow table.
    pub const HW_OFFLOAD: Self = Self(IPS_HW_OFFLOAD);

    const NAMES: [(u32, &'static str); 16] = [
        (IPS_EXPECTED, "IPS_EXPECTED"),
        (IPS_SEEN_REPLY, "IPS_SEEN_REPLY"),
        (IPS_ASSURED, "IPS_ASSURED"),
        (IPS_CONFIRMED, "IPS_CONFIRMED"),
        (IPS_SRC_NAT, "IPS_SRC_NAT"),
        (IPS_DST_NAT, "IPS_DST_NAT"),
        (IPS_SEQ_ADJUST, "IPS_SEQ_ADJUST"),
        (IPS_SRC_NAT_DONE, "IPS_SRC_NAT_DONE"),
        (IPS_DST_NAT_DONE, "IPS_DST_NAT_DONE"),
        (IPS_DYING, "IPS_DYING"),
        (IPS_FIXED_TIMEOUT, "IPS_FIXED_TIMEOUT"),
        (IPS_TEMPLATE, "IPS_TEMPLATE"),
        (IPS_UNTRACKED, "IPS_UNTRACKED"),
        (IPS_HELPER, "IPS_HELPER"),
        (IPS_OFFLOAD, "IPS_OFFLOAD"),
        (IPS_HW_OFFLOAD, "IPS_HW_OFFLOAD"),
    ];
}

bit_set!(ConntrackStatus);

/// State of a TCP connection, a `TCP_CONNTRACK_*` number (`netfilter/nf_conntrack_tcp.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_structs, reason = "a number of the kernel's, whatever it is")]
pub struct TcpState(
    /// The number.
    pub u8,
);

impl TcpState {
    /// No packet was looked at yet.
    pub const NONE: Self = Self(TCP_CONNTRACK_NONE);
    /// A SYN was seen.
    pub const SYN_SENT: Self = Self(TCP_CONNTRACK_SYN_SENT);
    /// A SYN was answered with SYN and ACK.
    pub const SYN_RECV: Self = Self(TCP_CONNTRACK_SYN_RECV);
    /// The handshake is over.
    pub const ESTABLISHED: Self = Self(TCP_CONNTRACK_ESTABLISHED);
    /// One side sent a FIN.
    pub const FIN_WAIT: Self = Self(TCP_CONNTRACK_FIN_WAIT);
    /// The other side acknowledged the FIN.
    pub const CLOSE_WAIT: Self = Self(TCP_CONNTRACK_CLOSE_WAIT);
    /// The other side sent a FIN as well.
    pub const LAST_ACK: Self = Self(TCP_CONNTRACK_LAST_ACK);
    /// Both FINs are acknowledged.
    pub const TIME_WAIT: Self = Self(TCP_CONNTRACK_TIME_WAIT);
    /// A RST was seen.
    pub const CLOSE: Self = Self(TCP_CONNTRACK_CLOSE);
    /// Both sides sent a SYN.
    pub const SYN_SENT2: Self = Self(TCP_CONNTRACK_SYN_SENT2);

    /// The name that `conntrack -L` has for it. `None` for other numbers.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::NONE => "NONE",
            Self::SYN_SENT => "SYN_SENT",
            Self::SYN_RECV => "SYN_RECV",
            Self::ESTABLISHED => "ESTABLISHED",
            Self::FIN_WAIT => "FIN_WAIT",
            Self::CLOSE_WAIT => "CLOSE_WAIT",
            Self::LAST_ACK => "LAST_ACK",
            Self::TIME_WAIT => "TIME_WAIT",
            Self::CLOSE => "CLOSE",
            Self::SYN_SENT2 => "SYN_SENT2",
            _ => return None,
        })
    }
}

/// The name, or `TCP state 12`.
impl fmt::Display for TcpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "TCP state {}", self.0),
        }
    }
}
