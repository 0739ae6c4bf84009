//! Runs every program on real packets, each test in a network namespace of its own.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod dns_filter;
#[path = "../../../tests/live/harness.rs"]
mod harness;
#[path = "../../../tests/live/kernel.rs"]
mod kernel;
mod program;
#[path = "../../../tests/live/support.rs"]
mod support;
mod tls_sni;

use std::process::ExitCode;

use harness::{Test, tests};

fn main() -> ExitCode {
    let tests: [&[Test]; _] = [&dns_filter::TESTS, &tls_sni::TESTS];
    harness::main(&tests.concat())
}
