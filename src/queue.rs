//! A bound queue: receiving, reconfiguring, stopping, closing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue_protocol::config::{Command, ConfigFlags, ConfigMessage, CopyMode, FlagChange};
use nix::errno::Errno;

use crate::batch::Batch;
use crate::binding::Binding;
use crate::builder::{QueueBuilder, QueueNumbers};
use crate::control::Control;
use crate::error::{Error, Operation};
use crate::intake::Intake;
use crate::packet::{Decided, Packet};
use crate::socket::{RECEIVE_MAX, Received, Wake};
use crate::stats::{KernelStats, KernelTable, Refusal, Stats, StatsHandle};
use crate::stop::StopHandle;
use crate::verdicts::Answer;

/// When to try again to send verdicts that nobody else can.
const ORPHANS_RETRY_AFTER: Duration = Duration::from_millis(50);

/// One or several queue numbers that this program holds, and the socket their packets come through.
///
/// Only one thread at a time receives (`&mut self`), because that keeps cumulative verdicts from
/// reaching packets they are not meant for. Verdicts can be sent by any thread: batches and retained
/// packets are `Send`.
///
/// With several numbers, each packet tells its own ([`Packet::queue`]); ids are per number. Settings,
/// limits and statistics are the same for all. They share a receive buffer and a thread: for a thread per
/// number, see [`QueueBuilder::bind_each`] and [`Queue::run_all`].
///
/// Dropping it gives the numbers back; the kernel drops the packets that wait in them.
/// [`Queue::close`] does the same and reports errors; [`Queue::drain`] judges them first.
#[derive(Debug)]
pub struct Queue {
    binding: Arc<Binding>,
    control: Control,
    intake: Intake,
    settings: Settings,
    kernel_table: io::Result<KernelTable>,
    batch_len: usize,
    /// The buffers of [`Queue::run`], kept from one call to the next.
    batch: Option<Batch>,
    nonblocking: bool,
    /// The last receive call emptied the socket, so that waiting comes first now.
    drained: bool,
}

/// What the kernel was told about a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) copy_mode: CopyMode,
    pub(crate) max_len: u32,
    pub(crate) flags: ConfigFlags,
}

/// What a bound queue is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) binding: Binding,
    pub(crate) control: Control,
    pub(crate) intake: Intake,
    pub(crate) settings: Settings,
    pub(crate) kernel_table: io::Result<KernelTable>,
    pub(crate) batch_len: usize,
    pub(crate) nonblocking: bool,
}

impl Queue {
    /// Starts to set up a queue: a number 0–65535, or several.
    ///
    /// ```no_run
    /// use netfilterqueue::Queue;
    ///
    /// let one = Queue::builder(1).bind()?;
    /// let balanced = Queue::builder(2..=5).bind()?; // --queue-balance 2:5
    /// let some = Queue::builder([7, 9]).bind()?;
    /// # Ok::<(), netfilterqueue::Error>(())
    /// ```
    pub fn builder(numbers: impl Into<QueueNumbers>) -> QueueBuilder {
        QueueBuilder::new(numbers.into())
    }

