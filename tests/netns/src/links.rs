//! The links of a namespace: made, joined, changed, looked at and deleted, as `ip link` does it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::namespace::Namespace;
use crate::rtnetlink::{self, CREATE};

/// How long a link may take to become ready.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(5);

impl Namespace {
    /// Joins two namespaces by a pair of virtual Ethernet links, both up and ready to send: `name`
    /// here, `other_name` in `other`, which may be the same namespace.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `EEXIST` if a name is taken, `EOPNOTSUPP` if the kernel has no veth.
    pub fn veth(&self, name: &str, other: &Self, other_name: &str) -> Result<(), Error> {
        let operation = format!("making the veth pair {name} and {other_name}");
        self.request(operation, CREATE, || Ok(rtnetlink::veth(name, &other.as_fd(), other_name)))?;
        self.set_link(name, true)?;
        other.set_link(other_name, true)?;
        // The kernel turns the carrier on in the background, and drops packets until then.
        self.wait_until_up(name)?;
        other.wait_until_up(other_name)
    }

    /// Makes a bridge, without the spanning tree protocol, and turns it on. Without ports it cannot
    /// send.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `EEXIST` if the name is taken, `EOPNOTSUPP` if the kernel has no bridges.
    pub fn bridge(&self, name: &str) -> Result<(), Error> {
        self.request(format!("making the bridge {name}"), CREATE, || Ok(rtnetlink::bridge(name)))?;
        self.set_link(name, true)
    }

    /// Makes a link a port of a bridge, both of them on; it leaves the one it may be a port of.
    /// Returns when they can forward.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `ENODEV` without such links, `EOPNOTSUPP` if `bridge` is none, `TimedOut`
    /// if one of them is off.
    pub fn set_master(&self, name: &str, bridge: &str) -> Result<(), Error> {
        self.request(format!("making {name} a port of {bridge}"), 0, || {
            Ok(rtnetlink::master(rtnetlink::index(name)?, rtnetlink::index(bridge)?))
        })?;
        self.wait_until_up(name)?;
        // The first port gives the bridge its carrier.
        self.wait_until_up(bridge)
    }

    /// Makes a link that sends and receives what has the 802.1Q tag `id` on the link `parent`,
    /// which must be on.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `ENODEV` without the parent, `EEXIST` if the name or the tag is taken,
    /// `EOPNOTSUPP` if the kernel has no VLANs, `ERANGE` from 4095 on.
    pub fn vlan(&self, parent: &str, name: &str, id: u16) -> Result<(), Error> {
        self.request(format!("making {name} of VLAN {id} on {parent}"), CREATE, || {
            Ok(rtnetlink::vlan(rtnetlink::index(parent)?, name, id))
        })?;
        self.set_link(name, true)?;
        self.wait_until_up(name)
    }

    /// Makes a tunnel for Ethernet frames over UDP (VXLAN, port 4789) to the host `remote`, and
    /// turns it on.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `EEXIST` if the name or the tunnel is taken, `EOPNOTSUPP` if the kernel
    /// has no VXLAN.
    pub fn vxlan(&self, name: &str, id: u32, remote: Ipv4Addr) -> Result<(), Error> {
        let operation = format!("making the tunnel {name} to {remote}");
        self.request(operation, CREATE, || Ok(rtnetlink::vxlan(name, id, remote)))?;
        self.set_link(name, true)
    }

    /// Deletes a link, and the other end of a veth pair with it.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `ENODEV` without such a link, `EOPNOTSUPP` for loopback.
    pub fn delete_link(&self, name: &str) -> Result<(), Error> {
        let operation = format!("deleting the link {name}");
        self.request(operation, 0, || Ok(rtnetlink::deletion(rtnetlink::index(name)?)))
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

    /// Gives a link another name. It goes off and on again on the way, which drops packets that are
    /// queued with it.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `ENODEV` without such a link, `EEXIST` if the other name is taken.
    pub fn rename_link(&self, name: &str, other: &str) -> Result<(), Error> {
        // Kernels before 6.2 do not rename a link that is on.
        self.set_link(name, false)?;
        let operation = format!("renaming the link {name} to {other}");
        self.request(operation, 0, || Ok(rtnetlink::rename(rtnetlink::index(name)?, other)))?;
        self.set_link(other, true)?;
        self.wait_until_up(other)
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

    /// The Ethernet address of a link; all zeros for loopback.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `ENODEV` without such a link, `InvalidData` if its addresses are others.
    pub fn link_address(&self, name: &str) -> Result<[u8; 6], Error> {
        self.try_run(|| rtnetlink::link_address(name))?
            .map_err(Error::of(format!("reading the address of {name}")))
    }

    /// Gives a link another Ethernet address. A bridge keeps it, where it otherwise takes the
    /// lowest of its ports.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `ENODEV` without such a link, `EADDRNOTAVAIL` for a multicast address.
    pub fn set_link_address(&self, name: &str, address: [u8; 6]) -> Result<(), Error> {
        let operation = format!("setting the address of {name}");
        self.request(operation, 0, || {
            Ok(rtnetlink::set_link_address(rtnetlink::index(name)?, address))
        })
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
