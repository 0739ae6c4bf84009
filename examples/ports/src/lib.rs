//! Programs that were written for other libraries, ported: a binary for each, and here what they
//! have in common. The README beside this package tells what is different.

use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;
use std::str::FromStr;

/// The argument at this position, after the program's name, or `default` if there is none.
///
/// # Errors
///
/// What is wrong with it, as a sentence that names `what` it should be.
pub fn argument<T>(position: usize, what: &str, default: T) -> Result<T, Box<dyn Error>>
where
    T: FromStr<Err: Display>,
{
    match std::env::args().nth(position) {
        None => Ok(default),
        Some(text) => {
            text.parse().map_err(|error| format!("{text:?} is no {what}: {error}").into())
        }
    }
}

/// The exit code of a program; says what went wrong.
#[must_use]
pub fn exit_code(program: &str, result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::FAILURE
        }
    }
}
