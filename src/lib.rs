//! x
#![forbid(unsafe_code)]
mod error;
mod socket;
pub use error::{EditError, Error, Operation};
