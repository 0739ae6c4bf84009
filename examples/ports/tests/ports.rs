//! The ported programs, started in a network namespace of their own: what they print, that the
//! packets arrive, and how they end.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "../../../tests/live/harness.rs"]
mod harness;
mod port;
#[path = "../../../tests/live/support.rs"]
mod support;

use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;

use harness::{Test, tests};
use netfilterqueue::Queue;
use netfilterqueue::rules::Hook;
use netfilterqueue_netns::Namespace;
use nix::sys::signal::Signal;
use nix::unistd::{getegid, geteuid};

use crate::port::Port;
use crate::support::{Peers, UdpPair, V4, V6, outside, queue_udp, queue_udp_at};

const PRINT_AND_ACCEPT: &str = env!("CARGO_BIN_EXE_print_and_accept");
const NFQ_PRINT: &str = env!("CARGO_BIN_EXE_nfq_print");
const GO_NFQUEUE: &str = env!("CARGO_BIN_EXE_go_nfqueue");
const NFQNL_TEST: &str = env!("CARGO_BIN_EXE_nfqnl_test");
const PRINT: &str = env!("CARGO_BIN_EXE_print");

const TESTS: [Test; 10] = tests![
    print_and_accept_tells_protocol_and_length,
    print_and_accept_ends_at_an_interrupt,
    nfq_print_tells_all_that_nfq_has_getters_for,
    go_nfqueue_prints_ids_and_bytes,
    go_nfqueue_ends_when_its_time_is_up,
    nfqnl_test_tells_where_a_routed_packet_comes_from_and_goes_to,
    nfqnl_test_tells_the_owner_of_a_local_packet,
    what_was_cut_or_stuck_there_passes_whole,
    wrong_arguments_and_taken_queues_are_explained,
    the_smallest_example_prints_a_line_for_each_packet,
];

fn main() -> ExitCode {
    harness::main(&TESTS)
}

/// Both of its ways to run, over IPv4 and IPv6.
fn print_and_accept_tells_protocol_and_length(_: &Namespace) {
    for way in ["run", "run_socket"] {
        let port = Port::start(PRINT_AND_ACCEPT, &["1", way]);
        let _rules = queue_udp(1);
        for (address, headers) in [(V4, 28), (V6, 48)] {
            let udp = UdpPair::new(address);
            for _ in 0..port.wait_until_bound(&udp) {
                assert_eq!(port.line(), format!("UDP packet, {} bytes", headers + 5));
            }
            udp.send(b"hello, hello");
            assert_eq!(port.line(), format!("UDP packet, {} bytes", headers + 12));
            assert_eq!(udp.receive_all(1), [b"hello, hello"]);
        }
        port.expect_no_line();
    }
}

fn print_and_accept_ends_at_an_interrupt(_: &Namespace) {
    for way in ["run", "run_socket"] {
        let port = Port::start(PRINT_AND_ACCEPT, &["1", way]);
        let _rules = queue_udp(1);
        let udp = UdpPair::new(V4);
        for _ in 0..port.wait_until_bound(&udp) {
            port.line();
        }
        // Not by a signal that the original does not catch either.
        port.signal(Signal::SIGINT);
        assert_eq!(port.line(), "", "the line that the terminal's ^C is on is ended");
        assert!(port.end().success());
        drop(Queue::builder(1).bind().expect("the queue was given back"));
    }
    let port = Port::start(PRINT_AND_ACCEPT, &["1"]);
    let _rules = queue_udp(1);
    port.wait_until_bound(&UdpPair::new(V4));
    port.signal(Signal::SIGTERM);
    assert_eq!(port.end().signal(), Some(Signal::SIGTERM as i32), "as the original");
}

