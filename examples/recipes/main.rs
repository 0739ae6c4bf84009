//! The recipes of the crate's documentation (`netfilterqueue::docs::recipes`), to be run by name:
//! `cargo run --example recipes -- mark_by_port 1`. As root; those that bring no rule along need
//! one that sends packets to the queue:
//!
//! ```text
//! iptables -I INPUT -j NFQUEUE --queue-num 1 --queue-bypass
//! ```

#![allow(unreachable_pub, dead_code, reason = "the documentation shows these files as they are")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::needless_pass_by_value,
    reason = "recipes are plain"
)]
#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "`Packet::accept` is not generic over the lifetime, which `run` asks for"
)]

mod analyse_in_a_thread;
mod balance;
mod block_port;
mod copy_modes;
mod deadline;
mod drain_at_shutdown;
mod flow_bypass;
mod hardware_addresses;
mod latency;
mod mark_by_port;
mod monitor;
mod other_namespace;
mod replace_in_udp;
mod rewrite_ttl;
mod select_loop;
mod two_queues;

use std::env;
use std::error::Error;
use std::process::ExitCode;

use netfilterqueue::{Namespace, Queue};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let recipe = arguments.first().and_then(|name| RECIPES.iter().find(|(known, _)| known == name));
    let number = arguments.get(1).and_then(|number| number.parse().ok());
    let (Some((name, run)), Some(number)) = (recipe, number) else {
        let names = RECIPES.map(|(name, _)| name).join("\n    ");
        eprintln!("usage: recipes NAME QUEUE, where NAME is one of\n    {names}");
        return ExitCode::from(2);
    };
    eprintln!(
        "recipes: {name} with queue {number}; Ctrl-C ends. Its file tells if it needs a rule"
    );
    match run(number) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("recipes: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a recipe with a queue number.
type Run = fn(u16) -> Result<(), Box<dyn Error>>;

/// A recipe with several queues takes the numbers from the given one on.
const RECIPES: [(&str, Run); 16] = [
    ("analyse_in_a_thread", |number| Ok(analyse_in_a_thread::analyse_in_a_thread(number)?)),
    ("balance", |number| Ok(balance::balance(number, number.saturating_add(3))?)),
    ("block_port", |number| Ok(block_port::block_port(number)?)),
    ("copy_modes", |number| Ok(copy_modes::judge_by_headers(number)?)),
    ("deadline", |number| Ok(deadline::deadline(number)?)),
    ("drain_at_shutdown", drain_at_shutdown::drain_at_shutdown),
    ("flow_bypass", |number| Ok(flow_bypass::flow_bypass(number)?)),
    ("hardware_addresses", |number| Ok(hardware_addresses::hardware_addresses(number)?)),
    ("latency", latency::latency),
    ("mark_by_port", |number| Ok(mark_by_port::mark_by_port(number)?)),
    ("monitor", |number| Ok(monitor::monitor(number)?)),
    ("other_namespace", |number| {
        let (mut queue, _rules) = other_namespace::queue_in(&Namespace::of_process(1)?, number)?;
        Ok(queue.run(|packet| packet.accept())?)
    }),
    ("replace_in_udp", |number| Ok(replace_in_udp::replace_in_udp(number)?)),
    ("rewrite_ttl", |number| Ok(rewrite_ttl::rewrite_ttl(number)?)),
    ("select_loop", |number| {
        let mut queues = Queue::builder([number, number.saturating_add(1)]).bind_each()?;
        select_loop::select_loop(&mut queues, |packet| packet.accept())
    }),
    ("two_queues", |_| Ok(two_queues::two_queues()?)),
];
