//! A pcapng file: interfaces, and packets with what was decided about them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netfilterqueue::{Hook, Packet, Timestamp, Verdict};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, PcapError};

/// Nanoseconds, as powers of ten: that is what the crate writes of a time.
const NANOSECONDS: u8 = 9;

/// A file to which packets are written.
pub(crate) struct Record<W: Write> {
    writer: PcapNgWriter<W>,
    /// By the index of the device; packets without one have an interface of their own.
    interfaces: HashMap<Option<u32>, u32>,
    snaplen: u32,
}

impl<W: Write> Record<W> {
    /// Begins a file. `snaplen` is how much of a packet is copied at most.
    pub(crate) fn new(file: W, snaplen: u32) -> io::Result<Self> {
        let program = concat!("netfilterqueue pcapng ", env!("CARGO_PKG_VERSION"));
        let header = SectionHeaderBlock {
            options: vec![SectionHeaderOption::UserApplication(program.into())],
            ..SectionHeaderBlock::default()
        };
        let writer = PcapNgWriter::with_section_header(file, header).map_err(io_error)?;
        Ok(Self { writer, interfaces: HashMap::new(), snaplen })
    }

    /// Writes a packet with what is decided about it. Its time is the kernel's stamp, or now.
    pub(crate) fn write(&mut self, packet: &Packet<'_>, decision: Decision) -> io::Result<()> {
        let interface = self.interface(packet)?;
        let stamp = packet.timestamp().and_then(Timestamp::to_system_time);
        let time = stamp.unwrap_or_else(SystemTime::now);
        let comment = comment(packet, decision);
        let payload = packet.payload();
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let block = EnhancedPacketBlock {
            interface_id: interface,
            timestamp: time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO),
            original_len: packet.original_len().unwrap_or(len),
            data: Cow::Borrowed(payload),
            options: vec![
                EnhancedPacketOption::Comment(comment.into()),
                EnhancedPacketOption::Flags(direction(packet.hook())),
            ],
        };
        self.writer.write_pcapng_block(block).map(drop).map_err(io_error)
    }

    /// Makes others see what was written.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.writer.get_mut().flush()
    }

    /// The number of the interface that a packet is told to be of: where it came in, or, where it
    /// came in nowhere, where it goes out.
    fn interface(&mut self, packet: &Packet<'_>) -> io::Result<u32> {
        let index = packet.indev().or(packet.outdev());
        if let Some(number) = self.interfaces.get(&index) {
            return Ok(*number);
        }
        let name = match packet.indev() {
            Some(_) => packet.indev_name(),
            None => packet.outdev_name(),
        };
        let name = match (name, index) {
            (Some(name), _) => name.to_string(),
            (None, Some(index)) => format!("interface {index}"),
            (None, None) => "no interface".to_owned(),
        };
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::RAW,
            snaplen: self.snaplen,
            options: vec![
                InterfaceDescriptionOption::IfName(name.into()),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        self.writer.write_pcapng_block(block).map_err(io_error)?;
        let number = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
        self.interfaces.insert(index, number);
        Ok(number)
    }
}

impl<W: Write> fmt::Debug for Record<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("interfaces", &self.interfaces).finish_non_exhaustive()
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) verdict: Verdict,
    /// The mark that it leaves with, unless it keeps its own.
    pub(crate) mark: Option<u32>,
}

/// As `accept, mark 0x0 → 0x7; packet 3 of queue 1, output → lo, uid 1000`.
fn comment(packet: &Packet<'_>, decision: Decision) -> String {
    let verdict = match decision.verdict {
        Verdict::Drop => "drop",
        _ => "accept",
    };
    let mut comment = verdict.to_owned();
    match (packet.mark(), decision.mark) {
        (None, None) => {}
        (Some(mark), None) => comment += &format!(", mark {mark:#x}"),
        (before, Some(mark)) => {
            comment += &format!(", mark {:#x} → {mark:#x}", before.unwrap_or(0));
        }
    }
    comment += &format!("; packet {} of queue {}, ", packet.id(), packet.queue());
    if let Some(name) = packet.indev_name() {
        comment += &format!("{name} → ");
    }
    comment += &packet.hook().to_string();
    if let Some(name) = packet.outdev_name() {
        comment += &format!(" → {name}");
    }
    if let Some(uid) = packet.uid() {
        comment += &format!(", uid {uid}");
    }
    comment
}

/// The flags of a packet: 1 inbound, 2 outbound, 0 unknown.
const fn direction(hook: Hook) -> u32 {
    match hook {
        Hook::PREROUTING | Hook::INPUT => 1,
        Hook::OUTPUT | Hook::POSTROUTING => 2,
        _ => 0,
    }
}

fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
