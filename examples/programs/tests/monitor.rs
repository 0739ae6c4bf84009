//! What is to be seen, in a terminal and as lines; and how the terminal is left.

use std::process::Command;

use netfilterqueue::Queue;
use netfilterqueue_netns::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Test, tests};
use crate::program::Program;
use crate::terminal::Terminal;
use crate::traffic::Pair;

pub const TESTS: [Test; 10] = tests![
    flows_are_seen_live_and_q_ends_it,
    keys_sort_and_stop_the_picture,
    control_c_is_a_key,
    a_signal_ends_it_and_gives_the_terminal_back,
    another_size_is_filled_and_disturbs_nothing,
    a_terminal_that_is_closed_ends_it,
    an_error_leaves_the_terminal_alone,
    lines_are_printed_until_an_interrupt,
    a_table_is_printed_once,
    what_is_no_terminal_is_refused,
];

const MONITOR: &str = env!("CARGO_BIN_EXE_monitor");
const UDP: [&str; 4] = ["--protocol", "udp", "--interval", "50ms"];

fn start() -> Terminal {
    let mut command = Command::new(MONITOR);
    command.args(UDP);
    let terminal = Terminal::start(command);
    terminal.wait_for("queue 1 at output: 0 received");
    assert!(terminal.is_taken_over());
    terminal
}

/// The line of a flow to a port: protocol, from, to, packets, packets back.
fn flow(screen: &str, port: u16) -> Option<[String; 5]> {
    let to = format!(":{port}");
    let lines = screen.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let line = lines.rev().find(|words| words.get(2).is_some_and(|word| word.ends_with(&to)))?;
    Some(std::array::from_fn(|at| line[at].to_owned()))
}

/// Nobody counts packets, and none is held up.
fn the_rule_is_gone(pair: &Pair) {
    pair.send(1000..1003);
    pair.expect([1000, 1001, 1002]);
}

fn flows_are_seen_live_and_q_ends_it(_: &Namespace) {
    for address in ["127.0.0.1", "::1"] {
        let pair = Pair::at(address);
        let mut terminal = start();
        pair.send(0..7);
        pair.receiver.send_to(b"packet 9", pair.sender.local_addr().unwrap()).unwrap();
        terminal.wait_for("8 received");
        terminal.wait_until("the flow", |terminal| {
            flow(&terminal.contents(), pair.port()).is_some_and(|[protocol, .., there, back]| {
                [protocol, there, back] == ["UDP", "7", "1"]
            })
        });
        pair.send(7..10);
        terminal.wait_for("11 received");
        pair.expect(0..10);
        terminal.press(b"q");
        assert!(terminal.ended().success());
        assert!(terminal.is_as_before(), "{}", terminal.contents());
        terminal.wait_for("11 packets passed, 0 lost");
        the_rule_is_gone(&pair);
    }
}

fn keys_sort_and_stop_the_picture(_: &Namespace) {
    let (few, many) = (Pair::at("127.0.0.1"), Pair::at("127.0.0.1"));
    let mut terminal = start();
    // More bytes in fewer packets.
    few.sender.send(&[0; 3000]).unwrap();
    many.send(0..20);
    let is_above = |first: u16, second: u16| {
        move |terminal: &Terminal| {
            let screen = terminal.contents();
            let at = |port: u16| screen.find(&format!(":{port} "));
            at(first).zip(at(second)).is_some_and(|(first, second)| first < second)
        }
    };
    // By rate, which is none after a while, then by bytes, then by packets.
    terminal.press(b"s");
    terminal.wait_until("sorted by bytes", is_above(few.port(), many.port()));
    terminal.press(b"s");
    terminal.wait_until("sorted by packets", is_above(many.port(), few.port()));
    terminal.wait_for("21 received");
    terminal.press(b" ");
    terminal.wait_for("space goes on");
    many.send(20..30);
    assert_eq!(many.numbers(30).len(), 30);
    assert!(terminal.contents().contains("21 received"), "{}", terminal.contents());
    terminal.press(b" ");
    terminal.wait_for("31 received");
    terminal.press(b"\x1b");
    assert!(terminal.ended().success());
}

fn control_c_is_a_key(_: &Namespace) {
    let pair = Pair::at("127.0.0.1");
    let mut terminal = start();
    terminal.press(b"\x03");
    assert!(terminal.ended().success());
    assert!(terminal.is_as_before());
    the_rule_is_gone(&pair);
}

