//! Sends that fail, answers that get lost, threads that end.

use std::cell::RefCell;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use netfilterqueue::rules::{FlowMarks, Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Batch, Error, Operation, Queue, Verdict};
use netfilterqueue_netns::Namespace;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;

use crate::support::{QUIET, UdpPair, V4, judge, queue_udp, receive_exactly};
use crate::{Test, tests};

pub const TESTS: [Test; 10] = tests![
    a_batch_that_cannot_be_sent_keeps_its_decisions,
    a_dropped_batch_that_could_not_be_sent_is_answered_later,
    decisions_survive_a_dropped_batch_that_could_not_be_sent,
    a_dropped_flow_stays_dropped_without_its_edit,
    a_blocked_queue_sends_what_a_dropped_batch_could_not,
    a_queue_that_closes_during_a_commit_leaves_an_empty_batch,
    a_lost_answer_is_asked_for_again,
    the_smallest_buffer_still_answers,
    an_idle_batch_does_not_keep_a_closed_queue,
    rules_may_be_dropped_while_their_thread_ends,
];

/// Long enough not to fit in the smallest send buffer that a socket can have.
const LONG: [u8; 9_000] = [7; 9_000];

/// Makes long verdicts impossible to send, as on a host without memory.
fn shrink_send_buffer(queue: &Queue) {
    setsockopt(queue, SndBuf, &1).unwrap();
}

fn receive_and_edit(queue: &mut Queue) -> Batch {
    let mut batch = receive_exactly(queue, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    let payload = packet.payload_mut().unwrap();
    // Without a checksum, so that the edit needs none.
    payload[26..28].fill(0);
    payload[28] = 8;
    packet.accept();
    batch
}

fn a_batch_that_cannot_be_sent_keeps_its_decisions(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&LONG);
    let mut batch = receive_and_edit(&mut queue);
    shrink_send_buffer(&queue);
    for _ in 0..2 {
        let error = batch.commit().unwrap_err();
        let is_told = matches!(error, Error::System { operation: Operation::Verdict, .. });
        assert!(is_told, "{error:?}");
    }
    assert!(queue.recv(&mut batch).is_err(), "nothing is received over it");
    assert_eq!((batch.len(), queue.stats().held), (1, 1));
    setsockopt(&queue, SndBuf, &100_000).unwrap();
    batch.commit().unwrap();
    let received = udp.receive();
    assert_eq!((received.len(), received[0], received[1]), (9_000, 8, 7));
    assert_eq!(queue.stats().held, 0);
}

fn a_dropped_batch_that_could_not_be_sent_is_answered_later(_: &Namespace) {
    let mut queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&LONG);
    let batch = receive_and_edit(&mut queue);
    shrink_send_buffer(&queue);
    drop(batch);
    udp.expect_nothing();
    assert_eq!(queue.stats().held, 1);
    queue.set_nonblocking(true);
    assert!(matches!(queue.recv(&mut Batch::new(1)), Err(Error::WouldBlock)));
    assert_eq!(udp.receive(), LONG, "the default verdict, without the edit");
    assert_eq!((queue.stats().held, queue.stats().answered), (0, 1));
}

fn decisions_survive_a_dropped_batch_that_could_not_be_sent(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&LONG);
    udp.send(b"accepted");
    udp.send(b"undecided");
    let mut batch = receive_exactly(&mut queue, 3);
    let mut packets = batch.iter_mut();
    let mut long = packets.next().unwrap();
    long.payload_mut().unwrap();
    long.accept();
    packets.next().unwrap().accept();
    shrink_send_buffer(&queue);
    drop(batch);
    queue.set_nonblocking(true);
    assert!(matches!(queue.recv(&mut Batch::new(1)), Err(Error::WouldBlock)));
    assert_eq!(udp.receive_all(1), [b"accepted"], "the edited one met with the default verdict");
    assert_eq!((queue.stats().held, queue.stats().answered), (0, 3));
}

