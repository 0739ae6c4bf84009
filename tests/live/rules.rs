//! Rules from the program itself: what they match, in which order, and when they go away.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Instant;

use netfilterqueue::rules::{Family, FlowMarks, Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Batch, Errno, Error, Queue, Verdict};
use netfilterqueue_netns::Namespace;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use crate::kernel::lacks;
use crate::support::{
    Peers, SOON, UdpPair, V4, V6, expect_no_packet, judge_while, queue_udp, queue_udp_at,
    receive_exactly, udp_data, wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 18] = tests![
    every_hook_in_every_family_queues_its_packets_only,
    ports_and_protocols_match,
    interfaces_match,
    marks_match,
    the_first_rule_that_matches_takes_the_packet,
    the_lower_priority_comes_first,
    a_range_of_queues_spreads_by_address,
    cpu_fanout_spreads_by_processor,
    without_a_listener_packets_are_dropped_or_bypass,
    dropping_the_guard_lets_traffic_pass_again,
    a_pause_keeps_packets_that_wait,
    installing_keeps_packets_that_wait,
    removal_flushes_packets_that_wait,
    installed_rules_belong_to_their_namespace,
    a_killed_process_leaves_no_rules,
    a_child_process_does_not_inherit_the_rules,
    what_cannot_be_expressed_is_refused,
    ethertypes_match,
];

const HOOKS: [Hook; 5] =
    [Hook::PREROUTING, Hook::INPUT, Hook::FORWARD, Hook::OUTPUT, Hook::POSTROUTING];

pub fn udp_rule(number: u16) -> Rule {
    Rule::queue(number).protocol(Protocol::UDP)
}

fn install(hook: Hook, rule: Rule) -> InstalledRules {
    Rules::new(hook).rule(rule).install().unwrap()
}

/// Sends a datagram and tells whether it came through the queue, and at which hook and family if
/// so; else it has arrived on its own. Accepted, it arrives as well.
pub fn queued_at(queue: &mut Queue, udp: &UdpPair) -> Option<(Hook, Family)> {
    udp.send(b"?");
    udp.receiver.set_nonblocking(true).unwrap();
    queue.set_nonblocking(true);
    let mut batch = Batch::new(1);
    let deadline = Instant::now() + SOON;
    let mut seen = None;
    while udp.receiver.recv(&mut [0; 8]).is_err() {
        if queue.recv(&mut batch).is_ok() {
            let packet = batch.iter_mut().next().unwrap();
            assert_eq!(seen, None, "one datagram is queued once");
            seen = Some((packet.hook(), packet.family()));
            packet.accept();
            batch.commit().unwrap();
        }
        assert!(Instant::now() < deadline, "the datagram got lost; queued: {seen:?}");
        thread::yield_now();
    }
    udp.receiver.set_nonblocking(false).unwrap();
    queue.set_nonblocking(false);
    seen
}

fn is_queued(queue: &mut Queue, udp: &UdpPair) -> bool {
    queued_at(queue, udp).is_some()
}

fn every_hook_in_every_family_queues_its_packets_only(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = Queue::builder(1).bind().unwrap();
    let (local_v4, local_v6) = (UdpPair::new(V4), UdpPair::new(V6));
    let (routed_v4, routed_v6) = (peers.udp_v4(), peers.udp_v6());
    for hook in HOOKS {
        let is_forward = hook == Hook::FORWARD;
        let v4 = if is_forward { &routed_v4 } else { &local_v4 };
        let v6 = if is_forward { &routed_v6 } else { &local_v6 };
        for (family, sees_v4, sees_v6) in
            [(Family::INET, true, true), (Family::IPV4, true, false), (Family::IPV6, false, true)]
        {
            let rules = Rules::new(hook).family(family).rule(udp_rule(1)).install().unwrap();
            let expected = |sees: bool, family| sees.then_some((hook, family));
            assert_eq!(
                queued_at(&mut queue, v4),
                expected(sees_v4, Family::IPV4),
                "{hook:?} {family:?}"
            );
            assert_eq!(
                queued_at(&mut queue, v6),
                expected(sees_v6, Family::IPV6),
                "{hook:?} {family:?}"
            );
            let other_way = if is_forward { &local_v4 } else { &routed_v4 };
            // Routed packets pass prerouting and postrouting too; only forwarding has its own way.
            if matches!(hook, Hook::FORWARD | Hook::INPUT | Hook::OUTPUT) {
                assert!(!is_queued(&mut queue, other_way), "{hook:?} {family:?}");
            }
            rules.remove().unwrap();
        }
    }
    expect_no_packet(&mut queue);
}

