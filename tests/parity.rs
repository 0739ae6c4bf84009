//! What the tests of other libraries expect of theirs, expected of this one: a module for each of
//! them. And what the documentation says: recipes and guide.
//!
//! They run against the kernel as the `live` ones do, from which they have their harness.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "live/craft.rs"]
mod craft;
#[path = "parity/fnfqueue.rs"]
mod fnfqueue;
#[path = "parity/go_nfqueue.rs"]
mod go_nfqueue;
#[path = "parity/guide.rs"]
mod guide;
#[path = "live/harness.rs"]
mod harness;
#[path = "live/kernel.rs"]
mod kernel;
#[path = "parity/nobody.rs"]
mod nobody;
#[path = "parity/nobody_features.rs"]
mod nobody_features;
#[path = "parity/python_netfilterqueue.rs"]
mod python_netfilterqueue;
#[path = "parity/python_process.rs"]
mod python_process;
#[path = "parity/recipes.rs"]
mod recipes;
#[path = "live/support.rs"]
mod support;

use std::process::ExitCode;

use harness::{Test, tests};

fn main() -> ExitCode {
    python_process::block_signal();
    let tests = [
        &python_netfilterqueue::TESTS[..],
        &python_process::TESTS[..],
        &go_nfqueue::TESTS[..],
        &fnfqueue::TESTS[..],
        &nobody::TESTS[..],
        &nobody_features::TESTS[..],
        &recipes::TESTS[..],
        &guide::TESTS[..],
    ];
    harness::main(&tests.concat())
}
