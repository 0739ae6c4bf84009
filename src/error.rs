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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Opening and setting up the netlink socket.
    Open,
    /// Taking a queue number.
    Bind,
    /// Asking what the kernel supports.
    Probe,
    /// Changing the configuration of a queue.
    Configure,
    /// Giving the queue number back.
    Unbind,
    /// Receiving packets.
    Receive,
    /// Sending verdicts.
    Verdict,
    /// Reading the kernel's counters.
    Stats,
    /// Installing or removing rules.
    Rules,
    /// Entering a network namespace.
    Namespace,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "opening the netlink socket",
            Self::Bind => "binding the queue",
            Self::Probe => "asking what the kernel supports",
            Self::Configure => "configuring the queue",
            Self::Unbind => "unbinding the queue",
            Self::Receive => "receiving packets",
            Self::Verdict => "sending verdicts",
            Self::Stats => "reading the kernel's counters",
            Self::Rules => "changing firewall rules",
            Self::Namespace => "entering the network namespace",
        })
    }
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
    #[non_exhaustive]
    QueueTaken {
        /// The queue number.
        queue: u16,
    },
    /// The kernel refused: the program lacks `CAP_NET_ADMIN` in the user namespace that owns the
    /// network namespace of the socket (`EPERM`).
    #[error(
        "{operation} needs CAP_NET_ADMIN; run as root, grant it (setcap cap_net_admin+ep, \
         --cap-add NET_ADMIN), or enter a user and network namespace of your own (unshare -rn)"
    )]
    #[non_exhaustive]
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
        "the kernel refused {flags} for queue {queue}: it lacks a module (CONNTRACK needs modprobe \
         nf_conntrack_netlink) or is too old; or leave the option out"
    )]
    #[non_exhaustive]
    FlagsRefused {
        /// The queue number.
        queue: u16,
        /// The flags it refused, as far as they could be told apart.
        flags: ConfigFlags,
    },
    /// The kernel has neither nft's `queue` expression nor `nft_compat` with the `NFQUEUE` target,
    /// which is of no use in the bridge family; or it has no base chains for the family.
    #[error(
        "the kernel can put no such queue rule in place: it needs nft_queue (modprobe nft_queue), \
         or, but not in the bridge family, nft_compat with xt_NFQUEUE"
    )]
    NoRuleSupport,
    /// The kernel has no `ct` expression of nft, or none that knows connection marks; for the
    /// bridge family, no connection tracking there.
    #[error(
        "the kernel cannot remember decisions about flows: it has no nft_ct with connection marks \
         (and for the bridge family nf_conntrack_bridge); load it (modprobe nft_ct) or leave the \
         flow bypass out"
    )]
    NoFlowSupport,
    /// The kernel refused for another reason.
    #[error(
        "{operation}{}: the kernel refused with {errno}{}",
        number(*queue),
        text(explanation.as_ref())
    )]
    #[non_exhaustive]
    Refused {
        /// What was refused.
        operation: Operation,
        /// The queue number, if it was about one. Of several, those before it are done; if they
        /// were to be bound, none is.
        queue: Option<u16>,
        /// The kernel's reason.
        errno: Errno,
        /// The kernel's explanation, where it gave one.
        explanation: Option<String>,
    },
    /// The kernel's answer did not come. It is lost when the socket's receive buffer is full of
    /// packets.
    #[error(
        "{operation}{}: no answer from the kernel within {waited:?}; the receive buffer was full \
         or the kernel is very busy, receive what waits and try again",
        number(*queue)
    )]
    #[non_exhaustive]
    AckTimeout {
        /// What was asked.
        operation: Operation,
        /// The queue number, if it was about one. Of several, those before it are done; if they
        /// were to be bound, none is.
        queue: Option<u16>,
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
    Encode(EncodeError),
    /// A packet cannot be edited. Only from the conversion of an [`EditError`], for programs that
    /// do not tell them apart.
    #[error("editing a packet: {0}")]
    Edit(EditError),
    /// A rule cannot be expressed.
    #[error("{} cannot be made: {reason}", rule_at(*rule))]
    #[non_exhaustive]
    InvalidRule {
        /// Which of the rules, from 0; `None` if it is all of them.
        rule: Option<usize>,
        /// Why.
        reason: &'static str,
    },
    /// A system call failed.
    #[error("{operation}: {call}: {error}")]
    #[non_exhaustive]
    System {
        /// What was being done.
        operation: Operation,
        /// The system call.
        call: &'static str,
        /// Its error.
        error: io::Error,
    },
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn number(queue: Option<u16>) -> String {
    queue.map(|queue| format!(" (number {queue})")).unwrap_or_default()
}

fn rule_at(place: Option<usize>) -> String {
    place.map_or_else(|| "the rules".to_owned(), |place| format!("rule {}", place + 1))
}

fn text(explanation: Option<&String>) -> String {
    explanation.map(|text| format!(" ({text})")).unwrap_or_default()
}

impl Error {
    /// What the standard library calls such an error: `WouldBlock` and `TimedOut` for event loops,
    /// `PermissionDenied` without the capability, that of the system for a failed call.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::WouldBlock => io::ErrorKind::WouldBlock,
            Self::AckTimeout { .. } | Self::Expired => io::ErrorKind::TimedOut,
            Self::QueueTaken { .. } => io::ErrorKind::AddrInUse,
            Self::NoCapability { .. } => io::ErrorKind::PermissionDenied,
            Self::NoQueueSupport
            | Self::FlagsRefused { .. }
            | Self::NoRuleSupport
            | Self::NoFlowSupport => io::ErrorKind::Unsupported,
            Self::Stopped => io::ErrorKind::Other,
            Self::Closed => io::ErrorKind::NotConnected,
            Self::InvalidQueue(_) | Self::InvalidRule { .. } | Self::Encode(_) | Self::Edit(_) => {
                io::ErrorKind::InvalidInput
            }
            Self::Refused { errno, .. } => io::Error::from(*errno).kind(),
            Self::System { error, .. } => error.kind(),
        }
    }

    /// For use with `map_err`: wraps the error of a system call.
    pub(crate) fn system<E: Into<io::Error>>(
        operation: Operation,
        call: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |error| Self::System { operation, call, error: error.into() }
    }

    /// A rule, or rules, that cannot be expressed.
    #[cfg(feature = "rules")]
    pub(crate) const fn invalid_rules(reason: &'static str) -> Self {
        Self::InvalidRule { rule: None, reason }
    }

    /// Whether the same call may succeed a little later, when the kernel has memory again.
    pub(crate) fn is_want_of_memory(&self) -> bool {
        let Self::System { error, .. } = self else { return false };
        let errno = error.raw_os_error().map(Errno);
        matches!(errno, Some(Errno::ENOBUFS | Errno::ENOMEM))
    }
}

