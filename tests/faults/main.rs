//! The library while something is broken on purpose: each test loads it, breaks one thing, and
//! accounts for every packet by its id and by the number that was sent in it (`accounts`).
//!
//! They run against the kernel as the `live` ones do, from which they have their harness.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod accounts;
mod capability;
mod children;
mod churn;
mod clocks;
mod flushes;
#[path = "../live/harness.rs"]
mod harness;
mod held;
mod interference;
#[path = "../live/kernel.rs"]
mod kernel;
mod load;
mod panics;
mod pressure;
mod processes;
mod sends;
mod signals;
mod strangers;
#[path = "../live/support.rs"]
mod support;

use std::process::ExitCode;

use accounts::faults;
use harness::Test;

fn main() -> ExitCode {
    if let Some(played) = children::play() {
        return played;
    }
    let before = accounts::descriptors();
    let tests = [
        &pressure::TESTS[..],
        &churn::TESTS[..],
        &held::TESTS[..],
        &load::TESTS[..],
        &sends::TESTS[..],
        &signals::TESTS[..],
        &panics::TESTS[..],
        &processes::TESTS[..],
        &flushes::TESTS[..],
        &interference::TESTS[..],
        &strangers::TESTS[..],
        &capability::TESTS[..],
        &clocks::TESTS[..],
    ];
    let result = harness::main(&tests.concat());
    // A test that failed may have left a thread at work.
    if result == ExitCode::SUCCESS && !accounts::process_is_clean(&before) {
        return ExitCode::FAILURE;
    }
    result
}
