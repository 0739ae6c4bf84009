//! What the programs read in packets.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use netfilterqueue::Protocol;

/// Enough of a packet for its headers: an IP header with all its options, the usual extension
/// headers, ports. For programs that need nothing else ([`CopyMode`](netfilterqueue::CopyMode)).
pub const HEADERS: u32 = 128;

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The protocol behind the IP header and its extensions.
    pub protocol: Protocol,
    /// Address of the sender.
    pub source: IpAddr,
    /// Address of the receiver.
    pub destination: IpAddr,
    /// Source and destination port of TCP and UDP. `None` with other protocols, in fragments but
    /// the first, and where the packet is cut off before them.
    pub ports: Option<(u16, u16)>,
}

impl Flow {
    /// Reads it from the IP header on. The packet may be cut off behind its IP header; `None` if it
    /// is before, or if this is no IP packet.
    #[must_use]
    pub fn of(packet: &[u8]) -> Option<Self> {
        let sliced = LaxSlicedPacket::from_ip(packet).ok()?;
        let (source, destination) = match sliced.net.as_ref()? {
            LaxNetSlice::Ipv4(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            LaxNetSlice::Ipv6(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            LaxNetSlice::Arp(_) => return None,
        };
        let ports = match &sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
            Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
            _ => None,
        };
        let protocol = Protocol(sliced.ip_payload()?.ip_number.0);
        Some(Self { protocol, source, destination, ports })
    }

    /// The same in the other direction.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            protocol: self.protocol,
            source: self.destination,
            destination: self.source,
            ports: self.ports.map(|(source, destination)| (destination, source)),
        }
    }

    /// The sender, with its port.
    #[must_use]
    pub fn from(&self) -> Endpoint {
        Endpoint(self.source, self.ports.map(|(source, _)| source))
    }

    /// The receiver, with its port.
    #[must_use]
    pub fn to(&self) -> Endpoint {
        Endpoint(self.destination, self.ports.map(|(_, destination)| destination))
    }
}

/// As `UDP 10.0.0.1:53 → 10.0.0.2:4242`.
impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} → {}", self.protocol, self.from(), self.to())
    }
}

/// An address with its port, if it has one.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint(IpAddr, Option<u16>);

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self(address, Some(port)) => SocketAddr::new(address, port).fmt(f),
            Self(address, None) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    fn udp() -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(53, 4242);
        builder.write(&mut packet, b"twelve bytes").unwrap();
        packet
    }

    fn tcp() -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv6([1; 16], [2; 16], 64).tcp(80, 81, 1, 1);
        builder.write(&mut packet, &[]).unwrap();
        packet
    }

    #[test]
    fn flows_are_read_and_written() {
        let flow = Flow::of(&udp()).unwrap();
        assert_eq!(flow.to_string(), "UDP 10.0.0.1:53 → 10.0.0.2:4242");
        assert_eq!(flow.reversed().to_string(), "UDP 10.0.0.2:4242 → 10.0.0.1:53");
        let flow = Flow::of(&tcp()).unwrap();
        assert_eq!((flow.ports, flow.protocol), (Some((80, 81)), Protocol::TCP));
        assert!(flow.to_string().contains("[101:101:"), "{flow}");
    }

    #[test]
    fn addresses_are_read_without_the_rest() {
        let flow = Flow::of(&udp()[..20]).unwrap();
        assert_eq!((flow.source, flow.ports), ([10, 0, 0, 1].into(), None));
        let flow = Flow::of(&tcp()[..40]).unwrap();
        assert_eq!((flow.source, flow.ports), ([1; 16].into(), None));
        assert_eq!(Flow::of(&udp()[..19]), None);
        assert_eq!(Flow::of(&[]), None);
    }

    #[test]
    fn headers_that_go_on_behind_the_copy_leave_the_addresses() {
        // Hop-by-hop options of 2,048 bytes, as long as they can be.
        let mut packet = tcp();
        packet[4..6].copy_from_slice(&[9, 0]);
        packet[6] = 0;
        packet.splice(40.., [6, 255].into_iter().chain([0; 2046]));
        packet.truncate(HEADERS as usize);
        let flow = Flow::of(&packet).unwrap();
        assert_eq!((flow.source, flow.ports), ([1; 16].into(), None));
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let mut packet = udp();
        packet[6..8].copy_from_slice(&[0, 10]);
        let flow = Flow::of(&packet).unwrap();
        assert_eq!((flow.protocol, flow.ports), (Protocol::UDP, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = Flow::of(&bytes).map(|flow| flow.to_string());
        }

        #[test]
        fn changed_and_cut_off_packets_are_survived(
            at in 0_usize..60, byte: u8, len in 0_usize..60,
        ) {
            for mut packet in [udp(), tcp()] {
                if let Some(target) = packet.get_mut(at) { *target = byte; }
                packet.truncate(len);
                let _ = Flow::of(&packet).map(|flow| flow.to_string());
            }
        }
    }
}
