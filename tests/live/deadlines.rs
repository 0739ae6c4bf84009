//! Retained packets that must have a verdict by some time.

use std::os::fd::AsFd;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::rules::Hook;
use netfilterqueue::{Batch, Error, NotSent, Queue, RetainedPacket, Verdict};
use netfilterqueue_netns::Namespace;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;

use crate::craft::data;
use crate::held::{bind, retain_one};
use crate::support::{
    Feed, QUIET, SOON, UdpPair, V4, judge_while, kernel_stats, queue_udp, queue_udp_at,
    receive_exactly, wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 19] = tests![
    a_packet_is_accepted_at_its_deadline_while_run_blocks,
    a_packet_is_dropped_at_its_deadline_while_run_blocks,
    a_verdict_after_the_deadline_says_so,
    a_deadline_that_is_taken_away_does_not_pass,
    a_deadline_is_moved,
    a_deadline_set_elsewhere_wakes_a_sleeping_queue,
    a_deadline_in_the_past_passes_at_once,
    a_deadline_that_has_passed_cannot_be_moved,
    a_packet_dropped_before_its_deadline_gets_one_verdict,
    a_packet_judged_before_its_deadline_gets_one_verdict,
    a_packet_judged_in_time_is_left_alone_when_others_expire,
    a_thousand_deadlines_pass,
    packets_leave_in_the_order_of_their_deadlines,
    deadlines_of_equal_ids_in_two_queues_are_apart,
    verdicts_race_with_deadlines,
    a_verdict_that_cannot_be_sent_leaves_the_deadline,
    an_event_loop_is_told_of_deadlines,
    a_deadline_of_a_closed_queue_changes_nothing,
    receiving_for_a_time_lets_deadlines_pass,
];

const LATER: Duration = Duration::from_secs(3_600);

fn bind_accepting() -> Queue {
    Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap()
}

fn retain_all(queue: &mut Queue, count: usize) -> Vec<RetainedPacket> {
    receive_exactly(queue, count).iter_mut().map(|packet| packet.retain().0).collect()
}

/// Receives for a time, in which no packet may come.
fn let_pass(queue: &mut Queue, time: Duration) {
    let result = queue.recv_timeout(&mut Batch::new(4), time);
    assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
}

/// Receives until so many deadlines have passed.
fn let_expire(queue: &mut Queue, expired: u64) {
    let until = Instant::now() + SOON;
    while queue.stats().expired < expired {
        let_pass(queue, Duration::from_millis(1));
        assert!(Instant::now() < until, "{} deadlines passed", queue.stats().expired);
    }
    assert_eq!(queue.stats().expired, expired);
}

/// Retains a packet in `run`, and returns what came of its deadline.
fn expire_in_run(verdict: Verdict, expect: impl FnOnce(&UdpPair)) {
    const TIME: Duration = Duration::from_millis(20);
    let mut queue = Queue::builder(1).on_undecided(verdict).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let stats = queue.stats_handle();
    let kept = Mutex::new(Vec::new());
    let keep = |packet: RetainedPacket| kept.lock().unwrap().push(packet);
    let sent = Instant::now();
    judge_while(
        &mut queue,
        |packet| {
            let (mut retained, decided) = packet.retain();
            retained.set_deadline(Some(Instant::now() + TIME));
            keep(retained);
            decided
        },
        || {
            udp.send(b"a");
            wait_until("the deadline", || stats.stats().expired == 1);
            assert!(sent.elapsed() >= TIME, "too early");
            wait_until("the verdict", || stats.stats().held == 0);
            expect(&udp);
        },
    );
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.retained, stats.refused), (1, 1, 0));
    assert!(stats.wait_calls <= 6, "it does not spin: {stats:?}");
    drop(kept);
    assert_eq!((queue.stats().answered, queue.stats().retained), (1, 0));
}

fn a_packet_is_accepted_at_its_deadline_while_run_blocks(_: &Namespace) {
    expire_in_run(Verdict::Accept, |udp| assert_eq!(udp.receive(), b"a"));
}