fn ports_and_protocols_match(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    for address in [V4, V6] {
        let (udp, other) = (UdpPair::new(address), UdpPair::new(address));
        let source = udp.sender.local_addr().unwrap().port();
        let destination = udp.receiver_address().port();
        let mut check = |rule: Rule, expected: [bool; 2]| {
            let _rules = install(Hook::OUTPUT, rule.clone());
            let queued = [&udp, &other].map(|udp| is_queued(&mut queue, udp));
            assert_eq!(queued, expected, "{rule:?}");
        };
        check(Rule::queue(1), [true, true]);
        check(udp_rule(1), [true, true]);
        check(Rule::queue(1).protocol(Protocol::TCP), [false, false]);
        check(Rule::queue(1).protocol(Protocol(17)), [true, true]);
        check(udp_rule(1).source_port(source), [true, false]);
        check(udp_rule(1).destination_port(destination), [true, false]);
        check(udp_rule(1).source_port(source).destination_port(destination), [true, false]);
        check(udp_rule(1).source_port(destination), [false, false]);
        let swapped = destination.swap_bytes();
        // One port in 256 is the same both ways.
        check(udp_rule(1).destination_port(swapped), [swapped == destination, false]);
        let tcp = Rule::queue(1).protocol(Protocol::TCP);
        check(tcp.destination_port(destination), [false, false]);
    }
}

fn interfaces_match(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = Queue::builder(1).bind().unwrap();
    let (routed, local) = (peers.udp_v4(), UdpPair::new(V4));
    let mut check = |hook, rule: Rule, expected: [bool; 2]| {
        let _rules = install(hook, rule.clone());
        let queued = [&routed, &local].map(|udp| is_queued(&mut queue, udp));
        assert_eq!(queued, expected, "{hook:?} {rule:?}");
    };
    check(Hook::PREROUTING, udp_rule(1).input_interface("left"), [true, false]);
    check(Hook::PREROUTING, udp_rule(1).input_interface("lo"), [false, true]);
    check(Hook::INPUT, udp_rule(1).input_interface("lo"), [false, true]);
    check(Hook::INPUT, udp_rule(1).input_interface("l"), [false, false]);
    check(Hook::OUTPUT, udp_rule(1).output_interface("lo"), [false, true]);
    check(Hook::OUTPUT, udp_rule(1).output_interface("lo2"), [false, false]);
    check(Hook::FORWARD, udp_rule(1).input_interface("left"), [true, false]);
    check(Hook::FORWARD, udp_rule(1).input_interface("right"), [false, false]);
    let both = udp_rule(1).input_interface("left").output_interface("right");
    check(Hook::FORWARD, both, [true, false]);
    let swapped = udp_rule(1).input_interface("right").output_interface("left");
    check(Hook::FORWARD, swapped, [false, false]);
    check(Hook::POSTROUTING, udp_rule(1).output_interface("right"), [true, false]);
    check(Hook::POSTROUTING, udp_rule(1).output_interface("lo"), [false, true]);
}

fn marks_match(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let marked = UdpPair::new(V4);
    setsockopt(&marked.sender, sockopt::Mark, &0x1234_5678).expect("a mark");
    let unmarked = UdpPair::new(V4);
    let mut check = |rule: Rule, expected: [bool; 2]| {
        let _rules = install(Hook::OUTPUT, rule.clone());
        let queued = [&marked, &unmarked].map(|udp| is_queued(&mut queue, udp));
        assert_eq!(queued, expected, "{rule:?}");
    };
    check(udp_rule(1).mark(0x1234_5678), [true, false]);
    check(udp_rule(1).mark(0x7856_3412), [false, false]);
    check(udp_rule(1).mark(0), [false, true]);
    check(udp_rule(1).mark_masked(0x0000_5600, 0x0000_ff00), [true, false]);
    check(udp_rule(1).mark_masked(0x0000_5700, 0x0000_ff00), [false, false]);
    check(udp_rule(1).mark_masked(0, 0x8000_0000), [true, true]);
    check(udp_rule(1).mark_masked(0, 0), [true, true]);
}

