//! Verdicts that the kernel does not take: no room in the send buffer, no memory, at the first
//! datagram of a commit or in the middle of it.

use std::error::Error as StdError;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::{Batch, Decided, Error, Packet, Queue, RetainedPacket, open_socket};
use netfilterqueue_netns::Namespace;
use nix::errno::Errno;
use nix::libc::SYS_sendmsg;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

use crate::accounts::{Counted, Fate, Ledger, Traffic, balance, number};
use crate::kernel::untested;
use crate::support::{QUIET, SOON, StopOnDrop, queue_udp, receive_exactly, wait_until};
use crate::{Test, faults};

pub const TESTS: [Test; 5] = faults![
    a_commit_that_fails_midway_goes_on_where_it_failed,
    a_send_buffer_that_shrinks_and_grows_changes_no_decision,
    a_thread_without_memory_changes_no_decision,
    a_blocking_run_does_not_end_for_want_of_memory,
    a_run_without_memory_leaves_its_decisions_to_the_next,
];

/// The last byte of what was edited.
const EDITED: u8 = 0xee;

/// Judges a packet as its number has it; accepted ones are edited.
fn judge<'p>(ledger: &Ledger, mut packet: Packet<'p>) -> Decided<'p> {
    if Fate::of(number(packet.payload())) == Fate::Accepted {
        let payload = packet.payload_mut().expect("it can be sent");
        *payload.last_mut().expect("data") = EDITED;
    }
    ledger.judge(packet)
}

/// Asserts that each packet met with its decision, and that the accepted ones arrived edited.
fn settle(queue: &Queue, traffic: &Traffic, ledger: &Ledger) {
    let stats = queue.stats();
    assert_eq!(balance(1, &stats, ledger).unwrap_or(0), 0);
    assert_eq!((stats.lost, stats.refused), (0, 0), "{stats:?}");
    traffic.settle(ledger, Counted::default());
    assert_eq!(traffic.ending_with(EDITED), ledger.accepted());
}

/// Why a datagram was not taken.
fn errno(error: &Error) -> Option<Errno> {
    match error {
        Error::System { error, .. } => error.raw_os_error().map(Errno::from_raw),
        _ => None,
    }
}

/// A datagram carries at most 64 edits, so that the long ones are in a later one, which does not
/// fit.
fn a_commit_that_fails_midway_goes_on_where_it_failed(_: &Namespace) {
    const ROUNDS: usize = 20;
    const SHORT: usize = 120;
    const LONG: usize = 6;
    const LENGTH: usize = 9_000;
    let traffic = Traffic::new(ROUNDS * (SHORT + 2 * LONG), LENGTH / 4);
    let ledger = Ledger::default();
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    for round in 0..ROUNDS {
        traffic.send(SHORT, 8);
        traffic.send(LONG, LENGTH);
        let mut batch = receive_exactly(&mut queue, SHORT + LONG);
        for packet in &mut batch {
            judge(&ledger, packet);
        }
        setsockopt(&queue, SndBuf, &4_000).unwrap();
        let mut left = SHORT;
        for attempt in 0..3 {
            let error = batch.commit().unwrap_err();
            assert_eq!(errno(&error), Some(Errno::EMSGSIZE), "{error:?}");
            assert!(batch.len() < SHORT, "the first datagram has left");
            assert!(attempt == 0 || batch.len() == left, "round {round}, attempt {attempt}");
            left = batch.len();
            assert_eq!(queue.stats().held, left as u64);
        }
        setsockopt(&queue, SndBuf, &100_000).unwrap();
        batch.commit().unwrap();
        assert!(batch.is_empty());
        traffic.collect();
    }
    settle(&queue, &traffic, &ledger);
}

