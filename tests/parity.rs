//! What the tests of other libraries expect of theirs, expected of this one: a module for each of them.
//!
//! They run against the kernel as the `live` ones do, from which they have their harness.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "live/craft.rs"]
mod craft;
#[path = "live/harness.rs"]
mod harness;
#[path = "parity/python_netfilterqueue.rs"]
mod python_netfilterqueue;
#[path = "live/support.rs"]
mod support;

use std::process::ExitCode;

use harness::{Test, tests};

fn main() -> ExitCode {
    let tests = [&python_netfilterqueue::TESTS[..]];
    harness::main(&tests.concat())
}
