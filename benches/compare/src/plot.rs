//! A picture of the main ratios: how fast each contender is, in percent of the limit.

use std::fmt::Write as _;

use crate::results::{Measured, Row, Run};

const WIDTH: f64 = 800.0;
const MARGIN: f64 = 16.0;
/// Where the bars begin, behind the names.
const LEFT: f64 = 230.0;
/// Behind the bars, for the percentage and the figure.
const RIGHT: f64 = 170.0;
const LINE: f64 = 18.0;
const BAR: f64 = 11.0;
const TITLE: f64 = 30.0;

/// On a ground of its own: a page need not follow the reader's preference for dark or light.
const STYLE: &str = "
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 }
.quiet { fill: #57606a }
.ours { fill: #2f81f7 }
.limit { fill: #8b949e }
.peer { fill: #d29922 }
.none { fill: #d0d7de }
.ground { fill: #ffffff }
line { stroke: #8b949e; stroke-dasharray: 3 3 }
";

/// The main workloads; the others are in the table.
const SHOWN: [&str; 5] =
    ["drain-100-drop", "drain-100-accept", "drain-1400-flip", "tcp", "latency"];

pub fn svg(run: &Run) -> String {
    let is_shown = |workload: &&Measured| SHOWN.contains(&workload.id.as_str());
    let workloads: Vec<_> = run.workloads.iter().filter(is_shown).map(bars).collect();
    let longest = workloads.iter().flat_map(|(_, bars)| bars).map(|bar| bar.percent);
    let longest = longest.fold(100.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / longest;

    let (mut body, mut y) = (String::new(), MARGIN + LINE);
    let machine = &run.machine;
    let heading = format!(
        "How fast, the raw limit of the same round being 100 %; {}, {} CPUs, {}, {}",
        machine.cpu, machine.cpus, machine.kernel, machine.date
    );
    text(&mut body, MARGIN, y, "quiet", &heading);
    y += LINE;
    let legend = "Bars: medians of the ratios; in brackets: medians of the figures. \
                  Blue: this crate; grey: the limit; yellow: others.";
    text(&mut body, MARGIN, y, "quiet", legend);
    for (workload, bars) in workloads.iter().filter(|(_, bars)| !bars.is_empty()) {
        y += TITLE;
        text(&mut body, MARGIN, y, "title", &workload.title);
        let top = y + 4.0;
        for bar in bars {
            y += LINE;
            text(&mut body, MARGIN, y, "", &bar.name);
            let length = (bar.percent * scale).max(1.0);
            let _ = writeln!(
                body,
                r#"<rect class="{}" x="{LEFT}" y="{:.1}" width="{length:.1}" height="{BAR}"/>"#,
                bar.class,
                y - BAR + 1.0
            );
            let figure = format!("{:.0} %  ({})", bar.percent, bar.figure);
            // Not under the line at 100 %.
            text(&mut body, LEFT + length.max(100.0 * scale) + 6.0, y, "quiet", &figure);
        }
        let x = LEFT + 100.0 * scale;
        let _ =
            writeln!(body, r#"<line x1="{x:.1}" y1="{top:.1}" x2="{x:.1}" y2="{:.1}"/>"#, y + 4.0);
    }
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\">\n<style>{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\"/>\n{body}</svg>\n"
    )
}

struct Bar {
    name: String,
    class: &'static str,
    percent: f64,
    figure: String,
}

/// The rows of a workload that have a figure.
fn bars(workload: &Measured) -> (&Measured, Vec<Bar>) {
    let settings = |row: &Row| {
        let count = workload.rows.iter().filter(|other| other.contender == row.contender).count();
        if count > 1 { format!(" ({})", row.settings) } else { String::new() }
    };
    let bar = |row: &Row| {
        let ratio = row.to_limit?.median;
        let percent = 100.0 * if workload.unit.is_less_better() { 1.0 / ratio } else { ratio };
        let class = match row.contender.as_str() {
            name if name.starts_with("ours") => "ours",
            name if name.starts_with("limit") => "limit",
            name if name.starts_with("no queue") => "none",
            _ => "peer",
        };
        let name = format!("{}{}", row.contender, settings(row));
        Some(Bar { name, class, percent, figure: workload.unit.show(row.median()?) })
    };
    (workload, workload.rows.iter().filter_map(bar).collect())
}

fn text(body: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(body, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{text}</text>"#);
}