    /// The flags that this kernel knows and can serve, without binding a queue. Asking about
    /// [`ConfigFlags::CONNTRACK`] may load the kernel module `nf_conntrack_netlink`.
    ///
    /// # Errors
    ///
    /// [`Error::NoCapability`], [`Error::NoQueueSupport`], or what the kernel says otherwise.
    pub fn supported_flags() -> Result<ConfigFlags, Error> {
        QueueBuilder::new(0.into()).supported_flags()
    }

    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            binding: Arc::new(parts.binding),
            control: parts.control,
            intake: parts.intake,
            settings: parts.settings,
            kernel_table: parts.kernel_table,
            batch_len: parts.batch_len,
            batch: None,
            nonblocking: parts.nonblocking,
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
        match self.run_until_error(&mut judge) {
            Error::Stopped | Error::WouldBlock => Ok(()),
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
    /// ([`Packet::queue`]).
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
    /// As [`Queue::run`]: that of the queue which failed first, in the order given.
    ///
    /// # Panics
    ///
    /// If `judge` panics, after the other threads have ended.
    pub fn run_all<F>(queues: &mut [Self], judge: F) -> Result<(), Error>
    where
        F: for<'p> Fn(Packet<'p>) -> Decided<'p> + Sync,
    {
        let stops: Vec<StopHandle> = queues.iter().map(Self::stop_handle).collect();
        let _used_up = UseUpStops(&stops);
        let (judge, stops) = (&judge, &StopAll(&stops));
        thread::scope(|scope| {
            let threads: Vec<_> = queues
                .iter_mut()
                .map(|queue| {
                    scope.spawn(move || {
                        // Also if the judge panics.
                        let _stop = stops.on_drop();
                        queue.run(judge)
                    })
                })
                .collect();
            let results: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
            // A panic is more than an error.
            match results.into_iter().collect::<Result<Vec<_>, _>>() {
                Ok(results) => results.into_iter().collect(),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Judges everything that is queued, then gives the numbers back: an end without loss.
    ///
    /// First the queue is closed to new packets, by a length of 0: until it is unbound the kernel drops
    /// them, or accepts them if the queue fails open. Where that matters, pause the rules that feed it before
    /// (`rules::InstalledRules::pause`); removing them would make the kernel drop what waits. Packets that are still retained are dropped by the kernel, as with [`Queue::close`]. A
    /// [`StopHandle`] does not end it.
    ///
    /// # Errors
    ///
    /// As [`Queue::run`] and [`Queue::close`].
    pub fn drain<F>(mut self, mut judge: F) -> Result<(), Error>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        self.set_max_len(0)?;
        self.nonblocking = true;
        loop {
            match self.run_until_error(&mut judge) {
                Error::WouldBlock => return self.close(),
                // Often it is drained because it was told to stop, perhaps more than once.
                Error::Stopped => {}
                error => return Err(error),
            }
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
        self.recv_until(batch, None)
    }

    /// As [`Queue::recv`], for no longer than `timeout`, to the millisecond; also in non-blocking mode.
    ///
    /// # Errors
    ///
    /// As [`Queue::recv`]; [`Error::WouldBlock`] if no packet has come in time.
    pub fn recv_timeout(&mut self, batch: &mut Batch, timeout: Duration) -> Result<usize, Error> {
        let nonblocking = std::mem::take(&mut self.nonblocking);
        // What is out of the clock's range is for ever.
        let result = self.recv_until(batch, Instant::now().checked_add(timeout));
        self.nonblocking = nonblocking;
        result
    }

    fn recv_until(&mut self, batch: &mut Batch, until: Option<Instant>) -> Result<usize, Error> {
        batch.commit_leftovers()?;
        // Without waiting, only asking tells whether more has come.
        self.drained &= !self.nonblocking;
        loop {
            self.binding.wake().reset();
            if self.binding.wake().take_stop() {
                return Err(Error::Stopped);
            }
            let retry_at = self.answer_for_others();
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
            let wake_at = [retry_at, self.next_deadline(), until].into_iter().flatten().min();
            // Waiting comes first, also where there is no time for it: a packet may have come.
            if self.wait(wake_at)? == Wake::Nothing
                && until.is_some_and(|until| until <= Instant::now())
            {
                // The same moment may be somebody's deadline.
                self.answer_for_others();
                return Err(Error::WouldBlock);
            }
        }
    }

    /// Gives packets their verdicts that nobody else will. Returns when to try again what did not work.
    fn answer_for_others(&self) -> Option<Instant> {
        if self.binding.deadlines().next().is_some() {
            let expired = self.binding.deadlines().expire(Instant::now());
            if !expired.is_empty() {
                self.binding.counters().expired(expired.len());
                let verdict = self.binding.terms().on_undecided;
                let answers =
                    expired.into_iter().map(|(queue, id)| Answer::plain(queue, id, verdict));
                self.binding.adopt(answers);
            }
        }
        self.binding.send_orphans().then(|| Instant::now() + ORPHANS_RETRY_AFTER)
    }

    /// One pass over what has been kept and what waits. Returns the number of packets.
    fn fill(&mut self, batch: &mut Batch) -> Result<usize, Error> {
        let mut filled = 0;
        let mut packets = 0;
        let mut received = [Received::default(); RECEIVE_MAX];
        // Packets of the same queue come in runs; they are counted by the run.
        let (mut queue, mut run) = (0, 0);
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
                if self.intake.count(&content, self.binding.outstanding()) {
                    if slot.queue() != queue {
                        self.binding.outstanding().received(queue, run);
                        (queue, run) = (slot.queue(), 0);
                    }
                    run += 1;
                    packets += 1;
                }
            }
            filled += count;
        }
        self.binding.outstanding().received(queue, run);
        self.binding.counters().publish(&self.intake.stats);
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

    fn wait(&mut self, until: Option<Instant>) -> Result<Wake, Error> {
        self.intake.stats.wait_calls += 1;
        // Rounded up: a wait that ends too early only has to begin again.
        let timeout = until.map(|until| {
            until.saturating_duration_since(Instant::now()) + Duration::from_micros(999)
        });
        let wake = self.binding.socket().wait(Some(self.binding.wake().event()), timeout);
        let wake = wake.map_err(Error::system(Operation::Receive, "poll"))?;
        // What else it was woken for, the loop looks.
        self.drained &= wake != Wake::Readable;
        Ok(wake)
    }

    /// A handle that makes a blocked [`Queue::recv`] or [`Queue::run`] return, from any thread.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle::new(Arc::clone(self.binding.wake()))
    }

    /// Counters since the queue was bound.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.binding.counters().publish(&self.intake.stats);
        self.stats_handle().stats()
    }

    /// A handle that reads the counters while the queue is used elsewhere.
    #[must_use]
    pub fn stats_handle(&self) -> StatsHandle {
        StatsHandle::new(&self.binding)
    }

    /// The kernel's own counters, of each of the queue's numbers. Since they come from another source, they
    /// tell what this program cannot see, and show that what it sees is right.
    ///
    /// # Errors
    ///
    /// As [`KernelStats::read`]; `Unsupported` for a queue on a socket from elsewhere
    /// ([`QueueBuilder::bind_on`]).
    pub fn kernel_stats(&self) -> io::Result<Vec<KernelStats>> {
        let table = self.kernel_table.as_ref().map_err(|error| io::Error::from(error.kind()))?;
        let numbers: Vec<u16> = self.numbers().collect();
        let mut rows = table.read()?;
        rows.retain(|row| numbers.binary_search(&row.queue).is_ok());
        rows.sort_unstable_by_key(|row| row.queue);
        Ok(rows)
    }

    /// The verdicts that the kernel refused since the last call, oldest first; at most the newest 256. The
    /// kernel's answers are read along with packets, so a refusal shows up after a later receive.
    pub fn take_refusals(&mut self) -> impl Iterator<Item = Refusal> {
        self.intake.take_refusals()
    }

    /// When the next deadline of a retained packet passes
    /// ([`RetainedPacket::set_deadline`](crate::RetainedPacket::set_deadline)): a program that does not
    /// block in [`Queue::recv`] calls it by then.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.binding.deadlines().next()
    }

