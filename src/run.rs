//! Queues that call a program's function for each packet.

use std::panic::resume_unwind;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::batch::Batch;
use crate::error::{Error, Operation};
use crate::packet::{Decided, Packet};
use crate::queue::Queue;
use crate::stop::StopHandle;

/// How long [`Queue::drain`] tries to send verdicts for which the kernel has no memory.
const PATIENCE: Duration = Duration::from_secs(2);

impl Queue {
    /// Judges packets until a [`StopHandle`] is used: receives a batch, calls `judge` for each packet, and
    /// sends the verdicts of the batch. In non-blocking mode, returns as soon as no packet waits.
    ///
    /// `judge` cannot forget a packet: only [`Packet::accept`], [`Packet::verdict`] and their like yield the
    /// [`Decided`] it must return. Write it in place or as a function: a closure that is first
    /// bound to a name is not general enough, and neither is `Packet::accept` itself, which clippy may propose
    /// for `|packet| packet.accept()`. Should it panic, the packets it has judged get their
    /// verdicts, and the rest of the batch gets the default verdict.
    ///
    /// # Errors
    ///
    /// Those of [`Queue::recv`] and of [`Batch::commit`], except [`Error::WouldBlock`], and
    /// [`Error::Stopped`] only in non-blocking mode, where `Ok` says that no packet waits. Verdicts that could
    /// not be sent are sent with the next receive, edited packets then with the default verdict.
    ///
    /// # Panics
    ///
    /// If `judge` does, and as [`Batch::new`] for a batch of the length that was asked for.
    pub fn run<F>(&mut self, mut judge: F) -> Result<(), Error>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        match self.run_until_error(&mut judge) {
            Error::WouldBlock => Ok(()),
            Error::Stopped if !self.nonblocking => Ok(()),
            error => Err(error),
        }
    }

    /// Judges packets until receiving or sending fails, and returns why.
    fn run_until_error<F>(&mut self, judge: &mut F) -> Error
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        let mut batch = self.batch.take().unwrap_or_else(|| Batch::new(self.batch_len));
        loop {
            match self.recv(&mut batch) {
                Ok(_) => {}
                Err(error) => {
                    if matches!(error, Error::Stopped | Error::WouldBlock) {
                        self.batch = Some(batch);
                    }
                    return error;
                }
            }
            for packet in &mut batch {
                judge(packet);
            }
            if let Err(error) = batch.commit() {
                return error;
            }
        }
    }

    /// Judges the packets of several queues with a thread each, until one of them is stopped by its
    /// [`StopHandle`] or fails; then all are stopped, this once. Which queue a packet is of, it tells itself
    /// ([`Packet::queue`]). All of them block, also those in non-blocking mode.
    ///
    /// ```no_run
    /// use netfilterqueue::Queue;
    ///
    /// let mut queues = Queue::builder(0..=3).bind_each()?;
    /// Queue::run_all(&mut queues, |packet| packet.accept())?;
    /// # Ok::<(), netfilterqueue::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Queue::run`]: of several, that of the first in the slice. [`Error::System`] if the system has no
    /// thread left.
    ///
    /// # Panics
    ///
    /// If `judge` panics, after the other threads have ended.
    pub fn run_all<F>(queues: &mut [Self], judge: F) -> Result<(), Error>
    where
        F: for<'p> Fn(Packet<'p>) -> Decided<'p> + Sync,
    {
        let stops: Vec<StopHandle> = queues.iter().map(Self::stop_handle).collect();
        let (judge, stops) = (&judge, stops.as_slice());
        let _used_up = UseUp(stops);
        thread::scope(|scope| {
            // Also if not all threads can be had.
            let _stop = StopAll(stops);
            let run_one = |queue: &mut Self| {
                // Also if the judge panics.
                let _stop = StopAll(stops);
                let nonblocking = std::mem::take(&mut queue.nonblocking);
                let result = queue.run(judge);
                queue.nonblocking = nonblocking;
                result
            };
            let mut threads = Vec::with_capacity(stops.len());
            for queue in queues {
                let thread = thread::Builder::new()
                    .spawn_scoped(scope, move || run_one(queue))
                    .map_err(Error::system(Operation::Receive, "clone"))?;
                threads.push(thread);
            }
            let results: Vec<_> = threads.into_iter().map(ScopedJoinHandle::join).collect();
            // A panic is more than an error.
            match results.into_iter().collect::<Result<Vec<_>, _>>() {
                Ok(results) => results.into_iter().collect(),
                Err(panic) => resume_unwind(panic),
            }
        })
    }

    /// Judges everything that is queued, and lets nothing new in: for an end without loss, before
    /// [`Queue::close`].
    ///
    /// First the queue is closed to new packets, by a length of 0: the kernel drops them, or accepts them if
    /// the queue fails open, until the queue is closed or [`Queue::set_max_len`] opens it again. Where that
    /// matters, pause the rules that feed it before (`rules::InstalledRules::pause`); removing them would
    /// make the kernel drop what waits.
    ///
    /// Packets that are retained stay queued: their verdicts are for whoever holds them. A [`StopHandle`]
    /// does not end it; often a queue is drained because it was told to stop.
    ///
    /// # Errors
    ///
    /// As [`Queue::run`] and [`Queue::set_max_len`]. What was not judged is still queued then. [`Error::System`]
    /// also if verdicts of an earlier batch still cannot be sent after two seconds.
    ///
    /// # Panics
    ///
    /// As [`Queue::run`].
    pub fn drain<F>(&mut self, mut judge: F) -> Result<(), Error>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        self.set_max_len(0)?;
        let nonblocking = std::mem::replace(&mut self.nonblocking, true);
        let result = self.judge_all(&mut judge, Instant::now() + PATIENCE);
        self.nonblocking = nonblocking;
        result
    }

    fn judge_all<F>(&mut self, judge: &mut F, give_up_at: Instant) -> Result<(), Error>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        loop {
            match (self.run_until_error(judge), self.retry_at) {
                (Error::Stopped, _) => {}
                (Error::WouldBlock, None) => return Ok(()),
                (Error::WouldBlock, Some(retry_at)) if retry_at < give_up_at => {
                    thread::sleep(retry_at.saturating_duration_since(Instant::now()));
                }
                (Error::WouldBlock, Some(_)) => {
                    return Err(Error::system(Operation::Verdict, "sendmsg")(Errno::ENOBUFS));
                }
                (error, _) => return Err(error),
            }
        }
    }
}

/// Stops queues that are run together.
struct StopAll<'a>(&'a [StopHandle]);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(StopHandle::stop);
    }
}

/// Takes back the stops that queues which are run together have given each other: the next run of one must
/// not end because of them.
struct UseUp<'a>(&'a [StopHandle]);

impl Drop for UseUp<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(StopHandle::use_up);
    }
}
