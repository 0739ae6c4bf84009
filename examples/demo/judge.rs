//! Decides about packets: by destination port, read from the packet's bytes.

use std::collections::HashMap;
use std::fmt;
use std::panic::resume_unwind;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use netfilterqueue::rules::Protocol;
use netfilterqueue::{
    Decided, EditError, Error, Packet, Queue, RetainedPacket, StopHandle, Verdict,
};

use crate::report::Terminal;

/// Packets to these ports are not simply accepted.
pub(crate) const DROPPED_PORT: u16 = 4001;
pub(crate) const MARKED_PORT: u16 = 4002;
pub(crate) const EDITED_PORT: u16 = 4003;
pub(crate) const HELD_PORT: u16 = 4004;

/// The mark that packets to [`MARKED_PORT`] get. Rules and routing on the host see it.
pub(crate) const MARK: u32 = 0x7;

/// A datagram that starts with this waits until the demo releases it.
pub(crate) const HOLD: &str = "hold";

const UDP_HEADER_LEN: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Accept,
    Drop,
    Mark(u32),
    Edit,
    Retain,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Mark(mark) => write!(f, "mark {mark:#x}"),
            Self::Edit => f.write_str("edit"),
            Self::Retain => f.write_str("retain"),
        }
    }
}

/// What a [`Worker`] does with each packet.
pub(crate) trait Judging: Send + 'static {
    /// The lifetime ties the proof of a decision to the packet that was decided about.
    fn judge<'p>(&mut self, packet: Packet<'p>) -> Decided<'p>;
}

/// Decides about the packets of the first queue.
pub(crate) struct Judge {
    terminal: Terminal,
    hold: Sender<RetainedPacket>,
    /// Packets dropped, by destination port; 0 stands for protocols without ports.
    dropped: HashMap<u16, usize>,
}

impl Judge {
    /// Retained packets go through `hold` to whoever releases them.
    pub(crate) fn new(terminal: Terminal, hold: Sender<RetainedPacket>) -> Self {
        Self { terminal, hold, dropped: HashMap::new() }
    }

    pub(crate) fn dropped(&self, port: u16) -> usize {
        self.dropped.get(&port).copied().unwrap_or(0)
    }
}

impl Judging for Judge {
    fn judge<'p>(&mut self, mut packet: Packet<'p>) -> Decided<'p> {
        let transport = Transport::read(packet.payload());
        let decision = transport.map_or(Decision::Accept, |transport| transport.decide());
        self.terminal.decided(packet.queue(), &packet, decision);
        match decision {
            Decision::Accept => packet.accept(),
            Decision::Drop => {
                let port = transport.map_or(0, |transport| transport.destination_port);
                *self.dropped.entry(port).or_default() += 1;
                packet.verdict(Verdict::Drop)
            }
            Decision::Mark(mark) => {
                packet.set_mark(mark);
                packet.accept()
            }
            Decision::Edit => match shout(&mut packet) {
                Ok(()) => packet.accept(),
                Err(error) => {
                    eprintln!("demo: packet {} is dropped: {error}", packet.id());
                    packet.verdict(Verdict::Drop)
                }
            },
            Decision::Retain => {
                let (retained, decided) = packet.retain();
                // If nobody takes it, it is dropped here and gets the queue's default verdict.
                let _ = self.hold.send(retained);
                decided
            }
        }
    }
}

/// Turns the text of a UDP/IPv4 datagram into upper case, in place. Its checksum follows by itself.
fn shout(packet: &mut Packet<'_>) -> Result<(), EditError> {
    let payload = packet.payload_mut()?;
    if let Some(transport) = Transport::read(payload)
        && let Some(datagram) = payload.get_mut(transport.start..)
        && let Some(text) = datagram.get_mut(UDP_HEADER_LEN..)
    {
        text.make_ascii_uppercase();
    }
    Ok(())
}

/// Accepts the packets of the second queue and counts those that carry [`MARK`].
pub(crate) struct Witness {
    terminal: Terminal,
    pub(crate) marked: usize,
}

impl Witness {
    pub(crate) const fn new(terminal: Terminal) -> Self {
        Self { terminal, marked: 0 }
    }
}

impl Judging for Witness {
    fn judge<'p>(&mut self, packet: Packet<'p>) -> Decided<'p> {
        self.marked += usize::from(packet.mark() == Some(MARK));
        self.terminal.decided(packet.queue(), &packet, Decision::Accept);
        packet.accept()
    }
}

/// The little that the demo reads of a packet; crates such as `etherparse` read everything.
#[derive(Debug, Clone, Copy)]
struct Transport<'a> {
    start: usize,
    /// 0 for protocols without ports.
    destination_port: u16,
    text: &'a [u8],
}

impl<'a> Transport<'a> {
    /// Reads an IPv4 packet, or an IPv6 packet without extension headers.
    fn read(payload: &'a [u8]) -> Option<Self> {
        let (protocol, start) = match payload.first()? >> 4 {
            4 => (*payload.get(9)?, usize::from(payload[0] & 0x0f) * 4),
            6 => (*payload.get(6)?, 40),
            _ => return None,
        };
        let segment = payload.get(start..)?;
        let destination_port = match Protocol(protocol) {
            Protocol::TCP | Protocol::UDP => {
                u16::from_be_bytes([*segment.get(2)?, *segment.get(3)?])
            }
            _ => 0,
        };
        let text = segment.get(UDP_HEADER_LEN..).unwrap_or_default();
        Some(Self { start, destination_port, text })
    }

    fn decide(&self) -> Decision {
        match self.destination_port {
            DROPPED_PORT => Decision::Drop,
            MARKED_PORT => Decision::Mark(MARK),
            EDITED_PORT => Decision::Edit,
            HELD_PORT if self.text.starts_with(HOLD.as_bytes()) => Decision::Retain,
            _ => Decision::Accept,
        }
    }
}

/// A thread that judges the packets of one queue.
pub(crate) struct Worker<J> {
    stop: StopHandle,
    thread: JoinHandle<Result<(Queue, J), Error>>,
}

impl<J: Judging> Worker<J> {
    pub(crate) fn start(mut queue: Queue, mut judge: J) -> Self {
        let stop = queue.stop_handle();
        let thread = thread::spawn(move || {
            queue.run(|packet| judge.judge(packet))?;
            // Told to stop. What still waits would be dropped with the queue.
            queue.set_nonblocking(true);
            queue.run(|packet| judge.judge(packet))?;
            Ok((queue, judge))
        });
        Self { stop, thread }
    }

    /// Ends the thread after the packets that wait already.
    pub(crate) fn finish(self) -> Result<(Queue, J), Error> {
        self.stop.stop();
        self.thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}
