//! What threads share is built of these: the standard library's atomics and locks, or, under
//! `--cfg loom`, those of loom, which runs a test through every order in which its threads can go
//! on (`interleavings`). `Shared` is `Arc`, by another name because what is never under loom uses
//! the standard library's, whose `Weak` loom lacks.

#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
#[cfg(all(test, loom))]
pub(crate) use loom::sync::{Arc as Shared, Mutex, MutexGuard};
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::{Arc as Shared, Mutex, MutexGuard};

#[cfg(all(test, loom))]
pub(crate) use eventfd::EventFd;
#[cfg(not(all(test, loom)))]
pub(crate) use nix::sys::eventfd::EventFd;

pub(crate) use threads::this_thread;

mod threads {
    // Not of loom: it is the same in whatever order threads come.
    use std::sync::atomic::{AtomicU64, Ordering};

    #[cfg(all(test, loom))]
    use loom::thread_local;

    /// The number of this thread: not 0, and no other thread's in the life of the process.
    pub(crate) fn this_thread() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        thread_local! {
            static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        // Without a number, a thread that is ending is taken for one more.
        NUMBER.try_with(|number| *number).unwrap_or(u64::MAX)
    }
}

/// The kernel's eventfd as loom can see it.
#[cfg(all(test, loom))]
mod eventfd {
    use std::os::fd::{AsFd, BorrowedFd};

    use nix::errno::Errno;
    use nix::sys::eventfd::EfdFlags;

    use super::Mutex;

    #[derive(Debug)]
    pub(crate) struct EventFd(Mutex<u64>);

    impl EventFd {
        #[expect(clippy::unnecessary_wraps, reason = "as that of nix")]
        pub(crate) fn from_flags(_: EfdFlags) -> nix::Result<Self> {
            Ok(Self(Mutex::new(0)))
        }

        pub(crate) fn write(&self, value: u64) -> nix::Result<usize> {
            *self.0.lock().expect("no panic elsewhere") += value;
            Ok(size_of::<u64>())
        }

        pub(crate) fn read(&self) -> nix::Result<u64> {
            match std::mem::take(&mut *self.0.lock().expect("no panic elsewhere")) {
                0 => Err(Errno::EAGAIN),
                value => Ok(value),
            }
        }

        /// Whether `poll` would return for it.
        pub(crate) fn is_readable(&self) -> bool {
            *self.0.lock().expect("no panic elsewhere") > 0
        }
    }

    impl AsFd for EventFd {
        fn as_fd(&self) -> BorrowedFd<'_> {
            unreachable!("no test under loom waits by system calls")
        }
    }
}
