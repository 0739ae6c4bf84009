//! How a queue waits for packets, and what ends a wait.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;

use netfilterqueue::{Batch, Queue, Verdict};
use netfilterqueue_netns::Namespace;
use socket2::SockRef;

use crate::support::{QUIET, SOON, UdpPair, V4, judge, queue_udp};
use crate::{Test, tests};

pub const TESTS: [Test; 4] = tests![
    a_queue_that_is_alone_waits_without_poll,
    a_queue_that_others_can_wake_polls,
    a_stop_is_seen_although_its_handle_is_gone,
    a_socket_in_nonblocking_mode_is_polled,
];

/// Waits for one packet, which comes after a while, and accepts it. Returns how many calls waited
/// and how many received.
fn wait_for_one(queue: &mut Queue, udp: &UdpPair) -> (u64, u64) {
    let before = queue.stats();
    let mut batch = Batch::new(64);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(QUIET);
            udp.send(&[1]);
        });
        assert_eq!(queue.recv(&mut batch).unwrap(), 1);
    });
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(1), [[1]]);
    let after = queue.stats();
    (after.wait_calls - before.wait_calls, after.receive_calls - before.receive_calls)
}

fn a_queue_that_is_alone_waits_without_poll(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    assert_eq!(wait_for_one(&mut queue, &udp), (0, 2), "asked, then waited");
    assert_eq!(wait_for_one(&mut queue, &udp), (0, 1), "known to be empty");
    drop(queue.stop_handle());
    assert_eq!(wait_for_one(&mut queue, &udp), (0, 1));
}

fn a_queue_that_others_can_wake_polls(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    wait_for_one(&mut queue, &udp);

    let stop = queue.stop_handle();
    assert_eq!(wait_for_one(&mut queue, &udp), (1, 1));
    drop(stop);

    udp.send(&[2]);
    let mut batch = Batch::new(1);
    queue.recv(&mut batch).unwrap();
    let (retained, _) = batch.iter_mut().next().unwrap().retain();
    batch.commit().unwrap();
    assert_eq!(wait_for_one(&mut queue, &udp).0, 1, "it can be given a deadline");
    retained.accept().unwrap();
    assert_eq!(udp.receive_all(1), [[2]]);

    udp.send(&[3]);
    queue.recv(&mut batch).unwrap();
    assert_eq!(wait_for_one(&mut queue, &udp).0, 1, "its verdict may be handed over");
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(1), [[3]]);

    assert_eq!(wait_for_one(&mut queue, &udp).0, 0, "all of them are gone");
}

/// The handle is used and dropped at every moment on the way into the wait.
fn a_stop_is_seen_although_its_handle_is_gone(_: &Namespace) {
    const ROUNDS: u32 = 3_000;
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let round = AtomicU32::new(0);
    let (finished, watch) = channel::<()>();
    thread::scope(|scope| {
        let (round, udp) = (&round, &udp);
        scope.spawn(move || {
            let mut before = 0;
            while watch.recv_timeout(SOON) == Err(RecvTimeoutError::Timeout) {
                let now = round.load(Ordering::SeqCst);
                if now == before {
                    // Ends a wait that nobody else ends.
                    udp.send(&[1]);
                }
                before = now;
            }
        });
        for spins in (0..ROUNDS).map(|round| round % 300) {
            let stop = queue.stop_handle();
            thread::scope(|scope| {
                scope.spawn(move || {
                    (0..spins).for_each(|_| spin_loop());
                    stop.stop();
                });
                queue.run(|packet| panic!("a stop was lost: {packet}")).unwrap();
            });
            round.fetch_add(1, Ordering::SeqCst);
        }
        drop(finished);
    });
}

fn a_socket_in_nonblocking_mode_is_polled(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    // Any code that has the descriptor can do this; event loops do.
    SockRef::from(&queue).set_nonblocking(true).unwrap();
    let (waits, receives) = wait_for_one(&mut queue, &udp);
    assert_eq!((waits, receives), (1, 3), "asked, tried to wait, polled, received");
    assert_eq!(wait_for_one(&mut queue, &udp), (1, 1), "and remembered");
}
