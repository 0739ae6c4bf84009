//! What every contender hears and says: its arguments, and the lines between it and the harness.

use std::error::Error;
use std::io::{self, BufRead};
use std::process;
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

/// The error of a contender: shown, then it ends.
pub type Failure = Box<dyn Error + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    Drop,
    Accept,
    /// The last byte of the packet is inverted, nothing else is done.
    Flip,
    /// The first byte behind the transport header is changed, and the checksum with it.
    Recompute,
    Bypass,
    /// All packets are held back until the last has come, then accepted.
    Retain,
}

impl FromStr for Task {
    type Err = Failure;

    fn from_str(name: &str) -> Result<Self, Failure> {
        Ok(match name {
            "drop" => Self::Drop,
            "accept" => Self::Accept,
            "flip" => Self::Flip,
            "recompute" => Self::Recompute,
            "bypass" => Self::Bypass,
            "retain" => Self::Retain,
            _ => return Err(format!("unknown task {name}").into()),
        })
    }
}

#[derive(Debug)]
pub struct Arguments {
    pub first: u16,
    pub queues: u16,
    pub task: Task,
    /// The fastest settings, instead of those that a user gets who sets nothing.
    pub best: bool,
    /// The receive buffer to ask for.
    pub buffer: Option<usize>,
    /// The contender's own: `--door`, `--calls`.
    pub way: Option<String>,
}

impl Arguments {
    pub fn read() -> Result<Self, Failure> {
        let mut read =
            Self { first: 1, queues: 1, task: Task::Accept, best: false, buffer: None, way: None };
        let mut words = std::env::args().skip(1);
        while let Some(name) = words.next() {
            let value = words.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--queue" => read.first = value.parse()?,
                "--queues" => read.queues = value.parse()?,
                "--task" => read.task = value.parse()?,
                "--settings" => read.best = value == "best",
                "--buffer" => read.buffer = Some(value.parse()?),
                "--door" | "--calls" => read.way = Some(value),
                _ => return Err(format!("unknown option {name}").into()),
            }
        }
        Ok(read)
    }

    pub fn numbers(&self) -> impl Iterator<Item = u16> + use<> {
        (0..self.queues).map({
            let first = self.first;
            move |at| first + at
        })
    }
}

/// Judges the packets of one queue, in a thread of its own.
pub trait Worker: Send {
    /// Judges so many packets, or packets for ever. Returns how many system calls it made.
    fn judge(&mut self, count: Option<u64>) -> Result<u64, Failure>;
}

/// Says that it cannot do what was asked, which is no failure.
#[allow(dead_code, reason = "not every contender has something that it cannot do")]
pub fn unsupported(reason: &str) -> ! {
    println!("unsupported {reason}");
    process::exit(0);
}

/// Ends with the error, if there is one.
pub fn or_exit<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|error| {
        eprintln!("{}: {error}", std::env::args().next().unwrap_or_default());
        process::exit(1);
    })
}

/// The lines that the harness says. The process ends when it closes the pipe, which is also how its
/// death shows, whatever the other threads are at.
fn orders() -> mpsc::Receiver<String> {
    let (order, orders) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if order.send(or_exit(line.map_err(Into::into))).is_err() {
                return;
            }
        }
        process::exit(0);
    });
    orders
}

/// Does what the harness says.
///
/// The harness spreads packets evenly, so each worker judges its share without asking the others:
/// a counter in common would cost every packet a cache line.
pub fn converse(workers: Vec<Box<dyn Worker>>) -> Result<(), Failure> {
    let (report, reports) = mpsc::channel();
    let mut orders = Vec::new();
    for mut worker in workers {
        let (order, received) = mpsc::channel();
        let report = report.clone();
        orders.push(order);
        thread::spawn(move || {
            for count in received {
                let calls = or_exit(worker.judge(count));
                if report.send((Instant::now(), calls)).is_err() {
                    return;
                }
            }
        });
    }
    println!("ready");
    for line in self::orders() {
        let start = Instant::now();
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("judge", count) => {
                let (count, shares) = (count.parse::<u64>()?, orders.len() as u64);
                for (at, order) in (0..).zip(&orders) {
                    order.send(Some(count / shares + u64::from(at < count % shares)))?;
                }
                let reports: Vec<_> = reports.iter().take(orders.len()).collect();
                let end = reports.iter().map(|report| report.0).max().unwrap_or(start);
                let calls: u64 = reports.iter().map(|report| report.1).sum();
                println!("done {} calls={calls}", (end - start).as_nanos());
            }
            ("serve", _) => {
                for order in &orders {
                    order.send(None)?;
                }
            }
            ("rss", _) => println!("rss {}", resident_kib()?),
            _ => return Err(format!("unknown order {line}").into()),
        }
    }
    Ok(())
}

fn resident_kib() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no VmRSS")?.parse()?)
}

/// Where the data of a TCP or UDP packet over IPv4 begins; the generators send nothing else.
pub fn data_offset(packet: &[u8]) -> Option<usize> {
    let ip = usize::from(packet.first()? & 0xf) * 4;
    match packet.get(9)? {
        6 => Some(ip + usize::from(packet.get(ip + 12)? >> 4) * 4),
        17 => Some(ip + 8),
        _ => None,
    }
}
