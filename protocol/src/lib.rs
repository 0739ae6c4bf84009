#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
// Each public type decides whether more may come.
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod ack;
pub mod attribute;
mod bits;
pub mod config;
pub mod conntrack;
pub mod constants;
pub mod error;
#[cfg(feature = "interop")]
#[cfg_attr(docsrs, doc(cfg(feature = "interop")))]
pub mod interop;
pub mod message;
pub mod packet;
pub mod verdict;

pub use error::{EncodeError, ParseError};
