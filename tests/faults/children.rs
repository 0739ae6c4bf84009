//! Child processes: this program once more, with a part to play in a fault. They take commands as
//! lines and answer with lines, and end with their input.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use netfilterqueue::{Decided, Packet, Queue, Stats};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getegid};

use crate::accounts::{Fate, Ledger, number};
use crate::harness::time_limit;
use crate::support::{Judging, queue_udp};

/// In the environment of a child: the part it plays.
const PART: &str = "NETFILTERQUEUE_FAULTS_PART";

/// Waits for answers; half of what a test may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A part: reads commands until its input ends.
type Part = fn() -> io::Result<()>;

/// The parts by their names.
const PARTS: [(&str, Part); 5] = [
    ("worker", worker),
    ("meddler", crate::interference::meddler),
    ("forger", crate::strangers::forger),
    ("lister", crate::processes::lister),
    ("sleeper", crate::clocks::sleeper),
];

/// Plays the part that the environment names, if any.
pub fn play() -> Option<ExitCode> {
    let name = env::var(PART).ok()?;
    // Longer than any test may take; not for ever, should the test be killed.
    thread::spawn(|| {
        thread::sleep(time_limit() + PATIENCE);
        std::process::exit(1);
    });
    // Not the tests instead, which would start it again.
    let Some((_, part)) = PARTS.iter().find(|(part, _)| *part == name) else {
        eprintln!("{PART}: {name:?} is no part");
        return Some(ExitCode::FAILURE);
    };
    Some(match part() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    })
}

/// A child in this thread's network namespace, killed in the end.
pub struct Played {
    process: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Played {
    pub fn start(part: &str) -> Self {
        Self::of(Self::spawn(part))
    }

    /// Starts the process and no thread.
    pub fn spawn(part: &str) -> Child {
        let mut command = Command::new("/proc/self/exe");
        command.env(PART, part).stdin(Stdio::piped()).stdout(Stdio::piped());
        // Its own: so that it is forked. What shares memory with this process for a moment, as the
        // quicker ways do, may not enter another time namespace.
        command.gid(getegid().as_raw());
        command.spawn().expect("a child process")
    }

    pub fn of(mut process: Child) -> Self {
        let output = BufReader::new(process.stdout.take().expect("its output"));
        let (found, lines) = channel();
        thread::spawn(move || {
            // Ends with the child.
            for line in output.lines().map_while(Result::ok) {
                let _ = found.send(line);
            }
        });
        let input = process.stdin.take();
        Self { process, input, lines }
    }

    /// Sends a command.
    pub fn tell(&mut self, command: &str) {
        let input = self.input.as_mut().expect("its input is open");
        writeln!(input, "{command}").expect("it reads");
    }

    /// Its next line; panics if none comes.
    #[track_caller]
    pub fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line of the child")
    }

    /// Sends a command and returns the answer.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.line()
    }

    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process.id()).expect("a process id");
        kill(Pid::from_raw(id), signal).expect("it can be signalled");
    }

    /// Ends its input and waits for it; returns what it has said since.
    pub fn finish(mut self) -> Vec<String> {
        self.input = None;
        let status = self.process.wait().expect("it ends");
        assert!(status.success(), "{status}");
        self.rest()
    }

    /// `SIGKILL`, and returns what it has said.
    pub fn kill(mut self) -> Vec<String> {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it ends");
        self.rest()
    }

    fn rest(&self) -> Vec<String> {
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Disconnected) => return rest,
                Err(RecvTimeoutError::Timeout) => panic!("its output stays open"),
            }
        }
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Commands, one line each.
pub fn commands() -> impl Iterator<Item = String> {
    io::stdin().lines().map_while(Result::ok)
}

pub fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

