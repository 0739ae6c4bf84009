//! A range of queue numbers that shares the packets, judged by one thread or by several.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Batch, Decided, Error, Packet, Queue, StopHandle, Verdict};
use netfilterqueue_netns::Namespace;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;

use crate::held::byte;
use crate::several::accept_what_waits;
use crate::support::{Feed, QUIET, SOON, UdpPair, V4, expect_no_packet, judge_while, wait_until};
use crate::{Test, tests};

pub const TESTS: [Test; 6] = tests![
    a_balanced_range_is_served_by_one_queue,
    a_balanced_range_is_served_by_a_thread_each,
    stopping_one_stops_all_once,
    a_panic_of_one_judge_stops_all,
    a_stop_after_the_end_is_meant_for_the_next_run,
    an_error_of_one_queue_stops_all,
];

const BALANCED: u8 = 32;

/// Sends from many addresses into the numbers 2 to 5 while `judge` works; each sends twice.
fn send_balanced(udp: &UdpPair) {
    for host in 1..=BALANCED {
        let sender = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, host), 0)).unwrap();
        for _ in 0..2 {
            sender.send_to(&[host], udp.receiver_address()).unwrap();
        }
    }
}

fn balance() -> InstalledRules {
    let rule = Rule::queues(2..=5).protocol(Protocol::UDP);
    Rules::new(Hook::INPUT).rule(rule).install().unwrap()
}

/// Each sender's queue, which must be the same for all its packets.
type Flows = Mutex<BTreeSet<(u8, u16)>>;

fn assert_balanced(flows: Flows, udp: &UdpPair) {
    let mut arrived: Vec<_> = (0..2 * BALANCED).map(|_| udp.receive()[0]).collect();
    arrived.sort_unstable();
    assert_eq!(arrived, (1..=BALANCED).flat_map(|host| [host; 2]).collect::<Vec<_>>());
    let flows = flows.into_inner().unwrap();
    assert_eq!(flows.len(), usize::from(BALANCED), "one queue per flow: {flows:?}");
    let used: BTreeSet<u16> = flows.iter().map(|(_, queue)| *queue).collect();
    assert!(used.len() > 1 && used.iter().all(|number| (2..=5).contains(number)), "{used:?}");
}

fn a_balanced_range_is_served_by_one_queue(_: &Namespace) {
    let mut queue = Queue::builder(2..=5).bind().unwrap();
    let _rules = balance();
    let udp = UdpPair::new(V4);
    let flows = Flows::default();
    let stats = queue.stats_handle();
    let note = |sender, number| flows.lock().unwrap().insert((sender, number));
    judge_while(
        &mut queue,
        |packet| {
            note(byte(&packet), packet.queue());
            packet.accept()
        },
        || {
            send_balanced(&udp);
            wait_until("all verdicts", || stats.stats().answered == 2 * u64::from(BALANCED));
        },
    );
    assert_balanced(flows, &udp);
}

fn a_balanced_range_is_served_by_a_thread_each(_: &Namespace) {
    let mut queues = Queue::builder(2..=5).bind_each().unwrap();
    let numbers: Vec<_> = queues.iter().flat_map(Queue::numbers).collect();
    assert_eq!(numbers, [2, 3, 4, 5]);
    let _rules = balance();
    let udp = UdpPair::new(V4);
    let flows = Flows::default();
    let threads = Mutex::new(BTreeSet::new());
    let stop = queues[2].stop_handle();
    let handles: Vec<_> = queues.iter().map(Queue::stats_handle).collect();
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            Queue::run_all(&mut queues, |packet| {
                flows.lock().unwrap().insert((byte(&packet), packet.queue()));
                let thread = format!("{:?}", thread::current().id());
                threads.lock().unwrap().insert((packet.queue(), thread));
                packet.accept()
            })
        });
        send_balanced(&udp);
        wait_until("all verdicts", || {
            let answered: u64 = handles.iter().map(|handle| handle.stats().answered).sum();
            answered == 2 * u64::from(BALANCED)
        });
        stop.stop();
        run.join().unwrap().unwrap();
    });
    let used: BTreeSet<u16> = flows.lock().unwrap().iter().map(|(_, queue)| *queue).collect();
    assert_eq!(threads.into_inner().unwrap().len(), used.len(), "a thread for each queue");
    assert_balanced(flows, &udp);
}

