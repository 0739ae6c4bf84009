//! A filter for a container: drops packets to a port that contain a text, accepts the others.
//!
//! ```text
//! cargo run --release --example container -- 8080 forbidden
//! ```
//!
//! `README.md` beside this file tells how to run it in a container with nothing else in it, alone
//! or next to the program that it protects. It puts its own rule in place (unless told `--no-rule`)
//! and ends at SIGTERM and SIGINT, without losing a packet: as process 1 of a container it must see
//! to that itself, because the kernel ignores signals there that have no handler.
//!
//! Each packet is looked at on its own: a text that TCP has split between two packets is not found.

use std::env;
use std::io;
use std::process::ExitCode;
use std::thread;

use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{Decided, Packet, Queue, StopHandle, Verdict};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const QUEUE: u16 = 1;

const USAGE: &str = "usage: container [--fail-open] [--no-rule] PORT TEXT\n\
    Drops TCP and UDP packets to PORT that contain TEXT.\n\
    --fail-open  packets that cannot be looked at pass; without it they are dropped\n\
    --no-rule    somebody else has installed the rule that sends packets to queue 1";

fn main() -> ExitCode {
    let filter = match Filter::from_arguments(env::args().skip(1)) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("container: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match filter.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("container: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What was asked for.
struct Filter {
    port: u16,
    text: String,
    fail_open: bool,
    installs_rule: bool,
}

impl Filter {
    fn from_arguments(given: impl Iterator<Item = String>) -> Result<Self, String> {
        let (options, values): (Vec<_>, Vec<_>) = given.partition(|it| it.starts_with("--"));
        let [port, text] = &values[..] else { return Err("two arguments are needed".to_owned()) };
        let port = port.parse().map_err(|error| format!("{port:?} is no port: {error}"))?;
        if text.is_empty() {
            return Err("the text is empty".to_owned());
        }
        let mut filter = Self { port, text: text.clone(), fail_open: false, installs_rule: true };
        for option in options {
            match option.as_str() {
                "--fail-open" => filter.fail_open = true,
                "--no-rule" => filter.installs_rule = false,
                _ => return Err(format!("{option:?} is no option")),
            }
        }
        Ok(filter)
    }

    fn run(&self) -> Result<(), Box<dyn std::error::Error>> {
        let mut queue = Queue::builder(QUEUE).fail_open(self.fail_open).bind()?;
        stop_at_signals(queue.stop_handle())?;
        let mut rules = if self.installs_rule { Some(self.rules().install()?) } else { None };
        println!("container: packets to port {} are looked at", self.port);
        queue.run(|packet| self.judge(packet))?;

        // In this order nothing is lost: no new packets, then those that wait, then the rule, whose
        // removal makes the kernel drop what waits in any queue.
        if let Some(rules) = &mut rules {
            rules.pause()?;
        }
        queue.drain(|packet| self.judge(packet))?;
        println!("container: {} packets were judged", queue.stats().answered);
        queue.close()?;
        Ok(())
    }

    fn judge<'p>(&self, packet: Packet<'p>) -> Decided<'p> {
        let text = self.text.as_bytes();
        if packet.payload().windows(text.len()).any(|window| window == text) {
            println!("container: dropped {packet}");
            packet.verdict(Verdict::Drop)
        } else {
            packet.accept()
        }
    }

    fn rules(&self) -> Rules {
        let rule = |protocol| {
            let rule = Rule::queue(QUEUE).protocol(protocol).destination_port(self.port);
            rule.bypass(self.fail_open)
        };
        Rules::new(Hook::INPUT).rule(rule(Protocol::TCP)).rule(rule(Protocol::UDP))
    }
}

fn stop_at_signals(stop: StopHandle) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            stop.stop();
        }
    });
    Ok(())
}
