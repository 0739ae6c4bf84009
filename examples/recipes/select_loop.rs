use std::error::Error;
use std::os::fd::AsFd;
use std::time::Instant;

use netfilterqueue::{Batch, Decided, Error as QueueError, Packet, Queue, StopHandle};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Judges the packets of several queues in one thread until one of them is told to stop. A program
/// waits for its other descriptors in the same place.
pub fn select_loop<F>(queues: &mut [Queue], mut judge: F) -> Result<(), Box<dyn Error>>
where
    F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
{
    let stops: Vec<StopHandle> = queues.iter().map(Queue::stop_handle).collect();
    queues.iter_mut().for_each(|queue| queue.set_nonblocking(true));
    let mut batch = Batch::new(64);
    loop {
        for queue in &mut *queues {
            // A batch each, so that a busy queue does not keep the others waiting.
            match queue.recv(&mut batch) {
                Ok(_) => {}
                Err(QueueError::WouldBlock) => continue,
                Err(QueueError::Stopped) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            for packet in &mut batch {
                judge(packet);
            }
            batch.commit()?;
        }
        wait(queues, &stops)?;
    }
}

/// Returns when a packet waits, a queue is told to stop, or the deadline of a retained packet
/// passes.
fn wait(queues: &[Queue], stops: &[StopHandle]) -> Result<(), Errno> {
    let queue_fds = queues.iter().map(AsFd::as_fd);
    let fds = queue_fds.chain(stops.iter().map(AsFd::as_fd));
    let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let timeout = match queues.iter().filter_map(Queue::next_deadline).min() {
        Some(deadline) => {
            let rest = deadline.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX)
        }
        None => PollTimeout::NONE,
    };
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
