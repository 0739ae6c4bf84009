//! What the kernel's interface allows: `recvmmsg` of 64 and one cumulative verdict for each, no
//! books kept and nothing checked. Not a way to write a program: a packet that the socket could not
//! take, or one held back, would get a verdict that was meant for another.
//!
//! `--calls single`: one `recv` and one `send` for each packet instead. Edited
//! packets go back as many in a datagram as the default send buffer takes.

mod dialogue;
mod raw;

use dialogue::{Arguments, Failure, Task, Worker};
use raw::{HEAD_LEN, Ring, SLOTS, Socket};

/// How many packets are received by a call that waits.
const FEW: usize = 4;

const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// `NFQNL_MSG_VERDICT` and `NFQNL_MSG_VERDICT_BATCH` of the subsystem of queues.
const VERDICT: u16 = 3 << 8 | 1;
const VERDICT_BATCH: u16 = 3 << 8 | 3;

/// Where a packet's id is in the kernel's message: behind two headers and that of the attribute.
const ID: usize = 24;

/// As the library's.
const RECEIVE_BUFFER: usize = 8 << 20;

fn main() {
    dialogue::or_exit(run());
}

fn run() -> Result<(), Failure> {
    let arguments = Arguments::read()?;
    if matches!(arguments.task, Task::Bypass | Task::Retain) {
        dialogue::unsupported("the limit has no flow bypass and keeps no packets");
    }
    let bind = |queue| -> Result<Box<dyn Worker>, Failure> {
        let socket = Socket::open(arguments.buffer.unwrap_or(RECEIVE_BUFFER))?;
        socket.bind(queue)?;
        let single = arguments.way.as_deref() == Some("single");
        let (task, ring) = (arguments.task, Ring::new());
        Ok(Box::new(Limit { socket, queue, task, single, most: SLOTS, ring }))
    };
    dialogue::converse(arguments.numbers().map(bind).collect::<Result<_, _>>()?)
}

struct Limit {
    socket: Socket,
    queue: u16,
    task: Task,
    single: bool,
    /// How many packets the next receive call asks for.
    most: usize,
    ring: Ring,
}

impl Worker for Limit {
    fn judge(&mut self, count: Option<u64>) -> Result<u64, Failure> {
        let (mut left, mut calls) = (count.unwrap_or(u64::MAX), 0);
        while left > 0 {
            let received = if self.single {
                self.ring.receive_one(&self.socket)?
            } else {
                let most = self.most.min(usize::try_from(left).unwrap_or(SLOTS));
                let received = self.ring.receive_many(&self.socket, most)?;
                // The queue is empty, so the next call waits.
                self.most = if received < most { FEW } else { SLOTS };
                received
            };
            left -= received as u64;
            calls += 1 + match self.task {
                Task::Flip | Task::Recompute => self.edit(received)?,
                Task::Drop => self.judge_all(received, DROP)?,
                _ => self.judge_all(received, ACCEPT)?,
            };
        }
        Ok(calls)
    }
}

impl Limit {
    /// One verdict for all up to the last one.
    fn judge_all(&mut self, received: usize, verdict: u32) -> Result<u64, Failure> {
        let kind = if self.single { VERDICT } else { VERDICT_BATCH };
        let message = self.ring.message(received - 1);
        let head = head(kind, self.queue, verdict, id(message), None);
        self.socket.send(&head[..32])?;
        Ok(1)
    }

    fn edit(&mut self, received: usize) -> Result<u64, Failure> {
        let (mut payloads, mut ids) = ([(0, 0); SLOTS], [0; SLOTS]);
        for at in 0..received {
            let message = self.ring.message(at);
            let (start, len) = payload(message);
            (payloads[at], ids[at]) = ((start, len), id(message));
            let packet = &mut message[start..start + len];
            match self.task {
                Task::Flip => *packet.last_mut().expect("a packet has bytes") ^= 0xff,
                _ => recompute(packet),
            }
        }
        let queue = self.queue;
        let head = |at, len| head(VERDICT, queue, ACCEPT, ids[at], Some(len));
        Ok(self.ring.send_payloads(&self.socket, &payloads[..received], head)?)
    }
}

fn id(message: &[u8]) -> u32 {
    u32::from_be_bytes(message[ID..ID + 4].try_into().expect("four bytes"))
}

/// Where the payload begins, and its length.
fn payload(message: &[u8]) -> (usize, usize) {
    const NFQA_PAYLOAD: u16 = 10;
    let mut at = 20;
    loop {
        let field = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
        let len = usize::from(field(at));
        if field(at + 2) == NFQA_PAYLOAD {
            return (at + 4, len - 4);
        }
        at += len.next_multiple_of(4);
    }
}

/// A verdict message. The payload, if there is one, is to follow; without one the last four bytes
/// are not sent.
fn head(kind: u16, queue: u16, verdict: u32, id: u32, payload: Option<usize>) -> [u8; HEAD_LEN] {
    const REQUEST: u16 = 1;
    const NFQA_VERDICT_HDR: u16 = 2;
    const NFQA_PAYLOAD: u16 = 10;
    let mut head = [0; HEAD_LEN];
    let len = payload.map_or(32, |len| HEAD_LEN + len);
    head[..4].copy_from_slice(&(len as u32).to_ne_bytes());
    head[4..6].copy_from_slice(&kind.to_ne_bytes());
    head[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    head[18..20].copy_from_slice(&queue.to_be_bytes());
    head[20..22].copy_from_slice(&12_u16.to_ne_bytes());
    head[22..24].copy_from_slice(&NFQA_VERDICT_HDR.to_ne_bytes());
    head[24..28].copy_from_slice(&verdict.to_be_bytes());
    head[28..32].copy_from_slice(&id.to_be_bytes());
    let attribute = payload.map_or(0, |len| len + 4) as u16;
    head[32..34].copy_from_slice(&attribute.to_ne_bytes());
    head[34..36].copy_from_slice(&NFQA_PAYLOAD.to_ne_bytes());
    head
}

/// Changes the first byte of data and writes the whole transport checksum anew.
fn recompute(packet: &mut [u8]) {
    if let Some(at) = dialogue::data_offset(packet)
        && let Some(first) = packet.get_mut(at)
    {
        *first ^= 0x01;
    }
    let ip = usize::from(packet[0] & 0xf) * 4;
    let place = ip + if packet[9] == 6 { 16 } else { 6 };
    packet[place..place + 2].fill(0);
    let pseudo = sum(&packet[12..20]) + u64::from(u16::from(packet[9]).to_be());
    let len = (packet.len() - ip) as u16;
    let sum = pseudo + u64::from(len.to_be()) + sum(&packet[ip..]);
    packet[place..place + 2].copy_from_slice(&fold(sum).to_ne_bytes());
}

/// The sum in host order, which may be swapped at the end as well as at each word. Both halves of
/// wide words, which the compiler makes vectors of; 64 bits hold the carries of any packet.
fn sum(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let (mut high, mut low) = (0, 0);
    for block in blocks {
        let block = u64::from_ne_bytes(*block);
        high += block >> 32;
        low += block & 0xffff_ffff;
    }
    let last = u64::from_ne_bytes(last);
    high + low + (last >> 32) + (last & 0xffff_ffff)
}

fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
