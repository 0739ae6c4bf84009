//! Where the data of a packet is, and how a bit of it is turned over.

use std::ops::Range;

use etherparse::{LaxSlicedPacket, TransportSlice};

/// The bytes behind the last header that can be read: the data of a UDP datagram, of a TCP segment
/// or of an ICMP message, and of fragments and other protocols what follows the IP header. Empty
/// where there is none: a bare acknowledgment, or something that is no IP packet.
pub(crate) fn range(packet: &[u8]) -> Range<usize> {
    let Ok(sliced) = LaxSlicedPacket::from_ip(packet) else { return 0..0 };
    let data = match &sliced.transport {
        Some(TransportSlice::Udp(udp)) => udp.payload(),
        Some(TransportSlice::Tcp(tcp)) => tcp.payload(),
        Some(TransportSlice::Icmpv4(icmp)) => icmp.payload(),
        Some(TransportSlice::Icmpv6(icmp)) => icmp.payload(),
        _ => match sliced.ip_payload() {
            Some(ip) => ip.payload,
            None => return 0..0,
        },
    };
    // It is a part of the packet: the distance of their beginnings is where it lies.
    let start = data.as_ptr().addr().wrapping_sub(packet.as_ptr().addr());
    match start.checked_add(data.len()) {
        Some(end) if end <= packet.len() => start..end,
        _ => 0..0,
    }
}

/// Turns over the bit of `data` at a share of its length. Returns whether there was one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of the bits, with far fewer bits than a float is exact for"
)]
pub(crate) fn turn_over(data: &mut [u8], share: f64) -> bool {
    let bit = ((data.len() * 8) as f64 * share) as usize;
    match data.get_mut(bit / 8) {
        Some(byte) => {
            *byte ^= 1 << (bit % 8);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    const BODY: &[u8] = b"a body of some length";

    fn packets() -> Vec<Vec<u8>> {
        let v4 = || PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let v6 = || PacketBuilder::ipv6([1; 16], [2; 16], 64);
        let mut packets = vec![Vec::new(); 5];
        v4().udp(1, 2).write(&mut packets[0], BODY).unwrap();
        v6().udp(1, 2).write(&mut packets[1], BODY).unwrap();
        v4().tcp(1, 2, 3, 4).write(&mut packets[2], BODY).unwrap();
        v6().icmpv6_echo_request(1, 2).write(&mut packets[3], BODY).unwrap();
        v4().icmpv4_echo_request(1, 2).write(&mut packets[4], BODY).unwrap();
        packets
    }

    #[test]
    fn data_is_found_behind_the_headers() {
        for packet in packets() {
            assert_eq!(&packet[range(&packet)], BODY);
        }
    }

    #[test]
    fn padding_is_not_data() {
        for mut packet in packets() {
            packet.extend([0; 9]);
            assert_eq!(&packet[range(&packet)], BODY);
        }
    }

    #[test]
    fn what_has_no_data_stays_as_it_is() {
        let mut bare = Vec::new();
        PacketBuilder::ipv4([1; 4], [2; 4], 9).tcp(1, 2, 3, 4).write(&mut bare, &[]).unwrap();
        let data = range(&bare);
        assert!(data.is_empty() && !turn_over(&mut bare[data], 0.5));
        assert_eq!(range(&[]), 0..0);
    }

    #[test]
    fn exactly_one_bit_is_turned_over() {
        for share in [0.0, 0.3, 0.999_999_999] {
            let mut data = [0; 21];
            assert!(turn_over(&mut data, share));
            assert_eq!(data.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(range(&bytes).end <= bytes.len());
        }

        #[test]
        fn cut_off_and_changed_packets_are_survived(
            which in 0_usize..5, len in 0_usize..80, at in 0_usize..60, byte: u8, share in 0.0..1.0,
        ) {
            let mut packet = packets().swap_remove(which);
            if let Some(target) = packet.get_mut(at) { *target = byte; }
            packet.truncate(len);
            let data = range(&packet);
            prop_assert!(data.start <= data.end && data.end <= packet.len());
            turn_over(&mut packet[data], share);
        }
    }
}
