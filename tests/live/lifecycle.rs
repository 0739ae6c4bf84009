//! A queue while it is in use: reconfigured, used by several threads, stopped, polled.

use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::{
    Batch, ConfigFlags, CopyMode, Decided, EditError, Error, Family, FlagChange, Hook, Packet,
    Queue, StopHandle, Verdict,
};
use netfilterqueue_netns::Namespace;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::support::{
    QUIET, SOON, UdpPair, V4, expect_no_packet, judge, queue_udp, receive_exactly, wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 19] = tests![
    configuring_keeps_packets_that_wait_unread,
    packets_kept_while_configuring_come_together,
    configuring_under_a_flood_loses_nothing,
    copy_mode_shows_in_packets_queued_later,
    flags_show_in_packets_queued_later,
    verdict_leaves_while_the_reader_blocks,
    batch_is_committed_while_the_queue_receives,
    batches_of_several_threads_keep_their_verdicts,
    stop_wakes_a_blocked_run,
    stop_before_run_ends_it_once,
    stop_lets_the_batch_finish,
    stop_handles_are_equal_and_outlive_the_queue,
    stop_during_a_receive_leaves_no_spinning,
    nonblocking_receive_says_would_block,
    nonblocking_run_returns_when_all_is_judged,
    descriptor_is_readable_while_a_packet_waits,
    one_batch_serves_several_queues,
    receiving_for_a_time_ends_in_time,
    receiving_for_no_time_takes_what_waits,
];

/// Changes some setting to a value that leaves no mark on packets, each time another.
fn configure(queue: &mut Queue, round: u32) {
    let uid_gid = if round.is_multiple_of(2) { ConfigFlags::UID_GID } else { ConfigFlags(0) };
    match round % 3 {
        0 => queue.set_max_len(4000 + round),
        1 => queue.set_copy_mode(CopyMode::Packet { range: 50_000 + round }),
        _ => queue.set_flags(FlagChange { mask: ConfigFlags::UID_GID, values: uid_gid }),
    }
    .expect("configured");
}

/// For `run`, which cannot take `Packet::accept` itself: that is not generic over the lifetime.
fn accept(packet: Packet<'_>) -> Decided<'_> {
    packet.accept()
}

/// Accepts all packets of the batch and returns their ids.
fn accept_all(batch: &mut Batch) -> Vec<u32> {
    let ids = batch.iter_mut().map(|packet| {
        let id = packet.id();
        packet.accept();
        id
    });
    let ids = ids.collect();
    batch.commit().expect("committed");
    ids
}

fn configuring_keeps_packets_that_wait_unread(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut ids = Vec::new();
    for round in 0..300 {
        if round < 100 {
            udp.send(&[round as u8]);
        }
        configure(&mut queue, round);
    }
    let mut batch = Batch::new(64);
    queue.set_nonblocking(true);
    while queue.recv(&mut batch).is_ok() {
        ids.extend(accept_all(&mut batch));
    }
    assert_eq!(ids, (1..=100).collect::<Vec<_>>(), "each packet once, in order");
    assert_eq!(udp.receive_all(100), (0..100).map(|data| vec![data]).collect::<Vec<_>>());
    let stats = queue.stats();
    assert_eq!((stats.received, stats.answered, stats.held, stats.lost), (100, 100, 0, 0));
}

fn packets_kept_while_configuring_come_together(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    // The queue has seen its socket empty, and must not think so still.
    expect_no_packet(&mut queue);
    udp.send_each(0..3);
    queue.set_max_len(2000).unwrap();
    udp.send_each(3..5);
    queue.set_nonblocking(true);
    let mut batch = Batch::new(64);
    let received = queue.recv(&mut batch).expect("the packets that were kept");
    assert_eq!(received, 5, "as many as wait and fit");
    assert_eq!(accept_all(&mut batch), [1, 2, 3, 4, 5]);
    udp.receive_all(5);
}

fn configuring_under_a_flood_loses_nothing(_: &Namespace) {
    const FLOOD: u32 = 1500;
    let mut queue = Queue::builder(1).nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.sender.set_write_timeout(Some(SOON)).unwrap();
    let (mut ids, mut arrived) = (Vec::new(), Vec::new());
    let mut configured = 0;
    thread::scope(|scope| {
        scope.spawn(|| (0..FLOOD).for_each(|number| udp.send(&number.to_be_bytes())));
        let mut batch = Batch::new(16);
        let deadline = Instant::now() + 4 * SOON;
        while ids.len() < FLOOD as usize {
            (0..10).for_each(|more| configure(&mut queue, configured + more));
            configured += 10;
            match queue.recv(&mut batch) {
                Ok(_) => {
                    let more = accept_all(&mut batch);
                    arrived.extend(more.iter().map(|_| udp.receive()));
                    ids.extend(more);
                }
                Err(Error::WouldBlock) => thread::sleep(Duration::from_millis(1)),
                Err(error) => panic!("{error}"),
            }
            assert!(Instant::now() < deadline, "only {} of {FLOOD} packets came", ids.len());
        }
    });
    assert!(configured > 300, "{configured} changes");
    assert_eq!(ids, (1..=FLOOD).collect::<Vec<_>>(), "each packet once, in order");
    let sent: Vec<_> = (0..FLOOD).map(|number| number.to_be_bytes().to_vec()).collect();
    assert_eq!(arrived, sent);
    assert_eq!((queue.stats().lost, queue.stats().held), (0, 0));
}

fn copy_mode_shows_in_packets_queued_later(namespace: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&[1]);
    queue.set_copy_mode(CopyMode::Meta).unwrap();
    udp.send(&[2]);
    queue.set_copy_mode(CopyMode::Packet { range: 20 }).unwrap();
    udp.send(&[3]);
    queue.set_copy_mode(CopyMode::WHOLE).unwrap();
    udp.send(&[4]);
    let mut batch = receive_exactly(&mut queue, 4);
    let lo = namespace.link_index("lo").unwrap();
    for mut packet in &mut batch {
        assert_eq!((packet.family(), packet.hook()), (Family::IPV4, Hook::OUTPUT));
        assert_eq!(packet.hw_protocol(), 0x0800);
        assert_eq!((packet.indev(), packet.outdev()), (None, Some(lo)));
        let copied = (packet.payload().len(), packet.original_len());
        match packet.id() {
            2 => {
                assert_eq!(copied, (0, None), "attributes only");
                assert_eq!(packet.payload_mut(), Err(EditError::NotCopied));
            }
            3 => {
                assert_eq!(copied, (20, Some(29)));
                let error = EditError::Truncated { copied: 20, full: 29 };
                assert_eq!(packet.payload_mut(), Err(error));
            }
            _ => assert_eq!(copied, (29, None)),
        }
        packet.accept();
    }
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(4), [[1], [2], [3], [4]]);
}

