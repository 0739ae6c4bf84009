//! Runs every program on real packets, each test in a network namespace of its own.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_macros,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::redundant_closure_for_method_calls
)]

#[path = "../../../tests/live/harness.rs"]
mod harness;
#[path = "../../../tests/live/kernel.rs"]
mod kernel;
#[path = "../../../tests/live/support.rs"]
mod support;

mod bridge_vlan;
mod chaos;
mod dns_filter;
mod hostile;
mod latency;
mod monitor;
mod namespace;
mod pcapng;
mod portknock;
mod program;
mod ratelimit;
mod session;
mod terminal;
mod tls_sni;
mod tokio_proxy;
mod traffic;

use std::process::ExitCode;

use harness::{Test, tests};

fn main() -> ExitCode {
    let tests: &[&[Test]] = &[
        &bridge_vlan::TESTS,
        &chaos::TESTS,
        &dns_filter::TESTS,
        &hostile::TESTS,
        &latency::TESTS,
        &monitor::TESTS,
        &namespace::TESTS,
        &pcapng::TESTS,
        &portknock::TESTS,
        &ratelimit::TESTS,
        &session::TESTS,
        &tls_sni::TESTS,
        &tokio_proxy::TESTS,
    ];
    harness::main(&tests.concat())
}
