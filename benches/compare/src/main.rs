//! How fast netfilterqueue is, next to what the kernel's interface allows and to other libraries.
//! `README.md` of the folder above tells how to run it and what is measured.

mod contender;
mod counters;
mod goals;
mod machine;
mod plot;
mod report;
mod results;
mod schedule;
mod table;
mod traffic;
mod workloads;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netfilterqueue_netns::enter_user_namespace;

use crate::machine::Machine;
use crate::results::Run;
use crate::schedule::Terms;

const USAGE: &str = "compare [--quick] [--only WORKLOAD]... [--rounds N] [--manifest FILE] \
                     [--results FOLDER]\ncompare plot RESULT.json [FILE.svg]";

/// How long a quick run may take.
const QUICK: Duration = Duration::from_secs(80);

#[derive(Debug, Default)]
struct Options {
    quick: bool,
    only: Vec<String>,
    rounds: Option<usize>,
    manifest: Option<PathBuf>,
    results: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let outcome = match words.split_first() {
        Some((first, rest)) if first == "plot" => plot(rest).map(|()| true),
        _ => Options::read(&words).and_then(|options| measure(&options)),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn read(words: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(name) = words.next() {
            let mut value = || words.next().with_context(|| format!("{name} needs a value"));
            match name.as_str() {
                "--quick" => options.quick = true,
                "--only" => options.only.push(value()?.clone()),
                "--rounds" => options.rounds = Some(value()?.parse().context("--rounds")?),
                "--manifest" => options.manifest = Some(value()?.into()),
                "--results" => options.results = Some(value()?.into()),
                _ => bail!("unknown option {name}\n{USAGE}"),
            }
        }
        Ok(options)
    }

    fn wants(&self, workload: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| workload.starts_with(wanted))
    }
}

/// Returns whether nothing broke.
fn measure(options: &Options) -> Result<bool> {
    let is_root = nix::unistd::geteuid().is_root();
    enter_user_namespace().context("making network namespaces")?;
    let (contenders, missing) = contender::all(options.manifest.as_deref())?;
    let versions = contenders.iter();
    let mut run = Run {
        machine: Machine::here(is_root),
        quick: options.quick,
        versions: versions.map(|it| (it.name.clone(), it.version.clone())).collect(),
        missing,
        workloads: Vec::new(),
    };
    let terms = Terms {
        quick: options.quick,
        rounds: options.rounds,
        end: options.quick.then(|| Instant::now() + QUICK),
    };
    print!("{}", table::heading(&run));
    for workload in workloads::all() {
        if !options.wants(&workload.id()) {
            continue;
        }
        let cases = workload.cases(&contenders, options.quick);
        let measured = schedule::measure(workload.as_ref(), cases, terms);
        print!("{}", table::workload(&measured));
        run.workloads.push(measured);
    }
    if run.workloads.is_empty() {
        let names: Vec<_> = workloads::all().iter().map(|workload| workload.id()).collect();
        bail!("no such workload; there are {}", names.join(", "));
    }
    print!("{}{}", table::missing(&run), goals::table(&goals::all(&run), run.quick));
    let mut is_whole = true;
    for (workload, row, why) in run.broken() {
        eprintln!("broken: {}, {} {}: {why}", workload.id, row.contender, row.settings);
        is_whole = false;
    }
    match &options.results {
        Some(folder) if is_whole => {
            let path = report::write(&run, folder)?;
            println!("\nwritten to {}", path.display());
        }
        Some(_) => eprintln!("no result is written, because something broke"),
        None => {}
    }
    Ok(is_whole)
}

fn plot(words: &[String]) -> Result<()> {
    let [result, file @ ..] = words else { bail!("{USAGE}") };
    let text = fs::read_to_string(result).with_context(|| format!("reading {result}"))?;
    let run: Run =
        serde_json::from_str(&text).with_context(|| format!("understanding {result}"))?;
    let beside = Path::new(result).with_extension("svg");
    let file = file.first().map_or(beside, PathBuf::from);
    fs::write(&file, plot::svg(&run)).with_context(|| format!("writing {}", file.display()))?;
    println!("written to {}", file.display());
    Ok(())
}