/// Whoever opened the socket gave it little room, and a thread changes that all the time.
fn a_send_buffer_that_shrinks_and_grows_changes_no_decision(_: &Namespace) {
    const LENGTH: usize = 30_000;
    const ROUND: usize = 8;
    const ROUNDS: usize = 60;
    let socket = open_socket().unwrap();
    // As much as the longest packet needs: a few edits of `LENGTH` per datagram.
    setsockopt(&socket, SndBuf, &66_000).unwrap();
    let mut queue = Queue::builder(1).bind_on(socket).unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(10 * ROUND, LENGTH), Ledger::default());
    let (is_over, mut refused, mut partly) = (AtomicBool::new(false), 0, 0);
    thread::scope(|scope| {
        let end = SetOnDrop(&is_over);
        let changing = queue.as_fd().try_clone_to_owned().unwrap();
        scope.spawn(|| {
            let changing = changing;
            while !is_over.load(Ordering::SeqCst) {
                setsockopt(&changing, SndBuf, &1).unwrap();
                setsockopt(&changing, SndBuf, &100_000).unwrap();
            }
        });
        let until = Instant::now() + SOON;
        for round in 0.. {
            // With a single processor it takes a while until the threads meet.
            if round >= ROUNDS && (refused > 0 || Instant::now() > until) {
                break;
            }
            traffic.send(ROUND, LENGTH);
            let mut batch = receive_exactly(&mut queue, ROUND);
            for packet in &mut batch {
                judge(&ledger, packet);
            }
            let deadline = Instant::now() + SOON;
            let mut left = ROUND;
            while let Err(error) = batch.commit() {
                assert_eq!(errno(&error), Some(Errno::EMSGSIZE), "{error:?}");
                assert!(Instant::now() < deadline, "it never fits");
                refused += 1;
                partly += usize::from(batch.len() < left);
                left = batch.len();
            }
            traffic.collect();
        }
        drop(end);
    });
    println!("{refused} commits failed, {partly} of them midway");
    assert!(refused > 0, "the buffer was never too small");
    settle(&queue, &traffic, &ledger);
}

/// Tells a thread to end, also when the test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Makes each `sendmsg` of this thread fail, for good.
fn make_sends_fail(errno: Errno) -> Result<(), Box<dyn StdError>> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let fail = SeccompAction::Errno(errno as u32);
    let calls = [(SYS_sendmsg, Vec::new())].into_iter().collect();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, fail, architecture)?;
    apply_filter(&BpfProgram::try_from(filter)?)?;
    Ok(())
}

/// Whether this kernel lets that happen; notes it if not.
fn sends_can_fail() -> bool {
    let try_it = || make_sends_fail(Errno::ENOBUFS).map_err(|error| error.to_string());
    let result = thread::spawn(try_it).join().unwrap();
    result.inspect_err(|obstacle| untested("sends that fail (seccomp)", obstacle)).is_ok()
}