/// As `wait_until`, for what another process has to do for it, or for many packets.
#[track_caller]
pub fn wait_patiently(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// What becomes of the packets of a [`worker`].
const JUDGE: u32 = 0;
const KEEP: u32 = 1;
const STALL: u32 = 2;

/// Binds queue 1 and judges its packets. What it decides it says before the verdict is sent.
///
/// `bind MAX_LEN RECEIVE_BUFFER` comes first. `rules` queues UDP; `keep` retains every packet from
/// then on and `stall` judges none; `stats` tells the counters.
fn worker() -> io::Result<()> {
    let mut commands = commands();
    let bind = commands.next().unwrap_or_default();
    let mut sizes = bind.split(' ').skip(1).filter_map(|size| size.parse().ok());
    let (max_len, buffer) = (sizes.next().unwrap_or(1024_u32), sizes.next().unwrap_or(1 << 20));
    let builder = Queue::builder(1).max_len(max_len).receive_buffer(buffer as usize);
    let queue = match builder.bind() {
        Ok(queue) => queue,
        Err(error) => return say(&error.to_string()),
    };
    say("bound")?;
    let mode = Arc::new(AtomicU32::new(JUDGE));
    let stats = queue.stats_handle();
    let judging = {
        let mode = Arc::clone(&mode);
        let mut kept = Vec::new();
        Judging::start(queue, move |packet| {
            while mode.load(Ordering::SeqCst) == STALL {
                thread::sleep(time_limit());
            }
            if mode.load(Ordering::SeqCst) == KEEP {
                let (retained, decided) = packet.retain();
                kept.push(retained);
                return decided;
            }
            judge_aloud(packet)
        })
    };
    let mut rules = None;
    for command in commands {
        match command.as_str() {
            "rules" => {
                let installed = rules.insert(queue_udp(1));
                say(if installed.is_owned() { "owned" } else { "not owned" })?;
            }
            "keep" | "stall" => {
                let is_keep = command == "keep";
                mode.store(if is_keep { KEEP } else { STALL }, Ordering::SeqCst);
                say(&command)?;
            }
            "stats" => say(&stats_line(&stats.stats()))?,
            unknown => return Err(io::Error::other(format!("{unknown:?} is no command"))),
        }
    }
    let queue = judging.finish();
    // The rules before: without them nothing comes that nobody will judge.
    drop(rules);
    say(&stats_line(&queue.stats()))?;
    queue.close().map_err(io::Error::other)
}

fn judge_aloud(packet: Packet<'_>) -> Decided<'_> {
    let number = number(packet.payload());
    say(&format!("judged {} {number}", packet.id())).expect("somebody listens");
    packet.verdict(Fate::of(number).verdict())
}

fn stats_line(stats: &Stats) -> String {
    let Stats { received, lost, answered, held, refused, .. } = stats;
    format!("stats {received} {lost} {answered} {held} {refused}")
}

/// The counters that a [`worker`] has told: received, lost, answered, held, refused.
pub fn told_stats(line: &str) -> [u64; 5] {
    let line = line.strip_prefix("stats ").unwrap_or_else(|| panic!("no stats: {line}"));
    let numbers: Vec<_> = line.split(' ').map(|number| number.parse().expect(line)).collect();
    numbers.try_into().expect("five counters")
}

/// Enters what a [`worker`] has said it decided; other lines are returned.
pub fn note_all(ledger: &Ledger, lines: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut others = Vec::new();
    for line in lines {
        match line.strip_prefix("judged ").and_then(|judged| judged.split_once(' ')) {
            Some((id, number)) => {
                let number = number.parse().expect("a number");
                ledger.note(1, id.parse().expect("an id"), number, Fate::of(number));
            }
            None => others.push(line),
        }
    }
    others
}

impl Played {
    /// A [`worker`] with its queue bound and its rules in place. Also says whether the kernel takes
    /// the rules away with the process.
    pub fn worker(bind: &str) -> (Self, bool) {
        let mut worker = Self::start("worker");
        assert_eq!(worker.ask(bind), "bound");
        let owned = worker.ask("rules");
        assert!(["owned", "not owned"].contains(&owned.as_str()), "{owned}");
        (worker, owned == "owned")
    }

    /// Gives a worker a command and waits for the line that answers it, which begins with the
    /// command, noting what else it says.
    #[track_caller]
    pub fn order(&mut self, ledger: &Ledger, command: &str) -> String {
        self.tell(command);
        loop {
            let line = self.line();
            if line.starts_with(command) {
                return line;
            }
            assert_eq!(note_all(ledger, [line]), [""; 0]);
        }
    }

    /// The counters of a worker.
    #[track_caller]
    pub fn stats(&mut self, ledger: &Ledger) -> [u64; 5] {
        told_stats(&self.order(ledger, "stats"))
    }
}
