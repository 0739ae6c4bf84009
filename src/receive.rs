//! Receiving on a queue: waiting for packets, and seeing to verdicts that nobody else gives.

use std::io::IoSlice;
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::batch::Batch;
use crate::error::{Error, Operation};
use crate::intake::Consecutive;
use crate::queue::Queue;
use crate::socket::{RECEIVE_FEW, RECEIVE_MAX, Wake};
use crate::stop::WakeUp;
use crate::sweep::sweep;
use crate::verdicts::Answer;

/// After this long, verdicts that could not be sent and that nobody else can send are tried again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(50);

/// How long to wait for packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    None,
    /// As `None`, for a program that is told when more has come, and sets [`Queue::drained`] back
    /// then.
    #[cfg(feature = "tokio")]
    Told {
        /// It has just been told.
        just_now: bool,
    },
    Until(Instant),
    Endless,
}

/// What the first receive call of a pass asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// As many as wait.
    Many,
    /// After a wait there is nearly always one packet, and pointing out 64 buffers to the kernel
    /// takes a quarter of a microsecond.
    Few,
    /// To wait for the first one.
    Wait,
}

impl Patience {
    const fn until(self) -> Option<Instant> {
        match self {
            Self::Until(until) => Some(until),
            _ => None,
        }
    }

    /// Whether it is known that something has come.
    const fn was_told(self) -> bool {
        #[cfg(feature = "tokio")]
        if let Self::Told { just_now } = self {
            return just_now;
        }
        false
    }

    /// Whether it comes back rather than wait.
    const fn is_none(self) -> bool {
        !matches!(self, Self::Until(_) | Self::Endless)
    }
}

impl Queue {
    /// Receives packets into `batch`, as many as wait and fit, and returns how many. Blocks for the
    /// first one only: usually one `poll`, then one `recvmmsg` per 64 packets; after a wait, one
    /// for the first four. While nobody has a stop handle, a retained packet or another batch of
    /// this queue, it waits without the `poll`. What the batch held before is committed first.
    ///
    /// The kernel's refusals of verdicts come along with packets and take up slots of the batch, so
    /// that fewer packets may be received than wait. Packets that cannot be read (see
    /// [`Stats::truncated`](crate::Stats::truncated)) are counted and have their verdict, but
    /// iteration does not show them.
    ///
    /// Signals do not end it, and neither does an overrun of the receive buffer, which is counted.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] after a [`StopHandle`](crate::StopHandle) was used, once.
    /// [`Error::WouldBlock`] in non-blocking mode if no packet waits. [`Error::System`] if the
    /// socket fails, or an earlier batch cannot be committed; then nothing is received.
    pub fn recv(&mut self, batch: &mut Batch) -> Result<usize, Error> {
        self.receive_within(self.patience(), batch)
    }

    /// As [`Queue::recv`], for no longer than `timeout`, to the millisecond; also in non-blocking
    /// mode.
    ///
    /// # Errors
    ///
    /// As [`Queue::recv`]; [`Error::WouldBlock`] if no packet has come in time.
    pub fn recv_timeout(&mut self, batch: &mut Batch, timeout: Duration) -> Result<usize, Error> {
        // What is out of the clock's range is for ever.
        let until = Instant::now().checked_add(timeout);
        self.receive_within(until.map_or(Patience::Endless, Patience::Until), batch)
    }

    /// Sends what is left in the buffers of [`Queue::run`]: verdicts of a run of
    /// `AsyncQueue` that was dropped when the kernel had no memory for them.
    pub(crate) fn commit_own(&mut self) -> Result<(), Error> {
        self.batch.as_mut().map_or(Ok(()), Batch::commit_leftovers)
    }

    /// How long the program wants to wait.
    pub(crate) const fn patience(&self) -> Patience {
        if self.nonblocking { Patience::None } else { Patience::Endless }
    }

    pub(crate) fn receive_within(
        &mut self,
        patience: Patience,
        batch: &mut Batch,
    ) -> Result<usize, Error> {
        batch.commit_leftovers()?;
        self.commit_own()?;
        // Without waiting, only asking tells whether more has come.
        self.drained &= patience != Patience::None;
        let mut has_waited = patience.was_told();
        loop {
            // Asked before looking at what there is to do: who is gone by now has left it there.
            let is_alone = self.is_alone();
            self.attend()?;
            let mut ask = if has_waited { Ask::Few } else { Ask::Many };
            if self.drained && !self.intake.has_kept() {
                match patience {
                    patience if patience.is_none() => return Err(Error::WouldBlock),
                    // Asking comes first, also where there is no time to wait: a packet may have
                    // come.
                    Patience::Until(until) if has_waited && until <= Instant::now() => {
                        return Err(Error::WouldBlock);
                    }
                    _ => {}
                }
                has_waited = true;
                let until = self.next_deadline().into_iter().chain(patience.until()).min();
                if until.is_some() || !is_alone {
                    self.wait(until)?;
                    continue;
                }
                self.drained = false;
                ask = Ask::Wait;
            }
            let packets = self.fill(batch, ask)?;
            if packets > 0 {
                return Ok(packets);
            }
            // Only answers and refusals were received, and there may be more behind them. They are
            // not looked for when time is up.
            match patience {
                patience if patience.is_none() && self.drained => return Err(Error::WouldBlock),
                Patience::Until(until) if !self.drained && until <= Instant::now() => {
                    return Err(Error::WouldBlock);
                }
                _ => {}
            }
        }
    }

