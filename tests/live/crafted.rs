//! The packets of `craft`, on which tests of edits rely: right in the eyes of two other judges.

use netfilterqueue_netns::Namespace;

use crate::craft::{correct, data, with_data};
use crate::pcap::Pcap;
use crate::support::internet_checksum;
use crate::{Test, tests};

pub const TESTS: [Test; 1] = tests![lengths_and_checksums_fit];

const UDP: u8 = 17;
const TCP: u8 = 6;

fn lengths_and_checksums_fit(_: &Namespace) {
    let mut pcap = Pcap::create("crafted");
    for header in [v4, v6] {
        for (protocol, transport) in [(UDP, udp()), (TCP, tcp())] {
            let mut empty = [header(protocol), transport.clone()].concat();
            correct(&mut empty);
            for length in [0, 1, 2, 999, 1000, 65_495 - transport.len()] {
                let sent = (0..length).map(|at| (at % 251) as u8).collect::<Vec<_>>();
                check(&with_data(&empty, &sent), protocol, &sent, &mut pcap);
            }
        }
        // With this data the sum is 0, which UDP writes as 0xffff because 0 means that there is
        // none.
        let mut empty = [header(UDP), udp()].concat();
        correct(&mut empty);
        let zeros = with_data(&empty, &[0, 0]);
        let field = zeros.len() - 4;
        let packet = with_data(&empty, &zeros[field..field + 2]);
        assert_eq!(packet[field..field + 2], [0xff, 0xff]);
        check(&packet, UDP, &zeros[field..field + 2], &mut pcap);
    }
}

/// Judges by sums over all that a checksum covers, which is then 0, and leaves the rest to the
/// dissector.
fn check(packet: &[u8], protocol: u8, sent: &[u8], pcap: &mut Pcap) {
    assert_eq!(data(packet), sent);
    let (header, addresses) = if packet[0] >> 4 == 4 { (20, 12..20) } else { (40, 8..40) };
    if header == 20 {
        assert_eq!(internet_checksum(&[&packet[..header]]), [0, 0], "the IPv4 header's");
    }
    let length = ((packet.len() - header) as u16).to_be_bytes();
    let covered = [&packet[addresses], &[0, protocol], &length, &packet[header..]];
    assert_eq!(internet_checksum(&covered), [0, 0], "{} bytes of {protocol}", sent.len());
    pcap.packet(packet);
}

/// An IPv4 header; its length and checksum are left for `correct`.
fn v4(protocol: u8) -> Vec<u8> {
    // Version and header length, type of service, length, identification, not to be fragmented, 64
    // hops.
    let start = [0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
    [&start[..], &[10, 1, 0, 2], &[10, 2, 0, 2]].concat()
}

/// An IPv6 header; its length is left for `correct`.
fn v6(protocol: u8) -> Vec<u8> {
    let address = |net| [0xfd, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    [&[0x60, 0, 0, 0, 0, 0, protocol, 64][..], &address(1), &address(2)].concat()
}

/// From port 4000 to 5000.
fn udp() -> Vec<u8> {
    vec![0x0f, 0xa0, 0x13, 0x88, 0, 0, 0, 0]
}

/// From port 4000 to 5000, acknowledging, with timestamps among its options.
fn tcp() -> Vec<u8> {
    let ports_and_numbers = [0x0f, 0xa0, 0x13, 0x88, 0, 0, 0, 1, 0, 0, 0, 1];
    let rest = [0x80, 0x18, 0x01, 0xf5, 0, 0, 0, 0];
    let options = [1, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 6];
    [&ports_and_numbers[..], &rest, &options].concat()
}
