// The links of README.md, as they are here. It has some of its own at its end, for where it is read
// as a file; the first ones count.
#![doc = "[guide]: docs::guide"]
#![doc = "[how]: docs::guide::how_it_works"]
#![doc = "[settings]: docs::guide::settings"]
#![doc = "[gso]: docs::guide::gso"]
#![doc = "[fail-open]: docs::guide::fail_open_or_closed"]
#![doc = "[editing]: docs::guide::editing"]
#![doc = "[retaining]: docs::guide::retaining"]
#![doc = "[throughput]: docs::guide::throughput"]
#![doc = "[several-queues]: docs::guide::several_queues"]
#![doc = "[containers]: docs::guide::containers"]
#![doc = "[namespaces]: docs::guide::namespaces"]
#![doc = "[troubleshooting]: docs::guide::troubleshooting"]
#![doc = "[rules]: rules"]
#![doc = "[recipes]: docs::recipes"]
#![doc = "[from-python]: docs::from_python_netfilterqueue"]
#![doc = "[from-nfq]: docs::from_nfq"]
#![doc = "[from-go]: docs::from_go_nfqueue"]
#![doc = "[from-c]: docs::from_libnetfilter_queue"]
//!
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
// Each public type decides whether more may come.
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod access;
#[cfg(feature = "tokio")]
mod async_queue;
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
mod errno;
mod error;
mod fanout;
mod flow;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
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
mod retention;
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
mod verdicts;

pub use netfilterqueue_protocol as protocol;
pub use netfilterqueue_protocol::attribute::Attribute;
pub use netfilterqueue_protocol::config::{ConfigFlags, CopyMode, FlagChange};
pub use netfilterqueue_protocol::conntrack;
pub use netfilterqueue_protocol::error::EncodeError;
pub use netfilterqueue_protocol::packet::{PacketMessage, SkbInfo, Timestamp, Vlan};
pub use netfilterqueue_protocol::verdict::Verdict;

#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub use async_queue::AsyncQueue;
pub use batch::{Batch, Packets};
pub use binding::StatsHandle;
pub use builder::{QueueBuilder, QueueNumbers};
pub use edit::EditMode;
pub use errno::Errno;
pub use error::{EditError, Error, Operation};
pub use fanout::Fanout;
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
    send::<Fanout>();
    send::<Batch>();
    send::<Packet<'_>>();
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
    #[cfg(feature = "rules")]
    sync::<rules::InstalledRules>();
    #[cfg(feature = "tokio")]
    send::<AsyncQueue>();
};
