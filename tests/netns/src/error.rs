//! What can go wrong, and what the host would have to permit.

use std::io;

use nix::errno::Errno;
use thiserror::Error;

/// Why a namespace could not be made or wired up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// `EPERM`: neither privileged nor permitted to become so in a user namespace.
    #[error(
        "{operation} is not permitted; run as root (CAP_SYS_ADMIN and CAP_NET_ADMIN), or let \
         ordinary users have user namespaces: kernel.unprivileged_userns_clone=1 (Debian), \
         user.max_user_namespaces>0, kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); in a \
         container its seccomp profile must permit unshare too"
    )]
    NotPermitted {
        /// What was refused.
        operation: String,
    },
    /// A user namespace can only be entered by a process with a single thread.
    #[error(
        "the process has {threads} threads, and only a process with one can enter a user namespace; \
         do it first thing in main (a test needs harness = false)"
    )]
    SeveralThreads {
        /// How many threads it has.
        threads: usize,
    },
    /// `ENOSPC`: a limit on the number of namespaces is reached.
    #[error(
        "{operation}: no more namespaces; raise user.max_user_namespaces and user.max_net_namespaces"
    )]
    TooMany {
        /// What was refused.
        operation: String,
    },
    /// A system call or a netlink request failed.
    #[error("{operation}: {source}")]
    System {
        /// What was being done, to what.
        operation: String,
        /// Its error.
        source: io::Error,
    },
}

impl Error {
    /// For use with `map_err`: sorts the error of `operation`.
    pub(crate) fn of<E: Into<io::Error>>(operation: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| {
            let source = source.into();
            let operation = operation.into();
            match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EPERM) => Self::NotPermitted { operation },
                Some(Errno::ENOSPC) => Self::TooMany { operation },
                _ => Self::System { operation, source },
            }
        }
    }
}
