//! Queues beside other tasks: none is starved by the other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use netfilterqueue::AsyncQueue;
use netfilterqueue::{Batch, Queue};
use netfilterqueue_netns::Namespace;
use tokio::task::JoinHandle;

use crate::accounts::{Counted, Ledger, Traffic, balance};
use crate::kernel::untested;
use crate::support::queue_udp;
use crate::{Test, faults, one_thread, soon, two_threads};

pub const TESTS: [Test; 5] = faults![
    a_backlog_lets_other_tasks_go_on,
    a_backlog_lets_timers_go_on,
    single_packets_let_other_tasks_go_on,
    a_busy_task_loses_no_packets,
    a_task_moves_between_threads_and_judges_once,
];

/// A task's budget, which tokio keeps at this number, and a batch that is received with the last of
/// it.
const AT_A_TIME: u64 = 128 + 64;

/// So many packets wait, or as many as the receive buffer holds, which the host limits for ordinary
/// users.
const PACKETS_MAX: usize = 40_000;

/// What a small packet takes in the receive buffer, in bytes, rounded up.
const COST: usize = 1000;

/// A backlog is always there: as under a flood, and the same on every machine. `work` is told how
/// many packets wait.
fn with_backlog(work: impl AsyncFnOnce(&mut AsyncQueue, &Ledger, &Arc<AtomicU64>, u64)) {
    let builder = Queue::builder(1).max_len(PACKETS_MAX as u32);
    let queue = builder.receive_buffer(COST * PACKETS_MAX).bind().unwrap();
    let packets = PACKETS_MAX.min(queue.receive_buffer().unwrap() / COST);
    let (traffic, ledger) = (Traffic::new(packets, 8), Ledger::default());
    let _rules = queue_udp(1);
    traffic.send(packets, 8);
    let judged = Arc::new(AtomicU64::new(0));
    let queue = one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        work(&mut queue, &ledger, &judged, packets as u64).await;
        queue.into_inner()
    });
    assert_eq!(judged.load(Ordering::SeqCst), packets as u64);
    assert_eq!(balance(1, &queue.stats(), &ledger).unwrap_or(0), 0);
    traffic.settle(&ledger, Counted::default());
}

/// Looks again and again how far it is, in a task of its own, and returns what it saw.
fn look(judged: &Arc<AtomicU64>, packets: u64) -> JoinHandle<Vec<u64>> {
    let judged = Arc::clone(judged);
    tokio::spawn(async move {
        let mut seen = vec![0];
        while *seen.last().unwrap() < packets {
            seen.push(judged.load(Ordering::SeqCst));
            tokio::task::yield_now().await;
        }
        seen
    })
}

/// Asserts that a task had its turn again after no more than it may.
#[track_caller]
fn expect_turns(seen: &[u64]) {
    let most = seen.windows(2).map(|two| two[1] - two[0]).max().unwrap();
    assert!(most <= AT_A_TIME, "{most} packets at a time");
}

fn a_backlog_lets_other_tasks_go_on(_: &Namespace) {
    with_backlog(async |queue, ledger, judged, packets| {
        let (stop, looking) = (queue.stop_handle(), look(judged, packets));
        soon(queue.run(|packet| {
            if judged.fetch_add(1, Ordering::SeqCst) + 1 == packets {
                stop.stop();
            }
            ledger.judge(packet)
        }))
        .await
        .unwrap();
        expect_turns(&looking.await.unwrap());
    });
}

/// A timer that rings all the time: the driver is asked often enough.
fn a_backlog_lets_timers_go_on(_: &Namespace) {
    with_backlog(async |queue, ledger, judged, packets| {
        let (stop, ticks) = (queue.stop_handle(), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&ticks);
        let ticking = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                counter.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut seen = Vec::new();
        soon(queue.run(|packet| {
            if judged.fetch_add(1, Ordering::SeqCst) + 1 == packets {
                stop.stop();
            }
            seen.push(ticks.load(Ordering::SeqCst));
            ledger.judge(packet)
        }))
        .await
        .unwrap();
        ticking.abort();
        seen.dedup();
        // The runtime asks for timers every 61 times that it polls a task.
        if packets < 3 * 61 * AT_A_TIME {
            return untested("timers beside a backlog", format!("only {packets} packets fit"));
        }
        assert!(seen.len() >= 2, "no timer rang while {packets} packets were judged");
    });
}

