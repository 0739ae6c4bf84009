//! Waking a queue that blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, Operation};

/// Makes a queue's blocked receive return. May be cloned, sent to other threads and used after the queue
/// is gone.
#[derive(Debug, Clone)]
pub struct StopHandle {
    wake: Arc<WakeUp>,
}

impl StopHandle {
    pub(crate) const fn new(wake: Arc<WakeUp>) -> Self {
        Self { wake }
    }

    /// Makes the queue's [`run`](crate::Queue::run) return, or its next [`recv`](crate::Queue::recv) fail
    /// with [`Error::Stopped`], once. A batch in progress is finished first. A program that waits for the
    /// queue's descriptor itself has to wake itself as well.
    ///
    /// It stores a flag and writes to an eventfd, both of which are safe in a signal handler (which should
    /// preserve `errno`, as always).
    pub fn stop(&self) {
        self.wake.stop_requested.store(true, Ordering::SeqCst);
        self.wake.wake();
    }
}

/// What a queue waits for besides packets.
#[derive(Debug)]
pub(crate) struct WakeUp {
    stop_requested: AtomicBool,
    event: EventFd,
}

impl WakeUp {
    pub(crate) fn new() -> Result<Self, Error> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event =
            EventFd::from_flags(flags).map_err(Error::system(Operation::Open, "eventfd"))?;
        Ok(Self { stop_requested: AtomicBool::new(false), event })
    }

    /// Ends the queue's present wait, or its next one.
    pub(crate) fn wake(&self) {
        // It fails only if the counter is full, and then the queue is awake anyway.
        let _ = self.event.write(1);
    }

    /// The descriptor to wait for.
    pub(crate) const fn event(&self) -> &EventFd {
        &self.event
    }

    /// To be called after a wait that it ended, before looking at what it was ended for: so that what comes
    /// in between ends the next wait.
    pub(crate) fn reset(&self) {
        let _ = self.event.read();
    }

    /// Whether a stop was requested since the last call.
    pub(crate) fn take_stop(&self) -> bool {
        self.stop_requested.swap(false, Ordering::SeqCst)
    }
}
