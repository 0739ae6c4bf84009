//! Several queues, a thread each.

use std::time::Duration;

use anyhow::Result;

use super::drain::{Drained, backlog};
use super::{Case, Kind, Sample, Workload};
use crate::contender::Contender;
use crate::machine::{self, Place};
use crate::results::Unit;
use crate::traffic::BACKLOG_MAX;

const COUNTS: [u16; 3] = [1, 2, 4];

pub struct Queues;

impl Workload for Queues {
    fn id(&self) -> String {
        "queues".to_owned()
    }

    fn title(&self) -> String {
        "drain a backlog of several queues, 100 B, accept".to_owned()
    }

    fn unit(&self) -> Unit {
        Unit::PacketsPerSecond
    }

    fn notes(&self, _quick: bool) -> Vec<String> {
        let cpus = machine::cpus().len();
        vec![format!(
            "a thread for each queue, pinned to none of the {cpus} processors but where it says so; \
             \"fan-out\" is the library's own threads"
        )]
    }

    fn rounds(&self, quick: bool) -> usize {
        if quick { 3 } else { 7 }
    }

    fn quick_budget(&self) -> Duration {
        Duration::from_secs(8)
    }

    fn cases(&self, contenders: &[Contender], quick: bool) -> Vec<Case> {
        let counts = if quick { &COUNTS[..2] } else { &COUNTS };
        let cases = |contender: &Contender| {
            let case = |count: &u16| Case {
                kind: Kind::Queues(*count),
                ..Case::new(contender, &settings(*count))
            };
            counts.iter().map(case).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = contenders.iter().flat_map(cases).collect();
        if let Some(ours) = contenders.iter().find(|contender| contender.name == "ours") {
            let by = [("ours, fan-out", "fanout"), ("ours, fan-out, pinned", "pinned")];
            all.extend(by.iter().flat_map(|(name, door)| cases(&ours.by_door(name, door))));
        }
        all
    }

    fn measure(&self, case: &Case, quick: bool) -> Result<Sample> {
        let queues = if let Kind::Queues(count) = case.kind { count } else { 1 };
        let packets = if quick { 9_984 } else { BACKLOG_MAX };
        let drained = Drained {
            packets: backlog(packets, queues, 100)?,
            packet_len: 100,
            task: "accept",
            queues,
            place: Place::Anywhere,
        };
        let case = Case { settings: "best".to_owned(), ..case.clone() };
        let (done, _) = drained.measure(&case)?;
        Ok(Sample { value: drained.packets as f64 / done.time.as_secs_f64(), more: Vec::new() })
    }
}

/// As rows are told apart.
pub fn settings(queues: u16) -> String {
    format!("{queues} queue{}", if queues == 1 { "" } else { "s" })
}
