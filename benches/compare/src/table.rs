//! The figures as text, for a terminal and for the result file.

use std::fmt::Write as _;

use crate::results::{Gap, Measured, Row, Run};

/// The longest name of a contender.
const NAME: usize = 24;

pub fn heading(run: &Run) -> String {
    let machine = &run.machine;
    let mut text = format!(
        "{}, {} CPU{}, {}, {}\n",
        machine.cpu,
        machine.cpus,
        if machine.cpus == 1 { "" } else { "s" },
        machine.kernel,
        machine.rustc
    );
    if machine.cpus == 1 {
        text += "one CPU: contender and generator share it, so nothing is pinned apart\n";
    }
    if run.quick {
        text += "a quick run: few packets and rounds, to see that everything works\n";
    }
    let (name, median) = ("contender", "median");
    let _ = writeln!(
        text,
        "\n{name:NAME$} {:8} {median:>13}  {:>23}  {:>8}",
        "settings", "spread", "to limit"
    );
    text
}

pub fn workload(measured: &Measured) -> String {
    let mut text = format!("\n{} ({})\n", measured.title, measured.id);
    for row in &measured.rows {
        let _ = writeln!(text, "{}", self::row(measured, row).trim_end());
    }
    for note in &measured.notes {
        let _ = writeln!(text, "  {note}");
    }
    let gaps = measured.rows.iter().filter_map(|row| row.gap.as_ref().map(|gap| (row, gap)));
    for (Row { contender, settings, .. }, gap) in gaps {
        let _ = match gap {
            Gap::Unsupported(why) => writeln!(text, "  – {contender} {settings}: {why}"),
            Gap::Broken(why) => writeln!(text, "  BROKEN {contender} {settings}: {why}"),
            Gap::LeftOut => writeln!(text, "  – {contender} {settings}: no time was left for it"),
        };
    }
    text
}

fn row(measured: &Measured, row: &Row) -> String {
    let Row { contender, settings, .. } = row;
    let unit = measured.unit;
    let (Some(median), Some((least, greatest))) = (row.median(), row.spread()) else {
        return format!("{contender:NAME$} {settings:8} {:>13}", "–");
    };
    let spread = format!("{} .. {}", plain(&unit.show(least)), unit.show(greatest));
    let ratio = row.to_limit.map_or("–".to_owned(), |it| format!("{:.2}", it.median));
    let more = row.more.keys().filter_map(|name| {
        let value = row.median_of(name)?;
        match name.strip_suffix('?') {
            Some(statement) => (value > 0.0).then(|| statement.to_owned()),
            None => Some(format!("{name} {}", short(value))),
        }
    });
    let more = more.chain(to_one_queue(measured, row)).collect::<Vec<_>>().join(", ");
    format!(
        "{contender:NAME$} {settings:8} {:>13}  {spread:>23}  {ratio:>8}  {more}",
        unit.show(median)
    )
}

/// With several queues, how many times as much as with one.
fn to_one_queue(measured: &Measured, row: &Row) -> Option<String> {
    let one = measured.row(&row.contender, "1 queue")?.median()?;
    let ratio = row.median()? / one;
    (row.settings != "1 queue").then(|| format!("{ratio:.2} times one queue"))
}

/// A value without its unit.
fn plain(shown: &str) -> &str {
    shown.split(' ').next().unwrap_or_default()
}

fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 1.0 => format!("{value:.3}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

pub fn missing(run: &Run) -> String {
    let mut text = String::new();
    if !run.missing.is_empty() {
        text += "\nmissing here\n";
    }
    for missing in &run.missing {
        let _ = writeln!(text, "{:NAME$} {}", missing.name, missing.reason);
    }
    text
}
