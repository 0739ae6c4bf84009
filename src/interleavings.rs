//! What threads share, tested in the orders in which they can go on:
//! `RUSTFLAGS="--cfg loom" cargo test --release --lib interleavings`.
//!
//! The kernel's part is played by a list behind a lock, because a system call is one step for all
//! who look; the order of what the library does around it is that of `Binding::send` and of
//! `Queue::receive_within`.

use loom::thread;
use netfilterqueue_protocol::verdict::Verdict;

use crate::deadlines::Deadlines;
use crate::retention::{Limit, Retention};
use crate::stop::{StopHandle, WakeUp};
use crate::sync::{Mutex, Shared};
use crate::verdicts::{Form, Outstanding};

const QUEUE: u16 = 7;

/// Runs a test in every order in which no thread is interrupted more than three times. The test
/// calls what it is given where other threads should also be tried first: by itself loom 0.7 does
/// not find all orders in which a thread takes several steps at once.
fn explore(test: impl Fn(fn()) + Copy + Send + Sync + 'static) {
    for let_others_go in [(|| {}) as fn(), thread::yield_now] {
        let mut orders = loom::model::Builder::new();
        orders.preemption_bound = Some(3);
        orders.check(move || test(let_others_go));
    }
}

/// A queue of the kernel, and what the library knows of it.
struct Books {
    outstanding: Outstanding,
    /// The ids that wait, and the verdicts of those that have one.
    kernel: Mutex<(Vec<u32>, Vec<(u32, Verdict)>)>,
}

/// Whether the kernel takes verdicts from a thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Capability {
    Present,
    Lost,
}

impl Books {
    fn with_packets(ids: impl Iterator<Item = u32>) -> Shared<Self> {
        let ids: Vec<u32> = ids.collect();
        let outstanding = Outstanding::new(&[QUEUE]);
        outstanding.received(QUEUE, ids.len() as u64);
        Shared::new(Self { outstanding, kernel: Mutex::new((ids, Vec::new())) })
    }

    /// Commits the verdict on `ids`. Returns whether it was a cumulative one.
    fn judge(&self, ids: &[u32], verdict: Verdict, capability: Capability) -> bool {
        let form = self.outstanding.form(QUEUE, ids.len() as u64);
        self.outstanding.sending();
        if capability == Capability::Present {
            let (waiting, judged) = &mut *self.kernel.lock().expect("no panic elsewhere");
            let last = ids.last().expect("packets");
            let is_meant = |id: &u32| match form {
                Form::Cumulative => id <= last,
                Form::Exact => ids.contains(id),
            };
            judged.extend(waiting.extract_if(.., |id| is_meant(id)).map(|id| (id, verdict)));
        }
        self.outstanding.answered(QUEUE, ids.len() as u64);
        form == Form::Cumulative
    }

    /// The verdicts in the order of the ids; no packet has two.
    fn judged(&self) -> Vec<(u32, Verdict)> {
        let mut judged = self.kernel.lock().expect("no panic elsewhere").1.clone();
        judged.sort_unstable_by_key(|(id, _)| *id);
        judged
    }
}

/// One thread judges a packet that was held back, or a batch, while another one commits those
/// behind it.
#[test]
fn a_packet_that_another_thread_holds_is_not_overtaken() {
    explore(|let_others_go| {
        let books = Books::with_packets(1..=3);
        let worker = thread::spawn({
            let books = Shared::clone(&books);
            move || books.judge(&[1], Verdict::Drop, Capability::Present)
        });
        let_others_go();
        books.judge(&[2, 3], Verdict::Accept, Capability::Present);
        worker.join().expect("no panic");
        let expected = [(1, Verdict::Drop), (2, Verdict::Accept), (3, Verdict::Accept)];
        assert_eq!(books.judged(), expected);
        assert_eq!(books.outstanding.count(), 0);
    });
}

/// The kernel does not tell the sender that a verdict is refused; its packet waits on and must not
/// be judged along with others.
#[test]
fn a_packet_whose_verdict_was_refused_elsewhere_is_not_judged_with_others() {
    explore(|let_others_go| {
        let books = Books::with_packets(1..=2);
        let worker = thread::spawn({
            let books = Shared::clone(&books);
            move || books.judge(&[1], Verdict::Drop, Capability::Lost)
        });
        let_others_go();
        books.judge(&[2], Verdict::Accept, Capability::Present);
        let_others_go();
        books.outstanding.received(QUEUE, 1);
        books.kernel.lock().expect("no panic elsewhere").0.push(3);
        books.judge(&[3], Verdict::Accept, Capability::Present);
        worker.join().expect("no panic");
        assert_eq!(books.judged(), [(2, Verdict::Accept), (3, Verdict::Accept)]);
    });
}

/// Without others, cumulative verdicts are in use: the tests above do not pass for lack of them.
#[test]
fn a_thread_alone_judges_cumulatively() {
    explore(|_| {
        let books = Books::with_packets(1..=3);
        assert!(books.judge(&[1, 2, 3], Verdict::Accept, Capability::Present));
        assert_eq!(books.judged(), [1, 2, 3].map(|id| (id, Verdict::Accept)));
    });
}

/// Where a receiving thread is when it goes on no further by itself.
#[derive(Debug, PartialEq, Eq)]
enum Pause {
    /// A stop has ended it.
    Stopped,
    /// In `recvmmsg`, where nothing but a packet wakes it.
    Receiving,
    /// In `poll`, until the event is written.
    Polling,
}

