//! Measures the time in the queue: from where the kernel has stamped a packet to where this program
//! reads it, and from there to its verdict. Prints percentiles from time to time, and at the end
//! with a distribution. All packets pass.
//!
//! Its rule queues what comes in (`--hook input`), all of it or what `--protocol`, `--dport`,
//! `--in` and their like choose; it goes away with the program. With `--work` each packet takes the
//! program longer, and one sees what becomes of the queue behind it.
//!
//! To try it on one machine, in a network of its own:
//!
//! ```text
//! cargo build --release -p netfilterqueue-programs
//! unshare -rn bash -c '
//!     ip link set lo up
//!     target/release/latency --protocol udp --work 100us & sleep 1
//!     for i in {1..2000}; do echo $i > /dev/udp/127.0.0.1/9; done
//!     sleep 1; kill -INT $!; wait $!'
//! ```
//!
//! Super-packets come whole unless `--no-gso` is given: as a program with the library's defaults
//! gets them. The kernel stamps packets while some socket asks for it, as one does here; that
//! costs all packets of the machine some nanoseconds. Clocks that jump between stamp and receipt
//! give no time, and are counted.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::cast_precision_loss, clippy::cast_possible_truncation)
)]

mod arguments;
mod times;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use netfilterqueue::{Batch, CopyMode, Packet, Queue, Timestamp, Verdict};
use netfilterqueue_programs::Session;
use socket2::{Domain, Socket, Type};

use crate::arguments::Arguments;
use crate::times::Times;

fn main() -> ExitCode {
    netfilterqueue_programs::main(|arguments: Arguments| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let _asking = ask_for_stamps()?;
    let queue = Queue::builder(arguments.options.queue)
        .gso(!arguments.no_gso)
        .copy_mode(CopyMode::Packet { range: arguments.copy })
        .max_len(16_384)
        .on_undecided(Verdict::Accept);
    let rule = arguments.selection.rule(arguments.options.queue);
    let mut session = Session::open(&arguments.options, queue, |rules| rules.rule(rule))?;
    let mut measured = Measured::new()?;
    let mut all = Measured::new()?;
    let measuring = measure(&mut session.queue, arguments, &mut measured, &mut all);
    // Those that still wait, too; their verdicts leave when the queue has been emptied.
    let finished = session.finish(|packet| {
        measured.receive(&packet, SystemTime::now());
        work(arguments.work);
        packet.accept()
    });
    all.absorb(&mut measured);
    measuring?;
    let stats = finished?;
    let mut stdout = io::stdout();
    all.print(&mut stdout, "all in all")?;
    write!(stdout, "{}", all.most_telling().bars())?;
    writeln!(stdout, "{} received, {} lost", stats.received, stats.lost)?;
    Ok(())
}

/// Judges packets until a signal comes, and prints what it has measured from time to time.
fn measure(
    queue: &mut Queue,
    arguments: &Arguments,
    measured: &mut Measured,
    all: &mut Measured,
) -> Result<(), Box<dyn Error>> {
    let mut batch = Batch::new(arguments.batch.into());
    let mut next = Instant::now() + arguments.interval;
    loop {
        let wait = next.saturating_duration_since(Instant::now());
        match queue.recv_timeout(&mut batch, wait) {
            Ok(_) => {
                let (received, clock) = (Instant::now(), SystemTime::now());
                for packet in &mut batch {
                    measured.receive(&packet, clock);
                    work(arguments.work);
                    packet.accept();
                }
                batch.commit()?;
                measured.answer(received.elapsed());
            }
            Err(netfilterqueue::Error::WouldBlock) => {}
            Err(netfilterqueue::Error::Stopped) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        if next <= Instant::now() {
            next = Instant::now() + arguments.interval;
            let title = format!("in {}", humantime::format_duration(arguments.interval));
            measured.print(&mut io::stdout(), &title)?;
            all.absorb(measured);
        }
    }
}

/// What a program would do with a packet.
fn work(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}

/// The kernel stamps packets while a socket on the machine wants it to.
fn ask_for_stamps() -> io::Result<Socket> {
    let explained =
        |error| io::Error::new(io::Error::kind(&error), format!("asking for time stamps: {error}"));
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).map_err(explained)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimestamp, &true)
        .map_err(|errno| explained(errno.into()))?;
    Ok(socket)
}

/// What was measured since it was last printed.
#[derive(Debug)]
struct Measured {
    in_queue: Times,
    in_program: Times,
    together: Times,
    without_stamp: u64,
    /// The clock was set back between the stamp and the receipt.
    out_of_time: u64,
    /// How long the packets of the batch at hand had waited; nothing of those without a stamp.
    batch: Vec<Option<Duration>>,
}

impl Measured {
    fn new() -> Result<Self, String> {
        Ok(Self {
            in_queue: Times::new()?,
            in_program: Times::new()?,
            together: Times::new()?,
            without_stamp: 0,
            out_of_time: 0,
            batch: Vec::new(),
        })
    }

    /// A packet was received at `now`, by the clock that stamps.
    fn receive(&mut self, packet: &Packet<'_>, now: SystemTime) {
        let stamp = packet.timestamp().and_then(Timestamp::to_system_time);
        let waited = stamp.map(|stamp| now.duration_since(stamp));
        match &waited {
            None => self.without_stamp += 1,
            Some(Err(_)) => self.out_of_time += 1,
            Some(Ok(waited)) => self.in_queue.record(*waited),
        }
        self.batch.push(waited.and_then(Result::ok));
    }

    /// The verdicts on the packets received last have been sent, so long after.
    fn answer(&mut self, after: Duration) {
        for waited in self.batch.drain(..) {
            self.in_program.record(after);
            if let Some(waited) = waited {
                self.together.record(waited + after);
            }
        }
    }

    fn absorb(&mut self, other: &mut Self) {
        self.in_queue.absorb(&mut other.in_queue);
        self.in_program.absorb(&mut other.in_program);
        self.together.absorb(&mut other.together);
        self.without_stamp += std::mem::take(&mut other.without_stamp);
        self.out_of_time += std::mem::take(&mut other.out_of_time);
    }

    fn most_telling(&self) -> &Times {
        if self.together.len() > 0 { &self.together } else { &self.in_program }
    }

    fn print(&self, out: &mut impl Write, title: &str) -> io::Result<()> {
        let packets = self.in_queue.len() + self.without_stamp + self.out_of_time;
        write!(out, "{title}: {packets} packets")?;
        if self.without_stamp > 0 {
            write!(out, ", {} without a time stamp", self.without_stamp)?;
        }
        if self.out_of_time > 0 {
            write!(out, ", {} stamped in the future", self.out_of_time)?;
        }
        writeln!(out)?;
        for (name, times) in [
            ("in the queue  ", &self.in_queue),
            ("in the program", &self.in_program),
            ("together      ", &self.together),
        ] {
            if times.len() > 0 {
                writeln!(out, "  {name} {times}")?;
            }
        }
        out.flush()
    }
}
