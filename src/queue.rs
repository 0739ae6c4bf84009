//! A bound queue: receiving, reconfiguring, stopping, closing.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use netfilterqueue_protocol::config::{Command, ConfigMessage, CopyMode, FlagChange};
use nix::errno::Errno;

use crate::batch::Batch;
use crate::binding::Binding;
use crate::builder::QueueBuilder;
use crate::control::Control;
use crate::error::{Error, Operation};
use crate::intake::Intake;
use crate::packet::{Decided, Packet};
use crate::socket::{RECEIVE_MAX, Received, Wake};
use crate::stats::{Refusal, Stats};
use crate::stop::StopHandle;

/// When to try again to send verdicts that nobody else can.
const ORPHANS_RETRY_AFTER: Duration = Duration::from_millis(50);

/// A queue number that this program holds, and the socket its packets come through.
///
/// Only one thread at a time receives (`&mut self`), because that keeps cumulative verdicts from
/// reaching packets they are not meant for. Verdicts can be sent by any thread: batches and retained
/// packets are `Send`.
///
/// Dropping it gives the number back; the kernel drops the packets that wait in it.
/// [`Queue::close`] does the same and reports errors.
#[derive(Debug)]
pub struct Queue {
    binding: Arc<Binding>,
    control: Control,
    intake: Intake,
    batch_len: usize,
    /// The buffers of [`Queue::run`], kept from one call to the next.
    batch: Option<Batch>,
    nonblocking: bool,
    /// The last receive call emptied the socket, so that waiting comes first now.
    drained: bool,
}

impl Queue {
    /// Starts to set up queue `number`, 0–65535.
    pub fn builder(number: u16) -> QueueBuilder {
        QueueBuilder::new(number)
    }

    pub(crate) fn new(
        binding: Binding,
        control: Control,
        intake: Intake,
        batch_len: usize,
        nonblocking: bool,
    ) -> Self {
        Self {
            binding: Arc::new(binding),
            control,
            intake,
            batch_len,
            batch: None,
            nonblocking,
            drained: false,
        }
    }

