//! Real traffic over the loopback device: what is sent, and what has to arrive.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use netfilterqueue::RetainedPacket;
use netfilterqueue::rules::Protocol;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::judge::{DROPPED_PORT, EDITED_PORT, HELD_PORT, MARKED_PORT};
use crate::report::Terminal;

const UDP_PORT: u16 = 4000;
pub(crate) const TCP_PORT: u16 = 4010;

/// How long anything that should arrive is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// How long it is watched whether more arrives than should.
const SILENCE: Duration = Duration::from_millis(50);

const ECHO_HEADER_LEN: usize = 8;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Messages of one kind.
pub(crate) struct Flow {
    pub(crate) name: &'static str,
    pub(crate) decision: &'static str,
    protocol: Protocol,
    to: SocketAddr,
    pub(crate) sent: &'static [&'static str],
    /// What has to arrive, in this order.
    pub(crate) expected: &'static [&'static str],
}

const GREETINGS: &[&str] = &["good morning", "good day", "good evening"];

/// All flows, those over IPv6 only if the host has it.
pub(crate) fn flows() -> Vec<Flow> {
    let mut flows = vec![
        Flow::accepted("UDP/IPv4", Protocol::UDP, V4, UDP_PORT),
        Flow::accepted("UDP/IPv6", Protocol::UDP, V6, UDP_PORT),
        Flow {
            decision: "drop",
            expected: &[],
            ..Flow::accepted("UDP/IPv4, unwanted", Protocol::UDP, V4, DROPPED_PORT)
        },
        Flow {
            decision: "mark",
            ..Flow::accepted("UDP/IPv4, marked", Protocol::UDP, V4, MARKED_PORT)
        },
        Flow {
            decision: "edit",
            sent: &["whisper"],
            expected: &["WHISPER"],
            ..Flow::accepted("UDP/IPv4, edited", Protocol::UDP, V4, EDITED_PORT)
        },
        Flow {
            decision: "retain the first",
            sent: &["hold me", "overtake me"],
            expected: &["overtake me", "hold me"],
            ..Flow::accepted("UDP/IPv4, held", Protocol::UDP, V4, HELD_PORT)
        },
        Flow::accepted("TCP/IPv4, echoed", Protocol::TCP, V4, TCP_PORT),
        Flow::accepted("TCP/IPv6, echoed", Protocol::TCP, V6, TCP_PORT),
        Flow::accepted("ICMP echo", Protocol::ICMP, V4, 0),
        Flow::accepted("ICMPv6 echo", Protocol::ICMPV6, V6, 0),
    ];
    if let Err(error) = UdpSocket::bind((V6, 0)) {
        println!("IPv6 is left out, because this host has none: {error}");
        flows.retain(|flow| flow.to.is_ipv4());
    }
    flows
}

impl Flow {
    const fn accepted(name: &'static str, protocol: Protocol, to: IpAddr, port: u16) -> Self {
        Self {
            name,
            decision: "accept",
            protocol,
            to: SocketAddr::new(to, port),
            sent: GREETINGS,
            expected: GREETINGS,
        }
    }

    pub(crate) const fn port(&self) -> u16 {
        self.to.port()
    }

    /// Whether the messages should arrive, but not as they were sent.
    pub(crate) fn is_changed(&self) -> bool {
        !self.expected.is_empty() && self.expected != self.sent
    }

    /// Sends the messages and returns what arrived, in order of arrival. What does not come within
    /// [`PATIENCE`] is missing from that; other errors mean that the demo cannot work here.
    pub(crate) fn exchange(
        &self,
        held: &Receiver<RetainedPacket>,
        terminal: Terminal,
    ) -> io::Result<Vec<String>> {
        let mut arrived = Vec::new();
        let outcome = match self.protocol {
            Protocol::TCP => self.echo(&mut arrived),
            Protocol::UDP if self.port() == HELD_PORT => {
                self.overtake(&mut arrived, held, terminal)
            }
            Protocol::UDP => self.send_datagrams(&mut arrived),
            _ => self.ping(&mut arrived),
        };
        match outcome {
            Err(error) if !is_timeout(&error) => {
                Err(io::Error::new(error.kind(), format!("{}: {error}", self.name)))
            }
            _ => Ok(arrived),
        }
    }