    /// Whether nobody has a stop handle, a retained packet or another batch of this queue, so that
    /// nothing but packets can end a wait. Then it can wait by receiving, which saves a `poll`: a
    /// microsecond, with the way into sleep and out of it.
    ///
    /// Nobody can come into being while the queue receives, which has it to itself. Whoever was
    /// there before may have left something to do, which is visible after this.
    fn is_alone(&self) -> bool {
        // The last of these makes visible what those did who are gone, of both kinds.
        self.can_block
            && Arc::strong_count(&self.binding) == 1
            && !WakeUp::has_handles(self.binding.wake())
    }

    /// Does what is to be done besides receiving.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] after a stop, once.
    pub(crate) fn attend(&mut self) -> Result<(), Error> {
        self.binding.wake().reset();
        self.answer_for_others();
        if self.binding.wake().take_stop() { Err(Error::Stopped) } else { Ok(()) }
    }

    /// Gives packets their verdicts that nobody else will.
    fn answer_for_others(&mut self) {
        if self.binding.deadlines().next().is_some() {
            let expired = self.binding.deadlines().expire(Instant::now());
            self.binding.counters().expired(expired.len());
            let verdict = self.binding.terms().on_undecided;
            let answers = expired.into_iter().map(|(queue, id)| Answer::plain(queue, id, verdict));
            self.binding.adopt(answers);
        }
        let is_left = self.binding.send_orphans();
        self.retry_at = is_left.then(|| Instant::now() + RETRY_AFTER);
        if self.intake.has_unpermitted() {
            self.sweep();
        }
    }

    /// Drops packets whose verdicts the kernel refused for want of the capability, where nobody
    /// holds a packet that this would reach.
    #[cold]
    fn sweep(&mut self) {
        let now = Instant::now();
        if self.next_sweep.is_some_and(|at| at > now) {
            return;
        }
        self.next_sweep = Some(now + RETRY_AFTER);
        for (queue, last_id) in self.intake.unpermitted() {
            if self.binding.outstanding().is_idle(queue) {
                // Without an answer it is tried again.
                let _ = self.binding.socket().send(&[IoSlice::new(&sweep(queue, last_id))]);
            }
        }
    }

    /// One pass over what has been kept and what waits. Returns the number of packets.
    fn fill(&mut self, batch: &mut Batch, mut ask: Ask) -> Result<usize, Error> {
        let mut filled = 0;
        let mut packets = 0;
        let mut run = Consecutive::default();
        while filled < batch.capacity() {
            let count = if let Some(kept) = self.intake.next_kept() {
                batch.slots_mut().receive_by(filled, 1, |mut buffers, received| {
                    if let (Some(buffer), [received, ..]) = (buffers.next(), received) {
                        *received = kept.copy_into(buffer);
                    }
                });
                1
            } else if self.drained {
                break;
            } else {
                match self.receive(batch, filled, mem::replace(&mut ask, Ask::Many)) {
                    Ok(count) => count,
                    // The packets at hand come first; the error will come again.
                    Err(_) if packets > 0 => break,
                    Err(error) => return Err(error),
                }
            };
            let received = batch.slots_mut().received(filled, count);
            packets += self.intake.load(received, &mut run, self.binding.outstanding());
            filled += count;
        }
        self.intake.count_packets(run, self.binding.outstanding());
        self.binding.counters().publish(&self.intake.stats);
        if packets > 0 {
            batch.attach(&self.binding);
        }
        Ok(packets)
    }

    /// One `recvmmsg` into the buffers from the one at `first` on.
    fn receive(&mut self, batch: &mut Batch, first: usize, ask: Ask) -> Result<usize, Error> {
        let most = if ask == Ask::Many { RECEIVE_MAX } else { RECEIVE_FEW };
        let wanted = most.min(batch.capacity() - first);
        // Kept packets are not let wait.
        let may_block = ask == Ask::Wait && first == 0;
        self.intake.stats.receive_calls += 1;
        let socket = self.binding.socket();
        let result = batch.slots_mut().receive_by(first, wanted, |buffers, received| {
            socket.receive(buffers, received, may_block)
        });
        match result {
            Ok(count) => {
                self.drained = count < wanted;
                Ok(count)
            }
            Err(Errno::EAGAIN) => {
                // Somebody has put the socket in non-blocking mode.
                self.can_block &= !may_block;
                self.drained = true;
                Ok(0)
            }
            Err(Errno::EINTR) => Ok(0),
            Err(Errno::ENOBUFS) => {
                self.intake.count_overrun(self.binding.outstanding());
                Ok(0)
            }
            Err(errno) => Err(Error::system(Operation::Receive, "recvmmsg")(errno)),
        }
    }

    fn wait(&mut self, until: Option<Instant>) -> Result<(), Error> {
        self.intake.stats.wait_calls += 1;
        // Rounded up: a wait that ends too early only has to begin again.
        let timeout = until.map(|until| {
            until.saturating_duration_since(Instant::now()) + Duration::from_micros(999)
        });
        let wake = self.binding.socket().wait(Some(self.binding.wake().event().as_fd()), timeout);
        match wake.map_err(Error::system(Operation::Receive, "poll"))? {
            Wake::Readable => self.drained = false,
            // The loop looks what for.
            Wake::Woken => self.binding.wake().clear(),
            Wake::Nothing => {}
        }
        Ok(())
    }
}
