//! An end without loss, counters that are read from elsewhere, settings as the kernel has them, and
//! the most that the kernel holds.

use std::thread;

use caps::{CapSet, Capability};
use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{
    Batch, ConfigFlags, CopyMode, Decided, Error, FlagChange, Operation, Packet, Queue,
    RetainedPacket, Verdict,
};
use netfilterqueue_netns::Namespace;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;

use crate::held::{bind, byte};
use crate::support::{
    Feed, UdpPair, V4, judge, judge_while, kernel_stats, queue_udp, queue_udp_at, receive_exactly,
    wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 18] = tests![
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
    counters_are_read_while_run_blocks_and_afterwards,
    supported_flags_are_those_that_can_be_bound,
    settings_are_those_of_the_kernel,
    the_kernel_holds_65536_packets_or_all,
    a_priority_is_seen_by_later_queues,
    equal_priorities_are_one_message,
    a_retained_packet_takes_its_priority_along,
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
    Queue::builder(number).bind().expect("the number is free");
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
    let is_told = matches!(error, Error::NoCapability { operation: Operation::Configure });
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

fn counters_are_read_while_run_blocks_and_afterwards(_: &Namespace) {
    let mut queue = bind();
    let rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let handle = queue.stats_handle();
    let other = handle.clone();
    let mut retained = Vec::new();
    judge_while(
        &mut queue,
        |packet| {
            if byte(&packet) < 10 {
                return packet.accept();
            }
            let (held, decided) = packet.retain();
            retained.push(held);
            decided
        },
        || {
            for byte in 0..12 {
                udp.send(&[byte]);
                wait_until("the packet", || handle.stats().received == u64::from(byte) + 1);
            }
            assert_eq!(udp.receive_all(10).len(), 10);
            let stats = thread::spawn(move || other.stats()).join().unwrap();
            assert_eq!((stats.received, stats.answered), (12, 10));
            assert_eq!((stats.held, stats.retained, stats.lost), (2, 2, 0));
            assert!(stats.receive_calls > 0 && stats.wait_calls > 0, "{stats:?}");
        },
    );
    assert_eq!(handle.stats().answered, queue.stats().answered);
    drop(retained.pop());
    assert_eq!((handle.stats().held, handle.stats().retained), (1, 1));
    // What closing finds in the socket is counted as well.
    udp.send(b"flushed");
    let mut batch = receive_exactly(&mut queue, 1);
    drop(rules);
    judge(&mut batch, Verdict::Accept);
    queue.close().unwrap();
    assert_eq!(handle.stats().refused, 1);
    assert!(retained.remove(0).accept().is_err());
    let stats = handle.stats();
    assert_eq!((stats.received, stats.answered, stats.held, stats.retained), (13, 12, 0, 0));
}

fn supported_flags_are_those_that_can_be_bound(_: &Namespace) {
    let supported = Queue::supported_flags().unwrap();
    for flag in ConfigFlags(u32::MAX).iter() {
        let builder = Queue::builder(1).gso(false);
        let result = match flag {
            ConfigFlags::FAIL_OPEN => builder.fail_open(true),
            ConfigFlags::CONNTRACK => builder.conntrack(true),
            ConfigFlags::GSO => builder.gso(true),
            ConfigFlags::UID_GID => builder.uid_gid(true),
            ConfigFlags::SECCTX => builder.secctx(true),
            other => panic!("{other}"),
        }
        .bind();
        match result {
            Ok(queue) => {
                assert!(supported.contains(flag), "{flag} can be bound");
                assert_eq!(queue.flags(), flag);
            }
            Err(Error::FlagsRefused { flags, .. }) => {
                assert_eq!(flags, flag);
                assert!(!supported.contains(flag), "{flag} cannot be bound");
            }
            Err(error) => panic!("{flag}: {error}"),
        }
    }
    // Whoever has the number that is asked about, and that it stays theirs.
    let mut owner = Queue::builder(0).bind().unwrap();
    assert_eq!(Queue::supported_flags().unwrap(), supported);
    owner.set_max_len(1).expect("still bound");
    assert_eq!(owner.flags(), ConfigFlags::GSO);
    caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
    let result = Queue::supported_flags();
    caps::raise(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
    let error = result.unwrap_err();
    assert!(matches!(error, Error::NoCapability { .. }), "{error:?}");
}

/// Compares the copy mode with what the kernel shows of it: 1 META, 2 PACKET, and the range.
#[track_caller]
fn assert_copied(queue: &Queue, mode: CopyMode, columns: (u8, u32)) {
    assert_eq!(queue.copy_mode(), mode);
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!((kernel.copy_mode, kernel.copy_range), columns);
    }
}

fn settings_are_those_of_the_kernel(_: &Namespace) {
    let mut queue = bind();
    assert_copied(&queue, CopyMode::WHOLE, (2, 65_531));
    assert_eq!((queue.max_len(), queue.flags()), (1024, ConfigFlags::GSO));
    let ranges =
        [(0, 65_531), (1, 1), (100, 100), (65_530, 65_530), (65_531, 65_531), (70_000, 65_531)];
    for (asked, range) in ranges {
        let asked = CopyMode::Packet { range: asked };
        queue.set_copy_mode(asked).unwrap();
        assert_copied(&queue, CopyMode::Packet { range }, (2, range));
        drop(queue);
        queue = Queue::builder(1).copy_mode(asked).bind().unwrap();
        assert_copied(&queue, CopyMode::Packet { range }, (2, range));
    }
    queue.set_copy_mode(CopyMode::Meta).unwrap();
    assert_copied(&queue, CopyMode::Meta, (1, 0));
    for flag in [ConfigFlags::UID_GID, ConfigFlags::FAIL_OPEN] {
        let before = queue.flags();
        queue.set_flags(FlagChange::set(flag)).unwrap();
        assert_eq!(queue.flags(), before | flag);
    }
    let mask = ConfigFlags::GSO | ConfigFlags::UID_GID;
    queue.set_flags(FlagChange { mask, values: ConfigFlags::UID_GID }).unwrap();
    assert_eq!(queue.flags(), ConfigFlags::UID_GID | ConfigFlags::FAIL_OPEN);
    // A length can only be seen by filling it.
    queue.set_flags(FlagChange::clear(ConfigFlags::FAIL_OPEN)).unwrap();
    queue.set_max_len(3).unwrap();
    assert_eq!(queue.max_len(), 3);
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..5);
    judge(&mut receive_exactly(&mut queue, 3), Verdict::Accept);
    assert_eq!(udp.receive_all(3), [[0], [1], [2]]);
    // What was refused is not in force.
    let unknown = ConfigFlags(1 << 20);
    queue.set_flags(FlagChange::set(unknown)).unwrap_err();
    assert_eq!(queue.flags(), ConfigFlags::UID_GID);
    caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
    queue.set_copy_mode(CopyMode::WHOLE).unwrap_err();
    queue.set_max_len(7).unwrap_err();
    caps::raise(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
    assert_copied(&queue, CopyMode::Meta, (1, 0));
    assert_eq!(queue.max_len(), 3);
}

/// Kernels since January 2026 stop at 65,536, whatever the length.
fn the_kernel_holds_65536_packets_or_all(_: &Namespace) {
    const SENT: usize = 65_600;
    const MOST: usize = 65_536;
    let mut queue = Queue::builder(1).copy_mode(CopyMode::Meta).max_len(100_000).bind().unwrap();
    let _rules = queue_udp_at(Hook::INPUT, 1);
    let udp = UdpPair::new(V4);
    let mut held: Vec<RetainedPacket> = Vec::new();
    let mut batch = Batch::with_buffer_len(64, 256);
    let mut receive = |queue: &mut Queue, held: &mut Vec<RetainedPacket>| {
        queue.set_nonblocking(true);
        while queue.recv(&mut batch).is_ok() {
            held.extend(batch.iter_mut().map(|packet| packet.retain().0));
        }
    };
    for _ in 0..SENT / 32 {
        udp.send_each(0..32);
        receive(&mut queue, &mut held);
    }
    let excess = SENT - held.len();
    assert!(excess == 0 || excess == SENT - MOST, "the kernel holds {}", held.len());
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!((kernel.waiting as usize, kernel.user_dropped), (held.len(), 0));
        assert_eq!(kernel.queue_dropped as usize, excess);
    }
    println!("the kernel holds {} of {SENT} packets", held.len());
    let stats = queue.stats();
    assert_eq!((stats.retained as usize, stats.held as usize), (held.len(), held.len()));
    // The ids of those that were too many are missing, which the next packet shows.
    held.remove(0).verdict(Verdict::Drop).unwrap();
    udp.send(b"next");
    receive(&mut queue, &mut held);
    assert_eq!(held.last().unwrap().id() as usize, SENT + 1);
    assert_eq!(queue.stats().lost as usize, excess);
    drop(queue);
}

