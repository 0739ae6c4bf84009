//! What the library is meant to reach, next to what it does.

use std::fmt::Write as _;

use crate::results::{Measured, Row, Run};
use crate::workloads::{BYPASS, NO_QUEUE, SINGLE};

/// A bound and the figure that was measured.
#[derive(Debug)]
pub struct Goal {
    pub what: &'static str,
    /// The bound, and whether the figure must not exceed it or must reach it.
    pub bound: f64,
    pub is_upper: bool,
    pub measured: Option<f64>,
}

impl Goal {
    pub fn is_met(&self) -> Option<bool> {
        let bound = self.bound;
        self.measured.map(|value| if self.is_upper { value <= bound } else { value >= bound })
    }
}

pub fn all(run: &Run) -> Vec<Goal> {
    let at_most = |bound, what, measured| Goal { what, bound, is_upper: true, measured };
    let at_least = |bound, what, measured| Goal { what, bound, is_upper: false, measured };
    let in_workload = |id: &str| run.workload(id);
    let between = |id: &str, one: (&str, &str), other: (&str, &str)| {
        let workload = in_workload(id)?;
        let other = workload.row(other.0, other.1)?;
        Some(workload.row(one.0, one.1)?.ratio_to(other)?.median)
    };
    let ratio =
        |id: &str, settings: &str, to: &str| between(id, ("ours", settings), (to, settings));
    let peer = |id: &str, start: &str, settings: &str| {
        let workload = in_workload(id)?;
        let ours = workload.row("ours", settings)?;
        Some(ours.ratio_to(best_peer(workload, start, settings)?)?.median)
    };
    let bypass = between("tcp", (BYPASS, DEFAULT), (NO_QUEUE, ""));
    let queues = between("queues", ("ours", "2 queues"), ("ours", "1 queue"));
    let more = |id: &str, name: &str| in_workload(id)?.row("ours", "best")?.median_of(name);
    vec![
        at_most(1.03, "drain 100 B, drop: ours / limit", ratio(DROP, BEST, LIMIT)),
        at_most(1.03, "drain 100 B, accept: ours / limit", ratio(ACCEPT, BEST, LIMIT)),
        at_most(0.75, "drain 100 B, accept: ours / nfq", peer(ACCEPT, "nfq", BEST)),
        at_most(1.05, "drain 1400 B, flip: ours / limit", ratio(FLIP, BEST, LIMIT)),
        at_least(0.95, "TCP, defaults: ours / limit", ratio("tcp", DEFAULT, LIMIT)),
        at_least(10.0, "TCP, defaults: ours / python", peer("tcp", "python", DEFAULT)),
        at_least(10.0, "TCP, defaults: ours / nfq", peer("tcp", "nfq", DEFAULT)),
        at_least(0.90, "TCP, flow bypass: ours / no queue", bypass),
        at_least(0.95, "TCP, every packet edited: ours / limit", edited(run)),
        at_most(2.0 / 64.0, "system calls per packet of a backlog", more(ACCEPT, "calls")),
        at_most(256.0, "bytes per retained packet beyond its own", more("memory", "over B")),
        at_most(1.05, "latency p50: ours / recv + send", ratio("latency", BEST, SINGLE)),
        at_least(1.7, "two queues / one queue", queues),
    ]
}

const DROP: &str = "drain-100-drop";
const ACCEPT: &str = "drain-100-accept";
const FLIP: &str = "drain-1400-flip";
const LIMIT: &str = "limit";
const BEST: &str = "best";
const DEFAULT: &str = "default";

/// The settings of this workload differ between quick and full runs.
fn edited(run: &Run) -> Option<f64> {
    let workload = run.workload("tcp-recompute")?;
    let row = |name| workload.rows.iter().find(|row| row.contender == name);
    Some(row("ours")?.ratio_to(row(LIMIT)?)?.median)
}

/// The best, by its median, of the contenders whose names begin so: versions of one library.
fn best_peer<'a>(workload: &'a Measured, start: &str, settings: &str) -> Option<&'a Row> {
    let is_it = |row: &&Row| row.contender.starts_with(start) && row.settings == settings;
    let rows = workload.rows.iter().filter(is_it);
    let rows = rows.filter_map(|row| Some((row.median()?, row)));
    let best = match workload.unit.is_less_better() {
        true => rows.min_by(|one, other| one.0.total_cmp(&other.0)),
        false => rows.max_by(|one, other| one.0.total_cmp(&other.0)),
    };
    Some(best?.1)
}

/// Those that were measured. A quick run is too short to say whether they are met.
pub fn table(goals: &[Goal], quick: bool) -> String {
    let mut text = format!("\n{:44} {:>10} {:>10}\n", "goal", "bound", "measured");
    for goal in goals.iter().filter(|goal| goal.measured.is_some()) {
        let sign = if goal.is_upper { '≤' } else { '≥' };
        let digits = if goal.bound < 0.1 { 4 } else { 2 };
        let bound = format!("{sign} {:.digits$}", goal.bound);
        let measured = goal.measured.map_or("–".to_owned(), |value| format!("{value:.digits$}"));
        let verdict = match goal.is_met() {
            _ if quick => "",
            Some(true) => "met",
            Some(false) => "not met",
            None => "",
        };
        let _ = writeln!(text, "{:44} {bound:>10} {measured:>10}  {verdict}", goal.what);
    }
    text
}
