//! What becomes of a datagram, all of it by its number: length, content, verdict, what arrives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netfilterqueue::Verdict;

/// The queues. What one of them passes on comes to the other.
pub(crate) const QUEUES: [u16; 2] = [1, 2];
/// Nobody listens there.
pub(crate) const UNHEARD_QUEUE: u16 = 3;

/// The bit of a mark that sends a packet to a queue; the lower ones say which packet it is.
const MARK_OF_QUEUE: [u32; 2] = [1 << 30, 1 << 31];
const MARK_NUMBER: u32 = 0xff_ffff;

/// What a queue does with packets that nobody decides about.
pub(crate) const DEFAULTS: [Verdict; 2] = [Verdict::Drop, Verdict::Accept];

/// Longer ones are not copied whole by the kernel, so they cannot be edited.
const EDITABLE_MAX: usize = 60_000;

/// What is decided about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Accept,
    Drop,
    /// Other content of the same length, written in place.
    Edit,
    /// Other content of another length.
    Replace,
    /// Marked, so that a rule at the input hook sends it to the other queue.
    Mark,
    /// The hook runs once more, where the mark sends it to the other queue.
    Repeat,
    /// Passed on to the other queue.
    Pass,
    /// Passed on to a queue without a listener, with bypass: accepted.
    Bypass,
    /// The same without bypass: dropped.
    Unheard,
    /// Accepted past what remains of the hook.
    Stop,
    /// Not decided about in its batch.
    Forget,
    /// Retained and let go at once, without a verdict.
    Abandon,
    /// Retained, and judged a little later by another thread.
    HoldAccept,
    HoldDrop,
    HoldEdit,
    /// Retained until its deadline has passed.
    Expire,
}

impl Fate {
    pub(crate) const ALL: [Self; 16] = [
        Self::Accept,
        Self::Drop,
        Self::Edit,
        Self::Replace,
        Self::Mark,
        Self::Repeat,
        Self::Pass,
        Self::Bypass,
        Self::Unheard,
        Self::Stop,
        Self::Forget,
        Self::Abandon,
        Self::HoldAccept,
        Self::HoldDrop,
        Self::HoldEdit,
        Self::Expire,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
            Self::Edit => "edit in place",
            Self::Replace => "replace",
            Self::Mark => "mark",
            Self::Repeat => "repeat",
            Self::Pass => "other queue",
            Self::Bypass => "bypass",
            Self::Unheard => "no listener",
            Self::Stop => "stop",
            Self::Forget => "undecided",
            Self::Abandon => "retain, let go",
            Self::HoldAccept => "retain, accept",
            Self::HoldDrop => "retain, drop",
            Self::HoldEdit => "retain, edit",
            Self::Expire => "deadline",
        }
    }

    /// Whether the other queue sees it, too.
    pub(crate) const fn is_seen_twice(self) -> bool {
        matches!(self, Self::Mark | Self::Repeat | Self::Pass)
    }
}

/// A series of numbered datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) name: &'static str,
    pub(crate) to: SocketAddr,
    /// Index of the queue that sees it first.
    pub(crate) queue: usize,
    /// How many bytes of its number a datagram begins with, the lowest first. The rest follows
    /// from what arrived before.
    pub(crate) number_len: usize,
    /// The longest datagram that the loopback device takes whole.
    max_len: usize,
    /// Share of all datagrams, in percent.
    pub(crate) share: u64,
    salt: u64,
}

pub(crate) const STREAMS: [Stream; 3] = [
    Stream {
        name: "UDP/IPv4",
        to: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4001),
        queue: 0,
        number_len: 8,
        max_len: 65_507,
        share: 45,
        salt: 0x5eed_0001 << 32,
    },
    Stream {
        name: "UDP/IPv6",
        to: SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 4002),
        queue: 1,
        number_len: 8,
        max_len: 65_488,
        share: 45,
        salt: 0x5eed_0002 << 32,
    },
    Stream {
        name: "UDP/IPv4, tiny",
        to: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4003),
        queue: 1,
        number_len: 1,
        max_len: 7,
        share: 10,
        salt: 0x5eed_0003 << 32,
    },
];

/// What a datagram contains behind its number: so many bytes of the [`Pattern`] from there on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Content {
    /// Of the whole datagram, its number included.
    pub(crate) len: usize,
    offset: usize,
}

impl Stream {
    /// The part of a number that a datagram carries, by which everything is decided.
    pub(crate) const fn key(&self, number: u64) -> u64 {
        number & self.mask()
    }

    pub(crate) const fn mask(&self) -> u64 {
        u64::MAX >> (64 - 8 * self.number_len)
    }

