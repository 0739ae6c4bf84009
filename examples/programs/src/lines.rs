//! Lines on standard output, until nobody reads them any more, and on standard error in any case.

use std::fmt::Display;
use std::io::{self, Write};

use netfilterqueue::StopHandle;

/// Tells something on standard error. That nobody is there to read it, as behind `2>&1 | head` or
/// when the terminal is gone, is no reason to fail: `eprintln!` would panic.
pub fn tell(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints lines. When standard output is closed, as by `| head`, the program ends as by Ctrl-C, and
/// not in a panic with packets in its hands.
#[derive(Debug)]
pub struct Lines {
    stop: StopHandle,
}

impl Lines {
    /// Of a program that this handle stops.
    #[must_use]
    pub const fn new(stop: StopHandle) -> Self {
        Self { stop }
    }

    /// Prints a line.
    pub fn print(&self, line: impl Display) {
        if writeln!(io::stdout(), "{line}").is_err() {
            self.stop.stop();
        }
    }
}
