//! The wire format of the Linux kernel's `nfnetlink_queue`, without I/O.
//!
//! One file per kernel message:
//!
//! | message | direction | type |
//! | --- | --- | --- |
//! | `NFQNL_MSG_PACKET` | from the kernel | [`packet::PacketMessage`] |
//! | `NFQNL_MSG_VERDICT` | to the kernel | [`verdict::VerdictMessage`] |
//! | `NFQNL_MSG_VERDICT_BATCH` | to the kernel | [`verdict::VerdictBatchMessage`] |
//! | `NFQNL_MSG_CONFIG` | to the kernel | [`config::ConfigMessage`] |
//! | `NLMSG_ERROR` | from the kernel | [`message::Ack`] |
//!
//! A datagram, byte for byte:
//!
//! ```text
//! ┌ struct nlmsghdr ┬ struct nfgenmsg ┬ struct nlattr ┬ value ┬ pad ┬ struct nlattr ┬ …
//! │ 16, host order  │ 4               │ 4, host order │ n     │ 0–3 │               │
//! └─────────────────┴─────────────────┴───────────────┴───────┴─────┴───────────────┴ …
//! ```
//!
//! **Contract of the views.** Parsing checks every length once. After that no accessor panics,
//! whatever the bytes; what is absent is `None`. Nothing is copied and nothing is allocated.
//! Unknown attributes are data: they are kept and found by number.
//!
//! **Contract of the encoders.** They append to a buffer of the caller's, write every byte of what
//! they append, and patch their own lengths.
//!
//! ```
//! use netfilterqueue_protocol::message::Message;
//! use netfilterqueue_protocol::verdict::{Verdict, VerdictMessage};
//!
//! let mut datagram = Vec::new();
//! let verdict = VerdictMessage { mark: Some(7), ..VerdictMessage::new(1, 42, Verdict::Accept) };
//! verdict.push(&mut datagram)?;
//! let message = Message::parse(&datagram)?;
//! assert_eq!(VerdictMessage::parse(message)?, verdict);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The messages also implement the traits of netlink-packet-core (module [`interop`]), so other
//! rust-netlink code can send and parse them.
//!
//! Feature `conntrack`, off by default: the full conntrack tree of a packet as the crate
//! netlink-packet-netfilter has it (`conntrack::Conntrack::to_attributes`).
//!
//! Most programs want the crate `netfilterqueue`, which owns the socket and gives every packet its
//! verdict.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod attribute;
mod bits;
pub mod config;
pub mod conntrack;
pub mod constants;
pub mod error;
pub mod interop;
pub mod message;
pub mod packet;
pub mod verdict;

pub use error::{EncodeError, ParseError};
