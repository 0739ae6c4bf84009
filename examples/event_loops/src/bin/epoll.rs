//! Two queues and a third descriptor in an `epoll` loop: filters two UDP ports, as the package's
//! `src/lib.rs` tells.
//!
//! ```text
//! cargo run -p netfilterqueue-event-loops --bin epoll -- 7001 7002
//! ```
//!
//! Level-triggered, as `epoll` is by default: what a batch leaves in the socket is reported again.
//! `mio.rs` beside this file has it edge-triggered; `poll.rs` tells what a loop has to know about a
//! queue.

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use netfilterqueue::{Batch, Error as QueueError, Queue};
use netfilterqueue_event_loops::{Filter, judge};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// The data of the signals' descriptor; the other two have the place of their queue.
const SIGNAL: u64 = u64::MAX;

fn main() -> Result<(), Box<dyn Error>> {
    let (signals, written) = UnixStream::pair()?;
    pipe::register(SIGTERM, written.try_clone()?)?;
    pipe::register(SIGINT, written)?;
    let mut filter = Filter::from_arguments()?;
    filter.queues.iter_mut().for_each(|queue| queue.set_nonblocking(true));
    let stops = filter.queues.each_ref().map(Queue::stop_handle);

    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let readable = |data| EpollEvent::new(EpollFlags::EPOLLIN, data);
    epoll.add(&signals, readable(SIGNAL))?;
    for (place, (queue, stop)) in (0..).zip(filter.queues.iter().zip(&stops)) {
        epoll.add(queue, readable(place))?;
        epoll.add(stop, readable(place))?;
    }

    let mut batch = Batch::new(64);
    // Before the first wait all of them are received from.
    let mut is_due = [true; 2];
    let mut events = [EpollEvent::empty(); 8];
    loop {
        for (queue, is_due) in filter.queues.iter_mut().zip(is_due) {
            if is_due {
                receive(queue, &mut batch)?;
            }
        }
        let count = match epoll.wait(&mut events, timeout(&filter.queues)) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let now = Instant::now();
        is_due =
            filter.queues.each_ref().map(|queue| queue.next_deadline().is_some_and(|at| at <= now));
        for event in &events[..count] {
            match usize::try_from(event.data()) {
                Ok(place) if place < is_due.len() => is_due[place] = true,
                _ => return filter.finish(),
            }
        }
    }
}

/// One batch, so that a busy queue does not keep the others waiting.
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

/// Until the next deadline, rounded up.
fn timeout(queues: &[Queue]) -> EpollTimeout {
    match queues.iter().filter_map(Queue::next_deadline).min() {
        Some(at) => {
            let rest = at.saturating_duration_since(Instant::now()).as_millis() + 1;
            EpollTimeout::try_from(rest).unwrap_or(EpollTimeout::MAX)
        }
        None => EpollTimeout::NONE,
    }
}
