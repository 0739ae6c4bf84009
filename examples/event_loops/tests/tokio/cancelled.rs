//! Futures that are dropped at every await, under load: no packet is lost, none is judged twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netfilterqueue::AsyncQueue;
use netfilterqueue::{Batch, Error, Queue};
use netfilterqueue_netns::Namespace;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::accounts::Fate;
use crate::accounts::{Counted, Ledger, Traffic, balance, feed, number};
use crate::support::queue_udp;
use crate::{Test, faults, irregular, one_thread, two_threads, until_it_has_waited};

pub const TESTS: [Test; 6] = faults![
    a_receive_that_is_dropped_has_received_nothing,
    a_run_that_is_dropped_has_judged_what_it_received,
    a_packet_is_taken_only_when_it_is_returned,
    what_select_drops_has_taken_nothing,
    a_drain_that_is_dropped_goes_on_later,
    a_task_that_is_aborted_loses_nothing,
];

/// So many datagrams are sent, in bursts, so that there are waits between them.
const PACKETS: usize = 6_000;
const BURST_MAX: u64 = 16;

/// Fewer futures than this were dropped before they were ready: then nothing was tested.
const DROPPED_MIN: u64 = 50;

/// Sends in a thread; `is_over` is true once all is sent.
fn send(traffic: &Arc<Traffic>, is_over: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let (traffic, is_over) = (Arc::clone(traffic), Arc::clone(is_over));
    std::thread::spawn(move || {
        let mut left = PACKETS;
        for (burst, pause) in irregular(BURST_MAX).zip(irregular(2_000).skip(1)) {
            let burst = left.min(burst as usize + 1);
            traffic.send(burst, 8);
            traffic.collect();
            left -= burst;
            if left == 0 {
                break;
            }
            // Often long enough for the queue to be empty.
            std::thread::sleep(Duration::from_micros(pause));
        }
        is_over.store(true, Ordering::SeqCst);
    })
}

/// Runs `work` in a task of each kind of runtime on a queue under load, until everything has come,
/// and settles. It is told how often it may wait before it is dropped, and returns whether it was.
#[expect(clippy::needless_pass_by_value, reason = "closures are written in place")]
fn under_load(work: impl AsyncFn(&mut AsyncQueue, &Arc<Ledger>, u64) -> bool) {
    for runtime in [one_thread(), two_threads()] {
        let traffic = Arc::new(Traffic::new(PACKETS, 8));
        let (ledger, is_over) = (Arc::new(Ledger::default()), Arc::default());
        let queue = Queue::builder(1).max_len(PACKETS as u32).bind().unwrap();
        let _rules = queue_udp(1);
        let queue = runtime.block_on(async {
            let mut queue = AsyncQueue::new(queue).unwrap();
            let sending = send(&traffic, &is_over);
            let mut dropped = 0;
            let mut waits = irregular(3);
            while !is_over.load(Ordering::SeqCst)
                || queue.queue().stats().received < traffic.sent()
                || queue.queue().stats().held > 0
            {
                dropped += u64::from(work(&mut queue, &ledger, waits.next().unwrap()).await);
                // What has been dropped is not to be the only one that looks for packets.
                tokio::task::yield_now().await;
            }
            sending.join().unwrap();
            assert!(dropped >= DROPPED_MIN, "only {dropped} were dropped");
            queue.into_inner()
        });
        settle(&queue, &traffic, &ledger);
    }
}

fn settle(queue: &Queue, traffic: &Traffic, ledger: &Ledger) {
    let stats = queue.stats();
    assert_eq!(balance(1, &stats, ledger).unwrap_or(0), 0);
    assert_eq!((stats.lost, stats.refused), (0, 0), "{stats:?}");
    ledger.expect_ids(1, PACKETS as u64);
    traffic.settle(ledger, Counted::default());
}

fn a_receive_that_is_dropped_has_received_nothing(_: &Namespace) {
    under_load(async |queue, ledger, waits| {
        let mut batch = Batch::new(16);
        let result = until_it_has_waited(waits, queue.recv(&mut batch)).await;
        if let Some(result) = &result {
            assert_eq!(*result.as_ref().unwrap(), batch.len());
        } else {
            assert!(batch.is_empty());
        }
        for packet in &mut batch {
            ledger.judge(packet);
        }
        batch.commit().unwrap();
        result.is_none()
    });
}

fn a_run_that_is_dropped_has_judged_what_it_received(_: &Namespace) {
    under_load(async |queue, ledger, waits| {
        let run = queue.run(|packet| ledger.judge(packet));
        assert!(until_it_has_waited(waits, run).await.is_none(), "nobody stops it");
        assert_eq!(queue.queue().stats().held, 0, "all verdicts are sent");
        true
    });
}

/// A task for each, which outlives the future that is dropped.
fn a_packet_is_taken_only_when_it_is_returned(_: &Namespace) {
    under_load(async |queue, ledger, waits| {
        let before = queue.queue().stats();
        let Some(result) = until_it_has_waited(waits, queue.next_packet()).await else {
            assert_eq!(queue.queue().stats().received, before.received);
            return true;
        };
        let (packet, ledger) = (result.unwrap(), Arc::clone(ledger));
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            let number = number(packet.payload());
            let fate = Fate::of(number);
            ledger.note(1, packet.id(), number, fate);
            packet.verdict(fate.verdict()).unwrap();
        });
        false
    });
}

