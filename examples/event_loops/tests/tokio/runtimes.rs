//! Where a queue can be awaited, what ends the wait, and what is left of it.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;
use std::time::{Duration, Instant};

use netfilterqueue::AsyncQueue;
use netfilterqueue::{Batch, CopyMode, Error, Queue, Verdict};
use netfilterqueue_netns::Namespace;
use tokio::runtime::Builder;
use tokio::task::coop;

use crate::support::{QUIET, SOON, UdpPair, V4, judge, kernel_stats, queue_udp};
use crate::{Test, faults, must_wait, one_thread, poll_once, soon, two_threads};

pub const TESTS: [Test; 17] = faults![
    without_a_runtime_there_is_an_error,
    a_runtime_without_io_or_timers_panics_at_once,
    a_runtime_that_is_gone_is_an_error,
    a_packet_wakes_every_wait,
    a_stop_ends_every_wait,
    a_stop_before_the_wait_counts,
    a_deadline_passes_while_packets_are_awaited,
    a_nearer_deadline_wakes_the_wait,
    packets_kept_while_reconfiguring_do_not_wait,
    nothing_wakes_a_queue_without_a_reason,
    a_queue_that_is_given_back_works_as_before,
    a_queue_that_is_dropped_closes,
    a_closed_queue_refuses_verdicts,
    a_panic_leaves_every_packet_with_a_verdict,
    a_backlog_takes_as_few_system_calls_as_it_can,
    what_a_batch_held_is_committed_by_the_first_poll,
    a_deadline_beyond_the_clock_is_no_panic,
];

/// A queue, the packets that it gets, and where they come from.
fn set_up() -> (Queue, impl Drop, UdpPair) {
    (Queue::builder(1).bind().unwrap(), queue_udp(1), UdpPair::new(V4))
}

fn without_a_runtime_there_is_an_error(_: &Namespace) {
    let (queue, _rules, _) = set_up();
    let error = AsyncQueue::new(queue).unwrap_err();
    assert!(matches!(error, Error::InvalidQueue(_)), "{error:?}");
    assert!(error.to_string().contains("no tokio runtime"), "{error}");
    // The number is free again, and inside of a runtime it works.
    let runtime = one_thread();
    let _inside = runtime.enter();
    AsyncQueue::new(Queue::builder(1).bind().unwrap()).unwrap();
}

fn a_runtime_without_io_or_timers_panics_at_once(_: &Namespace) {
    let no_timers = Builder::new_current_thread().enable_io().build().unwrap();
    let no_io = Builder::new_current_thread().enable_time().build().unwrap();
    for runtime in [no_timers, no_io] {
        let (queue, _rules, _) = set_up();
        let _inside = runtime.enter();
        catch_unwind(AssertUnwindSafe(|| AsyncQueue::new(queue))).map(drop).unwrap_err();
        assert!(Queue::builder(1).bind().is_ok(), "and has closed the queue");
    }
}

fn a_runtime_that_is_gone_is_an_error(_: &Namespace) {
    let (queue, _rules, udp) = set_up();
    let runtime = one_thread();
    let mut queue = {
        let _inside = runtime.enter();
        AsyncQueue::new(queue).unwrap()
    };
    drop(runtime);
    let Poll::Ready(Err(error)) = poll_once(queue.recv(&mut Batch::new(1))) else {
        panic!("nobody would wake it");
    };
    assert!(matches!(error, Error::System { .. }), "{error:?}");
    // The queue itself is well.
    udp.send(&[1]);
    let mut queue = queue.into_inner();
    let mut batch = Batch::new(1);
    assert_eq!(queue.recv_timeout(&mut batch, SOON).unwrap(), 1);
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(1), [[1]]);
}

/// Each comes only after the wait for it has begun.
fn a_packet_wakes_every_wait(_: &Namespace) {
    const ROUNDS: u8 = 100;
    for runtime in [one_thread(), two_threads()] {
        let (queue, _rules, udp) = set_up();
        runtime.block_on(async {
            let mut queue = AsyncQueue::new(queue).unwrap();
            let mut batch = Batch::new(8);
            for round in 0..ROUNDS {
                let send = || udp.send(&[round]);
                let send = async {
                    tokio::task::yield_now().await;
                    send();
                };
                let (received, ()) = tokio::join!(soon(queue.recv(&mut batch)), send);
                assert_eq!(received.unwrap(), 1);
                judge(&mut batch, Verdict::Accept);
            }
        });
        let arrived = udp.receive_all(ROUNDS.into()).concat();
        assert!(arrived.into_iter().eq(0..ROUNDS));
    }
}

