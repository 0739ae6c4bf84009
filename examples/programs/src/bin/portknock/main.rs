//! Hides ports from everybody but those who have knocked: first packets to a sequence of other
//! ports, in order and in time, open the ports to their sender for a while.
//!
//! The rules queue TCP and UDP packets to the hidden ports and to those of the sequence, at the
//! input hook. Packets to the sequence's ports are dropped, as are first packets (TCP's SYN) to
//! hidden ports from anybody else: seen from outside there is nothing. What has come in stays in
//! after the time, and does not come up any more (flow bypass); so do TCP connections that are
//! older than this program.
//!
//! A sequence that has a port twice, such as 7000,9000,7000, is not found by a scan that tries each
//! port once. It is no password: whoever sees the knocks can repeat them, and senders can be
//! forged. Memory is bounded; while a crowd of forged senders knocks, a true one may be forgotten
//! before it is through.
//!
//! To try it in a network namespace:
//!
//! ```text
//! cargo build --release -p netfilterqueue-programs
//! unshare -rn bash
//! ip link set lo up
//! python3 -m http.server --bind 127.0.0.1 8080 &
//! target/release/portknock --port 8080 --sequence 7000,9000/udp,7000 &
//! sleep 1
//! knock() { timeout .1 bash -c "echo > /dev/$1/127.0.0.1/$2"; }
//! get() { timeout 2 python3 -c 'from urllib.request import *
//! print(urlopen("http://127.0.0.1:8080").status)' 2>/dev/null || echo nothing there; }
//! get; knock tcp 7000; knock udp 9000; knock tcp 7000; get
//! kill %2; kill %1; exit
//! ```

mod knocks;
mod sequence;

use std::error::Error;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use humantime::{format_duration, parse_duration};
use knocks::{Heard, Knocks};
use netfilterqueue::rules::{InstalledRules, Protocol, Rule};
use netfilterqueue::{Decided, FlowBypass, FlowMarks, Packet, Queue, Verdict};
use netfilterqueue_programs::{Lines, Options, Segment, Session};
use sequence::{Port, Sequence};

/// Hides ports from everybody but those who have knocked
#[derive(Debug, Parser)]
#[command(version, mut_arg("hook", |hook| hook.default_value("input")))]
struct Arguments {
    /// Port to hide: 22, 22/tcp or 51820/udp; may be repeated
    #[arg(short, long, required = true)]
    port: Vec<Port>,

    /// Ports to knock at, in order: 7000,9000/udp,7000
    #[arg(short, long, value_name = "PORTS")]
    sequence: Sequence,

    /// How long the ports are open to somebody who has knocked
    #[arg(long, value_parser = parse_duration, default_value = "30s", value_name = "TIME")]
    open_for: Duration,

    /// How long the whole sequence may take
    #[arg(long, value_parser = parse_duration, default_value = "10s", value_name = "TIME")]
    within: Duration,

    /// Most senders that are remembered as knocking, and as many as let in
    #[arg(long, default_value = "1024", value_name = "NUMBER")]
    senders: NonZeroUsize,

    /// Print who is refused and who knocks at a wrong port as well
    #[arg(short, long)]
    verbose: bool,

    #[command(flatten)]
    options: Options,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It belongs to something that is in already.
    Accept,
    LetIn,
    Drop,
}

struct Door {
    hidden: Vec<Port>,
    knocks: Knocks,
    steps: usize,
    open_for: Duration,
    verbose: bool,
    lines: Lines,
    numbers: Numbers,
}

#[derive(Debug, Default)]
struct Numbers {
    knocks: u64,
    opened: u64,
    let_in: u64,
    refused: u64,
    unreadable: u64,
}

