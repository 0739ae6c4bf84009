//! Configuration requests on a socket where packets, refused verdicts and what others send come in
//! between the answers.
//!
//! The model knows what it has put into the socket, so it knows which packets must come out again
//! and which answer ends the waiting.

use std::collections::VecDeque;

use netfilterqueue_protocol::constants::*;
use netfilterqueue_protocol::packet::PacketIndex;

use super::*;
use crate::errno::Errno;
use crate::intake::Consecutive;
use crate::sample::{self, Shape};
use crate::slot::Slot;
use crate::slots::Slots;
use crate::socket::Arrival;
use crate::stats::Stats;

const QUEUES: [u16; 2] = [3, 8];
const OPERATION: Operation = Operation::Configure;

/// What one datagram is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sent {
    Packet(u16, u32),
    /// To the configuration request of this number.
    Answer {
        sequence: u32,
        errno: i32,
        text: Option<&'static str>,
    },
    /// Of a verdict.
    Refusal,
    /// Of a verdict, which nobody asks for.
    Success,
    Foreign,
    Unknown,
}

struct Play {
    control: Control,
    outstanding: Outstanding,
    intake: Intake,
    socket: VecDeque<(Vec<u8>, Arrival, Sent)>,
    /// Queue numbers and ids of packets that were sent and of those that came, in order.
    sent: Vec<(u16, u32)>,
    came: Vec<(u16, u32)>,
    /// What the counters should say.
    stats: Stats,
    next_id: u32,
}

/// No packet is lost, the right answer and no other ends the waiting, and the books are right.
pub(crate) fn play(bytes: &[u8]) {
    let (&[first, start], mut rest) = bytes.split_first_chunk().unwrap_or((&[0; 2], &[]));
    let mut play = Play {
        control: Control { sequence: u32::from(start).wrapping_sub(4) },
        outstanding: Outstanding::new(&QUEUES),
        intake: Intake::new(QUEUES.into_iter()),
        socket: VecDeque::new(),
        sent: Vec::new(),
        came: Vec::new(),
        stats: Stats::default(),
        next_id: 1,
    };
    let capacity = 1 + usize::from(first % 8);
    while let Some((&[what, a, b], after)) = rest.split_first_chunk() {
        rest = after;
        match what % 8 {
            0 | 1 => play.packet(a, b),
            2 | 3 => play.answer(a, b, rest),
            4 => play.refusal(a, b),
            5 => {
                let (raw, after) = rest.split_at(rest.len().min(a.into()));
                rest = after;
                play.raw(raw, b);
            }
            6 => play.ask(),
            _ => play.receive(capacity),
        }
    }
    while !play.socket.is_empty() || play.intake.has_kept() {
        play.receive(capacity);
    }
    assert_eq!(play.came, play.sent);
    assert_eq!(play.outstanding.count(), play.ours());
    let stats = &mut play.intake.stats;
    stats.lost = 0;
    assert_eq!(*stats, play.stats);
}

impl Play {
    fn send(&mut self, bytes: Vec<u8>, arrival: Arrival, sent: Sent) {
        match sent {
            _ if arrival == Arrival::Foreign => self.stats.foreign += 1,
            Sent::Packet(queue, id) => {
                self.sent.push((queue, id));
                self.stats.received += 1;
                if arrival == Arrival::Truncated {
                    self.stats.truncated += 1;
                } else if PacketIndex::parse(&bytes).is_err() {
                    self.stats.malformed += 1;
                }
            }
            Sent::Refusal => self.stats.refused += 1,
            Sent::Unknown => self.stats.unknown += 1,
            Sent::Answer { .. } | Sent::Success | Sent::Foreign => {}
        }
        self.socket.push_back((bytes, arrival, sent));
    }

    fn packet(&mut self, a: u8, b: u8) {
        let shape = match a % 4 {
            0 => Shape::Truncated,
            1 => Shape::Malformed,
            _ => Shape::Whole,
        };
        let queue = [QUEUES[0], QUEUES[1], 5][usize::from(b % 3)];
        let (bytes, arrival) = sample::packet(queue, self.next_id, shape);
        if b >= 0xf0 {
            self.send(bytes, Arrival::Foreign, Sent::Foreign);
            return;
        }
        self.send(bytes, arrival, Sent::Packet(queue, self.next_id));
        self.next_id += 1 + u32::from(a >= 0xf0);
    }

    /// Mostly to the next request, which is answered while it is being sent.
    fn answer(&mut self, a: u8, b: u8, echo: &[u8]) {
        let sequence = self.control.sequence.wrapping_add(1).wrapping_add((a / 32).into());
        let errno = [0, 1, 16, 22, 95, 524, i32::MAX, i32::MIN][usize::from(b % 8)];
        let text = [None, Some("no such thing")][usize::from(a / 2 % 2)];
        let echo = (a % 2 == 1).then(|| &echo[..echo.len().min(40)]);
        let answer = sample::Answer::new(NFQNL_MSG_CONFIG, sequence, errno);
        let mut bytes = sample::Answer { echo, explanation: text, ..answer }.write();
        let cut = usize::from(b / 8 % 4);
        match (b / 32, cut) {
            (0, 1..) => {
                bytes.truncate(bytes.len() - cut);
                self.send(bytes, Arrival::Truncated, Sent::Unknown);
            }
            (1, _) => self.send(bytes, Arrival::Foreign, Sent::Foreign),
            _ => self.send(bytes, Arrival::Whole, Sent::Answer { sequence, errno, text }),
        }
    }

