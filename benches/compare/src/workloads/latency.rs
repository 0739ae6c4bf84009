//! One packet at a time: a request and its response, both through the queue.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue_netns::Namespace;

use super::{Case, Sample, Workload};
use crate::contender::{Contender, Orders, Process, QUEUE};
use crate::machine::{self, Place};
use crate::results::Unit;

/// How the row of `recv` and `send` for each packet is called.
pub const SINGLE: &str = "limit, recv + send";

/// How long a packet may take.
const PATIENCE: Duration = Duration::from_secs(1);

pub struct Latency;

impl Workload for Latency {
    fn id(&self) -> String {
        "latency".to_owned()
    }

    fn title(&self) -> String {
        "request and response over UDP, both queued, median and higher (µs)".to_owned()
    }

    fn unit(&self) -> Unit {
        Unit::Microseconds
    }

    fn rounds(&self, quick: bool) -> usize {
        if quick { 3 } else { 5 }
    }

    fn quick_budget(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn cases(&self, contenders: &[Contender], _quick: bool) -> Vec<Case> {
        let mut cases = Case::best_of(contenders);
        let variant = |of: &str, name: &str, option: &str, value: &str| {
            let mut variant = contenders.iter().find(|contender| contender.name == of)?.clone();
            variant.name = name.to_owned();
            variant.command.extend([option.to_owned(), value.to_owned()]);
            Some(Case::new(&variant, "best"))
        };
        // The library waits in the receive call itself as long as nobody can stop it.
        let stoppable = variant("ours", "ours, stoppable", "--door", "stoppable");
        let single = variant("limit", SINGLE, "--calls", "single");
        cases.splice(0..0, single);
        let behind = cases.iter().position(|case| case.name == "ours").map_or(0, |at| at + 1);
        cases.splice(behind..behind, stoppable);
        cases
    }

    fn measure(&self, case: &Case, quick: bool) -> Result<Sample> {
        let (warm_up, exchanges) = if quick { (100, 2_000) } else { (1_000, 20_000) };
        let namespace = Namespace::new()?;
        let contender = case.contender.as_ref().context("somebody must judge")?;
        let orders = Orders {
            task: "accept",
            settings: &case.settings,
            queues: 1,
            buffer: None,
            place: Place::Consumer,
        };
        let mut process = Process::start(contender, &namespace, orders)?;
        let rule = Rule::queue(QUEUE).protocol(Protocol::UDP);
        let _rules = namespace.run(|| Rules::new(Hook::INPUT).rule(rule).install())?;
        process.serve()?;
        let mut times = namespace.run(|| {
            Place::Generator.enter();
            exchange(warm_up, exchanges)
        })?;
        process.check_alive()?;
        times.sort_unstable();
        let part = |part: f64| {
            let place = (times.len() as f64 * part) as usize;
            times[place.min(times.len() - 1)].as_nanos() as f64 / 1e3
        };
        Ok(Sample { value: part(0.5), more: vec![("p99", part(0.99)), ("p99.9", part(0.999))] })
    }
}

/// One thread is both ends, and with a processor of its own it never sleeps: what is left is the
/// way through the queue.
fn exchange(warm_up: usize, exchanges: usize) -> Result<Vec<Duration>> {
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    client.connect(server.local_addr()?)?;
    server.connect(client.local_addr()?)?;
    let is_alone = machine::cpus().len() > 1;
    for socket in [&client, &server] {
        socket.set_nonblocking(is_alone)?;
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let mut times = Vec::with_capacity(exchanges);
    for round in 0..warm_up + exchanges {
        let start = Instant::now();
        for (from, to) in [(&client, &server), (&server, &client)] {
            from.send(b"one packet, thirty-two bytes long")?;
            receive(to, start)?;
        }
        if round >= warm_up {
            times.push(start.elapsed());
        }
    }
    Ok(times)
}

fn receive(socket: &UdpSocket, start: Instant) -> Result<()> {
    let mut data = [0; 64];
    loop {
        match socket.recv(&mut data) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock && start.elapsed() < PATIENCE => {
                std::hint::spin_loop();
            }
            Err(error) => bail!("a packet did not arrive: {error}"),
        }
    }
}
