//! Where in the kernel a packet is queued.

use std::fmt;
use std::str::FromStr;

use netfilterqueue_protocol::constants::*;
use thiserror::Error;

/// A place on a packet's way through the kernel, an `NF_INET_*` number (`linux/netfilter.h`). The
/// bridge family has the same numbers for the same places on a bridged frame's way (`NF_BR_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_structs, reason = "a number of the kernel's, whatever it is")]
pub struct Hook(
    /// The number.
    pub u8,
);

impl Hook {
    /// All arriving packets, before routing decides where they go.
    pub const PREROUTING: Self = Self(NF_INET_PRE_ROUTING);
    /// Packets for this host.
    pub const INPUT: Self = Self(NF_INET_LOCAL_IN);
    /// Packets that are routed (in the bridge family, bridged) through this host.
    pub const FORWARD: Self = Self(NF_INET_FORWARD);
    /// Packets that this host makes.
    pub const OUTPUT: Self = Self(NF_INET_LOCAL_OUT);
    /// All leaving packets, after routing.
    pub const POSTROUTING: Self = Self(NF_INET_POST_ROUTING);

    /// The name that `nft` has for it in this family: number 5 exists only in the bridge family.
    /// `None` for other numbers.
    #[must_use]
    pub const fn name(self, family: Family) -> Option<&'static str> {
        Some(match self.0 {
            NF_INET_PRE_ROUTING => "prerouting",
            NF_INET_LOCAL_IN => "input",
            NF_INET_FORWARD => "forward",
            NF_INET_LOCAL_OUT => "output",
            NF_INET_POST_ROUTING => "postrouting",
            NF_BR_BROUTING if matches!(family, Family::BRIDGE) => "brouting",
            _ => return None,
        })
    }
}

/// Which packets a hook sees, an `NFPROTO_*` number (`linux/netfilter.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_structs, reason = "a number of the kernel's, whatever it is")]
pub struct Family(
    /// The number.
    pub u8,
);

impl Family {
    /// IPv4 and IPv6, for rules; a packet is of one or the other.
    pub const INET: Self = Self(NFPROTO_INET);
    /// IPv4.
    pub const IPV4: Self = Self(NFPROTO_IPV4);
    /// IPv6.
    pub const IPV6: Self = Self(NFPROTO_IPV6);
    /// Frames that cross a bridge, whatever they carry.
    pub const BRIDGE: Self = Self(NFPROTO_BRIDGE);

    /// The name that `nft` has for it. `None` for other numbers.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            NFPROTO_INET => "inet",
            NFPROTO_IPV4 => "ip",
            NFPROTO_IPV6 => "ip6",
            NFPROTO_BRIDGE => "bridge",
            _ => return None,
        })
    }
}

/// The name, or `family 3`.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "family {}", self.0),
        }
    }
}

/// The name, or `hook 7`.
impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name(Family::INET) {
            Some(name) => f.write_str(name),
            None => write!(f, "hook {}", self.0),
        }
    }
}

/// The name as `nft` has it and as it is displayed.
impl FromStr for Hook {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let named = |hook: &Self| hook.name(Family::INET) == Some(name);
        let hook = (NF_INET_PRE_ROUTING..=NF_INET_POST_ROUTING).map(Self).find(named);
        hook.ok_or(UnknownName { what: "hook", names: HOOKS })
    }
}

/// The name as `nft` has it.
impl FromStr for Family {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let families = [Self::INET, Self::IPV4, Self::IPV6, Self::BRIDGE];
        let family = families.into_iter().find(|family| family.name() == Some(name));
        family.ok_or(UnknownName { what: "family", names: FAMILIES })
    }
}

const HOOKS: &str = "prerouting, input, forward, output and postrouting";
const FAMILIES: &str = "inet, ip, ip6 and bridge";

/// No [`Hook`] or [`Family`] has that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no {what} has that name; there are {names}")]
pub struct UnknownName {
    what: &'static str,
    names: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for number in 0..=u8::MAX {
            let (hook, family) = (Hook(number), Family(number));
            if let Some(name) = hook.name(Family::INET) {
                assert_eq!((name.parse(), hook.to_string().as_str()), (Ok(hook), name));
            }
            if let Some(name) = family.name() {
                assert_eq!(name.parse(), Ok(family));
            }
        }
        let error = "outputs".parse::<Hook>().expect_err("no hook").to_string();
        assert!(error.contains("prerouting, input, forward, output and postrouting"), "{error}");
        assert!("ipv4".parse::<Family>().is_err(), "nft has ip");
    }
}
