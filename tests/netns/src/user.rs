//! The privileges to make network namespaces: had already, or got by a user namespace.

use std::fs;
use std::process;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use crate::error::Error;
use crate::namespace;

// linux/capability.h
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// Moves the process into a network namespace of its own, and into a user namespace if it needs
/// that for it; there it is root. Loopback is up.
///
/// For programs with one thread that want nothing else, such as examples.
///
/// # Errors
///
/// As [`enter_user_namespace`].
pub fn enter_private() -> Result<(), Error> {
    enter_user_namespace()?;
    namespace::unshare_network()
}

/// Makes the process root in a user namespace of its own, unless it has `CAP_SYS_ADMIN` and
/// `CAP_NET_ADMIN` already. From then on any thread can make and enter network namespaces.
///
/// The caller's user and group are mapped to 0; it can no longer use its other groups, nor files of
/// other users.
///
/// # Errors
///
/// - [`Error::SeveralThreads`]: this must happen before the first thread is started.
/// - [`Error::NotPermitted`], [`Error::TooMany`]: the host does not let ordinary users do it.
/// - [`Error::System`]: it failed otherwise, `/proc` is not mounted for one.
pub fn enter_user_namespace() -> Result<(), Error> {
    if is_privileged()? {
        return Ok(());
    }
    let threads = fs::read_dir("/proc/self/task").map_err(Error::of("counting threads"))?.count();
    if threads != 1 {
        return Err(Error::SeveralThreads { threads });
    }
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(Error::of("unshare(CLONE_NEWUSER)"))?;
    // Without giving up setgroups the kernel accepts no group map from an ordinary user.
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("0 {user} 1"))?;
    write("/proc/self/gid_map", &format!("0 {group} 1"))
}

fn is_privileged() -> Result<bool, Error> {
    let path = format!("/proc/{}/status", process::id());
    let status = fs::read_to_string(&path).map_err(Error::of(format!("reading {path}")))?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let wanted = (1 << CAP_NET_ADMIN) | (1 << CAP_SYS_ADMIN);
    Ok(effective & wanted == wanted)
}

pub(crate) fn write(path: &str, value: &str) -> Result<(), Error> {
    fs::write(path, value).map_err(Error::of(format!("writing {value:?} to {path}")))
}
