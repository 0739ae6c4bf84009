//! Entrances for the fuzz targets in `fuzz/`, to what no program can reach. Only under
//! `--cfg fuzzing`, where nothing of it is for others.

use std::fmt::{self, Write};

use netfilterqueue_protocol::packet::PacketMessage;

use crate::display;

/// Any sequence of what can happen to packets and their verdicts.
pub fn verdict_policy(bytes: &[u8]) {
    crate::batch::model::play(bytes);
}

/// Any sequence of configuration requests, answers and packets.
pub fn ack(bytes: &[u8]) {
    crate::control::model::play(bytes);
}

/// The readable line of a packet, if these bytes are one.
///
/// # Panics
///
/// If it cannot be written.
pub fn print(datagram: &[u8]) {
    /// Nothing is kept.
    struct Sink;

    impl Write for Sink {
        fn write_str(&mut self, _: &str) -> fmt::Result {
            Ok(())
        }
    }

    struct Line<'a>(PacketMessage<'a>);

    impl fmt::Display for Line<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let (payload, mark) = (self.0.payload(), self.0.mark());
            display::line(f, &self.0, payload, mark, &|index| {
                index.is_power_of_two().then(|| "eth0".into())
            })
        }
    }

    if let Ok(packet) = PacketMessage::parse(datagram) {
        write!(Sink, "{}", Line(packet)).expect("no text fails");
    }
}
