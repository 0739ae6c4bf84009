//! Packets that are decided about by many tasks at once, within limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use netfilterqueue::AsyncQueue;
use netfilterqueue::{Error, Queue, Verdict};
use netfilterqueue_netns::Namespace;
use tokio::task::JoinSet;

use crate::accounts::{Counted, Fate, Ledger, Traffic, balance, number};
use crate::support::{UdpPair, V4, kernel_stats, queue_udp};
use crate::{Test, faults, must_wait, one_thread, soon, two_threads};

pub const TESTS: [Test; 6] = faults![
    at_the_limit_nothing_more_is_received,
    bytes_are_limited_too,
    what_is_let_go_makes_room,
    a_flood_is_judged_by_many_tasks_within_the_limit,
    a_stream_judges_concurrently,
    a_wait_for_room_sees_stops_and_deadlines,
];

/// What waits beyond the limit waits in the kernel, and what has no room there is counted there.
fn at_the_limit_nothing_more_is_received(_: &Namespace) {
    const LIMIT: usize = 10;
    const LENGTH: u32 = 50;
    let queue = Queue::builder(1).max_len(LENGTH).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        queue.set_retained_limit(LIMIT, usize::MAX);
        udp.send_each(0..200);
        let mut held = Vec::new();
        for _ in 0..LIMIT {
            held.push(soon(queue.next_packet()).await.unwrap());
        }
        must_wait(queue.next_packet()).await;
        let stats = queue.queue().stats();
        assert_eq!((stats.received, stats.retained), (LIMIT as u64, LIMIT as u64));
        if let Some(kernel) = kernel_stats(1) {
            assert_eq!((kernel.waiting, kernel.queue_dropped), (LENGTH, 200 - LENGTH));
        }
        for packet in held.drain(..) {
            packet.accept().unwrap();
        }
        for _ in LIMIT as u32..LENGTH {
            soon(queue.next_packet()).await.unwrap().accept().unwrap();
        }
        must_wait(queue.next_packet()).await;
    });
    let arrived: Vec<_> = udp.receive_all(LENGTH as usize).concat();
    assert!(arrived.into_iter().eq(0..LENGTH as u8), "the first ones, in their order");
}

fn bytes_are_limited_too(_: &Namespace) {
    let queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        queue.set_retained_limit(usize::MAX, 3_000);
        (0..4).for_each(|_| udp.send(&[0; 1_000]));
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(soon(queue.next_packet()).await.unwrap());
        }
        // Each takes more than its data.
        must_wait(queue.next_packet()).await;
        // An edit is not counted.
        held[0].set_payload(&[0x45; 9_000]).unwrap();
        held.remove(0).verdict(Verdict::Drop).unwrap();
        soon(queue.next_packet()).await.unwrap().accept().unwrap();
        must_wait(queue.next_packet()).await;
        // A limit of none lets one through at a time.
        drop(held);
        queue.set_retained_limit(0, 0);
        (0..2).for_each(|_| udp.send(&[0; 1_000]));
        let held = soon(queue.next_packet()).await.unwrap();
        must_wait(queue.next_packet()).await;
        held.accept().unwrap();
        soon(queue.next_packet()).await.unwrap().accept().unwrap();
    });
    udp.receive_all(3);
}

/// From whatever thread, at whatever moment, and whether it is judged or dropped.
fn what_is_let_go_makes_room(_: &Namespace) {
    const PACKETS: usize = 3_000;
    let (traffic, ledger) = (Traffic::new(PACKETS, 8), Ledger::default());
    let queue = Queue::builder(1).max_len(PACKETS as u32).bind().unwrap();
    let _rules = queue_udp(1);
    traffic.send(PACKETS, 8);
    let (judges, packets) = std::sync::mpsc::channel::<netfilterqueue::RetainedPacket>();
    let queue = std::thread::scope(|scope| {
        scope.spawn(|| {
            for (count, packet) in packets.into_iter().enumerate() {
                let number = number(packet.payload());
                // Now and then while the other thread is about to wait.
                (0..count % 300).for_each(|_| std::hint::spin_loop());
                if Fate::of(number) == Fate::Accepted {
                    ledger.note(1, packet.id(), number, Fate::Accepted);
                    packet.accept().unwrap();
                } else {
                    ledger.note(1, packet.id(), number, Fate::Dropped);
                    drop(packet);
                }
            }
        });
        one_thread().block_on(async {
            let mut queue = AsyncQueue::new(queue).unwrap();
            queue.set_retained_limit(1, usize::MAX);
            for _ in 0..PACKETS {
                let packet = soon(queue.next_packet()).await.unwrap();
                judges.send(packet).unwrap();
            }
            drop(judges);
            queue.into_inner()
        })
    });
    assert_eq!(balance(1, &queue.stats(), &ledger).unwrap_or(0), 0);
    traffic.settle(&ledger, Counted::default());
}

