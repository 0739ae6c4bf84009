//! Loss, delay, order, copies and damage, as received.

use std::fs;
use std::time::{Duration, Instant};

use netfilterqueue_netns::Namespace;
use nix::sys::signal::Signal;

use crate::harness::{Test, tests};
use crate::program::{Ended, Program};
use crate::support::{Peers, UdpPair};
use crate::traffic::Pair;

pub const TESTS: [Test; 13] = tests![
    packets_are_lost_as_the_seed_says,
    packets_are_delayed,
    copies_arrive_once_more_and_do_not_come_up_again,
    copies_of_forwarded_packets_arrive,
    copies_arrive_where_packets_come_in,
    packets_overtake_each_other,
    a_rate_is_kept,
    damaged_packets_have_a_wrong_checksum,
    damaged_packets_can_have_a_right_checksum,
    what_is_beyond_the_limit_is_dropped,
    held_packets_arrive_after_an_interrupt_under_load,
    tcp_gets_through_all_of_it,
    senseless_arguments_are_refused,
];

const CHAOS: &str = env!("CARGO_BIN_EXE_chaos");
const BOTH: [&str; 2] = ["127.0.0.1", "::1"];

/// Starts it for the datagrams of a pair.
fn start(pair: &Pair, arguments: &str) -> Program {
    let port = pair.port().to_string();
    let all = format!("--protocol udp --dport {port} {arguments}");
    Program::start(CHAOS, &all.split_ascii_whitespace().collect::<Vec<_>>())
}

fn end(program: Program) -> Ended {
    program.interrupt().well()
}

fn packets_are_lost_as_the_seed_says(_: &Namespace) {
    let arrived = |address| {
        let pair = Pair::at(address);
        let program = start(&pair, "--loss 30 --seed 4711");
        pair.send(0..200);
        let ended = end(program);
        assert_eq!(ended.count("received"), 200, "{ended:?}");
        let passed = 200 - ended.count("lost") as usize;
        let numbers = pair.numbers(passed);
        assert_eq!(numbers.len(), passed, "{ended:?}");
        numbers
    };
    let first = arrived(BOTH[0]);
    assert!((100..180).contains(&first.len()), "{}", first.len());
    assert_eq!(first, arrived(BOTH[1]), "the same seed");
}

fn packets_are_delayed(_: &Namespace) {
    for address in BOTH {
        let pair = Pair::at(address);
        let program = start(&pair, "--delay 150ms");
        let delayed = pair.time_one();
        assert!(delayed >= Duration::from_millis(150), "{delayed:?}");
        pair.send(0..20);
        pair.expect(0..20);
        end(program);
    }
}

fn copies_arrive_once_more_and_do_not_come_up_again(_: &Namespace) {
    for address in BOTH {
        let pair = Pair::at(address);
        let program = start(&pair, "--duplicate 100");
        pair.send(0..20);
        let twice = (0..20).flat_map(|number| [number, number]);
        pair.expect(twice);
        let ended = end(program);
        assert_eq!((ended.count("received"), ended.count("duplicated")), (20, 20), "{ended:?}");
    }
}

fn copies_of_forwarded_packets_arrive(router: &Namespace) {
    let peers = Peers::of(router);
    for UdpPair { sender, receiver } in [peers.udp_v4(), peers.udp_v6()] {
        let pair = Pair { sender, receiver };
        let program = start(&pair, "--hook forward --duplicate 100");
        pair.send(0..10);
        pair.expect((0..10).flat_map(|number| [number, number]));
        let ended = end(program);
        assert_eq!((ended.count("received"), ended.count("duplicated")), (10, 10), "{ended:?}");
    }
}

fn copies_arrive_where_packets_come_in(here: &Namespace) {
    let there = Namespace::new().unwrap();
    here.veth("link", &there, "link").unwrap();
    for (ours, theirs, prefix) in [("10.0.0.1", "10.0.0.2", 24), ("fd00::1", "fd00::2", 64)] {
        here.add_address("link", ours.parse().unwrap(), prefix).unwrap();
        there.add_address("link", theirs.parse().unwrap(), prefix).unwrap();
        let at = |address: &str| std::net::SocketAddr::new(address.parse().unwrap(), 0);
        let pair = Pair {
            sender: there.run(|| std::net::UdpSocket::bind(at(theirs)).unwrap()),
            receiver: std::net::UdpSocket::bind(at(ours)).unwrap(),
        };
        pair.sender.connect(pair.receiver.local_addr().unwrap()).unwrap();
        for hook in ["input", "prerouting"] {
            let program = start(&pair, &format!("--hook {hook} --duplicate 100"));
            pair.send(0..10);
            pair.expect((0..10).flat_map(|number| [number, number]));
            assert_eq!(end(program).count("received"), 10, "{hook}");
        }
    }
}

fn packets_overtake_each_other(_: &Namespace) {
    let pair = Pair::at(BOTH[1]);
    let program = start(&pair, "--reorder 20 --reorder-by 3 --seed 5");
    pair.send(0..100);
    let arrived = pair.numbers(100);
    let ended = end(program);
    let mut sorted = arrived.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..100).collect::<Vec<_>>(), "each of them once");
    let late = arrived.windows(2).filter(|pair| pair[0] > pair[1]).count() as u64;
    assert!(late > 3, "{arrived:?}");
    assert!(late <= ended.count("reordered"), "{late}: {ended:?}");
}