/// The kernel's lack of memory comes and goes; here it is one thread's, and another one's send
/// succeeds. The library tries for a while by itself.
fn a_thread_without_memory_changes_no_decision(_: &Namespace) {
    const ROUND: usize = 60;
    const GIVEN_UP: usize = 2;
    if !sends_can_fail() {
        return;
    }
    let reasons = [Errno::ENOBUFS, Errno::ENOMEM, Errno::EAGAIN, Errno::EPERM];
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(3 * 4 * ROUND, 4), Ledger::default());
    for reason in reasons {
        traffic.send(2 * ROUND, 8);
        let mut batch = receive_exactly(&mut queue, 2 * ROUND);
        let mut retained = Vec::new();
        for packet in &mut batch {
            if packet.id().is_multiple_of(20) {
                retained.push(packet.retain().0);
            } else {
                judge(&ledger, packet);
            }
        }
        let packets = batch.len();
        let back = thread::scope(|scope| {
            let without_memory = scope.spawn(|| {
                make_sends_fail(reason).unwrap();
                let error = batch.commit().unwrap_err();
                assert_eq!(errno(&error), Some(reason), "{error:?}");
                let accept = |packet: RetainedPacket| packet.accept().unwrap_err().packet;
                let mut back: Vec<_> = retained.into_iter().map(accept).collect();
                // Their default verdict cannot be sent here either.
                for packet in back.drain(..GIVEN_UP) {
                    ledger.note(1, packet.id(), number(packet.payload()), Fate::Dropped);
                }
                // Nor by the queue, which will try again.
                let result = queue.recv_timeout(&mut Batch::new(1), Duration::ZERO);
                assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
                assert!(queue.next_deadline().is_some());
                assert_eq!(queue.stats().held, 2 * ROUND as u64);
                back
            });
            without_memory.join().unwrap()
        });
        assert_eq!((batch.len(), back.len()), (packets, 2 * ROUND - packets - GIVEN_UP));
        for mut packet in back {
            let number = number(packet.payload());
            let fate = Fate::of(number);
            ledger.note(1, packet.id(), number, fate);
            *packet.payload_mut().unwrap().last_mut().unwrap() = EDITED;
            packet.verdict(fate.verdict()).unwrap();
        }
        batch.commit().unwrap();
    }
    // The last ones that were given up have their verdicts now.
    queue.set_nonblocking(true);
    queue.run(|_| panic!("nothing was sent")).unwrap();
    settle(&queue, &traffic, &ledger);
}

/// It goes on, and tries again, until it is stopped; then it says what is wrong.
fn a_blocking_run_does_not_end_for_want_of_memory(_: &Namespace) {
    if !sends_can_fail() {
        return;
    }
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(16, 4), Ledger::default());
    for reason in [Errno::ENOBUFS, Errno::ENOMEM] {
        traffic.send(8, 4);
        let (stop, stats) = (queue.stop_handle(), queue.stats_handle());
        thread::scope(|scope| {
            let stop = StopOnDrop(stop);
            let running = scope.spawn(|| {
                make_sends_fail(reason).unwrap();
                queue.run(|packet| ledger.judge(packet))
            });
            wait_until("the packets are received", || stats.stats().held == 8);
            // Longer than a single send is tried.
            thread::sleep(3 * QUIET);
            assert!(!running.is_finished());
            drop(stop);
            let error = running.join().unwrap().unwrap_err();
            assert_eq!(errno(&error), Some(reason), "not as if all were sent: {error:?}");
        });
        queue.set_nonblocking(true);
        queue.run(|packet| ledger.judge(packet)).unwrap();
        queue.set_nonblocking(false);
    }
    let stats = queue.stats();
    balance(1, &stats, &ledger);
    assert_eq!((stats.lost, stats.refused), (0, 0), "{stats:?}");
    traffic.settle(&ledger, Counted::default());
}

/// The decisions of the batch are kept, and what it did not receive still waits.
fn a_run_without_memory_leaves_its_decisions_to_the_next(_: &Namespace) {
    if !sends_can_fail() {
        return;
    }
    const BATCH: usize = 64;
    let mut queue = Queue::builder(1).batch_len(BATCH).nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(10 * BATCH, 4), Ledger::default());
    for _ in 0..4 {
        traffic.send(2 * BATCH, 4);
        thread::scope(|scope| {
            scope.spawn(|| {
                make_sends_fail(Errno::ENOMEM).unwrap();
                let error = queue.run(|packet| ledger.judge(packet)).unwrap_err();
                assert_eq!(errno(&error), Some(Errno::ENOMEM), "{error:?}");
            });
        });
        assert_eq!(queue.stats().held, BATCH as u64);
        queue.run(|packet| ledger.judge(packet)).unwrap();
        assert_eq!(queue.stats().held, 0);
    }
    let stats = queue.stats();
    balance(1, &stats, &ledger);
    assert_eq!((stats.lost, stats.refused), (0, 0), "{stats:?}");
    traffic.settle(&ledger, Counted::default());
}
