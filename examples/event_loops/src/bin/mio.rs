//! Two queues and a third descriptor in a mio loop: filters two UDP ports, as the package's
//! `src/lib.rs` tells.
//!
//! ```text
//! cargo run -p netfilterqueue-event-loops --bin mio -- 7001 7002
//! ```
//!
//! mio is edge-triggered: it reports a queue once, so that one is received from until nothing
//! waits, and until then counts as due. `poll.rs` beside this file tells what a loop has to know
//! about a queue.

use std::error::Error;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use netfilterqueue::{Batch, Error as QueueError, Queue};
use netfilterqueue_event_loops::{Filter, judge};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// The token of the signals' descriptor; the other two have the place of their queue.
const SIGNAL: Token = Token(usize::MAX);

fn main() -> Result<(), Box<dyn Error>> {
    let (signals, written) = std::os::unix::net::UnixStream::pair()?;
    pipe::register(SIGTERM, written.try_clone()?)?;
    pipe::register(SIGINT, written)?;
    signals.set_nonblocking(true)?;
    let mut signals = UnixStream::from_std(signals);
    let mut filter = Filter::from_arguments()?;
    filter.queues.iter_mut().for_each(|queue| queue.set_nonblocking(true));
    let stops = filter.queues.each_ref().map(Queue::stop_handle);

    let mut poll = Poll::new()?;
    let registry = poll.registry();
    registry.register(&mut signals, SIGNAL, Interest::READABLE)?;
    for (place, (queue, stop)) in filter.queues.iter().zip(&stops).enumerate() {
        for fd in [queue.as_raw_fd(), stop.as_raw_fd()] {
            registry.register(&mut SourceFd(&fd), Token(place), Interest::READABLE)?;
        }
    }

    let mut batch = Batch::new(64);
    let mut events = Events::with_capacity(8);
    // Before the first wait all of them are received from.
    let mut is_due = [true; 2];
    loop {
        for (queue, is_due) in filter.queues.iter_mut().zip(&mut is_due) {
            // A batch each, so that a busy queue does not keep the others waiting.
            *is_due = *is_due && receive(queue, &mut batch)?;
        }
        // As long as one is due, mio only has to tell what is new.
        let timeout = if is_due.contains(&true) {
            Some(Duration::ZERO)
        } else {
            let next = filter.queues.iter().filter_map(Queue::next_deadline).min();
            next.map(|at| at.saturating_duration_since(Instant::now()))
        };
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            // After an interruption there are no events.
            _ => {}
        }
        let now = Instant::now();
        for (queue, is_due) in filter.queues.iter().zip(&mut is_due) {
            *is_due |= queue.next_deadline().is_some_and(|at| at <= now);
        }
        for event in &events {
            match event.token() {
                SIGNAL => return filter.finish(),
                Token(place) => is_due[place] = true,
            }
        }
    }
}

/// Returns whether more may wait.
fn receive(queue: &mut Queue, batch: &mut Batch) -> Result<bool, QueueError> {
    match queue.recv(batch) {
        Ok(_) => {}
        Err(QueueError::WouldBlock) => return Ok(false),
        Err(error) => return Err(error),
    }
    for packet in &mut *batch {
        judge(packet);
    }
    batch.commit()?;
    Ok(true)
}