    fn refusal(&mut self, a: u8, b: u8) {
        let kind = [NFQNL_MSG_VERDICT, NFQNL_MSG_VERDICT_BATCH][usize::from(a % 2)];
        let errno = [2, 1, 0][usize::from(b % 3)];
        // The number of the request that is being awaited, as it may happen to be.
        let sequence = self.control.sequence.wrapping_add((a / 128).into());
        let bytes = sample::Answer::new(kind, sequence, errno).port(QUEUES[0].into()).write();
        let sent = if errno == 0 { Sent::Success } else { Sent::Refusal };
        self.send(bytes, Arrival::Whole, sent);
    }

    /// Any bytes: what they are is up to the parser, and that a packet in them is not lost is not.
    fn raw(&mut self, bytes: &[u8], b: u8) {
        let arrival = match b % 4 {
            0 => Arrival::Truncated,
            1 => Arrival::Foreign,
            _ => Arrival::Whole,
        };
        let received = Received { length: bytes.len(), arrival };
        let sent = match classify(bytes, received) {
            Content::Foreign => Sent::Foreign,
            Content::Unknown => Sent::Unknown,
            Content::Packet(packet) | Content::Unreadable { packet, .. } => {
                Sent::Packet(packet.queue(), packet.id())
            }
            // Answers are made elsewhere, with numbers that are known.
            Content::Ack(_) => return,
        };
        let salvaged = PacketIndex::salvage(bytes).filter(|_| arrival != Arrival::Foreign);
        let salvaged = salvaged.map(|packet| Sent::Packet(packet.queue(), packet.id()));
        assert_eq!(salvaged.is_some(), matches!(sent, Sent::Packet(..)));
        assert!(salvaged.is_none_or(|packet| packet == sent));
        self.send(bytes.to_vec(), arrival, sent);
    }

    /// Sends a request and receives until its answer is found or nothing waits.
    fn ask(&mut self) {
        self.control.sequence = self.control.sequence.wrapping_add(1);
        while let Some((bytes, arrival, sent)) = self.socket.pop_front() {
            let received = Received { length: bytes.len(), arrival };
            let (intake, outstanding) = (&mut self.intake, &self.outstanding);
            let answer = self.control.take_in(&bytes, received, OPERATION, intake, outstanding);
            let expected = match sent {
                Sent::Answer { sequence, errno, text } if sequence == self.control.sequence => {
                    Some((errno, text))
                }
                _ => None,
            };
            match (answer, expected) {
                (None, None) => {}
                (Some(Ok(())), Some((0, _)))
                | (Some(Err(Error::NoCapability { .. })), Some((1, _))) => return,
                (Some(Err(Error::Refused { errno, explanation, .. })), Some((expected, text))) => {
                    // The one number that has no negative cannot be told from its neighbour.
                    let expected = if expected == i32::MIN { i32::MAX } else { expected };
                    assert_eq!(errno, Errno(expected));
                    assert_eq!(explanation.as_deref(), text);
                    return;
                }
                (answer, expected) => panic!("{answer:?} where {expected:?} was sent"),
            }
        }
    }

    /// As `Queue::recv`: what has been kept comes first.
    fn receive(&mut self, capacity: usize) {
        let mut slots = Slots::new(capacity, 256);
        let mut run = Consecutive::default();
        let mut filled = 0;
        while filled < capacity && (self.intake.has_kept() || !self.socket.is_empty()) {
            slots.receive_by(filled, 1, |mut buffers, received| {
                let buffer = buffers.next().expect("there is room");
                received[0] = if let Some(kept) = self.intake.next_kept() {
                    kept.copy_into(buffer)
                } else {
                    let (bytes, arrival, _) = self.socket.pop_front().expect("something waits");
                    buffer[..bytes.len()].copy_from_slice(&bytes);
                    Received { length: bytes.len(), arrival }
                };
            });
            self.intake.load(slots.received(filled, 1), &mut run, &self.outstanding);
            filled += 1;
        }
        self.intake.count_packets(run, &self.outstanding);
        let pending = slots.filled().iter().filter(|slot| slot.is_pending());
        self.came.extend(pending.map(|slot: &Slot| (slot.queue(), slot.id())));
    }

    /// How many packets have come of queues that are not somebody else's.
    fn ours(&self) -> u64 {
        self.came.iter().filter(|(queue, _)| QUEUES.contains(queue)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use netfilterqueue_protocol::config::{Command, ConfigMessage};
    use proptest::prelude::*;

    use crate::control::about;
    use crate::errno::Errno;
    use crate::error::{Error, Operation};

    #[test]
    fn a_refusal_names_the_number_that_it_is_about() {
        let number = |operation, request| {
            let (queue, errno, explanation) = (None, Errno::ENOMEM, None);
            match about(&request, Error::Refused { operation, queue, errno, explanation }) {
                Error::Refused { queue, .. } => queue,
                error => panic!("{error}"),
            }
        };
        assert_eq!(number(Operation::Configure, ConfigMessage::new(7)), Some(7));
        let access = ConfigMessage::command(0, Command::PfBind);
        assert_eq!(number(Operation::Bind, access), None);
        assert_eq!(number(Operation::Probe, ConfigMessage::new(0)), None, "as good as any other");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn packets_and_answers_in_any_order(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            super::play(&bytes);
        }
    }
}
