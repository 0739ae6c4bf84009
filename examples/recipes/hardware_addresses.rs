use std::collections::BTreeMap;

use netfilterqueue::{Error, Packet, Queue};

pub fn hardware_addresses(number: u16) -> Result<(), Error> {
    let mut seen = BTreeMap::new();
    Queue::builder(number).bind()?.run(|packet| {
        let who = sender(&packet);
        let packets = seen.entry(who.clone()).or_insert(0_u64);
        *packets += 1;
        if *packets == 1 {
            println!("first packet from {who}");
        }
        packet.accept()
    })
}

/// `02:42:ac:11:00:02 at eth0`, as far as it is known.
pub fn sender(packet: &Packet<'_>) -> String {
    let address = match packet.hwaddr() {
        Some(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"),
        None => "no address".to_owned(),
    };
    match packet.indev_name() {
        Some(interface) => format!("{address} at {interface}"),
        None => address,
    }
}
