//! Flow bypass for TCP connections: nothing of a decided one comes up.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{FlowBypass, Packet, Queue};
use netfilterqueue_netns::Namespace;

use crate::craft;
use crate::flow::{Decide, accept_flow, drop_flow, expect_passing, install, judge_next, udp_rules};
use crate::support::{Judging, Peers, QUIET, SERVER_V4, SERVER_V6, SOON, V4, V6, wait_until};
use crate::{Test, tests};

pub const TESTS: [Test; 4] = tests![
    an_accepted_connection_stays_in_the_kernel,
    an_accepted_connection_on_loopback_stays_in_the_kernel,
    a_dropped_connection_stays_in_the_kernel,
    flows_older_than_the_rules_take_part,
];

/// What a judge does with the first packet that carries data, and how many packets there were.
struct OneDecision {
    judging: Judging,
    seen: Arc<AtomicUsize>,
    decide: Arc<Mutex<Option<Decide>>>,
}

impl OneDecision {
    fn start(queue: Queue, bypass: FlowBypass) -> Self {
        let seen = Arc::new(AtomicUsize::new(0));
        let decide = Arc::new(Mutex::new(None::<Decide>));
        let (counter, next) = (Arc::clone(&seen), Arc::clone(&decide));
        let judging = Judging::start(queue, move |packet| {
            counter.fetch_add(1, Ordering::SeqCst);
            let decision =
                if is_data(&packet) { next.lock().expect("no panic").take() } else { None };
            match decision {
                Some(decide) => decide(packet, bypass),
                None => packet.accept(),
            }
        });
        Self { judging, seen, decide }
    }

    fn next(&self, decide: Decide) {
        *self.decide.lock().expect("no panic") = Some(decide);
    }

    fn is_made(&self) -> bool {
        self.decide.lock().expect("no panic").is_none()
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

fn is_data(packet: &Packet<'_>) -> bool {
    !craft::data(packet.payload()).is_empty()
}

/// Both ends of a TCP connection.
fn connection(from: &Namespace, to: &Namespace, address: IpAddr) -> (TcpStream, TcpStream) {
    let listener = to.run(|| TcpListener::bind((address, 0)).expect("a listener"));
    let server = listener.local_addr().expect("an address");
    let client = from.run(|| TcpStream::connect_timeout(&server, SOON).expect("connected"));
    let (accepted, _) = listener.accept().expect("a connection");
    for stream in [&client, &accepted] {
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
    }
    (client, accepted)
}

fn transfer(from: &mut TcpStream, to: &mut TcpStream, data: &[u8]) {
    thread::scope(|scope| {
        scope.spawn(|| from.write_all(data).expect("sent"));
        let mut received = vec![0; data.len()];
        to.read_exact(&mut received).expect("received");
        assert!(received == data, "the data was changed");
    });
}

fn tcp_rules(hook: Hook) -> Rules {
    Rules::new(hook).rule(Rule::queue(1).protocol(Protocol::TCP))
}

fn an_accepted_connection_stays_in_the_kernel(router: &Namespace) {
    let peers = Peers::of(router);
    let queue = Queue::builder(1).bind().unwrap();
    let (_rules, bypass) = install(tcp_rules(Hook::FORWARD));
    let judge = OneDecision::start(queue, bypass);
    for address in [SERVER_V4, SERVER_V6] {
        expect_connection_to_pass(&judge, || connection(&peers.client, &peers.server, address));
    }
    drop(judge.judging.finish());
}

fn an_accepted_connection_on_loopback_stays_in_the_kernel(host: &Namespace) {
    let queue = Queue::builder(1).bind().unwrap();
    let (_rules, bypass) = install(tcp_rules(Hook::OUTPUT));
    let judge = OneDecision::start(queue, bypass);
    for address in [V4, V6] {
        expect_connection_to_pass(&judge, || connection(host, host, address));
    }
    drop(judge.judging.finish());
}

fn expect_connection_to_pass(judge: &OneDecision, connection: impl Fn() -> (TcpStream, TcpStream)) {
    let (mut client, mut server) = connection();
    let (mut other, mut other_end) = connection();
    transfer(&mut other, &mut other_end, b"undecided");
    wait_until_settled(judge);
    let before = judge.seen();
    judge.next(accept_flow);
    transfer(&mut client, &mut server, b"decided");
    assert!(judge.is_made());
    assert_eq!(judge.seen(), before + 1);
    transfer(&mut client, &mut server, &vec![1; 200_000]);
    transfer(&mut server, &mut client, &vec![2; 200_000]);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    assert_eq!(judge.seen(), before + 1, "the end of the connection does not come up either");
    transfer(&mut other, &mut other_end, b"undecided");
    assert!(judge.seen() > before + 1, "the other connection still comes up");
}

/// Waits until no acknowledgement is on its way any more.
fn wait_until_settled(judge: &OneDecision) {
    let mut last = usize::MAX;
    wait_until("quiet", || {
        thread::sleep(QUIET);
        std::mem::replace(&mut last, judge.seen()) == judge.seen()
    });
}

fn a_dropped_connection_stays_in_the_kernel(router: &Namespace) {
    let peers = Peers::of(router);
    let queue = Queue::builder(1).bind().unwrap();
    let (_rules, bypass) = install(tcp_rules(Hook::FORWARD));
    let judge = OneDecision::start(queue, bypass);
    for address in [SERVER_V4, SERVER_V6] {
        let (mut client, mut server) = connection(&peers.client, &peers.server, address);
        wait_until_settled(&judge);
        let before = judge.seen();
        judge.next(drop_flow);
        client.write_all(b"forbidden").unwrap();
        wait_until("a decision", || judge.is_made());
        server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        assert!(server.read(&mut [0]).is_err(), "retransmissions are dropped too");
        server.write_all(b"back").unwrap();
        client.set_read_timeout(Some(QUIET)).unwrap();
        assert!(client.read(&mut [0]).is_err(), "the other direction is dropped too");
        assert_eq!(judge.seen(), before + 1);
        let (mut other, mut other_end) = connection(&peers.client, &peers.server, address);
        transfer(&mut other, &mut other_end, b"allowed");
        assert!(judge.seen() > before + 1, "the other connection comes up");
    }
    drop(judge.judging.finish());
}

fn flows_older_than_the_rules_take_part(router: &Namespace) {
    let peers = Peers::of(router);
    let udp = peers.udp_v4();
    udp.send(b"before");
    assert_eq!(udp.receive_all(1), [b"before"]);
    let (mut client, mut server) = connection(&peers.client, &peers.server, SERVER_V6);
    transfer(&mut client, &mut server, b"before");
    let mut queue = Queue::builder(1).bind().unwrap();
    let rules = udp_rules(Hook::FORWARD, 1).rule(Rule::queue(1).protocol(Protocol::TCP));
    let (_rules, bypass) = install(rules);
    udp.send(b"decided");
    judge_next(&mut queue, |packet| packet.accept_flow(bypass));
    assert_eq!(udp.receive_all(1), [b"decided"]);
    expect_passing(&mut queue, &udp);
    let judge = OneDecision::start(queue, bypass);
    judge.next(accept_flow);
    transfer(&mut server, &mut client, b"decided");
    transfer(&mut client, &mut server, &vec![1; 100_000]);
    assert!(judge.is_made());
    assert_eq!(judge.seen(), 1, "nothing else of the connection came up");
    drop(judge.judging.finish());
}
