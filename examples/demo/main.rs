//! Shows the library at work, on traffic that the demo sends to itself.
//!
//! ```text
//! cargo run --release --example demo
//! ```
//!
//! It needs no firewall tool and changes nothing on the host: it moves into a network namespace of
//! its own, as root or, where the host permits user namespaces, as an ordinary user. The exit code
//! is 0 if every packet ended up as was decided, else 1.
//!
//! - `judge` decides about packets: the part that a program of yours would have.
//! - `backlog` measures how many system calls it takes when packets have piled up.
//! - `traffic` sends, and tells what arrived.
//! - `report` prints, and finds the differences.

mod backlog;
mod judge;
mod report;
mod traffic;

use std::error::Error;
use std::process::ExitCode;
use std::sync::mpsc;

use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{KernelStats, Queue};

use crate::judge::{Judge, MARK, Witness, Worker};
use crate::report::{Findings, QueueReport, Terminal};

/// Judged by [`Judge`].
const QUEUE: u16 = 1;
/// Gets what [`Judge`] has marked, at a later hook.
const MARKED_QUEUE: u16 = 2;

fn main() -> ExitCode {
    match demo() {
        Ok(findings) => findings.conclude(),
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<Findings, Box<dyn Error>> {
    // First of all, because only a process with a single thread can become root in a user
    // namespace.
    netfilterqueue_netns::enter_private()?;
    let mut findings = Findings::default();
    let terminal = Terminal::detect();

    let live = judge_live(terminal, &mut findings)?;
    let backlog = backlog::judge_backlog(terminal, &mut findings)?;

    terminal.heading("What the queues counted");
    report::counters(&live, &backlog, &mut findings);
    Ok(findings)
}

/// Judges packets as they come, one flow after another.
fn judge_live(terminal: Terminal, findings: &mut Findings) -> Result<QueueReport, Box<dyn Error>> {
    // Queues first, rules second: a packet that meets a rule without a listener is dropped.
    let (hold, held) = mpsc::channel();
    let judge = Worker::start(Queue::builder(QUEUE).bind()?, Judge::new(terminal, hold));
    let witness = Worker::start(Queue::builder(MARKED_QUEUE).bind()?, Witness::new(terminal));
    let mut rules = install_rules()?;

    terminal.heading("Packets as they pass, and what is decided");
    let mut deliveries = Vec::new();
    for flow in traffic::flows() {
        let arrived = flow.exchange(&held, terminal)?;
        deliveries.push((flow, arrived));
    }

    // Deleting rules makes the kernel drop what waits in queues, so they are paused, the queues are
    // emptied, and only then the rules go.
    for rules in &mut rules {
        rules.pause()?;
    }
    let (queue, judge) = judge.finish()?;
    let (_, witness) = witness.finish()?;
    let report = QueueReport { library: queue.stats(), kernel: KernelStats::read(QUEUE) };
    queue.close()?;
    drop(rules);

    terminal.heading("What was sent, and what became of it");
    report::flows(&deliveries, &judge, &witness, findings);
    Ok(report)
}

fn install_rules() -> Result<[InstalledRules; 2], netfilterqueue::Error> {
    let arriving = Rules::new(Hook::PREROUTING)
        .rule(Rule::queue(QUEUE).protocol(Protocol::UDP))
        // One direction only, to keep the output short.
        .rule(Rule::queue(QUEUE).protocol(Protocol::TCP).destination_port(traffic::TCP_PORT))
        .rule(Rule::queue(QUEUE).protocol(Protocol::ICMP))
        .rule(Rule::queue(QUEUE).protocol(Protocol::ICMPV6));
    let marked = Rules::new(Hook::INPUT).rule(Rule::queue(MARKED_QUEUE).mark(MARK));
    Ok([arriving.install()?, marked.install()?])
}