/// Does something after a while.
async fn later(what: impl FnOnce()) {
    tokio::time::sleep(Duration::from_millis(20)).await;
    what();
}

fn a_stop_ends_every_wait(_: &Namespace) {
    for runtime in [one_thread(), two_threads()] {
        let (queue, _rules, udp) = set_up();
        runtime.block_on(async {
            let mut queue = AsyncQueue::new(queue).unwrap();
            let stop = queue.stop_handle();
            let mut batch = Batch::new(1);
            let (result, ()) = tokio::join!(soon(queue.recv(&mut batch)), later(|| stop.stop()));
            assert!(matches!(result, Err(Error::Stopped)), "{result:?}");
            let (result, ()) = tokio::join!(soon(queue.next_packet()), later(|| stop.stop()));
            assert!(matches!(result, Err(Error::Stopped)), "{result:?}");
            let run = queue.run(|packet| packet.accept());
            let (result, ()) = tokio::join!(soon(run), later(|| stop.stop()));
            result.unwrap();
            // Once each: it goes on after that.
            udp.send(&[1]);
            must_wait(queue.run(|packet| packet.accept())).await;
        });
        assert_eq!(udp.receive_all(1), [[1]]);
    }
}

fn a_stop_before_the_wait_counts(_: &Namespace) {
    let (queue, _rules, udp) = set_up();
    queue.stop_handle().stop();
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        udp.send(&[1]);
        let result = soon(queue.recv(&mut Batch::new(1))).await;
        assert!(matches!(result, Err(Error::Stopped)), "{result:?}");
        // It does not end a drain.
        queue.stop_handle().stop();
        soon(queue.drain(|packet| packet.accept())).await.unwrap();
    });
    assert_eq!(udp.receive_all(1), [[1]]);
}

/// Does something that blocks in another thread, while something waits that nothing else wakes.
async fn while_it_waits<T: Send + 'static>(
    what: impl Future,
    elsewhere: impl FnOnce() -> T + Send + 'static,
) -> T {
    tokio::select! {
        biased;
        result = tokio::task::spawn_blocking(elsewhere) => result.unwrap(),
        _ = what => panic!("it has to wait"),
    }
}

fn a_deadline_passes_while_packets_are_awaited(_: &Namespace) {
    let queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        udp.send(&[1]);
        let mut held = soon(queue.next_packet()).await.unwrap();
        held.set_deadline(Some(Instant::now() + Duration::from_millis(30)));
        let arrived = while_it_waits(queue.recv(&mut Batch::new(1)), move || udp.receive()).await;
        assert_eq!(arrived, [1], "it has the default verdict");
        assert!(matches!(held.accept().unwrap_err().error, Error::Expired));
    });
}

/// The wait has begun for a later one.
fn a_nearer_deadline_wakes_the_wait(_: &Namespace) {
    let queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        udp.send_each(1..=2);
        let mut far = soon(queue.next_packet()).await.unwrap();
        let mut near = soon(queue.next_packet()).await.unwrap();
        far.set_deadline(Some(Instant::now() + 100 * SOON));
        must_wait(queue.recv(&mut Batch::new(1))).await;
        let arrived = while_it_waits(queue.recv(&mut Batch::new(1)), move || {
            std::thread::sleep(QUIET / 5);
            near.set_deadline(Some(Instant::now() + QUIET / 5));
            let arrived = udp.receive();
            assert!(matches!(near.accept().unwrap_err().error, Error::Expired));
            arrived
        })
        .await;
        assert_eq!(arrived, [2]);
        assert_eq!(queue.queue().stats().expired, 1);
        far.verdict(Verdict::Drop).unwrap();
    });
}

