//! A program under test: started in the namespace of the calling thread, ended by a signal.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long something that must happen is waited for.
pub const SOON: Duration = Duration::from_secs(10);

/// A running program. It is killed if the test fails.
pub struct Program {
    child: Child,
    stdout: Output,
    stderr: Output,
}

/// What a program has left.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Where a program lies: in the folder `NETFILTERQUEUE_PROGRAMS` if that is set, for machines that
/// the tests were not built on.
fn here(path: &str) -> PathBuf {
    let path = Path::new(path);
    match (std::env::var_os("NETFILTERQUEUE_PROGRAMS"), path.file_name()) {
        (Some(folder), Some(name)) => Path::new(&folder).join(name),
        _ => path.to_owned(),
    }
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
        let mut child = Command::new(here(path))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdout = Output::of(child.stdout.take().expect("a pipe"));
        let stderr = Output::of(child.stderr.take().expect("a pipe"));
        Self { child, stdout, stderr }
    }

    /// Waits until a new line of its standard error contains a text, and returns it.
    pub fn wait_for(&mut self, text: &str) -> &str {
        self.stderr.wait_for(text)
    }

    /// Waits until a new line of its standard output contains a text, and returns it.
    pub fn wait_for_output(&mut self, text: &str) -> &str {
        self.stdout.wait_for(text)
    }

    /// Does once what Ctrl-C does, and does not wait.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
    }

    /// Does something while the program stands still, which then finds all of it at once.
    pub fn at_once(&self, act: impl FnOnce()) {
        self.signal(Signal::SIGSTOP);
        let pid = Pid::from_raw(self.child.id() as i32);
        let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("a child");
        assert_eq!(status, WaitStatus::Stopped(pid, Signal::SIGSTOP));
        act();
        self.signal(Signal::SIGCONT);
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Ends it as Ctrl-C does, and waits for its end.
    pub fn interrupt(self) -> Ended {
        self.signal(Signal::SIGINT);
        self.ended()
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Ended {
        let until = Instant::now() + SOON;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < until, "it does not end; it said {:?}", self.stderr.said);
            thread::sleep(Duration::from_millis(2));
        };
        Ended { status, stdout: self.stdout.rest(), stderr: self.stderr.rest() }
    }
}

impl Ended {
    /// The program has ended well.
    #[track_caller]
    pub fn well(self) -> Self {
        assert!(self.status.success(), "{self:?}");
        self
    }

    /// The number before a word of the standard output: 3 of `3 lost, 5 delayed` for `lost`.
    #[track_caller]
    pub fn count(&self, word: &str) -> u64 {
        count(&self.stdout, word).unwrap_or_else(|| panic!("no number of {word}: {self:?}"))
    }
}

/// The last number before a word.
pub fn count(text: &str, word: &str) -> Option<u64> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let plain = |word: &str| word.trim_end_matches([',', ';', '.', ':']).to_owned();
    let mut pairs = words.windows(2).rev().filter(|pair| plain(pair[1]) == word);
    pairs.find_map(|pair| pair[0].parse().ok())
}

/// How many bytes wait unread in each netfilter socket of this namespace.
pub fn unread_in_sockets() -> Vec<u64> {
    const NETLINK_NETFILTER: &str = "12";
    let table = std::fs::read_to_string("/proc/thread-self/net/netlink").expect("a table");
    let rows = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let sockets = rows.filter(|row| row[1] == NETLINK_NETFILTER);
    sockets.map(|row| row[4].parse().expect("a number")).collect()
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program writes, line by line as it comes.
struct Output {
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Output {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let (line, lines) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(pipe).split(b'\n').map_while(Result::ok);
            // Nobody listens to a program whose test has failed.
            lines
                .map(|line| String::from_utf8_lossy(&line).into_owned())
                .try_for_each(|text| line.send(text))
        });
        Self { lines, said: Vec::new() }
    }

    fn wait_for(&mut self, text: &str) -> &str {
        let until = Instant::now() + SOON;
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(rest) {
                Ok(line) => self.said.push(line),
                Err(error) => panic!("{text:?} was not said ({error}), but: {:?}", self.said),
            }
            if self.said.last().is_some_and(|line| line.contains(text)) {
                return self.said.last().expect("just pushed");
            }
        }
    }

    /// Everything, once it has ended.
    fn rest(&mut self) -> String {
        self.said.extend(self.lines.iter());
        self.said.join("\n")
    }
}