fn a_signal_ends_it_and_gives_the_terminal_back(_: &Namespace) {
    let pair = Pair::at("127.0.0.1");
    // Whichever of its threads it interrupts: one judges, one waits for signals, one for keys.
    for thread in 0..3 {
        let mut terminal = start();
        pair.send(0..5);
        let tasks = std::fs::read_dir(format!("/proc/{}/task", terminal.id())).unwrap();
        let mut ids: Vec<i32> = tasks
            .map(|task| task.unwrap().file_name().into_string().unwrap().parse().unwrap())
            .collect();
        ids.sort_unstable();
        assert_eq!(ids.len(), 3);
        kill(Pid::from_raw(ids[thread]), Signal::SIGTERM).unwrap();
        assert!(terminal.ended().success());
        assert!(terminal.is_as_before());
        pair.expect([0, 1, 2, 3, 4]);
        the_rule_is_gone(&pair);
    }
}

fn another_size_is_filled_and_disturbs_nothing(_: &Namespace) {
    let mut terminal = start();
    for round in 0..20 {
        terminal.resize(24 + round, 120 - round);
        // What the kernel sends to processes whose terminal this is; here it is nobody's.
        kill(Pid::from_raw(terminal.id() as i32), Signal::SIGWINCH).unwrap();
    }
    let bottom = |terminal: &Terminal| {
        terminal.contents().lines().nth(42).is_some_and(|line| line.contains("q ends"))
    };
    terminal.wait_until("the last line is below", bottom);
    terminal.press(b"q");
    assert!(terminal.ended().success());
    assert!(terminal.is_as_before());
}

fn a_terminal_that_is_closed_ends_it(_: &Namespace) {
    let pair = Pair::at("127.0.0.1");
    let mut command = Command::new(MONITOR);
    // It must not take a new picture to see it.
    command.args(["--protocol", "udp", "--interval", "1h"]);
    let mut terminal = Terminal::start(command);
    terminal.wait_for("queue 1 at output: 0 received");
    terminal.hang_up();
    let status = terminal.ended();
    assert_eq!(status.code(), Some(1), "{status}");
    the_rule_is_gone(&pair);
}

fn an_error_leaves_the_terminal_alone(_: &Namespace) {
    let _other = Queue::builder(1).bind().unwrap();
    let mut command = Command::new(MONITOR);
    command.args(UDP);
    let mut terminal = Terminal::start(command);
    assert_eq!(terminal.ended().code(), Some(1));
    terminal.wait_for("monitor: ");
    assert!(terminal.is_as_before());
}

fn lines_are_printed_until_an_interrupt(_: &Namespace) {
    let pair = Pair::at("::1");
    let mut program = Program::start(MONITOR, &[&UDP[..], &["--plain"]].concat());
    pair.send(0..4);
    program.wait_for_output(": 4 received");
    pair.send(4..6);
    program.wait_for_output(": 6 received");
    let ended = program.interrupt().well();
    assert!(ended.stderr.contains("6 packets passed, 0 lost"), "{ended:?}");
    let seen = flow(&ended.stdout, pair.port()).expect("a line");
    assert_eq!([&*seen[0], &*seen[3], &*seen[4]], ["UDP", "6", "0"]);
    assert!(!ended.stdout.contains('\x1b'), "nothing but text");
    pair.expect(0..6);
}

fn a_table_is_printed_once(_: &Namespace) {
    let pairs: [Pair; 3] = std::array::from_fn(|_| Pair::at("127.0.0.1"));
    let once = ["--once", "--interval", "2s", "--rows", "2", "--sort", "packets"];
    let program = Program::start(MONITOR, &[&UDP[..2], &once].concat());
    for (pair, count) in pairs.iter().zip([1, 9, 5]) {
        pair.send(0..count);
    }
    let ended = program.ended().well();
    assert_eq!(ended.stdout.matches("received").count(), 1, "{ended:?}");
    let flows =
        pairs.each_ref().map(|pair| flow(&ended.stdout, pair.port()).map(|[.., there, _]| there));
    assert_eq!(flows, [None, Some("9".to_owned()), Some("5".to_owned())], "{ended:?}");
    the_rule_is_gone(&Pair::at("127.0.0.1"));
}

fn what_is_no_terminal_is_refused(_: &Namespace) {
    let ended = Program::spawn(MONITOR, &[]).ended();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("--plain"), "{ended:?}");
    let ended = Program::spawn(MONITOR, &["--interval", "0s"]).ended();
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
}