fn a_flood_is_judged_by_many_tasks_within_the_limit(_: &Namespace) {
    const PACKETS: usize = 8_000;
    const LIMIT: usize = 32;
    for runtime in [one_thread(), two_threads()] {
        let (traffic, ledger) = (Traffic::new(PACKETS, 8), Arc::new(Ledger::default()));
        let queue = Queue::builder(1).max_len(PACKETS as u32).bind().unwrap();
        let _rules = queue_udp(1);
        traffic.send(PACKETS, 8);
        let most = Arc::new(AtomicUsize::new(0));
        let queue = runtime.block_on(async {
            let mut queue = AsyncQueue::new(queue).unwrap();
            queue.set_retained_limit(LIMIT, usize::MAX);
            let mut tasks = JoinSet::new();
            for _ in 0..PACKETS {
                let packet = soon(queue.next_packet()).await.unwrap();
                let retained = queue.queue().stats().retained as usize;
                most.fetch_max(retained, Ordering::SeqCst);
                let ledger = Arc::clone(&ledger);
                tasks.spawn(async move {
                    tokio::time::sleep(Duration::from_micros(200)).await;
                    let number = number(packet.payload());
                    let fate = Fate::of(number);
                    ledger.note(1, packet.id(), number, fate);
                    packet.verdict(fate.verdict()).unwrap();
                });
            }
            while let Some(result) = tasks.join_next().await {
                result.unwrap();
            }
            queue.into_inner()
        });
        assert_eq!(most.load(Ordering::SeqCst), LIMIT, "as many as allowed, and no more");
        assert_eq!(balance(1, &queue.stats(), &ledger).unwrap_or(0), 0);
        traffic.settle(&ledger, Counted::default());
    }
}

/// An asynchronous closure, in a task that may move between threads.
fn a_stream_judges_concurrently(_: &Namespace) {
    const PACKETS: usize = 1_000;
    let (traffic, ledger) = (Traffic::new(PACKETS, 8), Arc::new(Ledger::default()));
    let queue = Queue::builder(1).max_len(PACKETS as u32).bind().unwrap();
    let _rules = queue_udp(1);
    traffic.send(PACKETS, 8);
    let (runtime, its_ledger) = (two_threads(), Arc::clone(&ledger));
    let stats = queue.stats_handle();
    let queue = runtime.block_on(async {
        tokio::spawn(async move {
            let mut queue = AsyncQueue::new(queue).unwrap();
            queue.set_retained_limit(100, usize::MAX);
            let (stop, together) = (queue.stop_handle(), AtomicUsize::new(0));
            let (most, judged) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let all = (&mut queue).try_for_each_concurrent(None, async |packet| {
                let now = together.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
                together.fetch_sub(1, Ordering::SeqCst);
                let number = number(packet.payload());
                let fate = Fate::of(number);
                its_ledger.note(1, packet.id(), number, fate);
                packet.verdict(fate.verdict()).map_err(|not_sent| not_sent.error)?;
                if judged.fetch_add(1, Ordering::SeqCst) + 1 == PACKETS {
                    stop.stop();
                }
                Ok::<_, Error>(())
            });
            soon(all).await.unwrap();
            assert_eq!(most.load(Ordering::SeqCst), 100, "as many as allowed at the same time");
            // It ended by the stop, which was taken: it goes on.
            must_wait(queue.next()).await;
            queue
        })
        .await
        .unwrap()
    });
    assert_eq!(stats.stats().received, PACKETS as u64);
    assert_eq!(balance(1, &queue.queue().stats(), &ledger).unwrap_or(0), 0);
    traffic.settle(&ledger, Counted::default());
}

fn a_wait_for_room_sees_stops_and_deadlines(_: &Namespace) {
    let queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = Arc::new(UdpPair::new(V4));
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        queue.set_retained_limit(1, usize::MAX);
        udp.send_each(1..=2);
        let mut held = soon(queue.next_packet()).await.unwrap();
        held.set_deadline(Some(std::time::Instant::now() + Duration::from_millis(20)));
        // Nothing else wakes the wait.
        let arriving = Arc::clone(&udp);
        let arrived = tokio::select! {
            biased;
            arrived = tokio::task::spawn_blocking(move || arriving.receive()) => arrived.unwrap(),
            _ = queue.next_packet() => panic!("there is no room"),
        };
        assert_eq!(arrived, [1], "its time is up, and it has the default verdict");
        assert_eq!(queue.queue().stats().expired, 1);
        let stop = queue.stop_handle();
        let (result, ()) = tokio::join!(soon(queue.next_packet()), async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            stop.stop();
        });
        assert!(matches!(result, Err(Error::Stopped)), "{result:?}");
        assert!(matches!(held.accept().unwrap_err().error, Error::Expired));
        soon(queue.next_packet()).await.unwrap().accept().unwrap();
    });
    assert_eq!(udp.receive_all(1), [[2]]);
}
