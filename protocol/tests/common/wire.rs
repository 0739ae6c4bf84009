//! A writer of messages that shares no code with the crate.

/// An attribute without the padding after it.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("test attribute too long");
    [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
}

/// Attributes with zero padding between them and, as in the kernel's packets, none after the last.
pub(crate) fn list(attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, value) in attributes {
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(attribute(*kind, value));
    }
    out
}

/// A netlink message.
pub(crate) fn message(kind: u16, flags: u16, sequence: u32, port: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).expect("test message too long");
    let mut out = length.to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend(port.to_ne_bytes());
    out.extend(body);
    out
}

/// A message of `nfnetlink_queue`; `number` is the low byte of its type.
pub(crate) fn queue_message(
    number: u16,
    family: u8,
    queue: u16,
    attributes: &[(u16, Vec<u8>)],
) -> Vec<u8> {
    let mut body = vec![family, 0];
    body.extend(queue.to_be_bytes());
    body.extend(list(attributes));
    message(0x0300 | number, 0, 0, 0, &body)
}

/// The value of `NFQA_PACKET_HDR`.
pub(crate) fn packet_hdr(id: u32, protocol: u16, hook: u8) -> Vec<u8> {
    [&id.to_be_bytes()[..], &protocol.to_be_bytes(), &[hook]].concat()
}

/// Writes the length of the first message of `bytes`: all of them.
pub(crate) fn state_length(bytes: &mut [u8]) {
    let length = u32::try_from(bytes.len()).expect("test message too long");
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
}
