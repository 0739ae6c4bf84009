//! Packets written down for an independent dissector: `.ci/dissect` judges what tests of both
//! binaries leave here.

use std::env;
use std::fs::{File, create_dir_all};
use std::io::Write;
use std::path::Path;

/// The folder for the files; without it, none are written.
const FOLDER: &str = "NETFILTERQUEUE_PCAP";

/// Packets that begin with an IPv4 or IPv6 header, as the tcpdump group numbers it.
const LINKTYPE_RAW: u32 = 101;

/// Longer than any IP packet.
const SNAPLEN: u32 = 262_144;

/// A capture file. Every packet in it must have one transport header, whole and with a checksum: no
/// fragments, and no UDP that says it has none.
pub struct Pcap {
    file: Option<File>,
}

impl Pcap {
    /// Begins the file `name.pcap`; panics if there is one, for a test's packets must not replace
    /// another's.
    pub fn create(name: &str) -> Self {
        let folder = env::var_os(FOLDER).filter(|folder| !folder.is_empty());
        let file = folder.map(|folder| {
            create_dir_all(&folder).expect("a folder for packets");
            let path = Path::new(&folder).join(name).with_extension("pcap");
            File::create_new(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        });
        let mut pcap = Self { file };
        // The magic number of microseconds, version 2.4, time zone and accuracy of no meaning.
        pcap.write(&[0xa1b2_c3d4, 4 << 16 | 2, 0, 0, SNAPLEN, LINKTYPE_RAW], &[]);
        pcap
    }

    /// Adds a packet from its IP header on, at the time 0.
    pub fn packet(&mut self, packet: &[u8]) {
        let length = u32::try_from(packet.len()).expect("an IP packet");
        self.write(&[0, 0, length, length], packet);
    }

    fn write(&mut self, header: &[u32], bytes: &[u8]) {
        if let Some(file) = &mut self.file {
            let header = header.iter().flat_map(|word| word.to_le_bytes());
            let record = header.chain(bytes.iter().copied()).collect::<Vec<_>>();
            file.write_all(&record).expect("room for packets");
        }
    }
}
