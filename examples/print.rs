//! Prints each packet of a queue and accepts it.
//!
//! Have a rule send packets to queue 1, with one of
//!
//! ```text
//! iptables -I INPUT -j NFQUEUE --queue-num 1 --queue-bypass
//! nft 'add table inet print; add chain inet print in { type filter hook input priority 0; }; add rule inet print in queue flags bypass to 1'
//! ```
//!
//! then run, as root, `cargo run --release --example print -- 1`. Take the rule away afterwards
//! with `iptables -D INPUT ...` or `nft delete table inet print`; while the program does not run,
//! `bypass` lets packets pass.

use std::env;
use std::error::Error;
use std::process::ExitCode;

use netfilterqueue::Queue;

fn main() -> ExitCode {
    match print() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("print: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print() -> Result<(), Box<dyn Error>> {
    let argument = env::args().nth(1).unwrap_or_else(|| "1".to_owned());
    let number: u16 = argument
        .parse()
        .map_err(|error| format!("{argument:?} is no queue number, 0 to 65535: {error}"))?;
    let mut queue = Queue::builder(number).bind()?;
    queue.run(|packet| {
        println!("{packet}");
        packet.accept()
    })?;
    Ok(())
}
