//! Datagrams that pile up in queues, sent over the loopback link.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue_netns::Namespace;
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn,
    getsockopt, sendmmsg, setsockopt, socket, sockopt,
};

use crate::contender::QUEUE;
use crate::counters::{Datagrams, Queues};
use crate::machine::Place;

/// The port of the first queue; each further one has the next.
pub const PORT: u16 = 4000;

/// Of IPv4 and of UDP.
const HEADERS_LEN: usize = 28;

/// How long the last packets of a backlog are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest backlog: some less than kernels hold in one queue, and full batches of 64 in up to
/// four queues.
pub const BACKLOG_MAX: usize = 59_904;

/// What a packet takes of the receive buffer (`truesize`), generously.
pub const fn cost(packet_len: usize) -> usize {
    match packet_len {
        0..=200 => 850,
        201..=1500 => 2_400,
        _ => packet_len + 16_384,
    }
}

/// What the host grants of a receive buffer of so many bytes, as the kernel counts them.
pub fn granted(bytes: usize) -> Result<usize> {
    let any = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    ask_for_buffer(&any, bytes)
}

/// Returns what the socket has then.
fn ask_for_buffer(socket: &impl AsFd, bytes: usize) -> Result<usize> {
    if setsockopt(socket, sockopt::RcvBufForce, &bytes).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &bytes)?;
    }
    Ok(getsockopt(socket, sockopt::RcvBuf)?)
}

/// Packets to one or more queues, by their port.
pub struct Backlog<'a> {
    namespace: &'a Namespace,
    queues: u16,
    packet_len: usize,
    has_checksum: bool,
    receivers: Vec<UdpSocket>,
    rules: Option<InstalledRules>,
}

