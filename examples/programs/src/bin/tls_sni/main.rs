//! Lets TLS connections through, or not, by the name of the server that the client asks for.
//!
//! The rule queues TCP to port 443 (`--port` for others) at the output hook; on a router take
//! `--hook forward`. The first data of a connection is a client hello, which has the name in plain
//! text (SNI); it may be spread over several segments. From then on the connection belongs to the
//! kernel: its other packets, both ways, pass or are dropped by the mark of its conntrack entry
//! (flow bypass) and do not come up any more. What is not decided about yet may pass, for without a
//! whole client hello no server answers; segments out of order are dropped, TCP sends them again.
//!
//! - QUIC (UDP to the same ports) hides the name better. It is dropped, whereupon browsers take
//!   TCP, unless `--quic accept` is given.
//! - Connections without a name get `--nameless`: no TLS, no SNI, a client hello of more than 16 KiB
//!   or a broken one, and connections that are older than this program.
//! - With an encrypted client hello (ECH) the name is that of the server in front.
//!   `--ech drop` drops these, and with them browsers that only pretend to have one.
//! - A client that lies about the name reaches the address all the same.
//!
//! A client whose connection is dropped waits until it gives up: the kernel drops what it sends and
//! what it should get.
//!
//! To try it in a network namespace, with a server that lets everybody connect:
//!
//! ```text
//! cargo build --release -p netfilterqueue-programs
//! unshare -rn bash
//! ip link set lo up
//! openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=test -keyout /tmp/k -out /tmp/c 2>/dev/null
//! openssl s_server -quiet -accept 443 -cert /tmp/c -key /tmp/k -www &
//! target/release/tls_sni --block ads.test &
//! sleep 1
//! for name in new.test www.ads.test; do
//! echo | timeout 2 openssl s_client -connect 127.0.0.1:443 -servername $name 2>&1 | grep subject=
//! done
//! kill %2; kill %1; exit
//! ```

mod flows;
mod hello;

use std::error::Error;
use std::fmt;
use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use flows::{Flows, Step};
use hello::{Hello, Start};
use netfilterqueue::rules::{InstalledRules, Protocol, Rule};
use netfilterqueue::{Decided, FlowBypass, FlowMarks, Packet, Queue, Verdict};
use netfilterqueue_programs::{Domains, Lines, Lists, Options, Segment, Session, tell};

/// Lets TLS connections through, or not, by the name of the server
#[derive(Debug, Parser)]
#[command(version, mut_arg("no_rule", |no_rule| no_rule.hide(true)))]
struct Arguments {
    #[command(flatten)]
    lists: Lists,

    /// What becomes of connections to all other names
    #[arg(long, value_enum, default_value_t = Fate::Accept, value_name = "FATE")]
    others: Fate,

    /// What becomes of connections that tell no name; as --others unless given
    #[arg(long, value_enum, value_name = "FATE")]
    nameless: Option<Fate>,

    /// What becomes of connections with an encrypted client hello; by the outer name unless given
    #[arg(long, value_enum, value_name = "FATE")]
    ech: Option<Fate>,

    /// What becomes of QUIC, UDP to the same ports
    #[arg(long, value_enum, default_value_t = Fate::Drop, value_name = "FATE")]
    quic: Fate,

    /// Port of TLS servers; may be repeated
    #[arg(short, long, default_value = "443")]
    port: Vec<u16>,

    /// Most connections that are watched at a time; each takes up to 32 KiB
    #[arg(long, default_value = "1024", value_name = "NUMBER")]
    flows: NonZeroUsize,

    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fate {
    Accept,
    Drop,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::Drop => "drop  ",
        })
    }
}

/// Who may be reached.
struct Policy {
    blocked: Domains,
    allowed: Domains,
    others: Fate,
    nameless: Fate,
    ech: Option<Fate>,
}

impl Policy {
    /// Decides about a connection by its start; also says by what.
    fn decide(&self, start: Start) -> (Fate, String) {
        let (name, has_inner) = match start {
            Start::Hello(Hello { name: Some(name), has_inner }) => (name, has_inner),
            Start::Hello(Hello { name: None, .. }) => return (self.nameless, "(no name)".into()),
            Start::NotTls => return (self.nameless, "(no TLS)".into()),
            Start::Incomplete | Start::Unreadable => return (self.nameless, "(unreadable)".into()),
        };
        let shown = name.escape_debug().to_string();
        if let (true, Some(fate)) = (has_inner, self.ech) {
            return (fate, format!("{shown} (encrypted)"));
        }
        let fate = match (self.allowed.cover(&name), self.blocked.cover(&name)) {
            (true, _) => Fate::Accept,
            (false, true) => Fate::Drop,
            (false, false) => self.others,
        };
        (fate, shown)
    }
}

