//! What is shown meanwhile and in the end, and what must be equal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use netfilterqueue::{KernelStats, Stats};

use crate::flight::{Flight, Tally};
use crate::judge::Shared;
use crate::plan::Fate;
use crate::watch::{Losses, Resources, machine};

/// How often a line is shown, to a person and to a file.
const EVERY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// The line that shows how far things are.
pub(crate) struct Progress {
    packets: u64,
    is_terminal: bool,
    shown_at: Instant,
    shown: u64,
}

impl Progress {
    pub(crate) fn new(packets: u64) -> Self {
        let is_terminal = io::stdout().is_terminal();
        Self { packets, is_terminal, shown_at: Instant::now(), shown: 0 }
    }

    pub(crate) fn show(&mut self, shared: &Shared, now: Resources, losses: Losses, held: u64) {
        let elapsed = self.shown_at.elapsed();
        if elapsed < EVERY[usize::from(!self.is_terminal)] {
            return;
        }
        let judged: u64 = shared.flights.iter().map(|flight| flight.judged.sum()).sum();
        let rate = (judged - self.shown) as f64 / elapsed.as_secs_f64();
        let line = format!(
            "{:.1} of {:.1} million, {rate:.0}/s, {held} held, {} lost, {} KiB, {} descriptors",
            judged as f64 / 1e6,
            self.packets as f64 / 1e6,
            losses.total(),
            now.memory,
            now.descriptors,
        );
        if self.is_terminal {
            print!("\r{line}\x1b[K");
            let _ = io::stdout().flush();
        } else {
            println!("{line}");
        }
        (self.shown, self.shown_at) = (judged, Instant::now());
    }
}

/// What a queue has counted to the end.
pub(crate) struct QueueOutcome {
    pub(crate) library: Stats,
    /// Where they may be read.
    pub(crate) kernel: Option<KernelStats>,
}

/// All there is to know in the end.
pub(crate) struct Outcome {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queues: Vec<QueueOutcome>,
    pub(crate) losses: Losses,
    /// Bytes sent and received.
    pub(crate) tcp: Vec<(u64, u64)>,
    /// Memory after a tenth of the run, and after half of it; in a short one, in the end.
    pub(crate) memory: [u64; 2],
    /// When the last datagram had arrived, and when everything was closed.
    pub(crate) resources: Resources,
    pub(crate) closed: Resources,
    pub(crate) elapsed: Duration,
}

impl Outcome {
    pub(crate) fn is_well(&self) -> bool {
        !self.shared.trouble.is_any()
    }

    /// Reports all differences.
    pub(crate) fn compare(&self) {
        // How many datagrams were lost at all, and where they are missing.
        let (mut shortfall, mut gaps) = (0, Vec::new());
        for flight in &self.shared.flights {
            for fate in Fate::ALL {
                let sent = flight.sent.of(fate);
                let again = if fate.is_seen_twice() { sent } else { 0 };
                let arriving = if flight.stream.arrives(fate) { sent } else { 0 };
                let what = [
                    ("judged", flight.judged.of(fate), sent),
                    ("seen by the other queue", flight.seen_again.of(fate), again),
                    ("received", flight.arrived.of(fate), arriving),
                ];
                // One that was lost on its way is missing at every later place, too.
                let mut lost = 0;
                for (done, count, wanted) in what {
                    let name = format!("{}, {}: {done}", flight.stream.name, fate.name());
                    let most = wanted.saturating_sub(lost);
                    if count > most {
                        self.expect(&name, count, most);
                    } else if count < wanted {
                        lost = wanted - count;
                        gaps.push((name, count, wanted));
                    }
                }
                shortfall += lost;
            }
            let name = format!("{}: missing without a loss counted", flight.stream.name);
            self.expect(&name, flight.missing(), 0);
        }
        let counted = self.losses.total();
        if shortfall > counted {
            self.shared.trouble.report(|| {
                format!(
                    "{shortfall} datagrams were lost, of which the kernel has counted {counted}"
                )
            });
            gaps.iter().for_each(|(name, count, wanted)| self.expect(name, *count, *wanted));
        }
        self.expect("datagrams with a wrong checksum", self.losses.checksum, 0);
        for (index, (sent, received)) in self.tcp.iter().enumerate() {
            self.expect(&format!("TCP stream {index}: bytes received"), *received, *sent);
        }
        for (index, queue) in self.queues.iter().enumerate() {
            self.compare_queue(index, queue);
        }
    }

