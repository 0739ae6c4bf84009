//! Asks a server about each new TCP connection, and lets it pass or not; many questions are open at
//! a time.
//!
//! The rule queues TCP packets at the output hook (`--hook` and `--dport` choose others). The first
//! packet of a connection, its SYN, is retained while a task asks the server about it, over one TCP
//! connection for all questions:
//!
//! ```text
//! 17 10.0.0.1:40000 192.0.2.1:443      what is asked: number, source, destination
//! 17 accept                            what is answered, in any order: accept or drop
//! ```
//!
//! An accepted connection belongs to the kernel from then on and does not come up any more (flow
//! bypass). Of one that is not, each new attempt comes up; it is dropped without asking for
//! `--remember`. No answer within `--timeout`, or no server, means `--on-failure`. At most
//! `--concurrent` connections are held; first packets beyond that are dropped, and TCP sends them
//! again a second later. Connections that are older than this program pass.
//!
//! The program's own connection to the server has the mark 0x40000000, which the rule leaves out.
//! The server's packets may come up, and are answered whatever else waits.
//!
//! To try it in a network namespace, with a server that takes half a second for each answer and
//! lets nobody connect to port 81:
//!
//! ```text
//! cargo build --release -p netfilterqueue-programs
//! unshare -rn bash
//! ip link set lo up
//! python3 -c 'from socketserver import *; import threading, time
//! class Policy(StreamRequestHandler):
//!     def answer(self, number, to):
//!         time.sleep(.5); word = "drop" if to.endswith(":81") else "accept"
//!         self.wfile.write(f"{number} {word}\n".encode())
//!     def handle(self):
//!         for line in self.rfile:
//!             number, _, to = line.decode().split()
//!             threading.Thread(target=self.answer, args=(number, to)).start()
//! ThreadingTCPServer(("127.0.0.1", 9999), Policy).serve_forever()' &
//! for port in 80 81; do python3 -m http.server --bind 127.0.0.1 $port & done
//! sleep 1; target/release/tokio_proxy --server 127.0.0.1:9999 & sleep 1
//! for port in 80 81 80 80; do (timeout 2 bash -c "> /dev/tcp/127.0.0.1/$port" && echo $port) & done
//! sleep 3; kill -INT %4; sleep .1; kill %1 %2 %3; exit
//! ```

mod policy;

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::error::Error;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use humantime::parse_duration;
use lru::LruCache;
use netfilterqueue::AsyncQueue;
use netfilterqueue::rules::{InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{
    Batch, Error as QueueError, FlowBypass, FlowMarks, Packet, Queue, RetainedPacket, Verdict,
};
use netfilterqueue_programs::{Lines, Options, Segment, Session, tell};
use policy::{Answer, Policy, Server};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Mark of the packets to the policy server. Not among the bits of the flow bypass.
const OWN: u32 = 0x4000_0000;

/// What the kernel holds beyond the connections that are being asked about.
const ROOM: u32 = 1024;

/// As many packets as one system call receives.
const BATCH: usize = 64;

/// Most dropped connections that are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).expect("more than none");

/// Asks a server about each new TCP connection
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The server that is asked, such as 127.0.0.1:9999
    #[arg(short, long, value_name = "ADDRESS:PORT")]
    server: SocketAddr,

    /// How long an answer may take
    #[arg(short, long, value_parser = parse_duration, default_value = "1s", value_name = "TIME")]
    timeout: Duration,

    /// What becomes of a connection without an answer
    #[arg(long, value_enum, default_value_t = Failure::Drop, value_name = "FATE")]
    on_failure: Failure,

    /// Most connections that are asked about at a time
    #[arg(long, default_value = "1024", value_name = "NUMBER")]
    concurrent: NonZeroUsize,

    /// How long a dropped connection is remembered
    #[arg(long, value_parser = parse_duration, default_value = "10s", value_name = "TIME")]
    remember: Duration,

    /// Ask only about connections to this port, and let others alone; may be repeated
    #[arg(long, value_name = "PORT", help_heading = "Which packets")]
    dport: Vec<u16>,

    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Failure {
    Accept,
    Drop,
}

/// Source and destination.
type Flow = (SocketAddr, SocketAddr);

/// What a packet is to the program.
enum Kind {
    /// Begins a connection.
    First(Flow),
    /// Belongs to one that is older than the program.
    Later,
    /// Cannot be read.
    Unreadable,
}

fn kind(packet: &[u8]) -> Kind {
    match Segment::parse(packet) {
        Some(Segment { tcp: Some(tcp), source, destination, .. }) => {
            if tcp.syn() && !tcp.ack() {
                Kind::First((source, destination))
            } else {
                Kind::Later
            }
        }
        _ => Kind::Unreadable,
    }
}

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered(Answer),
    Failed,
}