fn the_first_rule_that_matches_takes_the_packet(_: &Namespace) {
    let mut first = Queue::builder(1).bind().unwrap();
    let mut second = Queue::builder(2).bind().unwrap();
    let (special, general) = (UdpPair::new(V4), UdpPair::new(V4));
    let port = special.receiver_address().port();
    let _rules = Rules::new(Hook::OUTPUT)
        .rule(udp_rule(1).destination_port(port))
        .rule(udp_rule(2))
        .rule(udp_rule(3))
        .install()
        .unwrap();
    assert!(is_queued(&mut first, &special));
    assert!(is_queued(&mut second, &general));
    assert_eq!([&first, &second].map(|queue| queue.stats().received), [1, 1]);
}

fn the_lower_priority_comes_first(_: &Namespace) {
    let mut queues = [1, 2, 3].map(|number| Queue::builder(number).bind().unwrap());
    let at = |priority, number| {
        Rules::new(Hook::OUTPUT).priority(priority).rule(udp_rule(number)).install().unwrap()
    };
    let _rules = [at(i32::MAX, 3), at(-1, 1), at(0, 2)];
    let udp = UdpPair::new(V4);
    udp.send(b"in order");
    for at in 0..3 {
        udp.expect_nothing();
        for later in &mut queues[at + 1..] {
            expect_no_packet(later);
        }
        let mut batch = receive_exactly(&mut queues[at], 1);
        for packet in &mut batch {
            packet.accept();
        }
        batch.commit().unwrap();
    }
    assert_eq!(udp.receive_all(1), [b"in order"]);
}

fn a_range_of_queues_spreads_by_address(_: &Namespace) {
    const ADDRESSES: u8 = 60;
    let mut queues = [4, 5, 6, 7].map(|number| Queue::builder(number).bind().unwrap());
    let _rules = install(Hook::OUTPUT, Rule::queues(4..=7).protocol(Protocol::UDP));
    let mut counts = [0; 4];
    for last in 1..=ADDRESSES {
        let address = IpAddr::V4(Ipv4Addr::new(127, 0, 1, last));
        // Other ports, the same queue.
        for udp in [UdpPair::new(address), UdpPair::new(address)] {
            udp.send(&[last]);
        }
    }
    for (queue, count) in queues.iter_mut().zip(&mut counts) {
        *count = datagrams_per_address(queue, &mut BTreeMap::new());
    }
    assert_eq!(counts.iter().sum::<usize>(), usize::from(ADDRESSES));
    assert!(counts.iter().all(|count| *count > 0), "some queue got nothing: {counts:?}");
}

/// Counts the addresses that packets in the queue come from; of each there must be two.
fn datagrams_per_address(queue: &mut Queue, seen: &mut BTreeMap<u8, usize>) -> usize {
    queue.set_nonblocking(true);
    queue
        .run(|packet| {
            *seen.entry(udp_data(packet.payload())[0]).or_default() += 1;
            packet.accept()
        })
        .unwrap();
    assert!(seen.values().all(|count| *count == 2), "an address is in several queues: {seen:?}");
    seen.len()
}

fn cpu_fanout_spreads_by_processor(_: &Namespace) {
    let mut queues = [0, 1].map(|number| Queue::builder(number).bind().unwrap());
    let rule = Rule::queues(0..=1).protocol(Protocol::UDP).cpu_fanout(true);
    let _rules = install(Hook::OUTPUT, rule);
    let udp = UdpPair::new(V4);
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread).unwrap();
    for cpu in (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap()) {
        let mut only = CpuSet::new();
        only.set(cpu).unwrap();
        sched_setaffinity(this_thread, &only).unwrap();
        assert!(is_queued(&mut queues[cpu % 2], &udp), "a packet of processor {cpu}");
    }
}

fn without_a_listener_packets_are_dropped_or_bypass(_: &Namespace) {
    for (address, hook) in [(V4, Hook::OUTPUT), (V6, Hook::OUTPUT), (V4, Hook::INPUT)] {
        let udp = UdpPair::new(address);
        let rules = install(hook, udp_rule(1).bypass(true));
        udp.send(b"passes");
        assert_eq!(udp.receive_all(1), [b"passes"]);
        let mut queue = Queue::builder(1).bind().unwrap();
        assert!(is_queued(&mut queue, &udp), "bypass is for lack of a listener only");
        queue.close().unwrap();
        drop(rules);
        let _rules = install(hook, udp_rule(1));
        // A sender at the output hook may be told.
        let _ = udp.sender.send(b"dropped");
        udp.expect_nothing();
    }
}

