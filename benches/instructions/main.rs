//! How many instructions a packet costs in user space, held against a budget:
//!
//! ```text
//! cargo bench -p netfilterqueue-benches --bench instructions [-- PART-OF-A-NAME]
//! ```
//!
//! Counts, because they are the same in every run, on a busy machine too, so that CI can fail on
//! them. callgrind counts: it needs valgrind, no debugger's rights, and root or user namespaces for
//! the network namespace that the packets are in.
//!
//! The program starts itself under valgrind, once per case. gungraun, which does that for any
//! library, counts the same; but its runner takes some two minutes to build, and the division by
//! packets, the budgets and the table would be ours all the same.

mod budgets;
mod live;
mod pure;
mod valgrind;

use std::env;
use std::process::ExitCode;

use budgets::Budgets;

/// What one receive call takes in.
const BATCH: usize = 64;
/// What is counted in each case: packets, or messages.
const PACKETS: usize = 50 * BATCH;

/// Before the name of the case that is to run under valgrind.
const COUNT: &str = "--count";

/// A name, which says what is counted, and the work.
type Case = (&'static str, fn());

const CASES: [Case; 14] = [
    ("accept,run", live::run),
    ("accept,batch=64", live::accept),
    ("accept,batch=64,exact", live::accept_exact),
    ("drop,batch=64", live::drop),
    ("mark,batch=64", live::mark),
    ("edit=1400,raw", live::edit_raw),
    ("edit=1400,complete", live::edit_complete),
    ("replace=1400,raw", live::replace_raw),
    ("parse=udp", pure::parse_udp),
    ("parse=tcp+conntrack", pure::parse_tcp_conntrack),
    ("parse=udp,attributes", pure::iterate_attributes),
    ("encode=exact", pure::encode_exact),
    ("encode=exact+mark+head", pure::encode_exact_mark_head),
    ("encode=cumulative", pure::encode_cumulative),
];

fn main() -> ExitCode {
    // cargo's own.
    let arguments: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [COUNT, name] => {
            let found = CASES.iter().find(|(known, _)| *known == name);
            found.expect("a case of this name").1();
            ExitCode::SUCCESS
        }
        [] => count_all(""),
        [part] if !part.starts_with('-') => count_all(part),
        _ => {
            eprintln!("usage: instructions [PART-OF-A-NAME]");
            ExitCode::FAILURE
        }
    }
}

/// Counts the cases with `part` in their names and prints a table. Fails if one costs too much.
fn count_all(part: &str) -> ExitCode {
    let budgets = match Budgets::read(CASES.map(|(name, _)| name)) {
        Ok(budgets) => budgets,
        Err(error) => return fail(&error),
    };
    println!("instructions per packet   measured     budget   headroom");
    let (mut counted, mut exceeded) = (0, 0);
    for (name, _) in CASES.iter().filter(|(name, _)| name.contains(part)) {
        let count = match valgrind::count(name) {
            Ok(count) => count,
            Err(error) => return fail(&format!("{name}: {error}")),
        };
        let measured = count as f64 / PACKETS as f64;
        let budget = budgets.of(name);
        let headroom = (budget - measured) / budget * 100.0;
        let verdict = if measured > budget { "  TOO MUCH" } else { "" };
        println!("{name:<24}{measured:>10.1} {budget:>10.1} {headroom:>8.1} %{verdict}");
        counted += 1;
        exceeded += u32::from(measured > budget);
    }
    if !cfg!(target_arch = "x86_64") {
        println!("the budgets are for x86-64: nothing is held against them here");
        exceeded = 0;
    }
    println!("what takes them: callgrind_annotate {}", valgrind::profile("NAME").display());
    match (counted, exceeded) {
        (0, _) => fail(&format!("no case has {part:?} in its name")),
        (_, 0) => ExitCode::SUCCESS,
        _ => fail(&format!("{exceeded} above the budget in benches/budgets")),
    }
}

fn fail(error: &str) -> ExitCode {
    eprintln!("instructions: {error}");
    ExitCode::FAILURE
}