/// Of two queues, that which is not first is dropped, thousands of times.
fn what_select_drops_has_taken_nothing(_: &Namespace) {
    const EACH: usize = 4_000;
    for runtime in [one_thread(), two_threads()] {
        let bind = |number| Queue::builder(number).max_len(EACH as u32).bind().unwrap();
        let queues = [bind(1), bind(2)];
        let traffics = [(1, Traffic::new(EACH, 8)), (2, Traffic::new(EACH, 8))];
        let _rules = feed(&traffics);
        let ledgers = [Ledger::default(), Ledger::default()];
        let queues = std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..EACH / 4 {
                    traffics.iter().for_each(|(_, traffic)| traffic.send(4, 8));
                    traffics.iter().for_each(|(_, traffic)| _ = traffic.collect());
                }
            });
            let [one, other] = queues;
            runtime.block_on(select_until(one, other, 2 * EACH, &ledgers))
        });
        for ((queue, ledger), (number, traffic)) in queues.iter().zip(&ledgers).zip(&traffics) {
            let stats = queue.stats();
            assert_eq!((stats.lost, stats.refused), (0, 0), "{stats:?}");
            assert_eq!(balance(*number, &stats, ledger).unwrap_or(0), 0);
            ledger.expect_ids(*number, EACH as u64);
            traffic.settle(ledger, Counted::default());
        }
    }
}

async fn select_until(
    one: Queue,
    other: Queue,
    packets: usize,
    ledgers: &[Ledger; 2],
) -> [Queue; 2] {
    let mut one = AsyncQueue::new(one).unwrap();
    let mut other = AsyncQueue::new(other).unwrap();
    let (mut batch, mut other_batch) = (Batch::new(3), Batch::new(3));
    let (mut judged, mut selected) = (0, 0);
    while judged < packets {
        // A batch for each: what one of them has received must not be committed by the other.
        let ready = crate::soon(async {
            tokio::select! {
                result = one.recv(&mut batch) => { result.unwrap(); &mut batch }
                result = other.recv(&mut other_batch) => { result.unwrap(); &mut other_batch }
            }
        })
        .await;
        selected += 1;
        judged += ready.len();
        for packet in &mut *ready {
            ledgers[usize::from(packet.queue() - 1)].judge(packet);
        }
        ready.commit().unwrap();
    }
    assert!(selected >= 2_000, "only {selected} futures were dropped");
    [one.into_inner(), other.into_inner()]
}

fn a_drain_that_is_dropped_goes_on_later(_: &Namespace) {
    let runtime = one_thread();
    let (traffic, ledger) = (Traffic::new(PACKETS, 8), Ledger::default());
    let queue = Queue::builder(1).max_len(PACKETS as u32).bind().unwrap();
    let _rules = queue_udp(1);
    traffic.send(PACKETS, 8);
    let (queue, dropped) = runtime.block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        let mut dropped = 0;
        loop {
            // By budget: it is never waited for packets here.
            let drained = tokio::select! {
                biased;
                result = queue.drain(|packet| ledger.judge(packet)) => { result.unwrap(); true }
                () = std::future::ready(()) => false,
            };
            if drained {
                break;
            }
            dropped += 1;
            tokio::task::yield_now().await;
        }
        (queue.into_inner(), dropped)
    });
    assert!(dropped >= PACKETS / 128 - 1, "dropped {dropped} times only: it keeps the thread");
    assert_eq!(queue.max_len(), 0);
    settle(&queue, &traffic, &ledger);
}

/// The queue is shared by tasks that come after each other, and each is aborted at some moment.
fn a_task_that_is_aborted_loses_nothing(_: &Namespace) {
    let runtime: Runtime = two_threads();
    let traffic = Arc::new(Traffic::new(PACKETS, 8));
    let (ledger, is_over) = (Arc::new(Ledger::default()), Arc::new(AtomicBool::new(false)));
    let queue = Queue::builder(1).max_len(PACKETS as u32).bind().unwrap();
    let _rules = queue_udp(1);
    let stats = queue.stats_handle();
    let queue = runtime.block_on(async {
        let queue = Arc::new(tokio::sync::Mutex::new(AsyncQueue::new(queue).unwrap()));
        let sending = send(&traffic, &is_over);
        let mut aborted = 0;
        for pause in irregular(300) {
            let (its_queue, its_ledger) = (Arc::clone(&queue), Arc::clone(&ledger));
            let mut tasks = JoinSet::new();
            tasks.spawn(async move {
                let mut queue = its_queue.lock().await;
                queue.run(|packet| its_ledger.judge(packet)).await
            });
            tokio::time::sleep(Duration::from_micros(pause)).await;
            tasks.abort_all();
            while let Some(result) = tasks.join_next().await {
                assert!(result.unwrap_err().is_cancelled(), "the judge has not panicked");
                aborted += 1;
            }
            let stats = stats.stats();
            assert_eq!(stats.held, 0);
            if is_over.load(Ordering::SeqCst) && stats.received == traffic.sent() {
                break;
            }
        }
        sending.join().unwrap();
        assert!(aborted >= 50, "only {aborted} tasks were aborted");
        let queue = Arc::into_inner(queue).unwrap().into_inner();
        // Nothing is left to be done.
        let mut queue = queue.into_inner();
        queue.set_nonblocking(true);
        assert!(matches!(queue.recv(&mut Batch::new(1)), Err(Error::WouldBlock)));
        queue
    });
    settle(&queue, &traffic, &ledger);
}
