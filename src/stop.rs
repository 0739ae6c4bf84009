//! Waking a queue that blocks.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::eventfd::EfdFlags;

use crate::error::{Error, Operation};
use crate::sync::{AtomicBool, AtomicU64, EventFd, Ordering, Shared, fence};

/// Makes a queue's blocked receive return. May be cloned, sent to other threads and used after the
/// queue is gone.
#[derive(Debug, Clone)]
pub struct StopHandle {
    wake: Shared<WakeUp>,
}

impl StopHandle {
    pub(crate) const fn new(wake: Shared<WakeUp>) -> Self {
        Self { wake }
    }

    /// Makes the queue's [`run`](crate::Queue::run) return, or its next
    /// [`recv`](crate::Queue::recv) fail with [`Error::Stopped`], once. A batch in progress is
    /// finished first; if the kernel has no memory for its verdicts, `run` says so instead.
    ///
    /// It stores a flag and writes to an eventfd, both of which are safe in a signal handler (which
    /// should preserve `errno`, as always).
    pub fn stop(&self) {
        // As cheap as a store; loom has a store overtaken by the swap that it comes after.
        self.wake.stop_requested.swap(true, Ordering::SeqCst);
        self.wake.wake();
    }
}

/// For event loops that wait for the queue's descriptor themselves: wait for this one too, and call
/// [`Queue::recv`](crate::Queue::recv) when either is readable. It becomes readable when the queue
/// is told to stop, and when it has something else to do that packets do not announce.
impl AsFd for StopHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.event.as_fd()
    }
}

/// As the one of [`AsFd`].
impl AsRawFd for StopHandle {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// What a queue waits for besides packets.
#[derive(Debug)]
pub(crate) struct WakeUp {
    stop_requested: AtomicBool,
    /// Whether a stop has ended the present run.
    stop_taken: AtomicBool,
    /// Whether the queues that run together with this one have ended.
    is_ending: AtomicBool,
    /// How many writes to the event are not read yet, or just about to be made: while there are
    /// none, it need not be asked.
    announced: AtomicU64,
    event: EventFd,
}

impl WakeUp {
    pub(crate) fn new() -> Result<Self, Error> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event =
            EventFd::from_flags(flags).map_err(Error::system(Operation::Open, "eventfd"))?;
        let [stop_requested, stop_taken, is_ending] = [false; 3].map(AtomicBool::new);
        let announced = AtomicU64::new(0);
        Ok(Self { stop_requested, stop_taken, is_ending, announced, event })
    }

    /// Ends the queue's present wait, or its next one.
    pub(crate) fn wake(&self) {
        // Not after it: whoever is woken by the event must know that it is to be read, or would be
        // woken by it again and again.
        self.announced.fetch_add(1, Ordering::SeqCst);
        // It fails only if the counter is full, and then the queue is awake anyway.
        let _ = self.event.write(1);
    }

    /// Whether anyone has a handle that can wake this queue, or something to say before it is gone
    /// that is not visible yet.
    pub(crate) fn has_handles(this: &Shared<Self>) -> bool {
        let has_handles = Shared::strong_count(this) > 1;
        // The count is read relaxed; together with this, what those did who are gone comes before.
        fence(Ordering::Acquire);
        has_handles
    }

    /// Whether no event is there to be read, and none is thought to be.
    #[cfg(all(test, loom))]
    pub(crate) fn is_at_rest(&self) -> bool {
        self.announced.load(Ordering::SeqCst) == 0 && !self.event.is_readable()
    }

    /// The descriptor to wait for.
    pub(crate) const fn event(&self) -> &EventFd {
        &self.event
    }

    /// To be called before looking at what there is to do: so that what comes in between ends the
    /// next wait.
    pub(crate) fn reset(&self) {
        if self.announced.load(Ordering::SeqCst) > 0 {
            self.clear();
        }
    }

    /// As [`WakeUp::reset`], where the event is known to be readable. A process that was forked off
    /// may have written to it, and has announced that to itself only.
    pub(crate) fn clear(&self) {
        if let Ok(writes) = self.event.read() {
            let without = |announced: u64| Some(announced.saturating_sub(writes));
            let _ = self.announced.fetch_update(Ordering::SeqCst, Ordering::SeqCst, without);
        }
    }

    /// For queues that run together: they begin, and none of them has ended yet.
    pub(crate) fn begin(&self) {
        self.stop_taken.store(false, Ordering::SeqCst);
        self.is_ending.store(false, Ordering::SeqCst);
    }

    /// Ends the queue's run, because another one has ended that runs together with it.
    pub(crate) fn end(&self) {
        self.is_ending.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Asks again for a stop that has ended the present run, if one has: the run ends with
    /// something else to tell.
    pub(crate) fn put_stop_back(&self) {
        if self.stop_taken.swap(false, Ordering::SeqCst) {
            self.stop_requested.store(true, Ordering::SeqCst);
            self.wake();
        }
    }

    /// Whether the queue's run is to end, by a stop since the last call or because others have
    /// ended.
    pub(crate) fn take_stop(&self) -> bool {
        if self.stop_requested.swap(false, Ordering::SeqCst) {
            self.stop_taken.store(true, Ordering::SeqCst);
            return true;
        }
        self.is_ending.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_event_stays_behind_however_wake_ups_interleave() {
        let wake = WakeUp::new().expect("an event");
        // Two threads are about to write, and one of them is faster.
        wake.announced.fetch_add(2, Ordering::SeqCst);
        wake.reset();
        for _ in 0..2 {
            wake.event.write(1).expect("written");
            wake.reset();
            assert!(wake.event.read().is_err(), "it would wake the queue again and again");
        }
        assert_eq!(wake.announced.load(Ordering::SeqCst), 0, "and need not be asked any more");
    }
}