fn a_packet_is_dropped_at_its_deadline_while_run_blocks(_: &Namespace) {
    expire_in_run(Verdict::Drop, UdpPair::expect_nothing);
}

fn a_verdict_after_the_deadline_says_so(_: &Namespace) {
    let mut queue = bind_accepting();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"late");
    let mut packet = retain_one(&mut queue);
    let deadline = Instant::now() + Duration::from_millis(2);
    packet.set_deadline(Some(deadline));
    assert_eq!((packet.deadline(), queue.next_deadline()), (Some(deadline), Some(deadline)));
    let_expire(&mut queue, 1);
    assert_eq!(udp.receive(), b"late");
    assert_eq!(queue.next_deadline(), None);
    let NotSent { packet, error } = packet.verdict(Verdict::Drop).unwrap_err();
    assert!(matches!(error, Error::Expired), "{error:?}");
    assert_eq!((data(packet.payload()), packet.id()), (&b"late"[..], 1));
    let NotSent { packet, error } = packet.accept().unwrap_err();
    assert!(matches!(error, Error::Expired), "{error:?}");
    assert_eq!(queue.stats().retained, 1);
    drop(packet);
    let_pass(&mut queue, Duration::from_millis(1));
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.refused, stats.held, stats.retained), (1, 0, 0, 0));
}

fn a_deadline_that_is_taken_away_does_not_pass(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let mut packet = retain_one(&mut queue);
    packet.set_deadline(Some(Instant::now() + Duration::from_millis(30)));
    packet.set_deadline(None);
    assert_eq!((packet.deadline(), queue.next_deadline()), (None, None));
    let_pass(&mut queue, Duration::from_millis(40));
    assert_eq!((queue.stats().expired, queue.stats().held), (0, 1));
    packet.accept().unwrap();
    assert_eq!(udp.receive(), b"a");
}

fn a_deadline_is_moved(_: &Namespace) {
    let mut queue = bind_accepting();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..2);
    let [mut first, mut second] = <[_; 2]>::try_from(retain_all(&mut queue, 2)).unwrap();
    let now = Instant::now();
    first.set_deadline(Some(now + Duration::from_millis(10)));
    second.set_deadline(Some(now + LATER));
    assert_eq!(queue.next_deadline(), first.deadline());
    first.set_deadline(Some(now + 2 * LATER));
    assert_eq!(queue.next_deadline(), second.deadline(), "later than the other one now");
    let_pass(&mut queue, Duration::from_millis(20));
    assert_eq!((queue.stats().expired, queue.stats().held), (0, 2));
    second.set_deadline(Some(Instant::now() + Duration::from_millis(2)));
    let_expire(&mut queue, 1);
    assert_eq!(udp.receive(), [1]);
    assert_eq!(queue.next_deadline(), first.deadline());
    first.accept().expect("in time");
    assert_eq!(udp.receive(), [0]);
}

fn a_deadline_set_elsewhere_wakes_a_sleeping_queue(_: &Namespace) {
    let mut queue = bind_accepting();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..2);
    let mut packets = retain_all(&mut queue, 2);
    packets[1].set_deadline(Some(Instant::now() + LATER));
    judge_while(
        &mut queue,
        |packet| packet.verdict(Verdict::Accept),
        || {
            udp.send(b"it runs");
            assert_eq!(udp.receive(), b"it runs");
            // So that it sleeps.
            thread::sleep(Duration::from_millis(20));
            packets[0].set_deadline(Some(Instant::now() + Duration::from_millis(5)));
            assert_eq!(udp.receive(), [0]);
            thread::sleep(Duration::from_millis(20));
            packets[1].set_deadline(Some(Instant::now() + Duration::from_millis(5)));
            assert_eq!(udp.receive(), [1]);
        },
    );
    assert_eq!((queue.stats().expired, queue.stats().held), (2, 0));
}

