//! Makes a network bad on purpose, to test what becomes of a program in it: loss (also in bursts),
//! delay, jitter, duplicates, reordering, corruption, and a low rate.
//!
//! Its rule queues everything at a hook, or what `--protocol`, `--dport`, `--in` and their like
//! choose; it goes away with the program. A seed repeats a run.
//!
//! To try it on one machine, in a network of its own:
//!
//! ```text
//! cargo build --release -p netfilterqueue-programs
//! unshare -rn bash -c '
//!     ip link set lo up
//!     python3 -m http.server --bind 127.0.0.1 8080 > /dev/null 2>&1 &
//!     sleep 1
//!     target/release/chaos --protocol tcp --dport 8080 --delay 50ms --jitter 20ms --loss 2 &
//!     sleep 1
//!     for i in {1..5}; do
//!         curl -so /dev/null -w "%{time_total} s\n" http://127.0.0.1:8080/
//!     done
//!     kill -INT %2; wait %2; kill %1'
//! ```
//!
//! Kernels since 7.2 take damaged packets (`--corrupt`) back only in the initial user namespace, and
//! drop them elsewhere, without an error.
//!
//! Packets are taken as they are on the wire (GSO off): a super-packet of 40 segments would be lost
//! or held as one.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::cast_precision_loss, clippy::cast_possible_truncation)
)]

mod arguments;
mod copies;
mod data;
mod fate;
mod link;

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use netfilterqueue::{Decided, EditMode, Packet, Queue, RetainedPacket, Verdict};
use netfilterqueue_programs::{Session, Work, tell};

use crate::arguments::Arguments;
use crate::copies::{Copier, Copy};
use crate::fate::{Chance, Fate};
use crate::link::{Link, Underway};

/// Room in the kernel's queue beyond what is held here, for what comes while the program works.
const SPARE: u32 = 4096;

