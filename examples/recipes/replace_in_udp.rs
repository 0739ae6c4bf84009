use etherparse::{SlicedPacket, TransportSlice};
use netfilterqueue::{Decided, Error, Packet, Queue};

pub fn replace_in_udp(number: u16) -> Result<(), Error> {
    Queue::builder(number).bind()?.run(|packet| replace(packet, "cat", "elephant"))
}

/// Replaces a text in the data of UDP packets by another one of any length.
pub fn replace<'p>(mut packet: Packet<'p>, find: &str, by: &str) -> Decided<'p> {
    if let Some(edited) = replaced(packet.payload(), find, by) {
        // Lengths and checksums follow with the verdict.
        if let Err(error) = packet.set_payload(&edited) {
            eprintln!("{packet}: {error}");
        }
    }
    packet.accept()
}

/// The packet with other data behind the same headers. `None` if it needs no change.
fn replaced(packet: &[u8], find: &str, by: &str) -> Option<Vec<u8>> {
    let Some(TransportSlice::Udp(udp)) = SlicedPacket::from_ip(packet).ok()?.transport else {
        return None;
    };
    let text = str::from_utf8(udp.payload()).ok().filter(|text| text.contains(find))?;
    let headers = packet.strip_suffix(udp.payload())?;
    Some([headers, text.replace(find, by).as_bytes()].concat())
}
