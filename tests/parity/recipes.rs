//! The recipes of the documentation (`examples/recipes`), run on real packets.

#![allow(dead_code, reason = "the parts of a recipe that bind a queue for good are not run")]
#![allow(clippy::needless_pass_by_value, reason = "recipes are plain")]
#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "`Packet::accept` is not generic over the lifetime, which `run` asks for"
)]

#[path = "../../examples/recipes/analyse_in_a_thread.rs"]
mod analyse_in_a_thread;
#[path = "../../examples/recipes/balance.rs"]
mod balance;
#[path = "../../examples/recipes/block_port.rs"]
mod block_port;
#[path = "../../examples/recipes/copy_modes.rs"]
mod copy_modes;
#[path = "../../examples/recipes/deadline.rs"]
mod deadline;
#[path = "../../examples/recipes/drain_at_shutdown.rs"]
mod drain_at_shutdown;
#[path = "../../examples/recipes/flow_bypass.rs"]
mod flow_bypass;
#[path = "../../examples/recipes/hardware_addresses.rs"]
mod hardware_addresses;
#[path = "../../examples/recipes/latency.rs"]
mod latency;
#[path = "../../examples/recipes/mark_by_port.rs"]
mod mark_by_port;
#[path = "../../examples/recipes/monitor.rs"]
mod monitor;
#[path = "../../examples/recipes/other_namespace.rs"]
mod other_namespace;
#[path = "../../examples/recipes/replace_in_udp.rs"]
mod replace_in_udp;
#[path = "../../examples/recipes/rewrite_ttl.rs"]
mod rewrite_ttl;
#[path = "../../examples/recipes/select_loop.rs"]
mod select_loop;
#[path = "../../examples/recipes/two_queues.rs"]
mod two_queues;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{CopyMode, FlowMarks, Namespace as Place, Queue, Verdict};
use netfilterqueue_netns::{Namespace, receive_fd, send_fd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;

use crate::support::{
    CLIENT_V4, Judging, Peers, SERVER_V4, SOON, UdpPair, V4, expect_no_packet, judge, judge_while,
    queue_udp, queue_udp_at, receive_exactly, wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 16] = tests![
    parity_recipe_mark_by_port,
    parity_recipe_block_port,
    parity_recipe_rewrite_ttl,
    parity_recipe_latency,
    parity_recipe_hardware_addresses,
    parity_recipe_analyse_in_a_thread,
    parity_recipe_deadline,
    parity_recipe_select_loop,
    parity_recipe_two_queues,
    parity_recipe_balance,
    parity_recipe_other_namespace,
    parity_recipe_copy_modes,
    parity_recipe_replace_in_udp,
    parity_recipe_flow_bypass,
    parity_recipe_drain_at_shutdown,
    parity_recipe_monitor,
];

fn bind(number: u16) -> Queue {
    Queue::builder(number).bind().unwrap()
}

/// From the client to this port of the server.
fn udp_to_port(peers: &Peers, port: u16) -> UdpPair {
    let sender = peers.client.run(|| UdpSocket::bind((CLIENT_V4, 0)).unwrap());
    let receiver = peers.server.run(|| UdpSocket::bind((SERVER_V4, port)).unwrap());
    receiver.set_read_timeout(Some(SOON)).unwrap();
    sender.connect((SERVER_V4, port)).unwrap();
    UdpPair { sender, receiver }
}

fn parity_recipe_mark_by_port(router: &Namespace) {
    let peers = Peers::of(router);
    let _marking = Judging::start(bind(1), mark_by_port::mark);
    let mut later = bind(2);
    let _rules = queue_udp_at(Hook::FORWARD, 1);
    let _later = Rules::new(Hook::POSTROUTING).rule(Rule::queue(2).mark(0x2)).install().unwrap();
    let udp = udp_to_port(&peers, 443);
    udp.send(b"marked");
    let mut batch = receive_exactly(&mut later, 1);
    assert_eq!(batch.iter_mut().next().unwrap().mark(), Some(0x2));
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(1), [b"marked"]);
    let other = udp_to_port(&peers, 444);
    other.send(b"without a mark");
    assert_eq!(other.receive_all(1), [b"without a mark"]);
    expect_no_packet(&mut later);
}

fn parity_recipe_block_port(router: &Namespace) {
    let peers = Peers::of(router);
    let _blocking = Judging::start(bind(1), block_port::block);
    let _rules = Rules::new(Hook::FORWARD).rule(Rule::queue(1)).install().unwrap();
    let connect = |port, patience| {
        let listener = peers.server.run(|| TcpListener::bind((SERVER_V4, port)).unwrap());
        let to = (SERVER_V4, port).into();
        let stream = peers.client.run(|| TcpStream::connect_timeout(&to, patience));
        stream.map(|stream| (stream, listener.accept().unwrap().0))
    };
    assert!(connect(80, Duration::from_millis(300)).is_err(), "port 80 is blocked");
    let (mut client, mut server) = connect(81, SOON).expect("port 81 is open");
    client.write_all(b"hello").unwrap();
    let mut buffer = [0; 5];
    server.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"hello");
}

