//! What every contender in Rust needs besides its library: the arguments, the lines on stdin and
//! stdout, a thread per queue, and the edits. A file that the small packages share by `#[path]`,
//! not a crate, so that each of them can be built without the rest.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::process::exit;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

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

    /// Waits for the next packet. `None`: none came within the time that [`prepare`] sets.
    fn receive(&mut self) -> io::Result<Option<Self::Packet>>;

    /// Does the task's edit, if it has one, and sends the verdict.
    fn judge(&mut self, packet: Self::Packet, task: Task) -> io::Result<()>;

    /// Makes a packet outlive the next call of `receive`, where the library does not do that.
    fn hold(&mut self, packet: Self::Packet) -> Self::Packet {
        packet
    }

    /// System calls made so far.
    fn calls(&self) -> u64;
}

/// Sets what none of these libraries has a knob for. The time limit lets a thread whose queue has
/// run empty see that another thread judged the last packet; it costs nothing while packets come.
pub fn prepare(socket: &impl AsFd, settings: &Settings) -> io::Result<()> {
    if let Some(bytes) = settings.buffer {
        // Beyond net.core.rmem_max only with privileges in the initial user namespace.
        setsockopt(socket, sockopt::RcvBufForce, &bytes)
            .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes))?;
    }
    Ok(setsockopt(socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))?)
}

/// The result of a receive call, with its harmless failures sorted out.
pub fn received<P>(result: io::Result<P>) -> io::Result<Option<P>> {
    match result {
        Ok(packet) => Ok(Some(packet)),
        Err(error) => match error.kind() {
            // NotFound: the answer to an earlier verdict on a packet that the kernel has dropped
            // by itself, because a rule set was changed for example.
            ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NotFound => Ok(None),
            _ => Err(error),
        },
    }
}

/// What the threads share. The counts only grow, so that no thread can mistake one `judge` for
/// another. Two threads may both take what only one of them should if packets go on coming: the
/// one too many is counted for the next `judge`.
#[derive(Default)]
struct Progress {
    wanted: AtomicU64,
    held: AtomicU64,
    judged: AtomicU64,
    end: Mutex<Option<Instant>>,
    sleepers: Mutex<()>,
    more: Condvar,
}

impl Progress {
    fn want(&self, packets: u64) {
        let _sleepers = self.sleepers.lock().unwrap();
        let wanted = self.wanted.load(Relaxed);
        self.wanted.store(wanted.saturating_add(packets), Relaxed);
        self.more.notify_all();
    }

    fn idle(&self) -> bool {
        self.judged.load(Relaxed) >= self.wanted.load(Relaxed)
    }

    fn sleep(&self) {
        let mut guard = self.sleepers.lock().unwrap();
        while self.idle() {
            guard = self.more.wait(guard).unwrap();
        }
    }

    fn one_more_judged(&self) {
        if self.judged.fetch_add(1, Relaxed) + 1 == self.wanted.load(Relaxed) {
            *self.end.lock().unwrap() = Some(Instant::now());
        }
    }
}

struct Worker<C: Contender> {
    contender: C,
    task: Task,
    /// Received when enough were judged already: for the next `judge`.
    early: Option<C::Packet>,
    held: Vec<C::Packet>,
}

impl<C: Contender> Worker<C> {
    /// Judges until all threads together have judged as many as are wanted.
    fn work(&mut self, progress: &Progress, calls: &AtomicU64) -> io::Result<()> {
        while !progress.idle() {
            if self.task == Task::Retain
                && progress.held.load(Relaxed) >= progress.wanted.load(Relaxed)
            {
                for packet in std::mem::take(&mut self.held) {
                    self.contender.judge(packet, Task::Accept)?;
                    progress.one_more_judged();
                }
                if progress.idle() {
                    break;
                }
                // The other threads are still at it, with theirs.
                std::thread::yield_now();
                continue;
            }
            let packet = match self.early.take() {
                Some(packet) => packet,
                None => match self.contender.receive()? {
                    Some(packet) => packet,
                    None => continue,
                },
            };
            if progress.idle() {
                self.early = Some(self.contender.hold(packet));
            } else if self.task == Task::Retain {
                let packet = self.contender.hold(packet);
                self.held.push(packet);
                progress.held.fetch_add(1, Relaxed);
            } else {
                self.contender.judge(packet, self.task)?;
                progress.one_more_judged();
            }
        }
        calls.store(self.contender.calls(), Relaxed);
        Ok(())
    }
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
pub fn run<C: Contender>(bind: impl Fn(u16, &Settings) -> io::Result<C>) -> !
where
    C::Packet: Send,
{
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
    let mut workers: Vec<_> = (first..first + queues)
        .map(|queue| {
            let contender = bind(queue, &settings).unwrap_or_else(|error| fail(error));
            Worker { contender, task, early: None, held: Vec::new() }
        })
        .collect();

    let progress = Progress::default();
    let calls: Vec<AtomicU64> = workers.iter().map(|_| AtomicU64::new(0)).collect();
    let mut mine = workers.remove(0);
    std::thread::scope(|scope| {
        for (worker, calls) in workers.iter_mut().zip(&calls[1..]) {
            let progress = &progress;
            scope.spawn(move || {
                loop {
                    progress.sleep();
                    worker.work(progress, calls).unwrap_or_else(|error| fail(error));
                }
            });
        }
        say("ready");
        // The calls that bound the queues belong to nobody's packets.
        let mut calls_before = mine.contender.calls();
        let mut line = String::new();
        // Not `lines`, which would keep stdin locked while `serve` waits for its end.
        while io::stdin().read_line(&mut line).unwrap_or_else(|error| fail(error)) > 0 {
            let start = Instant::now();
            match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
                ("judge", packets) => {
                    *progress.end.lock().unwrap() = None;
                    progress.want(packets.parse().unwrap_or_else(|_| fail("judge how many?")));
                    mine.work(&progress, &calls[0]).unwrap_or_else(|error| fail(error));
                    if calls.len() > 1 {
                        // Those that wait in a receive call count theirs when they come back.
                        std::thread::sleep(Duration::from_millis(120));
                    }
                    let end = progress.end.lock().unwrap().unwrap_or(start);
                    let calls_now: u64 = calls.iter().map(|calls| calls.load(Relaxed)).sum();
                    let nanoseconds = end.duration_since(start).as_nanos();
                    say(&format!("done {nanoseconds} calls={}", calls_now - calls_before));
                    calls_before = calls_now;
                }
                ("serve", _) => {
                    std::thread::spawn(|| {
                        let _ = io::copy(&mut io::stdin(), &mut io::sink());
                        exit(0);
                    });
                    progress.want(u64::MAX);
                    mine.work(&progress, &calls[0]).unwrap_or_else(|error| fail(error));
                }
                ("rss", _) => say(&format!("rss {}", rss())),
                _ => fail(format!("unknown line {line:?}")),
            }
            line.clear();
        }
        exit(0)
    })
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
