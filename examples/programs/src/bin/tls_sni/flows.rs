//! The starts of connections, put together from their segments until they are decided about.

use std::collections::hash_map::RandomState;
use std::net::SocketAddr;
use std::num::NonZeroUsize;

use lru::LruCache;
use netfilterqueue_programs::Segment;

use crate::hello::{self, STREAM_MAX, Start};

/// What becomes of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step<D> {
    /// Nothing is known yet. It may pass: without the rest nobody answers.
    Wait,
    /// There is a gap before it. Were it let through, the rest would never come together here; TCP
    /// sends it again.
    Early,
    /// The start of its connection is there. What is decided is to be [remembered](Flows::decide).
    Started(Start),
    /// What was decided about its connection before: it was on its way already.
    Decided(D),
}

/// The connections that are being watched. When there are too many, the one that has not been heard
/// of for the longest time is forgotten.
#[derive(Debug)]
pub(crate) struct Flows<D> {
    /// By a hash with a random key: clients choose their ports.
    flows: LruCache<Flow, State<D>, RandomState>,
}

type Flow = (SocketAddr, SocketAddr);

#[derive(Debug)]
enum State<D> {
    Starting { next: u32, stream: Vec<u8> },
    Decided(D),
}

impl<D: Clone> Flows<D> {
    pub(crate) fn new(most: NonZeroUsize) -> Self {
        Self { flows: LruCache::with_hasher(most, RandomState::new()) }
    }

    /// Follows a TCP segment from a client.
    pub(crate) fn follow(&mut self, segment: &Segment<'_>) -> Step<D> {
        let Some(tcp) = &segment.tcp else { return Step::Wait };
        let flow = (segment.source, segment.destination);
        let mut sequence = tcp.sequence_number();
        if tcp.rst() {
            self.flows.pop(&flow);
            return Step::Wait;
        }
        if tcp.syn() {
            // It counts itself; data may follow in the same segment (TCP Fast Open).
            sequence = sequence.wrapping_add(1);
            self.flows.push(flow, State::Starting { next: sequence, stream: Vec::new() });
        }
        if segment.payload.is_empty() {
            return Step::Wait;
        }
        // One that is older than the program, or forgotten, starts here if this looks like a start.
        let state = self
            .flows
            .get_or_insert_mut(flow, || State::Starting { next: sequence, stream: Vec::new() });
        let (next, stream) = match state {
            State::Decided(decision) => return Step::Decided(decision.clone()),
            State::Starting { next, stream } => (next, stream),
        };
        let ahead = sequence.wrapping_sub(*next);
        let seen = if ahead == 0 {
            0
        } else if ahead < 1 << 31 {
            return Step::Early;
        } else {
            ahead.wrapping_neg() as usize
        };
        let Some(data) = segment.payload.get(seen..).filter(|data| !data.is_empty()) else {
            return Step::Wait; // sent again
        };
        let room = STREAM_MAX.saturating_sub(stream.len());
        let data = data.get(..room).unwrap_or(data);
        stream.extend_from_slice(data);
        *next = next.wrapping_add(u32::try_from(data.len()).unwrap_or(u32::MAX));
        match hello::read(stream) {
            Start::Incomplete if stream.len() < STREAM_MAX => Step::Wait,
            Start::Incomplete => Step::Started(Start::Unreadable),
            start => Step::Started(start),
        }
    }