fn parity_recipe_rewrite_ttl(router: &Namespace) {
    let peers = Peers::of(router);
    let _rewriting = Judging::start(bind(1), rewrite_ttl::rewrite);
    let mut later = bind(2);
    let _rules = queue_udp_at(Hook::FORWARD, 1);
    let _later = queue_udp_at(Hook::POSTROUTING, 2);
    for (udp, offset) in [(peers.udp_v4(), 8), (peers.udp_v6(), 7)] {
        // The router takes one off; only IPv4's can be set here.
        let _ = udp.sender.set_ttl(9);
        udp.send(b"rewritten");
        let mut batch = receive_exactly(&mut later, 1);
        assert_eq!(batch.iter_mut().next().unwrap().payload()[offset], 64);
        judge(&mut batch, Verdict::Accept);
        assert_eq!(udp.receive_all(1), [b"rewritten"], "its checksum is right");
    }
}

fn parity_recipe_latency(router: &Namespace) {
    let peers = Peers::of(router);
    let _stamps = latency::ask_for_time_stamps().unwrap();
    let mut queue = bind(1);
    let _rules = queue_udp_at(Hook::PREROUTING, 1);
    let udp = peers.udp_v4();
    // The kernel begins to stamp packets a moment after it was asked.
    let mut age = None;
    wait_until("a time stamp", || {
        udp.send(b"when");
        let mut batch = receive_exactly(&mut queue, 1);
        thread::sleep(Duration::from_millis(5));
        age = latency::age(&batch.iter_mut().next().unwrap());
        judge(&mut batch, Verdict::Accept);
        udp.receive();
        age.is_some()
    });
    let age = age.unwrap();
    assert!((Duration::from_millis(5)..2 * SOON).contains(&age), "{age:?}");
    let _output = queue_udp(1);
    let local = UdpPair::new(V4);
    local.send(b"made here");
    let mut batch = receive_exactly(&mut queue, 1);
    let packet = batch.iter_mut().next().unwrap();
    assert_eq!((packet.hook(), latency::age(&packet)), (Hook::OUTPUT, None));
}

fn parity_recipe_hardware_addresses(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = bind(1);
    let _rules = queue_udp_at(Hook::FORWARD, 1);
    let udp = peers.udp_v4();
    udp.send(b"who");
    let mut batch = receive_exactly(&mut queue, 1);
    let seen = hardware_addresses::sender(&batch.iter_mut().next().unwrap());
    let client = peers.client.link_address("eth0").unwrap();
    let client = client.map(|byte| format!("{byte:02x}")).join(":");
    assert_eq!(seen, format!("{client} at left"));
    let _output = queue_udp(1);
    UdpPair::new(V4).send(b"me");
    let mut batch = receive_exactly(&mut queue, 1);
    assert_eq!(hardware_addresses::sender(&batch.iter_mut().next().unwrap()), "no address");
}

fn parity_recipe_analyse_in_a_thread(_: &Namespace) {
    let mut queue = bind(1);
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let good = [&[b'.'; 100][..], b"good"].concat();
    let evil = [&[b'.'; 100][..], b"evil"].concat();
    let (work, packets) = mpsc::channel();
    let analysing = thread::spawn(|| analyse_in_a_thread::analyse(packets));
    let mut received = judge_while(
        &mut queue,
        |packet| analyse_in_a_thread::hand_over(packet, &work),
        || {
            [&b"short"[..], &evil, &good].into_iter().for_each(|data| udp.send(data));
            udp.receive_all(2)
        },
    );
    received.sort();
    assert_eq!(received, [&good[..], b"short"]);
    drop(work);
    analysing.join().unwrap();
    assert_eq!((queue.stats().answered, queue.stats().held), (3, 0));
    // Without the thread, the default verdict.
    let (work, _) = mpsc::channel();
    let judge = |packet: netfilterqueue::Packet<'_>| {
        let _ = analyse_in_a_thread::hand_over(packet, &work);
    };
    udp.send(&good);
    receive_exactly(&mut queue, 1).iter_mut().for_each(judge);
    udp.expect_nothing();
    assert_eq!((queue.stats().answered, queue.stats().held), (4, 0));
}

fn parity_recipe_deadline(_: &Namespace) {
    let mut queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let (work, packets) = mpsc::channel();
    let deciding = thread::spawn(|| deadline::decide_slowly(packets));
    judge_while(
        &mut queue,
        |packet| deadline::hand_over(packet, &work),
        || {
            udp.send(b"easy");
            udp.expect_nothing();
            udp.send(b"hard to tell");
            assert_eq!(udp.receive_all(1), [b"hard to tell"], "accepted at its deadline");
        },
    );
    drop(work);
    deciding.join().unwrap();
    let stats = queue.stats();
    assert_eq!((stats.expired, stats.answered, stats.held, stats.retained), (1, 2, 0, 0));
}

