//! Runs every program on real packets, each test in a network namespace of its own.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::redundant_closure_for_method_calls
)]

#[path = "../../../tests/live/harness.rs"]
mod harness;

mod chaos;
mod hostile;
mod latency;
mod monitor;
mod pcapng;
mod program;
mod ratelimit;
mod session;
mod terminal;
mod traffic;

use std::process::ExitCode;

use harness::Test;

fn main() -> ExitCode {
    let tests: [&[Test]; 7] = [
        &chaos::TESTS,
        &hostile::TESTS,
        &latency::TESTS,
        &monitor::TESTS,
        &pcapng::TESTS,
        &ratelimit::TESTS,
        &session::TESTS,
    ];
    harness::main(&tests.concat())
}
