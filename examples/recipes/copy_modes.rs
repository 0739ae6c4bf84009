use netfilterqueue::{CopyMode, Decided, Error, Packet, Queue, Verdict};

/// No byte of a packet is copied: for verdicts by mark, device or hardware address.
pub fn judge_by_attributes(number: u16) -> Result<(), Error> {
    let mut queue = Queue::builder(number).copy_mode(CopyMode::Meta).bind()?;
    queue.run(drop_marked)
}

pub fn drop_marked(packet: Packet<'_>) -> Decided<'_> {
    let drop = packet.mark() == Some(0xbad);
    packet.verdict(if drop { Verdict::Drop } else { Verdict::Accept })
}

/// The headers are enough: for verdicts by address, port or length.
pub fn judge_by_headers(number: u16) -> Result<(), Error> {
    let headers = CopyMode::Packet { range: 128 };
    Queue::builder(number).copy_mode(headers).bind()?.run(drop_long)
}

pub fn drop_long(packet: Packet<'_>) -> Decided<'_> {
    // Absent where the packet was copied whole.
    let length = packet.original_len().unwrap_or(packet.payload().len() as u32);
    packet.verdict(if length > 1_000 { Verdict::Drop } else { Verdict::Accept })
}
