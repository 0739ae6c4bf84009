//! How much of what each source sends arrives.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use netfilterqueue_netns::Namespace;

use crate::harness::{Test, tests};
use crate::program::Program;
use crate::traffic::Pair;

pub const TESTS: [Test; 5] = tests![
    each_source_has_its_burst_and_its_rate,
    bytes_are_limited_over_both_versions_of_ip,
    what_is_beyond_can_be_marked,
    more_sources_than_are_remembered,
    senseless_limits_are_refused,
];

const RATELIMIT: &str = env!("CARGO_BIN_EXE_ratelimit");

fn start(port: u16, arguments: &str) -> Program {
    let all = format!("--protocol udp --dport {port} {arguments}");
    Program::start(RATELIMIT, &all.split_ascii_whitespace().collect::<Vec<_>>())
}

/// A sender from an address of its own to the receiver of a pair.
fn sender(from: &str, pair: &Pair) -> UdpSocket {
    let sender = UdpSocket::bind((from, 0)).unwrap();
    sender.connect(pair.receiver.local_addr().unwrap()).unwrap();
    sender
}

fn each_source_has_its_burst_and_its_rate(_: &Namespace) {
    let pair = Pair::at("127.0.0.1");
    let program = start(pair.port(), "--packets 1 --burst 20 --sources 100");
    let other = sender("127.0.0.2", &pair);
    let began = Instant::now();
    // So that no token comes back meanwhile.
    program.at_once(|| {
        for number in 0..50 {
            pair.send(number..number + 1);
            if number < 10 {
                other.send(b"packet 1000").unwrap();
            }
        }
    });
    let arrived = pair.numbers(30);
    let (theirs, ours): (Vec<u32>, Vec<u32>) = arrived.iter().partition(|n| **n == 1000);
    assert_eq!((ours, theirs.len()), ((0..20).collect(), 10));
    // One token comes back per second.
    std::thread::sleep(Duration::from_millis(1100));
    program.at_once(|| pair.send(50..60));
    let again = pair.numbers(1);
    let most = began.elapsed().as_secs() as usize;
    assert!((1..=most).contains(&again.len()), "{again:?}, and at most {most}");
    let ended = program.interrupt().well();
    assert_eq!((ended.count("received"), ended.count("beyond")), (70, 40 - again.len() as u64));
    assert!(ended.stdout.contains("from 2 sources"), "{ended:?}");
    assert!(ended.stdout.contains("\n127.0.0.1: "), "{ended:?}");
}

fn bytes_are_limited_over_both_versions_of_ip(_: &Namespace) {
    // A datagram is as long as its body and the headers.
    for (address, headers) in [("127.0.0.1", 28), ("::1", 48)] {
        let pair = Pair::at(address);
        let program = start(pair.port(), "--bytes 1500 --burst 10kB");
        program.at_once(|| {
            for _ in 0..20 {
                pair.sender.send(&vec![0; 2000 - headers]).unwrap();
            }
        });
        assert_eq!(pair.receive(5).len(), 5, "{address}");
        let ended = program.interrupt().well();
        assert_eq!(ended.count("beyond"), 15, "{ended:?}");
    }
}

fn what_is_beyond_can_be_marked(_: &Namespace) {
    use netfilterqueue::rules::{Hook, Rule, Rules};
    use netfilterqueue::{Queue, Verdict};
    let pair = Pair::at("127.0.0.1");
    // Who has been marked is dropped behind it.
    let queue = Queue::builder(9).copy_mode(netfilterqueue::CopyMode::Meta).bind().unwrap();
    let rules = Rules::new(Hook::INPUT).priority(10).rule(Rule::queue(9).mark(77));
    let _rules = rules.install().unwrap();
    let program = start(pair.port(), "--packets 1 --burst 4 --mark 0x4d");
    program.at_once(|| pair.send(0..10));
    pair.expect([0, 1, 2, 3]);
    let mut queue = queue;
    queue.set_nonblocking(true);
    queue.run(|packet| packet.verdict(Verdict::Drop)).unwrap();
    assert_eq!(queue.stats().received, 6);
    assert!(program.interrupt().well().stdout.contains("6 beyond the limit and marked"));
}

fn more_sources_than_are_remembered(_: &Namespace) {
    let pair = Pair::at("127.0.0.1");
    let program = start(pair.port(), "--packets 1 --burst 1 --sources 10");
    program.at_once(|| {
        for number in 1..=50 {
            sender(&format!("127.0.1.{number}"), &pair).send(b"packet 1").unwrap();
        }
    });
    assert_eq!(pair.numbers(50).len(), 50);
    let stdout = program.interrupt().well().stdout;
    assert!(stdout.contains("50 received from 10 sources"), "{stdout}");
    assert!(stdout.contains("40 sources forgotten too early"), "{stdout}");
}

fn senseless_limits_are_refused(_: &Namespace) {
    for (arguments, code, reason) in [
        (&["--packets", "0"][..], 2, "0 is not in 1.."),
        (&[], 2, "required"),
        (&["--bytes=1kB", "--burst=1000"], 1, "make --burst 1500 or more"),
    ] {
        let ended = Program::spawn(RATELIMIT, arguments).ended();
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        assert!(ended.stderr.contains(reason), "{ended:?}");
    }
}
