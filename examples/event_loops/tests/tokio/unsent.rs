//! Verdicts that the kernel does not take: one thread's sends are made to fail, as if the kernel
//! had no memory.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::AsyncQueue;
use netfilterqueue::{Batch, Error, Operation, Queue, Verdict};
use netfilterqueue_netns::Namespace;
use nix::errno::Errno;
use nix::libc::SYS_sendmsg;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::accounts::{Counted, Fate, Ledger, Traffic, balance, number};
use crate::kernel::untested;
use crate::support::{QUIET, SOON, UdpPair, V4, queue_udp};
use crate::{Test, faults, one_thread, soon, two_threads};

pub const TESTS: [Test; 10] = faults![
    a_run_that_is_dropped_keeps_what_it_could_not_send,
    a_run_that_is_stopped_tells_what_it_could_not_send,
    what_could_not_be_sent_is_sent_when_the_queue_is_given_back,
    verdicts_handed_over_are_sent_by_the_wait,
    what_could_not_be_sent_is_sent_when_the_queue_ends,
    what_could_not_be_sent_is_sent_by_the_next_receive,
    a_verdict_that_cannot_be_sent_does_not_block_the_queue,
    a_run_waits_for_memory_without_a_runtime_around_it,
    a_drain_gives_up_after_a_while,
    what_is_left_does_not_end_a_blocking_run,
];

const PACKETS: usize = 20;
const EDITED: u8 = 0xee;

/// Makes each `sendmsg` of this thread fail, for good.
fn make_sends_fail() -> Result<(), Box<dyn std::error::Error>> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let fail = SeccompAction::Errno(Errno::ENOBUFS as u32);
    let calls = [(SYS_sendmsg, Vec::new())].into_iter().collect();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, fail, architecture)?;
    apply_filter(&BpfProgram::try_from(filter)?)?;
    Ok(())
}

/// Does something in a thread whose sends fail. Returns nothing where that cannot be made.
fn without_memory<T: Send>(runtime: &Handle, work: impl Future<Output = T> + Send) -> Option<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Err(obstacle) = make_sends_fail() {
                untested("sends that fail (seccomp)", obstacle);
                return None;
            }
            Some(runtime.block_on(work))
        });
        thread.join().unwrap()
    })
}

/// Judges as the number has it; accepted ones are edited.
fn judge<'p>(
    ledger: &Ledger,
    mut packet: netfilterqueue::Packet<'p>,
) -> netfilterqueue::Decided<'p> {
    if Fate::of(number(packet.payload())) == Fate::Accepted {
        *packet.payload_mut().unwrap().last_mut().unwrap() = EDITED;
    }
    ledger.judge(packet)
}

/// Runs in a thread without memory and is dropped there; `after` must send what was left.
fn after_a_dropped_run(after: impl AsyncFnOnce(AsyncQueue, &Ledger) -> Queue) {
    let runtime = two_threads();
    let queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(2 * PACKETS, 8), Ledger::default());
    traffic.send(PACKETS, 8);
    let mut queue = runtime.block_on(async { AsyncQueue::new(queue) }).unwrap();
    let run = async {
        timeout(3 * QUIET, queue.run(|packet| judge(&ledger, packet))).await.unwrap_err();
    };
    if without_memory(runtime.handle(), run).is_none() {
        return;
    }
    assert_eq!(queue.queue().stats().held, PACKETS as u64, "they are kept");
    let queue = runtime.block_on(after(queue, &ledger));
    let stats = queue.stats();
    balance(1, &stats, &ledger);
    traffic.settle(&ledger, Counted::default());
    assert_eq!(traffic.ending_with(EDITED), ledger.accepted(), "with their edits");
}

/// Whatever is called next sends it.
fn a_run_that_is_dropped_keeps_what_it_could_not_send(_: &Namespace) {
    after_a_dropped_run(async |mut queue, _| {
        timeout(QUIET, queue.recv(&mut Batch::new(1))).await.unwrap_err();
        queue.into_inner()
    });
    after_a_dropped_run(async |mut queue, _| {
        timeout(QUIET, queue.next_packet()).await.unwrap_err();
        queue.into_inner()
    });
    after_a_dropped_run(async |mut queue, ledger| {
        timeout(QUIET, queue.run(|packet| judge(ledger, packet))).await.unwrap_err();
        queue.into_inner()
    });
    after_a_dropped_run(async |mut queue, ledger| {
        soon(queue.drain(|packet| judge(ledger, packet))).await.unwrap();
        queue.into_inner()
    });
}

