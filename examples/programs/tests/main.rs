//! Runs every program on real packets, each test in a network namespace of its own.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "../../../tests/live/harness.rs"]
mod harness;

mod chaos;
mod latency;
mod pcapng;
mod program;
mod ratelimit;
mod traffic;

use std::process::ExitCode;

use harness::Test;

fn main() -> ExitCode {
    let tests: [&[Test]; 4] = [&chaos::TESTS, &latency::TESTS, &pcapng::TESTS, &ratelimit::TESTS];
    harness::main(&tests.concat())
}
