//! A picture of the main ratios: how fast each contender is, in percent of the limit.

use std::fmt::Write as _;

use crate::results::{Measured, Row, Run};

const WIDTH: f64 = 760.0;
const MARGIN: f64 = 16.0;
/// Where the bars begin, behind the names.
const LEFT: f64 = 230.0;
/// Behind the bars, for the percentage and the figure.
const RIGHT: f64 = 150.0;
const LINE: f64 = 18.0;
const BAR: f64 = 11.0;
const TITLE: f64 = 30.0;

/// Colors that show on light and dark backgrounds; the text follows the reader's preference.
const STYLE: &str = "
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 }
.quiet { fill: #57606a }
.ours { fill: #2f81f7 }
.limit { fill: #8b949e }
.peer { fill: #d29922 }
line { stroke: #8b949e; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .quiet { fill: #9da7b3 } }
";

pub fn svg(run: &Run) -> String {
    // Memory is no speed, and several queues are compared with one.
    let is_speed = |workload: &&Measured| workload.id != "memory" && workload.id != "queues";
    let workloads: Vec<_> = run.workloads.iter().filter(is_speed).map(bars).collect();
    let longest = workloads.iter().flat_map(|(_, bars)| bars).map(|bar| bar.percent);
    let longest = longest.fold(100.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / longest;

    let (mut body, mut y) = (String::new(), MARGIN + LINE);
    let machine = &run.machine;
    let heading = format!(
        "Percent of what the kernel's interface allows; {}, {} CPUs, {}, {}",
        machine.cpu, machine.cpus, machine.kernel, machine.date
    );
    text(&mut body, MARGIN, y, "quiet", &heading);
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
         width=\"{WIDTH}\" height=\"{height}\">\n<style>{STYLE}</style>\n{body}</svg>\n"
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
            name if name.starts_with("limit") || name.starts_with("no queue") => "limit",
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