fn packets_kept_while_reconfiguring_do_not_wait(_: &Namespace) {
    const PACKETS: u8 = 20;
    let (queue, _rules, udp) = set_up();
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        let mut batch = Batch::new(64);
        // So that the socket is known to be empty.
        must_wait(queue.recv(&mut batch)).await;
        udp.send_each(0..PACKETS);
        // The answer comes behind the packets, which are kept: the socket is empty after it.
        queue.queue_mut().set_copy_mode(CopyMode::Packet { range: 60 }).unwrap();
        let mut received = 0;
        while received < usize::from(PACKETS) {
            received += soon(queue.recv(&mut batch)).await.unwrap();
            judge(&mut batch, Verdict::Accept);
        }
        must_wait(queue.recv(&mut batch)).await;
        // The next one is announced again.
        let send = later(|| udp.send(&[PACKETS]));
        let (received, ()) = tokio::join!(soon(queue.recv(&mut batch)), send);
        assert_eq!(received.unwrap(), 1);
        judge(&mut batch, Verdict::Accept);
    });
    assert!(udp.receive_all(usize::from(PACKETS) + 1).concat().into_iter().eq(0..=PACKETS));
}

/// A task that is polled again and again would keep the processor busy.
fn nothing_wakes_a_queue_without_a_reason(_: &Namespace) {
    let queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        let stop = queue.stop_handle();
        let mut batch = Batch::new(64);
        // Everything that can leave something behind has been there.
        udp.send_each(0..3);
        soon(queue.recv(&mut batch)).await.unwrap();
        judge(&mut batch, Verdict::Accept);
        stop.stop();
        assert!(matches!(soon(queue.recv(&mut batch)).await, Err(Error::Stopped)));
        let (result, ()) = tokio::join!(soon(queue.recv(&mut batch)), later(|| stop.stop()));
        assert!(matches!(result, Err(Error::Stopped)), "{result:?}");
        let mut held = {
            udp.send(&[3]);
            soon(queue.next_packet()).await.unwrap()
        };
        // From another thread, so that the wait is woken by it.
        let _held = while_it_waits(queue.recv(&mut batch), move || {
            std::thread::sleep(QUIET / 5);
            held.set_deadline(Some(Instant::now() + QUIET / 5));
            std::thread::sleep(QUIET);
            held
        })
        .await;
        let mut polls = 0;
        let waiting = poll_fn(|cx| {
            polls += 1;
            queue.poll_recv(cx, &mut batch).map(drop)
        });
        must_wait(waiting).await;
        assert!(polls <= 3, "{polls} polls while nothing happened");
        let calls = queue.queue().stats().receive_calls;
        must_wait(queue.recv(&mut batch)).await;
        assert_eq!(queue.queue().stats().receive_calls, calls, "the socket is known to be empty");
    });
    udp.receive_all(4);
}

fn a_queue_that_is_given_back_works_as_before(_: &Namespace) {
    let (mut queue, _rules, udp) = set_up();
    let mut batch = Batch::new(8);
    for round in 0..3 {
        // After a wait in the runtime the socket is known to be empty; then a packet comes.
        queue = one_thread().block_on(async {
            let mut queue = AsyncQueue::new(queue).unwrap();
            udp.send(&[round]);
            soon(queue.recv(&mut batch)).await.unwrap();
            judge(&mut batch, Verdict::Accept);
            must_wait(queue.recv(&mut batch)).await;
            udp.send(&[10 + round]);
            queue.into_inner()
        });
        assert_eq!(queue.recv_timeout(&mut batch, SOON).unwrap(), 1);
        judge(&mut batch, Verdict::Accept);
        let result = queue.recv_timeout(&mut batch, QUIET / 10);
        assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
        // What comes now is there when the runtime is told of the queue again.
        udp.send(&[20 + round]);
        queue = one_thread().block_on(async {
            let mut queue = AsyncQueue::new(queue).unwrap();
            soon(queue.recv(&mut batch)).await.unwrap();
            judge(&mut batch, Verdict::Accept);
            queue.into_inner()
        });
    }
    let arrived = udp.receive_all(9).concat();
    assert_eq!(arrived, [0, 10, 20, 1, 11, 21, 2, 12, 22]);
}

/// With a batch and a retained packet that outlive it.
fn a_queue_that_is_dropped_closes(_: &Namespace) {
    let (queue, _rules, udp) = set_up();
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        udp.send_each(1..=3);
        let held = soon(queue.next_packet()).await.unwrap();
        let mut batch = Batch::new(1);
        soon(queue.recv(&mut batch)).await.unwrap();
        batch.iter_mut().next().unwrap().accept();
        drop(queue);
        assert!(matches!(batch.commit(), Err(Error::Closed)));
        assert!(matches!(held.accept().unwrap_err().error, Error::Closed));
        // The number is free again at once, and has no packets of before.
        let mut again = AsyncQueue::new(Queue::builder(1).bind().unwrap()).unwrap();
        must_wait(again.recv(&mut batch)).await;
        if let Some(kernel) = kernel_stats(1) {
            assert_eq!(kernel.waiting, 0);
        }
    });
    udp.expect_nothing();
}

