//! IP packets with UDP or TCP inside: their data, and correct lengths and checksums after an edit.

#![allow(dead_code, reason = "every test binary that includes this file uses a part of it")]

const UDP: u8 = 17;

/// Where the headers of a packet without extension headers or options of IPv6 end.
struct Layout {
    is_v6: bool,
    protocol: u8,
    transport: usize,
    data: usize,
}

impl Layout {
    fn of(packet: &[u8]) -> Self {
        let is_v6 = packet[0] >> 4 == 6;
        let transport = if is_v6 { 40 } else { usize::from(packet[0] & 15) * 4 };
        let protocol = packet[if is_v6 { 6 } else { 9 }];
        let header = if protocol == UDP { 8 } else { usize::from(packet[transport + 12] >> 4) * 4 };
        Self { is_v6, protocol, transport, data: transport + header }
    }
}

/// What the application sent.
pub fn data(packet: &[u8]) -> &[u8] {
    &packet[Layout::of(packet).data..]
}

/// What the application sent, for editing.
pub fn data_mut(packet: &mut [u8]) -> &mut [u8] {
    let start = Layout::of(packet).data;
    &mut packet[start..]
}

/// The headers of `packet` with other data behind them, lengths and checksums corrected.
pub fn with_data(packet: &[u8], data: &[u8]) -> Vec<u8> {
    let mut changed = [&packet[..Layout::of(packet).data], data].concat();
    correct(&mut changed);
    changed
}

/// Sends a UDP packet to another port; correct the checksum afterwards.
pub fn set_destination_port(packet: &mut [u8], port: u16) {
    let at = Layout::of(packet).transport + 2;
    packet[at..at + 2].copy_from_slice(&port.to_be_bytes());
}

/// Says that a UDP packet over IPv4 has no checksum.
pub fn clear_udp_checksum(packet: &mut [u8]) {
    let at = Layout::of(packet).transport + 6;
    packet[at..at + 2].fill(0);
}

/// Writes the lengths and checksums that fit the packet's bytes.
pub fn correct(packet: &mut [u8]) {
    let Layout { is_v6, protocol, transport, .. } = Layout::of(packet);
    let total = u16::try_from(packet.len()).expect("an IP packet");
    let segment = total - transport as u16;
    let addresses = if is_v6 {
        packet[4..6].copy_from_slice(&segment.to_be_bytes());
        8..40
    } else {
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[10..12].fill(0);
        let header_sum = checksum(sum(&packet[..transport]));
        packet[10..12].copy_from_slice(&header_sum.to_be_bytes());
        12..20
    };
    if protocol == UDP {
        packet[transport + 4..transport + 6].copy_from_slice(&segment.to_be_bytes());
    }
    let field = transport + if protocol == UDP { 6 } else { 16 };
    packet[field..field + 2].fill(0);
    let pseudo = sum(&packet[addresses]) + u32::from(protocol) + u32::from(segment);
    let mut transport_sum = checksum(pseudo + sum(&packet[transport..]));
    if protocol == UDP && transport_sum == 0 {
        transport_sum = 0xffff;
    }
    packet[field..field + 2].copy_from_slice(&transport_sum.to_be_bytes());
}

/// The sum of 16-bit words; of at most 64 KiB, so that it does not overflow.
fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
    bytes.chunks(2).map(|pair| u32::from(word(pair))).sum()
}

fn checksum(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
