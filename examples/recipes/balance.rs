use std::collections::HashMap;

use netfilterqueue::rules::{Hook, Rule, Rules};
use netfilterqueue::{Decided, Error, Family, Packet, Queue, Verdict};

/// Spreads packets over queues with a thread each: as `iptables -j NFQUEUE --queue-balance 0:3`
/// does, and four programs behind it.
pub fn balance(first: u16, last: u16) -> Result<(), Error> {
    let mut fanout = Queue::builder(first..=last).bind_fanout()?;
    let _rules = Rules::new(Hook::FORWARD).rule(Rule::queues(first..=last)).install()?;
    fanout.run(judge_of)
}

/// Called once in each thread: what is kept here needs no lock.
pub fn judge_of(number: u16) -> impl for<'p> FnMut(Packet<'p>) -> Decided<'p> {
    let mut dropped = HashMap::<Family, u64>::new();
    move |packet| {
        if !packet.payload().ends_with(b"unwanted") {
            return packet.accept();
        }
        let count = dropped.entry(packet.family()).or_default();
        *count += 1;
        println!("queue {number} has dropped {count} packets of {}", packet.family());
        packet.verdict(Verdict::Drop)
    }
}
