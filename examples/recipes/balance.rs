use netfilterqueue::rules::{Hook, Rule, Rules};
use netfilterqueue::{Decided, Error, Packet, Queue, Verdict};

/// Spreads packets over queues with a thread each: as `iptables -j NFQUEUE --queue-balance 0:3`
/// does, and four programs behind it.
pub fn balance(first: u16, last: u16) -> Result<(), Error> {
    let mut queues = Queue::builder(first..=last).bind_each()?;
    let _rules = Rules::new(Hook::FORWARD).rule(Rule::queues(first..=last)).install()?;
    Queue::run_all(&mut queues, judge)
}

/// Called by several threads at once.
pub fn judge(packet: Packet<'_>) -> Decided<'_> {
    let drop = packet.payload().ends_with(b"unwanted");
    packet.verdict(if drop { Verdict::Drop } else { Verdict::Accept })
}