struct Proxy {
    policy: Policy,
    bypass: Option<FlowBypass>,
    timeout: Duration,
    on_failure: Failure,
    concurrent: NonZeroUsize,
    remember: Duration,
    /// Asked about at present: a SYN that is sent again meanwhile is not asked about again.
    pending: HashSet<Flow>,
    /// Since when, by a hash with a random key: clients choose their ports.
    dropped: LruCache<Flow, Instant, RandomState>,
    tasks: JoinSet<(Flow, Outcome)>,
    lines: Lines,
    numbers: Numbers,
}

#[derive(Debug, Default)]
struct Numbers {
    accepted: u64,
    dropped: u64,
    failed: u64,
    repeated: u64,
    put_off: u64,
    older: u64,
    unreadable: u64,
    most: usize,
}

impl Proxy {
    /// Takes packets until a signal comes.
    async fn run(&mut self, queue: &mut AsyncQueue) -> Result<(), QueueError> {
        let mut batch = Batch::new(BATCH);
        loop {
            tokio::select! {
                Some(done) = self.tasks.join_next() => if let Ok(done) = done { self.note(done) },
                received = queue.recv(&mut batch) => match received {
                    Ok(_) => {
                        for packet in &mut batch {
                            self.take(packet);
                        }
                        batch.commit()?;
                    }
                    Err(QueueError::Stopped) => return Ok(()),
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// Only first packets are retained. The others must not wait for these: the server's answers
    /// may be among them.
    fn take(&mut self, packet: Packet<'_>) {
        let flow = match kind(packet.payload()) {
            Kind::First(flow) => flow,
            Kind::Later => {
                self.numbers.older += 1;
                match self.bypass {
                    Some(bypass) => packet.accept_flow(bypass),
                    None => packet.accept(),
                };
                return;
            }
            Kind::Unreadable => {
                self.numbers.unreadable += 1;
                packet.verdict(Verdict::Drop);
                return;
            }
        };
        let is_dropped =
            self.dropped.get(&flow).is_some_and(|since| since.elapsed() < self.remember);
        if is_dropped || self.pending.contains(&flow) {
            self.numbers.repeated += 1;
            packet.verdict(Verdict::Drop);
        } else if self.pending.len() >= self.concurrent.get() {
            self.numbers.put_off += 1;
            packet.verdict(Verdict::Drop);
        } else {
            self.ask(flow, packet.retain().0);
        }
    }

    fn ask(&mut self, flow: Flow, packet: RetainedPacket) {
        let (policy, bypass) = (self.policy.clone(), self.bypass);
        let (patience, on_failure) = (self.timeout, self.on_failure);
        self.tasks.spawn(async move {
            let answer = timeout(patience, policy.ask(flow.0, flow.1)).await.ok().flatten();
            let outcome = answer.map_or(Outcome::Failed, Outcome::Answered);
            let sent = match (fate(outcome, on_failure), bypass) {
                (Answer::Accept, Some(bypass)) => packet.accept_flow(bypass),
                (Answer::Accept, None) => packet.accept(),
                // A flow that is dropped from its first packet on is not remembered by the kernel.
                (Answer::Drop, _) => packet.verdict(Verdict::Drop),
            };
            sent.unwrap_or_else(tell);
            (flow, outcome)
        });
        self.pending.insert(flow);
        self.numbers.most = self.numbers.most.max(self.pending.len());
    }

    fn note(&mut self, (flow, outcome): (Flow, Outcome)) {
        self.pending.remove(&flow);
        let (source, destination) = flow;
        let word = match outcome {
            Outcome::Answered(Answer::Accept) => {
                self.numbers.accepted += 1;
                "accept"
            }
            Outcome::Answered(Answer::Drop) => {
                self.numbers.dropped += 1;
                self.dropped.push(flow, Instant::now());
                "drop  "
            }
            Outcome::Failed => {
                self.numbers.failed += 1;
                "failed"
            }
        };
        self.lines.print(format_args!("{word} {source} → {destination}"));
    }

    /// Waits for what is still asked.
    async fn settle(&mut self) {
        while let Some(done) = self.tasks.join_next().await {
            if let Ok(done) = done {
                self.note(done);
            }
        }
    }
}

const fn fate(outcome: Outcome, on_failure: Failure) -> Answer {
    match (outcome, on_failure) {
        (Outcome::Answered(answer), _) => answer,
        (Outcome::Failed, Failure::Accept) => Answer::Accept,
        (Outcome::Failed, Failure::Drop) => Answer::Drop,
    }
}

async fn serve(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let Arguments { options, concurrent, on_failure, .. } = arguments;
    let held = u32::try_from(concurrent.get()).unwrap_or(u32::MAX).saturating_add(ROOM);
    let builder = Queue::builder(options.queue).max_len(held).on_undecided(match on_failure {
        Failure::Accept => Verdict::Accept,
        Failure::Drop => Verdict::Drop,
    });
    let Session { queue, mut rules, .. } = Session::open(options, builder, |rules| {
        let tcp = Rule::queue(options.queue).protocol(Protocol::TCP).mark_masked(0, OWN);
        let to_port = |rules: Rules, &port| rules.rule(tcp.clone().destination_port(port));
        let rules = match arguments.dport.as_slice() {
            [] => rules.rule(tcp),
            ports => ports.iter().fold(rules, to_port),
        };
        rules.flow_bypass(FlowMarks::default())
    })?;
    let mut queue = AsyncQueue::new(queue)?;
    let mut proxy = Proxy {
        policy: Policy::start(Server {
            address: arguments.server,
            patience: arguments.timeout,
            mark: OWN,
            open_max: concurrent.get(),
        }),
        bypass: rules.as_ref().and_then(InstalledRules::flow_bypass),
        timeout: arguments.timeout,
        on_failure: *on_failure,
        concurrent: *concurrent,
        remember: arguments.remember,
        pending: HashSet::new(),
        dropped: LruCache::with_hasher(REMEMBERED, RandomState::new()),
        tasks: JoinSet::new(),
        lines: Lines::new(queue.stop_handle()),
        numbers: Numbers::default(),
    };
    let served = proxy.run(&mut queue).await;
    if let Some(rules) = &mut rules {
        rules.pause()?;
    }
    // There is no more asking about those that still wait in the kernel.
    let mut late = 0;
    queue
        .drain(|packet| match (kind(packet.payload()), on_failure) {
            (Kind::Later, _) | (Kind::First(_), Failure::Accept) => {
                late += 1;
                packet.accept()
            }
            _ => packet.verdict(Verdict::Drop),
        })
        .await?;
    proxy.settle().await;
    let lost = queue.queue().stats().lost;
    queue.close()?;
    served?;
    let Numbers { accepted, dropped, failed, repeated, put_off, older, unreadable, most } =
        proxy.numbers;
    proxy.lines.print(format_args!(
        "{accepted} accepted, {dropped} dropped, {failed} failed; {put_off} put off, \
         {repeated} repeated, {} older or late, {unreadable} unreadable, {lost} lost; \
         at most {most} at a time",
        older + late
    ));
    Ok(())
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    // One thread: what takes time here is waiting for the server.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(arguments))
}

fn main() -> ExitCode {
    netfilterqueue_programs::main(|arguments| run(&arguments))
}
