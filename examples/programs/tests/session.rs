//! What all programs have in common, seen in one of them.

use std::process::{Command, Stdio};

use netfilterqueue::Queue;
use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue_netns::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Test, tests};
use crate::program::{Program, unread_in_sockets};
use crate::support::wait_until;
use crate::traffic::Pair;

pub const TESTS: [Test; 6] = tests![
    somebody_elses_rule_is_left_alone,
    a_number_that_is_taken_is_told_in_one_line,
    what_rules_cannot_match_is_told_in_one_line,
    interfaces_choose_packets,
    nobody_who_reads_standard_error_is_no_harm,
    packets_that_wait_are_judged_under_load,
];

const PROGRAM: &str = env!("CARGO_BIN_EXE_latency");

fn somebody_elses_rule_is_left_alone(_: &Namespace) {
    let pair = Pair::at("127.0.0.1");
    let mut program = Program::spawn(PROGRAM, &["--no-rule", "--queue", "7"]);
    program.wait_for("queue 7 is bound, no rule is installed");
    pair.send(0..2);
    pair.expect([0, 1]);
    let rule = Rule::queue(7).protocol(Protocol::UDP).bypass(true);
    let _rules = Rules::new(Hook::OUTPUT).rule(rule).install().unwrap();
    pair.send(2..5);
    pair.expect([2, 3, 4]);
    let ended = program.interrupt().well();
    assert_eq!(ended.count("received"), 3, "{ended:?}");
    // It would have gone with the table of the program.
    let queue = Queue::builder(7).nonblocking(true).bind();
    pair.send(5..6);
    let mut queue = queue.unwrap();
    queue.run(|packet| packet.accept()).unwrap();
    assert_eq!(queue.stats().received, 1);
}

fn a_number_that_is_taken_is_told_in_one_line(_: &Namespace) {
    let first = Program::start(PROGRAM, &[]);
    let ended = Program::spawn(PROGRAM, &[]).ended();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(
        ended.stderr.starts_with("latency: ") && ended.stderr.lines().count() == 1,
        "{ended:?}"
    );
    let other = Program::start(PROGRAM, &["--queue", "2"]);
    other.interrupt().well();
    first.interrupt().well();
}

fn what_rules_cannot_match_is_told_in_one_line(_: &Namespace) {
    for arguments in [
        &["--protocol", "icmp", "--dport", "5"][..],
        &["--in", "a-name-too-long-for-an-interface"],
        &["--hook", "output", "--in", "lo"],
    ] {
        let ended = Program::spawn(PROGRAM, arguments).ended();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
}

fn interfaces_choose_packets(_: &Namespace) {
    let pair = Pair::at("::1");
    for (arguments, received) in [
        (["--hook", "input", "--in", "lo"], 3),
        (["--hook", "input", "--in", "eth9"], 0),
        (["--hook", "output", "--out", "lo"], 3),
    ] {
        let program = Program::start(PROGRAM, &arguments);
        pair.send(0..3);
        pair.expect([0, 1, 2]);
        assert_eq!(program.interrupt().well().count("received"), received, "{arguments:?}");
    }
}

fn nobody_who_reads_standard_error_is_no_harm(_: &Namespace) {
    let pair = Pair::at("127.0.0.1");
    for (program, arguments) in [
        (PROGRAM, &["--interval", "50ms"][..]),
        (env!("CARGO_BIN_EXE_monitor"), &["--plain", "--interval", "50ms"]),
        (env!("CARGO_BIN_EXE_dns_filter"), &["--block", "ads.test"]),
        (env!("CARGO_BIN_EXE_tokio_proxy"), &["--server", "127.0.0.1:9"]),
    ] {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        // At a time when it has not said anything.
        drop(child.stderr.take());
        // A socket for the queue, one for the rule; before the second, signals are caught.
        wait_until("the queue is bound", || unread_in_sockets().len() >= 2);
        pair.send(0..3);
        pair.expect(0..3);
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    }
}

fn packets_that_wait_are_judged_under_load(_: &Namespace) {
    let pair = Pair::at("127.0.0.1");
    let program = Program::start(PROGRAM, &["--protocol", "udp", "--work", "1ms"]);
    // Fewer than the receiver's socket holds while nobody reads, which is 256.
    pair.send(0..60);
    program.signal(Signal::SIGTERM);
    pair.send(60..200);
    let ended = program.ended().well();
    pair.expect(0..200);
    // Which of the later ones came before the rule was paused, nobody knows.
    assert!((60..=200).contains(&ended.count("received")), "{ended:?}");
}