    fn compare_queue(&self, index: usize, queue: &QueueOutcome) {
        let expect = |name: &str, count: u64, wanted: u64| {
            self.expect(&format!("queue {}: {name}", index + 1), count, wanted);
        };
        let sum = |of: &dyn Fn(&Flight) -> u64| self.shared.flights.iter().map(of).sum::<u64>();
        let here = |flight: &Flight| flight.stream.queue == index;
        let first = sum(&|f| if here(f) { f.judged.sum() } else { 0 });
        let again = sum(&|f| if here(f) { 0 } else { f.seen_again.sum() });
        let expiring = sum(&|f| if here(f) { f.judged.of(Fate::Expire) } else { 0 });
        let seen = &self.shared.seen[index];
        let stats = queue.library;
        let segments = seen.segments.load(Ordering::Relaxed);
        expect("received", stats.received, first + again + segments);
        expect("answered", stats.answered, stats.received);
        expect("expired", stats.expired, expiring);
        for (name, count) in [
            ("held", stats.held),
            ("retained", stats.retained),
            ("refused", stats.refused),
            ("truncated", stats.truncated),
            ("malformed", stats.malformed),
            ("unknown", stats.unknown),
            ("foreign", stats.foreign),
            ("overruns", stats.overruns),
            ("edits left incomplete", stats.incomplete_edits),
        ] {
            expect(name, count, 0);
        }
        if let Some(kernel) = queue.kernel {
            expect("lost, by the library", stats.lost, u64::from(kernel.user_dropped));
            expect("waiting in the kernel", u64::from(kernel.waiting), 0);
            let ids = (stats.received + stats.lost) & u64::from(u32::MAX);
            expect("last id", u64::from(kernel.last_id), ids);
        }
    }

    /// Nothing may be left of what there was not before the start.
    pub(crate) fn compare_resources(&self, before: Resources) {
        self.expect("descriptors, all closed", self.closed.descriptors, before.descriptors);
        self.expect("threads, all closed", self.closed.threads, before.threads);
    }

    fn expect(&self, name: &str, count: u64, wanted: u64) {
        if count != wanted {
            self.shared.trouble.report(|| format!("{name}: {count}, must be {wanted}"));
        }
    }

    pub(crate) fn print(&self) {
        let flights = &self.shared.flights;
        let sum = |of: &dyn Fn(&Flight) -> u64| flights.iter().map(of).sum::<u64>();
        println!(
            "\n{:<16} {:>12} {:>12} {:>12} {:>12}",
            "datagrams", "sent", "judged", "seen again", "arrived"
        );
        let row = |name: &str, of: &dyn Fn(&Tally) -> u64| {
            println!(
                "{name:<16} {:>12} {:>12} {:>12} {:>12}",
                sum(&|f| of(&f.sent)),
                sum(&|f| of(&f.judged)),
                sum(&|f| of(&f.seen_again)),
                sum(&|f| of(&f.arrived)),
            );
        };
        for fate in Fate::ALL {
            row(fate.name(), &|tally| tally.of(fate));
        }
        row("all", &Tally::sum);
        for (name, value) in self.figures() {
            println!("{name:<36} {value:>12}");
        }
        let (told, all) = self.shared.trouble.all();
        if all == 0 {
            match self.losses.total() {
                0 => println!("\nEvery packet is accounted for."),
                lost => println!("\nEvery packet is accounted for: {lost} as lost, by the kernel."),
            }
            return;
        }
        eprintln!("\nWhat happened differs from what must ({all} times):");
        told.iter().for_each(|difference| eprintln!("- {difference}"));
    }