/// Whether the kernel knows priorities: since 5.18.
fn knows_priorities() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    version >= (5, 18)
}

/// Two queues that the same packets pass, one after the other.
fn two_queues() -> ([Queue; 2], [InstalledRules; 2]) {
    let queues = [1, 2].map(|number| Queue::builder(number).bind().unwrap());
    let rule = Rule::queue(2).protocol(Protocol::UDP);
    let later = Rules::new(Hook::OUTPUT).priority(10).rule(rule).install().unwrap();
    (queues, [queue_udp(1), later])
}

/// The priorities of so many packets that wait, which are accepted.
fn priorities(queue: &mut Queue, count: usize) -> Vec<Option<u32>> {
    let mut batch = receive_exactly(queue, count);
    let priorities = batch.iter_mut().map(|packet| packet.priority()).collect();
    judge(&mut batch, Verdict::Accept);
    priorities
}

/// As a later queue sees them.
fn known<const N: usize>(priorities: [Option<u32>; N]) -> [Option<u32>; N] {
    priorities.map(|priority| priority.filter(|_| knows_priorities()))
}

fn a_priority_is_seen_by_later_queues(_: &Namespace) {
    let ([mut first, mut second], _rules) = two_queues();
    let udp = UdpPair::new(V4);
    udp.send_each(0..4);
    let mut batch = receive_exactly(&mut first, 4);
    let wanted = [None, Some(3), Some(0xdead_beef), Some(0)];
    for (mut packet, priority) in batch.iter_mut().zip(wanted) {
        assert_eq!(packet.priority(), None);
        if let Some(priority) = priority {
            packet.set_priority(priority);
            assert_eq!(packet.priority(), Some(priority));
        }
        packet.accept();
    }
    batch.commit().unwrap();
    assert_eq!((first.stats().exact_verdicts, first.stats().cumulative_verdicts), (4, 0));
    let seen = known([None, Some(3), Some(0xdead_beef), None]);
    assert_eq!(priorities(&mut second, 4), seen);
    assert_eq!(udp.receive_all(4), [[0], [1], [2], [3]]);
}

