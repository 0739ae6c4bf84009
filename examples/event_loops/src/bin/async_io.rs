//! Two queues in two futures of one thread with async-io (smol): filters two UDP ports, as the
//! package's `src/lib.rs` tells.
//!
//! ```text
//! cargo run -p netfilterqueue-event-loops --bin async_io -- 7001 7002
//! ```
//!
//! A signal stops both queues through their stop handles. `poll.rs` beside this file tells what a
//! loop has to know about a queue.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use async_io::{Async, Timer, block_on};
use futures_lite::AsyncReadExt;
use futures_lite::future::{or, try_zip, yield_now};
use netfilterqueue::{Batch, Error as QueueError, Queue, StopHandle};
use netfilterqueue_event_loops::{Filter, finish, judge};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

fn main() -> Result<(), Box<dyn Error>> {
    let (signals, written) = UnixStream::pair()?;
    pipe::register(SIGTERM, written.try_clone()?)?;
    pipe::register(SIGINT, written)?;
    let (queues, rules) = Filter::from_arguments()?.into_parts();
    let stops = queues.each_ref().map(Queue::stop_handle);
    let [one, other] = queues;
    let stopping = async {
        Async::new(signals)?.read_exact(&mut [0]).await?;
        stops.iter().for_each(StopHandle::stop);
        Ok(())
    };
    // Ends when all three have, or one has failed.
    let judging = try_zip(run(one), run(other));
    let ((), (one, other)) = block_on(try_zip(stopping, judging))?;
    finish([one, other], rules)
}

/// Judges the packets of a queue until it is told to stop, and gives it back.
async fn run(mut queue: Queue) -> Result<Queue, Box<dyn Error>> {
    queue.set_nonblocking(true);
    let packets = descriptor(&queue)?;
    let wake = descriptor(&queue.stop_handle())?;
    let mut batch = Batch::new(64);
    loop {
        match queue.recv(&mut batch) {
            Ok(_) => {
                for packet in &mut batch {
                    judge(packet);
                }
                batch.commit()?;
                // Also under a flood the other futures have their turn.
                yield_now().await;
            }
            Err(QueueError::WouldBlock) => {
                let deadline = async {
                    queue.next_deadline().map_or_else(Timer::never, Timer::at).await;
                    Ok(())
                };
                or(or(packets.readable(), wake.readable()), deadline).await?;
            }
            Err(QueueError::Stopped) => return Ok(queue),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A duplicate of the descriptor, because the queue itself must stay free to receive. It is the
/// same socket, which async-io puts into non-blocking mode; the library does not mind.
fn descriptor(source: &impl AsFd) -> io::Result<Async<OwnedFd>> {
    Async::new(source.as_fd().try_clone_to_owned()?)
}
