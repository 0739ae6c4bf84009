use netfilterqueue::{Decided, EditError, Error, Packet, Queue};

const TTL: u8 = 64;

pub fn rewrite_ttl(number: u16) -> Result<(), Error> {
    Queue::builder(number).bind()?.run(rewrite)
}

/// Sets the time to live, or the hop limit. A packet that cannot be edited passes as it is.
pub fn rewrite(mut packet: Packet<'_>) -> Decided<'_> {
    if let Err(error) = set_ttl(&mut packet) {
        eprintln!("{packet}: {error}");
    }
    packet.accept()
}

fn set_ttl(packet: &mut Packet<'_>) -> Result<(), EditError> {
    let bytes = packet.payload_mut()?;
    let offset = if bytes[0] >> 4 == 4 { 8 } else { 7 };
    if let Some(ttl) = bytes.get_mut(offset) {
        *ttl = TTL;
    }
    Ok(())
}
