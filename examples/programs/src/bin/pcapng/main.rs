//! Records packets into a file of the pcapng format, which Wireshark opens: each with the verdict
//! and the mark it leaves with as its comment. (A capture by `AF_PACKET` does not know what became
//! of a packet.)
//!
//! Its rule queues everything at a hook, or what `--protocol`, `--dport`, `--in` and their like
//! choose; it goes away with the program.
//!
//! To try it on one machine, in a network of its own:
//!
//! ```text
//! cargo build --release -p netfilterqueue-programs
//! unshare -rn bash -c '
//!     ip link set lo up
//!     target/release/pcapng /tmp/record.pcapng --protocol udp --drop-port 7 --mark 5 & sleep 1
//!     for port in 7 9 53; do echo hello > /dev/udp/127.0.0.1/$port; done
//!     kill -INT $!; wait $!'
//! tshark -r /tmp/record.pcapng -T fields -e udp.dstport -e frame.comment
//! ```
//!
//! Packets are recorded as they are on the wire (GSO off): of super-packets the checksums are not
//! ready, and Wireshark would find them wrong. Packets wait while the file is written; if it cannot
//! be, because the disk is full or nobody reads on, the program ends, and packets pass.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::cast_precision_loss, clippy::cast_possible_truncation)
)]

mod arguments;
mod record;

use std::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use netfilterqueue::{CopyMode, Decided, Packet, Queue, StopHandle, Verdict};
use netfilterqueue_programs::{Flow, Session, Work, tell};

use crate::arguments::Arguments;
use crate::record::{Decision, Record};

/// How long what was recorded may be unknown to who reads on.
const FLUSH_AFTER: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    netfilterqueue_programs::main(run)
}

fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let record = Record::new(create(&arguments.file)?, arguments.snaplen)?;
    let queue = Queue::builder(arguments.options.queue)
        .gso(false)
        .uid_gid(true)
        .copy_mode(CopyMode::Packet { range: arguments.snaplen })
        .max_len(8192)
        .on_undecided(Verdict::Accept);
    let rule = arguments.selection.rule(arguments.options.queue);
    let session = Session::open(&arguments.options, queue, |rules| rules.rule(rule))?;
    let mut recorder = Recorder {
        record,
        arguments,
        enough: session.queue.stop_handle(),
        unflushed_since: None,
        failure: None,
        recorded: 0,
        dropped: 0,
    };
    let stats = session.serve(&mut recorder)?;
    let flushed = recorder.record.flush();
    // The standard output may be the file.
    let Recorder { recorded, dropped, .. } = recorder;
    tell(format_args!("{recorded} recorded, {dropped} dropped, {} lost", stats.lost));
    match recorder.failure {
        Some(error) => Err(error.into()),
        None => Ok(flushed?),
    }
}

fn create(path: &Path) -> Result<BufWriter<Box<dyn Write>>, String> {
    if path == Path::new("-") {
        return Ok(BufWriter::new(Box::new(io::stdout())));
    }
    let file = File::create(path).map_err(|error| format!("creating {}: {error}", path.display()));
    Ok(BufWriter::new(Box::new(file?)))
}

struct Recorder {
    record: Record<BufWriter<Box<dyn Write>>>,
    arguments: Arguments,
    enough: StopHandle,
    unflushed_since: Option<Instant>,
    /// Why nothing is recorded any more.
    failure: Option<io::Error>,
    recorded: u64,
    dropped: u64,
}

impl Recorder {
    fn decide(&self, packet: &Packet<'_>) -> Decision {
        let ports = Flow::of(packet.payload()).and_then(|flow| flow.ports);
        // What has no ports that can be read, such as later fragments, passes.
        let is_unwanted = ports.is_some_and(|(source, destination)| {
            self.arguments.drop_port.iter().any(|port| [source, destination].contains(port))
        });
        match is_unwanted {
            true => Decision { verdict: Verdict::Drop, mark: None },
            false => Decision { verdict: Verdict::Accept, mark: self.arguments.mark },
        }
    }

    fn is_full(&self) -> bool {
        self.arguments.packets.is_some_and(|most| self.recorded >= most)
    }

    fn write(&mut self, packet: &Packet<'_>, decision: Decision) {
        if self.is_full() || self.failure.is_some() {
            return;
        }
        match self.record.write(packet, decision) {
            Ok(()) => {
                self.recorded += 1;
                self.unflushed_since.get_or_insert_with(Instant::now);
            }
            Err(error) => self.fail(error),
        }
        if self.is_full() {
            self.enough.stop();
        }
    }

    /// Packets go on to be judged until the queue has been emptied.
    fn fail(&mut self, error: io::Error) {
        self.failure = Some(error);
        self.enough.stop();
    }
}

impl Work for Recorder {
    fn judge<'p>(&mut self, mut packet: Packet<'p>) -> Decided<'p> {
        let decision = self.decide(&packet);
        self.write(&packet, decision);
        self.dropped += u64::from(decision.verdict == Verdict::Drop);
        if let Some(mark) = decision.mark {
            packet.set_mark(mark);
        }
        packet.verdict(decision.verdict)
    }

    fn due(&self) -> Option<Instant> {
        self.unflushed_since.map(|since| since + FLUSH_AFTER)
    }

    fn act(&mut self, _: Instant) -> Result<(), Box<dyn Error>> {
        self.unflushed_since = None;
        if let Err(error) = self.record.flush() {
            self.fail(error);
        }
        Ok(())
    }
}
