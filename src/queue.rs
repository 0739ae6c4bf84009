//! A bound queue: receiving, reconfiguring, stopping, closing.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use netfilterqueue_protocol::config::{Command, ConfigFlags, ConfigMessage, CopyMode, FlagChange};

use crate::batch::Batch;
use crate::binding::{Binding, StatsHandle};
use crate::builder::{QueueBuilder, QueueNumbers};
use crate::control::Control;
use crate::errno::Errno;
use crate::error::{Error, Operation};
use crate::intake::Intake;
use crate::stats::{KernelStats, Refusal, Stats};
use crate::stop::StopHandle;

/// One or several queue numbers that this program holds, and the socket their packets come through.
///
/// Only one thread at a time receives (`&mut self`), because that keeps cumulative verdicts from
/// reaching packets they are not meant for. Verdicts can be sent by any thread: batches and
/// retained packets are `Send`.
///
/// With several numbers, each packet tells its own ([`Packet::queue`](crate::Packet::queue)); ids
/// are per number. Settings, limits and statistics are the same for all. They share a receive
/// buffer and a thread: for a thread per number, see
/// [`QueueBuilder::bind_fanout`].
///
/// Dropping it gives the numbers back; the kernel drops the packets that wait in them.
/// [`Queue::close`] does the same and reports errors; [`Queue::drain`] judges them first.
#[must_use = "a queue that is dropped gives its numbers back"]
pub struct Queue {
    pub(crate) binding: Arc<Binding>,
    control: Control,
    pub(crate) intake: Intake,
    settings: Settings,
    pub(crate) batch_len: usize,
    /// The buffers of [`Queue::run`], kept from one call to the next.
    pub(crate) batch: Option<Batch>,
    pub(crate) nonblocking: bool,
    /// The last receive call emptied the socket, so that waiting comes first now.
    pub(crate) drained: bool,
    /// Whether receive calls can wait: not on a socket in non-blocking mode.
    pub(crate) can_block: bool,
    /// When to try again to send verdicts that nobody else can.
    pub(crate) retry_at: Option<Instant>,
    /// Not before this are packets dropped, or tried again to be, whose verdicts were refused.
    pub(crate) next_sweep: Option<Instant>,
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
            batch_len: parts.batch_len,
            batch: None,
            nonblocking: parts.nonblocking,
            drained: false,
            can_block: true,
            retry_at: None,
            next_sweep: None,
        }
    }

    /// A handle that makes a blocked [`Queue::recv`] or [`Queue::run`] return, from any thread.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle::new(self.binding.wake().clone())
    }

    /// Counters since the queue was bound.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.binding.counters().publish(&self.intake.stats);
        self.binding.stats()
    }

    /// A handle that reads the counters while the queue is used elsewhere.
    #[must_use]
    pub fn stats_handle(&self) -> StatsHandle {
        StatsHandle::new([&self.binding])
    }

    /// The kernel's own counters, of each of the queue's numbers. Since they come from another
    /// source, they tell what this program cannot see, and show that what it sees is right. Since
    /// 3.17.
    ///
    /// # Errors
    ///
    /// As [`KernelStats::read`]; `Unsupported` for a queue on a socket from elsewhere
    /// ([`QueueBuilder::bind_on`]).
    pub fn kernel_stats(&self) -> Result<Vec<KernelStats>, Error> {
        self.binding.kernel_stats()
    }

    /// The verdicts that the kernel refused since the last call, oldest first; at most the newest
    /// 256. The kernel's answers are read along with packets, so a refusal shows up after a later
    /// receive.
    #[must_use = "they are not told again"]
    pub fn take_refusals(&mut self) -> Vec<Refusal> {
        self.intake.take_refusals()
    }

    /// When a program that does not block in [`Queue::recv`] should call it although no packet may
    /// have come: when the next deadline of a retained packet passes
    /// ([`RetainedPacket::set_deadline`](crate::RetainedPacket::set_deadline)), or a verdict that
    /// could not be sent, or was refused for want of the capability, is to be seen to again.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let has_unpermitted = self.intake.has_unpermitted();
        let sweep = has_unpermitted.then(|| self.next_sweep.unwrap_or_else(Instant::now));
        let next = self.binding.deadlines().next();
        next.into_iter().chain(self.retry_at).chain(sweep).min()
    }

    /// The queue numbers, ascending.
    #[must_use]
    pub fn numbers(&self) -> impl ExactSizeIterator<Item = u16> {
        self.binding.outstanding().queues()
    }

    /// What the kernel copies of packets, as it was last told. [`CopyMode::Packet`] with the range
    /// that it has made of it: 1 to 65,531.
    #[must_use]
    pub const fn copy_mode(&self) -> CopyMode {
        self.settings.copy_mode.effective()
    }

    /// How many packets the kernel holds, as it was last told. (What newer kernels allow at most is
    /// said at [`QueueBuilder::max_len`].)
    #[must_use]
    pub const fn max_len(&self) -> u32 {
        self.settings.max_len
    }

    /// The flags that are set.
    #[must_use]
    pub const fn flags(&self) -> ConfigFlags {
        self.settings.flags
    }

    /// The netlink port id of the queue's socket, which `/proc/net/netfilter/nfnetlink_queue`
    /// shows.
    #[must_use]
    pub fn port_id(&self) -> u32 {
        self.binding.socket().port()
    }

    /// The size that the socket's receive buffer has reached, in bytes as the kernel counts them:
    /// twice what was asked for, or less if the host's limit (`net.core.rmem_max`) did not allow
    /// it. A small packet takes about 830 bytes of it, one of 1,400 bytes 2,300, one of 60 KB
    /// 71,000.
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

    /// Changes what is copied of packets that are queued from now on. Packets that arrive meanwhile
    /// are kept for the next receive.
    ///
    /// # Errors
    ///
    /// [`Error::NoCapability`], [`Error::Refused`] or [`Error::AckTimeout`]. With several numbers,
    /// those before the one that failed are changed.
    pub fn set_copy_mode(&mut self, copy_mode: CopyMode) -> Result<(), Error> {
        self.configure(|request| request.copy_mode = Some(copy_mode))?;
        self.settings.copy_mode = copy_mode;
        Ok(())
    }

    /// Changes how many packets the kernel holds before it drops new ones (or accepts them, failing
    /// open).
    ///
    /// # Errors
    ///
    /// As [`Queue::set_copy_mode`].
    pub fn set_max_len(&mut self, packets: u32) -> Result<(), Error> {
        self.configure(|request| request.max_len = Some(packets))?;
        self.settings.max_len = packets;
        Ok(())
    }

    /// Sets and clears flags for packets that are queued from now on: those of the mask change, to
    /// what the values say.
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

    /// Gives the queue numbers back. The kernel drops the packets that wait in them; a verdict on
    /// one of them fails with [`Error::Closed`] from now on.
    ///
    /// # Errors
    ///
    /// As [`Queue::set_copy_mode`], or as [`Batch::commit`] if a future of `AsyncQueue::run`
    /// has left verdicts; the queue is closed all the same when the last batch and retained packet
    /// is gone.
    pub fn close(mut self) -> Result<(), Error> {
        self.commit_own()?;
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
        let _ = self.commit_own();
        if self.binding.close() {
            for number in self.binding.outstanding().queues() {
                let unbind = ConfigMessage::command(number, Command::Unbind);
                let _ = self.control.send(&self.binding, &unbind);
            }
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("numbers", &self.numbers().collect::<Vec<_>>())
            .field("port_id", &self.port_id())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// Readable when packets wait in the socket. Those that arrived while the queue was being
/// configured do not show: after [`Queue::set_copy_mode`] and its like, receive until
/// [`Error::WouldBlock`] before waiting.
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
