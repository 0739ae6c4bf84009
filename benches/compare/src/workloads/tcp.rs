//! One TCP connection through a router, both directions of it queued.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use netfilterqueue::FlowMarks;
use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue_netns::Namespace;

use super::{Case, Kind, Sample, Workload};
use crate::contender::{Contender, Orders, Process, QUEUE, Unsupported};
use crate::counters::Queues;
use crate::machine::Place;
use crate::results::Unit;

/// How long a write or a read may block: then its thread looks whether the time is over.
const TIMEOUT: Duration = Duration::from_millis(200);

/// How much of what arrives is looked at.
const LOOKED_AT: usize = 4 << 20;

pub const NO_QUEUE: &str = "no queue";
pub const BYPASS: &str = "ours, bypass";

pub struct Tcp {
    pub task: &'static str,
}

impl Workload for Tcp {
    fn id(&self) -> String {
        if self.task == "accept" { "tcp".to_owned() } else { format!("tcp-{}", self.task) }
    }

    fn title(&self) -> String {
        let what = match self.task {
            "accept" => "accepted",
            _ => "edited, its checksum computed",
        };
        format!("TCP through a router, every packet {what}")
    }

    fn unit(&self) -> Unit {
        Unit::GigabitsPerSecond
    }

    fn notes(&self, _quick: bool) -> Vec<String> {
        vec!["client, router and server share the processors, and nobody is pinned".to_owned()]
    }

    fn rounds(&self, quick: bool) -> usize {
        if quick { 1 } else { 5 }
    }

    fn quick_budget(&self) -> Duration {
        Duration::from_secs(12)
    }

    fn cases(&self, contenders: &[Contender], quick: bool) -> Vec<Case> {
        let mut cases = if quick && self.task != "accept" {
            Case::best_of(contenders)
        } else {
            Case::both_of(contenders)
        };
        if self.task == "accept" {
            let ours = contenders.iter().find(|contender| contender.name == "ours");
            let bypass = ours.map(|ours| Case {
                name: BYPASS.to_owned(),
                kind: Kind::Bypass,
                ..Case::new(ours, "default")
            });
            let none = Case {
                name: NO_QUEUE.to_owned(),
                settings: String::new(),
                contender: None,
                kind: Kind::Plain,
            };
            // Beside each other in each round, because they are compared.
            cases.splice(0..0, [none].into_iter().chain(bypass));
        }
        cases
    }

    fn measure(&self, case: &Case, quick: bool) -> Result<Sample> {
        let network = Network::new()?;
        let is_bypass = case.kind == Kind::Bypass;
        let task = if is_bypass { "bypass" } else { self.task };
        let mut judge = None;
        if let Some(contender) = &case.contender {
            let settings = case.settings.as_str();
            let place = Place::Anywhere;
            let orders = Orders { task, settings, queues: 1, buffer: None, place };
            let mut process = Process::start(contender, &network.router, orders)?;
            let rules = network.install_rules(is_bypass)?;
            process.serve()?;
            judge = Some((process, rules));
        }
        let (warm_up, time) = if quick { (150, 350) } else { (500, 2_000) };
        let (warm_up, time) = (Duration::from_millis(warm_up), Duration::from_millis(time));
        let cpu_time = || judge.as_ref().and_then(|(process, _)| process.cpu_time());
        let transfer = network.transfer(warm_up, time, cpu_time)?;
        let mut more = Vec::new();
        more.extend(transfer.cpu.map(|cpu| ("CPU ns/KiB", cpu)));
        if let Some((process, _)) = &mut judge {
            process.check_alive()?;
            let queues = Queues::read(&network.router, QUEUE, 1)?;
            more.extend(queues.map(|queues| ("lost", queues.lost as f64)));
        }
        let is_edited = self.task == "recompute" && judge.is_some();
        transfer.seen.check(is_edited)?;
        if transfer.gigabits == 0.0 {
            bail!("nothing arrived");
        }
        Ok(Sample { value: transfer.gigabits, more })
    }
}

struct Network {
    client: Namespace,
    router: Namespace,
    server: Namespace,
}

struct Transfer {
    gigabits: f64,
    /// What the contender's threads ran for each KiB, in nanoseconds.
    cpu: Option<f64>,
    seen: Seen,
}

/// What arrived of the zeros that were sent.
#[derive(Debug, Default)]
struct Seen {
    bytes: usize,
    /// Bytes that are 1: the first one of each packet's data, if it is edited.
    ones: usize,
    /// Bytes that nobody should have made.
    others: usize,
}

impl Seen {
    fn look(&mut self, data: &[u8]) {
        let zeros = data.iter().filter(|byte| **byte == 0).count();
        let ones = data.iter().filter(|byte| **byte == 1).count();
        self.bytes += data.len();
        self.ones += ones;
        self.others += data.len() - zeros - ones;
    }

