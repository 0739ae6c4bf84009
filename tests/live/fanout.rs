//! A range of queue numbers that shares the packets, judged by one thread or by several.

use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Batch, Decided, Error, Fanout, Packet, Queue, StopHandle, Verdict};
use netfilterqueue_netns::Namespace;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;
use nix::unistd::Pid;

use crate::held::byte;
use crate::several::accept_what_waits;
use crate::support::{Feed, QUIET, SOON, UdpPair, V4, expect_no_packet, judge_while, wait_until};
use crate::{Test, tests};

pub const TESTS: [Test; 10] = tests![
    a_balanced_range_is_served_by_one_queue,
    a_balanced_range_is_served_by_a_thread_each,
    stopping_one_stops_all_once,
    a_panic_of_one_judge_stops_all,
    a_stop_after_the_end_is_meant_for_the_next_run,
    an_error_of_one_queue_stops_all,
    pinned_threads_judge_on_the_processor_that_has_sent,
    a_panic_before_the_first_packet_stops_all,
    queues_of_several_namespaces_run_together,
    a_fan_out_has_a_queue,
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
    let mut fanout = Queue::builder(2..=5).bind_fanout().unwrap();
    let numbers: Vec<_> = fanout.queues().iter().flat_map(Queue::numbers).collect();
    assert_eq!(numbers, [2, 3, 4, 5]);
    let _rules = balance();
    let udp = UdpPair::new(V4);
    let flows = Flows::default();
    let judges = Mutex::new(Vec::new());
    let (stop, stats) = (fanout.stop_handle(), fanout.stats_handle());
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            fanout.run(|number| {
                judges.lock().unwrap().push((number, thread::current().id()));
                // Does not leave its thread.
                let judged = Rc::new(Cell::new(0));
                let flows = &flows;
                move |packet| {
                    assert_eq!((packet.queue(), packet.id()), (number, judged.get() + 1));
                    judged.set(judged.get() + 1);
                    flows.lock().unwrap().insert((byte(&packet), packet.queue()));
                    packet.accept()
                }
            })
        });
        send_balanced(&udp);
        wait_until("all verdicts", || stats.stats().answered == 2 * u64::from(BALANCED));
        stop.stop();
        run.join().unwrap().unwrap();
    });
    let mut judges = judges.into_inner().unwrap();
    judges.sort_by_key(|(number, _)| *number);
    let (numbers, threads): (Vec<_>, Vec<_>) = judges.into_iter().unzip();
    assert_eq!(numbers, [2, 3, 4, 5], "a judge for each queue");
    assert_eq!(threads.iter().collect::<HashSet<_>>().len(), 4, "in a thread of its own");
    assert_eq!(fanout.stats(), fanout.queues().iter().map(Queue::stats).sum());
    assert_eq!(fanout.stats().received, 2 * u64::from(BALANCED));
    assert_balanced(flows, &udp);
}

