//! Retained packets that must have a verdict by some time.

use std::os::fd::AsFd;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::{Batch, Error, NotSent, Queue, RetainedPacket, Verdict};
use netfilterqueue_netns::Namespace;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;

use crate::craft::data;
use crate::held::{bind, retain_one};
use crate::support::{
    QUIET, SOON, UdpPair, V4, judge_while, queue_udp, receive_exactly, wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 12] = tests![
    a_packet_is_accepted_at_its_deadline_while_run_blocks,
    a_packet_is_dropped_at_its_deadline_while_run_blocks,
    a_verdict_after_the_deadline_says_so,
    a_deadline_that_is_taken_away_does_not_pass,
    a_deadline_is_moved,
    a_deadline_set_elsewhere_wakes_a_sleeping_queue,
    a_deadline_in_the_past_passes_at_once,
    a_deadline_that_has_passed_cannot_be_moved,
    a_verdict_that_cannot_be_sent_leaves_the_deadline,
    an_event_loop_is_told_of_deadlines,
    a_deadline_of_a_closed_queue_changes_nothing,
    receiving_for_a_time_lets_deadlines_pass,
];

pub const LATER: Duration = Duration::from_secs(3_600);

pub fn bind_accepting() -> Queue {
    Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap()
}

pub fn retain_all(queue: &mut Queue, count: usize) -> Vec<RetainedPacket> {
    receive_exactly(queue, count).iter_mut().map(|packet| packet.retain().0).collect()
}

/// Receives for a time, in which no packet may come.
pub fn let_pass(queue: &mut Queue, time: Duration) {
    let result = queue.recv_timeout(&mut Batch::new(4), time);
    assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
}

/// Receives until so many deadlines have passed.
pub fn let_expire(queue: &mut Queue, expired: u64) {
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
