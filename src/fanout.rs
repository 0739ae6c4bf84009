//! Several queues, each with a thread of its own.

use std::panic::resume_unwind;
use std::thread::{self, ScopedJoinHandle};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::binding::StatsHandle;
use crate::error::{Error, Operation};
use crate::packet::{Decided, Packet};
use crate::queue::Queue;
use crate::receive::Patience;
use crate::stats::Stats;
use crate::stop::{StopHandle, WakeUp};
use crate::sync::Shared;

/// Several queues, run by a thread each, as one. Made by
/// [`QueueBuilder::bind_fanout`](crate::QueueBuilder::bind_fanout).
///
/// ```no_run
/// use std::collections::HashMap;
///
/// use netfilterqueue::Queue;
/// use netfilterqueue::rules::{Hook, Rule, Rules};
///
/// let mut fanout = Queue::builder(0..=3).bind_fanout()?;
/// let _rules = Rules::new(Hook::FORWARD).rule(Rule::queues(0..=3)).install()?;
/// fanout.run(|_number| {
///     // Each thread has its own: no lock.
///     let mut seen = HashMap::new();
///     move |packet| {
///         *seen.entry(packet.hw_protocol()).or_insert(0_u64) += 1;
///         packet.accept()
///     }
/// })?;
/// # Ok::<(), netfilterqueue::Error>(())
/// ```
///
/// A rule spreads packets over the queues by a hash of their addresses, so that all packets of a
/// connection come to one thread (`rules::Rule::queues`, iptables' `--queue-balance`), or by the
/// processor that handles them (`rules::Rule::cpu_fanout`, `--queue-cpu-fanout`).
#[derive(Debug)]
#[must_use = "queues that are dropped give their numbers back"]
pub struct Fanout {
    /// At least one.
    queues: Vec<Queue>,
    pinned: bool,
}

impl Fanout {
    /// Runs queues together that were bound one by one, such as in several network namespaces.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidQueue`] if there is none.
    pub fn new(queues: Vec<Queue>) -> Result<Self, Error> {
        if queues.is_empty() {
            return Err(Error::InvalidQueue("a fan-out has at least one"));
        }
        Ok(Self { queues, pinned: false })
    }

    /// Whether each thread is bound to the processors that a rule with CPU fan-out feeds its queue
    /// from: of `n` queues, the one at `i` has those whose numbers leave the rest `i` when divided
    /// by `n`, as far as the calling thread may use them; if it may use none of these, one of the
    /// others. Default: no, the kernel moves threads as it likes.
    ///
    /// Then a packet stays on its processor from the network card to its verdict. It is of no use
    /// with a rule that spreads by hash, and where one processor does all the work of a network
    /// card.
    pub const fn set_pinned(&mut self, pinned: bool) {
        self.pinned = pinned;
    }

    /// The queues, in the order of their numbers if [`bind_fanout`] has made them.
    ///
    /// [`bind_fanout`]: crate::QueueBuilder::bind_fanout
    pub fn queues(&self) -> &[Queue] {
        &self.queues
    }

    /// The queues, to be reconfigured between two runs.
    pub fn queues_mut(&mut self) -> &mut [Queue] {
        &mut self.queues
    }

    /// The queues, to be used one by one.
    #[must_use]
    pub fn into_queues(self) -> Vec<Queue> {
        self.queues
    }