/// Runs the queues in a thread while `work` does something that ends them.
fn run_while(
    fanout: &mut Fanout,
    judge: impl for<'p> Fn(Packet<'p>) -> Decided<'p> + Send + Sync,
    work: impl FnOnce(),
) -> thread::Result<Result<(), Error>> {
    let stop = fanout.stop_handle();
    thread::scope(|scope| {
        let run = scope.spawn(move || catch_unwind(AssertUnwindSafe(|| fanout.run(|_| &judge))));
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
    let mut fanout = Queue::builder(1..=3).bind_fanout().unwrap();
    let feed = Feed::of([1, 2, 3]);
    for at in 0..3 {
        let stop = fanout.queues()[at].stop_handle();
        let judged = AtomicU64::new(0);
        let result = run_while(
            &mut fanout,
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
    for queue in fanout.queues_mut() {
        expect_no_packet(queue);
    }
}

fn a_panic_of_one_judge_stops_all(_: &Namespace) {
    let builder = Queue::builder(1..=3).on_undecided(Verdict::Accept);
    let mut fanout = builder.bind_fanout().unwrap();
    let feed = Feed::of([1, 2, 3]);
    let result = run_while(
        &mut fanout,
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
    for queue in fanout.queues_mut() {
        assert_eq!(accept_what_waits(queue).len(), 1);
    }
    feed.udp.iter().for_each(|udp| assert_eq!(udp.receive_all(1), [[2]]));
}

/// One queue has ended while another one's judge is still busy.
fn a_stop_after_the_end_is_meant_for_the_next_run(_: &Namespace) {
    let mut fanout = Queue::builder(1..=2).bind_fanout().unwrap();
    let feed = Feed::of([1, 2]);
    let stops = [0, 1].map(|at: usize| fanout.queues()[at].stop_handle());
    let [is_busy, has_failed, may_go_on] = [(); 3].map(|()| AtomicBool::new(false));
    let result = run_while(
        &mut fanout,
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
    for queue in fanout.queues_mut() {
        assert!(matches!(queue.recv(&mut batch), Err(Error::Stopped)));
        expect_no_packet(queue);
    }
}

fn an_error_of_one_queue_stops_all(_: &Namespace) {
    let mut fanout = Queue::builder(1..=3).bind_fanout().unwrap();
    let feed = Feed::of([1, 2, 3]);
    // Makes a long verdict impossible to send, as on a host without memory.
    setsockopt(&fanout.queues()[1], SndBuf, &1).unwrap();
    let result = run_while(
        &mut fanout,
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
    assert_eq!(accept_what_waits(&mut fanout.queues_mut()[2]), [(3, 1)]);
    assert_eq!(feed.udp[2].receive_all(1), [[3]]);
}

/// Sends one datagram from each processor that this thread may use, and returns these.
fn send_from_each_processor(udp: &UdpPair) -> Vec<u8> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let all = 0..u8::MAX;
    let processors = all.filter(|at| allowed.is_set(usize::from(*at)).unwrap()).collect::<Vec<_>>();
    for processor in &processors {
        let mut one = CpuSet::new();
        one.set(usize::from(*processor)).unwrap();
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();
        udp.send(&[*processor]);
    }
    sched_setaffinity(Pid::from_raw(0), &allowed).unwrap();
    processors
}

fn pinned_threads_judge_on_the_processor_that_has_sent(_: &Namespace) {
    const QUEUES: u16 = 2;
    let mut fanout = Queue::builder(4..4 + QUEUES).bind_fanout().unwrap();
    fanout.set_pinned(true);
    let rule = Rule::queues(4..=3 + QUEUES).cpu_fanout(true).protocol(Protocol::UDP);
    // At this hook the kernel handles a packet where its sender runs.
    let _rules = Rules::new(Hook::OUTPUT).rule(rule).install().unwrap();
    let udp = UdpPair::new(V4);
    let judged = Mutex::new(Vec::new());
    let (stop, stats) = (fanout.stop_handle(), fanout.stats_handle());
    let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let sent = thread::scope(|scope| {
        let run = scope.spawn(|| {
            fanout.run(|number| {
                let own = sched_getaffinity(Pid::from_raw(0)).unwrap();
                let judged = &judged;
                move |packet| {
                    let processor = byte(&packet);
                    let is_own = own.is_set(usize::from(processor)).unwrap();
                    judged.lock().unwrap().push((processor, number, is_own));
                    packet.accept()
                }
            })
        });
        let sent = send_from_each_processor(&udp);
        wait_until("all verdicts", || stats.stats().answered == sent.len() as u64);
        stop.stop();
        run.join().unwrap().unwrap();
        sent
    });
    let expected = sent.iter().map(|at| (*at, 4 + u16::from(*at) % QUEUES, true));
    let mut judged = judged.into_inner().unwrap();
    judged.sort_unstable();
    assert_eq!(judged, expected.collect::<Vec<_>>());
    assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), before, "the caller stays free");
}

/// What makes a judge fails in one thread: as if the judge had.
fn a_panic_before_the_first_packet_stops_all(_: &Namespace) {
    let mut fanout = Queue::builder(1..=3).bind_fanout().unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| {
        fanout.run(|number| {
            assert_ne!(number, 2, "no judge for this queue");
            |packet| packet.accept()
        })
    }));
    let panic = panic.unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("no judge for this queue"), "{text}");
    let feed = Feed::of([1, 2, 3]);
    feed.send_each(0..1);
    let stop = fanout.stop_handle();
    let stats = fanout.stats_handle();
    thread::scope(|scope| {
        let run = scope.spawn(|| fanout.run(|_| |packet| packet.accept()));
        wait_until("all verdicts", || stats.stats().answered == 3);
        stop.stop();
        run.join().unwrap().unwrap();
    });
    feed.udp.iter().for_each(|udp| assert_eq!(udp.receive_all(1), [[0]]));
}

fn queues_of_several_namespaces_run_together(_: &Namespace) {
    let places = [(); 2].map(|()| Namespace::new().unwrap());
    let queues = places.each_ref().map(|place| place.run(|| Queue::builder(1).bind().unwrap()));
    let feeds = places.each_ref().map(|place| place.run(|| Feed::of([1])));
    let mut fanout = Fanout::new(queues.into()).unwrap();
    let (stop, stats) = (fanout.stop_handle(), fanout.stats_handle());
    thread::scope(|scope| {
        let run = scope.spawn(|| fanout.run(|_| |packet| packet.accept()));
        feeds.iter().for_each(|feed| feed.send_each(0..10));
        wait_until("all verdicts", || stats.stats().answered == 20);
        stop.stop();
        run.join().unwrap().unwrap();
    });
    for feed in &feeds {
        assert_eq!(feed.udp[0].receive_all(10), (0..10).map(|byte| [byte]).collect::<Vec<_>>());
    }
    // Only root of the initial user namespace may read them.
    match stats.kernel_stats() {
        Ok(rows) => assert_eq!(rows.iter().map(|row| row.queue).collect::<Vec<_>>(), [1, 1]),
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
    }
    assert_eq!(fanout.into_queues().len(), 2);
    assert_eq!((stats.stats().answered, stats.kernel_stats().unwrap()), (20, Vec::new()));
}

fn a_fan_out_has_a_queue(_: &Namespace) {
    let error = Fanout::new(Vec::new()).unwrap_err();
    assert!(matches!(error, Error::InvalidQueue(_)), "{error}");
    let error = Queue::builder(Vec::new()).bind_fanout().unwrap_err();
    assert!(matches!(error, Error::InvalidQueue(_)), "{error}");
}