    /// The receiver does not see where packets began: but none is longer than 64 KiB, and but for a
    /// few at the end of a window none is shorter than what fits a frame.
    fn check(&self, is_edited: bool) -> Result<()> {
        let Self { bytes, ones, others } = *self;
        let expected = if is_edited { bytes >> 16..=bytes / 256 + 1 } else { 0..=0 };
        if others > 0 || !expected.contains(&ones) || (is_edited && ones == 0) {
            bail!("of {bytes} bytes that arrived {ones} were edited, {others} are none of the two");
        }
        Ok(())
    }
}

impl Network {
    fn new() -> Result<Self> {
        let address = |net: u8, host: u8| IpAddr::from([10, 0, net, host]);
        let (client, router, server) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        for (host, net, link) in [(&client, 1, "eth0"), (&server, 2, "eth1")] {
            host.veth("eth0", &router, link)?;
            host.add_address("eth0", address(net, 2), 24)?;
            router.add_address(link, address(net, 1), 24)?;
            host.add_default_route(address(net, 1))?;
        }
        for host in [&client, &server] {
            // The host's may pace (bbr), which would be the bound; every kernel has this one.
            host.set_sysctl("net/ipv4/tcp_congestion_control", "reno").map_err(|error| {
                anyhow!(Unsupported(format!("no choice of the congestion control: {error}")))
            })?;
        }
        router
            .set_sysctl("net/ipv4/ip_forward", "1")
            .map_err(|error| anyhow!(Unsupported(format!("no routing here: {error}"))))?;
        Ok(Self { client, router, server })
    }

    fn install_rules(&self, is_bypass: bool) -> Result<InstalledRules> {
        let rules = Rules::new(Hook::FORWARD).rule(Rule::queue(QUEUE).protocol(Protocol::TCP));
        if !is_bypass {
            return Ok(self.router.run(|| rules.install())?);
        }
        let rules = rules.flow_bypass(FlowMarks::default());
        self.router.run(|| rules.install()).map_err(|error| {
            anyhow!(Unsupported(format!("the kernel has no flow bypass: {error}")))
        })
    }

    /// Sends as much as goes, and counts what arrives after the warm-up.
    fn transfer(
        &self,
        warm_up: Duration,
        time: Duration,
        cpu_time: impl Fn() -> Option<Duration>,
    ) -> Result<Transfer> {
        let address = SocketAddr::from(([10, 0, 2, 2], 5000));
        let listener = self.server.run(|| TcpListener::bind(address))?;
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(5));
        let client = self.client.run(connect).context("connecting through the router")?;
        let (server, _) = listener.accept()?;
        client.set_write_timeout(Some(TIMEOUT))?;
        server.set_read_timeout(Some(TIMEOUT))?;

        let (is_over, arrived) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| send(&client, &is_over));
            let receiver = scope.spawn(|| receive(&server, &is_over, &arrived));
            thread::sleep(warm_up);
            let (start, before) = (Instant::now(), arrived.load(Ordering::Relaxed));
            let cpu_before = cpu_time();
            thread::sleep(time);
            let bytes = arrived.load(Ordering::Relaxed).checked_sub(before);
            let bytes = bytes.context("the count of bytes ran backwards");
            let elapsed = start.elapsed();
            let cpu = cpu_time().zip(cpu_before);
            is_over.store(true, Ordering::Relaxed);
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
            let seen = receiver.join().map_err(|_| anyhow!("the receiver panicked"))?;
            let bytes = bytes?;
            let cpu = cpu.map(|(after, before)| {
                let cpu = after.checked_sub(before);
                cpu.context("the contender's processor time ran backwards")
            });
            let per_kib = |cpu: Duration| cpu.as_nanos() as f64 * 1024.0 / bytes.max(1) as f64;
            Ok(Transfer {
                gigabits: bytes as f64 * 8.0 / elapsed.as_secs_f64() / 1e9,
                cpu: cpu.transpose()?.map(per_kib),
                seen,
            })
        })
    }
}

fn send(mut stream: &TcpStream, is_over: &AtomicBool) {
    let zeros = vec![0; 256 << 10];
    while !is_over.load(Ordering::Relaxed) {
        // A part of it is as good, and a timeout no error.
        let _ = stream.write(&zeros);
    }
}

fn receive(mut stream: &TcpStream, is_over: &AtomicBool, arrived: &AtomicU64) -> Seen {
    let mut buffer = vec![0; 256 << 10];
    let (mut seen, mut sum) = (Seen::default(), 0);
    while !is_over.load(Ordering::Relaxed) {
        let Ok(len) = stream.read(&mut buffer) else { continue };
        if sum < LOOKED_AT {
            seen.look(&buffer[..len]);
        }
        sum += len;
        arrived.store(sum as u64, Ordering::Relaxed);
    }
    seen
}
