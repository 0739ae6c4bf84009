//! The program under a queue: looks at each packet, checks it, and does what the plan says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use netfilterqueue::rules::Protocol;
use netfilterqueue::{Batch, Error, Hook, Packet, Queue, Verdict};

use crate::flight::Flight;
use crate::holder::{HOLD, Held, Holder, Task};
use crate::plan::{Fate, Pattern, QUEUES, STREAMS, UNHEARD_QUEUE};
use crate::streams;
use crate::trouble::Trouble;

const UDP_HEADER_LEN: usize = 8;

/// How long a packet with a deadline is kept.
const DEADLINE: Duration = Duration::from_millis(20);

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) pattern: Pattern,
    pub(crate) flights: [Flight; STREAMS.len()],
    pub(crate) seen: [Seen; QUEUES.len()],
    pub(crate) trouble: Trouble,
    /// Told to the senders, and when the queues are closed to the receivers.
    pub(crate) stop: AtomicBool,
    pub(crate) finish: AtomicBool,
}

/// What the program under a queue has seen, besides the datagrams.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Seen {
    pub(crate) segments: AtomicU64,
    pub(crate) super_packets: AtomicU64,
    /// Packets that were not copied whole.
    pub(crate) cut: AtomicU64,
}

/// Who judges retained packets.
pub(crate) enum Keeper {
    /// Another thread. From its first verdict on, the library uses cumulative verdicts no more.
    Thread(Sender<Held>),
    /// The thread that receives.
    Own(Holder),
}

/// Judges the packets of one queue.
pub(crate) struct Judge {
    /// Index of the queue.
    queue: usize,
    shared: Arc<Shared>,
    keeper: Keeper,
    /// Where other packets are put together.
    scratch: Vec<u8>,
}

impl Judge {
    pub(crate) fn new(queue: usize, shared: Arc<Shared>, keeper: Keeper) -> Self {
        Self { queue, shared, keeper, scratch: Vec::with_capacity(1 << 16) }
    }

    /// Judges until the queue is stopped, and what still waits then. Gives the queue back.
    pub(crate) fn run(mut self, mut queue: Queue) -> Result<Queue, Error> {
        let mut batch = Batch::new(64);
        let mut is_stopped = false;
        loop {
            let received = match &self.keeper {
                Keeper::Own(holder) if !is_stopped && !holder.is_empty() => {
                    queue.recv_timeout(&mut batch, HOLD)
                }
                _ => queue.recv(&mut batch),
            };
            match received {
                Err(Error::Stopped) => {
                    is_stopped = true;
                    queue.set_nonblocking(true);
                }
                Err(Error::WouldBlock) if is_stopped => return Ok(queue),
                Ok(_) | Err(Error::WouldBlock) => {}
                Err(error) => return Err(error),
            }
            for packet in &mut batch {
                self.judge(packet);
            }
            batch.commit()?;
            if let Keeper::Own(holder) = &mut self.keeper {
                holder.judge_due();
            }
        }
    }

    fn judge(&mut self, packet: Packet<'_>) {
        let shared = Arc::clone(&self.shared);
        let headers = Headers::read(packet.payload());
        match headers {
            Some(headers) if headers.protocol == Protocol::TCP => {
                let seen = &shared.seen[self.queue];
                if let Err(error) = streams::judge(packet, seen) {
                    shared.trouble.report(|| format!("a TCP segment cannot be edited: {error}"));
                }
            }
            Some(headers) => {
                let flights = &shared.flights;
                match flights.iter().find(|flight| flight.stream.to.port() == headers.port) {
                    Some(flight) => self.judge_datagram(packet, headers.data, &shared, flight),
                    None => self.wonder(packet),
                }
            }
            None => self.wonder(packet),
        }
    }

    fn wonder(&self, packet: Packet<'_>) {
        self.shared.trouble.report(|| format!("a packet that nobody has sent: {packet}"));
        packet.accept();
    }

    fn judge_datagram(
        &mut self,
        mut packet: Packet<'_>,
        data: usize,
        shared: &Shared,
        flight: &Flight,
    ) {
        let stream = &flight.stream;
        let datagram = packet.payload().get(data..).unwrap_or_default();
        let Some((key, body)) = stream.read(datagram) else { return self.wonder(packet) };
        let expected = shared.pattern.body(stream, stream.sent(key));
        let copied = match packet.original_len() {
            Some(_) => {
                shared.seen[self.queue].cut.fetch_add(1, Ordering::Relaxed);
                expected.get(..body.len()).unwrap_or_default()
            }
            None => expected,
        };
        if body != copied {
            let name = stream.name;
            shared.trouble.report(|| {
                format!("{name}: datagram {key} has other bytes than were sent: {packet}")
            });
        }
        let fate = stream.fate(key);
        // Its first queue sends it to the other one in three ways. Here is how it comes.
        let at_input = packet.hook() == Hook::INPUT;
        let mark = packet.mark().unwrap_or(0);
        if stream.queue == self.queue && !at_input && mark == 0 {
            flight.judged.count(fate);
            if stream.arriving(key).is_none() {
                flight.settle(stream.cost(key));
            }
            return self.decide(packet, data, flight, key, fate);
        }
        let (wanted_mark, wanted_input) = match fate {
            Fate::Mark => (stream.mark(key), true),
            Fate::Repeat => (stream.mark(key), false),
            _ => (0, false),
        };
        let is_right = stream.queue != self.queue
            && fate.is_seen_twice()
            && (mark, at_input) == (wanted_mark, wanted_input);
        if !is_right {
            shared.trouble.report(|| {
                let (name, fate) = (stream.name, fate.name());
                format!("{name}: datagram {key} ({fate}) must not come this way: {packet}")
            });
        }
        flight.seen_again.count(fate);
        // Or the rule at the input hook would queue it once more.
        if mark != 0 {
            packet.set_mark(0);
        }
        packet.accept();
    }