fn flags_show_in_packets_queued_later(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mask = ConfigFlags::UID_GID;
    udp.send(&[1]);
    queue.set_flags(FlagChange { mask, values: ConfigFlags::UID_GID }).unwrap();
    udp.send(&[2]);
    queue.set_flags(FlagChange { mask, values: ConfigFlags(0) }).unwrap();
    udp.send(&[3]);
    let mut batch = receive_exactly(&mut queue, 3);
    let known: Vec<_> = batch.iter_mut().map(|packet| packet.uid().is_some()).collect();
    assert_eq!(known, [false, true, false]);
}

fn verdict_leaves_while_the_reader_blocks(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&[1]);
    let mut batch = receive_exactly(&mut queue, 1);
    let (retained, _) = batch.iter_mut().next().unwrap().retain();
    thread::scope(|scope| {
        let reader = scope.spawn(|| queue.recv(&mut batch).map(|_| accept_all(&mut batch)));
        thread::sleep(QUIET);
        retained.accept().unwrap();
        assert_eq!(udp.receive(), [1]);
        assert!(!reader.is_finished(), "no packet came for the reader");
        udp.send(&[2]);
        assert_eq!(reader.join().unwrap().unwrap(), [2]);
    });
    assert_eq!(udp.receive_all(1), [[2]]);
}

fn batch_is_committed_while_the_queue_receives(_: &Namespace) {
    const PACKETS: usize = 400;
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.sender.set_write_timeout(Some(SOON)).unwrap();
    let (to_judge, judged) = mpsc::channel::<Batch>();
    let (empty, reusable) = mpsc::channel::<Batch>();
    (0..2).for_each(|_| empty.send(Batch::new(16)).unwrap());
    let arrived = thread::scope(|scope| {
        scope.spawn(|| (0..PACKETS).for_each(|number| udp.send(&number.to_be_bytes())));
        let committer = scope.spawn(|| {
            let mut arrived = Vec::new();
            for mut batch in judged {
                let ids = accept_all(&mut batch);
                arrived.extend(ids.iter().map(|_| udp.receive()));
                let _ = empty.send(batch);
            }
            arrived
        });
        let mut received = 0;
        while received < PACKETS {
            let mut batch = reusable.recv_timeout(SOON).expect("a batch comes back");
            received += queue.recv(&mut batch).unwrap();
            to_judge.send(batch).unwrap();
        }
        drop(to_judge);
        committer.join().unwrap()
    });
    let sent: Vec<_> = (0..PACKETS).map(|number| number.to_be_bytes().to_vec()).collect();
    assert_eq!(arrived, sent);
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.held, stats.lost), (PACKETS as u64, 0, 0));
}

