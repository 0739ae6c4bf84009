use netfilterqueue::{Decided, Error, Packet, Queue, Verdict};

const INCOMING: u16 = 1;
const OUTGOING: u16 = 2;

pub fn two_queues() -> Result<(), Error> {
    Queue::builder([INCOMING, OUTGOING]).bind()?.run(judge)
}

pub fn judge(packet: Packet<'_>) -> Decided<'_> {
    let unwanted: &[u8] = if packet.queue() == INCOMING { b"unwanted" } else { b"confidential" };
    let drop = packet.payload().ends_with(unwanted);
    packet.verdict(if drop { Verdict::Drop } else { Verdict::Accept })
}
