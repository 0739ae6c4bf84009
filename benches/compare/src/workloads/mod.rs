//! What contenders are measured by.

mod drain;
mod flood;
mod latency;
mod memory;
mod queues;
mod tcp;

use std::time::Duration;

use anyhow::Result;

pub use self::latency::SINGLE;
pub use self::tcp::{BYPASS, NO_QUEUE};
use crate::contender::Contender;
use crate::results::Unit;

/// One row of a workload's table.
#[derive(Debug, Clone)]
pub struct Case {
    pub name: String,
    /// What is told apart beside the contender, `default` and `best` for most.
    pub settings: String,
    /// None for traffic that nobody judges.
    pub contender: Option<Contender>,
    pub kind: Kind,
}

/// What a contender is told to do, where the cases of a workload differ in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    Bypass,
    Queues(u16),
}

/// One figure, and what was measured with it.
#[derive(Debug)]
pub struct Sample {
    pub value: f64,
    pub more: Vec<(&'static str, f64)>,
}

pub trait Workload {
    fn id(&self) -> String;
    fn title(&self) -> String;
    fn unit(&self) -> Unit;
    /// What must be known to read the figures.
    fn notes(&self, _quick: bool) -> Vec<String> {
        Vec::new()
    }
    fn rounds(&self, quick: bool) -> usize;
    /// How long it may take in a quick run.
    fn quick_budget(&self) -> Duration;
    fn cases(&self, contenders: &[Contender], quick: bool) -> Vec<Case>;
    /// One contender, one round, in namespaces of its own.
    fn measure(&self, case: &Case, quick: bool) -> Result<Sample>;
}

/// All, in the order of the table.
pub fn all() -> Vec<Box<dyn Workload>> {
    vec![
        Box::new(drain::DROP_100),
        Box::new(drain::ACCEPT_100),
        Box::new(drain::FLIP_1400),
        Box::new(drain::ACCEPT_60K),
        Box::new(flood::Flood),
        Box::new(tcp::Tcp { task: "accept" }),
        Box::new(tcp::Tcp { task: "recompute" }),
        Box::new(latency::Latency),
        Box::new(queues::Queues),
        Box::new(memory::Memory),
    ]
}

impl Case {
    fn new(contender: &Contender, settings: &str) -> Self {
        Self {
            name: contender.name.clone(),
            settings: settings.to_owned(),
            contender: Some(contender.clone()),
            kind: Kind::Plain,
        }
    }

    /// Each contender with the fastest settings it has.
    fn best_of(contenders: &[Contender]) -> Vec<Self> {
        contenders.iter().map(|contender| Self::new(contender, "best")).collect()
    }

    /// Each contender as it is and with its fastest settings, the library and the limit, for which
    /// these are the same, only once.
    fn both_of(contenders: &[Contender]) -> Vec<Self> {
        let settings = |contender: &Contender| match contender.is_built_in() {
            true => &["default"][..],
            false => &["default", "best"],
        };
        let cases = |contender| settings(contender).iter().map(|it| Self::new(contender, it));
        contenders.iter().flat_map(cases).collect()
    }
}
