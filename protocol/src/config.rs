//! `NFQNL_MSG_CONFIG`: taking a queue number and setting the queue up.
//!
//! The kernel works through one message in a fixed order (flags checked, owner checked, command,
//! copy parameters, length, flags) and makes no queue if a flag is unknown to it. One message that
//! carries everything therefore leaves no moment in which the queue exists half configured.

use byteorder::{BigEndian, ByteOrder};

use crate::attribute;
use crate::bits::bit_set;
use crate::constants::*;
use crate::error::ParseError;
use crate::message::{Header, Message, Nfgenmsg, push_message};

/// What to do with a queue number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Command {
    /// Take the number. Packet ids start at 1.
    Bind,
    /// Give the number back. The kernel drops what waits in the queue and ignores the rest of the
    /// message.
    Unbind,
    /// Does nothing since 3.8 and needs the same capability as everything else: answered with
    /// success or `EPERM`, it tells whether the sender has it. The kernel ignores the rest of the
    /// message.
    PfBind,
    /// As [`Command::PfBind`].
    PfUnbind,
}

impl Command {
    const fn to_number(self) -> u8 {
        match self {
            Self::Bind => NFQNL_CFG_CMD_BIND,
            Self::Unbind => NFQNL_CFG_CMD_UNBIND,
            Self::PfBind => NFQNL_CFG_CMD_PF_BIND,
            Self::PfUnbind => NFQNL_CFG_CMD_PF_UNBIND,
        }
    }

    fn from_number(number: u8) -> Result<Self, ParseError> {
        Ok(match number {
            NFQNL_CFG_CMD_BIND => Self::Bind,
            NFQNL_CFG_CMD_UNBIND => Self::Unbind,
            NFQNL_CFG_CMD_PF_BIND => Self::PfBind,
            NFQNL_CFG_CMD_PF_UNBIND => Self::PfUnbind,
            _ => {
                return Err(ParseError::Value { what: "NFQA_CFG_CMD", value: number.into() });
            }
        })
    }
}

/// What the kernel copies of each packet.
///
/// `NFQNL_COPY_NONE` is left out on purpose: in that mode the kernel *drops* every packet of the
/// queue, without counting it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "all that the kernel has")]
pub enum CopyMode {
    /// Attributes only, no bytes of the packet (`NFQNL_COPY_META`).
    Meta,
    /// Attributes and the packet's first `range` bytes (`NFQNL_COPY_PACKET`). 0 and everything
    /// above 65,531 means 65,531, the most that fits in an attribute.
    Packet {
        /// Bytes to copy from the network header on.
        range: u32,
    },
}

impl CopyMode {
    /// Whole packets: `NFQNL_COPY_PACKET` with the largest range.
    pub const WHOLE: Self = Self::Packet { range: NFQNL_MAX_COPY_RANGE };

    /// The same with the range that the kernel makes of it: 1 to 65,531.
    #[must_use]
    pub const fn effective(self) -> Self {
        match self {
            Self::Meta => Self::Meta,
            Self::Packet { range: 1..NFQNL_MAX_COPY_RANGE } => self,
            Self::Packet { .. } => Self::WHOLE,
        }
    }

    const fn to_params(self) -> (u32, u8) {
        match self {
            Self::Meta => (0, NFQNL_COPY_META),
            Self::Packet { range } => (range, NFQNL_COPY_PACKET),
        }
    }

    fn from_params((range, mode): (u32, u8)) -> Result<Self, ParseError> {
        match mode {
            NFQNL_COPY_META => Ok(Self::Meta),
            NFQNL_COPY_PACKET => Ok(Self::Packet { range }),
            _ => Err(ParseError::Value { what: "copy mode", value: mode.into() }),
        }
    }
}

/// A set of `NFQA_CFG_F_*` flags.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[expect(clippy::exhaustive_structs, reason = "a number of the kernel's, whatever it is")]
pub struct ConfigFlags(pub u32);

impl ConfigFlags {
    /// Packets that do not fit in the queue or the socket are accepted instead of dropped. Since
    /// 3.6.
    pub const FAIL_OPEN: Self = Self(NFQA_CFG_F_FAIL_OPEN);
    /// The conntrack entry comes with each packet. Since 3.6.
    pub const CONNTRACK: Self = Self(NFQA_CFG_F_CONNTRACK);
    /// Super-packets come whole. Since 3.10.
    pub const GSO: Self = Self(NFQA_CFG_F_GSO);
    /// User and group id come with each packet. Since 3.14.
    pub const UID_GID: Self = Self(NFQA_CFG_F_UID_GID);
    /// The security context comes with each packet. Since 4.3.
    pub const SECCTX: Self = Self(NFQA_CFG_F_SECCTX);