    fn send_datagrams(&self, arrived: &mut Vec<String>) -> io::Result<()> {
        let (sender, receiver) = self.udp_sockets()?;
        for message in self.sent {
            sender.send(message.as_bytes())?;
        }
        for _ in self.expected {
            arrived.push(receive(&receiver)?);
        }
        watch_silence(&receiver, arrived)
    }

    /// Releases the first message, from this thread, when the others have arrived.
    fn overtake(
        &self,
        arrived: &mut Vec<String>,
        held: &Receiver<RetainedPacket>,
        terminal: Terminal,
    ) -> io::Result<()> {
        let (sender, receiver) = self.udp_sockets()?;
        for message in self.sent {
            sender.send(message.as_bytes())?;
        }
        let packet = held.recv_timeout(PATIENCE).map_err(|_| io::ErrorKind::TimedOut)?;
        for _ in 1..self.expected.len() {
            arrived.push(receive(&receiver)?);
        }
        terminal.released(packet.queue(), &packet);
        packet.accept().map_err(io::Error::other)?;
        arrived.push(receive(&receiver)?);
        watch_silence(&receiver, arrived)
    }

    fn udp_sockets(&self) -> io::Result<(UdpSocket, UdpSocket)> {
        let receiver = UdpSocket::bind(self.to)?;
        receiver.set_read_timeout(Some(PATIENCE))?;
        let sender = UdpSocket::bind((self.to.ip(), 0))?;
        sender.connect(self.to)?;
        Ok((sender, receiver))
    }

    /// Sends the messages to a server that sends them back.
    fn echo(&self, arrived: &mut Vec<String>) -> io::Result<()> {
        let listener = TcpListener::bind(self.to)?;
        // Bounds `accept`, too.
        let timeout = TimeVal::seconds(PATIENCE.as_secs().cast_signed());
        setsockopt(&listener, sockopt::ReceiveTimeout, &timeout)?;
        let mut client = TcpStream::connect_timeout(&self.to, PATIENCE)?;
        client.set_read_timeout(Some(PATIENCE))?;
        let (mut server, _) = listener.accept()?;
        server.set_read_timeout(Some(PATIENCE))?;
        for message in self.sent {
            let mut text = vec![0; message.len()];
            client.write_all(message.as_bytes())?;
            server.read_exact(&mut text)?;
            server.write_all(&text)?;
            client.read_exact(&mut text)?;
            arrived.push(String::from_utf8_lossy(&text).into_owned());
        }
        Ok(())
    }

    /// Sends the messages as ICMP echo requests, which the kernel answers.
    fn ping(&self, arrived: &mut Vec<String>) -> io::Result<()> {
        let (family, protocol, request, reply, header_len) = match self.to {
            // A raw IPv4 socket receives the IP header, too.
            SocketAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0, 20),
            SocketAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129, 0),
        };
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        // The standard library's type does for raw sockets, too.
        let raw = UdpSocket::from(raw);
        raw.set_read_timeout(Some(PATIENCE))?;
        for message in self.sent {
            raw.send_to(&echo_request(request, message), self.to)?;
            let mut packet = [0; 1500];
            loop {
                let length = raw.recv(&mut packet)?;
                // The socket sees the requests as well, because they arrive on this host.
                if let Some((header, text)) =
                    packet[header_len..length.max(header_len)].split_at_checked(ECHO_HEADER_LEN)
                    && header[0] == reply
                {
                    arrived.push(String::from_utf8_lossy(text).into_owned());
                    break;
                }
            }
        }
        Ok(())
    }
}

fn receive(socket: &UdpSocket) -> io::Result<String> {
    let mut text = [0; 1500];
    let length = socket.recv(&mut text)?;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

/// Adds what arrives although nothing should.
fn watch_silence(socket: &UdpSocket, arrived: &mut Vec<String>) -> io::Result<()> {
    socket.set_read_timeout(Some(SILENCE))?;
    while let Ok(text) = receive(socket) {
        arrived.push(text);
    }
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Type, code, checksum, identifier and sequence number (both 0), text.
fn echo_request(kind: u8, text: &str) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(text.as_bytes());
    let checksum = internet_checksum(&message);
    // For ICMPv6 the kernel writes its own, because that covers addresses, too.
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

/// The ones' complement of the sum of all 16-bit words, carries added back in.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let sum = bytes.chunks(2).fold(0_u16, |sum, word| {
        let word = u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
        let (sum, carried) = sum.overflowing_add(word);
        sum + u16::from(carried)
    });
    !sum
}
