//! Limits how much each source may send: a bucket of tokens per source address, for a bounded
//! number of sources. What is beyond the limit is dropped, or marked for other rules to deal with.
//!
//! Its rule queues what comes in (`--hook input`), all of it or what `--protocol`, `--dport`,
//! `--in` and their like choose; it goes away with the program.
//!
//! To try it on one machine, in a network of its own:
//!
//! ```text
//! cargo build --release -p netfilterqueue-programs
//! unshare -rn bash -c '
//!     ip link set lo up
//!     target/release/ratelimit --packets 5 --burst 10 --protocol udp & sleep 1
//!     for i in {1..50}; do echo $i > /dev/udp/127.0.0.1/9; done
//!     for i in {1..20}; do echo $i > /dev/udp/::1/9; done
//!     kill -INT $!; wait $!'
//! ```
//!
//! Packets are counted as they are on the wire (GSO off). Only their headers are copied. Fragments
//! have a source, too, and count each. A source address proves nothing: what was made up costs its
//! maker a bucket per address, and everybody else nothing, until there are more than `--sources`.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::cast_precision_loss, clippy::cast_possible_truncation)
)]

mod arguments;
mod buckets;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use netfilterqueue::{CopyMode, Decided, Packet, Queue, Verdict};
use netfilterqueue_programs::{Flow, HEADERS, Session};

use crate::arguments::Arguments;
use crate::buckets::{Buckets, Prefixes, Rate};

/// The longest packet of an Ethernet: a bucket that holds less would let none through.
const PACKET: u64 = 1500;

/// How many sources the closing lines name.
const WORST: usize = 5;

fn main() -> ExitCode {
    netfilterqueue_programs::main(|arguments: Arguments| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let mut limiter = Limiter::new(arguments)?;
    let queue = Queue::builder(arguments.options.queue)
        .gso(false)
        .copy_mode(CopyMode::Packet { range: HEADERS })
        .max_len(8192);
    let rule = arguments.selection.rule(arguments.options.queue);
    let session = Session::open(&arguments.options, queue, |rules| rules.rule(rule))?;
    session.run(|packet| limiter.judge(packet))?;
    Ok(limiter.report()?)
}

#[derive(Debug)]
struct Limiter {
    buckets: Buckets,
    by_bytes: bool,
    mark: Option<u32>,
    received: u64,
    beyond: u64,
    unreadable: u64,
}

impl Limiter {
    fn new(arguments: &Arguments) -> Result<Self, Box<dyn Error>> {
        let by_bytes = arguments.bytes.is_some();
        let least = if by_bytes { PACKET } else { 1 };
        let per_second = arguments.bytes.or(arguments.packets).unwrap_or(least);
        let burst = arguments.burst.unwrap_or(per_second.max(least));
        if burst < least {
            return Err(format!(
                "no packet of {PACKET} bytes would ever find {burst} in its bucket; make --burst \
                 {PACKET} or more"
            )
            .into());
        }
        let prefixes = Prefixes { v4: arguments.prefix4, v6: arguments.prefix6 };
        Ok(Self {
            buckets: Buckets::new(Rate { per_second, burst }, prefixes, arguments.sources),
            by_bytes,
            mark: arguments.mark,
            received: 0,
            beyond: 0,
            unreadable: 0,
        })
    }

    fn judge<'p>(&mut self, mut packet: Packet<'p>) -> Decided<'p> {
        self.received += 1;
        let Some(flow) = Flow::of(packet.payload()) else {
            // The kernel has looked at the IP header before: nobody sends this by mistake.
            self.unreadable += 1;
            return packet.verdict(Verdict::Drop);
        };
        let len = packet.original_len().map_or(packet.payload().len() as u64, u64::from);
        let tokens = if self.by_bytes { len } else { 1 };
        if self.buckets.take(flow.source, tokens, Instant::now()) {
            return packet.accept();
        }
        self.beyond += 1;
        match self.mark {
            Some(mark) => {
                packet.set_mark(mark);
                packet.accept()
            }
            None => packet.verdict(Verdict::Drop),
        }
    }

    fn report(&self) -> io::Result<()> {
        let Self { received, beyond, unreadable, buckets, .. } = self;
        let fate = if self.mark.is_some() { "marked" } else { "dropped" };
        let mut stdout = io::stdout();
        writeln!(
            stdout,
            "{received} received from {} sources, {beyond} beyond the limit and {fate}, \
             {unreadable} unreadable, {} sources forgotten too early",
            buckets.len(),
            buckets.forgotten
        )?;
        for (source, beyond) in buckets.worst(WORST) {
            writeln!(stdout, "{source}: {beyond} beyond the limit")?;
        }
        Ok(())
    }
}
