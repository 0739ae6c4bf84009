//! What there is to know of a queue and its kernel, and what a queue is told; priorities.

use std::thread;
use std::time::Instant;

use caps::{CapSet, Capability};
use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{
    Batch, ConfigFlags, CopyMode, Error, FlagChange, Queue, RetainedPacket, Verdict,
};
use netfilterqueue_netns::Namespace;

use crate::held::{bind, byte};
use crate::kernel::expect_priority;
use crate::support::{
    QUIET, UdpPair, V4, judge, judge_while, kernel_stats, queue_udp, queue_udp_at, receive_exactly,
    wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 7] = tests![
    counters_are_read_while_run_blocks_and_afterwards,
    supported_flags_are_those_that_can_be_bound,
    settings_are_those_of_the_kernel,
    the_kernel_holds_65536_packets_or_all,
    a_priority_is_seen_by_later_queues,
    equal_priorities_are_one_message,
    a_retained_packet_takes_its_priority_along,
];

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
    for sent in (32..=SENT).step_by(32) {
        udp.send_each(0..32);
        // Not more at a time than loopback can have on the way, should it be slow.
        wait_until("the arrival of what was sent", || {
            receive(&mut queue, &mut held);
            held.len() >= sent.min(MOST)
        });
    }
    // The last ones come, or are dropped, which only some may read.
    let quiet = Instant::now() + QUIET;
    wait_until("the arrival of the last ones", || {
        receive(&mut queue, &mut held);
        let dropped = kernel_stats(1).map(|kernel| kernel.queue_dropped as usize);
        let is_quiet = || held.len() < SENT && Instant::now() > quiet;
        held.len() == SENT || dropped.map_or_else(is_quiet, |dropped| held.len() + dropped == SENT)
    });
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

/// Two queues that the same packets pass, one after the other.
fn two_queues() -> ([Queue; 2], [InstalledRules; 2]) {
    let queues = [1, 2].map(|number| Queue::builder(number).bind().unwrap());
    let rule = Rule::queue(2).protocol(Protocol::UDP);
    let later = Rules::new(Hook::OUTPUT).priority(10).rule(rule).install().unwrap();
    (queues, [queue_udp(1), later])
}

/// Accepts the packets that wait, which must have these priorities.
#[track_caller]
fn expect_priorities<const N: usize>(queue: &mut Queue, set: [u32; N]) {
    let mut batch = receive_exactly(queue, N);
    let told: Vec<_> = batch.iter_mut().map(|packet| packet.priority()).collect();
    judge(&mut batch, Verdict::Accept);
    // A kernel that tells of one tells of all.
    assert!(
        told.iter().zip(set).all(|(told, set)| told.is_some() == (set > 0))
            || told.iter().all(Option::is_none),
        "{told:?}"
    );
    told.into_iter().zip(set).for_each(|(told, set)| expect_priority(told, set));
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
    expect_priorities(&mut second, [0, 3, 0xdead_beef, 0]);
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
    expect_priorities(&mut second, [5, 5, 5, 6, 6, 6, 6]);
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
    expect_priorities(&mut second, [4]);
    assert_eq!(udp.receive_all(1), [b"a"]);
}
