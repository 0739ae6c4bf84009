//! Blocks domains: answers of DNS servers about them become "no such name" on their way in.
//!
//! The rule queues what comes from port 53, UDP and TCP, at the input hook; on a router take
//! `--hook forward`. The query has gone out by then, and the server has answered it: so the
//! addresses, ports and ids of the answer are right whatever lies between, address translation
//! included, and nothing has to be forged. A domain is blocked with all names below it, whether it
//! was asked for or another name leads to it (CNAME, DNAME).
//!
//! - Answers over UDP that cannot be read are dropped: no client could use them. So are fragments,
//!   which come up only on a router without connection tracking.
//! - An answer over TCP cannot be shortened without a proxy. DNS over TCP is dropped, so that it is
//!   no way around, unless `--tcp accept` is given; clients use it for answers that are too long
//!   for UDP.
//! - DNS over TLS or HTTPS is not seen here. Clients that validate DNSSEC take the answer for a
//!   forgery and fail, too.
//!
//! Kernels since 7.2 take changed bytes back only in the initial user namespace; elsewhere
//! `--answer drop` remains.
//!
//! To try it in a network namespace, with a name server that answers everything:
//!
//! ```text
//! cargo build --release -p netfilterqueue-programs
//! unshare -rn bash
//! ip link set lo up
//! python3 -c 'from socket import *
//! s = socket(2, 2); s.bind(("127.0.0.1", 53))
//! while 1: q, a = s.recvfrom(512); s.sendto(q[:2] + b"\x81\x80" + q[4:], a)' &
//! target/release/dns_filter --block ads.test --verbose &
//! sleep 1
//! for name in ads new; do python3 -c 'import sys; from socket import *
//! s = socket(2, 2); s.settimeout(2); name = sys.argv[1].encode()
//! s.sendto(b"\0\1\1\0\0\1\0\0\0\0\0\0\3%s\4test\0\0\1\0\1" % name, ("127.0.0.1", 53))
//! print(name, "code", s.recv(512)[3] & 15)' $name; done
//! kill %2; kill %1; exit
//! ```

mod message;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use message::{Answer, Reading};
use netfilterqueue::rules::{Protocol, Rule};
use netfilterqueue::{Decided, Packet, Queue, Verdict};
use netfilterqueue_programs::{Domains, Lines, Lists, Options, Segment, Session, tell};

const DNS: u16 = 53;

/// Blocks domains in the answers of DNS servers
#[derive(Debug, Parser)]
#[command(version, mut_arg("hook", |hook| hook.default_value("input")))]
struct Arguments {
    #[command(flatten)]
    lists: Lists,

    /// What becomes of answers about blocked domains
    #[arg(long, value_enum, default_value_t = Blocked::Nxdomain, value_name = "HOW")]
    answer: Blocked,

    /// What becomes of DNS over TCP, of which the names are not looked at
    #[arg(long, value_enum, default_value_t = OverTcp::Drop, value_name = "HOW")]
    tcp: OverTcp,

    /// Print the answers that pass as well
    #[arg(short, long)]
    verbose: bool,

    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Blocked {
    /// Say that there is no such name
    Nxdomain,
    /// Drop the answer: the client waits for it in vain
    Drop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OverTcp {
    /// Drop all of it
    Drop,
    /// Let it pass unseen
    Accept,
}

/// What there is to know about an answer before it is judged.
enum Fate {
    Pass,
    Drop,
    Replace(Vec<u8>),
}

struct Filter {
    blocked: Domains,
    allowed: Domains,
    answer: Blocked,
    tcp: OverTcp,
    verbose: bool,
    lines: Lines,
    numbers: Numbers,
}

#[derive(Debug, Default)]
struct Numbers {
    answers: u64,
    blocked: u64,
    over_tcp: u64,
    unreadable: u64,
    /// Could not be changed, and were dropped instead.
    unchanged: u64,
}

impl Filter {
    fn judge<'p>(&mut self, mut packet: Packet<'p>) -> Decided<'p> {
        match self.fate(packet.payload()) {
            Fate::Pass => packet.accept(),
            Fate::Drop => packet.verdict(Verdict::Drop),
            Fate::Replace(bytes) => match packet.set_payload(&bytes) {
                Ok(()) => packet.accept(),
                Err(error) => {
                    self.numbers.unchanged += 1;
                    tell(format_args!("an answer is dropped instead of changed: {error}"));
                    packet.verdict(Verdict::Drop)
                }
            },
        }
    }