fn what_could_not_be_sent_is_sent_when_the_queue_is_given_back(_: &Namespace) {
    after_a_dropped_run(async |queue, ledger| {
        let mut queue = queue.into_inner();
        queue.set_nonblocking(true);
        queue.run(|packet| judge(ledger, packet)).unwrap();
        queue
    });
}

fn a_run_that_is_stopped_tells_what_it_could_not_send(_: &Namespace) {
    let runtime = two_threads();
    let queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(PACKETS, 8), Ledger::default());
    traffic.send(PACKETS, 8);
    let mut queue = runtime.block_on(async { AsyncQueue::new(queue) }).unwrap();
    let stop = queue.stop_handle();
    let run = async {
        let stopping = async {
            tokio::time::sleep(2 * QUIET).await;
            stop.stop();
        };
        let run = soon(queue.run(|packet| judge(&ledger, packet)));
        tokio::join!(run, stopping).0
    };
    let Some(result) = without_memory(runtime.handle(), run) else { return };
    // Not as if all were well.
    expect_no_memory(&result);
    runtime.block_on(soon(queue.drain(|_| panic!("all are judged")))).unwrap();
    traffic.settle(&ledger, Counted::default());
}

/// A retained packet is dropped where it cannot be answered: the queue that waits does it.
fn verdicts_handed_over_are_sent_by_the_wait(_: &Namespace) {
    let runtime = two_threads();
    let queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(PACKETS, 8), Ledger::default());
    traffic.send(PACKETS, 8);
    runtime.block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        let mut held = Vec::new();
        for _ in 0..PACKETS {
            let packet = soon(queue.next_packet()).await.unwrap();
            ledger.note(1, packet.id(), number(packet.payload()), Fate::Dropped);
            held.push(packet);
        }
        let handle = Handle::current();
        let dropping = thread::spawn(move || {
            thread::sleep(QUIET / 2);
            without_memory(&handle, async move { drop(held) })
        });
        // Each tries for 50 ms to send its own. It is awaited all the time, and sends what it is
        // given.
        let stats = queue.queue().stats_handle();
        let mut batch = Batch::new(1);
        let answered = async {
            while stats.stats().answered < PACKETS as u64 {
                tokio::time::sleep(QUIET / 10).await;
            }
        };
        tokio::select! {
            result = queue.recv(&mut batch) => panic!("nothing was sent: {result:?}"),
            result = timeout(6 * SOON, answered) => result.expect("all are answered"),
        }
        dropping.join().unwrap();
        let stats = queue.queue().stats();
        assert_eq!((stats.answered, stats.held), (PACKETS as u64, 0), "{stats:?}");
    });
    traffic.settle(&ledger, Counted::default());
}

/// By `close`, by a drop, and by a drop after it was given back.
fn what_could_not_be_sent_is_sent_when_the_queue_ends(_: &Namespace) {
    let ends: [fn(AsyncQueue); 3] =
        [|queue| queue.close().unwrap(), drop, |queue| drop(queue.into_inner())];
    for end in ends {
        let runtime = two_threads();
        let queue = Queue::builder(1).bind().unwrap();
        let rules = queue_udp(1);
        let (traffic, ledger) = (Traffic::new(PACKETS, 8), Ledger::default());
        traffic.send(PACKETS, 8);
        let mut queue = runtime.block_on(async { AsyncQueue::new(queue) }).unwrap();
        let run = async {
            timeout(QUIET, queue.run(|packet| judge(&ledger, packet))).await.unwrap_err();
        };
        if without_memory(runtime.handle(), run).is_none() {
            return;
        }
        end(queue);
        drop(rules);
        traffic.settle(&ledger, Counted::default());
        assert_eq!(traffic.ending_with(EDITED), ledger.accepted(), "with their edits");
    }
}

/// Of the queue itself, whose receive has a batch of the program's.
fn what_could_not_be_sent_is_sent_by_the_next_receive(_: &Namespace) {
    after_a_dropped_run(async |queue, _| {
        let mut queue = queue.into_inner();
        let result = queue.recv_timeout(&mut Batch::new(1), QUIET);
        assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
        queue
    });
}

