//! Times as long as they must be, and packets that pass.

use std::process::Command;
use std::time::Duration;

use netfilterqueue_netns::Namespace;
use nix::sys::signal::Signal;

use crate::harness::{Test, tests};
use crate::program::{Program, count, unread_in_sockets};
use crate::support::wait_until;
use crate::traffic::Pair;

pub const TESTS: [Test; 5] = tests![
    times_are_printed_meanwhile_and_at_the_end,
    work_shows_in_the_program_and_in_the_queue,
    packets_that_begin_here_have_no_stamp,
    a_second_interrupt_ends_it_at_once,
    nobody_who_reads_on_is_an_end,
];

const LATENCY: &str = env!("CARGO_BIN_EXE_latency");

fn arguments(port: u16, more: &str) -> Vec<String> {
    let all = format!("--protocol udp --dport {port} {more}");
    all.split_ascii_whitespace().map(str::to_owned).collect()
}

fn start(port: u16, more: &str) -> Program {
    let arguments = arguments(port, more);
    Program::start(LATENCY, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A percentile in a line, `p50 12.5µs`.
fn time(line: &str, percentile: &str) -> Duration {
    let value = line.split([' ', ',']).skip_while(|word| *word != percentile).nth(1);
    let value = value.unwrap_or_else(|| panic!("no {percentile}: {line}"));
    let digits = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap();
    let (number, unit) = value.split_at(digits);
    let unit = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        "ns" => 1e-9,
        other => panic!("{other}: {line}"),
    };
    Duration::from_secs_f64(number.parse::<f64>().unwrap() * unit)
}

fn line<'a>(stdout: &'a str, name: &str) -> &'a str {
    let line = stdout.lines().rfind(|line| line.trim_start().starts_with(name));
    line.unwrap_or_else(|| panic!("no {name}: {stdout}"))
}

fn times_are_printed_meanwhile_and_at_the_end(_: &Namespace) {
    for address in ["127.0.0.1", "::1"] {
        let pair = Pair::at(address);
        let mut program = start(pair.port(), "--interval 300ms");
        pair.send(0..100);
        pair.expect(0..100);
        // In as many intervals as the machine has made of it.
        let mut meanwhile = 0;
        while meanwhile < 100 {
            meanwhile += count(program.wait_for_output("in 300ms: "), "packets").unwrap();
        }
        program.wait_for_output("in 300ms: 0 packets");
        let stdout = program.interrupt().well().stdout;
        assert!(stdout.contains("all in all: 100 packets\n"), "{stdout}");
        assert!(stdout.contains("\n100 received, 0 lost"), "{stdout}");
        let together = line(&stdout, "together");
        assert!(time(together, "p50") > Duration::ZERO, "{together}");
        assert!(time(together, "max") >= time(together, "p50"), "{together}");
        let bars = stdout.lines().filter(|line| line.contains("up to"));
        let counts = bars.map(|bar| bar.split_ascii_whitespace().nth(3).unwrap().parse::<u64>());
        assert_eq!(counts.map(Result::unwrap).sum::<u64>(), 100, "{stdout}");
    }
}

fn work_shows_in_the_program_and_in_the_queue(_: &Namespace) {
    let pair = Pair::at("127.0.0.1");
    let program = start(pair.port(), "--work 20ms --batch 1");
    program.at_once(|| pair.send(0..20));
    assert_eq!(pair.numbers(20).len(), 20);
    let stdout = program.interrupt().well().stdout;
    let work = Duration::from_millis(20);
    assert!(time(line(&stdout, "in the program"), "p50") >= work, "{stdout}");
    // The last one has waited for all the others.
    let last = time(line(&stdout, "in the queue"), "max");
    assert!(last >= work * 15, "{stdout}");
    assert!(time(line(&stdout, "together"), "max") >= last + work / 2, "{stdout}");
}

fn packets_that_begin_here_have_no_stamp(_: &Namespace) {
    let pair = Pair::at("::1");
    let program = start(pair.port(), "--hook output");
    pair.send(0..10);
    assert_eq!(pair.numbers(10).len(), 10);
    let stdout = program.interrupt().well().stdout;
    assert!(stdout.contains("10 packets, 10 without a time stamp"), "{stdout}");
    assert!(!stdout.contains("in the queue"), "{stdout}");
    assert!(time(line(&stdout, "in the program"), "p50") > Duration::ZERO);
}

fn a_second_interrupt_ends_it_at_once(_: &Namespace) {
    let pair = Pair::at("127.0.0.1");
    let mut program = start(pair.port(), "--work 1h --interval 1h");
    pair.send(0..3);
    // From now on it sleeps over its first packet.
    wait_until("the packets are read", || unread_in_sockets().iter().all(|&bytes| bytes == 0));
    program.signal(Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(100));
    assert!(program.runs());
    // Another one than the first, which the kernel may not have delivered yet: two would be one.
    program.signal(Signal::SIGTERM);
    let ended = program.ended();
    let signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
    assert_eq!(signal, Some(Signal::SIGTERM as i32), "{ended:?}");
    pair.send(3..6);
    // The rule is gone, and with it what waited.
    pair.expect([3, 4, 5]);
}

fn nobody_who_reads_on_is_an_end(_: &Namespace) {
    let mut command = Command::new(LATENCY);
    command.args(["--interval", "50ms"]).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    let until = std::time::Instant::now() + crate::program::SOON;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if std::time::Instant::now() > until => {
                child.kill().unwrap();
                panic!("it goes on");
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert!(status.success(), "{status}");
}
