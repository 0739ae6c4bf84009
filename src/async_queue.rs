//! Queues in the tasks of a tokio runtime (feature `tokio`).

use std::future::{Future as _, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_core::Stream;
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::task::coop;
use tokio::time::{Sleep, sleep};

use crate::batch::Batch;
use crate::binding::Binding;
use crate::error::{Error, Operation};
use crate::packet::{Decided, Packet};
use crate::queue::Queue;
use crate::receive::{Patience, RETRY_AFTER};
use crate::retained::RetainedPacket;
use crate::retention::Limit;
use crate::run::GIVE_UP_AFTER;
use crate::stop::StopHandle;

/// What may be retained before [`AsyncQueue::set_retained_limit`] says something else, in bytes.
const RETAINED_BYTES: usize = 64 << 20;

#[doc = include_str!("async_queue.md")]
#[derive(Debug)]
pub struct AsyncQueue {
    // First, so that what is waited for is no longer when it is closed.
    packets: AsyncFd<Source>,
    wake: AsyncFd<StopHandle>,
    /// Set to the next deadline while one is waited for.
    sleep: Pin<Box<Sleep>>,
    queue: Queue,
    /// The buffer of [`AsyncQueue::next_packet`].
    single: Option<Batch>,
    limit: Limit,
}

/// A queue's socket, which stays open and the same for as long as this lives.
#[derive(Debug)]
struct Source(Arc<Binding>);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.socket().as_fd().as_raw_fd()
    }
}

impl AsyncQueue {
    /// Registers a queue with the runtime that this is called in. Whether the queue is in
    /// non-blocking mode makes no difference.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidQueue`] if there is no runtime, [`Error::System`] if it cannot wait for the
    /// queue's descriptors. The queue is closed then.
    ///
    /// # Panics
    ///
    /// If the runtime was made without I/O or without timers
    /// ([`Builder::enable_all`](tokio::runtime::Builder::enable_all) has both).
    #[track_caller]
    pub fn new(queue: Queue) -> Result<Self, Error> {
        if Handle::try_current().is_err() {
            return Err(Error::InvalidQueue(
                "there is no tokio runtime here; call AsyncQueue::new in one of its tasks, or \
                 after Runtime::enter",
            ));
        }
        // Before anything that is not undone by a panic.
        let sleep = Box::pin(sleep(RETRY_AFTER));
        let packets = register(Source(Arc::clone(&queue.binding)))?;
        let wake = register(queue.stop_handle())?;
        let limit = Limit { packets: u64::MAX, bytes: RETAINED_BYTES as u64 };
        Ok(Self { packets, wake, sleep, queue, single: None, limit })
    }

    /// Receives packets into `batch`, as [`Queue::recv`] does: as many as wait and fit. What the
    /// batch held before is committed first.
    ///
    /// Cancel safe: if the future is dropped before it is ready, no packet was received.
    ///
    /// # Errors
    ///
    /// As [`Queue::recv`], but never [`Error::WouldBlock`]; [`Error::System`] also if the runtime
    /// is shutting down.
    pub async fn recv(&mut self, batch: &mut Batch) -> Result<usize, Error> {
        poll_fn(|cx| self.poll_recv(cx, batch)).await
    }

