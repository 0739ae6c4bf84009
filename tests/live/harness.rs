//! Runs tests against the kernel, each in a network namespace of its own, for every test binary
//! that includes this file.
//!
//! They need root, or user namespaces that ordinary users may make. Where neither is to be had,
//! they say why and count as ignored; with `NETFILTERQUEUE_REQUIRE_LIVE=1` in the environment that
//! is a failure.
//!
//! The main function is our own because a user namespace can only be entered while the process has
//! one thread, which cargo's test harness does not offer.

use std::any::Any;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use netfilterqueue::Queue;
use netfilterqueue::rules::{Family, FlowMarks, Hook, Protocol, Rule, Rules};
use netfilterqueue_netns::{Error, Namespace, enter_user_namespace, stay_if_resident};

/// A test that hangs is ended as failed after this long, or after `NETFILTERQUEUE_TIME_LIMIT`
/// seconds: emulated machines take theirs.
pub const TIME_LIMIT: Duration = Duration::from_secs(60);

const TOLD_LIMIT: &str = "NETFILTERQUEUE_TIME_LIMIT";

/// Whether the time limit was told, as it is where everything may be slow.
#[allow(dead_code, reason = "only tests/faults counts on speed")]
pub fn may_be_slow() -> bool {
    std::env::var_os(TOLD_LIMIT).is_some()
}

/// The time limit of a test in this run.
pub fn time_limit() -> Duration {
    let told = std::env::var(TOLD_LIMIT);
    told.map_or(TIME_LIMIT, |seconds| Duration::from_secs(seconds.parse().expect("seconds")))
}

/// A named test. It runs in a thread inside a fresh namespace with loopback up.
pub type Test = (&'static str, fn(&Namespace));

/// Lists functions with their names: `tests![accept, drop]`.
#[allow(unused_macros, reason = "tests/faults has its own")]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        [$((concat!(module_path!(), "::", stringify!($name)), $name as fn(&Namespace))),*]
    };
}
#[allow(unused_imports, reason = "tests/faults has its own")]
pub(crate) use tests;

/// The main function of a test binary, to be called while the process has one thread. Takes the
/// options of `cargo test`.
pub fn main(tests: &[Test]) -> ExitCode {
    stay_if_resident();
    let arguments = Arguments::from_args();
    let obstacle = enter_user_namespace().and_then(|()| Namespace::new().map(drop)).err();
    match &obstacle {
        Some(obstacle) if is_failure(obstacle) => return ExitCode::FAILURE,
        Some(_) => {}
        None => load_modules(),
    }
    let trials = tests.iter().map(|&(name, test)| {
        // Without the name of the binary, which cargo has printed.
        let name = name.split_once("::").map_or(name, |(_, name)| name);
        Trial::test(name, move || run(test)).with_ignored_flag(obstacle.is_some())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Says why the tests cannot run, and whether that may be so.
fn is_failure(obstacle: &Error) -> bool {
    eprintln!("live tests cannot run: {obstacle}");
    let is_required = std::env::var_os("NETFILTERQUEUE_REQUIRE_LIVE").is_some_and(|v| v == "1");
    if is_required {
        eprintln!("NETFILTERQUEUE_REQUIRE_LIVE is set, so that is a failure");
    }
    is_required
}

/// Lets the kernel load its modules before tests do so in parallel: busybox's `modprobe` does not
/// wait for a module that is just being loaded, and whoever is second is told that there is none.
fn load_modules() {
    let namespace = Namespace::new().expect("a namespace");
    // What does not work here is for the tests to report.
    let _ = namespace.veth("left", &namespace, "right");
    let _ = namespace.bridge("bridge");
    let _ = namespace.vlan("left", "tagged", 1);
    let _ = namespace.label_connections();
    let _ = namespace.translate_sources([127, 0, 0, 2].into());
    namespace.run(|| {
        let _ = Queue::builder(0).conntrack(true).bind();
        let rule = Rule::queue(0).mark_masked(0, 1).protocol(Protocol::UDP);
        let rules = Rules::new(Hook::INPUT).rule(rule);
        let _ = rules.clone().install();
        let rules = rules.flow_bypass(FlowMarks::default());
        let _ = rules.clone().install();
        let _ = rules.family(Family::BRIDGE).install();
    });
}

/// Runs a test in its namespace, within its time.
fn run(test: fn(&Namespace)) -> Result<(), Failed> {
    let (done, result) = mpsc::channel();
    thread::spawn(move || {
        let namespace = Namespace::new().expect("a namespace of its own");
        let _ = done.send(catch_unwind(|| namespace.run(|| test(&namespace))));
    });
    let limit = time_limit();
    match result.recv_timeout(limit) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(panic)) => Err(Failed::from(text(&*panic))),
        Err(_) => Err(Failed::from(format!("took longer than {limit:?}"))),
    }
}

/// What a panic says.
fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panicked")
}