/// The rules must learn of the decision although the edit that went with it is lost.
fn a_dropped_flow_stays_dropped_without_its_edit(_: &Namespace) {
    let mut queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let rules = Rules::new(Hook::OUTPUT).rule(Rule::queue(1).protocol(Protocol::UDP));
    let rules = rules.flow_bypass(FlowMarks::default()).install().unwrap();
    let udp = UdpPair::new(V4);
    udp.send(&LONG);
    let mut batch = receive_exactly(&mut queue, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    packet.payload_mut().unwrap();
    packet.drop_flow(rules.flow_bypass().unwrap());
    shrink_send_buffer(&queue);
    drop(batch);
    queue.set_nonblocking(true);
    assert!(matches!(queue.recv(&mut Batch::new(1)), Err(Error::WouldBlock)));
    assert_eq!((queue.stats().held, queue.stats().answered), (0, 1));
    udp.expect_nothing();
}

fn a_blocked_queue_sends_what_a_dropped_batch_could_not(_: &Namespace) {
    let mut queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&LONG);
    let batch = receive_and_edit(&mut queue);
    shrink_send_buffer(&queue);
    let stop = queue.stop_handle();
    thread::scope(|scope| {
        scope.spawn(|| queue.run(|packet| packet.verdict(Verdict::Drop)).unwrap());
        thread::sleep(QUIET);
        drop(batch);
        let received = udp.receive();
        stop.stop();
        assert_eq!(received, LONG);
    });
    assert_eq!((queue.stats().held, queue.stats().answered), (0, 1));
}

/// Many edits take several datagrams, between which the queue closes.
fn a_queue_that_closes_during_a_commit_leaves_an_empty_batch(_: &Namespace) {
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut closed_midway = 0;
    for round in 0..40 {
        let mut queue = Queue::builder(1).bind().unwrap();
        for _ in 0..24 {
            // A socket each, because packets that wait fill the send buffer of theirs.
            let sender = UdpSocket::bind((V4, 0)).unwrap();
            sender.send_to(&[0; 60_000], udp.receiver_address()).unwrap();
        }
        let mut batch = receive_exactly(&mut queue, 24);
        for mut packet in &mut batch {
            packet.payload_mut().unwrap();
            packet.accept();
        }
        let result = thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(Duration::from_micros(round * 20));
                drop(queue);
            });
            batch.commit()
        });
        closed_midway += usize::from(result.is_err());
        assert!(matches!(result, Ok(()) | Err(Error::Closed)), "{result:?}");
        assert!(batch.is_empty(), "round {round}");
        assert_eq!(batch.iter_mut().count(), 0);
    }
    println!("the queue closed before the end of {closed_midway} commits");
}

/// The receive buffer is full of packets, so that the kernel's first answer does not fit.
fn a_lost_answer_is_asked_for_again(_: &Namespace) {
    let mut queue = Queue::builder(1).receive_buffer(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..20);
    queue.set_max_len(2).unwrap();
    let delivered = 20 - queue_losses(&mut queue, &udp);
    assert!(delivered > 0, "packets that came first are kept");
    // The change has taken effect: of five packets only two are queued.
    udp.send_each(0..5);
    judge(&mut receive_exactly(&mut queue, 2), Verdict::Accept);
    assert_eq!(udp.receive_all(2), [[0], [1]]);
    udp.send_each(0..1);
    queue.close().unwrap();
}

/// Accepts what waits and returns how many of the first 20 packets were lost.
fn queue_losses(queue: &mut Queue, udp: &UdpPair) -> usize {
    queue.set_nonblocking(true);
    queue.run(|packet| packet.verdict(Verdict::Accept)).unwrap();
    queue.set_nonblocking(false);
    let received = usize::try_from(queue.stats().received).unwrap();
    udp.receive_all(received);
    20 - received
}

fn the_smallest_buffer_still_answers(_: &Namespace) {
    let mut queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&LONG);
    udp.send(b"short");
    let mut batch = Batch::with_buffer_len(4, 0);
    assert_eq!(queue.recv(&mut batch).unwrap(), 2);
    assert_eq!(batch.iter_mut().count(), 1, "the long one cannot be shown");
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(2), [&LONG[..], b"short"]);
    let stats = queue.stats();
    assert_eq!((stats.truncated, stats.unknown, stats.lost, stats.held), (1, 0, 0, 0));
}

fn an_idle_batch_does_not_keep_a_closed_queue(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..1);
    let mut batch = receive_exactly(&mut queue, 1);
    judge(&mut batch, Verdict::Accept);
    caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN).unwrap();
    drop(queue);
    caps::raise(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN).unwrap();
    // Unbinding was not permitted, but the last descriptor is closed.
    drop(Queue::builder(1).bind().unwrap());
    assert!(batch.is_empty());
}

thread_local! {
    static RULES: RefCell<Option<InstalledRules>> = const { RefCell::new(None) };
}

fn rules_may_be_dropped_while_their_thread_ends(_: &Namespace) {
    let udp = UdpPair::new(V4);
    let ended = thread::spawn(|| RULES.with_borrow_mut(|rules| *rules = Some(queue_udp(1))));
    ended.join().unwrap();
    // Nobody listens on queue 1, so the rule would drop it.
    udp.send(b"passes");
    assert_eq!(udp.receive(), b"passes");
}
