//! Datagrams at a steady rate: the highest one at which none is lost.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use netfilterqueue_netns::Namespace;

use super::{Case, Sample, Workload};
use crate::contender::{Contender, Orders, Process, QUEUE, Unsupported};
use crate::counters::{Datagrams, Queues};
use crate::machine::Place;
use crate::results::Unit;
use crate::traffic::{Backlog, PORT, Sender};

const PACKET_LEN: usize = 100;

/// The rate that is tried first, in packets per second.
const FIRST: f64 = 50_000.0;

/// A rate and a time before that.
const WARM_UP: (f64, Duration) = (2_000.0, Duration::from_millis(20));

/// How much of the rate the generator must reach: else that is what the figure is about.
const REACHED: f64 = 0.9;

/// Whether the contender could have taken more than the generator sends.
const GENERATOR: &str = "no faster generator?";

/// How long what is still queued may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at the counters.
const STEP: Duration = Duration::from_millis(15);

/// How long nothing may happen before it counts as the end, for who may not read how many packets
/// wait.
const QUIET: Duration = Duration::from_millis(200);

pub struct Flood;

impl Workload for Flood {
    fn id(&self) -> String {
        "flood".to_owned()
    }

    fn title(&self) -> String {
        "steady flood, 100 B, accept: the highest rate without loss".to_owned()
    }

    fn unit(&self) -> Unit {
        Unit::PacketsPerSecond
    }

    fn notes(&self, _quick: bool) -> Vec<String> {
        vec!["with the receive buffer that each contender has of its own accord".to_owned()]
    }

    fn rounds(&self, quick: bool) -> usize {
        if quick { 1 } else { 3 }
    }

    fn quick_budget(&self) -> Duration {
        Duration::from_secs(12)
    }

    fn cases(&self, contenders: &[Contender], quick: bool) -> Vec<Case> {
        if quick { Case::best_of(contenders) } else { Case::both_of(contenders) }
    }

    fn measure(&self, case: &Case, quick: bool) -> Result<Sample> {
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
        let mut backlog = Backlog::new(&namespace, 1, PACKET_LEN, true)?;
        backlog.queue()?;
        process.serve()?;
        let sender = backlog.sender(PORT)?;
        let time = Duration::from_millis(if quick { 150 } else { 600 });
        // The first packets stay in the receiver, which is full from then on.
        trial(&namespace, &sender, WARM_UP.0, WARM_UP.1)?;
        let flood = |rate| trial(&namespace, &sender, rate, time);

        let (mut good, mut bad, mut is_capped) = (0.0, None, false);
        let mut rate = FIRST;
        for _ in 0..if quick { 6 } else { 12 } {
            let mut trial = flood(rate)?;
            if trial.lost > 0 || trial.rate < rate * REACHED {
                // Something else may have held up the contender, or the generator.
                trial = flood(rate)?;
            }
            if trial.lost > 0 {
                bad = Some(rate);
            } else {
                good = trial.rate.min(rate).max(good);
                if trial.rate < rate * REACHED {
                    is_capped = true;
                    break;
                }
            }
            rate = match bad {
                Some(bad) => (good + bad) / 2.0,
                None => rate * 2.0,
            };
        }
        process.check_alive()?;
        if good == 0.0 {
            return Err(anyhow!(Unsupported(
                "packets were lost at every rate that was tried".into()
            )));
        }
        Ok(Sample { value: good, more: vec![(GENERATOR, f64::from(is_capped))] })
    }
}

struct Trial {
    /// The rate at which packets arrived at the queue.
    rate: f64,
    lost: u64,
}

/// Sends at a rate for a time, and counts what becomes of it.
fn trial(namespace: &Namespace, sender: &Sender, rate: f64, time: Duration) -> Result<Trial> {
    let before = Datagrams::read(namespace)?;
    let elapsed = namespace.run(|| {
        Place::Generator.enter();
        send_paced(sender, rate, time)
    })?;
    let deadline = Instant::now() + PATIENCE;
    let (mut after, mut last_change) = (Datagrams::read(namespace)?, Instant::now());
    // What still waits would be counted for the next trial, or for lost in this one.
    loop {
        thread::sleep(STEP);
        let waiting = Queues::read(namespace, QUEUE, 1)?.map(|queues| queues.waiting);
        let now = Datagrams::read(namespace)?;
        let all_are_there = now.delivered_since(before)? == now.arrived_since(before)?;
        let is_quiet = now.delivered_since(after)? == 0 && now.arrived_since(after)? == 0;
        after = now;
        if !is_quiet {
            last_change = Instant::now();
        }
        let is_empty = waiting.map_or(last_change.elapsed() >= QUIET, |waiting| waiting == 0);
        if is_quiet && (all_are_there || is_empty) {
            break;
        }
        if Instant::now() > deadline {
            bail!("packets of a flood still wait after {} s", PATIENCE.as_secs());
        }
    }
    let arrived = after.arrived_since(before)?;
    // What the loopback link lost is not the contender's.
    let lost = arrived.checked_sub(after.delivered_since(before)?);
    let lost = lost.context("more packets were delivered than arrived")?;
    Ok(Trial { rate: arrived as f64 / elapsed.as_secs_f64(), lost })
}

/// In bursts, as long as what a timer needs to wake the thread. Returns how long it took.
fn send_paced(sender: &Sender, rate: f64, time: Duration) -> Result<Duration> {
    let start = Instant::now();
    let mut sent = 0;
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            return Ok(elapsed);
        }
        let due = (elapsed.as_secs_f64() * rate) as usize;
        if due > sent {
            let burst = (due - sent).min(256);
            sender.send(burst)?;
            sent += burst;
        } else {
            thread::sleep(Duration::from_micros(50));
        }
    }
}
