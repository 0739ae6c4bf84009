//! A process that lives in a namespace, for what names a namespace by one.

use std::env;
use std::io;
use std::process::{self, Child, Command, Stdio};

use crate::error::Error;
use crate::namespace::Namespace;

/// In the environment of a process that is to do nothing but live in its namespace.
const RESIDENT: &str = "NETFILTERQUEUE_NETNS_RESIDENT";

/// A process in a namespace, killed when this is dropped.
#[derive(Debug)]
pub struct Resident {
    process: Child,
}

impl Resident {
    /// Its process id: `/proc/ID/ns/net` is the namespace.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Namespace {
    /// Starts a process that lives inside: this program once more, whose main must begin with
    /// [`stay_if_resident`].
    ///
    /// # Errors
    ///
    /// [`Error::System`] if no process can be started.
    pub fn resident(&self) -> Result<Resident, Error> {
        let start = || {
            let mut command = Command::new("/proc/self/exe");
            // It ends when the pipe does: also with a parent that is killed.
            command.env(RESIDENT, "1").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()
        };
        let process = self.try_run(start)?.map_err(Error::of("starting a process inside"))?;
        Ok(Resident { process })
    }
}

/// Does not return in a process that [`Namespace::resident`] has started: it stays until its parent
/// lets it go, or ends.
pub fn stay_if_resident() {
    if env::var_os(RESIDENT).is_some() {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        process::exit(0);
    }
}
