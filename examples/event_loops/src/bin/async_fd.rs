//! Two queues in one tokio task by `AsyncFd` and the public API alone, without this crate's feature
//! `tokio`: filters two UDP ports, as the package's `src/lib.rs` tells.
//!
//! ```text
//! cargo run -p netfilterqueue-event-loops --bin async_fd -- 7001 7002
//! ```
//!
//! For programs that want to see every step; `tokio.rs` beside this file does the same with the
//! feature. `poll.rs` tells what a loop has to know about a queue.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use netfilterqueue::{Batch, Error as QueueError, Queue, StopHandle};
use netfilterqueue_event_loops::{Filter, judge};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut filter = Filter::from_arguments()?;
    filter.queues.iter_mut().for_each(|queue| queue.set_nonblocking(true));
    let [one, other] = &mut filter.queues;
    let (mut one, mut other) = (Receiver::new(one)?, Receiver::new(other)?);
    let (mut batch, mut other_batch) = (Batch::new(64), Batch::new(64));
    loop {
        let ready = tokio::select! {
            result = one.receive(&mut batch) => { result?; &mut batch }
            result = other.receive(&mut other_batch) => { result?; &mut other_batch }
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
        };
        for packet in &mut *ready {
            judge(packet);
        }
        ready.commit()?;
    }
    filter.finish()
}

/// A queue with its two descriptors in the runtime.
struct Receiver<'a> {
    queue: &'a mut Queue,
    /// A duplicate, because the queue itself must stay free to receive.
    packets: AsyncFd<OwnedFd>,
    wake: AsyncFd<StopHandle>,
}

impl<'a> Receiver<'a> {
    fn new(queue: &'a mut Queue) -> io::Result<Self> {
        let packets = register(queue.as_fd().try_clone_to_owned()?)?;
        let wake = register(queue.stop_handle())?;
        Ok(Self { queue, packets, wake })
    }

    /// Receives a batch. If it is dropped before, nothing was received: there is no await between
    /// the receipt and the return.
    async fn receive(&mut self, batch: &mut Batch) -> Result<usize, Box<dyn Error>> {
        // Without it, a queue that is never empty would keep the thread for itself.
        consume_budget().await;
        loop {
            match self.queue.recv(batch) {
                Err(QueueError::WouldBlock) => {}
                result => return Ok(result?),
            }
            // What becomes readable after it was cleared is announced again, and what was before
            // is received by the next turn.
            tokio::select! {
                readable = self.packets.readable() => readable?.clear_ready(),
                readable = self.wake.readable() => readable?.clear_ready(),
                () = deadline(self.queue) => {}
            }
        }
    }
}

/// Waits for the next deadline, if there is one.
async fn deadline(queue: &Queue) {
    match queue.next_deadline() {
        Some(at) => sleep_until(Instant::from_std(at)).await,
        None => std::future::pending().await,
    }
}

/// `AsyncFd::register_with_interest` is the same, and `unsafe`, so that whoever calls it makes sure
/// that the descriptor stays open: here their owners are handed over.
#[allow(deprecated, reason = "this package has no unsafe code")]
fn register<T: AsRawFd>(source: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(source, Interest::READABLE)
}
