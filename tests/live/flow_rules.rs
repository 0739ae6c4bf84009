//! Flow bypass among other rules: other bits of the marks, other rules with the same marks, a
//! pause, rules of other tools, bridged frames.

use std::io::ErrorKind;
use std::process::Command;

use netfilterqueue::rules::{Family, Hook};
use netfilterqueue::{Batch, Decided, FlowBypass, FlowMarks, Packet, Queue};
use netfilterqueue_netns::Namespace;
use nix::sys::socket::{setsockopt, sockopt};

use crate::flow::{
    Expect, MARKS, OUTCOMES, accept, expect_dropped, expect_passing, expect_queued, install,
    judge_next, udp_rules,
};
use crate::kernel::{BEFORE_BR_NETFILTER, has_nft_queue, install_for_bridge, untested};
use crate::netns::Bridged;
use crate::support::{Peers, UdpPair, V4, wait_until};
use crate::{Test, tests};

pub const TESTS: [Test; 7] = tests![
    other_bits_of_both_marks_survive,
    rules_with_the_same_marks_share_decisions,
    the_packet_mark_decides_too,
    decisions_survive_a_pause,
    rules_of_iptables_will_do,
    rules_of_nft_will_do,
    bridged_flows_are_remembered,
];

fn other_bits_of_both_marks_survive(_: &Namespace) {
    const OTHER_MARKS: FlowMarks = FlowMarks::new(0x4000_0000, 0x8000_0000).unwrap();
    let mut queues = [1, 2, 3].map(|number| Queue::builder(number).bind().unwrap());
    let udp = UdpPair::new(V4);
    setsockopt(&udp.sender, sockopt::Mark, &0x0010_0001).expect("a mark");
    let (_first, bypass) = install(udp_rules(Hook::OUTPUT, 1).priority(10));
    let second = udp_rules(Hook::OUTPUT, 2).priority(20).flow_bypass(OTHER_MARKS);
    let second = second.install().unwrap();
    let other_bypass = second.flow_bypass().unwrap();
    let _witness = udp_rules(Hook::OUTPUT, 3).priority(30).install().unwrap();
    let [first, second, witness] = &mut queues;
    let see = |queue: &mut Queue, mark| {
        judge_next(queue, |packet| {
            assert_eq!(packet.mark(), Some(mark));
            packet.accept()
        });
    };
    udp.send(b"1");
    judge_next(first, |mut packet| {
        assert_eq!(packet.mark(), Some(0x0010_0001));
        packet.set_mark(0x0010_0301);
        packet.accept_flow(bypass)
    });
    see(second, 0x0010_0301);
    see(witness, 0x0010_0301);
    // The first has decided, the second has not.
    udp.send(b"2");
    judge_next(second, |packet| packet.accept_flow(other_bypass));
    see(witness, 0x0010_0001);
    // Both have: saving the bits of one has left those of the other alone.
    udp.send(b"3");
    see(witness, 0x0010_0001);
    assert_eq!(udp.receive_all(3).concat(), b"123");
    assert_eq!(queues.map(|queue| queue.stats().received), [1, 2, 3]);
}

fn rules_with_the_same_marks_share_decisions(_: &Namespace) {
    let mut queues = [1, 2].map(|number| Queue::builder(number).bind().unwrap());
    // Two of one priority, of which the kernel chooses the first, and a third at another hook.
    let (_first, bypass) = install(udp_rules(Hook::OUTPUT, 1));
    let (_second, _) = install(udp_rules(Hook::OUTPUT, 2));
    let (_third, _) = install(udp_rules(Hook::INPUT, 1));
    for (decide, expect) in OUTCOMES {
        let udp = UdpPair::new(V4);
        udp.send(b"undecided");
        for _ in 0..3 {
            judge_at_either(&mut queues, accept);
        }
        assert_eq!(udp.receive_all(1), [b"undecided"]);
        udp.send(b"decided");
        judge_at_either(&mut queues, |packet| decide(packet, bypass));
        udp.take_one();
        for queue in &mut queues {
            expect(queue, &udp);
        }
    }
}

fn judge_at_either(queues: &mut [Queue], judge: impl for<'p> FnOnce(Packet<'p>) -> Decided<'p>) {
    let mut batch = Batch::new(1);
    wait_until("a packet", || {
        queues.iter_mut().any(|queue| {
            queue.set_nonblocking(true);
            queue.recv(&mut batch).is_ok()
        })
    });
    judge(batch.iter_mut().next().expect("a packet"));
    batch.commit().expect("the kernel takes the message");
}

/// A packet that carries a decision already is not queued, and the decision is remembered.
fn the_packet_mark_decides_too(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let (_rules, _) = install(udp_rules(Hook::OUTPUT, 1));
    for (mark, expect) in
        [(MARKS.accepted(), expect_passing as Expect), (MARKS.dropped(), expect_dropped)]
    {
        let udp = UdpPair::new(V4);
        expect_queued(&mut queue, &udp);
        setsockopt(&udp.sender, sockopt::Mark, &mark).unwrap();
        expect(&mut queue, &udp);
        setsockopt(&udp.sender, sockopt::Mark, &0).unwrap();
        expect(&mut queue, &udp);
    }
}