fn main() -> ExitCode {
    netfilterqueue_programs::main(|arguments: Arguments| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut chaos = Chaos::new(arguments, seed)?;
    let queue = Queue::builder(arguments.options.queue)
        .gso(false)
        .max_len(arguments.limit + SPARE)
        .on_undecided(Verdict::Accept);
    let mut rule = arguments.selection.rule(arguments.options.queue);
    if chaos.copier.is_some() {
        rule = rule.mark_masked(0, arguments.copy_bit);
    }
    let session = Session::open(&arguments.options, queue, |rules| rules.rule(rule))?;
    tell(format_args!("seed {seed}; --seed {seed} repeats this run"));
    let stats = session.serve(&mut chaos)?;
    let mut stdout = io::stdout();
    writeln!(stdout, "{}", chaos.counts)?;
    if stats.lost > 0 {
        writeln!(stdout, "{} came too fast to be received", stats.lost)?;
    }
    Ok(())
}

/// What happens to packets, and those that are on their way.
#[derive(Debug)]
struct Chaos {
    chance: Chance,
    link: Link,
    underway: Underway<Parcel>,
    copier: Option<Copier>,
    counts: Counts,
    holds: bool,
    limit: usize,
    beyond_limit: Verdict,
    reorder_by: u32,
    reorder_wait: Duration,
    edit_mode: EditMode,
}

#[derive(Debug)]
enum Parcel {
    Packet(RetainedPacket),
    Copy(Copy),
}

#[derive(Debug, Default)]
struct Counts {
    received: u64,
    lost: u64,
    overflowed: u64,
    corrupted: u64,
    reordered: u64,
    duplicated: u64,
    not_copied: u64,
    unanswered: u64,
}

impl Chaos {
    fn new(arguments: &Arguments, seed: u64) -> Result<Self, Box<dyn Error>> {
        let copier = (arguments.duplicate > 0.0).then(|| Copier::open(arguments.copy_bit));
        Ok(Self {
            chance: Chance::new(arguments, seed)?,
            link: Link::new(arguments.rate, arguments.delay, arguments.keep_order),
            underway: Underway::new(),
            copier: copier.transpose()?,
            counts: Counts::default(),
            holds: arguments.holds(),
            limit: arguments.limit as usize,
            beyond_limit: match arguments.options.fail_open {
                true => Verdict::Accept,
                false => Verdict::Drop,
            },
            reorder_by: arguments.reorder_by,
            reorder_wait: arguments.reorder_wait,
            edit_mode: match arguments.valid_checksums {
                true => EditMode::Complete,
                false => EditMode::Raw,
            },
        })
    }

    fn corrupt(&mut self, packet: &mut Packet<'_>, at: f64) {
        let data = data::range(packet.payload());
        if data.is_empty() {
            return;
        }
        packet.set_edit_mode(self.edit_mode);
        // What cannot be edited, such as a packet longer than the kernel copies, stays as it is.
        let bytes = packet.payload_mut().ok().and_then(|bytes| bytes.get_mut(data));
        if bytes.is_some_and(|data| data::turn_over(data, at)) {
            self.counts.corrupted += 1;
        }
    }

    /// Sends a packet on its way, and its copy behind it.
    fn send(&mut self, packet: RetainedPacket, fate: &Fate) {
        let now = Instant::now();
        let bytes = packet.original_len().map_or(packet.payload().len(), |len| len as usize);
        let copy = fate.is_duplicated.then(|| {
            // A packet that was cut off cannot be sent again.
            let is_whole = packet.original_len().is_none();
            let interface = packet.outdev().or(packet.indev());
            is_whole.then(|| Copy::of(packet.payload(), packet.mark(), interface)).flatten()
        });
        self.counts.reordered += u64::from(fate.is_reordered);
        let at = self.link.send(now, bytes, fate.jitter[0]);
        self.send_parcel(at, Parcel::Packet(packet), fate);
        match copy {
            None => {}
            Some(Some(copy)) => {
                let at = self.link.send(now, bytes, fate.jitter[1]);
                self.send_parcel(at, Parcel::Copy(copy), fate);
            }
            Some(None) => self.counts.not_copied += 1,
        }
    }

    fn send_parcel(&mut self, at: Instant, parcel: Parcel, fate: &Fate) {
        if fate.is_reordered {
            self.underway.set_aside(parcel, self.reorder_by, at + self.reorder_wait);
        } else {
            self.underway.send(at, parcel);
        }
    }

    fn deliver(&mut self, parcel: Parcel) {
        match parcel {
            Parcel::Packet(packet) => {
                if let Err(not_sent) = packet.accept() {
                    // Dropped here, it gets the default verdict, which is the same, later.
                    self.counts.unanswered += 1;
                    tell(not_sent);
                }
            }
            Parcel::Copy(copy) => match self.copier.as_mut().map(|copier| copier.send(&copy)) {
                Some(Ok(())) => self.counts.duplicated += 1,
                _ => self.counts.not_copied += 1,
            },
        }
    }
}

impl Work for Chaos {
    fn judge<'p>(&mut self, mut packet: Packet<'p>) -> Decided<'p> {
        self.counts.received += 1;
        let fate = self.chance.next();
        if fate.is_lost {
            self.counts.lost += 1;
            return packet.verdict(Verdict::Drop);
        }
        if self.holds && self.underway.len() >= self.limit {
            self.counts.overflowed += 1;
            return packet.verdict(self.beyond_limit);
        }
        if let Some(at) = fate.corrupt_at {
            self.corrupt(&mut packet, at);
        }
        if !self.holds {
            return packet.accept();
        }
        let (packet, decided) = packet.retain();
        self.send(packet, &fate);
        decided
    }

    fn due(&self) -> Option<Instant> {
        self.underway.next()
    }

    fn act(&mut self, now: Instant) -> Result<(), Box<dyn Error>> {
        while let Some(parcel) = self.underway.arrived(now) {
            self.deliver(parcel);
        }
        Ok(())
    }

    fn end(&mut self) {
        for parcel in self.underway.take_all() {
            self.deliver(parcel);
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { received, lost, overflowed, corrupted, reordered, duplicated, .. } = self;
        write!(
            f,
            "{received} received, {lost} lost, {overflowed} overflowed, {corrupted} corrupted, \
             {reordered} reordered, {duplicated} duplicated"
        )?;
        if self.not_copied > 0 {
            write!(f, ", {} not duplicated (too long, no IP, or no room)", self.not_copied)?;
        }
        if self.unanswered > 0 {
            write!(f, ", {} without an answer", self.unanswered)?;
        }
        Ok(())
    }
}
