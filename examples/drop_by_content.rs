//! Drops packets that contain a text, accepts the others, and prints what it drops.
//!
//! Have a rule send packets to queue 1, with one of
//!
//! ```text
//! iptables -I INPUT -p udp --dport 4000 -j NFQUEUE --queue-num 1 --queue-bypass
//! nft 'add table inet demo; add chain inet demo in { type filter hook input priority 0; }; add rule inet demo in udp dport 4000 queue flags bypass to 1'
//! ```
//!
//! and take it away afterwards with `iptables -D INPUT ...` or `nft delete table inet demo`. To try
//! it, as root:
//!
//! ```text
//! cargo run --release --example drop_by_content -- 1 secret
//! nc -u -l -p 4000                        # in a second terminal
//! echo 'a secret' | nc -u -w 1 127.0.0.1 4000   # in a third: does not arrive
//! echo 'a letter' | nc -u -w 1 127.0.0.1 4000   # arrives
//! ```
//!
//! Each packet is looked at on its own, headers included, up to its 65,531st byte: a text that TCP
//! has split between two packets is not found.

use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use netfilterqueue::{Error, Queue, Verdict};

const USAGE: &str = "usage: drop_by_content QUEUE TEXT\n\
    QUEUE is the number of the queue, 0 to 65535; TEXT is what packets to drop contain";

fn main() -> ExitCode {
    let (number, text) = match arguments(env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("drop_by_content: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match drop_by_content(number, &text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("drop_by_content: {error}");
            ExitCode::FAILURE
        }
    }
}

fn drop_by_content(number: u16, text: &[u8]) -> Result<(), Error> {
    let mut queue = Queue::builder(number).bind()?;
    queue.run(|packet| {
        if packet.payload().windows(text.len()).any(|window| window == text) {
            println!("{packet} → drop");
            packet.verdict(Verdict::Drop)
        } else {
            packet.accept()
        }
    })
}

/// The queue's number and the text, which may be any bytes but none.
fn arguments(mut given: impl Iterator<Item = OsString>) -> Result<(u16, Vec<u8>), String> {
    let (Some(number), Some(text), None) = (given.next(), given.next(), given.next()) else {
        return Err("two arguments are needed".to_owned());
    };
    if text.is_empty() {
        return Err("the text is empty".to_owned());
    }
    let number = number.to_string_lossy();
    match number.parse() {
        Ok(number) => Ok((number, text.into_vec())),
        Err(error) => Err(format!("{number:?} is no queue number: {error}")),
    }
}
