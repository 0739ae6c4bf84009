//! Rules for bridged frames, where the kernel can queue them: that takes `nft_queue`.

use netfilterqueue::Queue;
use netfilterqueue::rules::{Family, Hook, Protocol, Rule, Rules};
use netfilterqueue_netns::Namespace;

use crate::kernel::{BEFORE_BR_NETFILTER, install_for_bridge};
use crate::netns::Bridged;
use crate::rules::{queued_at, udp_rule};
use crate::support::{expect_no_packet, receive_exactly};
use crate::{Test, tests};

pub const TESTS: [Test; 2] = tests![bridged_frames_match, bridged_arp_matches];

fn bridged_frames_match(host: &Namespace) {
    let rules = |hook, rule: Rule| {
        Rules::new(hook).family(Family::BRIDGE).priority(BEFORE_BR_NETFILTER).rule(rule)
    };
    let Some(all) = install_for_bridge(rules(Hook::FORWARD, udp_rule(1))) else { return };
    drop(all);
    let [v4, v6] = Bridged::by(host).udp();
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
    let [udp, other] = Bridged::by(host).udp();
    let mut queue = Queue::builder(1).bind().unwrap();
    udp.send(b"unknown address");
    for _ in ["question", "answer"] {
        let mut batch = receive_exactly(&mut queue, 1);
        let packet = batch.iter_mut().next().unwrap();
        assert_eq!(packet.hw_protocol(), 0x0806);
        packet.accept();
        batch.commit().unwrap();
    }
    assert_eq!(udp.receive_all(1), [b"unknown address"]);
    other.send(b"asks by other means");
    assert_eq!(other.receive_all(1), [b"asks by other means"]);
    expect_no_packet(&mut queue);
}
