//! Queues in the tasks of a tokio runtime (feature `tokio`).
//!
//! [`AsyncQueue`] wraps a bound [`Queue`] and waits for it without blocking a thread. It has three
//! doors, which may be used in turn:
//!
//! - [`AsyncQueue::run`]: a closure that decides at once, as for [`Queue::run`]. The fastest.
//! - [`AsyncQueue::recv`]: a batch in your own hands, as for [`Queue::recv`].
//! - [`AsyncQueue::next_packet`]: one [`RetainedPacket`] after another, for decisions that have to
//!   wait for something else. It is also a [`Stream`].
//!
//! ```no_run
//! use netfilterqueue::tokio::AsyncQueue;
//! use netfilterqueue::{Error, Queue};
//!
//! async fn filter() -> Result<(), Error> {
//!     let mut queue = AsyncQueue::new(Queue::builder(1).bind()?)?;
//!     queue.run(|packet| packet.accept()).await
//! }
//! # let _spawnable = || tokio::spawn(filter());
//! ```
//!
//! # Decisions that have to wait
//!
//! A task for each packet, as for each connection of a server. Any number of them is decided about
//! at the same time and in any order. At most as many are held as
//! [`AsyncQueue::set_retained_limit`] says: then the queue is not received from until one is
//! judged, its other packets wait in the kernel, and what [`QueueBuilder::max_len`] does not let
//! wait is dropped there, or accepted if the queue fails open. A deadline keeps a packet from
//! waiting for ever. What a decision needs must not come through the same queue, such as answers
//! of the server that is asked: it would wait behind the limit.
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//!
//! use netfilterqueue::tokio::AsyncQueue;
//! use netfilterqueue::{Error, Queue, Verdict};
//! # async fn is_wanted(_: &[u8]) -> bool { true }
//!
//! async fn ask_for_each() -> Result<(), Error> {
//!     let mut queue = AsyncQueue::new(Queue::builder(1).max_len(4096).bind()?)?;
//!     queue.set_retained_limit(1000, 16 << 20);
//!     loop {
//!         let mut packet = queue.next_packet().await?;
//!         packet.set_deadline(Some(Instant::now() + Duration::from_secs(1)));
//!         tokio::spawn(async move {
//!             let wanted = is_wanted(packet.payload()).await;
//!             let verdict = if wanted { Verdict::Accept } else { Verdict::Drop };
//!             packet.verdict(verdict).unwrap_or_else(|not_sent| eprintln!("{not_sent}"));
//!         });
//!     }
//! }
//! # let _spawnable = || tokio::spawn(ask_for_each());
//! ```
//!
//! With the crate `futures`, an asynchronous closure in the same task:
//! `queue.try_for_each_concurrent(None, async |packet| …)`. (There is none for a packet that is
//! borrowed from its batch: Rust 1.88 does not find such a future to be `Send`, so that it could
//! not be spawned.)
//!
//! # What becomes of packets when a future is dropped
//!
//! That happens to the branches of `select!` that were not first, and to tasks that are aborted.
//! No packet is lost by it, and none is judged twice:
//!
//! | dropped | what becomes of packets |
//! | --- | --- |
//! | [`recv`](AsyncQueue::recv) | none was received: they are put into the batch in the same moment in which the future is ready. What the batch held before is committed when the future is first polled |
//! | [`next_packet`](AsyncQueue::next_packet), the stream | none was taken: a packet is returned in the same moment in which it is received |
//! | [`run`](AsyncQueue::run), [`drain`](AsyncQueue::drain) | they are received, judged and their verdicts sent without a wait in between. Only verdicts that the kernel had no memory for are kept, and sent by the next call of any kind, or when the queue is dropped |
//! | the future of your own that holds a [`RetainedPacket`] | it gets the default verdict, as always when it is dropped. A task of its own for each packet is not dropped with the one that receives |
//!
//! # Several queues in one task
//!
//! `tokio::select!` over `recv` or `next_packet` of each: the branches that are dropped have taken
//! nothing. [`examples/event_loops/src/bin/tokio.rs`] shows it. A task for each queue is as good,
//! and uses several threads.
//!
//! # The runtime
//!
//! It needs I/O and timers ([`enable_all`], as `#[tokio::main]` has it). Every packet uses up one
//! unit of its task's [budget](tokio::task::coop), which tokio sets to 128: under a flood the other
//! tasks of the same thread go on after so many, and what its last batch holds beyond. A closure
//! that takes long delays them, as any code between two awaits. While other tasks keep the thread,
//! packets wait in the socket's receive buffer and in the kernel's queue, whose sizes say how long
//! that may last.
//!
//! Another runtime or executor may poll the futures here, as long as this one goes on. When it shuts
//! down they fail; one that waits for a deadline at that moment may panic, as tokio's timers do.
//!
//! Deadlines of retained packets pass only while one of the futures here is awaited, and so do the
//! things that [`Queue::next_deadline`] tells of: receiving is what sees to them.
//!
//! Cumulative verdicts need all verdicts of a queue to come from one thread
//! ([`Batch::commit`]). On a multi-threaded runtime a task that has moved to another thread sends
//! exact ones from then on, at a little more cost for the kernel; a runtime of one thread, or a
//! [`LocalSet`], keeps it where it is.
//!
//! Only waiting is asynchronous: sending verdicts and reconfiguring are system calls that the
//! kernel answers at once. (Where it has no memory for verdicts, one may take 50 ms.)
//!
//! [`enable_all`]: tokio::runtime::Builder::enable_all
//! [`LocalSet`]: tokio::task::LocalSet
//! [`QueueBuilder::max_len`]: crate::QueueBuilder::max_len
//! [`examples/event_loops/src/bin/tokio.rs`]: https://github.com/netfilterqueue/netfilterqueue/blob/main/examples/event_loops/src/bin/tokio.rs

use std::future::{Future as _, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use ::tokio::runtime::Handle;
use ::tokio::task::coop;
use ::tokio::time::{Sleep, sleep};
use futures_core::Stream;
use nix::errno::Errno;

use crate::batch::Batch;
use crate::binding::Binding;
use crate::error::{Error, Operation};
use crate::held::Limit;
use crate::packet::{Decided, Packet};
use crate::queue::Queue;
use crate::receive::{Patience, RETRY_AFTER};
use crate::retained::RetainedPacket;
use crate::run::GIVE_UP_AFTER;
use crate::stop::StopHandle;

/// What may be retained before [`AsyncQueue::set_retained_limit`] says something else, in bytes.
const RETAINED_BYTES: usize = 64 << 20;

/// A [`Queue`] whose packets are awaited in a tokio runtime; [the module](self) tells how.
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
                "there is no tokio runtime here; call AsyncQueue::new in one of its tasks, or after Runtime::enter",
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
            if self.queue.binding.held().has_room(self.limit) {
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