    /// Remembers what was decided, for segments that are on their way.
    pub(crate) fn decide(&mut self, segment: &Segment<'_>, decision: D) {
        self.flows.push((segment.source, segment.destination), State::Decided(decision));
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::hello::tests::stream_for;

    struct Client {
        flows: Flows<char>,
        port: u16,
    }

    impl Client {
        fn new(most: usize) -> Self {
            Self { flows: Flows::new(NonZeroUsize::new(most).expect("some")), port: 1000 }
        }

        fn packet(&self, sequence: u32, syn: bool, data: &[u8]) -> Vec<u8> {
            let mut packet = Vec::new();
            let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
            let builder = builder.tcp(self.port, 443, sequence, 1000);
            let builder = if syn { builder.syn() } else { builder.ack(1) };
            builder.write(&mut packet, data).expect("a packet");
            packet
        }

        fn send(&mut self, sequence: u32, data: &[u8]) -> Step<char> {
            let packet = self.packet(sequence, false, data);
            self.flows.follow(&Segment::parse(&packet).expect("TCP"))
        }

        fn connect(&mut self, sequence: u32, data: &[u8]) -> Step<char> {
            let packet = self.packet(sequence, true, data);
            self.flows.follow(&Segment::parse(&packet).expect("TCP"))
        }
    }

    fn is_hello(step: &Step<char>) -> bool {
        matches!(step, Step::Started(Start::Hello(hello)) if hello.name.as_deref() == Some("a.test"))
    }

    #[test]
    fn segments_are_put_together_across_the_end_of_the_sequence_numbers() {
        let stream = stream_for("a.test");
        let mut client = Client::new(4);
        let first = u32::MAX - 20;
        assert_eq!(client.connect(first.wrapping_sub(1), b""), Step::Wait);
        for (sequence, byte) in stream.iter().enumerate() {
            let sequence = first.wrapping_add(u32::try_from(sequence).expect("short"));
            let step = client.send(sequence, &[*byte]);
            let is_last = sequence == first.wrapping_add(stream.len() as u32 - 1);
            assert!(if is_last { is_hello(&step) } else { step == Step::Wait }, "{step:?}");
        }
    }

    #[test]
    fn what_comes_too_early_comes_again_and_what_is_known_does_no_harm() {
        let stream = stream_for("a.test");
        let mut client = Client::new(4);
        client.connect(99, b"");
        assert_eq!(client.send(140, &stream[40..]), Step::Early);
        assert_eq!(client.send(100, &stream[..40]), Step::Wait);
        assert_eq!(client.send(100, &stream[..40]), Step::Wait);
        assert_eq!(client.send(110, &stream[10..30]), Step::Wait);
        // Overlaps what is known.
        assert!(is_hello(&client.send(120, &stream[20..])));
    }

    #[test]
    fn data_may_come_with_the_first_segment() {
        let mut client = Client::new(4);
        assert!(is_hello(&client.connect(7, &stream_for("a.test"))));
    }

    #[test]
    fn a_decision_holds_until_the_next_connection() {
        let stream = stream_for("a.test");
        let mut client = Client::new(4);
        client.connect(99, b"");
        client.send(100, &stream);
        let packet = client.packet(100, false, &stream);
        client.flows.decide(&Segment::parse(&packet).expect("TCP"), 'd');
        assert_eq!(client.send(100, &stream), Step::Decided('d'));
        assert_eq!(client.send(9999, b"more"), Step::Decided('d'));
        client.connect(500, b"");
        assert_eq!(client.send(501, b"GET /"), Step::Started(Start::NotTls));
    }

    #[test]
    fn memory_is_bounded() {
        let mut client = Client::new(2);
        for port in 0..10 {
            client.port = port;
            client.connect(0, b"");
        }
        assert_eq!(client.flows.flows.len(), 2);
        // Records of one byte, without end.
        let mut message = vec![1, 0, 0x40, 0];
        message.resize(HELLO_LEN, 0);
        let stream: Vec<u8> = message.iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect();
        client.connect(0, b"");
        let mut sequence = 1;
        let unreadable = stream.chunks(1000).any(|chunk| {
            let step = client.send(sequence, chunk);
            sequence += chunk.len() as u32;
            step == Step::Started(Start::Unreadable)
        });
        assert!(unreadable && (sequence as usize) < STREAM_MAX + 2000, "{sequence}");
    }

    const HELLO_LEN: usize = 4 + 0x4000;
}