fn batches_of_several_threads_keep_their_verdicts(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..8);
    let mut first = Batch::new(4);
    let mut second = Batch::new(4);
    assert_eq!(queue.recv(&mut first).unwrap(), 4);
    assert_eq!(queue.recv(&mut second).unwrap(), 4);
    // The later packets are dropped first, and by another thread: a cumulative verdict would take
    // the earlier ones along.
    thread::spawn(move || {
        judge(&mut second, Verdict::Drop);
    })
    .join()
    .unwrap();
    assert_eq!(accept_all(&mut first), [1, 2, 3, 4]);
    assert_eq!(udp.receive_all(4), [[0], [1], [2], [3]]);
    assert_eq!(queue.stats().refused, 0);
}

fn stop_wakes_a_blocked_run(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let stop = queue.stop_handle();
    thread::scope(|scope| {
        let run = scope.spawn(|| queue.run(accept));
        udp.send(&[1]);
        assert_eq!(udp.receive(), [1]);
        thread::sleep(QUIET);
        assert!(!run.is_finished(), "it waits for packets");
        stop.stop();
        wait_until("the end of run", || run.is_finished());
        run.join().unwrap().unwrap();
    });
}

fn stop_before_run_ends_it_once(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&[1]);
    let stop = queue.stop_handle();
    stop.stop();
    stop.stop();
    queue.run(|_| panic!("a packet was judged")).unwrap();
    // The packet still waits, and the stop is used up, also the second one.
    assert_eq!(accept_all(&mut receive_exactly(&mut queue, 1)), [1]);
    assert_eq!(udp.receive_all(1), [[1]]);
    stop.stop();
    let result = queue.recv(&mut Batch::new(1));
    assert!(matches!(result, Err(Error::Stopped)), "{result:?}");
}

fn stop_lets_the_batch_finish(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let stop = queue.stop_handle();
    for round in 0..2 {
        udp.send_each(0..3);
        let mut judged = Vec::new();
        queue
            .run(|packet| {
                stop.stop();
                judged.push(packet.id());
                packet.accept()
            })
            .unwrap();
        assert_eq!(judged, [3 * round + 1, 3 * round + 2, 3 * round + 3]);
        assert_eq!(udp.receive_all(3), [[0], [1], [2]]);
    }
}

fn stop_handles_are_equal_and_outlive_the_queue(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let mut other = Queue::builder(2).nonblocking(true).bind().unwrap();
    let handles = [queue.stop_handle(), queue.stop_handle(), queue.stop_handle().clone()];
    for handle in handles.clone() {
        thread::scope(|scope| {
            let run = scope.spawn(|| queue.run(accept));
            scope.spawn(move || handle.stop());
            wait_until("the end of run", || run.is_finished());
            run.join().unwrap().unwrap();
        });
    }
    drop(queue);
    handles.iter().for_each(StopHandle::stop);
    let result = other.recv(&mut Batch::new(1));
    assert!(matches!(result, Err(Error::WouldBlock)), "the other queue was not meant: {result:?}");
}

fn stop_during_a_receive_leaves_no_spinning(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let stop = queue.stop_handle();
    let mut batch = Batch::new(1);
    for round in 0..200 {
        // The stop falls anywhere in a receive, also between its flag and its wake-up.
        queue.set_nonblocking(true);
        thread::scope(|scope| {
            scope.spawn(|| stop.stop());
            let deadline = Instant::now() + SOON;
            while !matches!(queue.recv(&mut batch), Err(Error::Stopped)) {
                assert!(Instant::now() < deadline, "the stop was lost in round {round}");
            }
        });
        queue.set_nonblocking(false);
        let before = queue.stats().wait_calls;
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(1));
                stop.stop();
            });
            let result = queue.recv(&mut batch);
            assert!(matches!(result, Err(Error::Stopped)), "{result:?}");
        });
        let waits = queue.stats().wait_calls - before;
        assert!(waits <= 3, "waited {waits} times in round {round} for one stop");
    }
}