fn decisions_survive_a_pause(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let (mut rules, bypass) = install(udp_rules(Hook::INPUT, 1));
    let [accepted, dropped, late, undecided] = [(); 4].map(|()| UdpPair::new(V4));
    for udp in [&accepted, &dropped, &late, &undecided] {
        expect_queued(&mut queue, udp);
    }
    accepted.send(b"decided");
    judge_next(&mut queue, |packet| packet.accept_flow(bypass));
    assert_eq!(accepted.receive_all(1), [b"decided"]);
    dropped.send(b"decided");
    judge_next(&mut queue, |packet| packet.drop_flow(bypass));
    late.send(b"decided during the pause");
    rules.pause().unwrap();
    judge_next(&mut queue, |packet| packet.drop_flow(bypass));
    for _ in 0..2 {
        expect_passing(&mut queue, &accepted);
        expect_dropped(&mut queue, &dropped);
        expect_dropped(&mut queue, &late);
        expect_passing(&mut queue, &undecided);
        rules.resume().unwrap();
        expect_passing(&mut queue, &accepted);
        expect_dropped(&mut queue, &dropped);
        expect_dropped(&mut queue, &late);
        expect_queued(&mut queue, &undecided);
        rules.pause().unwrap();
    }
    rules.remove().expect("paused rules can be removed");
    // What is remembered is of no effect without rules, and known to the next ones.
    expect_passing(&mut queue, &dropped);
    let (_rules, _) = install(udp_rules(Hook::INPUT, 1));
    expect_dropped(&mut queue, &dropped);
    expect_passing(&mut queue, &accepted);
}

/// As in the documentation of `FlowBypass::assume_installed`, for any port.
const IPTABLES: [&str; 8] = [
    "-t mangle -A FORWARD -m connmark --mark 0x10000000/0x30000000 -j ACCEPT",
    "-t mangle -A FORWARD -m connmark --mark 0x20000000/0x30000000 -j DROP",
    "-t mangle -A FORWARD -p udp -j NFQUEUE --queue-num 1",
    "-N REMEMBER",
    "-A REMEMBER -j CONNMARK --save-mark --nfmask 0x30000000 --ctmask 0x30000000",
    "-A REMEMBER -m mark --mark 0x20000000/0x30000000 -j DROP",
    "-A REMEMBER -j MARK --set-xmark 0x0/0x30000000",
    "-I FORWARD -m mark ! --mark 0x0/0x30000000 -j REMEMBER",
];

/// As there, for any port.
const NFT: &str = "
    table inet flows {
        chain decide {
            type filter hook forward priority 0;
            meta mark & 0x30000000 != 0 accept
            ct mark & 0x30000000 == 0x10000000 accept
            ct mark & 0x30000000 == 0x20000000 drop
            meta l4proto udp queue num 1
        }
        chain remember {
            type filter hook forward priority 1;
            meta mark & 0x30000000 == 0 accept
            meta mark & 0x30000000 == 0x10000000 ct mark set ct mark & 0xcfffffff | 0x10000000
            meta mark & 0x30000000 == 0x20000000 ct mark set ct mark & 0xcfffffff | 0x20000000
            meta mark & 0x30000000 == 0x20000000 drop
            meta mark set meta mark & 0xcfffffff
        }
    }";

fn rules_of_iptables_will_do(router: &Namespace) {
    let peers = Peers::of(router);
    for tool in ["iptables", "ip6tables"] {
        for line in IPTABLES {
            if !run(Command::new(tool).args(line.split(' '))) {
                return;
            }
        }
    }
    expect_flow_bypass(&peers);
}

fn rules_of_nft_will_do(router: &Namespace) {
    let peers = Peers::of(router);
    if !has_nft_queue() {
        return untested("nft", "there is no nft_queue for it");
    }
    if run(Command::new("nft").arg(NFT)) {
        expect_flow_bypass(&peers);
    }
}

/// Whether there is such a tool; panics if it fails.
fn run(command: &mut Command) -> bool {
    match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            untested(&command.get_program().to_string_lossy(), "there is no such program");
            false
        }
        output => {
            let output = output.expect("it runs");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {errors}");
            true
        }
    }
}

fn expect_flow_bypass(peers: &Peers) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let bypass = FlowBypass::assume_installed(FlowMarks::default());
    for make in [Peers::udp_v4, Peers::udp_v6] {
        for (decide, expect) in OUTCOMES {
            let (udp, other) = (make(peers), make(peers));
            expect_queued(&mut queue, &udp);
            udp.send(b"decided");
            judge_next(&mut queue, |packet| decide(packet, bypass));
            udp.take_one();
            expect(&mut queue, &udp);
            expect_queued(&mut queue, &other);
        }
    }
}

fn bridged_flows_are_remembered(host: &Namespace) {
    let rules = udp_rules(Hook::FORWARD, 1).family(Family::BRIDGE).priority(BEFORE_BR_NETFILTER);
    let Some(plain) = install_for_bridge(rules.clone()) else { return };
    drop(plain);
    let (_rules, bypass) = install(rules);
    let peers = Bridged::by(host);
    let mut queue = Queue::builder(1).bind().unwrap();
    for (decide, expect) in OUTCOMES {
        for (udp, other) in peers.udp().into_iter().zip(peers.udp()) {
            expect_queued(&mut queue, &udp);
            udp.send(b"decided");
            judge_next(&mut queue, |packet| {
                assert_eq!(packet.family(), Family::BRIDGE);
                decide(packet, bypass)
            });
            udp.take_one();
            expect(&mut queue, &udp);
            expect_queued(&mut queue, &other);
        }
    }
}
