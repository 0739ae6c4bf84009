//! The result file: all figures for programs, and the same for readers.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::goals;
use crate::results::Run;
use crate::table;

/// Writes both files and returns the path of the one to read.
pub fn write(run: &Run, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let name = run.machine.file_name();
    let path = |number: u32, extension: &str| match number {
        1 => folder.join(format!("{name}.{extension}")),
        _ => folder.join(format!("{name}-{number}.{extension}")),
    };
    // An earlier result of the day stays.
    let is_free = |number: &u32| ["json", "md"].iter().all(|it| !path(*number, it).exists());
    let number = (1..).find(is_free).context("no free name for the result")?;
    let (json, markdown) = (path(number, "json"), path(number, "md"));
    let write = |path: &Path, text: String| {
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    };
    write(&json, serde_json::to_string_pretty(run)? + "\n")?;
    write(&markdown, text(run))?;
    Ok(markdown)
}

fn text(run: &Run) -> String {
    let mut text = format!("# Measured on {}\n\n", run.machine.date);
    text += "```text\n";
    text += &table::heading(run);
    for workload in &run.workloads {
        text += &table::workload(workload);
    }
    text += &table::missing(run);
    text += &goals::table(&goals::all(run), run.quick);
    text += "```\n\nContenders:\n\n";
    for (name, version) in &run.versions {
        let _ = writeln!(text, "- {name}: {version}");
    }
    if !run.machine.is_root {
        text += "\nMeasured as an ordinary user: backlogs are as long as the host's limit of \
                 receive buffers allows.\n";
    }
    text += "\nAll rounds:\n\n```text\n";
    for workload in &run.workloads {
        let _ = writeln!(text, "{}", workload.id);
        for row in &workload.rows {
            let rounds = row.rounds.iter().map(|value| workload.unit.show(*value));
            let rounds = rounds.map(|it| it.split(' ').next().unwrap_or_default().to_owned());
            let rounds = rounds.collect::<Vec<_>>().join(" ");
            let _ = writeln!(text, "  {} {}: {rounds}", row.contender, row.settings);
        }
    }
    text + "```\n"
}