fn nonblocking_receive_says_would_block(_: &Namespace) {
    let mut queue = Queue::builder(1).nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut batch = Batch::new(8);
    for round in 0..3_u8 {
        let result = queue.recv(&mut batch);
        assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
        assert!(batch.is_empty());
        udp.send_each([round, round]);
        assert_eq!(queue.recv(&mut batch).unwrap(), 2);
        accept_all(&mut batch);
        assert_eq!(udp.receive_all(2), [[round], [round]]);
    }
    assert_eq!(queue.stats().wait_calls, 0);
}

fn nonblocking_run_returns_when_all_is_judged(_: &Namespace) {
    let mut queue = Queue::builder(1).nonblocking(true).batch_len(4).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    queue.run(|_| panic!("no packet was sent")).unwrap();
    udp.send_each(0..10);
    let mut judged = 0;
    queue
        .run(|packet| {
            judged += 1;
            packet.accept()
        })
        .unwrap();
    assert_eq!(judged, 10, "more than one batch");
    udp.receive_all(10);
}

fn descriptor_is_readable_while_a_packet_waits(_: &Namespace) {
    let mut queue = Queue::builder(1).nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    for data in 0..2 {
        assert!(!is_readable(&queue, 0), "nothing was sent");
        udp.send(&[data]);
        assert!(is_readable(&queue, 5000), "a packet waits");
        let mut batch = Batch::new(2);
        assert_eq!(queue.recv(&mut batch).unwrap(), 1);
        assert!(!is_readable(&queue, 0), "the packet was received");
        accept_all(&mut batch);
        assert_eq!(udp.receive(), [data]);
    }
}

fn is_readable(queue: &Queue, milliseconds: u16) -> bool {
    let mut fds = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(milliseconds)).unwrap() == 1
}

fn one_batch_serves_several_queues(_: &Namespace) {
    let mut first = Queue::builder(1).nonblocking(true).bind().unwrap();
    let mut second =
        Queue::builder(2).nonblocking(true).on_undecided(Verdict::Accept).bind().unwrap();
    let udp = UdpPair::new(V4);
    let mut batch = Batch::new(4);
    for number in [1, 2, 1] {
        let queue = if number == 1 { &mut first } else { &mut second };
        let rules = queue_udp(number);
        udp.send(&[number as u8]);
        assert_eq!(queue.recv(&mut batch).unwrap(), 1, "of queue {number}");
        let packet = batch.iter_mut().next().expect("its packet");
        assert_eq!(packet.queue(), number);
        if number == 1 {
            packet.accept();
        }
        // What is undecided is answered by the default of the queue it came from.
        batch.commit().unwrap();
        assert_eq!(udp.receive(), [number as u8]);
        drop(rules);
    }
    assert_eq!((first.stats().answered, second.stats().answered), (2, 1));
}

/// Receives for a time, in which no packet may come.
fn let_pass(queue: &mut Queue, time: Duration) {
    let result = queue.recv_timeout(&mut Batch::new(4), time);
    assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
}

fn receiving_for_a_time_ends_in_time(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut batch = Batch::new(4);
    let started = Instant::now();
    let_pass(&mut queue, Duration::from_millis(20));
    assert!(started.elapsed() >= Duration::from_millis(20));
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(5));
            udp.send(b"a");
        });
        assert_eq!(queue.recv_timeout(&mut batch, SOON).unwrap(), 1);
    });
    assert!(started.elapsed() < SOON, "it does not wait for more");
    queue.stop_handle().stop();
    let result = queue.recv_timeout(&mut batch, SOON);
    assert!(matches!(result, Err(Error::Stopped)), "{result:?}");
    // Longer than the clock can tell is for ever.
    udp.send(b"b");
    assert_eq!(queue.recv_timeout(&mut batch, Duration::MAX).unwrap(), 1);
    // The mode of the queue is what it was.
    queue.set_nonblocking(true);
    let_pass(&mut queue, Duration::from_millis(1));
    let result = queue.recv(&mut batch);
    assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
}

fn receiving_for_no_time_takes_what_waits(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut batch = Batch::new(4);
    for byte_sent in 0..3 {
        // The queue has seen its socket empty, and must not think so still.
        let_pass(&mut queue, Duration::ZERO);
        udp.send(&[byte_sent]);
        assert_eq!(queue.recv_timeout(&mut batch, Duration::ZERO).unwrap(), 1);
        let packet = batch.iter_mut().next().unwrap();
        assert_eq!(packet.payload()[28], byte_sent);
        packet.accept();
    }
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(3), [[0], [1], [2]]);
}
