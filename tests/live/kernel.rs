//! What kernels may lack, and the refusal that says so: a test of such a feature still has
//! something to assert on a kernel without it.

use std::env;
use std::fmt::Display;
use std::fs;

use netfilterqueue::rules::{Family, Hook, InstalledRules, Mechanism, Rule, Rules};
use netfilterqueue::{ConfigFlags, Error, Queue, QueueBuilder};

/// The features that the kernel must have, by the names given to [`lacks`] with spaces between
/// them: for a run on a kernel that has them.
const REQUIRED: &str = "NETFILTERQUEUE_REQUIRE_FEATURES";

/// Notes how the kernel says that it lacks a feature; panics if this run requires it.
pub fn lacks(feature: &str, refusal: impl Display) {
    let required = env::var(REQUIRED).unwrap_or_default();
    let is_required = required.split_whitespace().any(|name| name == feature);
    assert!(!is_required, "{feature} is in {REQUIRED}, but: {refusal}");
    eprintln!("this kernel lacks {feature}: {refusal}");
}

/// The kernel's version, such as 6.12.
pub fn version() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Whether bytes may come back for frames that cross a bridge: not since 7.2.
pub fn takes_bytes_of_frames() -> bool {
    version() < (7, 2)
}

/// Whether bytes may come back here: since 7.2 only where the initial user namespace is in charge.
pub fn takes_bytes() -> bool {
    let users = fs::read_to_string("/proc/self/uid_map").unwrap();
    version() < (7, 2) || users.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Before `br_netfilter` takes packets out, should it be loaded.
pub const BEFORE_BR_NETFILTER: i32 = -100;

/// Whether the kernel has nft's `queue` expression, without which there are no rules in the bridge family.
pub fn has_nft_queue() -> bool {
    let rules = Rules::new(Hook::INPUT).rule(Rule::queue(0).mark(u32::MAX)).install().unwrap();
    rules.mechanism() == Mechanism::NftQueue
}

/// Installs rules for frames that cross a bridge. Where the kernel cannot queue them it says so, and can
/// queue IP packets only by the target, which the bridge family does not have.
pub fn install_for_bridge(rules: Rules) -> Option<InstalledRules> {
    match rules.install() {
        Err(error @ Error::NoRuleSupport) => {
            assert!(!has_nft_queue(), "nft_queue is there: {error}");
            lacks("bridge", error);
            None
        }
        result => {
            let rules = result.unwrap();
            assert_eq!(rules.mechanism(), Mechanism::NftQueue);
            Some(rules)
        }
    }
}

/// Queues frames that cross a bridge, where the kernel can.
pub fn queue_bridged(hook: Hook, rule: Rule) -> Option<InstalledRules> {
    install_for_bridge(Rules::new(hook).family(Family::BRIDGE).rule(rule))
}

/// Binds a queue whose packets come with their conntrack entry. Where the kernel cannot do that, it
/// refuses this flag and no other, and no queue is left behind.
pub fn bind_with_conntrack(builder: QueueBuilder) -> Option<Queue> {
    let supported = Queue::supported_flags().unwrap();
    match builder.clone().conntrack(true).bind() {
        Err(error @ Error::FlagsRefused { flags: ConfigFlags::CONNTRACK, .. }) => {
            assert!(!supported.contains(ConfigFlags::CONNTRACK), "{supported}");
            builder.bind().expect("the queue without the flag");
            lacks("conntrack", error);
            None
        }
        result => {
            let queue = result.unwrap();
            assert!(supported.contains(ConfigFlags::CONNTRACK), "{supported}");
            Some(queue)
        }
    }
}
