//! What every contender in Rust needs besides its library: the arguments, the lines on stdin and
//! stdout, a thread per queue, and the edits. A file that the small packages share by `#[path]`,
//! not a crate, so that each of them can be built without the rest.

use std::io::{self, BufRead, ErrorKind, Write};
use std::os::fd::AsFd;
use std::process::exit;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::spawn;
use std::time::Instant;

use nix::sys::socket::{setsockopt, sockopt};

/// What the library that is measured has by default; `best` has it where there is a way to set it.
#[allow(dead_code)] // nfq 0.2.5 has none
pub const RECEIVE_BUFFER: usize = 8 << 20;

/// As many packets as the kernel can be asked to hold; it stops at 65,536 by itself.
pub const QUEUE_LEN: u32 = 131_072;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Task {
    Drop,
    Accept,
    Flip,
    Recompute,
    Retain,
}

pub struct Settings {
    pub best: bool,
    pub buffer: Option<usize>,
}

/// One queue, bound with a library.
pub trait Contender: Send {
    /// A packet that has no verdict yet, in whatever form the library hands it out.
    type Packet;

    /// Waits for the next packet. `None`: something else came.
    fn receive(&mut self) -> io::Result<Option<Self::Packet>>;

    /// Does the task's edit, if it has one, and sends the verdict.
    fn judge(&mut self, packet: Self::Packet, task: Task) -> io::Result<()>;

    /// System calls made so far.
    fn calls(&self) -> u64;
}

/// The receive buffer that the harness wants, if it wants one.
pub fn prepare(socket: &impl AsFd, settings: &Settings) -> io::Result<()> {
    match settings.buffer {
        Some(bytes) => set_receive_buffer(socket, bytes),
        None => Ok(()),
    }
}

/// Beyond net.core.rmem_max only with privileges in the initial user namespace.
pub fn set_receive_buffer(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &bytes)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes))?;
    Ok(())
}

/// The result of a receive call, with its harmless failures sorted out.
pub fn received<P>(result: io::Result<P>) -> io::Result<Option<P>> {
    match result {
        Ok(packet) => Ok(Some(packet)),
        Err(error) => match error.kind() {
            // NotFound: the answer to an earlier verdict on a packet that the kernel has dropped
            // by itself, because a rule set was changed for example.
            ErrorKind::Interrupted | ErrorKind::NotFound => Ok(None),
            _ => Err(error),
        },
    }
}

/// One queue and the thread that judges its packets.
struct Worker<C: Contender> {
    contender: C,
    task: Task,
}

impl<C: Contender> Worker<C> {
    /// Judges so many packets, or packets for ever.
    fn work(&mut self, count: Option<u64>) -> io::Result<()> {
        let (mut left, mut held) = (count.unwrap_or(u64::MAX), Vec::new());
        while left > 0 {
            let Some(packet) = self.contender.receive()? else { continue };
            left -= 1;
            if self.task == Task::Retain {
                held.push(packet);
            } else {
                self.contender.judge(packet, self.task)?;
            }
        }
        held.into_iter().try_for_each(|packet| self.contender.judge(packet, Task::Accept))
    }
}

/// The lines of stdin. When it is closed the process ends, even while packets are judged.
fn orders() -> Receiver<String> {
    let (order, orders) = channel();
    spawn(move || {
        for line in io::stdin().lock().lines() {
            let _ = order.send(line.unwrap_or_else(|error| fail(error)));
        }
        exit(0)
    });
    orders
}

fn fail(error: impl std::fmt::Display) -> ! {
    eprintln!("{error}");
    exit(1)
}

fn unsupported(reason: &str) -> ! {
    println!("unsupported {reason}");
    exit(0)
}

fn say(line: &str) {
    println!("{line}");
    io::stdout().flush().unwrap_or_else(|error| fail(error));
}

