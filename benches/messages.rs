//! Packet messages as a kernel sent them, from the tests of the protocol crate; what was captured
//! stands in the README beside them.

use netfilterqueue_protocol::packet::PacketIndex;

macro_rules! capture {
    ($name:literal) => {
        include_str!(concat!("../protocol/tests/data/", $name, ".hex"))
    };
}

/// The metadata of a packet and none of its bytes: 64 bytes.
pub const META: &str = capture!("ipv6-prerouting-udp-meta");
/// A small datagram that this host sends, and little else: 85 bytes.
pub const OUTPUT_UDP: &str = capture!("ipv4-output-udp");
/// A bridged packet that is forwarded, with four interfaces: 141 bytes.
pub const FORWARD_UDP: &str = capture!("ipv6-forward-udp-ports");
/// A TCP segment with its conntrack entry: 300 bytes.
pub const TCP_CONNTRACK: &str = capture!("ipv4-output-tcp-ct-established");
/// A TCP segment with all that the kernel can tell of it: 476 bytes.
pub const SYN_EVERYTHING: &str = capture!("ipv6-tcp-syn-ct-protoinfo");

/// The bytes of a captured message.
///
/// # Panics
///
/// If it is not in hex.
#[must_use]
pub fn of(capture: &str) -> Vec<u8> {
    let digits = capture.trim().as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map(|pair| byte(pair).expect("two hex digits")).collect()
}

/// A captured message with a longer payload, as the kernel would have sent it: the payload comes
/// last.
///
/// # Panics
///
/// If the message has no payload, or `len` is more than one has room for.
#[must_use]
pub fn with_payload(capture: &str, len: usize) -> Vec<u8> {
    let mut message = of(capture);
    let index = PacketIndex::parse(&message).expect("a whole packet message");
    let payload = index.payload_range().expect("a payload");
    assert_eq!(payload.end, index.message_len(), "the payload comes last");
    message.resize(payload.start + len, b'x');
    // struct nlmsghdr and struct nlattr both start with their length, in the host's byte order.
    let whole = u32::try_from(message.len()).expect("a length of 32 bits");
    message[..4].copy_from_slice(&whole.to_ne_bytes());
    let attribute = u16::try_from(4 + len).expect("an attribute of at most 64 KiB");
    message[payload.start - 4..][..2].copy_from_slice(&attribute.to_ne_bytes());
    message
}