fn a_closed_queue_refuses_verdicts(_: &Namespace) {
    let (queue, _rules, udp) = set_up();
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        udp.send(&[1]);
        let held = soon(queue.next_packet()).await.unwrap();
        queue.close().unwrap();
        assert!(matches!(held.accept().unwrap_err().error, Error::Closed));
    });
    udp.expect_nothing();
}

fn a_panic_leaves_every_packet_with_a_verdict(_: &Namespace) {
    let queue = Queue::builder(1).on_undecided(Verdict::Drop).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..10);
    let runtime = one_thread();
    let mut queue = {
        let _inside = runtime.enter();
        AsyncQueue::new(queue).unwrap()
    };
    let panic = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(queue.run(|packet| {
            assert!(packet.payload().last() != Some(&5), "the fifth");
            packet.accept()
        }))
    }));
    panic.map(drop).unwrap_err();
    let stats = queue.queue().stats();
    assert_eq!((stats.received, stats.answered, stats.held), (10, 10, 0), "{stats:?}");
    assert!(udp.receive_all(5).concat().into_iter().eq(0..5));
    // And the queue goes on.
    udp.send(&[11]);
    runtime.block_on(must_wait(queue.run(|packet| packet.accept())));
    assert_eq!(udp.receive_all(1), [[11]]);
}

/// What is in the socket is received before anything is waited for: as many as fit at once.
fn a_backlog_takes_as_few_system_calls_as_it_can(_: &Namespace) {
    let (queue, _rules, udp) = set_up();
    udp.send_each(0..100);
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        let mut batch = Batch::new(64);
        assert_eq!(soon(queue.recv(&mut batch)).await.unwrap(), 64);
        judge(&mut batch, Verdict::Accept);
        assert_eq!(soon(queue.recv(&mut batch)).await.unwrap(), 36);
        assert_eq!(queue.queue().stats().receive_calls, 2);
        judge(&mut batch, Verdict::Accept);
        assert_eq!(queue.queue().stats().cumulative_verdicts, 2);
    });
    udp.receive_all(100);
}

/// Also where the task has used up its turn.
fn what_a_batch_held_is_committed_by_the_first_poll(_: &Namespace) {
    let (queue, _rules, udp) = set_up();
    udp.send_each(1..=2);
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        let mut batch = Batch::new(1);
        soon(queue.recv(&mut batch)).await.unwrap();
        batch.iter_mut().next().unwrap().accept();
        poll_fn(|cx| {
            while let Poll::Ready(progress) = coop::poll_proceed(cx) {
                progress.made_progress();
            }
            assert!(queue.poll_recv(cx, &mut batch).is_pending(), "it is another task's turn");
            assert!(batch.is_empty());
            Poll::Ready(())
        })
        .await;
        soon(queue.recv(&mut batch)).await.unwrap();
        judge(&mut batch, Verdict::Accept);
    });
    assert_eq!(udp.receive_all(2), [[1], [2]]);
}

/// The last moment that there is, which timers cannot round up.
fn a_deadline_beyond_the_clock_is_no_panic(_: &Namespace) {
    let now = Instant::now();
    let (mut last, mut step) = (now, Duration::MAX);
    while step > Duration::ZERO {
        match last.checked_add(step) {
            Some(later) => last = later,
            None => step /= 2,
        }
    }
    let (queue, _rules, udp) = set_up();
    udp.send_each(1..=2);
    one_thread().block_on(async {
        let mut queue = AsyncQueue::new(queue).unwrap();
        queue.set_retained_limit(1, usize::MAX);
        let mut held = soon(queue.next_packet()).await.unwrap();
        held.set_deadline(Some(last));
        must_wait(queue.next_packet()).await;
        held.accept().unwrap();
        soon(queue.next_packet()).await.unwrap().accept().unwrap();
    });
    assert_eq!(udp.receive_all(2), [[1], [2]]);
}
