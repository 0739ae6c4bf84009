//! Signals at a high rate, to the very thread that receives and sends.
//!
//! They end waits for packets. A netlink send to the kernel waits for nothing that a signal could
//! interrupt, so that `EINTR` of a send is not shown to occur here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::{Batch, Queue, Stats};
use netfilterqueue_netns::Namespace;
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::Signal;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::{TimeVal, TimeValLike};
use signal_hook::consts::SIGUSR2;

use crate::accounts::{Counted, Ledger, Traffic, balance, keep_up};
use crate::support::{SOON, queue_udp};
use crate::{Test, faults};

pub const TESTS: [Test; 2] =
    faults![signals_do_not_disturb_a_wait_in_recvmmsg, signals_do_not_disturb_a_wait_in_poll,];

/// Comes in bursts, between which the queue waits.
const BURSTS: usize = 200;
const BURST: usize = 20;

/// So many more system calls than packets need show that signals have ended some of them.
const INTERRUPTED: u64 = 50;

/// Signals to a thread until it is dropped. The thread must outlive it.
struct Storm<'a> {
    is_over: &'a AtomicBool,
}

impl Drop for Storm<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
    }
}

fn signal(target: usize, sent: &AtomicU64, is_over: &AtomicBool) {
    while !is_over.load(Ordering::SeqCst) {
        pthread_kill(target as Pthread, Signal::SIGUSR2).expect("the thread lives");
        sent.fetch_add(1, Ordering::SeqCst);
        thread::sleep(Duration::from_micros(50));
    }
}

/// Judges in this thread, which signals hit all the time: first single packets that are waited for,
/// then bursts.
fn judge_in_a_storm(queue: &mut Queue) -> Stats {
    let (traffic, ledger) = (Traffic::new(BURSTS * BURST, 4), Ledger::default());
    signal_hook::flag::register(SIGUSR2, Arc::default()).expect("a handler");
    let _rules = queue_udp(1);
    let (signals, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    // With musl it is a pointer, which cannot be given to another thread.
    let this_thread = pthread_self() as usize;
    let received = AtomicU64::new(0);
    thread::scope(|scope| {
        let storm = Storm { is_over: &is_over };
        scope.spawn(|| signal(this_thread, &signals, &is_over));
        let mut batch = Batch::new(64);
        let mut judge = |queue: &mut Queue| {
            let count = queue.recv(&mut batch).expect("signals are no error");
            for packet in &mut batch {
                ledger.judge(packet);
            }
            batch.commit().expect("signals are no error");
            count
        };
        let deadline = Instant::now() + SOON;
        // A packet that is waited for takes three calls: to wait, to receive, to send.
        while queue.stats().system_calls() < 3 * traffic.sent() + INTERRUPTED {
            assert!(Instant::now() < deadline, "not interrupted: {:?}", queue.stats());
            let wanted = signals.load(Ordering::SeqCst) + 10;
            let (signals, traffic) = (&signals, &traffic);
            scope.spawn(move || {
                keep_up("ten signals", || signals.load(Ordering::SeqCst) >= wanted);
                traffic.send(1, 4);
            });
            assert_eq!(judge(queue), 1);
            queue.set_max_len(2_000 + traffic.sent() as u32).expect("signals are no error");
        }
        received.store(traffic.sent(), Ordering::SeqCst);
        let last = traffic.sent() + (BURSTS * BURST) as u64;
        let (traffic, received_now) = (&traffic, &received);
        scope.spawn(move || {
            while traffic.sent() < last {
                // No more than have room in the smallest receive buffer.
                keep_up("room", || traffic.sent() < received_now.load(Ordering::SeqCst) + 150);
                traffic.send(BURST, 4);
                thread::sleep(Duration::from_micros(500));
            }
        });
        while received.load(Ordering::SeqCst) < last {
            received.fetch_add(judge(queue) as u64, Ordering::SeqCst);
        }
        drop(storm);
    });
    let stats = queue.stats();
    assert_eq!(balance(1, &stats, &ledger).unwrap_or(0), 0);
    assert_eq!((stats.lost, stats.refused), (0, 0));
    traffic.settle(&ledger, Counted::default());
    stats
}

fn signals_do_not_disturb_a_wait_in_recvmmsg(_: &Namespace) {
    let mut queue = Queue::builder(1).max_len(2_000).bind().unwrap();
    // With a time limit the kernel does not resume a wait after a signal, whatever the handler's
    // `SA_RESTART` says.
    setsockopt(&queue, ReceiveTimeout, &TimeVal::hours(1)).unwrap();
    let stats = judge_in_a_storm(&mut queue);
    assert_eq!(stats.wait_calls, 0, "it waited by receiving");
}

fn signals_do_not_disturb_a_wait_in_poll(_: &Namespace) {
    let mut queue = Queue::builder(1).max_len(2_000).bind().unwrap();
    // Only a wait in `poll` can be stopped.
    let _stop = queue.stop_handle();
    let stats = judge_in_a_storm(&mut queue);
    assert!(stats.wait_calls > INTERRUPTED, "{stats:?}");
}