    const NAMES: [(u32, &'static str); 5] = [
        (NFQA_CFG_F_FAIL_OPEN, "NFQA_CFG_F_FAIL_OPEN"),
        (NFQA_CFG_F_CONNTRACK, "NFQA_CFG_F_CONNTRACK"),
        (NFQA_CFG_F_GSO, "NFQA_CFG_F_GSO"),
        (NFQA_CFG_F_UID_GID, "NFQA_CFG_F_UID_GID"),
        (NFQA_CFG_F_SECCTX, "NFQA_CFG_F_SECCTX"),
    ];

    /// The known flags of this set, one at a time.
    pub fn iter(self) -> impl Iterator<Item = Self> {
        Self::NAMES.into_iter().map(|(flag, _)| Self(flag)).filter(move |flag| self.contains(*flag))
    }
}

bit_set!(ConfigFlags);

/// A request to configure a queue. What is `None` stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "filled in with `..`; a new attribute of the kernel's makes a new minor version"
)]
pub struct ConfigMessage {
    /// The queue number.
    pub queue: u16,
    /// What to do with the number.
    pub command: Option<Command>,
    /// What to copy of each packet. The kernel's default after binding would drop every packet.
    pub copy_mode: Option<CopyMode>,
    /// Most packets the kernel holds before it drops (or, failing open, accepts) new ones. The
    /// kernel's default is 1,024.
    pub max_len: Option<u32>,
    /// Flags to change (`NFQA_CFG_MASK`) and their new values (`NFQA_CFG_FLAGS`); values outside
    /// the mask are ignored.
    pub flags: Option<FlagChange>,
}

/// Which flags to change and to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a value and its mask")]
pub struct FlagChange {
    /// The flags that change.
    pub mask: ConfigFlags,
    /// Which of them are set; the others are cleared.
    pub values: ConfigFlags,
}

impl FlagChange {
    /// Sets `flags` and leaves the others.
    #[must_use]
    pub const fn set(flags: ConfigFlags) -> Self {
        Self { mask: flags, values: flags }
    }

    /// Clears `flags` and leaves the others.
    #[must_use]
    pub const fn clear(flags: ConfigFlags) -> Self {
        Self { mask: flags, values: ConfigFlags(0) }
    }
}

impl ConfigMessage {
    /// A request that changes nothing yet.
    #[must_use]
    pub const fn new(queue: u16) -> Self {
        Self { queue, command: None, copy_mode: None, max_len: None, flags: None }
    }

    /// A request with only a command.
    #[must_use]
    pub const fn command(queue: u16, command: Command) -> Self {
        Self { command: Some(command), ..Self::new(queue) }
    }

    /// Appends the message. It asks for an acknowledgement, which repeats `sequence`.
    pub fn push(&self, out: &mut Vec<u8>, sequence: u32) {
        let header = Header {
            kind: NFQNL_MSG_CONFIG,
            flags: NLM_F_REQUEST | NLM_F_ACK,
            sequence,
            port: 0,
            nfgenmsg: Nfgenmsg::new(self.queue),
        };
        push_message(out, header, 0, |out| self.push_attributes(out));
    }

    pub(crate) fn push_attributes(&self, out: &mut Vec<u8>) {
        if let Some(command) = self.command {
            // struct nfqnl_msg_config_cmd; the kernel ignores the family.
            attribute::push(out, NFQA_CFG_CMD, &[command.to_number(), 0, 0, 0]);
        }
        if let Some(copy_mode) = self.copy_mode {
            let (range, mode) = copy_mode.to_params();
            let mut params = [0; 5];
            BigEndian::write_u32(&mut params[0..4], range);
            params[4] = mode;
            attribute::push(out, NFQA_CFG_PARAMS, &params);
        }
        if let Some(max_len) = self.max_len {
            attribute::push_u32_be(out, NFQA_CFG_QUEUE_MAXLEN, max_len);
        }
        if let Some(FlagChange { mask, values }) = self.flags {
            attribute::push_u32_be(out, NFQA_CFG_FLAGS, values.0);
            attribute::push_u32_be(out, NFQA_CFG_MASK, mask.0);
        }
    }

    /// Reads a configuration message.
    ///
    /// # Errors
    ///
    /// [`ParseError`] says what is malformed and where; [`ParseError::Value`] for an unknown
    /// command or copy mode, `NFQNL_COPY_NONE` included.
    pub fn parse(message: Message<'_>) -> Result<Self, ParseError> {
        if message.kind() != NFQNL_MSG_CONFIG {
            return Err(ParseError::MessageType {
                expected: NFQNL_MSG_CONFIG,
                found: message.kind(),
            });
        }
        let (nfgenmsg, attributes) = Nfgenmsg::parse(message.body())?;
        let mut config = Self::new(nfgenmsg.res_id);
        // Judged after the walk: only the last of several counts, as in the kernel.
        let (mut command, mut params) = (None, None);
        let (mut mask, mut values) = (None, None);
        for attribute in attributes {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                NFQA_CFG_CMD => {
                    attribute.require(4)?;
                    command = Some(value[0]);
                }
                NFQA_CFG_PARAMS => {
                    attribute.require(5)?;
                    params = Some((BigEndian::read_u32(&value[0..4]), value[4]));
                }
                NFQA_CFG_QUEUE_MAXLEN => {
                    attribute.require(4)?;
                    config.max_len = attribute.u32_be();
                }
                NFQA_CFG_FLAGS => {
                    attribute.require(4)?;
                    values = attribute.u32_be();
                }
                NFQA_CFG_MASK => {
                    attribute.require(4)?;
                    mask = attribute.u32_be();
                }
                _ => {}
            }
        }
        config.command = command.map(Command::from_number).transpose()?;
        config.copy_mode = params.map(CopyMode::from_params).transpose()?;
        config.flags = match (mask, values) {
            (Some(mask), Some(values)) => {
                Some(FlagChange { mask: ConfigFlags(mask), values: ConfigFlags(values) })
            }
            // The kernel ignores a mask without flags and refuses flags without a mask.
            (_, None) => None,
            (None, Some(_)) => return Err(ParseError::Missing { attribute: "NFQA_CFG_MASK" }),
        };
        Ok(config)
    }
}