impl Door {
    fn judge<'p>(&mut self, packet: Packet<'p>, bypass: Option<FlowBypass>) -> Decided<'p> {
        match (self.fate(packet.payload(), Instant::now()), bypass) {
            (Fate::LetIn, Some(bypass)) => packet.accept_flow(bypass),
            (Fate::LetIn, None) | (Fate::Accept, _) => packet.accept(),
            (Fate::Drop, _) => packet.verdict(Verdict::Drop),
        }
    }

    fn fate(&mut self, packet: &[u8], now: Instant) -> Fate {
        let Some(segment) = Segment::parse(packet) else {
            self.numbers.unreadable += 1;
            return Fate::Drop;
        };
        let source = segment.source.ip().to_canonical();
        let is_first = segment.tcp.as_ref().is_none_or(|tcp| tcp.syn() && !tcp.ack());
        let protocol = if segment.tcp.is_some() { Protocol::TCP } else { Protocol::UDP };
        let port = Port { protocol, number: segment.destination.port() };
        match (self.hidden.contains(&port), is_first) {
            (true, true) => self.admit(source, port, now),
            (true, false) => Fate::Accept,
            (false, true) => {
                self.hear(source, port, now);
                Fate::Drop
            }
            (false, false) => Fate::Drop,
        }
    }

    fn admit(&mut self, source: IpAddr, port: Port, now: Instant) -> Fate {
        if self.knocks.is_open(source, now) {
            self.numbers.let_in += 1;
            self.lines.print(format_args!("let in  {source} to {port}"));
            return Fate::LetIn;
        }
        self.numbers.refused += 1;
        if self.verbose {
            self.lines.print(format_args!("refused {source} to {port}"));
        }
        Fate::Drop
    }

    fn hear(&mut self, source: IpAddr, port: Port, now: Instant) {
        self.numbers.knocks += 1;
        match self.knocks.knock(source, port, now) {
            Heard::Right(step) => {
                self.lines.print(format_args!("knock   {source} {step} of {}", self.steps));
            }
            Heard::Opened => {
                self.numbers.opened += 1;
                let time = format_duration(self.open_for);
                self.lines.print(format_args!("open    {source} for {time}"));
            }
            Heard::Wrong if self.verbose => {
                self.lines.print(format_args!("wrong   {source} {port}"));
            }
            Heard::Wrong | Heard::Again => {}
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let Arguments { port: hidden, sequence, options, .. } = arguments;
    if let Some(both) = sequence.ports().iter().find(|port| hidden.contains(port)) {
        return Err(format!("{both} cannot be hidden and knocked at; knock at another port").into());
    }
    let mut ports = [hidden, sequence.ports()].concat();
    ports.sort_unstable_by_key(|port| (port.protocol.0, port.number));
    ports.dedup();
    let session = Session::open(options, Queue::builder(options.queue), |rules| {
        let rules = ports.iter().fold(rules, |rules, port| {
            let rule = Rule::queue(options.queue).protocol(port.protocol);
            rules.rule(rule.destination_port(port.number))
        });
        rules.flow_bypass(FlowMarks::default())
    })?;
    // With somebody else's rule each packet of what is in comes up.
    let bypass = session.rules.as_ref().and_then(InstalledRules::flow_bypass);
    let Arguments { within, open_for, senders, verbose, .. } = *arguments;
    let mut door = Door {
        hidden: hidden.clone(),
        knocks: Knocks::new(sequence.clone(), within, open_for, senders),
        steps: sequence.ports().len(),
        open_for,
        verbose,
        lines: Lines::new(session.queue.stop_handle()),
        numbers: Numbers::default(),
    };
    let stats = session.run(|packet| door.judge(packet, bypass))?;
    let Numbers { knocks, opened, let_in, refused, unreadable } = door.numbers;
    door.lines.print(format_args!(
        "{knocks} knocks, {opened} opened, {let_in} in, {refused} refused, {unreadable} unreadable, \
         {} lost",
        stats.lost
    ));
    Ok(())
}

fn main() -> ExitCode {
    netfilterqueue_programs::main(|arguments| run(&arguments))
}
