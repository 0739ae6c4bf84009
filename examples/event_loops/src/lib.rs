//! What the programs of this package have in common, beside their event loops: two queues, what is
//! decided about their packets, and an end without loss.
//!
//! Each program takes two UDP ports and drops the datagrams to them that contain `forbidden`. It
//! brings its rules along, and ends at `SIGINT` and `SIGTERM`. As root, in two terminals:
//!
//! ```text
//! cargo run -p netfilterqueue-event-loops --bin epoll -- 7001 7002
//!
//! nc -u -l -p 7001 &
//! echo hello | nc -u -q 0 127.0.0.1 7001        # arrives
//! echo forbidden | nc -u -q 0 127.0.0.1 7001    # does not
//! ```

use std::env;
use std::error::Error;

use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Decided, Packet, Queue, Verdict};

/// The queues, and the rules that feed them: UDP datagrams to a port for each.
#[derive(Debug)]
pub struct Filter {
    /// Number 1 for the first port, number 2 for the second.
    pub queues: [Queue; 2],
    rules: InstalledRules,
}

impl Filter {
    /// Sets everything up for the ports that the program was called with.
    ///
    /// # Errors
    ///
    /// If the arguments are not two ports, or what the kernel says.
    pub fn from_arguments() -> Result<Self, Box<dyn Error>> {
        let arguments: Vec<String> = env::args().skip(1).collect();
        let [one, other] = &arguments[..] else { return Err("two UDP ports are needed".into()) };
        let ports: [u16; 2] = [one.parse()?, other.parse()?];
        // First the queues: packets for a queue that nobody has are dropped.
        let queues = [Queue::builder(1).bind()?, Queue::builder(2).bind()?];
        let rule =
            |queue: u16, port| Rule::queue(queue).protocol(Protocol::UDP).destination_port(port);
        let rules = Rules::new(Hook::INPUT).rule(rule(1, ports[0])).rule(rule(2, ports[1]));
        let rules = rules.install()?;
        println!("datagrams to ports {} and {} are looked at", ports[0], ports[1]);
        Ok(Self { queues, rules })
    }

    /// Takes it apart for an event loop that wants the queues for itself.
    pub fn into_parts(self) -> ([Queue; 2], InstalledRules) {
        (self.queues, self.rules)
    }

    /// Ends without losing a packet.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn finish(self) -> Result<(), Box<dyn Error>> {
        finish(self.queues, self.rules)
    }
}

/// Ends without losing a packet: no new ones come, those that wait are judged, and then the rules
/// go, whose removal makes the kernel drop what waits in any queue.
///
/// # Errors
///
/// What the kernel says.
pub fn finish(queues: [Queue; 2], mut rules: InstalledRules) -> Result<(), Box<dyn Error>> {
    rules.pause()?;
    for mut queue in queues {
        queue.drain(judge)?;
        println!(
            "queue {}: {} packets",
            queue.numbers().next().unwrap_or(0),
            queue.stats().answered
        );
        queue.close()?;
    }
    Ok(())
}

/// Drops what is forbidden.
#[expect(clippy::must_use_candidate, reason = "only a closure needs the proof")]
pub fn judge(packet: Packet<'_>) -> Decided<'_> {
    const FORBIDDEN: &[u8] = b"forbidden";
    if packet.payload().windows(FORBIDDEN.len()).any(|window| window == FORBIDDEN) {
        packet.verdict(Verdict::Drop)
    } else {
        packet.accept()
    }
}
