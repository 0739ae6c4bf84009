//! The tests of go-nfqueue.

use std::thread;

use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{Queue, Verdict};
use netfilterqueue_netns::Namespace;

use crate::fnfqueue::ping;
use crate::support::{
    Judging, Peers, QUIET, UdpPair, V4, V6, judge, judge_while, queue_udp, receive_exactly,
    wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 3] = tests![
    parity_go_ping_through_a_queue,
    parity_go_cancel_does_not_hang,
    parity_go_one_udp_datagram_intact,
];

fn parity_go_ping_through_a_queue(router: &Namespace) {
    let peers = Peers::of(router);
    let queue = Queue::builder(100).bind().unwrap();
    let judging = Judging::start(queue, |packet| packet.verdict(Verdict::Accept));
    let rule = Rule::queue(100).protocol(Protocol::ICMP);
    let _rules = Rules::new(Hook::FORWARD).rule(rule).install().unwrap();
    for data in [&b"once"[..], b"and again", b""] {
        assert_eq!(peers.client.run(|| ping(data)), data);
    }
    assert_eq!(judging.finish().stats().answered, 6);
}

/// Idle, with packets on their way, and with one that is not judged.
fn parity_go_cancel_does_not_hang(_: &Namespace) {
    let mut queue = Queue::builder(100).bind().unwrap();
    let _rules = queue_udp(100);
    let udp = UdpPair::new(V4);
    let mut cancel = |before: &dyn Fn()| {
        let stop = queue.stop_handle();
        thread::scope(|scope| {
            let running = scope.spawn(|| queue.run(|packet| packet.verdict(Verdict::Accept)));
            before();
            stop.stop();
            wait_until("the end of run", || running.is_finished());
            running.join().unwrap().unwrap();
        });
    };
    cancel(&|| ());
    cancel(&|| thread::sleep(QUIET));
    cancel(&|| udp.send_each(0..100));
    udp.send(b"kept");
    let mut batch = receive_exactly(&mut queue, 1);
    let (kept, _) = batch.iter_mut().next().unwrap().retain();
    queue.close().unwrap();
    drop(kept);
    drop(Queue::builder(100).bind().expect("nothing of it is left"));
}

fn parity_go_one_udp_datagram_intact(_: &Namespace) {
    let mut queue = Queue::builder(100).bind().unwrap();
    let _rules = queue_udp(100);
    let data: Vec<u8> = (0..1_111_u32).map(|at| ((at * 167) >> 3) as u8).collect();
    for address in [V4, V6] {
        let udp = UdpPair::new(address);
        udp.send(&data);
        let mut batch = receive_exactly(&mut queue, 1);
        assert!(batch.iter_mut().next().unwrap().payload().ends_with(&data));
        judge(&mut batch, Verdict::Accept);
        assert_eq!(udp.receive_all(1), [&data[..]]);
        judge_while(
            &mut queue,
            |packet| packet.verdict(Verdict::Drop),
            || {
                udp.send(&data);
                udp.expect_nothing();
            },
        );
    }
}
