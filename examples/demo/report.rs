//! What the terminal shows, and what differs from what was decided.

use std::env;
use std::fmt::{Debug, Display};
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use netfilterqueue::{Error, KernelStats, Stats};

use crate::judge::{Decision, Judge, MARKED_PORT, Witness};
use crate::traffic::Flow;

const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

/// Writes to standard output, in colours if a person is to read it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    colours: bool,
}

impl Terminal {
    pub(crate) fn detect() -> Self {
        Self { colours: io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none() }
    }

    pub(crate) fn heading(self, text: &str) {
        println!("\n{}", self.paint(BOLD, text));
    }

    /// One line for a packet that the kernel handed over.
    pub(crate) fn decided(self, queue: u16, packet: impl Display, decision: Decision) {
        let colour = match decision {
            Decision::Accept => GREEN,
            Decision::Drop => RED,
            Decision::Mark(_) | Decision::Edit | Decision::Retain => YELLOW,
        };
        self.packet(queue, packet, colour, decision);
    }

    /// One line for a packet that was retained before.
    pub(crate) fn released(self, queue: u16, packet: impl Display) {
        self.packet(queue, packet, GREEN, "release");
    }

    fn packet(self, queue: u16, packet: impl Display, colour: &str, outcome: impl Display) {
        let packet = packet.to_string();
        let outcome = self.paint(colour, &format!("→ {outcome}"));
        println!("queue {queue}: {packet:<72} {outcome}");
    }

    fn paint(self, colour: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Where what happened differs from what was decided.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    differences: Vec<String>,
}

impl Findings {
    pub(crate) fn expect<A, E>(&mut self, what: &str, actual: &A, expected: &E)
    where
        A: PartialEq<E> + Debug + ?Sized,
        E: Debug + ?Sized,
    {
        if actual != expected {
            self.differences.push(format!("{what}: {actual:?} instead of {expected:?}"));
        }
    }

    pub(crate) fn conclude(self) -> ExitCode {
        if self.differences.is_empty() {
            println!("\nEverything arrived, or did not, as was decided.");
            return ExitCode::SUCCESS;
        }
        eprintln!("\nWhat happened differs from what was decided:");
        for difference in self.differences {
            eprintln!("- {difference}");
        }
        ExitCode::FAILURE
    }
}

/// Prints a line per flow, given with the messages that arrived.
pub(crate) fn flows(
    flows: &[(Flow, Vec<String>)],
    judge: &Judge,
    witness: &Witness,
    findings: &mut Findings,
) {
    println!(
        "{:<20} {:<17} {:>5} {:>10} {:>9} {:>8}",
        "messages", "decision", "sent", "delivered", "expected", "dropped"
    );
    for (flow, arrived) in flows {
        let Flow { name, decision, sent, expected, .. } = flow;
        let dropped = judge.dropped(flow.port());
        println!(
            "{name:<20} {decision:<17} {:>5} {:>10} {:>9} {dropped:>8}",
            sent.len(),
            arrived.len(),
            expected.len(),
        );
        findings.expect(&format!("{name}: delivered"), arrived.as_slice(), *expected);
        let to_drop = sent.len() - expected.len();
        findings.expect(&format!("{name}: dropped"), &dropped, &to_drop);
        if flow.port() == MARKED_PORT {
            findings.expect(&format!("{name}: seen with the mark"), &witness.marked, &sent.len());
        }
    }
    for (flow, arrived) in flows.iter().filter(|(flow, _)| flow.is_changed()) {
        println!("{}: sent {:?}, arrived {arrived:?}", flow.name, flow.sent);
    }
    println!("The second queue, at a later hook, saw {} packets with the mark.", witness.marked);
}

/// What a queue has counted until it was closed.
pub(crate) struct QueueReport {
    pub(crate) library: Stats,
    pub(crate) kernel: Result<Option<KernelStats>, Error>,
}

impl QueueReport {
    pub(crate) fn calls_per_packet(&self) -> f64 {
        let Stats { receive_calls, wait_calls, send_calls, received, .. } = self.library;
        (receive_calls + wait_calls + send_calls) as f64 / received.max(1) as f64
    }

    fn check(&self, name: &str, findings: &mut Findings) {
        let Stats { received, answered, lost, refused, .. } = self.library;
        findings.expect(&format!("{name}: packets answered"), &answered, &received);
        findings.expect(&format!("{name}: packets lost"), &lost, &0);
        findings.expect(&format!("{name}: verdicts refused"), &refused, &0);
        if let Ok(Some(kernel)) = self.kernel {
            let KernelStats { waiting, queue_dropped, user_dropped, .. } = kernel;
            let counted = [waiting, queue_dropped, user_dropped];
            findings.expect(
                &format!("{name}: waiting or dropped in the kernel"),
                &counted,
                &[0; 3],
            );
        }
    }
}

/// Prints the counters of both queues side by side.
pub(crate) fn counters(live: &QueueReport, backlog: &QueueReport, findings: &mut Findings) {
    println!("{:<36} {:>8} {:>8}", "", "live", "backlog");
    let row = |name: &str, value: fn(&Stats) -> u64| {
        println!("{name:<36} {:>8} {:>8}", value(&live.library), value(&backlog.library));
    };
    row("packets received", |stats| stats.received);
    row("packets lost before", |stats| stats.lost);
    row("packets answered", |stats| stats.answered);
    row("verdict messages for one packet", |stats| stats.exact_verdicts);
    row("verdict messages for a run of them", |stats| stats.cumulative_verdicts);
    row("verdicts refused by the kernel", |stats| stats.refused);
    row("system calls: recvmmsg", |stats| stats.receive_calls);
    row("system calls: poll", |stats| stats.wait_calls);
    row("system calls: sendmsg", |stats| stats.send_calls);
    let calls = [live, backlog].map(QueueReport::calls_per_packet);
    println!("{:<36} {:>8.2} {:>8.2}", "system calls per packet", calls[0], calls[1]);
    match (&live.kernel, &backlog.kernel) {
        (Ok(Some(live)), Ok(Some(backlog))) => {
            let row = |name: &str, value: fn(&KernelStats) -> u32| {
                println!("{name:<36} {:>8} {:>8}", value(live), value(backlog));
            };
            row("kernel: id of the last packet", |stats| stats.last_id);
            row("kernel: packets waiting", |stats| stats.waiting);
            row("kernel: dropped, queue full", |stats| stats.queue_dropped);
            row("kernel: dropped, buffer full", |stats| stats.user_dropped);
        }
        (Err(error), _) | (_, Err(error)) => {
            println!(
                "The kernel's own counters are not readable here, in most cases by root only: {error}"
            );
        }
        _ => println!("The kernel lists no counters of these queues."),
    }
    for (name, report) in [("live", live), ("backlog", backlog)] {
        report.check(name, findings);
    }
}