    /// A handle that ends [`Fanout::run`] from any thread. (The handle of any one of the queues
    /// does, too.)
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        self.queues[0].stop_handle()
    }

    /// The counters of all queues, added up.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.queues.iter().map(Queue::stats).sum()
    }

    /// A handle that reads the counters of all queues, added up, while they run.
    #[must_use]
    pub fn stats_handle(&self) -> StatsHandle {
        StatsHandle::new(self.queues.iter().map(|queue| &queue.binding))
    }

    /// Judges the packets of all queues, with a thread each, until a [`StopHandle`] is used or one
    /// of them fails; then all of them end. All of them block, also those in non-blocking mode.
    ///
    /// `judge_of` is called once in each thread, with the (lowest) number of its queue, and returns
    /// what judges that queue's packets, as for [`Queue::run`]. What it returns need not be `Send`.
    ///
    /// A stop that comes together with an error, or when its queue has ended already, is for the
    /// next run. Each run has new threads, so that from the second one on verdicts are exact ones
    /// ([`Batch::commit`](crate::Batch::commit) tells why).
    ///
    /// # Errors
    ///
    /// As [`Queue::run`]: of several, that of the first queue. [`Error::System`] also if the system
    /// has no thread left, or refuses to bind one to its processors.
    ///
    /// # Panics
    ///
    /// If `judge_of` or what it returns panics, after the other threads have ended.
    pub fn run<J, F>(&mut self, judge_of: F) -> Result<(), Error>
    where
        J: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
        F: Fn(u16) -> J + Sync,
    {
        let allowed = if self.pinned { Some(allowed_processors()?) } else { None };
        let wakes: Vec<_> =
            self.queues.iter().map(|queue| Shared::clone(queue.binding.wake())).collect();
        let (wakes, count) = (wakes.as_slice(), self.queues.len());
        wakes.iter().for_each(|wake| wake.begin());
        let mut over = Over { wakes, is_well: false };
        let run_one = |(at, queue): (usize, &mut Queue)| {
            // Also if the judge panics.
            let _end = EndAll(wakes);
            if let Some(allowed) = &allowed {
                sched_setaffinity(THIS_THREAD, &share(allowed, at, count))
                    .map_err(Error::system(Operation::Receive, "sched_setaffinity"))?;
            }
            let number = queue.numbers().next().unwrap_or_default();
            match queue.run_until_error(Patience::Endless, &mut judge_of(number)) {
                Error::Stopped => Ok(()),
                error => Err(error),
            }
        };
        let run_one = &run_one;
        let results = thread::scope(|scope| {
            let mut threads = Vec::with_capacity(count);
            let mut no_thread = None;
            for queue in self.queues.iter_mut().enumerate() {
                match thread::Builder::new().spawn_scoped(scope, move || run_one(queue)) {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        no_thread = Some(Error::system(Operation::Receive, "clone")(error));
                        drop(EndAll(wakes));
                        break;
                    }
                }
            }
            let results: Vec<_> = threads.into_iter().map(ScopedJoinHandle::join).collect();
            results.into_iter().chain(no_thread.map(|error| Ok(Err(error)))).collect::<Vec<_>>()
        });
        // A panic is more than an error.
        let result: Result<(), Error> =
            match results.into_iter().collect::<thread::Result<Vec<_>>>() {
                Ok(results) => results.into_iter().collect(),
                Err(panic) => resume_unwind(panic),
            };
        over.is_well = result.is_ok();
        result
    }
}

/// To whom the calls of `sched_*affinity` apply.
const THIS_THREAD: Pid = Pid::from_raw(0);

fn allowed_processors() -> Result<CpuSet, Error> {
    sched_getaffinity(THIS_THREAD).map_err(Error::system(Operation::Receive, "sched_getaffinity"))
}

/// Of the processors that may be used, those that feed the queue at `at` of `count`: the kernel
/// takes the number of the processor modulo the count of queues (`NFQ_FLAG_CPU_FANOUT`).
fn share(allowed: &CpuSet, at: usize, count: usize) -> CpuSet {
    let is_allowed = |processor: &usize| allowed.is_set(*processor).unwrap_or(false);
    let all = (0..CpuSet::count()).filter(is_allowed);
    let mut share = CpuSet::new();
    // They are in range, since they are set.
    let mut take = |processor| share.set(processor).unwrap_or_default();
    let own: Vec<_> = all.clone().filter(|processor| processor % count == at % count).collect();
    match (own.is_empty(), all.clone().count()) {
        (false, _) => own.into_iter().for_each(take),
        (true, 0) => {}
        (true, some) => all.skip(at % some).take(1).for_each(&mut take),
    }
    share
}

/// Ends the runs of queues that are run together. Apart from a stop, so that it is not taken for
/// the program's.
struct EndAll<'a>(&'a [Shared<WakeUp>]);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|wake| wake.end());
    }
}

/// Makes queues that have run together ready for the next run. A stop of the program's that came
/// together with an error or a panic is kept for it.
struct Over<'a> {
    wakes: &'a [Shared<WakeUp>],
    is_well: bool,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        for wake in self.wakes {
            if !self.is_well {
                wake.put_stop_back();
            }
            wake.begin();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(processors: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        processors.iter().for_each(|processor| set.set(*processor).expect("in range"));
        set
    }

    #[test]
    fn each_queue_has_the_processors_that_feed_it() {
        let all = set(&[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(share(&all, 1, 4), set(&[1, 5]));
        assert_eq!(share(&all, 0, 1), all);
        assert_eq!(share(&all, 9, 16), set(&[1]), "more queues than processors");
        let some = set(&[2, 6, 1023]);
        assert_eq!(share(&some, 2, 4), set(&[2, 6]));
        assert_eq!(share(&some, 3, 4), set(&[1023]));
        assert_eq!(share(&some, 1, 4), set(&[6]), "none of its own");
        assert_eq!(share(&set(&[]), 0, 4), set(&[]), "for the kernel to refuse");
    }
}
