//! What kernels may lack, and the refusal that says so: a test of such a feature still has
//! something to assert on a kernel without it.

#![allow(dead_code, reason = "every test binary that includes this file uses a part of it")]

use std::env;
use std::fmt::Display;
use std::fs;
use std::io::Write;

use netfilterqueue::rules::{Family, Hook, InstalledRules, Mechanism, Rule, Rules};
use netfilterqueue::{ConfigFlags, Error, Queue, QueueBuilder};

/// The features that the kernel must have, by the names given to [`lacks`] with spaces between
/// them: for a run on a kernel that has them.
const REQUIRED: &str = "NETFILTERQUEUE_REQUIRE_FEATURES";

/// The file that what is lacking is added to, a line each time: for a run that sums up.
const NOTES: &str = "NETFILTERQUEUE_NOTES";

/// What kernels have since a version that this library still works without.
const SINCE: [(&str, (u32, u32)); 5] = [
    ("time namespaces", (5, 6)),
    ("owner tables", (5, 12)),
    ("UDP super-packets", (5, 14)),
    ("priority", (5, 18)),
    ("cgroup class id", (6, 4)),
];

/// Notes how the kernel says that it lacks a feature; panics if this run requires it, or if it came
/// with an earlier version.
#[track_caller]
pub fn lacks(feature: &str, refusal: impl Display) {
    let required = env::var(REQUIRED).unwrap_or_default();
    let is_required = required.split_whitespace().any(|name| name == feature);
    assert!(!is_required, "{feature} is in {REQUIRED}, but: {refusal}");
    let since = SINCE.iter().find(|(name, _)| *name == feature).map(|(_, since)| *since);
    if let Some((major, minor)) = since {
        let here = version();
        assert!(here < (major, minor), "{feature} is there since {major}.{minor}, but: {refusal}");
        note("lacks", &format!("{feature} (since {major}.{minor})"), refusal);
    } else {
        note("lacks", feature, refusal);
    }
}

/// Notes what could not be tested here, through no fault of the kernel.
pub fn untested(what: &str, why: impl Display) {
    note("untested", what, why);
}

fn note(kind: &str, what: &str, why: impl Display) {
    let line = format!("{kind} {what}: {}\n", why.to_string().replace('\n', " "));
    eprint!("{line}");
    if let Some(path) = env::var_os(NOTES) {
        let file = fs::OpenOptions::new().append(true).create(true).open(path);
        // In one piece, for others write there as well.
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("it is noted down");
    }
}

/// Checks the priority of a packet that another queue or a socket has set.
#[track_caller]
pub fn expect_priority(told: Option<u32>, set: u32) {
    match told {
        // Zero is what packets have of themselves, and never told.
        None if set == 0 => {}
        None => lacks("priority", "it is not told"),
        Some(told) => assert_eq!(told, set),
    }
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

/// What kernels lack that do not take bytes of frames back.
pub const FRAME_EDITS: &str = "edits of bridged frames (up to 7.1)";

/// Whether bytes may come back here: since 7.2 only where the initial user namespace is in charge.
pub fn takes_bytes() -> bool {
    let users = fs::read_to_string("/proc/self/uid_map").unwrap();
    version() < (7, 2) || users.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Before `br_netfilter` takes packets out, should it be loaded.
pub const BEFORE_BR_NETFILTER: i32 = -100;

/// Whether the kernel has nft's `queue` expression, without which there are no rules in the bridge
/// family.
pub fn has_nft_queue() -> bool {
    let rules = Rules::new(Hook::INPUT).rule(Rule::queue(0).mark(u32::MAX)).install().unwrap();
    rules.mechanism() == Mechanism::NftQueue
}

/// Installs rules for frames that cross a bridge. Where the kernel cannot queue them it says so,
/// and can queue IP packets only by the target, which the bridge family does not have.
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
            drop(builder.bind().expect("the queue without the flag"));
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