fn parity_recipe_select_loop(_: &Namespace) {
    let mut queues = Queue::builder([1, 2]).on_undecided(Verdict::Accept).bind_each().unwrap();
    let stop = queues[1].stop_handle();
    let mut kept = Vec::new();
    thread::scope(|scope| {
        let looping = scope.spawn(|| {
            let result = select_loop::select_loop(&mut queues, |packet| {
                if !packet.payload().ends_with(b"kept") {
                    return packet.accept();
                }
                let (mut retained, decided) = packet.retain();
                retained.set_deadline(Some(std::time::Instant::now() + Duration::from_millis(20)));
                kept.push(retained);
                decided
            });
            result.map_err(|error| error.to_string())
        });
        for number in [1, 2, 1] {
            let rules = queue_udp(number);
            let udp = UdpPair::new(V4);
            udp.send(&[number as u8]);
            assert_eq!(udp.receive(), [number as u8]);
            udp.send(b"kept");
            assert_eq!(udp.receive(), b"kept", "the loop wakes up for its deadline");
            drop(rules);
        }
        assert!(!looping.is_finished());
        stop.stop();
        assert_eq!(looping.join().unwrap(), Ok(()));
    });
    let [first, second] = [queues[0].stats(), queues[1].stats()];
    assert_eq!((first.received, second.received), (4, 2));
    assert_eq!((first.expired, second.expired), (2, 1));
}

fn parity_recipe_two_queues(_: &Namespace) {
    let queue = Queue::builder([1, 2]).bind().unwrap();
    let _judging = Judging::start(queue, two_queues::judge);
    let data: [&[u8]; 3] = [b"unwanted", b"confidential", b"ordinary"];
    for (number, dropped) in [(1, 0), (2, 1)] {
        let _rules = queue_udp(number);
        let udp = UdpPair::new(V4);
        data.into_iter().for_each(|data| udp.send(data));
        let mut expected = data.to_vec();
        expected.remove(dropped);
        assert_eq!(udp.receive_all(2), expected);
    }
}

fn parity_recipe_balance(router: &Namespace) {
    const SENDERS: u8 = 20;
    let peers = Peers::of(router);
    let mut fanout = Queue::builder(1..=4).bind_fanout().unwrap();
    let rule = Rule::queues(1..=4).protocol(Protocol::UDP);
    let _rules = Rules::new(Hook::FORWARD).rule(rule).install().unwrap();
    let stop = fanout.stop_handle();
    thread::scope(|scope| {
        let running = scope.spawn(|| fanout.run(balance::judge_of));
        for sender in 10..10 + SENDERS {
            let sender = IpAddr::from([10, 1, 0, sender]);
            peers.client.add_address("eth0", sender, 24).unwrap();
            let udp = UdpPair::between((&peers.client, sender), (&peers.server, SERVER_V4));
            udp.send(b"unwanted");
            udp.send(b"ordinary");
            assert_eq!(udp.receive(), b"ordinary");
        }
        stop.stop();
        running.join().unwrap().unwrap();
    });
    let received: Vec<_> = fanout.queues().iter().map(|queue| queue.stats().received).collect();
    assert_eq!(fanout.stats().received, 2 * u64::from(SENDERS));
    assert!(received.iter().filter(|packets| **packets > 0).count() > 1, "{received:?}");
}

fn parity_recipe_other_namespace(router: &Namespace) {
    let peers = Peers::of(router);
    let udp = peers.udp_v4();
    let pass = |queue: &mut Queue| {
        udp.send(b"from inside");
        judge(&mut receive_exactly(queue, 1), Verdict::Accept);
        assert_eq!(udp.receive_all(1), [b"from inside"]);
    };
    let outside = Namespace::new().unwrap();
    let place = Place::open(router.path()).unwrap();
    let (mut queue, rules) = outside.run(|| other_namespace::queue_in(&place, 1).unwrap());
    outside.run(|| pass(&mut queue));
    rules.remove().unwrap();

    let (inside, here) = UnixStream::pair().unwrap();
    router.run(|| send_fd(&inside, other_namespace::open_inside().unwrap()).unwrap());
    let socket = receive_fd(&here).unwrap();
    let mut queue = outside.run(|| other_namespace::queue_on(socket, 2).unwrap());
    let _rules = queue_udp_at(Hook::FORWARD, 2);
    outside.run(|| pass(&mut queue));
}