fn rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// The whole program, but for how a queue is bound.
pub fn run<C: Contender + 'static>(bind: impl Fn(u16, &Settings) -> io::Result<C>) -> ! {
    let (mut first, mut queues, mut task) = (0u16, 1u16, Task::Accept);
    let mut settings = Settings { best: false, buffer: None };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().unwrap_or_default();
        let number = || value.parse::<u64>().unwrap_or_else(|_| fail(format!("{name} {value:?}?")));
        match name.as_str() {
            "--queue" => first = number() as u16,
            "--queues" => queues = number() as u16,
            "--buffer" => settings.buffer = Some(number() as usize),
            "--settings" => settings.best = value == "best",
            "--task" => {
                task = match value.as_str() {
                    "drop" => Task::Drop,
                    "accept" => Task::Accept,
                    "flip" => Task::Flip,
                    "recompute" => Task::Recompute,
                    "retain" => Task::Retain,
                    "bypass" => unsupported("the library cannot decide about a whole flow"),
                    _ => unsupported("unknown task"),
                }
            }
            _ => fail(format!("unknown option {name}")),
        }
    }
    // All are bound here, one after the other: the first failure is the one to tell of.
    let bind = |queue| bind(queue, &settings).unwrap_or_else(|error| fail(error));
    let contenders: Vec<_> = (first..first + queues).map(bind).collect();
    let (report, reports) = channel();
    let mut workers = Vec::new();
    for contender in contenders {
        let (order, received) = channel::<Option<u64>>();
        let report = report.clone();
        workers.push(order);
        spawn(move || {
            // The calls that bound the queue belong to nobody's packets.
            let mut calls = contender.calls();
            let mut worker = Worker { contender, task };
            for count in received {
                worker.work(count).unwrap_or_else(|error| fail(error));
                let before = std::mem::replace(&mut calls, worker.contender.calls());
                let _ = report.send((Instant::now(), calls - before));
            }
        });
    }
    let order = |worker: &Sender<_>, count| {
        worker.send(count).unwrap_or_else(|error| fail(error));
    };
    say("ready");
    for line in orders() {
        let start = Instant::now();
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("judge", packets) => {
                let packets: u64 = packets.parse().unwrap_or_else(|_| fail("judge how many?"));
                let shares = workers.len() as u64;
                // Spread evenly by the harness; a counter in common would cost each a cache line.
                for (at, worker) in (0..).zip(&workers) {
                    order(worker, Some(packets / shares + u64::from(at < packets % shares)));
                }
                let reports: Vec<_> = reports.iter().take(workers.len()).collect();
                let end = reports.iter().map(|report| report.0).max().unwrap_or(start);
                let calls: u64 = reports.iter().map(|report| report.1).sum();
                say(&format!("done {} calls={calls}", end.duration_since(start).as_nanos()));
            }
            ("serve", _) => workers.iter().for_each(|worker| order(worker, None)),
            ("rss", _) => say(&format!("rss {}", rss())),
            _ => fail(format!("unknown line {line:?}")),
        }
    }
    exit(0)
}

/// Turns the packet's last byte round. Its checksum is not looked at: the task is about packets
/// that have none.
pub fn flip(packet: &mut [u8]) {
    if let Some(last) = packet.last_mut() {
        *last ^= 0xff;
    }
}

/// Changes the first byte that TCP or UDP carries and sets the checksum over the whole segment,
/// which must be done anew: a super-packet's is not filled in. False: neither TCP nor UDP over
/// IPv4 or IPv6 without extension headers, and nothing was changed.
pub fn recompute(packet: &mut [u8]) -> bool {
    let (start, protocol, addresses) = match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => (usize::from(packet[0] & 15) * 4, packet[9], 12..20),
        Some(6) if packet.len() >= 40 => (40, packet[6], 8..40),
        _ => return false,
    };
    let Some(segment_len) = packet.len().checked_sub(start) else { return false };
    let (data, checksum) = match protocol {
        6 if segment_len >= 20 => (start + usize::from(packet[start + 12] >> 4) * 4, start + 16),
        17 if segment_len >= 8 => (start + 8, start + 6),
        _ => return false,
    };
    if let Some(byte) = packet.get_mut(data) {
        *byte ^= 1;
    }
    packet[checksum..checksum + 2].fill(0);
    let pseudo = wide_sum(&packet[addresses])
        + u64::from((u32::from(protocol) + segment_len as u32).to_be());
    let mut sum = pseudo + wide_sum(&packet[start..]);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let value = match !(sum as u16) {
        0 => 0xffff, // zero says "no checksum" in UDP; both mean the same in TCP
        value => value,
    };
    packet[checksum..checksum + 2].copy_from_slice(&value.to_ne_bytes());
    true
}

/// The sum of 32-bit words, which folds to the same 16 bits as that of 16-bit words, in the
/// host's byte order (RFC 1071). A plain loop: the compiler makes vector instructions of it.
fn wide_sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let sum: u64 =
        words.by_ref().map(|word| u64::from(u32::from_ne_bytes(word.try_into().unwrap()))).sum();
    let mut rest = [0; 4];
    rest[..words.remainder().len()].copy_from_slice(words.remainder());
    sum + u64::from(u32::from_ne_bytes(rest))
}