/// As for `Queue::run`: it fails once, and then the packet gets the default verdict.
fn a_verdict_that_cannot_be_sent_does_not_block_the_queue(_: &Namespace) {
    const LONG: [u8; 9_000] = [7; 9_000];
    let queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    setsockopt(&queue, SndBuf, &1).unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        udp.send(&LONG);
        let result = soon(queue.run(|mut packet| {
            packet.payload_mut().unwrap();
            packet.accept()
        }))
        .await;
        assert!(matches!(result, Err(Error::System { .. })), "{result:?}");
        udp.send(&[1]);
        let packet = soon(queue.next_packet()).await.unwrap();
        packet.accept().unwrap();
        udp.send(&LONG);
        let result = soon(queue.drain(|mut packet| {
            packet.payload_mut().unwrap();
            packet.accept()
        }))
        .await;
        assert!(matches!(result, Err(Error::System { .. })), "{result:?}");
        soon(queue.drain(|_| panic!("all are judged"))).await.unwrap();
    });
    assert_eq!(udp.receive_all(3), [&LONG[..], &[1], &LONG[..]]);
}

/// Another executor polls it, which has no timers of its own.
fn a_run_waits_for_memory_without_a_runtime_around_it(_: &Namespace) {
    let runtime = two_threads();
    let queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(PACKETS, 8), Ledger::default());
    traffic.send(PACKETS, 8);
    let mut queue = runtime.block_on(async { AsyncQueue::new(queue) }).unwrap();
    let stop = queue.stop_handle();
    let result = thread::scope(|scope| {
        let running = scope.spawn(|| {
            if let Err(obstacle) = make_sends_fail() {
                untested("sends that fail (seccomp)", obstacle);
                return None;
            }
            Some(block_on(queue.run(|packet| judge(&ledger, packet))))
        });
        thread::sleep(2 * QUIET);
        stop.stop();
        running.join().unwrap()
    });
    let Some(result) = result else { return };
    expect_no_memory(&result);
    block_on(queue.drain(|_| panic!("all are judged"))).unwrap();
    traffic.settle(&ledger, Counted::default());
}

/// The kernel has memory for the request that closes the queue to packets, and then none.
fn a_drain_gives_up_after_a_while(_: &Namespace) {
    let runtime = two_threads();
    let queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(PACKETS, 8), Ledger::default());
    traffic.send(PACKETS, 8);
    let mut queue = runtime.block_on(async { AsyncQueue::new(queue) }).unwrap();
    let mut obstacle = None;
    let began = Instant::now();
    let result = thread::scope(|scope| {
        let draining = scope.spawn(|| {
            let mut is_first = true;
            block_on(queue.drain(|packet| {
                if mem::take(&mut is_first) {
                    obstacle = make_sends_fail().err().map(|error| error.to_string());
                }
                judge(&ledger, packet)
            }))
        });
        draining.join().unwrap()
    });
    if let Some(obstacle) = obstacle {
        return untested("sends that fail (seccomp)", obstacle);
    }
    expect_no_memory(&result);
    assert!(began.elapsed() >= Duration::from_secs(2), "after {:?}", began.elapsed());
    block_on(queue.drain(|_| panic!("all are judged"))).unwrap();
    traffic.settle(&ledger, Counted::default());
}

/// It waits for memory as for that of its own packets, until it is stopped.
fn what_is_left_does_not_end_a_blocking_run(_: &Namespace) {
    let runtime = two_threads();
    let queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(PACKETS, 8), Ledger::default());
    traffic.send(PACKETS, 8);
    let mut queue = runtime.block_on(async { AsyncQueue::new(queue) }).unwrap();
    let stop = queue.stop_handle();
    let without_memory = without_memory(runtime.handle(), async move {
        timeout(QUIET, queue.run(|packet| judge(&ledger, packet))).await.unwrap_err();
        let mut queue = queue.into_inner();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(2 * QUIET);
                stop.stop();
            });
            let began = Instant::now();
            (queue.run(|_| panic!("judged")), began.elapsed())
        })
    });
    let Some((result, elapsed)) = without_memory else { return };
    expect_no_memory(&result);
    assert!(elapsed >= 2 * QUIET, "it ended by itself after {elapsed:?}");
}

#[track_caller]
fn expect_no_memory(result: &Result<(), Error>) {
    let Err(Error::System { operation: Operation::Verdict, error, .. }) = result else {
        panic!("{result:?}");
    };
    assert_eq!(error.raw_os_error(), Some(Errno::ENOBUFS as i32), "{error}");
}

/// Polls a future in this thread, whatever it is about.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut future = std::pin::pin!(future);
    let deadline = Instant::now() + SOON;
    loop {
        assert!(Instant::now() < deadline, "it takes too long");
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        thread::park_timeout(QUIET);
    }
}