    fn decide(
        &mut self,
        mut packet: Packet<'_>,
        data: usize,
        flight: &Flight,
        key: u64,
        fate: Fate,
    ) {
        let stream = &flight.stream;
        let shared = Arc::clone(&self.shared);
        match fate {
            Fate::Accept => packet.accept(),
            Fate::Drop => packet.verdict(Verdict::Drop),
            Fate::Edit => {
                let body = shared.pattern.body(stream, stream.edited(key));
                match packet.payload_mut() {
                    Ok(payload) => write_body(payload, data + stream.number_len, body),
                    Err(error) => self.cannot_edit(&error),
                }
                packet.accept()
            }
            Fate::Replace => {
                let body = shared.pattern.body(stream, stream.edited(key));
                let headers = packet.payload().get(..data + stream.number_len);
                self.scratch.clear();
                self.scratch.extend_from_slice(headers.unwrap_or_default());
                self.scratch.extend_from_slice(body);
                if let Err(error) = packet.set_payload(&self.scratch) {
                    self.cannot_edit(&error);
                }
                packet.accept()
            }
            Fate::Mark => {
                packet.set_mark(stream.mark(key));
                packet.accept()
            }
            Fate::Repeat => {
                packet.set_mark(stream.mark(key));
                packet.verdict(Verdict::Repeat)
            }
            Fate::Pass => {
                let number = QUEUES[1 - self.queue];
                packet.verdict(Verdict::Queue { number, bypass: false })
            }
            Fate::Bypass => packet.verdict(Verdict::Queue { number: UNHEARD_QUEUE, bypass: true }),
            Fate::Unheard => {
                packet.verdict(Verdict::Queue { number: UNHEARD_QUEUE, bypass: false })
            }
            Fate::Stop => packet.verdict(Verdict::Stop),
            Fate::Forget => return,
            Fate::Abandon => packet.retain().1,
            Fate::HoldAccept => self.hold(packet, Task::Accept),
            Fate::HoldDrop => self.hold(packet, Task::Drop),
            Fate::HoldEdit => {
                let (stream, at) = (*stream, data + stream.number_len);
                self.hold(packet, Task::Edit { stream, key, at })
            }
            Fate::Expire => {
                let (mut packet, decided) = packet.retain();
                packet.set_deadline(Some(Instant::now() + DEADLINE));
                self.give(Held::new(packet, Task::Expire));
                decided
            }
        };
    }

    fn hold<'p>(&mut self, packet: Packet<'p>, task: Task) -> netfilterqueue::Decided<'p> {
        let (packet, decided) = packet.retain();
        self.give(Held::new(packet, task));
        decided
    }

    fn give(&mut self, held: Held) {
        match &mut self.keeper {
            Keeper::Own(holder) => holder.keep(held),
            Keeper::Thread(holder) => {
                if holder.send(held).is_err() {
                    let trouble = &self.shared.trouble;
                    trouble.report(|| "nobody holds retained packets any more".to_owned());
                }
            }
        }
    }

    fn cannot_edit(&self, error: &netfilterqueue::EditError) {
        self.shared.trouble.report(|| format!("a datagram cannot be edited: {error}"));
    }
}

/// Overwrites what follows the number.
pub(crate) fn write_body(payload: &mut [u8], at: usize, body: &[u8]) {
    if let Some(target) = payload.get_mut(at..)
        && target.len() == body.len()
    {
        target.copy_from_slice(body);
    }
}

/// The little that is read of a packet's headers.
#[derive(Debug, Clone, Copy)]
struct Headers {
    protocol: Protocol,
    /// The destination's.
    port: u16,
    /// Where the data of a datagram begins.
    data: usize,
}

impl Headers {
    fn read(payload: &[u8]) -> Option<Self> {
        let (protocol, transport) = match payload.first()? >> 4 {
            4 => (*payload.get(9)?, usize::from(payload[0] & 0x0f) * 4),
            _ => (*payload.get(6)?, 40),
        };
        let port = u16::from_be_bytes([*payload.get(transport + 2)?, *payload.get(transport + 3)?]);
        let data = transport + UDP_HEADER_LEN;
        Some(Self { protocol: Protocol(protocol), port, data })
    }
}