fn a_deadline_in_the_past_passes_at_once(_: &Namespace) {
    let mut queue = bind_accepting();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..2);
    let mut packets = retain_all(&mut queue, 2);
    let past = Instant::now().checked_sub(Duration::from_millis(1)).unwrap();
    packets.iter_mut().for_each(|packet| packet.set_deadline(Some(past)));
    assert_eq!(queue.next_deadline(), Some(past));
    // As long as nobody receives, nobody has given the default verdict.
    packets.remove(0).verdict(Verdict::Drop).expect("not given yet");
    queue.set_nonblocking(true);
    let result = queue.recv(&mut Batch::new(1));
    assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
    assert_eq!(udp.receive_all(1), [[1]]);
    assert_eq!((queue.stats().expired, queue.stats().answered), (1, 2));
}

fn a_deadline_that_has_passed_cannot_be_moved(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let mut packet = retain_one(&mut queue);
    let deadline = Instant::now();
    packet.set_deadline(Some(deadline));
    let_expire(&mut queue, 1);
    for at in [Some(Instant::now() + LATER), None] {
        packet.set_deadline(at);
        assert_eq!((packet.deadline(), queue.next_deadline()), (Some(deadline), None));
    }
    let error = packet.accept().unwrap_err().error;
    assert!(matches!(error, Error::Expired), "{error:?}");
    let_pass(&mut queue, Duration::from_millis(1));
    assert_eq!((queue.stats().answered, queue.stats().refused), (1, 0));
}

/// Asserts that the kernel was told once about each of the packets, also after their deadlines.
fn expect_one_verdict_each(queue: &mut Queue, packets: u64) {
    let_pass(queue, Duration::from_millis(40));
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.refused, stats.expired), (packets, 0, 0));
    assert_eq!((stats.held, stats.retained, queue.next_deadline()), (0, 0, None));
}

fn a_packet_dropped_before_its_deadline_gets_one_verdict(_: &Namespace) {
    let mut queue = bind_accepting();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let mut packet = retain_one(&mut queue);
    packet.set_deadline(Some(Instant::now() + Duration::from_millis(20)));
    drop(packet);
    assert_eq!(udp.receive(), b"a");
    expect_one_verdict_each(&mut queue, 1);
}

fn a_packet_judged_before_its_deadline_gets_one_verdict(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    for mut packet in retain_all(&mut queue, 3) {
        packet.set_deadline(Some(Instant::now() + Duration::from_millis(20)));
        packet.accept().unwrap();
    }
    expect_one_verdict_each(&mut queue, 3);
    assert_eq!(udp.receive_all(3), [[0], [1], [2]]);
}

fn a_packet_judged_in_time_is_left_alone_when_others_expire(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..5);
    let deadline = Instant::now();
    let mut packets = retain_all(&mut queue, 5);
    for (at, packet) in (0..).zip(&mut packets) {
        packet.set_deadline(Some(deadline + Duration::from_micros(at)));
    }
    let last = packets.split_off(4);
    for packet in packets.split_off(1) {
        packet.accept().unwrap();
    }
    let_expire(&mut queue, 2);
    drop((packets, last));
    let_pass(&mut queue, Duration::ZERO);
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.refused, stats.held), (5, 0, 0));
    assert_eq!(udp.receive_all(3), [[1], [2], [3]]);
}

fn a_thousand_deadlines_pass(_: &Namespace) {
    const PACKETS: usize = 1_000;
    let mut queue = bind();
    let _rules = queue_udp_at(Hook::INPUT, 1);
    let udp = UdpPair::new(V4);
    let mut packets = Vec::new();
    while packets.len() < PACKETS {
        udp.send_each(0..50);
        packets.extend(retain_all(&mut queue, 50));
    }
    let now = Instant::now();
    for (at, packet) in (0_u64..).zip(&mut packets) {
        // All in an order of their own, and none equal.
        packet.set_deadline(Some(now + Duration::from_micros(20 * (at * 7 % 1_000))));
    }
    let_expire(&mut queue, PACKETS as u64);
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.held, stats.refused), (PACKETS as u64, 0, 0));
    assert_eq!(stats.retained, PACKETS as u64);
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!(kernel.waiting, 0);
    }
    for packet in packets {
        let error = packet.accept().unwrap_err().error;
        assert!(matches!(error, Error::Expired), "{error:?}");
    }
    let_pass(&mut queue, Duration::ZERO);
    assert_eq!((queue.stats().refused, queue.stats().retained), (0, 0));
}

