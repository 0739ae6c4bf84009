//! A network namespace held by a descriptor, and what tests do to it.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use crate::error::Error;
use crate::rtnetlink::{self, Message};
use crate::user::write;

/// Settings of IPv6 that would send packets of their own accord or keep addresses unusable at first.
const QUIET_IPV6: [&str; 3] = ["accept_dad", "accept_ra", "router_solicitations"];

/// How long a pair of links may take to become ready.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(5);

/// A network namespace. It lives at least as long as this handle.
///
/// Its methods work in a helper thread: the caller stays where it is. Links are named as they are
/// called inside.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    /// Makes a network namespace with loopback up: 127.0.0.1/8 and `::1/128`. IPv6 duplicate address
    /// detection and router advertisements are off where the host lets us turn them off.
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

    /// Moves the calling thread in, for good. Sockets it opened before stay where they were.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] without `CAP_SYS_ADMIN` in this namespace's user namespace and in the
    /// caller's.
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

    /// Joins two namespaces by a pair of virtual Ethernet links, both up and ready to send: `name`
    /// here, `other_name` in `other`, which may be the same namespace.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `EEXIST` if a name is taken, `EOPNOTSUPP` if the kernel has no veth.
    pub fn veth(&self, name: &str, other: &Self, other_name: &str) -> Result<(), Error> {
        let operation = format!("making the veth pair {name} and {other_name}");
        self.request(operation, rtnetlink::CREATE, || {
            Ok(rtnetlink::veth(name, &other.fd, other_name))
        })?;
        self.set_link(name, true)?;
        other.set_link(other_name, true)?;
        // The kernel turns the carrier on in the background, and drops packets until then.
        self.wait_until_up(name)?;
        other.wait_until_up(other_name)
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

    /// Makes it a router for IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if `/proc/sys` is read-only, as it is in most containers.
    pub fn set_forwarding(&self) -> Result<(), Error> {
        self.try_run(|| {
            write("/proc/sys/net/ipv4/ip_forward", "1")?;
            write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })?
    }

    /// The index of a link, as packets carry it.
    ///
    /// # Errors
    ///
    /// [`Error::System`] with `ENODEV` without such a link.
    pub fn link_index(&self, name: &str) -> Result<u32, Error> {
        self.run(|| rtnetlink::index(name))
            .map_err(Error::of(format!("looking for the link {name}")))
    }

    /// Turns a link on or off.
    ///
    /// # Errors
    ///
    /// [`Error::System`] with `ENODEV` without such a link.
    pub fn set_link(&self, name: &str, up: bool) -> Result<(), Error> {
        let operation = format!("setting the link {name} {}", if up { "up" } else { "down" });
        self.request(operation, 0, || Ok(rtnetlink::link_up(rtnetlink::index(name)?, up)))
    }

    /// Sets the longest packet a link takes, in bytes without the Ethernet header.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `ENODEV` without such a link, `EINVAL` outside of what it can do.
    pub fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), Error> {
        let operation = format!("setting the MTU of {name} to {mtu}");
        self.request(operation, 0, || Ok(rtnetlink::mtu(rtnetlink::index(name)?, mtu)))
    }

    fn try_run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        in_thread(|| self.enter().map(|()| work()))
    }

    fn request<F>(&self, operation: String, flags: u16, message: F) -> Result<(), Error>
    where
        F: FnOnce() -> io::Result<Message> + Send,
    {
        self.try_run(|| rtnetlink::request(message()?, flags))?.map_err(Error::of(operation))
    }

    fn wait_until_up(&self, name: &str) -> Result<(), Error> {
        let waiting = || {
            let started = Instant::now();
            while !rtnetlink::is_ready(name)? {
                if started.elapsed() > CARRIER_TIMEOUT {
                    return Err(io::Error::from(io::ErrorKind::TimedOut));
                }
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        };
        self.try_run(waiting)?.map_err(Error::of(format!("waiting for the link {name}")))
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

fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| resume_unwind(panic))
}
