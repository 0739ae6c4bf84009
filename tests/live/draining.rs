//! An end without loss, counters that are read from elsewhere, settings as the kernel has them, and
//! the most that the kernel holds.

use caps::{CapSet, Capability};
use netfilterqueue::rules::Hook;
use netfilterqueue::{Decided, Error, Operation, Packet, Queue, RetainedPacket, Verdict};
use netfilterqueue_netns::Namespace;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;

use crate::held::{bind, byte};
use crate::support::{Feed, UdpPair, V4, queue_udp, queue_udp_at, receive_exactly};
use crate::{Test, tests};

pub const TESTS: [Test; 11] = tests![
    draining_judges_everything_that_is_queued,
    draining_judges_the_packets_of_all_numbers,
    draining_with_paused_rules_loses_nothing,
    draining_drops_what_comes_meanwhile,
    draining_accepts_what_comes_meanwhile_if_it_fails_open,
    draining_drops_what_is_retained,
    draining_is_not_ended_by_a_stop,
    draining_a_full_receive_buffer_judges_what_was_delivered,
    draining_without_the_capability_says_so,
    draining_that_cannot_send_a_verdict_says_so,
    a_drained_queue_can_be_opened_again,
];

fn drain_and_close<F>(mut queue: Queue, judge: F) -> Result<(), Error>
where
    F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
{
    queue.drain(judge)?;
    queue.close()
}

/// Asserts that the number is free.
fn expect_free(number: u16) {
    drop(Queue::builder(number).bind().expect("the number is free"));
}

fn draining_judges_everything_that_is_queued(_: &Namespace) {
    let queue = Queue::builder(1).max_len(10_000).batch_len(16).bind().unwrap();
    let _rules = queue_udp_at(Hook::INPUT, 1);
    let udp = UdpPair::new(V4);
    // A message of a small packet takes 832 bytes of the receive buffer.
    let packets = (queue.receive_buffer().unwrap() / 1_000).min(3_000) as u32;
    (0..packets).for_each(|number| udp.send(&number.to_be_bytes()));
    let stats = queue.stats_handle();
    let mut ids = Vec::new();
    drain_and_close(queue, |packet| {
        ids.push(packet.id());
        // What arrives must also have room there.
        packet.verdict(if ids.len() <= 100 { Verdict::Accept } else { Verdict::Drop })
    })
    .unwrap();
    assert_eq!(ids, (1..=packets).collect::<Vec<_>>());
    assert_eq!(udp.receive_all(100).last().unwrap(), &99_u32.to_be_bytes());
    let stats = stats.stats();
    assert_eq!((stats.received, stats.answered), (packets.into(), packets.into()));
    assert_eq!((stats.held, stats.lost, stats.refused), (0, 0, 0));
    expect_free(1);
}

fn draining_judges_the_packets_of_all_numbers(_: &Namespace) {
    let mut queue = Queue::builder([1, 5]).bind().unwrap();
    let feed = Feed::of([1, 5]);
    feed.send_each(0..3);
    // Packets that a change of settings has found are judged too.
    queue.set_max_len(100).unwrap();
    feed.send_each(3..6);
    let stats = queue.stats_handle();
    let mut judged = 0;
    drain_and_close(queue, |packet| {
        judged += 1;
        let verdict = if packet.queue() == 5 { Verdict::Accept } else { Verdict::Drop };
        packet.verdict(verdict)
    })
    .unwrap();
    assert_eq!(judged, 12);
    assert_eq!(feed.udp[1].receive_all(6), [[0], [1], [2], [3], [4], [5]]);
    feed.udp[0].expect_nothing();
    let stats = stats.stats();
    assert_eq!((stats.answered, stats.held, stats.refused), (12, 0, 0));
    expect_free(1);
    expect_free(5);
}

fn draining_with_paused_rules_loses_nothing(_: &Namespace) {
    let queue = bind();
    let mut rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..3);
    rules.pause().unwrap();
    udp.send(&[3]);
    drain_and_close(queue, |packet| packet.verdict(Verdict::Accept)).unwrap();
    udp.send(&[4]);
    assert_eq!(udp.receive_all(5), [[3], [0], [1], [2], [4]]);
}

/// Drains a queue of 20 packets while more come, and returns what arrives.
fn drain_while_more_come(fail_open: bool) -> Vec<Vec<u8>> {
    let queue = Queue::builder(1).fail_open(fail_open).batch_len(4).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..20);
    let mut judged = Vec::new();
    drain_and_close(queue, |packet| {
        judged.push(byte(&packet));
        udp.send(&[100]);
        packet.accept()
    })
    .unwrap();
    assert_eq!(judged, (0..20).collect::<Vec<_>>());
    let arriving = if fail_open { 40 } else { 20 };
    let mut arrived = udp.receive_all(arriving);
    arrived.sort();
    arrived
}