    fn fate(&mut self, packet: &[u8]) -> Fate {
        let Some(segment) = Segment::parse(packet) else {
            self.numbers.unreadable += 1;
            return Fate::Drop;
        };
        if segment.tcp.is_some() {
            self.numbers.over_tcp += 1;
            return match self.tcp {
                OverTcp::Drop => Fate::Drop,
                OverTcp::Accept => Fate::Pass,
            };
        }
        let answer = match Answer::read(segment.payload) {
            Reading::Answer(answer) => answer,
            Reading::Query => return Fate::Pass,
            Reading::Unreadable => {
                self.numbers.unreadable += 1;
                return Fate::Drop;
            }
        };
        self.numbers.answers += 1;
        let asked = answer.names().next().unwrap_or_default().escape_debug();
        let client = segment.destination.ip();
        let Some(blocked) = self.blocked_name(&answer) else {
            if self.verbose {
                self.lines.print(format_args!("passed  {client} {asked}"));
            }
            return Fate::Pass;
        };
        self.numbers.blocked += 1;
        let blocked = blocked.escape_debug();
        match asked.to_string() == blocked.to_string() {
            true => self.lines.print(format_args!("blocked {client} {asked}")),
            false => self.lines.print(format_args!("blocked {client} {asked}, alias of {blocked}")),
        }
        match self.answer {
            Blocked::Drop => Fate::Drop,
            Blocked::Nxdomain => answer.no_such_name().map_or(Fate::Drop, |reply| {
                let headers = packet.get(..segment.headers_len(packet)).unwrap_or_default();
                Fate::Replace([headers, &reply].concat())
            }),
        }
    }

    /// The first name of an answer that is blocked. What is allowed by the name that was asked for
    /// is allowed whatever it leads to.
    fn blocked_name<'a>(&self, answer: &'a Answer<'_>) -> Option<&'a str> {
        let asked = answer.names().next()?;
        if self.allowed.cover(asked) {
            return None;
        }
        answer.names().find(|name| self.blocked.cover(name) && !self.allowed.cover(name))
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let (blocked, allowed) = arguments.lists.gather()?;
    if blocked.is_empty() {
        return Err("nothing is blocked: give --block DOMAIN or a --block-file with a line".into());
    }
    let number = arguments.options.queue;
    let from_server = |protocol| Rule::queue(number).protocol(protocol).source_port(DNS);
    let session = Session::open(&arguments.options, Queue::builder(number), |rules| {
        rules.rule(from_server(Protocol::UDP)).rule(from_server(Protocol::TCP))
    })?;
    tell(format_args!("domains blocked: {}, allowed: {}", blocked.len(), allowed.len()));
    let mut filter = Filter {
        blocked,
        allowed,
        answer: arguments.answer,
        tcp: arguments.tcp,
        verbose: arguments.verbose,
        lines: Lines::new(session.queue.stop_handle()),
        numbers: Numbers::default(),
    };
    let stats = session.run(|packet| filter.judge(packet))?;
    let Numbers { answers, blocked, over_tcp, unreadable, unchanged } = filter.numbers;
    filter.lines.print(format_args!(
        "{answers} answers, {blocked} blocked; {over_tcp} over TCP, {unreadable} unreadable, \
         {unchanged} unchanged, {} lost",
        stats.lost
    ));
    Ok(())
}

fn main() -> ExitCode {
    netfilterqueue_programs::main(|arguments| run(&arguments))
}