fn nfq_print_tells_all_that_nfq_has_getters_for(router: &Namespace) {
    let peers = Peers::of(router);
    let port = Port::start(NFQ_PRINT, &["7"]);
    let _rules = queue_udp_at(Hook::FORWARD, 7);
    let udp = peers.udp_v4();
    let probes = port.wait_until_bound(&udp);
    (0..probes).for_each(|_| drop(port.lines_until("}")));
    udp.send(b"ABC");
    let message = port.lines_until("}");
    assert_eq!(udp.receive_all(1), [b"ABC"]);
    let field = |name: &str| {
        let start = format!("    {name}: ");
        let line = message.iter().position(|line| line.starts_with(&start));
        let line = line.unwrap_or_else(|| panic!("no {name} in {message:#?}"));
        // A value that has lines of its own is `Some(` and one more.
        let value = message[line].trim_start_matches(&start).trim_end_matches(',');
        match value {
            "Some(" => format!("Some({})", message[line + 1].trim().trim_end_matches(',')),
            value => value.to_owned(),
        }
    };
    let some = |link: &str| format!("Some({})", router.link_index(link).unwrap());
    assert_eq!(field("queue_num"), "7");
    assert_eq!(field("packet_id"), (probes + 1).to_string());
    assert_eq!((field("indev"), field("outdev")), (some("left"), some("right")));
    for absent in ["nfmark", "physindev", "physoutdev", "original_len", "uid", "gid"] {
        assert_eq!(field(absent), "None", "{absent}");
    }
    assert_eq!(field("is_seg_offloaded"), "false");
    assert_eq!(field("is_checksum_ready"), "true");
    let address = peers.client.link_address("eth0").unwrap();
    let address = address.map(|byte| format!("{byte:02x}")).join(" ");
    assert_eq!(field("hw_addr"), format!("Some({address})"));
    assert_eq!(field("hw_protocol"), "0x0800");
    assert_eq!(field("hook"), "forward");
    let payload = field("payload");
    assert!(payload.starts_with("45 00 00 1f ") && payload.ends_with(" 41 42 43"), "{payload}");
    for name in ["security_context", "timestamp", "conntrack_id", "conntrack_state"] {
        field(name);
    }
    port.signal(Signal::SIGTERM);
    assert_eq!(port.end().signal(), Some(Signal::SIGTERM as i32), "as the original");
}

fn go_nfqueue_prints_ids_and_bytes(_: &Namespace) {
    // So many seconds that it does not end before the test does.
    let port = Port::start(GO_NFQUEUE, &["100", "600"]);
    let _rules = queue_udp(100);
    let udp = UdpPair::new(V4);
    let probes = port.wait_until_bound(&udp);
    (0..probes).for_each(|_| drop(port.line()));
    for (id, text) in (probes + 1..).zip(["ABC", "D"]) {
        udp.send(text.as_bytes());
        let line = port.line();
        let bytes: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
        let (start, end) = (format!("[{id}]\t[69 0 0 "), format!(" {}]", bytes.join(" ")));
        assert!(line.starts_with(&start) && line.ends_with(&end), "{line}");
        let length = line.split('\t').nth(1).unwrap().split(' ').count();
        assert_eq!(length, 28 + text.len());
        assert_eq!(udp.receive_all(1), [text.as_bytes()]);
    }
}

fn go_nfqueue_ends_when_its_time_is_up(_: &Namespace) {
    let port = Port::start(GO_NFQUEUE, &["100", "1"]);
    assert!(port.end().success());
    port.expect_no_line();
    drop(Queue::builder(100).bind().expect("the queue was given back"));
}

/// Reads what the program says before its first packet.
fn start_nfqnl_test(number: &str) -> Port {
    let port = Port::start(NFQNL_TEST, &[number]);
    assert_eq!(port.line(), format!("binding this socket to queue '{number}'"));
    assert_eq!(port.line(), "Waiting for packets...");
    port
}

/// Reads what it says about one packet, and returns the line with the attributes.
fn nfqnl_packet(port: &Port) -> String {
    assert_eq!(port.line(), "pkt received");
    let line = port.line();
    assert_eq!(port.line(), "entering callback");
    line
}