fn packets_leave_in_the_order_of_their_deadlines(_: &Namespace) {
    let mut queue = bind_accepting();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..100);
    let mut packets = retain_all(&mut queue, 100);
    let now = Instant::now();
    let place = |packet: u64| packet * 37 % 100;
    for (at, packet) in (0..).zip(&mut packets) {
        packet.set_deadline(Some(now + Duration::from_micros(50 * place(at))));
    }
    let_expire(&mut queue, 100);
    let mut order: Vec<u8> = (0..100).collect();
    order.sort_by_key(|packet| place(u64::from(*packet)));
    let arrived: Vec<u8> = (0..100).map(|_| udp.receive()[0]).collect();
    assert_eq!(arrived, order);
}

fn deadlines_of_equal_ids_in_two_queues_are_apart(_: &Namespace) {
    let mut queue = Queue::builder([1, 5]).on_undecided(Verdict::Accept).bind().unwrap();
    let feed = Feed::of([1, 5]);
    feed.send_each([7]);
    let mut packets = retain_all(&mut queue, 2);
    assert_eq!((packets[1].queue(), packets[1].id()), (5, packets[0].id()));
    packets[1].set_deadline(Some(Instant::now()));
    let_expire(&mut queue, 1);
    assert_eq!(feed.udp[1].receive(), [7]);
    feed.udp[0].expect_nothing();
    packets.remove(0).accept().expect("it has no deadline");
    assert_eq!(feed.udp[0].receive(), [7]);
}

fn verdicts_race_with_deadlines(_: &Namespace) {
    const ROUNDS: u64 = 200;
    let mut queue = bind_accepting();
    let _rules = queue_udp_at(Hook::INPUT, 1);
    let udp = UdpPair::new(V4);
    let stats = queue.stats_handle();
    let (to_judge, packets) = mpsc::channel::<RetainedPacket>();
    let mut late = 0;
    judge_while(
        &mut queue,
        move |packet| {
            let (mut retained, decided) = packet.retain();
            let now = Instant::now();
            retained.set_deadline(Some(now + Duration::from_micros(100)));
            to_judge.send(retained).unwrap();
            decided
        },
        || {
            for round in 0..ROUNDS {
                udp.send(b"a");
                let packet = packets.recv_timeout(SOON).unwrap();
                let at = packet.deadline().unwrap() + Duration::from_micros(8 * round);
                while Instant::now() < at {
                    std::hint::spin_loop();
                }
                match packet.verdict(Verdict::Accept) {
                    Ok(()) => {}
                    Err(NotSent { error: Error::Expired, .. }) => late += 1,
                    Err(error) => panic!("{error}"),
                }
                assert_eq!(udp.receive(), b"a");
            }
            wait_until("all verdicts", || stats.stats().held == 0);
        },
    );
    let_pass(&mut queue, Duration::ZERO);
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.refused, stats.expired), (ROUNDS, 0, late));
}

fn a_verdict_that_cannot_be_sent_leaves_the_deadline(_: &Namespace) {
    let mut queue = bind_accepting();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&[7; 9_000]);
    let mut packet = retain_one(&mut queue);
    let deadline = Some(Instant::now() + Duration::from_millis(20));
    packet.set_deadline(deadline);
    let mut changed = packet.payload().to_vec();
    changed[28] = 8;
    packet.set_payload(&changed).unwrap();
    // Makes it impossible to send, as on a host without memory.
    setsockopt(&queue, SndBuf, &1).unwrap();
    let NotSent { packet, error } = packet.accept().unwrap_err();
    assert!(matches!(error, Error::System { .. }), "{error:?}");
    assert_eq!((packet.deadline(), queue.next_deadline()), (deadline, deadline));
    let_expire(&mut queue, 1);
    assert_eq!(udp.receive(), [7; 9_000], "the default verdict, without the edit");
    let error = packet.accept().unwrap_err().error;
    assert!(matches!(error, Error::Expired), "{error:?}");
    assert_eq!((queue.stats().answered, queue.stats().held), (1, 0));
}