    /// As [`AsyncQueue::recv`], for futures and streams that are written by hand. Of several tasks,
    /// that which polled last is woken.
    ///
    /// # Errors
    ///
    /// As [`AsyncQueue::recv`].
    pub fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch,
    ) -> Poll<Result<usize, Error>> {
        // Whether or not it is this task's turn to receive.
        batch.commit_leftovers()?;
        self.queue.commit_own()?;
        self.poll_receive(cx, batch, Waits::Yes)
    }

    /// Judges packets until a [`StopHandle`] is used, as [`Queue::run`] does in blocking mode:
    /// receives a batch, calls `judge` for each packet, and sends the verdicts.
    ///
    /// Cancel safe: if the future is dropped, every packet that it has received was judged. To go
    /// on, call it again.
    ///
    /// # Errors
    ///
    /// As [`Queue::run`] in blocking mode.
    ///
    /// # Panics
    ///
    /// As [`Queue::run`]: also then each packet gets its verdict.
    pub async fn run<F>(&mut self, mut judge: F) -> Result<(), Error>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        loop {
            match poll_fn(|cx| self.poll_judge(cx, &mut judge, Waits::Yes)).await {
                Error::Stopped => return Ok(()),
                error if is_unsent(&error) && !self.queue.binding.wake().take_stop() => {
                    self.pause().await?;
                }
                error => return Err(error),
            }
        }
    }

    /// Takes the next packet out of the queue, to be judged by any task; waits while as much is
    /// retained as [`AsyncQueue::set_retained_limit`] allows. What was retained in other ways
    /// counts, too.
    ///
    /// Cancel safe: if the future is dropped before it is ready, no packet was taken.
    ///
    /// # Errors
    ///
    /// As [`AsyncQueue::recv`].
    pub async fn next_packet(&mut self) -> Result<RetainedPacket, Error> {
        poll_fn(|cx| self.poll_next_packet(cx)).await
    }

    /// As [`AsyncQueue::next_packet`], for futures and streams that are written by hand. Of several
    /// tasks, that which polled last is woken.
    ///
    /// # Errors
    ///
    /// As [`AsyncQueue::recv`].
    pub fn poll_next_packet(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<RetainedPacket, Error>> {
        self.queue.commit_own()?;
        ready!(self.poll_room(cx))?;
        // One at a time, so that none is left over for which there is no room.
        let mut batch = self.single.take().unwrap_or_else(|| Batch::new(1));
        let result = loop {
            match self.poll_receive(cx, &mut batch, Waits::Yes) {
                Poll::Ready(Ok(_)) => {
                    // It may be one that cannot be read: that has its verdict.
                    if let Some(packet) = batch.iter_mut().next() {
                        break Poll::Ready(Ok(packet.retain().0));
                    }
                }
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.single = Some(batch);
        result
    }

    /// Judges everything that is queued, and lets nothing new in, as [`Queue::drain`] does: for an
    /// end without loss, before [`AsyncQueue::close`].
    ///
    /// Cancel safe as [`AsyncQueue::run`]; the queue stays closed to new packets.
    ///
    /// # Errors
    ///
    /// As [`Queue::drain`].
    ///
    /// # Panics
    ///
    /// As [`Queue::run`].
    pub async fn drain<F>(&mut self, mut judge: F) -> Result<(), Error>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        self.queue.set_max_len(0)?;
        let give_up_at = Instant::now() + GIVE_UP_AFTER;
        loop {
            let error = poll_fn(|cx| self.poll_judge(cx, &mut judge, Waits::No)).await;
            match error {
                Error::Stopped => {}
                Error::WouldBlock if self.queue.retry_at.is_none() => return Ok(()),
                error if is_unsent(&error) || matches!(error, Error::WouldBlock) => {
                    if Instant::now() >= give_up_at {
                        return Err(match error {
                            Error::WouldBlock => {
                                Error::system(Operation::Verdict, "sendmsg")(Errno::ENOBUFS)
                            }
                            error => error,
                        });
                    }
                    self.pause().await?;
                }
                error => return Err(error),
            }
        }
    }

    /// Sets how much may be retained before [`AsyncQueue::next_packet`] waits for some of it to be
    /// judged or dropped: packets, and bytes of the kernel's messages about them (the copied part
    /// of a packet and about 150 bytes more). The last packet may exceed the bytes.
    ///
    /// At first, packets are limited only by what the kernel holds ([`Queue::max_len`]), and bytes
    /// to 64 MiB. A limit of 0 is taken as 1.
    pub fn set_retained_limit(&mut self, packets: usize, bytes: usize) {
        self.limit = Limit { packets: packets.max(1) as u64, bytes: bytes.max(1) as u64 };
    }

    /// As [`Queue::stop_handle`]: ends [`AsyncQueue::run`] and the stream, and makes the other
    /// calls fail with [`Error::Stopped`], once.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        self.queue.stop_handle()
    }

    /// The queue itself, for its counters and settings.
    pub const fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The queue itself, to be reconfigured. Not to be replaced by another one, whose packets would
    /// not be noticed; and [`Queue::recv`] blocks, unless in non-blocking mode.
    pub const fn queue_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Gives the queue back, which the runtime knows no more. No packet is lost.
    pub fn into_inner(self) -> Queue {
        self.queue
    }

    /// As [`Queue::close`].
    ///
    /// # Errors
    ///
    /// As [`Queue::close`].
    pub fn close(self) -> Result<(), Error> {
        self.into_inner().close()
    }

    /// Waits before verdicts are tried again to be sent. By the timer of the queue's own runtime:
    /// who polls may have none.
    async fn pause(&mut self) -> Result<(), Error> {
        self.sleep.as_mut().reset((Instant::now() + RETRY_AFTER).into());
        poll_fn(|cx| {
            // Timers of a runtime that is gone panic.
            if let Poll::Ready(Err(error)) = self.wake.poll_read_ready(cx) {
                return Poll::Ready(Err(unwaitable(error)));
            }
            self.sleep.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Receives and judges until that fails, and returns why. There is no wait between the receipt
    /// of a packet and its verdict.
    fn poll_judge<F>(&mut self, cx: &mut Context<'_>, judge: &mut F, waits: Waits) -> Poll<Error>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        // If the closure panics it is dropped, which gives the rest the default verdict.
        let mut batch = self.queue.take_batch();
        let result = loop {
            match self.poll_receive(cx, &mut batch, waits) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => break Poll::Ready(error),
                Poll::Pending => break Poll::Pending,
            }
            for packet in &mut batch {
                judge(packet);
            }
            if let Err(error) = batch.commit() {
                break Poll::Ready(error);
            }
        };
        // What cannot be sent at all must not stand in the way of all that comes: it is dropped,
        // which leaves it to the next receive.
        if let Poll::Ready(error) = &result
            && !matches!(error, Error::Stopped | Error::WouldBlock)
            && !is_unsent(error)
        {
            return result;
        }
        self.queue.batch = Some(batch);
        result
    }

    /// Receives, or registers the task to be woken for the next packet.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch,
        waits: Waits,
    ) -> Poll<Result<usize, Error>> {
        let progress = ready!(coop::poll_proceed(cx));
        let mut just_now = false;
        loop {
            let patience = match waits {
                Waits::Yes => Patience::Told { just_now },
                Waits::No => Patience::None,
            };
            match self.queue.receive_within(patience, batch) {
                Err(Error::WouldBlock) if waits == Waits::Yes => {}
                result => {
                    progress.made_progress();
                    spend(cx, *result.as_ref().unwrap_or(&0));
                    return Poll::Ready(result);
                }
            }
            ready!(self.poll_packets(cx)).map_err(unwaitable)?;
            just_now = true;
        }
    }

    /// Waits until another packet may be retained, and does meanwhile what is to be done besides
    /// receiving.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            // Not the other way round: it takes away what a packet that is let go has announced.
            self.queue.attend()?;
            if self.queue.binding.retention().has_room(self.limit) {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_wake(cx)).map_err(unwaitable)?;
        }
    }

    /// Waits until there may be something to receive or to do.
    fn poll_packets(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What comes from now on is announced again. What has come is received before the next
        // wait, because the socket counts as drained only after it was asked.
        if let Poll::Ready(readable) = self.packets.poll_read_ready(cx) {
            readable?.clear_ready();
            self.queue.drained = false;
            return Poll::Ready(Ok(()));
        }
        self.poll_wake(cx)
    }

    /// Waits until there may be something to do besides receiving.
    fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(readable) = self.wake.poll_read_ready(cx) {
            readable?.clear_ready();
            self.queue.binding.wake().clear();
            return Poll::Ready(Ok(()));
        }
        // Timers round up, and panic where the clock ends.
        let is_in_range = |at: &Instant| at.checked_add(RETRY_AFTER).is_some();
        let Some(deadline) = self.queue.next_deadline().filter(is_in_range) else {
            return Poll::Pending;
        };
        if self.sleep.deadline().into_std() != deadline {
            self.sleep.as_mut().reset(deadline.into());
        }
        self.sleep.as_mut().poll(cx).map(Ok)
    }
}