impl From<EditError> for Error {
    fn from(error: EditError) -> Self {
        Self::Edit(error)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
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
        "only {copied} of the packet's {full} bytes were copied, so sending it back would cut it; \
         {}",
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
        "a checksum that the kernel has yet to finish lies deeper in the packet and would stay \
         unfinished; turn GSO off to edit it"
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every error with what its text must tell: the operation or the object, and the remedy.
    fn errors() -> Vec<(Error, io::ErrorKind, &'static [&'static str])> {
        use io::ErrorKind as Kind;
        let errno = Errno::ENOMEM;
        let (operation, waited) = (Operation::Configure, Duration::from_secs(2));
        let explanation = Some("no room".to_owned());
        let error = io::Error::from(nix::errno::Errno::ENOTCONN);
        let (queue, rule) = (Some(7), Some(2));
        let too_long = EncodeError::TooLong { attribute: "NFQA_PAYLOAD", len: 70_000, max: 65_531 };
        vec![
            (Error::QueueTaken { queue: 7 }, Kind::AddrInUse, &["queue 7", "another number"]),
            (
                Error::NoCapability { operation: Operation::Bind },
                Kind::PermissionDenied,
                &["binding the queue", "CAP_NET_ADMIN", "setcap", "run as root"],
            ),
            (Error::NoQueueSupport, Kind::Unsupported, &["modprobe nfnetlink_queue"]),
            (
                Error::FlagsRefused { queue: 7, flags: ConfigFlags::CONNTRACK },
                Kind::Unsupported,
                &["queue 7", "NFQA_CFG_F_CONNTRACK", "leave the option out"],
            ),
            (Error::NoRuleSupport, Kind::Unsupported, &["modprobe nft_queue", "xt_NFQUEUE"]),
            (Error::NoFlowSupport, Kind::Unsupported, &["flow bypass", "nft_ct"]),
            (
                Error::Refused { operation, queue, errno, explanation },
                Kind::OutOfMemory,
                &["configuring the queue (number 7)", "ENOMEM", "(no room)"],
            ),
            (
                Error::AckTimeout { operation, queue: None, waited },
                Kind::TimedOut,
                &["configuring the queue: no answer", "2s", "try again"],
            ),
            (Error::WouldBlock, Kind::WouldBlock, &["no packet waits"]),
            (Error::Stopped, Kind::Other, &["told to stop"]),
            (Error::Closed, Kind::NotConnected, &["closed", "drops"]),
            (Error::Expired, Kind::TimedOut, &["deadline", "default verdict"]),
            (Error::InvalidQueue("no number"), Kind::InvalidInput, &["the queue", "no number"]),
            (Error::Encode(too_long), Kind::InvalidInput, &["writing a verdict", "70000"]),
            (EditError::Empty.into(), Kind::InvalidInput, &["editing a packet", "Verdict::Drop"]),
            (
                Error::InvalidRule { rule, reason: "no port" },
                Kind::InvalidInput,
                &["rule 3 cannot", "no port"],
            ),
            (
                Error::InvalidRule { rule: None, reason: "no rule" },
                Kind::InvalidInput,
                &["the rules cannot", "no rule"],
            ),
            (
                Error::System { operation: Operation::Receive, call: "recvmmsg", error },
                Kind::NotConnected,
                &["receiving packets", "recvmmsg", "not connected"],
            ),
        ]
    }