    /// Reads the key and the rest of a datagram.
    pub(crate) fn read<'a>(&self, datagram: &'a [u8]) -> Option<(u64, &'a [u8])> {
        let (number, body) = datagram.split_at_checked(self.number_len)?;
        let mut bytes = [0; 8];
        bytes[..self.number_len].copy_from_slice(number);
        Some((u64::from_le_bytes(bytes), body))
    }

    pub(crate) fn fate(&self, key: u64) -> Fate {
        let own = mix(key ^ self.salt);
        let is_busy = key >> 15 & 3 == 3;
        let fate = match mix((key / 16) ^ self.salt) % 32 {
            // In most stretches of numbers nothing is retained, so that cumulative verdicts occur.
            _ if self.number_len == 8 && is_busy && own.is_multiple_of(64) => match own >> 8 & 7 {
                0..=2 => Fate::HoldAccept,
                3 => Fate::HoldDrop,
                4 | 5 => Fate::HoldEdit,
                6 => Fate::Abandon,
                _ => Fate::Expire,
            },
            // The same for sixteen numbers in a row, for the same reason.
            0..=20 => Fate::Accept,
            21..=24 => Fate::Drop,
            25 | 26 => Fate::Edit,
            27 | 28 => Fate::Replace,
            29 | 30 => Fate::Mark,
            _ => match own >> 8 & 7 {
                0 => Fate::Repeat,
                1 => Fate::Pass,
                2 => Fate::Bypass,
                3 => Fate::Unheard,
                4 => Fate::Stop,
                5 => Fate::Forget,
                _ => Fate::Accept,
            },
        };
        let is_edited = matches!(fate, Fate::Edit | Fate::Replace | Fate::HoldEdit);
        if is_edited && self.sent(key).len > EDITABLE_MAX { Fate::Accept } else { fate }
    }

    /// What is sent.
    pub(crate) fn sent(&self, key: u64) -> Content {
        let hash = mix(key ^ self.salt ^ 1 << 63);
        let (size, vary) = (hash % 1024, hash >> 32 & 0xffff);
        let len = match size {
            _ if self.number_len < 8 => 1 + vary % 7,
            0 => self.max_len as u64,
            1 => EDITABLE_MAX as u64,
            2 => 30_000 + vary % 1000,
            3 => 9_000,
            4..=63 => 1400 + vary % 73,
            64..=255 => 256 + vary % 768,
            _ => 8 + vary % 128,
        };
        Content { len: usize::try_from(len).unwrap_or(0), offset: offset(hash) }
    }

    /// Whether a datagram of that fate arrives.
    pub(crate) fn arrives(&self, fate: Fate) -> bool {
        match fate {
            Fate::Drop | Fate::Unheard | Fate::HoldDrop => false,
            Fate::Forget | Fate::Abandon | Fate::Expire => DEFAULTS[self.queue] == Verdict::Accept,
            _ => true,
        }
    }

    /// What arrives, if anything does.
    pub(crate) fn arriving(&self, key: u64) -> Option<Content> {
        let fate = self.fate(key);
        self.arrives(fate).then(|| match fate {
            Fate::Edit | Fate::HoldEdit | Fate::Replace => self.edited(key),
            _ => self.sent(key),
        })
    }

    /// What an edit makes of it.
    pub(crate) fn edited(&self, key: u64) -> Content {
        let hash = mix(key ^ self.salt ^ 1 << 62);
        let len = match self.fate(key) {
            Fate::Replace => self.number_len + usize::try_from(hash >> 32 & 0x3ff).unwrap_or(0),
            _ => self.sent(key).len,
        };
        Content { len, offset: offset(hash) }
    }

    /// The mark that sends a packet to the other queue.
    pub(crate) fn mark(&self, key: u64) -> u32 {
        let number = u32::try_from(key & u64::from(MARK_NUMBER)).unwrap_or(0);
        mark_bit(1 - self.queue) | number
    }

    /// What it counts for while it is on its way: more than it takes in any buffer there.
    pub(crate) fn cost(&self, key: u64) -> u64 {
        let arriving = self.arriving(key).map_or(0, |content| content.len);
        2048 + 2 * self.sent(key).len.max(arriving) as u64
    }
}

/// The bit that the rules look for, by the index of the queue it leads to.
pub(crate) const fn mark_bit(queue: usize) -> u32 {
    MARK_OF_QUEUE[queue]
}

/// Random bytes that everything sent is a part of.
#[derive(Debug)]
pub(crate) struct Pattern(Vec<u8>);

/// Contents begin anywhere in the first 64 KiB and are no longer than that.
const OFFSETS: usize = 1 << 16;

impl Pattern {
    pub(crate) fn new() -> Self {
        Self((0..2 * OFFSETS as u64 / 8).flat_map(|at| mix(at).to_le_bytes()).collect())
    }

    /// What follows the number in a datagram of that content.
    pub(crate) fn body(&self, stream: &Stream, content: Content) -> &[u8] {
        let len = content.len.saturating_sub(stream.number_len);
        &self.0[content.offset..content.offset + len]
    }

    /// What a TCP stream consists of, again and again.
    pub(crate) fn cycle(&self) -> &[u8] {
        // A prime, so that no loss of whole packets goes unnoticed.
        &self.0[..65_521]
    }
}

fn offset(hash: u64) -> usize {
    usize::try_from(hash >> 48).unwrap_or(0) % OFFSETS
}

/// Spreads numbers evenly (splitmix64).
const fn mix(number: u64) -> u64 {
    let mut hash = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}