    /// The same for a program to read.
    pub(crate) fn json(&self) -> String {
        let (told, all) = self.shared.trouble.all();
        let mut json = String::from("{\n");
        let _ = writeln!(json, "  \"version\": {:?},", env!("CARGO_PKG_VERSION"));
        let _ = writeln!(json, "  \"machine\": {:?},", machine());
        let _ = writeln!(json, "  \"outcome\": \"{}\",", if all == 0 { "well" } else { "wrong" });
        let _ = writeln!(json, "  \"differences\": {told:?},");
        for (name, value) in self.figures() {
            let _ = writeln!(json, "  \"{name}\": {value},");
        }
        json.push_str("  \"streams\": [\n");
        for (at, flight) in self.shared.flights.iter().enumerate() {
            let _ = write!(json, "    {{\"name\": \"{}\"", flight.stream.name);
            let tallies = [
                ("sent", &flight.sent),
                ("judged", &flight.judged),
                ("seen again", &flight.seen_again),
                ("arrived", &flight.arrived),
            ];
            for (name, tally) in tallies {
                let counts: Vec<_> = Fate::ALL
                    .iter()
                    .filter(|fate| tally.of(**fate) > 0)
                    .map(|fate| format!("\"{}\": {}", fate.name(), tally.of(*fate)))
                    .collect();
                let _ = write!(json, ",\n     \"{name}\": {{{}}}", counts.join(", "));
            }
            let is_last = at + 1 == self.shared.flights.len();
            json.push_str(if is_last { "}\n" } else { "},\n" });
        }
        json.push_str("  ]\n}\n");
        json
    }

    /// Counts over all queues and streams.
    fn figures(&self) -> Vec<(&'static str, u64)> {
        let flights = &self.shared.flights;
        let library = |of: fn(&Stats) -> u64| self.queues.iter().map(|q| of(&q.library)).sum();
        let seen = &self.shared.seen;
        let received: u64 = library(|stats| stats.received);
        let milliseconds = u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX);
        vec![
            ("milliseconds", milliseconds),
            ("datagrams sent", flights.iter().map(|f| f.sent.sum()).sum()),
            ("packets judged", received),
            ("packets judged per second", received * 1000 / milliseconds.max(1)),
            ("packets answered", library(|stats| stats.answered)),
            ("exact verdicts", library(|stats| stats.exact_verdicts)),
            ("cumulative verdicts", library(|stats| stats.cumulative_verdicts)),
            ("verdicts refused", library(|stats| stats.refused)),
            ("system calls: recvmmsg", library(|stats| stats.receive_calls)),
            ("system calls: poll", library(|stats| stats.wait_calls)),
            ("system calls: sendmsg", library(|stats| stats.send_calls)),
            ("deadlines passed", library(|stats| stats.expired)),
            ("TCP segments", seen.iter().map(|s| s.segments.load(Ordering::Relaxed)).sum()),
            (
                "TCP super-packets",
                seen.iter().map(|s| s.super_packets.load(Ordering::Relaxed)).sum(),
            ),
            ("TCP bytes received", self.tcp.iter().map(|(_, received)| received).sum()),
            ("packets copied in part", seen.iter().map(|s| s.cut.load(Ordering::Relaxed)).sum()),
            ("lost: queue full", self.losses.queue),
            ("lost: queue's socket full", self.losses.socket),
            ("lost: receiver full", self.losses.receiver),
            ("lost: loopback full", self.losses.device),
            ("written off", flights.iter().map(|f| f.written_off.load(Ordering::Relaxed)).sum()),
            ("memory after a tenth, KiB", self.memory[0]),
            ("memory after half, KiB", self.memory[1]),
            ("memory in the end, KiB", self.resources.memory),
            ("descriptors", self.resources.descriptors),
            ("threads", self.resources.threads),
            ("descriptors, all closed", self.closed.descriptors),
            ("threads, all closed", self.closed.threads),
        ]
    }
}
