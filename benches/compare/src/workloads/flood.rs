//! Datagrams at a steady rate: the highest one at which none is lost.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netfilterqueue_netns::Namespace;

use super::{Case, Sample, Workload};
use crate::contender::{Contender, Orders, Process};
use crate::counters::Datagrams;
use crate::machine::Place;
use crate::results::Unit;
use crate::schedule::wait_until;
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
const PATIENCE: Duration = Duration::from_secs(3);

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
            if trial.lost == 0 && trial.rate < rate * REACHED {
                // It may have been held up by something else.
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
        Ok(Sample { value: good, more: vec![(GENERATOR, f64::from(is_capped))] })
    }
}

struct Trial {
    /// The rate that was reached.
    rate: f64,
    lost: u64,
}

/// Sends at a rate for a time, and counts what becomes of it.
fn trial(namespace: &Namespace, sender: &Sender, rate: f64, time: Duration) -> Result<Trial> {
    let before = Datagrams::read(namespace)?;
    let (sent, elapsed) = namespace.run(|| {
        Place::Generator.enter();
        send_paced(sender, rate, time)
    })?;
    let mut after = Datagrams::read(namespace)?;
    let mut delivered = after.delivered();
    // It is over when all are there, or nothing more comes.
    wait_until(PATIENCE, || {
        thread::sleep(Duration::from_millis(15));
        let Ok(now) = Datagrams::read(namespace) else { return true };
        let is_over = now.delivered() == delivered
            || now.delivered() - before.delivered() == now.arrived - before.arrived;
        (after, delivered) = (now, now.delivered());
        is_over
    });
    let arrived = after.arrived - before.arrived;
    Ok(Trial {
        rate: sent as f64 / elapsed.as_secs_f64(),
        // What the loopback link lost is not the contender's.
        lost: arrived - (delivered - before.delivered()),
    })
}

/// In bursts, as long as what a timer needs to wake the thread.
fn send_paced(sender: &Sender, rate: f64, time: Duration) -> Result<(usize, Duration)> {
    let start = Instant::now();
    let mut sent = 0;
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            return Ok((sent, elapsed));
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