    /// Judges packets until a [`StopHandle`] is used: receives a batch, calls `judge` for each packet, and
    /// sends the verdicts of the batch. In non-blocking mode, returns as soon as no packet waits.
    ///
    /// `judge` cannot forget a packet: only [`Packet::accept`], [`Packet::verdict`] and [`Packet::retain`]
    /// yield the [`Decided`] it must return. Write it in place or as a function: a closure that is first
    /// bound to a name is not general enough. Should it panic, the packets it has judged get their
    /// verdicts, and the rest of the batch gets the default verdict.
    ///
    /// # Errors
    ///
    /// Those of [`Queue::recv`], except [`Error::Stopped`] and [`Error::WouldBlock`], and those of
    /// [`Batch::commit`]. Verdicts that could not be sent are sent with the next receive, edited packets
    /// then with the default verdict.
    pub fn run<F>(&mut self, mut judge: F) -> Result<(), Error>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        let mut batch = self.batch.take().unwrap_or_else(|| Batch::new(self.batch_len));
        loop {
            match self.recv(&mut batch) {
                Ok(_) => {}
                Err(Error::Stopped | Error::WouldBlock) => {
                    self.batch = Some(batch);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            for packet in &mut batch {
                judge(packet);
            }
            batch.commit()?;
        }
    }

    /// Receives packets into `batch`, as many as wait and fit, and returns how many. Blocks for the first
    /// one only: usually one `poll`, then one `recvmmsg` per 64 packets. What the batch held before is
    /// committed first.
    ///
    /// The kernel's refusals of verdicts come along with packets and take up slots of the batch, so that
    /// fewer packets may be received than wait. Packets that cannot be read (see
    /// [`Stats::truncated`]) are counted and have their verdict, but iteration does not show them.
    ///
    /// Signals do not end it, and neither does an overrun of the receive buffer, which is counted.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] after a [`StopHandle`] was used, once. [`Error::WouldBlock`] in
    /// non-blocking mode if no packet waits. [`Error::System`] if the socket fails, or an
    /// earlier batch cannot be committed; then nothing is received.
    pub fn recv(&mut self, batch: &mut Batch) -> Result<usize, Error> {
        batch.commit_leftovers()?;
        // Without waiting, only asking tells whether more has come.
        self.drained &= !self.nonblocking;
        loop {
            if self.binding.wake().take_stop() {
                return Err(Error::Stopped);
            }
            let orphans_left = self.binding.send_orphans();
            let packets = self.fill(batch)?;
            if packets > 0 {
                return Ok(packets);
            }
            if !self.drained {
                // Only answers and refusals were received; there may be more behind them.
                continue;
            }
            if self.nonblocking {
                return Err(Error::WouldBlock);
            }
            self.wait(orphans_left.then_some(ORPHANS_RETRY_AFTER))?;
        }
    }

    /// One pass over what has been kept and what waits. Returns the number of packets.
    fn fill(&mut self, batch: &mut Batch) -> Result<usize, Error> {
        let mut filled = 0;
        let mut packets = 0;
        let mut received = [Received::default(); RECEIVE_MAX];
        while filled < batch.capacity() {
            let count = if let Some(kept) = self.intake.next_kept() {
                let (_, buffer) = batch.slots_mut().at_mut(filled);
                received[0] = kept.copy_into(buffer);
                1
            } else if self.drained {
                break;
            } else {
                match self.receive(batch, filled, &mut received) {
                    Ok(count) => count,
                    // The packets at hand come first; the error will come again.
                    Err(_) if packets > 0 => break,
                    Err(error) => return Err(error),
                }
            };
            for (at, received) in received[..count].iter().enumerate() {
                let (slot, buffer) = batch.slots_mut().at_mut(filled + at);
                let datagram = buffer.get(..received.length).unwrap_or(buffer);
                let content = slot.load(datagram, *received);
                packets += usize::from(self.intake.count(&content, self.binding.outstanding()));
            }
            filled += count;
        }
        self.binding.outstanding().received(packets);
        if packets > 0 {
            batch.attach(&self.binding);
        }
        Ok(packets)
    }

    /// One `recvmmsg` into the buffers from the one at `first` on.
    fn receive(
        &mut self,
        batch: &mut Batch,
        first: usize,
        received: &mut [Received; RECEIVE_MAX],
    ) -> Result<usize, Error> {
        let wanted = received.len().min(batch.capacity() - first);
        self.intake.stats.receive_calls += 1;
        let buffers = batch.slots_mut().buffers_mut(first);
        match self.binding.socket().receive(buffers, &mut received[..wanted]) {
            Ok(count) => {
                self.drained = count < wanted;
                Ok(count)
            }
            Err(Errno::EAGAIN) => {
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

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.intake.stats.wait_calls += 1;
        let wake = self.binding.socket().wait(Some(self.binding.wake().event()), timeout);
        match wake.map_err(Error::system(Operation::Receive, "poll"))? {
            Wake::Readable => self.drained = false,
            // The loop looks what for.
            Wake::Woken => self.binding.wake().reset(),
            Wake::Nothing => {}
        }
        Ok(())
    }

    /// A handle that makes a blocked [`Queue::recv`] or [`Queue::run`] return, from any thread.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle::new(Arc::clone(self.binding.wake()))
    }

    /// Counters since the queue was bound.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let sent = self.binding.sent();
        Stats {
            answered: sent.answered.load(Ordering::Relaxed),
            exact_verdicts: sent.exact.load(Ordering::Relaxed),
            cumulative_verdicts: sent.cumulative.load(Ordering::Relaxed),
            send_calls: sent.calls.load(Ordering::Relaxed),
            held: self.binding.outstanding().count(),
            ..self.intake.stats
        }
    }

    /// The verdicts that the kernel refused since the last call, oldest first; at most the newest 256. The
    /// kernel's answers are read along with packets, so a refusal shows up after a later receive.
    pub fn take_refusals(&mut self) -> impl Iterator<Item = Refusal> {
        self.intake.take_refusals()
    }

    /// The queue number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.binding.queue()
    }

