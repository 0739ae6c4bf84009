//! Runs every program on real packets, each test in a network namespace of its own.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "../../../tests/live/harness.rs"]
mod harness;

mod chaos;
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
    let tests: [&[Test]; 6] = [
        &chaos::TESTS,
        &latency::TESTS,
        &monitor::TESTS,
        &pcapng::TESTS,
        &ratelimit::TESTS,
        &session::TESTS,
    ];
    harness::main(&tests.concat())
}