fn nfqnl_test_tells_where_a_routed_packet_comes_from_and_goes_to(router: &Namespace) {
    let peers = Peers::of(router);
    let port = start_nfqnl_test("3");
    let _rules = queue_udp_at(Hook::FORWARD, 3);
    let address = peers.client.link_address("eth0").unwrap();
    let address = address.map(|byte| format!("{byte:02x}")).join(":");
    let (left, right) = (router.link_index("left").unwrap(), router.link_index("right").unwrap());
    let from_to = format!("hw_src_addr={address} indev={left} outdev={right}");
    for (id, (udp, protocol, length)) in
        [(peers.udp_v4(), "0800", 31), (peers.udp_v6(), "86dd", 51)].into_iter().enumerate()
    {
        udp.send(b"ABC");
        let id = id + 1;
        let line =
            format!("hw_protocol=0x{protocol} hook=2 id={id} {from_to} payload_len={length} ");
        assert_eq!(nfqnl_packet(&port), line);
        assert_eq!(udp.receive_all(1), [b"ABC"]);
    }
    port.signal(Signal::SIGINT);
    assert_eq!(port.end().signal(), Some(Signal::SIGINT as i32), "as the original");
}

fn nfqnl_test_tells_the_owner_of_a_local_packet(namespace: &Namespace) {
    let port = start_nfqnl_test("0");
    let _rules = queue_udp(0);
    let udp = UdpPair::new(V4);
    udp.send(b"ABC");
    let uid = outside("uid_map", geteuid().as_raw());
    let gid = outside("gid_map", getegid().as_raw());
    let loopback = namespace.link_index("lo").unwrap();
    let line = nfqnl_packet(&port);
    // Where a security module labels packets, the label comes before the length.
    let expected = format!("hw_protocol=0x0800 hook=3 id=1 outdev={loopback} uid={uid} gid={gid} ");
    assert!(line.starts_with(&expected) && line.ends_with(" payload_len=31 "), "{line}");
    assert_eq!(udp.receive_all(1), [b"ABC"]);
}

/// A datagram longer than the 4,096 bytes that two of the originals read into.
fn what_was_cut_or_stuck_there_passes_whole(_: &Namespace) {
    let long = [b'x'; 9_000];
    let _rules = queue_udp(1);
    let port = start_nfqnl_test("1");
    let udp = UdpPair::new(V4);
    udp.send(&long);
    assert!(nfqnl_packet(&port).ends_with(" payload_len=9028 "));
    assert_eq!(udp.receive_all(1), [long]);
    drop(port);
    let port = Port::start(PRINT_AND_ACCEPT, &["1"]);
    let udp = UdpPair::new(V4);
    (0..port.wait_until_bound(&udp)).for_each(|_| drop(port.line()));
    udp.send(&long);
    assert_eq!(port.line(), "UDP packet, 9028 bytes");
    assert_eq!(udp.receive_all(1), [long]);
}

fn wrong_arguments_and_taken_queues_are_explained(_: &Namespace) {
    let _taken = Queue::builder(1).bind().unwrap();
    for binary in [PRINT_AND_ACCEPT, NFQ_PRINT, GO_NFQUEUE, NFQNL_TEST] {
        for (argument, reason) in [("65536", "\"65536\" is no queue number"), ("1", "is taken")] {
            let (status, errors) = Port::start(binary, &[argument]).end_with_errors();
            assert_eq!(status.code(), Some(1), "{binary} {argument}");
            assert!(errors.contains(reason), "{errors}");
        }
    }
}

/// Not a port: the library's own `examples/print.rs`.
fn the_smallest_example_prints_a_line_for_each_packet(_: &Namespace) {
    let port = Port::start(PRINT, &["3"]);
    let _rules = queue_udp(3);
    let udp = UdpPair::new(V4);
    (0..port.wait_until_bound(&udp)).for_each(|_| drop(port.line()));
    udp.send(b"hello");
    let line = port.line();
    let ends = [udp.sender.local_addr().unwrap(), udp.receiver_address()];
    assert!(
        line.contains(&format!(" UDP {} → {} 33 bytes, output to lo", ends[0], ends[1])),
        "{line}"
    );
    assert_eq!(udp.receive_all(1), [b"hello"]);
}
