#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod access;
mod batch;
mod binding;
mod builder;
mod changes;
pub mod checksum;
mod control;
mod deadlines;
mod display;
#[cfg(any(doc, doctest))]
pub mod docs;
mod edit;
mod error;
mod flow;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "tokio")]
mod held;
mod hook;
mod intake;
mod interfaces;
#[cfg(all(test, loom))]
mod interleavings;
mod ip;
mod namespace;
mod packet;
mod queue;
mod receive;
mod retained;
#[cfg(feature = "rules")]
#[cfg_attr(docsrs, doc(cfg(feature = "rules")))]
pub mod rules;
mod run;
#[cfg(any(test, fuzzing))]
mod sample;
mod slot;
mod slots;
mod socket;
mod stats;
mod stop;
mod sweep;
mod sync;
#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub mod tokio;
mod verdicts;

pub use netfilterqueue_protocol as protocol;
pub use netfilterqueue_protocol::config::{ConfigFlags, CopyMode, FlagChange};
pub use netfilterqueue_protocol::conntrack;
pub use netfilterqueue_protocol::packet::{SkbInfo, Timestamp, Vlan};
pub use netfilterqueue_protocol::verdict::Verdict;
/// The kernel's error numbers, as [`Error`] and [`Refusal`] carry them.
pub use nix::errno::Errno;

pub use batch::{Batch, Packets};
pub use binding::StatsHandle;
pub use builder::{QueueBuilder, QueueNumbers};
pub use edit::EditMode;
pub use error::{EditError, Error, Operation};
pub use flow::{FlowBypass, FlowMarks};
pub use hook::{Family, Hook, UnknownName};
pub use ip::Protocol;
pub use namespace::Namespace;
pub use packet::{Decided, Packet};
pub use queue::Queue;
pub use retained::{NotSent, RetainedPacket};
pub use socket::open_socket;
pub use stats::{KernelStats, Refusal, Stats};
pub use stop::StopHandle;

/// What may move to another thread, and what may be used by several.
const _: () = {
    const fn send<T: Send>() {}
    const fn sync<T: Sync>() {}
    send::<Queue>();
    send::<Batch>();
    send::<RetainedPacket>();
    sync::<RetainedPacket>();
    send::<StopHandle>();
    sync::<StopHandle>();
    send::<StatsHandle>();
    sync::<StatsHandle>();
    send::<Namespace>();
    sync::<Namespace>();
    send::<Error>();
    sync::<Error>();
    #[cfg(feature = "rules")]
    send::<rules::InstalledRules>();
    #[cfg(feature = "tokio")]
    send::<tokio::AsyncQueue>();
};
