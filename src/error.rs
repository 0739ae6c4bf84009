//! Errors, sorted by whose fault they are: the kernel refused, the caller misused, a system call
//! failed. Each names the operation and, where it is known, the remedy.

use std::fmt;
use std::io;
use std::time::Duration;

use netfilterqueue_protocol::config::ConfigFlags;
use netfilterqueue_protocol::constants::NFQNL_MAX_COPY_RANGE;
use netfilterqueue_protocol::error::EncodeError;
use thiserror::Error;

use crate::errno::Errno;

/// What this crate was doing when an error came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Operation {
    /// Opening and setting up the netlink socket.
    #[error("opening the netlink socket")]
    Open,
    /// Taking a queue number.
    #[error("binding the queue")]
    Bind,
    /// Asking what the kernel supports.
    #[error("asking what the kernel supports")]
    Probe,
    /// Changing the configuration of a queue.
    #[error("configuring the queue")]
    Configure,
    /// Giving the queue number back.
    #[error("unbinding the queue")]
    Unbind,
    /// Receiving packets.
    #[error("receiving packets")]
    Receive,
    /// Sending verdicts.
    #[error("sending verdicts")]
    Verdict,
    /// Installing or removing rules.
    #[error("changing firewall rules")]
    Rules,
    /// Entering a network namespace.
    #[error("entering the network namespace")]
    Namespace,
}