fn equal_priorities_are_one_message(_: &Namespace) {
    let ([mut first, mut second], _rules) = two_queues();
    let udp = UdpPair::new(V4);
    udp.send_each(0..7);
    let mut batch = receive_exactly(&mut first, 7);
    for (mut packet, priority) in batch.iter_mut().zip([5, 5, 5, 6, 6, 6, 6]) {
        packet.set_priority(priority);
        packet.accept();
    }
    batch.commit().unwrap();
    let stats = first.stats();
    assert_eq!((stats.exact_verdicts, stats.cumulative_verdicts, stats.send_calls), (0, 2, 1));
    let seen = known([5, 5, 5, 6, 6, 6, 6].map(Some));
    assert_eq!(priorities(&mut second, 7), seen);
    udp.receive_all(7);
}

fn a_retained_packet_takes_its_priority_along(_: &Namespace) {
    let ([mut first, mut second], _rules) = two_queues();
    let udp = UdpPair::new(V4);
    udp.send(b"a");
    let mut batch = receive_exactly(&mut first, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    packet.set_priority(3);
    let (mut retained, _) = packet.retain();
    assert_eq!(retained.priority(), Some(3));
    retained.set_priority(4);
    retained.accept().unwrap();
    assert_eq!(priorities(&mut second, 1), known([Some(4)]));
    assert_eq!(udp.receive_all(1), [b"a"]);
}
