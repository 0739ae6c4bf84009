//! Two queues and a third descriptor in a plain `poll` loop: filters two UDP ports, as the
//! package's `src/lib.rs` tells.
//!
//! ```text
//! cargo run -p netfilterqueue-event-loops --bin poll -- 7001 7002
//! ```
//!
//! What a loop has to know about a queue:
//!
//! - Wait for two descriptors, those of the queue and of its stop handle: the second also becomes
//!   readable when there is something to do that packets do not announce.
//! - Receive before the first wait, and whenever one of them is readable.
//! - Wait no longer than until [`Queue::next_deadline`].

use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use netfilterqueue::{Batch, Error as QueueError, Queue, StopHandle};
use netfilterqueue_event_loops::{Filter, judge};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

fn main() -> Result<(), Box<dyn Error>> {
    // A signal writes to one end and makes the other readable, as any descriptor of a program may.
    let (signals, written) = UnixStream::pair()?;
    pipe::register(SIGTERM, written.try_clone()?)?;
    pipe::register(SIGINT, written)?;
    let mut filter = Filter::from_arguments()?;
    filter.queues.iter_mut().for_each(|queue| queue.set_nonblocking(true));
    let stops = filter.queues.each_ref().map(Queue::stop_handle);
    let mut batch = Batch::new(64);
    loop {
        for queue in &mut filter.queues {
            receive(queue, &mut batch)?;
        }
        if wait(&filter.queues, &stops, signals.as_fd())? {
            return filter.finish();
        }
    }
}

/// One batch, so that a busy queue does not keep the others waiting: what it leaves is still
/// readable.
fn receive(queue: &mut Queue, batch: &mut Batch) -> Result<(), QueueError> {
    match queue.recv(batch) {
        Ok(_) => {}
        Err(QueueError::WouldBlock) => return Ok(()),
        Err(error) => return Err(error),
    }
    for packet in &mut *batch {
        judge(packet);
    }
    batch.commit()
}

/// Waits until there is something to do for a queue, or a signal has come, which it returns.
fn wait(queues: &[Queue], stops: &[StopHandle], signals: BorrowedFd<'_>) -> Result<bool, Errno> {
    let of_queues = queues.iter().map(AsFd::as_fd).chain(stops.iter().map(AsFd::as_fd));
    let fds = [signals].into_iter().chain(of_queues);
    let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let timeout = match queues.iter().filter_map(Queue::next_deadline).min() {
        // Rounded up: a wait that ends too early only has to begin again.
        Some(at) => {
            let rest = at.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX)
        }
        None => PollTimeout::NONE,
    };
    match poll(&mut fds, timeout) {
        Ok(_) => Ok(fds[0].any().unwrap_or(false)),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}
