//! Tests against the running kernel, each in a network namespace of its own.
//!
//! They need root, or user namespaces that ordinary users may make. Where neither is to be had, they say
//! why and count as ignored; with `NETFILTERQUEUE_REQUIRE_LIVE=1` in the environment that is a
//! failure.
//!
//! The main function is our own because a user namespace can only be entered while the process has one
//! thread, which cargo's test harness does not offer.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod captures;
mod closing;
mod craft;
mod edits;
mod errors;
mod failures;
mod held;
mod lifecycle;
mod parity;
mod performance;
mod pressure;
mod rules;
mod support;
mod undecided;
mod uneditable;
mod verdicts;

use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use netfilterqueue::rules::{Hook, Rule, Rules};
use netfilterqueue_netns::{Namespace, enter_user_namespace};

/// A test that hangs is ended as failed after this long.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A named test. It runs in a thread inside a fresh namespace with loopback up.
type Test = (&'static str, fn(&Namespace));

/// Lists functions with their names: `tests![accept, drop]`.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        [$((concat!(module_path!(), "::", stringify!($name)), $name as fn(&Namespace))),*]
    };
}
pub(crate) use tests;

fn main() -> ExitCode {
    if std::env::var_os(rules::HOLD_RULES).is_some() {
        return rules::hold_rules();
    }
    let arguments = Arguments::from_args();
    let obstacle = enter_user_namespace().and_then(|()| Namespace::new().map(drop)).err();
    let is_required = std::env::var_os("NETFILTERQUEUE_REQUIRE_LIVE").is_some_and(|v| v == "1");
    if let Some(obstacle) = &obstacle {
        eprintln!("live tests cannot run: {obstacle}");
        if is_required {
            eprintln!("NETFILTERQUEUE_REQUIRE_LIVE is set, so that is a failure");
            return ExitCode::FAILURE;
        }
    }
    if obstacle.is_none() {
        load_modules();
    }
    let tests: Vec<Test> = [
        &verdicts::TESTS[..],
        &held::TESTS[..],
        &undecided::TESTS[..],
        &edits::TESTS[..],
        &uneditable::TESTS[..],
        &captures::TESTS[..],
        &lifecycle::TESTS[..],
        &closing::TESTS[..],
        &pressure::TESTS[..],
        &errors::TESTS[..],
        &failures::TESTS[..],
        &parity::TESTS[..],
        &performance::TESTS[..],
        &rules::TESTS[..],
    ]
    .concat();
    let trials = tests.into_iter().map(|(name, test)| {
        let name = name.trim_start_matches("live::");
        Trial::test(name, move || run(test)).with_ignored_flag(obstacle.is_some())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Lets the kernel load its modules before tests do so in parallel: busybox's `modprobe` does not wait for
/// a module that is just being loaded, and whoever is second is told that there is none.
fn load_modules() {
    let namespace = Namespace::new().expect("a namespace");
    let _ = namespace.veth("left", &namespace, "right");
    namespace.run(|| {
        // What does not work here is for the tests to report.
        let _ = netfilterqueue::Queue::builder(0).bind();
        let _ = Rules::new(Hook::INPUT).rule(Rule::queue(0).mark_masked(0, 1)).install();
    });
}

/// Runs a test in its namespace, within its time.
fn run(test: fn(&Namespace)) -> Result<(), Failed> {
    let (done, result) = mpsc::channel();
    thread::spawn(move || {
        let namespace = Namespace::new().expect("a namespace of its own");
        let outcome = std::panic::catch_unwind(|| namespace.run(|| test(&namespace)));
        let _ = done.send(outcome.map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned()
        }));
    });
    match result.recv_timeout(TIME_LIMIT) {
        Ok(outcome) => outcome.map_err(Failed::from),
        Err(_) => Err(Failed::from(format!("took longer than {TIME_LIMIT:?}"))),
    }
}
