//! A program under test: started in the namespace of the calling thread, ended by a signal.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long something that must happen is waited for.
pub const SOON: Duration = Duration::from_secs(10);

/// A running program. It is killed if the test fails.
pub struct Program {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Receiver<String>,
    said: Vec<String>,
}

/// What a program has left.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Program {
    /// Starts the program at `path`, as `env!("CARGO_BIN_EXE_name")` gives it, and waits until its
    /// queue is bound and its rule installed.
    pub fn start(path: &str, arguments: &[&str]) -> Self {
        let mut program = Self::spawn(path, arguments);
        program.wait_for("is bound");
        program
    }

    /// Starts a program without waiting.
    pub fn spawn(path: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(path)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdout = child.stdout.take().expect("a pipe");
        let stdout = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).expect("text");
            text
        });
        let errors = BufReader::new(child.stderr.take().expect("a pipe"));
        let (line, stderr) = mpsc::channel();
        thread::spawn(move || errors.lines().map_while(Result::ok).try_for_each(|l| line.send(l)));
        Self { child, stdout: Some(stdout), stderr, said: Vec::new() }
    }

    /// Waits until a line of its standard error contains a text.
    pub fn wait_for(&mut self, text: &str) {
        let until = Instant::now() + SOON;
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            match self.stderr.recv_timeout(rest) {
                Ok(line) => self.said.push(line),
                Err(error) => panic!("{text:?} was not said ({error}), but: {:?}", self.said),
            }
            if self.said.last().is_some_and(|line| line.contains(text)) {
                return;
            }
        }
    }

    /// Ends it as Ctrl-C does, and waits for its end.
    pub fn interrupt(self) -> Ended {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).expect("it runs");
        self.ended()
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Ended {
        let until = Instant::now() + SOON;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < until, "it does not end; it said {:?}", self.said);
            thread::sleep(Duration::from_millis(2));
        };
        let stdout = self.stdout.take().expect("once").join().expect("text");
        self.said.extend(self.stderr.iter());
        Ended { status, stdout, stderr: self.said.join("\n") }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
