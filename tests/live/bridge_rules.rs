//! Rules for bridged frames, where the kernel can queue them: that takes `nft_queue`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netfilterqueue::rules::{Family, Hook, InstalledRules, Mechanism, Protocol, Rule, Rules};
use netfilterqueue::{Error, Queue};
use netfilterqueue_netns::Namespace;

use crate::rules::{queued_at, udp_rule};
use crate::support::{UdpPair, expect_no_packet, receive_exactly};
use crate::{Test, tests};

pub const TESTS: [Test; 2] = tests![bridged_frames_match, bridged_arp_matches];

/// Before `br_netfilter` takes packets out, should it be loaded.
pub const BEFORE_BR_NETFILTER: i32 = -100;

/// What the kernel has decides whether frames of a bridge can be queued. Without that it must say
/// so: `None`.
pub fn install_for_bridge(rules: Rules) -> Option<InstalledRules> {
    match rules.install() {
        Ok(rules) => {
            assert_eq!(rules.mechanism(), Mechanism::NftQueue);
            Some(rules)
        }
        Err(error) => {
            assert!(matches!(error, Error::NoRuleSupport), "{error}");
            assert!(!has_nft_queue(), "{error}");
            eprintln!("not tested: the kernel has no nft_queue");
            None
        }
    }
}

pub fn has_nft_queue() -> bool {
    let rules = Rules::new(Hook::INPUT).rule(Rule::queue(0).mark(1)).install().expect("rules");
    rules.mechanism() == Mechanism::NftQueue
}

/// Two hosts on one link that the test's namespace bridges, through its ports `left` and `right`.
pub struct Bridged {
    client: Namespace,
    server: Namespace,
}

const BRIDGED_V4: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 3, 0, 1)), IpAddr::V4(Ipv4Addr::new(10, 3, 0, 2))];
const BRIDGED_V6: [IpAddr; 2] = [
    IpAddr::V6(Ipv6Addr::new(0xfd03, 0, 0, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd03, 0, 0, 0, 0, 0, 0, 2)),
];

impl Bridged {
    pub fn by(host: &Namespace) -> Self {
        let client = Namespace::new().expect("a client");
        let server = Namespace::new().expect("a server");
        for (at, (peer, port)) in [(&client, "left"), (&server, "right")].into_iter().enumerate() {
            host.veth(port, peer, "eth0").expect("a link");
            peer.add_address("eth0", BRIDGED_V4[at], 24).expect("an address");
            peer.add_address("eth0", BRIDGED_V6[at], 64).expect("an address");
        }
        host.bridge("br0").expect("a bridge");
        for port in ["left", "right"] {
            host.set_master(port, "br0").expect("a port");
        }
        Self { client, server }
    }

    pub fn udp_v4(&self) -> UdpPair {
        self.udp(BRIDGED_V4)
    }

    pub fn udp_v6(&self) -> UdpPair {
        self.udp(BRIDGED_V6)
    }

    fn udp(&self, [from, to]: [IpAddr; 2]) -> UdpPair {
        UdpPair::between((&self.client, from), (&self.server, to))
    }
}

fn bridged_frames_match(host: &Namespace) {
    let rules = |hook, rule: Rule| {
        Rules::new(hook).family(Family::BRIDGE).priority(BEFORE_BR_NETFILTER).rule(rule)
    };
    let Some(all) = install_for_bridge(rules(Hook::FORWARD, udp_rule(1))) else { return };
    drop(all);
    let peers = Bridged::by(host);
    let (v4, v6) = (peers.udp_v4(), peers.udp_v6());
    let mut queue = Queue::builder(1).bind().unwrap();
    let mut check = |hook, rule: Rule, expected: [bool; 2]| {
        let _rules = rules(hook, rule.clone()).install().unwrap();
        let seen = [&v4, &v6].map(|udp| queued_at(&mut queue, udp));
        let expected = expected.map(|queued| queued.then_some((hook, Family::BRIDGE)));
        assert_eq!(seen, expected, "{hook} {rule:?}");
    };
    for hook in [Hook::PREROUTING, Hook::FORWARD, Hook::POSTROUTING] {
        check(hook, udp_rule(1), [true, true]);
        check(hook, udp_rule(1).ethertype(0x0800), [true, false]);
        check(hook, udp_rule(1).ethertype(0x86dd), [false, true]);
        check(hook, udp_rule(1).destination_port(v6.receiver_address().port()), [false, true]);
        check(hook, Rule::queue(1).protocol(Protocol::TCP), [false, false]);
    }
    for hook in [Hook::INPUT, Hook::OUTPUT] {
        check(hook, udp_rule(1), [false, false]);
    }
    check(Hook::PREROUTING, udp_rule(1).input_interface("left"), [true, true]);
    check(Hook::FORWARD, udp_rule(1).input_interface("right"), [false, false]);
    let both = udp_rule(1).input_interface("left").output_interface("right");
    check(Hook::FORWARD, both, [true, true]);
    check(Hook::POSTROUTING, udp_rule(1).output_interface("right"), [true, true]);
    check(Hook::POSTROUTING, udp_rule(1).output_interface("left"), [false, false]);
}

/// The question who has an address comes up; what follows the answer does not.
fn bridged_arp_matches(host: &Namespace) {
    let rules = Rules::new(Hook::FORWARD).family(Family::BRIDGE).priority(BEFORE_BR_NETFILTER);
    let Some(_rules) = install_for_bridge(rules.rule(Rule::queue(1).ethertype(0x0806))) else {
        return;
    };
    let peers = Bridged::by(host);
    let mut queue = Queue::builder(1).bind().unwrap();
    let udp = peers.udp_v4();
    udp.send(b"unknown address");
    for _ in ["question", "answer"] {
        let mut batch = receive_exactly(&mut queue, 1);
        let packet = batch.iter_mut().next().unwrap();
        assert_eq!(packet.hw_protocol(), 0x0806);
        packet.accept();
        batch.commit().unwrap();
    }
    assert_eq!(udp.receive_all(1), [b"unknown address"]);
    let other = peers.udp_v6();
    other.send(b"asks by other means");
    assert_eq!(other.receive_all(1), [b"asks by other means"]);
    expect_no_packet(&mut queue);
}