/// Waits as an event loop does, for packets and what else there is to do, and then receives.
fn turn(queue: &mut Queue, batch: &mut Batch) -> Result<usize, Error> {
    let stop = queue.stop_handle();
    let time = queue
        .next_deadline()
        .map_or(SOON, |at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
    {
        let mut fds = [queue.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::try_from(time.min(SOON)).unwrap()).unwrap();
    }
    queue.recv(batch)
}

fn an_event_loop_is_told_of_deadlines(_: &Namespace) {
    let mut queue =
        Queue::builder(1).on_undecided(Verdict::Accept).nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let mut batch = Batch::new(4);
    assert_eq!(turn(&mut queue, &mut batch).unwrap(), 1);
    let mut packet = batch.iter_mut().next().unwrap().retain().0;
    packet.set_deadline(Some(Instant::now() + LATER));
    let started = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(20));
            packet.set_deadline(Some(Instant::now() + Duration::from_millis(20)));
            thread::sleep(QUIET);
            assert!(matches!(packet.accept().unwrap_err().error, Error::Expired));
        });
        let mut turns = 0;
        while queue.stats().expired == 0 {
            let result = turn(&mut queue, &mut batch);
            assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
            turns += 1;
            assert!(turns < 10, "it spins");
        }
        assert!(started.elapsed() < SOON, "nobody told of the deadline");
        assert_eq!(udp.receive(), b"a");
    });
    assert_eq!((queue.stats().wait_calls, queue.stats().held), (0, 0));
    // The same for a stop.
    queue.stop_handle().stop();
    let error = loop {
        match turn(&mut queue, &mut batch) {
            Err(Error::WouldBlock) => {}
            other => break other.unwrap_err(),
        }
    };
    assert!(matches!(error, Error::Stopped), "{error:?}");
    assert!(started.elapsed() < SOON, "nobody told of the stop");
}

fn a_deadline_of_a_closed_queue_changes_nothing(_: &Namespace) {
    let mut queue = bind_accepting();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..2);
    let mut packets = retain_all(&mut queue, 2);
    let stats = queue.stats_handle();
    packets[0].set_deadline(Some(Instant::now() + Duration::from_millis(5)));
    queue.close().unwrap();
    packets[1].set_deadline(Some(Instant::now()));
    thread::sleep(Duration::from_millis(6));
    for packet in packets {
        let NotSent { packet, error } = packet.accept().unwrap_err();
        assert!(matches!(error, Error::Closed), "{error:?}");
        assert_eq!(packet.deadline(), None, "it means nothing any more");
        let NotSent { error, .. } = packet.accept().unwrap_err();
        assert!(matches!(error, Error::Closed), "not {error:?} either");
    }
    let stats = stats.stats();
    assert_eq!((stats.expired, stats.answered, stats.retained), (0, 0, 0));
    udp.expect_nothing();
}

fn receiving_for_a_time_lets_deadlines_pass(_: &Namespace) {
    let mut queue = bind_accepting();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    let mut packets = retain_all(&mut queue, 3);
    let now = Instant::now();
    for (at, packet) in (1..).zip(&mut packets) {
        packet.set_deadline(Some(now + at * Duration::from_millis(10)));
    }
    // It goes on waiting after each of them.
    let_pass(&mut queue, Duration::from_millis(45));
    assert!(now.elapsed() >= Duration::from_millis(45));
    assert_eq!(queue.stats().expired, 3);
    assert_eq!(udp.receive_all(3), [[0], [1], [2]]);
}
