//! What the programs have in common: their options, their rule, their end.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::cast_precision_loss, clippy::cast_possible_truncation)
)]

mod domains;
mod lines;
mod options;
mod packets;
mod session;
mod transport;

pub use domains::{Domain, Domains, InvalidDomain, Lists};
pub use lines::{Lines, tell};
pub use options::{Options, Selection, amount, mark};
pub use packets::{Endpoint, Flow, HEADERS};
pub use session::{Session, Work};
pub use transport::Segment;

use std::error::Error;
use std::io;
use std::process::ExitCode;

use clap::Parser;

/// The main function of a program: reads its arguments, runs it, and tells errors in one line. That
/// nobody reads what it prints any more (`| head`) is an end, and not an error.
pub fn main<A: Parser>(run: impl FnOnce(A) -> Result<(), Box<dyn Error>>) -> ExitCode {
    let program = env!("CARGO_PKG_NAME");
    let name = std::env::args_os().next();
    let name = name.as_deref().map(std::path::Path::new).and_then(std::path::Path::file_name);
    let name = name.map_or_else(|| program.into(), std::ffi::OsStr::to_string_lossy);
    match run(A::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            tell(format_args!("{name}: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
