//! Messages as the kernel sends them, for tests and fuzz targets.

use netfilterqueue_protocol::attribute;
use netfilterqueue_protocol::constants::*;

use crate::socket::Arrival;

/// How a packet comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Whole,
    /// Cut off behind its id.
    Truncated,
    /// With an attribute that is too short.
    Malformed,
}

/// A packet message with little but its id and four bytes of payload.
pub(crate) fn packet(queue: u16, id: u32, shape: Shape) -> (Vec<u8>, Arrival) {
    let mut body = vec![NFPROTO_IPV4, NFNETLINK_V0];
    body.extend(queue.to_be_bytes());
    let mut header = id.to_be_bytes().to_vec();
    header.extend([0x08, 0x00, NF_INET_LOCAL_OUT]);
    attribute::push(&mut body, NFQA_PACKET_HDR, &header);
    if shape == Shape::Malformed {
        attribute::push(&mut body, NFQA_MARK, &[0, 7]);
    }
    attribute::push(&mut body, NFQA_PAYLOAD, b"data");
    let mut message = message(NFQNL_MSG_PACKET, 0, &body);
    if shape == Shape::Truncated {
        message.truncate(35);
        return (message, Arrival::Truncated);
    }
    (message, Arrival::Whole)
}

/// The kernel's answer to a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer<'a> {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    pub(crate) port: u32,
    pub(crate) errno: i32,
    /// The request after its header, where it is repeated.
    pub(crate) echo: Option<&'a [u8]>,
    pub(crate) explanation: Option<&'a str>,
}

impl Answer<'_> {
    pub(crate) fn new(kind: u16, sequence: u32, errno: i32) -> Self {
        Self { kind, sequence, errno, ..Self::default() }
    }

    pub(crate) fn port(self, port: u32) -> Self {
        Self { port, ..self }
    }

    /// The `NLMSG_ERROR`.
    pub(crate) fn write(&self) -> Vec<u8> {
        let echo = self.echo.unwrap_or_default();
        let mut body = self.errno.wrapping_neg().to_ne_bytes().to_vec();
        let request_len = u32::try_from(16 + echo.len()).expect("a short request");
        body.extend(request_len.to_ne_bytes());
        body.extend([self.kind, NLM_F_REQUEST].map(u16::to_ne_bytes).as_flattened());
        body.extend([self.sequence, self.port].map(u32::to_ne_bytes).as_flattened());
        body.extend(echo);
        let mut flags = if self.echo.is_none() { NLM_F_CAPPED } else { 0 };
        if let Some(explanation) = self.explanation {
            flags |= NLM_F_ACK_TLVS;
            attribute::pad(&mut body, echo.len());
            let text = [explanation.as_bytes(), &[0]].concat();
            attribute::push(&mut body, NLMSGERR_ATTR_MSG, &text);
        }
        message(NLMSG_ERROR, flags, &body)
    }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).expect("a short message");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend([kind, flags].map(u16::to_ne_bytes).as_flattened());
    message.extend([0; 8]);
    message.extend(body);
    message
}
