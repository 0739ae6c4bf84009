use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use netfilterqueue::{Decided, Error, Packet, Queue, RetainedPacket, Verdict};

pub fn analyse_in_a_thread(number: u16) -> Result<(), Error> {
    let mut queue = Queue::builder(number).max_len(8192).bind()?;
    let (work, packets) = mpsc::channel();
    thread::spawn(move || analyse(packets));
    queue.run(|packet| hand_over(packet, &work))
}

/// Leaves large packets to the thread and accepts the others. Should the thread have ended, the
/// packet comes back with the error, is dropped here, and so gets the queue's default verdict.
pub fn hand_over<'p>(packet: Packet<'p>, work: &Sender<RetainedPacket>) -> Decided<'p> {
    if packet.payload().len() < 100 {
        return packet.accept();
    }
    let (retained, decided) = packet.retain();
    let _ = work.send(retained);
    decided
}

/// Judges what takes a while to judge. Each verdict leaves at once.
pub fn analyse(packets: Receiver<RetainedPacket>) {
    for packet in packets {
        let is_bad = packet.payload().windows(4).any(|bytes| bytes == b"evil");
        let verdict = if is_bad { Verdict::Drop } else { Verdict::Accept };
        if let Err(not_sent) = packet.verdict(verdict) {
            eprintln!("{not_sent}");
        }
    }
}