fn draining_drops_what_comes_meanwhile(_: &Namespace) {
    let arrived = drain_while_more_come(false);
    assert_eq!(arrived, (0..20).map(|byte| vec![byte]).collect::<Vec<_>>());
}

fn draining_accepts_what_comes_meanwhile_if_it_fails_open(_: &Namespace) {
    let arrived = drain_while_more_come(true);
    let unseen = std::iter::repeat_n(100, 20);
    assert_eq!(arrived, (0..20).chain(unseen).map(|byte| vec![byte]).collect::<Vec<_>>());
}

fn draining_drops_what_is_retained(_: &Namespace) {
    let mut queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..2);
    let mut batch = receive_exactly(&mut queue, 2);
    let mut retained: Vec<RetainedPacket> =
        batch.iter_mut().take(1).map(|packet| packet.retain().0).collect();
    udp.send_each(2..4);
    drain_and_close(queue, |packet| {
        if byte(&packet) == 2 {
            return packet.accept();
        }
        let (more, decided) = packet.retain();
        retained.push(more);
        decided
    })
    .unwrap();
    assert_eq!(retained.len(), 2);
    for packet in retained {
        let error = packet.accept().unwrap_err().error;
        assert!(matches!(error, Error::Closed), "{error:?}");
    }
    assert!(matches!(batch.commit(), Err(Error::Closed)));
    assert_eq!(udp.receive_all(1), [[2]]);
}

fn draining_is_not_ended_by_a_stop(_: &Namespace) {
    let mut queue = Queue::builder(1).batch_len(2).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let stop = queue.stop_handle();
    stop.stop();
    queue.run(|_| panic!("it was told to stop")).unwrap();
    udp.send_each(0..6);
    // Impatience is no reason to lose packets.
    stop.stop();
    drain_and_close(queue, |packet| {
        stop.stop();
        packet.accept()
    })
    .unwrap();
    assert_eq!(udp.receive_all(6), [[0], [1], [2], [3], [4], [5]]);
}

/// The kernel's answer to the request that comes first does not fit at once.
fn draining_a_full_receive_buffer_judges_what_was_delivered(_: &Namespace) {
    let queue = Queue::builder(1).receive_buffer(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..30);
    let stats = queue.stats_handle();
    let mut judged = 0;
    drain_and_close(queue, |packet| {
        judged += 1;
        packet.accept()
    })
    .unwrap();
    assert!((1..30).contains(&judged), "{judged} packets fit");
    udp.receive_all(judged);
    assert_eq!((stats.stats().held, stats.stats().refused), (0, 0));
    expect_free(1);
}

fn draining_without_the_capability_says_so(_: &Namespace) {
    let queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
    let result = drain_and_close(queue, |_| panic!("a packet was judged"));
    caps::raise(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
    let error = result.unwrap_err();
    let is_told = matches!(error, Error::NoCapability { operation: Operation::Configure, .. });
    assert!(is_told, "{error:?}");
    expect_free(1);
    udp.expect_nothing();
}

fn draining_that_cannot_send_a_verdict_says_so(_: &Namespace) {
    let queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&[0; 9_000]);
    // Makes long verdicts impossible to send, as on a host without memory.
    setsockopt(&queue, SndBuf, &1).unwrap();
    let result = drain_and_close(queue, |mut packet| {
        packet.payload_mut().unwrap();
        packet.accept()
    });
    let error = result.unwrap_err();
    let is_told = matches!(error, Error::System { operation: Operation::Verdict, .. });
    assert!(is_told, "{error:?}");
    expect_free(1);
    udp.expect_nothing();
}

fn a_drained_queue_can_be_opened_again(_: &Namespace) {
    let mut queue = Queue::builder(1).nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&[0]);
    queue.drain(|packet| packet.verdict(Verdict::Accept)).unwrap();
    assert_eq!(queue.max_len(), 0);
    udp.send(&[1]);
    queue.drain(|_| panic!("nothing is let in")).unwrap();
    queue.set_max_len(10).unwrap();
    udp.send(&[2]);
    queue.run(|packet| packet.verdict(Verdict::Accept)).unwrap();
    assert_eq!(udp.receive_all(2), [[0], [2]]);
}