fn a_rate_is_kept(_: &Namespace) {
    let pair = Pair::at(BOTH[0]);
    let program = start(&pair, "--rate 20kB");
    let body = [7; 972];
    let start = Instant::now();
    for _ in 0..20 {
        pair.sender.send(&body).unwrap();
    }
    pair.receiver.set_read_timeout(Some(crate::program::SOON)).unwrap();
    for _ in 0..20 {
        assert_eq!(pair.receiver.recv(&mut [0; 2048]).unwrap(), body.len());
    }
    let took = start.elapsed();
    end(program);
    // 20 packets of 1000 bytes.
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

fn damaged_packets_have_a_wrong_checksum(_: &Namespace) {
    for (address, file, counter) in
        [(BOTH[0], "snmp", "Udp:"), (BOTH[1], "snmp6", "Udp6InCsumErrors")]
    {
        let pair = Pair::at(address);
        let before = wrong_checksums(file, counter);
        let program = start(&pair, "--corrupt 100");
        pair.send(0..25);
        assert_eq!(end(program).count("corrupted"), 25);
        pair.expect([]);
        assert_eq!(wrong_checksums(file, counter) - before, 25);
    }
}

/// The kernel's counter of datagrams with a wrong checksum, in this namespace.
fn wrong_checksums(file: &str, counter: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with(counter));
    let first: Vec<&str> = lines.next().unwrap().split_ascii_whitespace().collect();
    match lines.next() {
        // Names in one line, values in the next.
        Some(values) => {
            let at = first.iter().position(|name| *name == "InCsumErrors").unwrap();
            values.split_ascii_whitespace().nth(at).unwrap().parse().unwrap()
        }
        None => first[1].parse().unwrap(),
    }
}

fn damaged_packets_can_have_a_right_checksum(_: &Namespace) {
    for address in BOTH {
        let pair = Pair::at(address);
        let program = start(&pair, "--corrupt 100 --valid-checksums");
        let body = [0x55; 40];
        for _ in 0..25 {
            pair.sender.send(&body).unwrap();
        }
        let arrived = pair.receive(25);
        assert_eq!(arrived.len(), 25);
        for datagram in arrived {
            let turned = datagram.iter().zip(body).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
            assert_eq!((datagram.len(), turned), (body.len(), 1));
        }
        end(program);
    }
}

fn what_is_beyond_the_limit_is_dropped(_: &Namespace) {
    let pair = Pair::at(BOTH[0]);
    let program = start(&pair, "--delay 300ms --limit 10");
    program.at_once(|| pair.send(0..50));
    pair.expect(0..10);
    assert_eq!(end(program).count("overflowed"), 40);
    let program = start(&pair, "--delay 300ms --limit 10 --fail-open");
    program.at_once(|| pair.send(0..50));
    pair.expect((10..50).chain(0..10));
    assert_eq!(end(program).count("overflowed"), 40);
}

fn held_packets_arrive_after_an_interrupt_under_load(_: &Namespace) {
    let pair = Pair::at(BOTH[1]);
    let program = start(&pair, "--delay 1h --reorder 10 --reorder-wait 1h");
    pair.send(0..60);
    // They are in the queue: datagrams that begin here are queued before they have been sent.
    program.signal(Signal::SIGTERM);
    let ended = program.ended().well();
    assert_eq!(ended.count("received"), 60, "{ended:?}");
    let mut arrived = pair.numbers(60);
    arrived.sort_unstable();
    assert_eq!(arrived, (0..60).collect::<Vec<_>>());
    pair.send(60..61);
    // The rule is gone.
    pair.expect([60]);
}

fn tcp_gets_through_all_of_it(namespace: &Namespace) {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    const LEN: usize = 300_000;
    // Segments as on an Ethernet.
    namespace.set_mtu("lo", 1500).unwrap();
    for address in BOTH {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let to = listener.local_addr().unwrap();
        let port = to.port().to_string();
        let all = "--loss 3 --duplicate 20 --reorder 10 --reorder-wait 5ms --corrupt 5 --delay 1ms \
                   --jitter 1ms --rate 20MB --seed 3 --protocol tcp --dport";
        let arguments: Vec<&str> = all.split_ascii_whitespace().chain([&*port]).collect();
        let program = Program::start(CHAOS, &arguments);
        let body = |at: usize| (at * 7 % 251) as u8;
        let received = std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut received = Vec::new();
                listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
                received
            });
            let mut sender = TcpStream::connect(to).unwrap();
            sender.write_all(&(0..LEN).map(body).collect::<Vec<_>>()).unwrap();
            drop(sender);
            receiver.join().unwrap()
        });
        assert!(
            received.len() == LEN
                && received.iter().enumerate().all(|(at, byte)| *byte == body(at))
        );
        let ended = end(program);
        for word in ["duplicated", "reordered", "corrupted"] {
            assert!(ended.count(word) > 0, "no {word}: {ended:?}");
        }
    }
}

fn senseless_arguments_are_refused(_: &Namespace) {
    for (arguments, code, reason) in [
        (["--loss", "200"], 2, "not between 0 and 100"),
        (["--hook", "nowhere"], 2, "nowhere"),
        (["--loss=90", "--burst=2"], 1, "9.0 packets at least"),
    ] {
        let ended = Program::spawn(CHAOS, &arguments).ended();
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        assert!(ended.stderr.contains(reason), "{ended:?}");
    }
}