fn dropping_the_guard_lets_traffic_pass_again(_: &Namespace) {
    let udp = UdpPair::new(V4);
    for _ in 0..3 {
        let rules = queue_udp_at(Hook::INPUT, 1);
        assert!(rules.table().starts_with("netfilterqueue-"), "{}", rules.table());
        udp.send(b"dropped");
        udp.expect_nothing();
        drop(rules);
        udp.send(b"passes");
        assert_eq!(udp.receive_all(1), [b"passes"]);
    }
}

/// Also where the kernel refuses the first way to do it.
fn installing_keeps_packets_that_wait(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let tcp = Rules::new(Hook::INPUT).rule(Rule::queue(2).protocol(Protocol::TCP));
    udp.send_each(0..3);
    let _more = tcp.clone().install().unwrap();
    for packet in &mut receive_exactly(&mut queue, 3) {
        packet.accept();
    }
    assert_eq!(udp.receive_all(3).concat(), [0, 1, 2]);
    udp.send_each(3..6);
    match tcp.flow_bypass(FlowMarks::default()).install() {
        // What waits is lost then.
        Err(Error::NoFlowSupport) => {}
        installed => {
            let _flows = installed.unwrap();
            // Connection tracking is a hook before ours now, so the kernel goes on with ours once
            // more: it remembers by its place where a packet was.
            let receive = || udp.receive_all(3).concat();
            let arrived =
                judge_while(&mut queue, |packet| packet.verdict(Verdict::Accept), receive);
            assert_eq!(arrived, [3, 4, 5]);
            assert_eq!(queue.stats().received, 9);
        }
    }
    expect_no_packet(&mut queue);
    assert_eq!(queue.take_refusals(), []);
}