/// Runs the queues in a thread while `work` does something that ends them.
fn run_while(
    queues: &mut [Queue],
    judge: impl for<'p> Fn(Packet<'p>) -> Decided<'p> + Send + Sync,
    work: impl FnOnce(),
) -> thread::Result<Result<(), Error>> {
    let stop = queues[0].stop_handle();
    thread::scope(|scope| {
        let run =
            scope.spawn(move || catch_unwind(AssertUnwindSafe(|| Queue::run_all(queues, judge))));
        work();
        let deadline = Instant::now() + SOON;
        while !run.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let has_ended = run.is_finished();
        if !has_ended {
            stop.stop();
        }
        let result = run.join().unwrap();
        assert!(has_ended, "the others did not end");
        result
    })
}

fn stopping_one_stops_all_once(_: &Namespace) {
    let mut queues = Queue::builder(1..=3).bind_each().unwrap();
    let feed = Feed::of([1, 2, 3]);
    for at in 0..3 {
        let stop = queues[at].stop_handle();
        let judged = AtomicU64::new(0);
        let result = run_while(
            &mut queues,
            |packet| {
                judged.fetch_add(1, Ordering::Relaxed);
                packet.accept()
            },
            || {
                feed.send_each(0..2);
                feed.udp.iter().for_each(|udp| drop(udp.receive_all(2)));
                stop.stop();
            },
        );
        result.unwrap().unwrap();
        assert_eq!(judged.into_inner(), 6, "in round {at}");
    }
    // And none is stopped for later.
    for queue in &mut queues {
        expect_no_packet(queue);
    }
}

fn a_panic_of_one_judge_stops_all(_: &Namespace) {
    let mut queues = Queue::builder(1..=3).on_undecided(Verdict::Accept).bind_each().unwrap();
    let feed = Feed::of([1, 2, 3]);
    let result = run_while(
        &mut queues,
        |packet| {
            assert_ne!(packet.queue(), 2, "not of this queue");
            packet.verdict(Verdict::Drop)
        },
        || feed.udp[1].send(&[0]),
    );
    let panic = result.unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("not of this queue"), "{text}");
    assert_eq!(feed.udp[1].receive_all(1), [[0]], "the default verdict");
    // All can be used again.
    feed.send_each(2..3);
    for queue in &mut queues {
        assert_eq!(accept_what_waits(queue).len(), 1);
    }
    feed.udp.iter().for_each(|udp| assert_eq!(udp.receive_all(1), [[2]]));
}

/// One queue has ended while another one's judge is still busy.
fn a_stop_after_the_end_is_meant_for_the_next_run(_: &Namespace) {
    let mut queues = Queue::builder(1..=2).bind_each().unwrap();
    let feed = Feed::of([1, 2]);
    let stops = [0, 1].map(|at: usize| queues[at].stop_handle());
    let [is_busy, has_failed, may_go_on] = [(); 3].map(|()| AtomicBool::new(false));
    let result = run_while(
        &mut queues,
        |packet| {
            if packet.queue() == 2 {
                has_failed.store(true, Ordering::SeqCst);
                resume_unwind(Box::new("the judge fails"));
            }
            is_busy.store(true, Ordering::SeqCst);
            wait_until("the stop", || may_go_on.load(Ordering::SeqCst));
            packet.accept()
        },
        || {
            feed.udp[0].send(&[0]);
            wait_until("a judge at work", || is_busy.load(Ordering::SeqCst));
            feed.udp[1].send(&[0]);
            wait_until("a failure", || has_failed.load(Ordering::SeqCst));
            thread::sleep(QUIET);
            // The first queue will take its stop, the second one has ended.
            stops.iter().for_each(StopHandle::stop);
            may_go_on.store(true, Ordering::SeqCst);
        },
    );
    assert!(result.is_err(), "the panic is handed on");
    let mut batch = Batch::new(1);
    for queue in &mut queues {
        assert!(matches!(queue.recv(&mut batch), Err(Error::Stopped)));
        expect_no_packet(queue);
    }
}

fn an_error_of_one_queue_stops_all(_: &Namespace) {
    let mut queues = Queue::builder(1..=3).bind_each().unwrap();
    let feed = Feed::of([1, 2, 3]);
    // Makes a long verdict impossible to send, as on a host without memory.
    setsockopt(&queues[1], SndBuf, &1).unwrap();
    let result = run_while(
        &mut queues,
        |mut packet| {
            if packet.queue() == 2 {
                packet.payload_mut().unwrap();
            }
            packet.accept()
        },
        || {
            feed.udp[0].send(&[1]);
            assert_eq!(feed.udp[0].receive(), [1]);
            feed.udp[1].send(&[0; 9_000]);
        },
    );
    let error = result.unwrap().unwrap_err();
    assert!(matches!(error, Error::System { .. }), "{error:?}");
    feed.udp[2].send(&[3]);
    assert_eq!(accept_what_waits(&mut queues[2]), [(3, 1)]);
    assert_eq!(feed.udp[2].receive_all(1), [[3]]);
}