    /// The netlink port id of the queue's socket, which `/proc/net/netfilter/nfnetlink_queue` shows.
    #[must_use]
    pub fn port_id(&self) -> u32 {
        self.binding.socket().port()
    }

    /// The size that the socket's receive buffer has reached, in bytes as the kernel counts them: twice
    /// what was asked for, or less if the host's limit (`net.core.rmem_max`) did not allow it. A small
    /// packet takes about 830 bytes of it, one of 1,400 bytes 2,300, one of 60 KB 71,000.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the socket cannot be asked.
    pub fn receive_buffer(&self) -> Result<usize, Error> {
        self.binding.socket().receive_buffer()
    }

    /// Chooses whether [`Queue::recv`] blocks. The descriptor itself is not changed.
    pub const fn set_nonblocking(&mut self, nonblocking: bool) {
        self.nonblocking = nonblocking;
    }

    /// Changes what is copied of packets that are queued from now on. Packets that arrive meanwhile are
    /// kept for the next receive.
    ///
    /// # Errors
    ///
    /// [`Error::NoCapability`], [`Error::Refused`] or [`Error::AckTimeout`].
    pub fn set_copy_mode(&mut self, copy_mode: CopyMode) -> Result<(), Error> {
        self.configure(&ConfigMessage {
            copy_mode: Some(copy_mode),
            ..ConfigMessage::new(self.number())
        })
    }

    /// Changes how many packets the kernel holds before it drops new ones (or accepts them, failing open).
    ///
    /// # Errors
    ///
    /// As [`Queue::set_copy_mode`].
    pub fn set_max_len(&mut self, packets: u32) -> Result<(), Error> {
        self.configure(&ConfigMessage {
            max_len: Some(packets),
            ..ConfigMessage::new(self.number())
        })
    }

    /// Sets and clears flags for packets that are queued from now on: those of the mask change, to what the
    /// values say.
    ///
    /// # Errors
    ///
    /// [`Error::FlagsRefused`] if the kernel does not know one of them; else as
    /// [`Queue::set_copy_mode`].
    pub fn set_flags(&mut self, change: FlagChange) -> Result<(), Error> {
        let queue = self.number();
        let request = ConfigMessage { flags: Some(change), ..ConfigMessage::new(queue) };
        self.configure(&request).map_err(|error| match error {
            Error::Refused { errno: Errno::EOPNOTSUPP | Errno::EINVAL, .. } => {
                self.control.explain_flags(&self.binding, &mut self.intake, change.values)
            }
            error => error,
        })
    }

    /// Gives the queue number back. The kernel drops the packets that wait in the queue; a verdict on one
    /// of them fails with [`Error::Closed`] from now on.
    ///
    /// # Errors
    ///
    /// As [`Queue::set_copy_mode`]; the queue is closed all the same when the last batch and
    /// retained packet is gone.
    pub fn close(mut self) -> Result<(), Error> {
        let unbind = self.unbind_request();
        self.control.ask(&self.binding, &mut self.intake, Operation::Unbind, &unbind)?;
        self.binding.close();
        Ok(())
    }

    fn configure(&mut self, request: &ConfigMessage) -> Result<(), Error> {
        self.control.ask(&self.binding, &mut self.intake, Operation::Configure, request)
    }

    fn unbind_request(&self) -> ConfigMessage {
        ConfigMessage::command(self.number(), Command::Unbind)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Not left to the closing of the socket: batches and retained packets keep that open.
        if self.binding.close() {
            let unbind = self.unbind_request();
            let _ = self.control.send(&self.binding, &unbind);
        }
    }
}

/// Readable when packets wait in the socket. Those that arrived while the queue was being configured do
/// not show: after [`Queue::set_copy_mode`] and its like, receive until [`Error::WouldBlock`] before
/// waiting.
impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.binding.socket().as_fd()
    }
}

/// As the one of [`AsFd`].
impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
