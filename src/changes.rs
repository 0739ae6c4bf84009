//! All that a program can change about a packet, kept until its verdict leaves.

use netfilterqueue_protocol::attribute;
use netfilterqueue_protocol::conntrack::ConntrackChange;
use netfilterqueue_protocol::packet::Vlan;
use netfilterqueue_protocol::verdict::Verdict;

use crate::edit::{Edit, EditMode};

/// What was done to a packet besides its verdict.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) mark: Option<u32>,
    pub(crate) priority: Option<u32>,
    pub(crate) edit: Option<Edit>,
    /// As the queue has it, if `None`.
    pub(crate) edit_mode: Option<EditMode>,
    /// Stays allocated as well.
    pub(crate) extras: Option<Box<Extras>>,
}

impl Changes {
    /// Begins anew. What is allocated stays so.
    pub(crate) fn clear(&mut self) {
        let mut extras = self.extras.take();
        if let Some(extras) = &mut extras {
            **extras = Extras::default();
        }
        *self = Self { extras, ..Self::default() };
    }

    /// Length of the edited payload that goes back with a verdict; the bytes of a dropped packet
    /// stay here.
    pub(crate) fn payload_len(&self, verdict: Verdict) -> Option<usize> {
        if verdict == Verdict::Drop { None } else { self.edit.map(|edit| edit.len) }
    }

    /// The rarer changes, if there are any.
    pub(crate) fn extras(&self) -> Option<&Extras> {
        self.extras.as_deref().filter(|extras| !extras.is_empty())
    }

    pub(crate) fn extras_mut(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }
}

/// Changes that few packets need: beside the packet's bytes, mark and priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Extras {
    pub(crate) vlan: Option<Vlan>,
    pub(crate) l2_header: Option<L2Header>,
    pub(crate) conntrack: Option<ConntrackChange>,
}

/// A link-layer header, copied: there is no room for it in the receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct L2Header {
    bytes: [u8; Self::LEN_MAX],
    len: u8,
}

impl L2Header {
    /// Longer than that of any device that can be a bridge's port: Ethernet has 14 bytes.
    const LEN_MAX: usize = 32;

    /// `None` if it is too long.
    pub(crate) fn new(header: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::LEN_MAX];
        bytes.get_mut(..header.len())?.copy_from_slice(header);
        Some(Self { bytes, len: u8::try_from(header.len()).ok()? })
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl Extras {
    /// A nest with both halves of a VLAN tag, a link-layer header, a conntrack change with all its
    /// parts.
    pub(crate) const ENCODED_MAX: usize = (4 + 8 + 8)
        + (attribute::HEADER_LEN + L2Header::LEN_MAX)
        + ConntrackChange::ENCODED_LEN_MAX;

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