/// What becomes of one packet.
enum Judgement {
    Packet(Fate),
    Flow(Fate),
}

struct Filter {
    policy: Policy,
    quic: Fate,
    flows: Flows<Fate>,
    lines: Lines,
    numbers: Numbers,
}

#[derive(Debug, Default)]
struct Numbers {
    accepted: u64,
    dropped: u64,
    out_of_order: u64,
    quic: u64,
    unreadable: u64,
    packets: u64,
}

impl Filter {
    fn judge<'p>(&mut self, packet: Packet<'p>, bypass: FlowBypass) -> Decided<'p> {
        self.numbers.packets += 1;
        match self.judgement(packet.payload()) {
            Judgement::Packet(Fate::Accept) => packet.accept(),
            Judgement::Packet(Fate::Drop) => packet.verdict(Verdict::Drop),
            Judgement::Flow(Fate::Accept) => packet.accept_flow(bypass),
            // The kernel knows the connection: its SYN has passed.
            Judgement::Flow(Fate::Drop) => packet.drop_flow(bypass),
        }
    }

    fn judgement(&mut self, packet: &[u8]) -> Judgement {
        let Some(segment) = Segment::parse(packet) else {
            self.numbers.unreadable += 1;
            return Judgement::Packet(Fate::Drop);
        };
        if segment.tcp.is_none() {
            self.numbers.quic += 1;
            return Judgement::Packet(self.quic);
        }
        match self.flows.follow(&segment) {
            Step::Wait => Judgement::Packet(Fate::Accept),
            Step::Early => {
                self.numbers.out_of_order += 1;
                Judgement::Packet(Fate::Drop)
            }
            Step::Decided(fate) => Judgement::Flow(fate),
            Step::Started(start) => {
                let (fate, why) = self.policy.decide(start);
                self.flows.decide(&segment, fate);
                match fate {
                    Fate::Accept => self.numbers.accepted += 1,
                    Fate::Drop => self.numbers.dropped += 1,
                }
                let Segment { source, destination, .. } = segment;
                self.lines.print(format_args!("{fate} {why}, {source} → {destination}"));
                Judgement::Flow(fate)
            }
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let options = &arguments.options;
    if options.no_rule {
        return Err("--no-rule is not for this program: decided flows pass by its own rules".into());
    }
    let (blocked, allowed) = arguments.lists.gather()?;
    if blocked.is_empty() && arguments.others == Fate::Accept {
        return Err(
            "nothing is blocked: give --block DOMAIN, or --allow DOMAIN --others drop".into()
        );
    }
    let session = Session::open(options, Queue::builder(options.queue), |mut rules| {
        for &port in &arguments.port {
            let rule =
                |protocol| Rule::queue(options.queue).protocol(protocol).destination_port(port);
            rules = rules.rule(rule(Protocol::TCP));
            if arguments.quic == Fate::Drop {
                rules = rules.rule(rule(Protocol::UDP));
            }
        }
        rules.flow_bypass(FlowMarks::default())
    })?;
    let bypass = session.rules.as_ref().and_then(InstalledRules::flow_bypass);
    let bypass = bypass.ok_or("the rules have no flow bypass")?;
    tell(format_args!("domains blocked: {}, allowed: {}", blocked.len(), allowed.len()));
    let mut filter = Filter {
        policy: Policy {
            blocked,
            allowed,
            others: arguments.others,
            nameless: arguments.nameless.unwrap_or(arguments.others),
            ech: arguments.ech,
        },
        quic: arguments.quic,
        flows: Flows::new(arguments.flows),
        lines: Lines::new(session.queue.stop_handle()),
        numbers: Numbers::default(),
    };
    let stats = session.run(|packet| filter.judge(packet, bypass))?;
    let Numbers { accepted, dropped, out_of_order, quic, unreadable, packets } = filter.numbers;
    filter.lines.print(format_args!(
        "{accepted} accepted, {dropped} dropped; {packets} packets: {out_of_order} early, \
         {quic} QUIC, {unreadable} unreadable, {} lost",
        stats.lost
    ));
    Ok(())
}

fn main() -> ExitCode {
    netfilterqueue_programs::main(|arguments| run(&arguments))
}