/// Ends when a [`StopHandle`] is used; other errors are items, and the stream goes on after them.
impl Stream for AsyncQueue {
    type Item = Result<RetainedPacket, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match ready!(self.poll_next_packet(cx)) {
            Err(Error::Stopped) => Poll::Ready(None),
            result => Poll::Ready(Some(result)),
        }
    }
}

/// Whether to wait for packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    Yes,
    No,
}

/// Uses up a task's budget for packets beyond the first, so that a batch costs as much as the
/// datagrams that it consists of.
fn spend(cx: &mut Context<'_>, packets: usize) {
    for _ in 1..packets {
        if !coop::has_budget_remaining() {
            return;
        }
        if let Poll::Ready(progress) = coop::poll_proceed(cx) {
            progress.made_progress();
        }
    }
}

#[allow(
    deprecated,
    reason = "Safe code cannot call its successor, which wants what is the case here: both \
              descriptors are open and the same for as long as their owners live. Before 1.53.3 it \
              is not deprecated."
)]
fn register<T: AsRawFd>(source: T) -> Result<AsyncFd<T>, Error> {
    AsyncFd::with_interest(source, Interest::READABLE)
        .map_err(Error::system(Operation::Open, "epoll_ctl"))
}

/// Whether the kernel had no memory for verdicts, which are kept.
fn is_unsent(error: &Error) -> bool {
    matches!(error, Error::System { operation: Operation::Verdict, .. })
        && error.is_want_of_memory()
}

fn unwaitable(error: io::Error) -> Error {
    Error::system(Operation::Receive, "epoll_wait")(error)
}
