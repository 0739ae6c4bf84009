//! A network namespace held by a descriptor, and what tests do to it.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::{Component, Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use crate::error::Error;
use crate::rtnetlink::{self, Message};
use crate::user::write;

/// Settings of IPv6 that would send packets of their own accord or keep addresses unusable at
/// first.
const QUIET_IPV6: [&str; 3] = ["accept_dad", "accept_ra", "router_solicitations"];

/// A network namespace. It lives at least as long as this handle.
///
/// Its methods work in a helper thread: the caller stays where it is. Links are named as they are
/// called inside.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    /// Makes a network namespace with loopback up: 127.0.0.1/8 and `::1/128`. IPv6 duplicate
    /// address detection and router advertisements are off where the host lets us turn them off.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] without the privileges that
    /// [`enter_user_namespace`](crate::enter_user_namespace) gets, [`Error::TooMany`] at the host's
    /// limit, [`Error::System`] otherwise.
    pub fn new() -> Result<Self, Error> {
        in_thread(|| {
            unshare_network()?;
            Self::current()
        })
    }

    /// The network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        let path = "/proc/thread-self/ns/net";
        let file = File::open(path).map_err(Error::of(format!("opening {path}")))?;
        Ok(Self { fd: file.into() })
    }

    /// A path that opens as this namespace, in this process and while this handle lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd()).into()
    }

    /// Moves the calling thread in, for good. Sockets it opened before stay where they were.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] without `CAP_SYS_ADMIN` in this namespace's user namespace and in
    /// the caller's.
    pub fn enter(&self) -> Result<(), Error> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(Error::of("setns(CLONE_NEWNET)"))
    }

    /// Runs `work` in a thread inside, waits for it and hands on its value, or its panic.
    ///
    /// # Panics
    ///
    /// If the thread cannot enter, because the process gave up the privileges it made the namespace
    /// with.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self.try_run(work) {
            Ok(value) => value,
            Err(error) => panic!("cannot enter the namespace: {error}"),
        }
    }

    /// Gives a link an address. Usable at once: no duplicate address detection.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `ENODEV` without such a link, `EEXIST` if it has the address.
    pub fn add_address(&self, name: &str, address: IpAddr, prefix: u8) -> Result<(), Error> {
        let operation = format!("adding {address}/{prefix} to {name}");
        self.request(operation, rtnetlink::CREATE, || {
            Ok(rtnetlink::address(rtnetlink::index(name)?, address, prefix))
        })
    }

    /// Sends packets for `destination`/`prefix` to the gateway `via`, which must be on a link.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `ENETUNREACH` if the gateway is on no link, `EINVAL` if bits behind the
    /// prefix are set.
    pub fn add_route(&self, destination: IpAddr, prefix: u8, via: IpAddr) -> Result<(), Error> {
        let operation = format!("adding the route to {destination}/{prefix} via {via}");
        self.request(operation, rtnetlink::CREATE, || {
            Ok(rtnetlink::route(destination, prefix, via))
        })
    }

    /// Sends everything that has no other route to the gateway `via`.
    ///
    /// # Errors
    ///
    /// As [`add_route`](Self::add_route).
    pub fn add_default_route(&self, via: IpAddr) -> Result<(), Error> {
        let everywhere = match via {
            IpAddr::V4(_) => IpAddr::from([0; 4]),
            IpAddr::V6(_) => IpAddr::from([0; 16]),
        };
        self.add_route(everywhere, 0, via)
    }

    /// Tells a link once and for all which Ethernet address an IP address has, so that it never
    /// asks by ARP or neighbor discovery.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `ENODEV` without such a link, `EEXIST` if it knows the neighbor.
    pub fn add_neighbor(
        &self,
        name: &str,
        address: IpAddr,
        ethernet: [u8; 6],
    ) -> Result<(), Error> {
        let operation = format!("adding the neighbor {address} to {name}");
        self.request(operation, rtnetlink::CREATE, || {
            Ok(rtnetlink::neighbor(rtnetlink::index(name)?, address, ethernet))
        })
    }

    /// Makes it a router for IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if `/proc/sys` is read-only, as it is in most containers.
    pub fn set_forwarding(&self) -> Result<(), Error> {
        self.set_sysctl("net/ipv4/ip_forward", "1")?;
        self.set_sysctl("net/ipv6/conf/all/forwarding", "1")
    }

    /// Changes a setting of the namespace, named by its path in `/proc/sys`:
    /// `net/bridge/bridge-nf-call-iptables`.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `ENOENT` if there is none of this name or it is the host's, `EROFS` if
    /// `/proc/sys` is read-only, as it is in most containers, `InvalidInput` if it is not in `net`,
    /// where the settings of namespaces are.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<(), Error> {
        let path = sysctl_path(name)?;
        self.try_run(|| write(&path, value))?
    }

    /// What a setting is, without the end of the line; named as for
    /// [`set_sysctl`](Self::set_sysctl).
    ///
    /// # Errors
    ///
    /// As [`set_sysctl`](Self::set_sysctl).
    pub fn sysctl(&self, name: &str) -> Result<String, Error> {
        let path = sysctl_path(name)?;
        let value = self.try_run(|| fs::read_to_string(&path))?;
        let value = value.map_err(Error::of(format!("reading {path}")))?;
        Ok(value.trim_end().to_owned())
    }

    pub(crate) fn try_run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        in_thread(|| self.enter().map(|()| work()))
    }

    /// Asks rtnetlink for a change; `message` is made inside, where links have their indexes.
    pub(crate) fn request<F>(&self, operation: String, flags: u16, message: F) -> Result<(), Error>
    where
        F: FnOnce() -> io::Result<Message> + Send,
    {
        self.try_run(|| rtnetlink::request(message()?, flags))?.map_err(Error::of(operation))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Moves the calling thread into a new network namespace and sets that up.
pub(crate) fn unshare_network() -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(Error::of("unshare(CLONE_NEWNET)"))?;
    for links in ["all", "default"] {
        for setting in QUIET_IPV6 {
            // Only a wish: a host without IPv6, or a container, has nothing to write to.
            let _ = write(&format!("/proc/sys/net/ipv6/conf/{links}/{setting}"), "0");
        }
    }
    rtnetlink::index("lo")
        .and_then(|lo| rtnetlink::request(rtnetlink::link_up(lo, true), 0))
        .map_err(Error::of("setting up the loopback link"))
}

/// Refuses names that lead to the settings of the whole host.
fn sysctl_path(name: &str) -> Result<String, Error> {
    let is_inside = name.starts_with("net/")
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if is_inside {
        return Ok(format!("/proc/sys/{name}"));
    }
    let error = io::Error::new(io::ErrorKind::InvalidInput, "a namespace has those in net/ only");
    Err(Error::of(format!("finding the setting {name:?}"))(error))
}

fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| resume_unwind(panic))
}
