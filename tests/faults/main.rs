//! The library while something is broken on purpose: each test loads it, breaks one thing, and
//! accounts for every packet by its id and by the number that was sent in it (`accounts`).
//!
//! They run against the kernel as the `live` ones do, from which they have their harness.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod accounts;
mod churn;
#[path = "../live/harness.rs"]
mod harness;
mod held;
mod load;
mod pressure;
mod sends;
mod signals;
#[path = "../live/support.rs"]
mod support;

use std::process::ExitCode;

use accounts::faults;
use harness::Test;

fn main() -> ExitCode {
    let before = accounts::descriptors();
    let tests = [
        &pressure::TESTS[..],
        &churn::TESTS[..],
        &held::TESTS[..],
        &load::TESTS[..],
        &sends::TESTS[..],
        &signals::TESTS[..],
    ];
    let result = harness::main(&tests.concat());
    // A test that failed may have left a thread at work.
    if result == ExitCode::SUCCESS && !accounts::process_is_clean(&before) {
        return ExitCode::FAILURE;
    }
    result
}
