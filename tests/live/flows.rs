//! Flows that conntrack follows, and what their packets say of them.

use std::net::{IpAddr, SocketAddr};

use netfilterqueue::conntrack::{ConntrackInfo, ConntrackStatus, TcpState, Tuple};
use netfilterqueue::rules::{Hook, InstalledRules};
use netfilterqueue::{Packet, Queue};
use netfilterqueue_netns::Namespace;

use crate::kernel::bind_with_conntrack;
use crate::support::{SOON, UdpPair, queue_udp_at, receive_exactly};

pub const UDP: u8 = 17;

/// What a packet says of its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub info: ConntrackInfo,
    pub id: u32,
    pub status: ConntrackStatus,
    pub timeout: u32,
    pub mark: u32,
    pub labels: Option<[u8; 16]>,
    pub tcp_state: Option<TcpState>,
    pub original: Tuple,
    pub reply: Tuple,
}

impl Seen {
    pub fn in_packet(packet: &Packet<'_>) -> Self {
        let entry = packet.conntrack().expect("conntrack follows the packet");
        assert_eq!(entry.zone(), None);
        Self {
            info: packet.conntrack_info().expect("it comes with the entry"),
            id: entry.id().expect("an id"),
            status: entry.status().expect("a status"),
            timeout: entry.timeout().expect("a timeout"),
            mark: entry.mark().unwrap_or(0),
            labels: entry.labels().map(|labels| labels.try_into().expect("16 bytes")),
            tcp_state: entry.tcp_state(),
            original: entry.original().expect("a tuple"),
            reply: entry.reply().expect("a tuple"),
        }
    }

    pub fn is_confirmed(&self) -> bool {
        self.status.contains(ConntrackStatus::CONFIRMED)
    }
}

/// A flow of UDP datagrams on one host, both ways through a queue.
pub struct Flow {
    pub udp: UdpPair,
}

impl Flow {
    /// Binds queue 1 for datagrams at `hook`, for as long as the rules live; `None` if the kernel
    /// has no conntrack entries for it.
    pub fn queue_at(namespace: &Namespace, hook: Hook) -> Option<(Queue, InstalledRules)> {
        let queue = bind_with_conntrack(Queue::builder(1))?;
        namespace.track_connections().unwrap();
        Some((queue, queue_udp_at(hook, 1)))
    }

    pub fn new(address: IpAddr) -> Self {
        let udp = UdpPair::new(address);
        udp.sender.set_read_timeout(Some(SOON)).unwrap();
        Self { udp }
    }

    /// Sends a datagram in the original direction, which `judge` accepts, and sees it arrive.
    pub fn ask(&self, queue: &mut Queue, judge: impl FnOnce(&mut Packet<'_>)) -> Seen {
        self.udp.send(b"question");
        let seen = accept_one(queue, judge);
        self.udp.receive();
        seen
    }

    /// Sends a datagram in the reply direction, which `judge` accepts, and sees it arrive.
    pub fn answer(&self, queue: &mut Queue, judge: impl FnOnce(&mut Packet<'_>)) -> Seen {
        self.udp.receiver.send_to(b"answer", self.source()).unwrap();
        let seen = accept_one(queue, judge);
        self.udp.sender.recv(&mut [0; 64]).expect("the answer arrives");
        seen
    }

    pub fn source(&self) -> SocketAddr {
        self.udp.sender.local_addr().unwrap()
    }

    /// The flow as its first packet has it.
    pub fn tuple(&self) -> Tuple {
        let (source, destination) = (self.source(), self.udp.receiver_address());
        Tuple {
            source: source.ip(),
            destination: destination.ip(),
            protocol: UDP,
            source_port: Some(source.port()),
            destination_port: Some(destination.port()),
            icmp: None,
            zone: None,
        }
    }
}

/// The other direction, without address translation.
pub fn mirrored(tuple: Tuple) -> Tuple {
    Tuple {
        source: tuple.destination,
        destination: tuple.source,
        source_port: tuple.destination_port,
        destination_port: tuple.source_port,
        ..tuple
    }
}

/// Receives one packet and accepts it when `judge` has looked at it.
pub fn accept_one(queue: &mut Queue, judge: impl FnOnce(&mut Packet<'_>)) -> Seen {
    let mut batch = receive_exactly(queue, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    let seen = Seen::in_packet(&packet);
    judge(&mut packet);
    packet.accept();
    batch.commit().unwrap();
    seen
}

/// For packets that are only looked at.
pub fn unchanged(_: &mut Packet<'_>) {}
