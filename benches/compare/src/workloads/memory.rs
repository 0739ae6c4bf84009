//! How much memory a contender takes: at rest, while a backlog waits, and with all of that held
//! back.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use netfilterqueue_netns::Namespace;

use super::drain::{BATCH, backlog, buffer};
use super::{Case, Sample, Workload};
use crate::contender::{Contender, Orders, Process, QUEUE, Unsupported};
use crate::counters::{Datagrams, Queues};
use crate::machine::Place;
use crate::results::Unit;
use crate::traffic::{BACKLOG_MAX, Backlog};

const PACKET_LEN: usize = 100;

pub struct Memory;

impl Workload for Memory {
    fn id(&self) -> String {
        "memory".to_owned()
    }

    fn title(&self) -> String {
        "resident memory at rest".to_owned()
    }

    fn unit(&self) -> Unit {
        Unit::Kibibytes
    }

    fn notes(&self, _quick: bool) -> Vec<String> {
        let notes = [
            "KiB waiting: with a backlog of packets of 100 B in the kernel",
            "KiB held: at most, with all of them retained; over: bytes for each beyond its 100",
        ];
        notes.map(str::to_owned).to_vec()
    }

    fn rounds(&self, quick: bool) -> usize {
        if quick { 1 } else { 3 }
    }

    fn quick_budget(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn cases(&self, contenders: &[Contender], _quick: bool) -> Vec<Case> {
        Case::best_of(contenders)
    }

    fn measure(&self, case: &Case, quick: bool) -> Result<Sample> {
        match self.measure_task(case, "retain", quick) {
            // Then the rest of it can be measured all the same.
            Err(error) if error.is::<Unsupported>() => self.measure_task(case, "accept", quick),
            result => result,
        }
    }
}

impl Memory {
    fn measure_task(&self, case: &Case, task: &str, quick: bool) -> Result<Sample> {
        let packets = backlog(if quick { 9_984 } else { BACKLOG_MAX }, 1, PACKET_LEN)?;
        let namespace = Namespace::new()?;
        let contender = case.contender.as_ref().context("somebody must judge")?;
        let orders = Orders {
            task,
            settings: &case.settings,
            queues: 1,
            buffer: Some(buffer(packets, PACKET_LEN)),
            place: Place::Consumer,
        };
        let mut process = Process::start(contender, &namespace, orders)?;
        let rest = process.memory_kib()?.now as f64;
        let mut traffic = Backlog::new(&namespace, 1, PACKET_LEN, true)?;
        traffic.queue()?;
        if task == "retain" {
            // A batch comes and goes first: what the buffers for that take is not the packets'.
            traffic.fill(BATCH)?;
            process.judge(BATCH)?;
            traffic.take_received();
        }
        let before = process.memory_kib()?.peak as f64;
        traffic.fill(packets)?;
        let waiting = process.memory_kib()?.now as f64;
        let mut more = vec![("waiting", waiting)];
        let datagrams = Datagrams::read(&namespace)?;
        process.judge(packets)?;
        traffic.take_received();
        let delivered = Datagrams::read(&namespace)?.delivered_since(datagrams)?;
        if delivered != packets as u64 {
            bail!("{delivered} of {packets} packets were delivered");
        }
        if let Some(Queues { waiting, lost }) = Queues::read(&namespace, QUEUE, 1)?
            && (waiting > 0 || lost > 0)
        {
            bail!("{waiting} of {packets} packets have no verdict, {lost} were lost");
        }
        if task == "retain" {
            let held = process.memory_kib()?.peak as f64;
            let each = (held - before) * 1024.0 / packets as f64;
            more.extend([("held", held), ("over B", each - PACKET_LEN as f64)]);
        }
        Ok(Sample { value: rest, more })
    }
}
