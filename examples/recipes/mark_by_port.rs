use etherparse::{SlicedPacket, TransportSlice};
use netfilterqueue::{Decided, Error, Packet, Queue};

/// Which port gets which mark.
const MARKS: [(u16, u32); 2] = [(22, 0x1), (443, 0x2)];

pub fn mark_by_port(number: u16) -> Result<(), Error> {
    Queue::builder(number).bind()?.run(mark)
}

/// Marks packets to known ports; all others keep the mark that they have.
pub fn mark(mut packet: Packet<'_>) -> Decided<'_> {
    let port = destination_port(packet.payload());
    if let Some((_, mark)) = MARKS.iter().find(|(known, _)| Some(*known) == port) {
        packet.set_mark(*mark);
    }
    packet.accept()
}

fn destination_port(packet: &[u8]) -> Option<u16> {
    match SlicedPacket::from_ip(packet).ok()?.transport? {
        TransportSlice::Tcp(tcp) => Some(tcp.destination_port()),
        TransportSlice::Udp(udp) => Some(udp.destination_port()),
        _ => None,
    }
}
