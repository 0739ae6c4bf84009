//! Rounds of a workload: each contender once, then each again, so that what changes on the machine
//! meanwhile falls on all of them.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Error;

use crate::contender::Unsupported;
use crate::results::{Gap, Measured, Row};
use crate::workloads::{Case, Workload};

/// How long things may take, and how often they are done.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub quick: bool,
    /// Instead of what the workload would have.
    pub rounds: Option<usize>,
    /// When no further round is begun.
    pub end: Option<Instant>,
}

pub fn measure(workload: &dyn Workload, cases: Vec<Case>, terms: Terms) -> Measured {
    let rounds = terms.rounds.unwrap_or(workload.rounds(terms.quick));
    let budget = terms.quick.then(|| Instant::now() + workload.quick_budget());
    let end = [budget, terms.end].into_iter().flatten().min();
    let mut rows: Vec<Row> = cases.iter().map(new_row).collect();
    let mut notes = workload.notes(terms.quick);
    'rounds: for round in 0..rounds {
        for at in 0..cases.len() {
            // Another one begins each round: who comes first, or after whom, is no advantage.
            let at = (at + round) % cases.len();
            let (case, row) = (&cases[at], &mut rows[at]);
            if end.is_some_and(|end| Instant::now() > end) {
                notes.push(format!("the time was up in round {} of {rounds}", round + 1));
                break 'rounds;
            }
            if row.gap.is_some() {
                continue;
            }
            match workload.measure(case, terms.quick) {
                Ok(sample) => {
                    row.rounds.push(sample.value);
                    for (name, value) in sample.more {
                        row.more.entry(name.to_owned()).or_default().push(value);
                    }
                }
                Err(error) => {
                    // Figures of a contender that loses packets now and then are none.
                    row.rounds.clear();
                    row.more.clear();
                    row.gap = Some(gap(&error));
                }
            }
        }
    }
    for row in &mut rows {
        if row.rounds.is_empty() && row.gap.is_none() {
            row.gap = Some(Gap::LeftOut);
        }
    }
    let mut measured =
        Measured { id: workload.id(), title: workload.title(), unit: workload.unit(), notes, rows };
    measured.relate_to_limit();
    measured
}

fn new_row(case: &Case) -> Row {
    Row {
        contender: case.name.clone(),
        settings: case.settings.clone(),
        rounds: Vec::new(),
        more: BTreeMap::new(),
        to_limit: None,
        gap: None,
    }
}

fn gap(error: &Error) -> Gap {
    match error.downcast_ref::<Unsupported>() {
        Some(Unsupported(reason)) => Gap::Unsupported(reason.clone()),
        None => Gap::Broken(format!("{error:#}")),
    }
}