    #[test]
    fn messages_name_the_operation_and_the_remedy() {
        for (error, _, expected) in errors() {
            let text = error.to_string();
            assert_eq!(format!("{error:?}"), text, "for those who return it from main");
            // It is in the text already.
            assert!(std::error::Error::source(&error).is_none(), "{text}");
            for part in expected {
                assert!(text.contains(part), "{part:?} is not in: {text}");
            }
        }
        let truncated = EditError::Truncated { copied: 20, full: 29 }.to_string();
        assert!(truncated.contains("20 of the packet's 29") && truncated.contains("copy range"));
        assert!(EditError::NotCopied.to_string().contains("copy mode PACKET"));
        assert!(EditError::Empty.to_string().contains("Verdict::Drop"));
        for error in [
            EditError::UdpSuperPacket,
            EditError::ShorterSuperPacket,
            EditError::UnfinishedChecksum,
        ] {
            assert!(error.to_string().contains("turn GSO off"), "{error}");
        }
        let length = EditError::L2HeaderLength { len: 12, present: 14 }.to_string();
        assert!(length.contains("12") && length.contains("14"));
        assert!(EditError::NotBridged.to_string().contains("bridge"));
        assert!(
            EditError::TooLong { len: 70_000, max: 65_531 }.to_string().contains("at most 65531")
        );
    }

    #[test]
    fn io_errors_have_a_fitting_kind() {
        for (error, kind, _) in errors() {
            let text = error.to_string();
            let error = io::Error::from(error);
            assert_eq!(error.kind(), kind, "{text}");
            assert_eq!(error.to_string(), text);
            let inner = error.into_inner().expect("the error is inside");
            assert!(inner.is::<Error>(), "{inner}");
        }
    }
}
