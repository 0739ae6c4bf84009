//! Contenders: which there are, and one as a process in a network namespace.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use netfilterqueue_netns::Namespace;
use serde::{Deserialize, Serialize};

use crate::machine::{self, Place};

/// The first queue number that a contender is told.
pub const QUEUE: u16 = 1;

/// How long a contender may take to start.
const START: Duration = Duration::from_secs(20);

/// How long it may take to judge a backlog.
const JUDGE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
pub struct Contender {
    pub name: String,
    pub version: String,
    /// The program and its arguments.
    pub command: Vec<String>,
}

impl Contender {
    /// The library by another door of its contender.
    pub fn by_door(&self, name: &str, door: &str) -> Self {
        let mut other = Self { name: name.to_owned(), ..self.clone() };
        if let Some(last) = other.command.last_mut() {
            door.clone_into(last);
        }
        other
    }

    /// The library and the limit, whose fastest settings are the default ones.
    pub fn is_built_in(&self) -> bool {
        self.name.starts_with("ours") || self.name.starts_with("limit")
    }
}

/// One that could not be built or installed here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Missing {
    pub name: String,
    pub reason: String,
}

/// Ours and the limit, which lie beside this program, and those of the manifest.
pub fn all(manifest: Option<&Path>) -> Result<(Vec<Contender>, Vec<Missing>)> {
    let program = std::env::current_exe().context("finding this program")?;
    let beside = |name: &str, arguments: &[&str]| {
        let path = program.with_file_name(name).display().to_string();
        let arguments = arguments.iter().map(|word| word.to_string());
        [path].into_iter().chain(arguments).collect::<Vec<_>>()
    };
    let version = format!("commit {}", machine::commit());
    let built_in = |name: &str, command| Contender {
        name: name.to_owned(),
        version: version.clone(),
        command,
    };
    let mut contenders = vec![
        built_in("limit", beside("limit", &[])),
        built_in("ours", beside("ours", &["--door", "run"])),
        built_in("ours, batch", beside("ours", &["--door", "batch"])),
    ];
    let mut missing = Vec::new();
    let text = match manifest {
        Some(path) => fs::read_to_string(path).context("reading the manifest of contenders")?,
        None => String::new(),
    };
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let fields: Vec<_> = line.split('\t').map(str::to_owned).collect();
        match fields.as_slice() {
            [name, word, reason] if word == "missing" => {
                missing.push(Missing { name: name.clone(), reason: reason.clone() });
            }
            [name, version, command @ ..] if !command.is_empty() => contenders.push(Contender {
                name: name.clone(),
                version: version.clone(),
                command: match command {
                    [line] => line.split_whitespace().map(str::to_owned).collect(),
                    words => words.to_vec(),
                },
            }),
            _ => bail!("the manifest has a line that is none: {line}"),
        }
    }
    Ok((contenders, missing))
}

/// What a contender is told to do.
#[derive(Debug, Clone, Copy)]
pub struct Orders<'a> {
    pub task: &'a str,
    pub settings: &'a str,
    pub queues: u16,
    /// The receive buffer to ask for, in bytes.
    pub buffer: Option<usize>,
    pub place: Place,
}

/// Why there is no figure, which is nobody's failure.
#[derive(Debug)]
pub struct Unsupported(pub String);

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Unsupported {}

/// A contender that runs. Ends with this.
pub struct Process {
    name: String,
    child: Child,
    orders: ChildStdin,
    lines: Receiver<String>,
}

/// What it says of a backlog that it judged.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    pub time: Duration,
    pub calls: Option<u64>,
}

/// Resident memory in KiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub now: u64,
    pub peak: u64,
}

impl Process {
    /// Starts it in the namespace and waits until its queues are bound.
    pub fn start(contender: &Contender, namespace: &Namespace, orders: Orders<'_>) -> Result<Self> {
        let (program, arguments) = contender.command.split_first().context("an empty command")?;
        let mut command = Command::new(program);
        command.args(arguments).args(["--queue", &QUEUE.to_string()]);
        command.args(["--queues", &orders.queues.to_string(), "--task", orders.task]);
        command.args(["--settings", orders.settings]);
        if let Some(bytes) = orders.buffer {
            command.args(["--buffer", &bytes.to_string()]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // It inherits both from the thread that starts it.
        let mut child = namespace
            .run(|| {
                orders.place.enter();
                command.spawn()
            })
            .with_context(|| format!("starting {}", contender.name))?;
        let (said, lines) = mpsc::channel();
        let stdout = child.stdout.take().context("no pipe")?;
        let orders = child.stdin.take().context("no pipe")?;
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if said.send(line).is_err() {
                    return;
                }
            }
        });
        let process = Self { name: contender.name.clone(), child, orders, lines };
        match process.hear(START)?.as_str() {
            "ready" => Ok(process),
            line => match line.strip_prefix("unsupported") {
                Some(reason) => Err(anyhow!(Unsupported(reason.trim().to_owned()))),
                None => bail!("{} said {line:?} instead of being ready", process.name),
            },
        }
    }

    /// Has it judge so many packets, and waits for the end of that.
    pub fn judge(&mut self, packets: usize) -> Result<Done> {
        let start = Instant::now();
        self.say(&format!("judge {packets}"))?;
        let line = self.hear(JUDGE)?;
        let elapsed = start.elapsed();
        let mut words = line.split_whitespace();
        let (Some("done"), Some(time)) = (words.next(), words.next()) else {
            bail!("{} said {line:?} instead of being done", self.name);
        };
        let calls = words.find_map(|word| word.strip_prefix("calls="));
        let time = Duration::from_nanos(time.parse().context("reading its time")?);
        if time.is_zero() || time > elapsed {
            bail!("{} says it took {time:?}, and {elapsed:?} have passed", self.name);
        }
        Ok(Done {
            time,
            calls: calls.map(str::parse).transpose().context("reading its system calls")?,
        })
    }

    /// Has it judge everything that comes from now on.
    pub fn serve(&mut self) -> Result<()> {
        self.say("serve")
    }

    /// Its resident memory, as the kernel counts it.
    pub fn memory_kib(&self) -> Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let value = |name| value(name).with_context(|| format!("no {name}"));
        Ok(Memory { now: value("VmRSS:")?, peak: value("VmHWM:")? })
    }

    /// How long its threads have run, in user and kernel mode together. `None` where the kernel
    /// does not count that.
    pub fn cpu_time(&self) -> Option<Duration> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).ok()?;
        threads.flatten().try_fold(Duration::ZERO, |sum, thread| {
            let times = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            let time = times.split_whitespace().next()?.parse().ok()?;
            Some(sum + Duration::from_nanos(time))
        })
    }

    /// Fails if it has ended: it must not while it serves.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended: {status}", self.name),
        }
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.orders, "{line}")
            .and_then(|()| self.orders.flush())
            .with_context(|| format!("telling {} to {line}", self.name))
    }

    fn hear(&self, patience: Duration) -> Result<String> {
        self.lines.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow!("{} does not answer", self.name),
            RecvTimeoutError::Disconnected => anyhow!("{} has ended too early", self.name),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
