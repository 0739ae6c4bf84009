//! A ported program that runs: what it prints, and how it ends.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{QUIET, SOON, UdpPair};

/// How long a probe may take.
const PROBE: Duration = Duration::from_millis(100);

pub struct Port {
    child: RefCell<Child>,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

impl Port {
    /// Starts a program in the network namespace of this thread.
    pub fn start(binary: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.args(arguments).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (told, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines() {
                let _ = told.send(line.expect("text"));
            }
        });
        let mut stderr = child.stderr.take().unwrap();
        let errors = thread::spawn(move || {
            let mut errors = String::new();
            stderr.read_to_string(&mut errors).expect("text");
            errors
        });
        Self { child: RefCell::new(child), lines, errors: Some(errors) }
    }

    /// Sends probes of five bytes until one arrives, which it does only through the queue, and
    /// returns how many have.
    pub fn wait_until_bound(&self, udp: &UdpPair) -> usize {
        let deadline = Instant::now() + SOON;
        let mut buffer = [0; 16];
        udp.receiver.set_read_timeout(Some(PROBE)).unwrap();
        let mut arrived = 0;
        while arrived == 0 || Instant::now() < deadline {
            assert!(Instant::now() < deadline, "the program has no queue within {SOON:?}");
            if arrived == 0 {
                udp.send(b"probe");
            }
            match udp.receiver.recv(&mut buffer) {
                Ok(_) => arrived += 1,
                // No more of them are on their way.
                Err(_) if arrived > 0 => break,
                Err(_) => {}
            }
        }
        udp.receiver.set_read_timeout(Some(SOON)).unwrap();
        arrived
    }

    /// The next line that it prints.
    #[track_caller]
    pub fn line(&self) -> String {
        self.lines.recv_timeout(SOON).expect("it prints another line")
    }

    /// The next lines, up to and with the one that is `last`.
    #[track_caller]
    pub fn lines_until(&self, last: &str) -> Vec<String> {
        let mut lines = vec![self.line()];
        while lines.last().is_some_and(|line| line != last) {
            lines.push(self.line());
        }
        lines
    }

    /// Panics if it prints a line.
    #[track_caller]
    pub fn expect_no_line(&self) {
        match self.lines.recv_timeout(QUIET) {
            Ok(line) => panic!("it printed {line:?}"),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }

    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.child.borrow().id().cast_signed());
        kill(id, signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(&self) -> ExitStatus {
        let mut status = None;
        crate::support::wait_until("the end of the program", || {
            status = self.child.borrow_mut().try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Waits for its end, and returns what it has written to the standard error output.
    #[track_caller]
    pub fn end_with_errors(mut self) -> (ExitStatus, String) {
        let status = self.end();
        (status, self.errors.take().unwrap().join().unwrap())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        // Both say nothing of one that has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}
