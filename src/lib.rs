#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod batch;
mod binding;
mod builder;
mod control;
mod display;
mod error;
mod hook;
mod intake;
mod packet;
mod queue;
mod retained;
#[cfg(feature = "rules")]
#[cfg_attr(docsrs, doc(cfg(feature = "rules")))]
pub mod rules;
mod slot;
mod socket;
mod stats;
mod stop;
mod verdicts;

pub use netfilterqueue_protocol as protocol;
pub use netfilterqueue_protocol::config::{ConfigFlags, CopyMode, FlagChange};
pub use netfilterqueue_protocol::packet::{SkbInfo, Timestamp, Vlan};
pub use netfilterqueue_protocol::verdict::Verdict;
/// The kernel's error numbers, as [`Error`] and [`Refusal`] carry them.
pub use nix::errno::Errno;

pub use batch::{Batch, Packets};
pub use builder::QueueBuilder;
pub use error::{EditError, Error, Operation};
pub use hook::{Family, Hook};
pub use packet::{Decided, Packet};
pub use queue::Queue;
pub use retained::{NotSent, RetainedPacket};
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
    send::<Error>();
    sync::<Error>();
};
