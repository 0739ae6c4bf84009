use etherparse::{SlicedPacket, TransportSlice};
use netfilterqueue::{Decided, Error, Packet, Queue, Verdict};

const BLOCKED: u16 = 80;

pub fn block_port(number: u16) -> Result<(), Error> {
    Queue::builder(number).bind()?.run(block)
}

/// Drops TCP to the port and accepts everything else.
pub fn block(packet: Packet<'_>) -> Decided<'_> {
    if is_to_blocked_port(packet.payload()) {
        packet.verdict(Verdict::Drop)
    } else {
        packet.accept()
    }
}

fn is_to_blocked_port(packet: &[u8]) -> bool {
    let transport = SlicedPacket::from_ip(packet).ok().and_then(|packet| packet.transport);
    matches!(transport, Some(TransportSlice::Tcp(tcp)) if tcp.destination_port() == BLOCKED)
}
