//! What the library promises, tested against the running kernel; `harness` tells what that needs.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod attributes;
mod bridge_rules;
mod bridged;
mod bridged_edits;
mod captures;
mod closing;
mod completed;
mod conntrack;
mod conntrack_changes;
mod craft;
mod crafted;
mod deadlines;
mod draining;
mod edits;
mod elsewhere;
mod errors;
mod failures;
mod fanout;
mod flow;
mod flow_connections;
mod flow_rules;
mod flows;
mod harness;
mod held;
mod kernel;
mod lifecycle;
mod many_deadlines;
mod netns;
mod offloaded;
mod pcap;
mod performance;
mod pressure;
mod rules;
mod settings;
mod several;

mod support;
mod undecided;
mod uneditable;
mod verdicts;
mod waiting;

use std::process::ExitCode;

use harness::{Test, tests};

fn main() -> ExitCode {
    if std::env::var_os(rules::HOLD_RULES).is_some() {
        return rules::hold_rules();
    }
    let tests = [
        &verdicts::TESTS[..],
        &held::TESTS[..],
        &undecided::TESTS[..],
        &edits::TESTS[..],
        &uneditable::TESTS[..],
        &completed::TESTS[..],
        &crafted::TESTS[..],
        &attributes::TESTS[..],
        &bridged::TESTS[..],
        &bridged_edits::TESTS[..],
        &conntrack::TESTS[..],
        &conntrack_changes::TESTS[..],
        &captures::TESTS[..],
        &lifecycle::TESTS[..],
        &waiting::TESTS[..],
        &many_deadlines::TESTS[..],
        &closing::TESTS[..],
        &pressure::TESTS[..],
        &errors::TESTS[..],
        &failures::TESTS[..],
        &performance::TESTS[..],
        &rules::TESTS[..],
        &bridge_rules::TESTS[..],
        &flow::TESTS[..],
        &flow_connections::TESTS[..],
        &flow_rules::TESTS[..],
        &netns::TESTS[..],
        &offloaded::TESTS[..],
        &several::TESTS[..],
        &settings::TESTS[..],
        &fanout::TESTS[..],
        &deadlines::TESTS[..],
        &elsewhere::TESTS[..],
        &draining::TESTS[..],
    ];
    harness::main(&tests.concat())
}