fn a_pause_keeps_packets_that_wait(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let mut rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    let mut batch = receive_exactly(&mut queue, 3);
    udp.send_each(3..6);
    for _ in 0..2 {
        rules.pause().expect("a second pause does nothing");
    }
    assert!(!is_queued(&mut queue, &udp), "paused rules queue nothing");
    for packet in &mut batch {
        packet.accept();
    }
    batch.commit().unwrap();
    queue.set_nonblocking(true);
    queue.run(|packet| packet.verdict(Verdict::Accept)).unwrap();
    assert_eq!(udp.receive_all(6).concat(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(queue.take_refusals(), []);
    for _ in 0..2 {
        rules.resume().expect("a second resume does nothing");
    }
    assert!(is_queued(&mut queue, &udp), "resumed rules queue again");
    rules.pause().unwrap();
    rules.remove().expect("paused rules can be removed");
    assert!(!is_queued(&mut queue, &udp));
}

fn removal_flushes_packets_that_wait(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let udp = UdpPair::new(V4);
    // Any rules of the namespace do, explicitly removed or not.
    for remove in [|rules: InstalledRules| rules.remove().unwrap(), drop] {
        let rules = queue_udp(1);
        udp.send_each(0..3);
        let mut batch = receive_exactly(&mut queue, 3);
        let (retained, _) = batch.iter_mut().next().unwrap().retain();
        remove(rules);
        for packet in &mut batch {
            packet.accept();
        }
        batch.commit().expect("the verdicts can be sent");
        retained.accept().expect("and so can that one");
        udp.expect_nothing();
        expect_no_packet(&mut queue);
        let refusals: Vec<_> =
            queue.take_refusals().into_iter().map(|refusal| refusal.errno).collect();
        assert_eq!(refusals, [Errno::ENOENT; 3], "they came too late");
    }
    assert_eq!(queue.stats().refused, 6);
    udp.send(b"passes");
    assert_eq!(udp.receive_all(1), [b"passes"]);
}

fn installed_rules_belong_to_their_namespace(_: &Namespace) {
    let other = Namespace::new().unwrap();
    let (here, there) = (UdpPair::new(V4), other.run(|| UdpPair::new(V4)));
    let rules = other.run(|| queue_udp_at(Hook::INPUT, 1));
    here.send(b"passes");
    assert_eq!(here.receive_all(1), [b"passes"]);
    there.send(b"dropped");
    there.expect_nothing();
    // From a thread that is elsewhere.
    rules.remove().unwrap();
    there.send(b"passes");
    assert_eq!(there.receive_all(1), [b"passes"]);
}

/// Set for a child process: it installs rules and waits to be killed.
pub const HOLD_RULES: &str = "NETFILTERQUEUE_HOLD_RULES";

/// The main function of that child process.
pub fn hold_rules() -> ExitCode {
    let rules = queue_udp_at(Hook::INPUT, 1);
    println!("{}", if rules.is_owned() { "owned" } else { "not owned" });
    // Longer than any test may take; not for ever, should the test be killed.
    thread::sleep(crate::harness::TIME_LIMIT);
    ExitCode::FAILURE
}

/// A child process in this thread's namespace, killed in the end.
struct Holder(Child);

impl Holder {
    /// Returns when it says that its rules are in place.
    fn start() -> (Self, String) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(HOLD_RULES, "1").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut holder = Self(command.spawn().expect("a child process"));
        let mut line = String::new();
        BufReader::new(holder.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        (holder, line.trim_end().to_owned())
    }

    /// `SIGKILL`, and waits for the end.
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.kill();
    }
}

fn a_killed_process_leaves_no_rules(_: &Namespace) {
    let udp = UdpPair::new(V4);
    let (mut holder, says) = Holder::start();
    udp.send(b"dropped");
    udp.expect_nothing();
    holder.kill();
    if says == "not owned" {
        lacks("owner tables", "the rules stay");
        udp.send(b"dropped");
        return udp.expect_nothing();
    }
    assert_eq!(says, "owned");
    // The kernel may take the rules away a moment after the process is gone.
    wait_until("the end of the rules", || {
        udp.send(b"passes");
        udp.receiver.set_nonblocking(true).unwrap();
        udp.receiver.recv(&mut [0; 8]).is_ok()
    });
}

fn a_child_process_does_not_inherit_the_rules(_: &Namespace) {
    let udp = UdpPair::new(V4);
    let rules = queue_udp_at(Hook::OUTPUT, 2);
    let (holder, _) = Holder::start();
    drop(rules);
    let mut queue = Queue::builder(1).bind().unwrap();
    assert!(is_queued(&mut queue, &udp), "only the child's rules, at the input hook, are left");
    drop(holder);
}

fn what_cannot_be_expressed_is_refused(_: &Namespace) {
    let refused = |hook, rule: Rule| {
        let error = Rules::new(hook).rule(udp_rule(1)).rule(rule).install().unwrap_err();
        assert!(matches!(error, Error::InvalidRule { .. }), "{error}");
    };
    refused(Hook::INPUT, Rule::queue(1).destination_port(53));
    refused(Hook::INPUT, Rule::queue(1).protocol(Protocol::ICMP).source_port(1));
    refused(Hook::INPUT, Rule::queue(1).input_interface("sixteen-bytes-16"));
    refused(Hook::INPUT, Rule::queue(1).output_interface("lo"));
    refused(Hook::OUTPUT, Rule::queue(1).input_interface("lo"));
    refused(Hook::OUTPUT, Rule::queue(1).mark_masked(2, 1));
    refused(Hook::OUTPUT, Rule::queues(0..=u16::MAX));
    refused(Hook::FORWARD, Rule::queue(1).ethertype(0x0806));
    refused(Hook(5), Rule::queue(1));
    let error = Rules::new(Hook::INPUT).family(Family(99)).rule(udp_rule(1)).install();
    assert!(matches!(error, Err(Error::InvalidRule { .. })), "{error:?}");
    let many = (0..2000).fold(Rules::new(Hook::OUTPUT), |rules, _| rules.rule(udp_rule(1)));
    let error = many.install().unwrap_err();
    assert!(matches!(error, Error::InvalidRule { .. }), "{error}");
    // All or nothing: the good rules beside the bad ones are not there either.
    let udp = UdpPair::new(V4);
    udp.send(b"passes");
    assert_eq!(udp.receive_all(1), [b"passes"]);
}

fn ethertypes_match(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    for (address, own, other) in [(V4, 0x0800, 0x86dd), (V6, 0x86dd, 0x0800)] {
        let udp = UdpPair::new(address);
        for hook in [Hook::PREROUTING, Hook::INPUT, Hook::OUTPUT, Hook::POSTROUTING] {
            for (ethertype, expected) in [(own, true), (other, false)] {
                let _rules = install(hook, udp_rule(1).ethertype(ethertype));
                assert_eq!(is_queued(&mut queue, &udp), expected, "{hook} {ethertype:#06x}");
            }
        }
    }
}