/// As for `run`, where packets are taken one by one, and in batches.
fn single_packets_let_other_tasks_go_on(_: &Namespace) {
    with_backlog(async |queue, ledger, judged, packets| {
        let looking = look(judged, packets);
        for _ in 0..packets / 2 {
            let packet = soon(queue.next_packet()).await.unwrap();
            judged.fetch_add(1, Ordering::SeqCst);
            let number = crate::accounts::number(packet.payload());
            let fate = crate::accounts::Fate::of(number);
            ledger.note(1, packet.id(), number, fate);
            packet.verdict(fate.verdict()).unwrap();
        }
        let mut batch = Batch::new(64);
        while judged.load(Ordering::SeqCst) < packets {
            let packets = soon(queue.recv(&mut batch)).await.unwrap();
            judged.fetch_add(packets as u64, Ordering::SeqCst);
            for packet in &mut batch {
                ledger.judge(packet);
            }
            batch.commit().unwrap();
        }
        expect_turns(&looking.await.unwrap());
    });
}

/// Another task keeps the only thread: what comes meanwhile waits.
fn a_busy_task_loses_no_packets(_: &Namespace) {
    const BURSTS: usize = 30;
    const BURST: usize = 100;
    let (traffic, ledger) = (Traffic::new(BURSTS * BURST, 8), Ledger::default());
    let queue = Queue::builder(1).max_len((BURSTS * BURST) as u32).bind().unwrap();
    let _rules = queue_udp(1);
    let queue = thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..BURSTS {
                traffic.send(BURST, 8);
                traffic.collect();
                thread::sleep(Duration::from_millis(5));
            }
        });
        one_thread().block_on(async {
            let mut queue = AsyncQueue::new(queue).unwrap();
            let stop = queue.stop_handle();
            let busy = tokio::spawn(async {
                loop {
                    thread::sleep(Duration::from_millis(20));
                    tokio::task::yield_now().await;
                }
            });
            let mut judged = 0;
            soon(queue.run(|packet| {
                judged += 1;
                if judged == BURSTS * BURST {
                    stop.stop();
                }
                ledger.judge(packet)
            }))
            .await
            .unwrap();
            busy.abort();
            queue.into_inner()
        })
    });
    assert_eq!(queue.stats().lost, 0);
    assert_eq!(balance(1, &queue.stats(), &ledger).unwrap_or(0), 0);
    traffic.settle(&ledger, Counted::default());
}

/// Verdicts come from several threads, and none of them reaches another's packets.
fn a_task_moves_between_threads_and_judges_once(_: &Namespace) {
    const ROUNDS: usize = 200;
    const ROUND: usize = 30;
    let traffic = Arc::new(Traffic::new(ROUNDS * ROUND, 8));
    let ledger = Arc::new(Ledger::default());
    let queue = Queue::builder(1).max_len((ROUNDS * ROUND) as u32).bind().unwrap();
    let _rules = queue_udp(1);
    let (its_traffic, its_ledger) = (Arc::clone(&traffic), Arc::clone(&ledger));
    let threads = Arc::new(Mutex::new(std::collections::HashSet::new()));
    let its_threads = Arc::clone(&threads);
    let queue = two_threads().block_on(async {
        // Somebody who is busy makes the other thread take tasks over.
        let busy = tokio::spawn(async {
            loop {
                thread::sleep(Duration::from_micros(50));
                tokio::task::yield_now().await;
            }
        });
        let judging = tokio::spawn(async move {
            let mut queue = AsyncQueue::new(queue).unwrap();
            let mut batch = Batch::new(8);
            let mut judged = 0;
            for round in 1..=ROUNDS {
                its_traffic.send(ROUND, 8);
                its_traffic.collect();
                while judged < round * ROUND {
                    judged += soon(queue.recv(&mut batch)).await.unwrap();
                    its_threads.lock().unwrap().insert(thread::current().id());
                    for packet in &mut batch {
                        its_ledger.judge(packet);
                    }
                    batch.commit().unwrap();
                    tokio::task::yield_now().await;
                }
            }
            queue.into_inner()
        });
        let queue = judging.await.unwrap();
        busy.abort();
        queue
    });
    println!("{} threads", threads.lock().unwrap().len());
    assert_eq!(balance(1, &queue.stats(), &ledger).unwrap_or(0), 0);
    traffic.settle(&ledger, Counted::default());
}