/// A queue without packets receives until it pauses; takes what was `left` for it on the way.
fn receive(
    wake: &Shared<WakeUp>,
    left: &Mutex<Vec<u32>>,
    taken: &mut Vec<u32>,
    let_others_go: fn(),
) -> Pause {
    loop {
        let is_alone = !WakeUp::has_handles(wake);
        wake.reset();
        taken.append(&mut left.lock().expect("no panic elsewhere"));
        if wake.take_stop() {
            return Pause::Stopped;
        }
        let_others_go();
        if is_alone {
            return Pause::Receiving;
        }
        if !wake.event().is_readable() {
            return Pause::Polling;
        }
        wake.clear();
    }
}

fn wake_up() -> Shared<WakeUp> {
    Shared::new(WakeUp::new().expect("an event"))
}

/// The handle is gone as soon as it has stopped the queue, so that the queue may take itself to be
/// alone and wait where no event wakes it.
#[test]
fn a_stop_is_never_missed() {
    explore(|let_others_go| {
        let wake = wake_up();
        let handle = StopHandle::new(Shared::clone(&wake));
        let stopper = thread::spawn(move || handle.stop());
        let (left, mut taken) = (Mutex::default(), Vec::new());
        let_others_go();
        let first = receive(&wake, &left, &mut taken, let_others_go);
        stopper.join().expect("no panic");
        match first {
            Pause::Stopped => {}
            Pause::Receiving => panic!("the queue sleeps, and the stop is over"),
            Pause::Polling => {
                assert!(wake.event().is_readable(), "the queue sleeps, and the stop is over");
                assert_eq!(receive(&wake, &left, &mut taken, let_others_go), Pause::Stopped);
            }
        }
        assert_eq!(
            receive(&wake, &left, &mut taken, let_others_go),
            Pause::Receiving,
            "stopped once"
        );
        assert!(wake.is_at_rest(), "an event is left, or expected");
    });
}

/// Two threads stop the queue at once: it stops once or twice, and then no event is left behind.
#[test]
fn stops_of_two_threads_leave_no_event_behind() {
    explore(|let_others_go| {
        let wake = wake_up();
        let stoppers = [(); 2].map(|()| {
            let handle = StopHandle::new(Shared::clone(&wake));
            thread::spawn(move || handle.stop())
        });
        let (left, mut taken) = (Mutex::default(), Vec::new());
        let_others_go();
        let mut stops =
            usize::from(receive(&wake, &left, &mut taken, let_others_go) == Pause::Stopped);
        for stopper in stoppers {
            stopper.join().expect("no panic");
        }
        while receive(&wake, &left, &mut taken, let_others_go) == Pause::Stopped {
            stops += 1;
        }
        assert!((1..=2).contains(&stops), "{stops} stops");
        assert!(wake.is_at_rest(), "an event is left, or expected");
    });
}

/// A verdict that a batch could not send is handed over to the queue's thread, and sent by it.
#[test]
fn what_is_handed_over_is_taken() {
    explore(|let_others_go| {
        let wake = wake_up();
        let left = Shared::new(Mutex::new(Vec::new()));
        let batch = thread::spawn({
            let (wake, left) = (Shared::clone(&wake), Shared::clone(&left));
            move || {
                left.lock().expect("no panic elsewhere").push(1);
                wake.wake();
            }
        });
        let mut taken = Vec::new();
        let_others_go();
        let first = receive(&wake, &left, &mut taken, let_others_go);
        batch.join().expect("no panic");
        if first == Pause::Polling && wake.event().is_readable() {
            receive(&wake, &left, &mut taken, let_others_go);
        }
        assert_eq!(taken, [1], "the queue sleeps on it");
    });
}

/// The program judges a retained packet in the moment in which its time is up.
#[test]
fn a_packet_is_judged_by_the_program_or_by_its_deadline() {
    explore(|let_others_go| {
        let deadlines = Shared::new(Deadlines::default());
        let now = std::time::Instant::now();
        let (claim, _) = deadlines.set(now, QUEUE, 1);
        let queue = thread::spawn({
            let deadlines = Shared::clone(&deadlines);
            move || deadlines.expire(now).len()
        });
        let_others_go();
        let by_program = usize::from(claim.take());
        let by_deadline = queue.join().expect("no panic");
        assert_eq!(by_program + by_deadline, 1);
        assert_eq!(deadlines.next(), None);
    });
}

/// As `AsyncQueue::poll_room` does it: whether there is room, or else it sleeps until the event.
fn wait_for_room(
    retention: &Retention,
    limit: Limit,
    wake: &Shared<WakeUp>,
    let_others_go: fn(),
) -> bool {
    loop {
        wake.reset();
        if retention.has_room(limit) {
            return true;
        }
        let_others_go();
        if !wake.event().is_readable() {
            return false;
        }
        wake.clear();
    }
}

/// Two threads let go of packets, after the first of which there may still be no room.
#[test]
fn who_waits_for_room_is_woken_when_there_is_some() {
    for limit in [Limit { packets: 1, bytes: 100 }, Limit { packets: 2, bytes: 100 }] {
        explore(move |let_others_go| {
            let (retention, wake) = (Shared::new(Retention::default()), wake_up());
            (0..2).for_each(|_| retention.add(50));
            let judges = [(); 2].map(|()| {
                let (retention, wake) = (Shared::clone(&retention), Shared::clone(&wake));
                thread::spawn(move || {
                    if retention.remove(50) {
                        wake.wake();
                    }
                })
            });
            let_others_go();
            let mut has_room = wait_for_room(&retention, limit, &wake, let_others_go);
            for judge in judges {
                judge.join().expect("no panic");
            }
            if !has_room {
                assert!(wake.event().is_readable(), "the task sleeps beside a free place");
                has_room = wait_for_room(&retention, limit, &wake, let_others_go);
            }
            assert!(has_room);
        });
    }
}
