//! What a run has measured, as it is kept in a file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::contender::Missing;
use crate::machine::Machine;

#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    pub machine: Machine,
    pub quick: bool,
    pub versions: Vec<(String, String)>,
    pub missing: Vec<Missing>,
    pub workloads: Vec<Measured>,
}

/// A workload's figures.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    pub id: String,
    pub title: String,
    pub unit: Unit,
    pub notes: Vec<String>,
    pub rows: Vec<Row>,
}

/// The figures of one contender with one sort of settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    pub contender: String,
    pub settings: String,
    pub rounds: Vec<f64>,
    /// What was measured beside it, by round.
    pub more: BTreeMap<String, Vec<f64>>,
    /// How it relates to the limit.
    pub to_limit: Option<Ratio>,
    pub gap: Option<Gap>,
}

/// Of two rows' figures of the same round, over all rounds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Ratio {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

/// Why rounds are missing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Gap {
    /// It cannot do this, and says so.
    Unsupported(String),
    /// It lost packets, broke them or ended: the run has failed.
    Broken(String),
    /// There was no time left for it.
    LeftOut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    NanosecondsPerPacket,
    GigabitsPerSecond,
    PacketsPerSecond,
    Microseconds,
    Kibibytes,
}

impl Unit {
    pub const fn is_less_better(self) -> bool {
        !matches!(self, Self::GigabitsPerSecond | Self::PacketsPerSecond)
    }

    pub fn show(self, value: f64) -> String {
        match self {
            Self::NanosecondsPerPacket => format!("{value:.0} ns"),
            Self::GigabitsPerSecond => format!("{value:.2} Gbit/s"),
            Self::PacketsPerSecond => format!("{:.0} k/s", value / 1e3),
            Self::Microseconds => format!("{value:.1} µs"),
            Self::Kibibytes => format!("{value:.0} KiB"),
        }
    }
}

impl Run {
    pub fn workload(&self, id: &str) -> Option<&Measured> {
        self.workloads.iter().find(|workload| workload.id == id)
    }

    pub fn broken(&self) -> impl Iterator<Item = (&Measured, &Row, &str)> {
        self.workloads.iter().flat_map(|workload| {
            workload.rows.iter().filter_map(move |row| match &row.gap {
                Some(Gap::Broken(why)) => Some((workload, row, why.as_str())),
                _ => None,
            })
        })
    }
}

impl Measured {
    pub fn row(&self, contender: &str, settings: &str) -> Option<&Row> {
        let is_it = |row: &&Row| row.contender == contender && row.settings == settings;
        self.rows.iter().find(is_it)
    }

    /// Compares each row with the limit: with the same settings, if it has them.
    pub fn relate_to_limit(&mut self) {
        let limits: Vec<_> =
            self.rows.iter().filter(|row| row.contender == "limit").cloned().collect();
        for row in &mut self.rows {
            let same = limits.iter().find(|limit| limit.settings == row.settings);
            row.to_limit = same.or_else(|| limits.first()).and_then(|limit| row.ratio_to(limit));
        }
    }
}

impl Row {
    pub fn median(&self) -> Option<f64> {
        median(&self.rounds)
    }

    /// Round by round, because what the machine does meanwhile falls on both.
    pub fn ratio_to(&self, other: &Self) -> Option<Ratio> {
        let rounds = self.rounds.iter().zip(&other.rounds);
        let ratios: Vec<_> = rounds.map(|(value, other)| value / other).collect();
        let (least, greatest) = spread(&ratios)?;
        Some(Ratio { median: median(&ratios)?, least, greatest })
    }

    /// The median of something measured beside the main figure.
    pub fn median_of(&self, name: &str) -> Option<f64> {
        median(self.more.get(name)?)
    }

    /// The least and the greatest.
    pub fn spread(&self) -> Option<(f64, f64)> {
        spread(&self.rounds)
    }
}

fn spread(values: &[f64]) -> Option<(f64, f64)> {
    let values = || values.iter().copied();
    Some((values().reduce(f64::min)?, values().reduce(f64::max)?))
}

pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 0 => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        _ => Some(sorted[middle]),
    }
}