    /// The queue numbers, ascending.
    #[must_use]
    pub fn numbers(&self) -> impl ExactSizeIterator<Item = u16> {
        self.binding.outstanding().queues()
    }

    /// What the kernel copies of packets, as it was last told. [`CopyMode::Packet`] with the range that it
    /// has made of it: 1 to 65,531.
    #[must_use]
    pub const fn copy_mode(&self) -> CopyMode {
        self.settings.copy_mode.effective()
    }

    /// How many packets the kernel holds, as it was last told. (What newer kernels allow at most is said at
    /// [`QueueBuilder::max_len`].)
    #[must_use]
    pub const fn max_len(&self) -> u32 {
        self.settings.max_len
    }

    /// The flags that are set.
    #[must_use]
    pub const fn flags(&self) -> ConfigFlags {
        self.settings.flags
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
    /// [`Error::NoCapability`], [`Error::Refused`] or [`Error::AckTimeout`]. With several numbers, those
    /// before the one that failed are changed.
    pub fn set_copy_mode(&mut self, copy_mode: CopyMode) -> Result<(), Error> {
        self.configure(|request| request.copy_mode = Some(copy_mode))?;
        self.settings.copy_mode = copy_mode;
        Ok(())
    }

    /// Changes how many packets the kernel holds before it drops new ones (or accepts them, failing open).
    ///
    /// # Errors
    ///
    /// As [`Queue::set_copy_mode`].
    pub fn set_max_len(&mut self, packets: u32) -> Result<(), Error> {
        self.configure(|request| request.max_len = Some(packets))?;
        self.settings.max_len = packets;
        Ok(())
    }

    /// Sets and clears flags for packets that are queued from now on: those of the mask change, to what the
    /// values say.
    ///
    /// # Errors
    ///
    /// [`Error::FlagsRefused`] if the kernel does not know one of them; else as
    /// [`Queue::set_copy_mode`].
    pub fn set_flags(&mut self, change: FlagChange) -> Result<(), Error> {
        self.configure(|request| request.flags = Some(change)).map_err(|error| match error {
            Error::Refused { errno: Errno::EOPNOTSUPP | Errno::EINVAL, .. } => {
                let Self { binding, control, intake, .. } = self;
                let queue = binding.outstanding().queues().next().unwrap_or_default();
                control.explain_flags(binding, intake, queue, change.values)
            }
            error => error,
        })?;
        let FlagChange { mask, values } = change;
        self.settings.flags = ConfigFlags((self.settings.flags.0 & !mask.0) | (values.0 & mask.0));
        Ok(())
    }

    /// Gives the queue numbers back. The kernel drops the packets that wait in them; a verdict on one
    /// of them fails with [`Error::Closed`] from now on.
    ///
    /// # Errors
    ///
    /// As [`Queue::set_copy_mode`]; the queue is closed all the same when the last batch and
    /// retained packet is gone.
    pub fn close(mut self) -> Result<(), Error> {
        for number in self.binding.outstanding().queues() {
            let unbind = ConfigMessage::command(number, Command::Unbind);
            self.control.ask(&self.binding, &mut self.intake, Operation::Unbind, &unbind)?;
        }
        self.binding.close();
        Ok(())
    }

    fn configure(&mut self, change: impl Fn(&mut ConfigMessage)) -> Result<(), Error> {
        for number in self.binding.outstanding().queues() {
            let mut request = ConfigMessage::new(number);
            change(&mut request);
            self.control.ask(&self.binding, &mut self.intake, Operation::Configure, &request)?;
        }
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // For who reads them afterwards.
        self.binding.counters().publish(&self.intake.stats);
        // Not left to the closing of the socket: batches and retained packets keep that open.
        if self.binding.close() {
            for number in self.binding.outstanding().queues() {
                let unbind = ConfigMessage::command(number, Command::Unbind);
                let _ = self.control.send(&self.binding, &unbind);
            }
        }
    }
}

/// Stops queues that are run together.
struct StopAll<'a>(&'a [StopHandle]);

impl<'a> StopAll<'a> {
    const fn on_drop(&self) -> Self {
        Self(self.0)
    }
}

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(StopHandle::stop);
    }
}

/// Takes back the stops that queues which are run together have given each other: the next run of one must
/// not end because of them.
struct UseUpStops<'a>(&'a [StopHandle]);

impl Drop for UseUpStops<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(StopHandle::use_up);
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
