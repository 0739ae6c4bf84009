//! The messages as netlink-packet-core's traits want them: owned, and serialized through
//! `NetlinkMessage`.

use netlink_packet_core::{
    NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
};

use crate::config::ConfigMessage;
use crate::constants::*;
use crate::error::{EncodeError, ParseError};
use crate::message::{Header, Message, NLMSG_HEADER_LEN, Nfgenmsg, push_message};
use crate::packet::PacketMessage;
use crate::verdict::{VerdictBatchMessage, VerdictMessage};

/// Any message of `nfnetlink_queue`, owned.
///
/// ```
/// use netfilterqueue_protocol::config::{Command, ConfigMessage, CopyMode};
/// use netfilterqueue_protocol::interop::QueueMessage;
/// use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage};
///
/// let config = ConfigMessage {
///     copy_mode: Some(CopyMode::WHOLE),
///     ..ConfigMessage::command(1, Command::Bind)
/// };
/// let mut message = NetlinkMessage::from(QueueMessage::from(config));
/// message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
/// message.finalize();
/// let mut datagram = vec![0; message.buffer_len()];
/// message.serialize(&mut datagram);
/// # assert_eq!(NetlinkMessage::<QueueMessage>::deserialize(&datagram).unwrap(), message);
/// ```
#[derive(Debug, Clone)]
pub struct QueueMessage {
    kind: u16,
    /// The message with a netlink header, so that offsets are those of a received one.
    bytes: Vec<u8>,
}

/// What a [`QueueMessage`] holds, borrowed from it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum View<'a> {
    /// A queued packet.
    Packet(PacketMessage<'a>),
    /// The verdict on one packet.
    Verdict(VerdictMessage<'a>),
    /// One verdict on many packets.
    VerdictBatch(VerdictBatchMessage),
    /// A change of a queue's configuration.
    Config(ConfigMessage),
}

impl QueueMessage {
    /// Takes a message, netlink header included.
    ///
    /// # Errors
    ///
    /// [`ParseError`] if it is malformed or of another subsystem.
    pub fn parse(message: Message<'_>) -> Result<Self, ParseError> {
        view(message)?;
        Ok(Self { kind: message.kind(), bytes: message.bytes().to_vec() })
    }

    /// The message, typed.
    ///
    /// # Panics
    ///
    /// Never: the bytes were checked when this was made.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        Message::parse(&self.bytes).and_then(view).expect("checked when made")
    }

    fn body(&self) -> &[u8] {
        &self.bytes[NLMSG_HEADER_LEN..]
    }
}

fn view(message: Message<'_>) -> Result<View<'_>, ParseError> {
    Ok(match message.kind() {
        NFQNL_MSG_PACKET => View::Packet(PacketMessage::parse(message.bytes())?),
        NFQNL_MSG_VERDICT => View::Verdict(VerdictMessage::parse(message)?),
        NFQNL_MSG_VERDICT_BATCH => View::VerdictBatch(VerdictBatchMessage::parse(message)?),
        NFQNL_MSG_CONFIG => View::Config(ConfigMessage::parse(message)?),
        found => return Err(ParseError::MessageType { expected: NFQNL_MSG_PACKET, found }),
    })
}

/// Equal type and body; the netlink header is the envelope's.
impl PartialEq for QueueMessage {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.body() == other.body()
    }
}

impl Eq for QueueMessage {}

impl From<ConfigMessage> for QueueMessage {
    fn from(config: ConfigMessage) -> Self {
        let mut bytes = Vec::new();
        config.push(&mut bytes, 0);
        Self { kind: NFQNL_MSG_CONFIG, bytes }
    }
}

impl From<VerdictBatchMessage> for QueueMessage {
    fn from(verdict: VerdictBatchMessage) -> Self {
        let mut bytes = Vec::new();
        verdict.push(&mut bytes);
        Self { kind: NFQNL_MSG_VERDICT_BATCH, bytes }
    }
}

impl TryFrom<VerdictMessage<'_>> for QueueMessage {
    type Error = EncodeError;

    fn try_from(verdict: VerdictMessage<'_>) -> Result<Self, EncodeError> {
        let mut bytes = Vec::new();
        verdict.push(&mut bytes)?;
        // Padding is not part of a message: one with it would differ from the same one parsed.
        let length = Message::parse(&bytes).map_or(bytes.len(), |message| message.bytes().len());
        bytes.truncate(length);
        Ok(Self { kind: NFQNL_MSG_VERDICT, bytes })
    }
}

impl NetlinkSerializable for QueueMessage {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body().len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(self.body());
    }
}

impl NetlinkDeserializable for QueueMessage {
    type Error = ParseError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, ParseError> {
        let (nfgenmsg, _) = Nfgenmsg::parse(payload)?;
        let header = Header {
            kind: header.message_type,
            flags: header.flags,
            sequence: header.sequence_number,
            port: header.port_number,
            nfgenmsg,
        };
        let mut bytes = Vec::with_capacity(NLMSG_HEADER_LEN + payload.len());
        push_message(&mut bytes, header, 0, |out| {
            out.extend_from_slice(&payload[crate::message::NFGENMSG_LEN..]);
        });
        Self::parse(Message::parse(&bytes)?)
    }
}

impl From<QueueMessage> for NetlinkPayload<QueueMessage> {
    fn from(message: QueueMessage) -> Self {
        Self::InnerMessage(message)
    }
}
