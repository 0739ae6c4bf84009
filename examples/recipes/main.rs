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
    let number = arguments.get(1).and_then(|number| number.parse().ok());
    let (Some(name), Some(number)) = (arguments.first(), number) else {
        eprintln!("usage: recipes NAME QUEUE, where NAME is that of a file in examples/recipes");
        return ExitCode::from(2);
    };
    match run(name, number) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("recipes: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A recipe with several queues takes the numbers from `number` on.
fn run(name: &str, number: u16) -> Result<(), Box<dyn Error>> {
    match name {
        "analyse_in_a_thread" => analyse_in_a_thread::analyse_in_a_thread(number)?,
        "balance" => balance::balance(number, number.saturating_add(3))?,
        "block_port" => block_port::block_port(number)?,
        "copy_modes" => copy_modes::judge_by_headers(number)?,
        "deadline" => deadline::deadline(number)?,
        "drain_at_shutdown" => drain_at_shutdown::drain_at_shutdown(number)?,
        "flow_bypass" => flow_bypass::flow_bypass(number)?,
        "hardware_addresses" => hardware_addresses::hardware_addresses(number)?,
        "latency" => latency::latency(number)?,
        "mark_by_port" => mark_by_port::mark_by_port(number)?,
        "monitor" => monitor::monitor(number)?,
        "other_namespace" => {
            let (mut queue, _rules) =
                other_namespace::queue_in(&Namespace::of_process(1)?, number)?;
            queue.run(|packet| packet.accept())?;
        }
        "replace_in_udp" => replace_in_udp::replace_in_udp(number)?,
        "rewrite_ttl" => rewrite_ttl::rewrite_ttl(number)?,
        "select_loop" => {
            let mut queues = Queue::builder([number, number.saturating_add(1)]).bind_each()?;
            select_loop::select_loop(&mut queues, |packet| packet.accept())?;
        }
        "two_queues" => two_queues::two_queues()?,
        _ => return Err(format!("there is no recipe {name:?}").into()),
    }
    Ok(())
}
