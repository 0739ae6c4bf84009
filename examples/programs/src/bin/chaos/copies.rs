//! Copies of packets, sent by a raw socket.
//!
//! The kernel has no verdict that doubles a packet: a packet that is repeated
//! ([`Verdict::Repeat`](netfilterqueue::Verdict::Repeat)) goes through the rules once more, and is
//! still one. So the copy is sent from here, with its IP header as it is, and with a bit in its
//! mark that the rule leaves alone, or it would come up in the queue in its turn.
//!
//! A copy begins at the output hook, wherever its original was queued: it passes the rules there,
//! and one to this machine itself comes in by the loopback interface. What translates addresses has
//! done so with the original by then at the output and postrouting hooks, and has not at others.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use etherparse::LaxNetSlice::{Ipv4, Ipv6};
use etherparse::LaxSlicedPacket;
use socket2::{Domain, Protocol, Socket, Type};

/// `IPPROTO_RAW`: what is sent has its IP header, and nothing is received.
const RAW: i32 = 255;

/// Sends copies of packets.
#[derive(Debug)]
pub(crate) struct Copier {
    v4: RawSocket,
    v6: Option<RawSocket>,
    /// The bit in the mark of all copies.
    bit: u32,
}

/// What is to be sent once more.
#[derive(Debug)]
pub(crate) struct Copy {
    packet: Vec<u8>,
    mark: u32,
    to: SocketAddr,
}

impl Copy {
    /// `interface` is where it goes to or comes from, which link-local addresses are nothing
    /// without. `None` for what is no IP packet.
    pub(crate) fn of(packet: &[u8], mark: Option<u32>, interface: Option<u32>) -> Option<Self> {
        let sliced = LaxSlicedPacket::from_ip(packet).ok()?;
        let to = match sliced.net? {
            Ipv4(ip) => IpAddr::from(ip.header().destination_addr()),
            Ipv6(ip) => IpAddr::from(ip.header().destination_addr()),
            _ => return None,
        };
        let to = match to {
            IpAddr::V4(_) => SocketAddr::new(to, 0),
            IpAddr::V6(v6) => {
                let needs_scope = v6.is_unicast_link_local() || v6.is_multicast();
                let scope = interface.filter(|_| needs_scope).unwrap_or(0);
                SocketAddrV6::new(v6, 0, 0, scope).into()
            }
        };
        Some(Self { packet: packet.to_vec(), mark: mark.unwrap_or(0), to })
    }
}

impl Copier {
    /// # Errors
    ///
    /// That of opening raw sockets, which takes `CAP_NET_RAW`. A machine may be without IPv6.
    pub(crate) fn open(bit: u32) -> io::Result<Self> {
        let explained = |error| {
            io::Error::other(format!("opening a raw socket for copies (CAP_NET_RAW): {error}"))
        };
        let v4 = RawSocket::open(Domain::IPV4).map_err(explained)?;
        Ok(Self { v4, v6: RawSocket::open(Domain::IPV6).ok(), bit })
    }

    /// Sends a copy, unless the network has no room for it now: it is not waited for.
    ///
    /// # Errors
    ///
    /// That of sending: `EMSGSIZE` for what would have to be fragmented, `WouldBlock`.
    pub(crate) fn send(&mut self, copy: &Copy) -> io::Result<()> {
        let socket = match copy.to {
            SocketAddr::V4(_) => &mut self.v4,
            SocketAddr::V6(_) => self.v6.as_mut().ok_or(io::ErrorKind::Unsupported)?,
        };
        socket.send(&copy.packet, copy.mark | self.bit, copy.to)
    }
}

#[derive(Debug)]
struct RawSocket {
    socket: Socket,
    mark: u32,
}

impl RawSocket {
    fn open(domain: Domain) -> io::Result<Self> {
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW)))?;
        socket.set_nonblocking(true)?;
        socket.set_broadcast(true)?;
        Ok(Self { socket, mark: 0 })
    }

    fn send(&mut self, packet: &[u8], mark: u32, to: SocketAddr) -> io::Result<()> {
        if self.mark != mark {
            self.socket.set_mark(mark)?;
            self.mark = mark;
        }
        self.socket.send_to(packet, &to.into()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn a_copy_goes_where_the_packet_goes() {
        let mut v4 = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
            .udp(1, 2)
            .write(&mut v4, b"x")
            .unwrap();
        let copy = Copy::of(&v4, Some(3), Some(5)).unwrap();
        assert_eq!((copy.to, copy.mark), ("10.0.0.2:0".parse().unwrap(), 3));
        assert_eq!(copy.packet, v4);
        for (address, scope) in [("fe80::2", 5), ("fd00::2", 0), ("ff02::1", 5)] {
            let to: std::net::Ipv6Addr = address.parse().unwrap();
            let mut v6 = Vec::new();
            let builder = PacketBuilder::ipv6([1; 16], to.octets(), 9);
            builder.udp(1, 2).write(&mut v6, b"x").unwrap();
            let copy = Copy::of(&v6, None, Some(5)).unwrap();
            assert_eq!(copy.to, SocketAddrV6::new(to, 0, 0, scope).into());
        }
        assert!(Copy::of(b"no packet", None, None).is_none());
        assert!(Copy::of(&[], None, None).is_none());
    }
}
