//! The TCP segment or UDP datagram in a packet.

use std::net::{IpAddr, SocketAddr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TcpSlice, TransportSlice};

/// A TCP segment or UDP datagram with what it carries.
#[derive(Debug, Clone)]
pub struct Segment<'p> {
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it goes to.
    pub destination: SocketAddr,
    /// The TCP header; `None` for UDP.
    pub tcp: Option<TcpSlice<'p>>,
    /// Its data, without what the link layer may have appended.
    pub payload: &'p [u8],
}

impl<'p> Segment<'p> {
    /// Reads an IP packet, behind IPv6 extension headers too. `None` if it is neither TCP nor UDP,
    /// if its headers are cut off or wrong, and for fragments: the first has a part of the data, the
    /// others not even ports.
    #[must_use]
    pub fn parse(packet: &'p [u8]) -> Option<Self> {
        let sliced = LaxSlicedPacket::from_ip(packet).ok()?;
        let (source, destination): (IpAddr, IpAddr) = match sliced.net? {
            LaxNetSlice::Ipv4(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            LaxNetSlice::Ipv6(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            LaxNetSlice::Arp(_) => return None,
        };
        let (tcp, ports, payload) = match sliced.transport? {
            TransportSlice::Tcp(tcp) => {
                let ports = (tcp.source_port(), tcp.destination_port());
                let payload = tcp.payload();
                (Some(tcp), ports, payload)
            }
            TransportSlice::Udp(udp) => {
                (None, (udp.source_port(), udp.destination_port()), udp.payload())
            }
            _ => return None,
        };
        let source = SocketAddr::new(source, ports.0);
        let destination = SocketAddr::new(destination, ports.1);
        Some(Self { source, destination, tcp, payload })
    }

    /// How many bytes of the packet that it was parsed from come before its data.
    #[must_use]
    pub fn headers_len(&self, packet: &[u8]) -> usize {
        self.payload.as_ptr().addr() - packet.as_ptr().addr()
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn udp_v4(data: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(53, 4242);
        builder.write(&mut packet, data).expect("a packet");
        packet
    }

    #[test]
    fn addresses_ports_and_data() {
        let mut packet = udp_v4(b"data");
        packet.extend([0; 6]); // padding of a short frame
        let segment = Segment::parse(&packet).expect("UDP");
        assert_eq!(segment.source, "10.0.0.1:53".parse().expect("an address"));
        assert_eq!(segment.destination, "10.0.0.2:4242".parse().expect("an address"));
        assert!(segment.tcp.is_none());
        assert_eq!(segment.payload, b"data");
        assert_eq!(segment.headers_len(&packet), 28);
    }

    #[test]
    fn tcp_over_ipv6() {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv6([1; 16], [2; 16], 64).tcp(1000, 443, 7, 1000).syn();
        builder.write(&mut packet, b"").expect("a packet");
        let segment = Segment::parse(&packet).expect("TCP");
        let tcp = segment.tcp.as_ref().expect("a header");
        assert!(tcp.syn() && !tcp.ack() && tcp.sequence_number() == 7);
        assert_eq!(segment.headers_len(&packet), 60);
    }

    #[test]
    fn fragments_and_pieces_are_nothing() {
        let mut packet = udp_v4(b"data");
        for len in 0..28 {
            assert!(Segment::parse(&packet[..len]).is_none(), "{len}");
        }
        packet[6] |= 0x20; // more fragments
        assert!(Segment::parse(&packet).is_none());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes: Vec<u8>, version in 0_u8..2, protocol in 0_u8..2) {
            if let Some(first) = bytes.first_mut() {
                *first = [0x45, 0x60][usize::from(version)];
            }
            if let Some(next) = bytes.get_mut([9, 6][usize::from(version)]) {
                *next = [6, 17][usize::from(protocol)];
            }
            if let Some(segment) = Segment::parse(&bytes) {
                proptest::prop_assert!(segment.headers_len(&bytes) <= bytes.len());
            }
        }
    }
}