fn parity_recipe_copy_modes(_: &Namespace) {
    let _marking = Judging::start(bind(1), |mut packet| {
        let is_bad = packet.payload().ends_with(b"bad");
        packet.set_mark(if is_bad { 0xbad } else { 0 });
        packet.accept()
    });
    let meta = Queue::builder(2).copy_mode(CopyMode::Meta).bind().unwrap();
    let _by_attributes = Judging::start(meta, |packet| {
        assert!(packet.payload().is_empty());
        copy_modes::drop_marked(packet)
    });
    let headers = CopyMode::Packet { range: 128 };
    let headers = Queue::builder(3).copy_mode(headers).bind().unwrap();
    let _by_headers = Judging::start(headers, |packet| {
        assert!(packet.payload().len() <= 128);
        copy_modes::drop_long(packet)
    });
    let _rules = [(1, 0), (2, 1), (3, 2)].map(|(number, priority)| {
        let rules = Rules::new(Hook::OUTPUT).priority(priority);
        rules.rule(Rule::queue(number).protocol(Protocol::UDP)).install().unwrap()
    });
    let udp = UdpPair::new(V4);
    udp.send(b"bad");
    udp.send(&[b'.'; 1_200]);
    udp.send(&[b'.'; 500]);
    udp.send(b"good");
    assert_eq!(udp.receive_all(2), [&[b'.'; 500][..], b"good"]);
}

fn parity_recipe_replace_in_udp(router: &Namespace) {
    let peers = Peers::of(router);
    let _replacing =
        Judging::start(bind(1), |packet| replace_in_udp::replace(packet, "cat", "elephant"));
    let _rules = queue_udp_at(Hook::FORWARD, 1);
    for udp in [peers.udp_v4(), peers.udp_v6()] {
        for text in ["a cat", "two cats", "cat sees cat.", "a dog", ""] {
            udp.send(text.as_bytes());
            let expected = text.replace("cat", "elephant");
            assert_eq!(udp.receive(), expected.as_bytes());
        }
        udp.expect_nothing();
    }
}

fn parity_recipe_flow_bypass(_: &Namespace) {
    let queue = bind(1);
    let rules = Rules::new(Hook::OUTPUT)
        .rule(Rule::queue(1).protocol(Protocol::UDP))
        .flow_bypass(FlowMarks::default())
        .install()
        .unwrap();
    let flows = rules.flow_bypass().unwrap();
    let judging = Judging::start(queue, move |packet| flow_bypass::decide(packet, flows));
    for (decision, passes) in [("harmless", true), ("forbidden", false)] {
        let udp = UdpPair::new(V4);
        udp.send(b"undecided");
        udp.send(b"as yet");
        assert_eq!(udp.receive_all(2), [&b"undecided"[..], b"as yet"]);
        udp.send(decision.as_bytes());
        let expected = if passes { vec![decision.as_bytes().to_vec()] } else { Vec::new() };
        assert_eq!(udp.receive_all(expected.len()), expected);
        for _ in 0..5 {
            // Its sender may be told that it was dropped.
            let _ = udp.sender.send(b"decided");
        }
        let expected = if passes { 5 } else { 0 };
        assert_eq!(udp.receive_all(expected).len(), expected);
    }
    assert_eq!(judging.finish().stats().received, 6, "what is decided does not come up");
}

fn parity_recipe_drain_at_shutdown(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = bind(1);
    let rules = queue_udp_at(Hook::FORWARD, 1);
    drain_at_shutdown::stop_at(&[Signal::SIGUSR2 as i32], queue.stop_handle()).unwrap();
    let udp = peers.udp_v4();
    thread::scope(|scope| {
        let running = scope.spawn(|| queue.run(|packet| packet.verdict(Verdict::Accept)));
        udp.send(b"before");
        assert_eq!(udp.receive(), b"before");
        kill(getpid(), Signal::SIGUSR2).unwrap();
        running.join().unwrap().unwrap();
    });
    udp.send_each(0..100);
    let mut drained = 0;
    drain_at_shutdown::finish(queue, rules, |packet| {
        drained += 1;
        packet.verdict(Verdict::Accept)
    })
    .unwrap();
    assert_eq!(udp.receive_all(100).concat(), (0..100).collect::<Vec<u8>>());
    assert_eq!(drained, 100);
    udp.send(b"after");
    assert_eq!(udp.receive_all(1), [b"after"]);
}

fn parity_recipe_monitor(_: &Namespace) {
    let queue = bind(1);
    let handle = queue.stats_handle();
    let _rules = queue_udp(1);
    let judging = Judging::start(queue, |packet| packet.verdict(Verdict::Accept));
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    udp.receive_all(3);
    let line = monitor::line(&handle.stats());
    assert!(
        line.starts_with("received 3 lost 0 held 0 refused 0 expired 0 system calls "),
        "{line}"
    );
    drop(judging.finish());
    assert_eq!(handle.stats().received, 3, "also when the queue is gone");
}
