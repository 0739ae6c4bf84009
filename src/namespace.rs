//! Other network namespaces.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::{panic, thread};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use crate::error::{Error, Operation};

/// A network namespace: to bind queues and install rules elsewhere than in the calling thread's
/// own.
///
/// ```no_run
/// use netfilterqueue::rules::{Hook, Rule, Rules};
/// use netfilterqueue::{Namespace, Queue};
///
/// let namespace = Namespace::named("blue")?;
/// let mut queue = namespace.run(|| Queue::builder(1).bind())??;
/// let rules = namespace.run(|| Rules::new(Hook::FORWARD).rule(Rule::queue(1)).install())??;
/// queue.run(|packet| packet.accept())?;
/// # drop(rules);
/// # Ok::<(), netfilterqueue::Error>(())
/// ```
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    /// The namespace of a file such as `/run/netns/blue` or `/proc/1234/ns/net`.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the file cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(named);
        let file = file.map_err(Error::system(Operation::Namespace, "open"))?;
        Ok(Self { fd: file.into() })
    }

    /// The namespace that `ip netns add` has given this name: `/run/netns/NAME`.
    ///
    /// # Errors
    ///
    /// As [`Namespace::open`]; `InvalidInput` for a path instead of a name.
    pub fn named(name: impl AsRef<OsStr>) -> Result<Self, Error> {
        let name = Path::new(name.as_ref());
        if name.file_name() != Some(name.as_os_str()) {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "not a name");
            return Err(Error::system(Operation::Namespace, "open")(error));
        }
        Self::open(Path::new("/run/netns").join(name))
    }

    /// The namespace of a running process.
    ///
    /// # Errors
    ///
    /// As [`Namespace::open`]; `PermissionDenied` for a process that the caller may not trace.
    pub fn of_process(process: u32) -> Result<Self, Error> {
        Self::open(format!("/proc/{process}/ns/net"))
    }

    /// Runs `work` in the namespace, on a thread of its own that ends with it: the calling thread
    /// stays where it is. What `work` opens there keeps belonging to that namespace.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the namespace cannot be entered: that needs `CAP_SYS_ADMIN` in the user
    /// namespace that owns it, and in the caller's (`PermissionDenied`); `InvalidInput` if it is no
    /// network namespace. Also if the system has no thread left.
    ///
    /// # Panics
    ///
    /// If `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let enter_and_work = || {
            setns(&self.fd, CloneFlags::CLONE_NEWNET)
                .map_err(explained)
                .map_err(Error::system(Operation::Namespace, "setns"))?;
            Ok(work())
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new()
                .spawn_scoped(scope, enter_and_work)
                .map_err(Error::system(Operation::Namespace, "clone"))?;
            thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }
}

/// Says what is wrong where the number does not.
fn explained(errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    match errno {
        Errno::EINVAL => io::Error::new(error.kind(), "this is no network namespace (EINVAL)"),
        Errno::EPERM => io::Error::new(error.kind(), "this needs CAP_SYS_ADMIN (EPERM)"),
        _ => error,
    }
}

/// A descriptor of a namespace, such as one that was passed over a Unix socket.
impl From<OwnedFd> for Namespace {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