impl<'a> Backlog<'a> {
    /// Sockets that receive one datagram each and no more: from then on the kernel counts a
    /// datagram and frees it, which is as much for every contender, and cheap.
    pub fn new(
        namespace: &'a Namespace,
        queues: u16,
        packet_len: usize,
        has_checksum: bool,
    ) -> Result<Self> {
        let receivers = (0..queues).map(|queue| {
            let receiver =
                namespace.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, PORT + queue)))?;
            receiver.set_nonblocking(true)?;
            Ok(receiver)
        });
        let receivers = receivers.collect::<Result<_>>()?;
        let backlog = Self { namespace, queues, packet_len, has_checksum, receivers, rules: None };
        backlog.hold_one()?;
        Ok(backlog)
    }

    /// From now on the receivers have room for one datagram each.
    pub fn hold_one(&self) -> Result<()> {
        let set = |receiver| setsockopt(receiver, sockopt::RcvBuf, &0);
        Ok(self.receivers.iter().try_for_each(set)?)
    }

    /// From now on the receivers have room for so many datagrams together, if the host grants it.
    /// Returns whether it does.
    pub fn hold(&self, packets: usize) -> Result<bool> {
        let bytes = packets / self.receivers.len() * cost(self.packet_len);
        for receiver in &self.receivers {
            // The kernel doubles it.
            if ask_for_buffer(receiver, bytes)? < bytes {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends datagrams that arrive to the contender's queues from now on.
    pub fn queue(&mut self) -> Result<()> {
        let rule = |queue| {
            let rule = Rule::queue(QUEUE + queue).protocol(Protocol::UDP);
            rule.destination_port(PORT + queue)
        };
        let rules = (0..self.queues).map(rule).fold(Rules::new(Hook::INPUT), Rules::rule);
        self.rules = Some(self.namespace.run(|| rules.install())?);
        Ok(())
    }

    /// Sends until so many packets wait, the same number in each queue.
    pub fn fill(&self, packets: usize) -> Result<()> {
        let before = Datagrams::read(self.namespace)?;
        let share = packets / usize::from(self.queues);
        for port in PORT..PORT + self.queues {
            let sender = self.sender(port)?;
            let start = Datagrams::read(self.namespace)?;
            let deadline = Instant::now() + PATIENCE;
            // The loopback link may lose some of a burst, before they are queued: they are sent
            // again, and what still waits in it is waited for.
            let mut missing = share;
            while missing > 0 {
                self.namespace.run(|| {
                    Place::Generator.enter();
                    sender.send(missing)
                })?;
                missing = share.saturating_sub(self.wait_for(share, start)?);
                if Instant::now() > deadline {
                    bail!("{missing} of {share} packets do not arrive");
                }
            }
        }
        let arrived = Datagrams::read(self.namespace)?.arrived_since(before)? as usize;
        if arrived != packets {
            bail!("{arrived} packets arrived instead of {packets}");
        }
        match Queues::read(self.namespace, QUEUE, self.queues)? {
            Some(Queues { waiting, lost }) if waiting != packets as u64 || lost > 0 => {
                bail!("{waiting} of {packets} packets wait, {lost} were lost before judging")
            }
            _ => Ok(()),
        }
    }

    /// How many packets have arrived since `start`, when they are `wanted` or no more
    /// come.
    fn wait_for(&self, wanted: usize, start: Datagrams) -> Result<usize> {
        let (mut arrived, mut quiet) = (0, 0);
        while arrived < wanted && quiet < 100 {
            let now = Datagrams::read(self.namespace)?.arrived_since(start)? as usize;
            quiet = if now > arrived { 0 } else { quiet + 1 };
            arrived = now;
            if arrived < wanted {
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(arrived)
    }

    /// The datagrams that the receivers hold.
    pub fn take_received(&self) -> Vec<Vec<u8>> {
        let mut received = Vec::new();
        let mut data = vec![0; 1 << 16];
        for receiver in &self.receivers {
            while let Ok(len) = receiver.recv(&mut data) {
                received.push(data[..len].to_vec());
            }
        }
        received
    }

    pub fn sender(&self, port: u16) -> Result<Sender> {
        let open = || Sender::open(port, self.packet_len, self.has_checksum);
        self.namespace.run(open).context("opening a sender")
    }
}

/// Sends one packet again and again, many with each system call.
pub struct Sender {
    socket: OwnedFd,
    packet: Vec<u8>,
}

impl Sender {
    const BATCH: usize = 64;

    /// Who makes whole packets, headers and all, can leave the UDP checksum out.
    fn open(port: u16, packet_len: usize, has_checksum: bool) -> io::Result<Self> {
        let destination = SockaddrIn::new(127, 0, 0, 1, port);
        let flags = SockFlag::SOCK_CLOEXEC;
        if has_checksum {
            let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
            nix::sys::socket::connect(socket.as_raw_fd(), &destination)?;
            return Ok(Self { socket, packet: vec![b'x'; packet_len - HEADERS_LEN] });
        }
        let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)?;
        nix::sys::socket::connect(socket.as_raw_fd(), &destination)?;
        let mut packet = vec![b'x'; packet_len];
        packet[..HEADERS_LEN].fill(0);
        // Version and length, time to live, protocol; the kernel adds length and checksum.
        (packet[0], packet[8], packet[9]) = (0x45, 64, 17);
        packet[12..16].copy_from_slice(&[127, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[127, 0, 0, 1]);
        packet[20..22].copy_from_slice(&(PORT - 1).to_be_bytes());
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        packet[24..26].copy_from_slice(&((packet_len - 20) as u16).to_be_bytes());
        Ok(Self { socket, packet })
    }

    /// Sends so many packets.
    pub fn send(&self, packets: usize) -> io::Result<()> {
        let parts = [IoSlice::new(&self.packet)];
        let slices = [&parts; Self::BATCH];
        let mut headers = MultiHeaders::<()>::preallocate(Self::BATCH, None);
        let mut left = packets;
        while left > 0 {
            let batch = left.min(Self::BATCH);
            let sent = sendmmsg(
                self.socket.as_raw_fd(),
                &mut headers,
                slices[..batch].iter().copied(),
                [None; Self::BATCH],
                [],
                MsgFlags::empty(),
            )?;
            left -= sent.count();
        }
        Ok(())
    }
}