/// What went wrong.
///
/// It converts into [`io::Error`] with a fitting [`io::ErrorKind`], so that event loops can tell
/// [`Error::WouldBlock`] from the rest.
///
/// Its `Debug` form is the same text as `Display`'s, because that is what a `main` prints that
/// returns an error, and what `expect` prints.
#[derive(Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused: the queue number belongs to another socket (`EPERM` although the
    /// capability is there, or `EBUSY`).
    #[error(
        "queue {queue} is taken by another socket, of this program or another; column 2 of \
         /proc/net/netfilter/nfnetlink_queue has its port id, often the process id; end it or take \
         another number"
    )]
    QueueTaken {
        /// The queue number.
        queue: u16,
    },
    /// The kernel refused: the program lacks `CAP_NET_ADMIN` in the user namespace that owns the
    /// network namespace of the socket (`EPERM`).
    #[error(
        "{operation} needs CAP_NET_ADMIN; run as root, grant it (setcap cap_net_admin+ep, \
         --cap-add NET_ADMIN), or enter a user and network namespace of your own"
    )]
    NoCapability {
        /// What was refused.
        operation: Operation,
    },
    /// The kernel has no `nfnetlink_queue` (`EPROTONOSUPPORT` from the socket, `EINVAL` from the
    /// subsystem).
    #[error(
        "the kernel has no nfnetlink_queue; load the module (modprobe nfnetlink_queue) or enable \
         CONFIG_NETFILTER_NETLINK_QUEUE"
    )]
    NoQueueSupport,
    /// The kernel refused configuration flags that it does not know or cannot serve.
    #[error(
        "the kernel refused {flags} for queue {queue}; leave the option out or use a newer kernel \
         (CONNTRACK also needs the module nf_conntrack_netlink)"
    )]
    FlagsRefused {
        /// The queue number.
        queue: u16,
        /// The flags it refused, as far as they could be told apart.
        flags: ConfigFlags,
    },
    /// The kernel has neither nft's `queue` expression nor `nft_compat` with the `NFQUEUE` target,
    /// which is of no use in the bridge family.
    #[error(
        "the kernel can put no queue rule in place: it has neither nft_queue nor nft_compat with \
         xt_NFQUEUE; load one of them (modprobe nft_queue; the bridge family needs that one)"
    )]
    NoRuleSupport,
    /// The kernel has no `ct` expression of nft, or none that knows connection marks; for the
    /// bridge family, no connection tracking there.
    #[error(
        "the kernel cannot remember decisions about flows: it has no nft_ct with connection marks (and \
         for the bridge family nf_conntrack_bridge); load it (modprobe nft_ct) or leave the flow bypass out"
    )]
    NoFlowSupport,
    /// The kernel refused for another reason.
    #[error("{operation}: the kernel refused with {errno}{}", text(explanation.as_ref()))]
    Refused {
        /// What was refused.
        operation: Operation,
        /// The kernel's reason.
        errno: Errno,
        /// The kernel's explanation, where it gave one.
        explanation: Option<String>,
    },
    /// The kernel's answer did not come. It is lost when the socket's receive buffer is full of
    /// packets.
    #[error(
        "{operation}: no answer from the kernel within {waited:?}; the receive buffer was full or \
         the kernel is very busy, receive what waits and try again"
    )]
    AckTimeout {
        /// What was asked.
        operation: Operation,
        /// How long the answer was waited for.
        waited: Duration,
    },
    /// Nothing to receive, and the queue is in non-blocking mode.
    #[error("no packet waits")]
    WouldBlock,
    /// A [`StopHandle`](crate::StopHandle) was used.
    #[error("the queue was told to stop")]
    Stopped,
    /// The caller gave a verdict for a queue that is closed; the kernel has dropped its packets.
    #[error("the queue is closed; the kernel drops the packets that waited in it")]
    Closed,
    /// The verdict comes after the packet's deadline; it got the queue's default verdict.
    #[error("the deadline of the packet has passed; it got the queue's default verdict")]
    Expired,
    /// The queue cannot be set up as asked.
    #[error("the queue cannot be made: {0}")]
    InvalidQueue(&'static str),
    /// A verdict cannot be written.
    #[error("writing a verdict: {0}")]
    Encode(#[from] EncodeError),
    /// A rule cannot be expressed.
    #[error("the rule cannot be made: {0}")]
    InvalidRule(&'static str),
    /// A system call failed.
    #[error("{operation}: {call}: {source}")]
    System {
        /// What was being done.
        operation: Operation,
        /// The system call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn text(explanation: Option<&String>) -> String {
    explanation.map(|text| format!(" ({text})")).unwrap_or_default()
}

impl Error {
    /// For use with `map_err`: wraps the error of a system call.
    pub(crate) fn system<E: Into<io::Error>>(
        operation: Operation,
        call: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::System { operation, call, source: source.into() }
    }

    /// Whether the same call may succeed a little later, when the kernel has memory again.
    pub(crate) fn is_want_of_memory(&self) -> bool {
        let Self::System { source, .. } = self else { return false };
        let errno = source.raw_os_error().map(Errno);
        matches!(errno, Some(Errno::ENOBUFS | Errno::ENOMEM))
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::WouldBlock => io::ErrorKind::WouldBlock,
            Error::AckTimeout { .. } | Error::Expired => io::ErrorKind::TimedOut,
            Error::QueueTaken { .. } => io::ErrorKind::AddrInUse,
            Error::NoCapability { .. } => io::ErrorKind::PermissionDenied,
            Error::NoQueueSupport
            | Error::FlagsRefused { .. }
            | Error::NoRuleSupport
            | Error::NoFlowSupport => io::ErrorKind::Unsupported,
            Error::Stopped => io::ErrorKind::Other,
            Error::Closed => io::ErrorKind::NotConnected,
            Error::InvalidQueue(_) | Error::InvalidRule(_) | Error::Encode(_) => {
                io::ErrorKind::InvalidInput
            }
            Error::Refused { errno, .. } => Self::from(*errno).kind(),
            Error::System { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// What would have helped against a short copy.
fn uncut(full: u32) -> &'static str {
    if full > NFQNL_MAX_COPY_RANGE {
        "no more than 65,531 can be; turn GSO off or lower the MTU"
    } else {
        "raise the copy range"
    }
}

/// Why a packet cannot be edited. The packet itself is untouched and can still be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EditError {
    /// Only a part of the packet was copied: sending it back would cut the packet.
    #[error(
        "only {copied} of the packet's {full} bytes were copied, so sending it back would cut it; {}",
        uncut(*full)
    )]
    Truncated {
        /// Bytes that were copied.
        copied: usize,
        /// The packet's length in bytes.
        full: u32,
    },
    /// The packet's bytes were not copied.
    #[error("the packet's bytes were not copied; use copy mode PACKET")]
    NotCopied,
    /// The packet is a UDP super-packet ([`SkbInfo::is_gso`](crate::SkbInfo::is_gso)), which the
    /// kernel cannot cut into datagrams once it was edited: it drops it, and before 6.12 logs a
    /// warning. Only packets of senders on the same host that use `UDP_SEGMENT`, and what a network
    /// card has put together for a socket with `UDP_GRO`, are such.
    /// [`EditMode::Raw`](crate::EditMode::Raw) lets the edit through.
    #[error(
        "the kernel cannot cut an edited UDP super-packet into datagrams; turn GSO off to edit it"
    )]
    UdpSuperPacket,
    /// The packet's checksum is not ready
    /// ([`SkbInfo::checksum_not_ready`](crate::SkbInfo::checksum_not_ready)), and it is not the
    /// packet's own, but that of a packet inside it (a tunnel), or one of SCTP. The kernel would
    /// not finish it after an edit. [`EditMode::Raw`](crate::EditMode::Raw) lets the edit through.
    #[error(
        "a checksum that the kernel has yet to finish lies deeper in the packet and would stay unfinished; \
         turn GSO off to edit it"
    )]
    UnfinishedChecksum,
    /// The packet is a TCP super-packet ([`SkbInfo::is_gso`](crate::SkbInfo::is_gso)) and the new
    /// payload is shorter: if it is no longer than one segment, whose length is not known here, the
    /// kernel drops it without a word. [`EditMode::Raw`](crate::EditMode::Raw) lets the edit
    /// through.
    #[error("the kernel may drop a shortened TCP super-packet; turn GSO off to edit it")]
    ShorterSuperPacket,
    /// The new payload is empty: the kernel would drop the packet.
    #[error("an empty payload would drop the packet; say so with Verdict::Drop")]
    Empty,
    /// The new payload ends before the original packet's transport header begins: kernels before
    /// 5.19 crash on it (CVE-2022-36946), later ones drop the packet.
    #[error("a payload of {len} bytes ends within the network header, which takes {min}")]
    TooShort {
        /// Its length in bytes.
        len: usize,
        /// Length of the original network header, IPv4 options and IPv6 extension headers included.
        min: usize,
    },
    /// Only frames that cross a bridge have a VLAN tag or a link-layer header that can be changed.
    #[error("the packet was not queued in the bridge family, with its link-layer header")]
    NotBridged,
    /// The new link-layer header is of another length: the kernel would drop the packet.
    #[error("a link-layer header of {len} bytes cannot replace one of {present}")]
    L2HeaderLength {
        /// Its length in bytes.
        len: usize,
        /// Length of the present one.
        present: usize,
    },
    /// The new payload is longer than what can be sent back.
    #[error("a payload of {len} bytes cannot be sent back, at most {max}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// What can be sent.
        max: usize,
    },
}
