use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::{Decided, Error, Packet, Queue, RetainedPacket, Verdict};

/// How long a packet may wait for its verdict.
pub const PATIENCE: Duration = Duration::from_millis(200);

pub fn deadline(number: u16) -> Result<(), Error> {
    let mut queue = Queue::builder(number).on_undecided(Verdict::Accept).bind()?;
    let (work, packets) = mpsc::channel();
    thread::spawn(move || decide_slowly(packets));
    queue.run(|packet| hand_over(packet, &work))
}

/// Has another thread judge. If that takes too long, the packet gets the queue's default verdict.
pub fn hand_over<'p>(packet: Packet<'p>, work: &Sender<RetainedPacket>) -> Decided<'p> {
    let (mut retained, decided) = packet.retain();
    retained.set_deadline(Some(Instant::now() + PATIENCE));
    let _ = work.send(retained);
    decided
}

/// Drops all packets, and takes too long for some.
pub fn decide_slowly(packets: Receiver<RetainedPacket>) {
    for packet in packets {
        if packet.payload().ends_with(b"hard to tell") {
            thread::sleep(3 * PATIENCE);
        }
        match packet.verdict(Verdict::Drop) {
            Ok(()) => {}
            // It has been accepted meanwhile.
            Err(not_sent) if matches!(not_sent.error, Error::Expired) => {}
            Err(not_sent) => eprintln!("{not_sent}"),
        }
    }
}
