//! Queues that call a program's function for each packet.

use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::batch::Batch;
use crate::error::{Error, Operation};
use crate::packet::{Decided, Packet};
use crate::queue::Queue;
use crate::receive::{Patience, RETRY_AFTER};

/// How long [`Queue::drain`] tries to send verdicts for which the kernel has no memory.
pub(crate) const GIVE_UP_AFTER: Duration = Duration::from_secs(2);

impl Queue {
    /// Judges packets until a [`StopHandle`](crate::StopHandle) is used: receives a batch, calls
    /// `judge` for each packet, and sends the verdicts of the batch. In non-blocking mode, returns
    /// as soon as no packet waits.
    ///
    /// `judge` cannot forget a packet: only [`Packet::accept`], [`Packet::verdict`] and their like
    /// yield the [`Decided`] it must return. Write it in place or as a function: a closure that is
    /// first bound to a name is not general enough (a `Box<dyn FnMut(Packet) -> Decided>` is), and
    /// neither is `Packet::accept` itself, which clippy may propose for `|packet| packet.accept()`.
    /// Should it panic, the packets it has judged get their verdicts, and the rest of the batch
    /// gets the default verdict.
    ///
    /// To end it from inside, with an error of the program's own:
    ///
    /// ```no_run
    /// # fn check(_: &[u8]) -> std::io::Result<bool> { Ok(true) }
    /// # fn judge(queue: &mut netfilterqueue::Queue) -> Result<(), Box<dyn std::error::Error>> {
    /// use netfilterqueue::Verdict;
    ///
    /// let stop = queue.stop_handle();
    /// let mut failed = None;
    /// queue.run(|packet| match check(packet.payload()) {
    ///     Ok(true) => packet.accept(),
    ///     Ok(false) => packet.verdict(Verdict::Drop),
    ///     Err(error) => {
    ///         failed = Some(error);
    ///         stop.stop(); // after this batch
    ///         packet.verdict(Verdict::Drop)
    ///     }
    /// })?;
    /// failed.map_or(Ok(()), |error| Err(error.into()))
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Queue::recv`] and of [`Batch::commit`], except [`Error::WouldBlock`], and
    /// [`Error::Stopped`] only in non-blocking mode, where `Ok` says that no packet waits. That the
    /// kernel has no memory for verdicts (`ENOBUFS`, `ENOMEM`) is an error in non-blocking mode;
    /// otherwise it becomes one only when a stop comes, and until then they are sent again every
    /// 50 ms. Verdicts that could not be sent are sent with the next receive, edited packets then
    /// with the default verdict.
    ///
    /// # Panics
    ///
    /// If `judge` does, and as [`Batch::new`] for a batch of the length that was asked for.
    pub fn run<F>(&mut self, mut judge: F) -> Result<(), Error>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        let patience = self.patience();
        match self.run_until_error(patience, &mut judge) {
            Error::WouldBlock => Ok(()),
            Error::Stopped if patience == Patience::Endless => Ok(()),
            error => Err(error),
        }
    }

    /// Judges packets until receiving or sending fails, and returns why.
    pub(crate) fn run_until_error<F>(&mut self, patience: Patience, judge: &mut F) -> Error
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        let mut batch = self.take_batch();
        loop {
            // At first, what a future of `AsyncQueue::run` may have left.
            if let Err(error) = self.commit_within(patience, &mut batch) {
                return error;
            }
            match self.receive_within(patience, &mut batch) {
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
        }
    }

    /// The buffers that were left by an earlier run, or new ones.
    pub(crate) fn take_batch(&mut self) -> Batch {
        self.batch.take().unwrap_or_else(|| Batch::new(self.batch_len))
    }

    /// Commits a batch; with endless patience also where the kernel has no memory for a while.
    fn commit_within(&self, patience: Patience, batch: &mut Batch) -> Result<(), Error> {
        loop {
            match batch.commit() {
                Err(error) if patience == Patience::Endless && error.is_want_of_memory() => {
                    if self.binding.wake().take_stop() {
                        // Not as if all were well.
                        return Err(error);
                    }
                    thread::sleep(RETRY_AFTER);
                }
                result => return result,
            }
        }
    }

    /// Judges everything that is queued, and lets nothing new in: for an end without loss, before
    /// [`Queue::close`].
    ///
    /// First the queue is closed to new packets, by a length of 0: the kernel drops them, or
    /// accepts them if the queue fails open, until the queue is closed or [`Queue::set_max_len`]
    /// opens it again. Where that matters, pause the rules that feed it before
    /// (`rules::InstalledRules::pause`); removing them would make the kernel drop what waits.
    ///
    /// Packets that are retained stay queued: their verdicts are for whoever holds them. A
    /// [`StopHandle`](crate::StopHandle) does not end it; often a queue is drained because it was
    /// told to stop.
    ///
    /// # Errors
    ///
    /// As [`Queue::run`] and [`Queue::set_max_len`]. What was not judged is still queued then.
    /// [`Error::System`] also if verdicts of an earlier batch still cannot be sent after two
    /// seconds.
    ///
    /// # Panics
    ///
    /// As [`Queue::run`].
    pub fn drain<F>(&mut self, mut judge: F) -> Result<(), Error>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        self.set_max_len(0)?;
        let give_up_at = Instant::now() + GIVE_UP_AFTER;
        loop {
            match (self.run_until_error(Patience::None, &mut judge), self.retry_at) {
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
