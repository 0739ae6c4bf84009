//! The machine that measures, without its name.

use std::fs;
use std::process::Command;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, getpid};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
    pub rustc: String,
    /// The day of the measurement, `YYYY-MM-DD`, in universal time.
    pub date: String,
    /// Whether receive buffers of any size were to be had.
    pub is_root: bool,
}

impl Machine {
    pub fn here(is_root: bool) -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: cpu_model(),
            cpus: cpus().len(),
            kernel: format!("Linux {}", release.trim()),
            rustc: output("rustc", &["--version"]),
            date: output("date", &["-u", "+%F"]),
            is_root,
        }
    }

    /// What result files are named by, in place of a host.
    pub fn file_name(&self) -> String {
        let words = self.cpu.split(|letter: char| !letter.is_ascii_alphanumeric());
        let words = words.filter(|word| !word.is_empty()).map(str::to_lowercase);
        format!("{}-{}", self.date, words.collect::<Vec<_>>().join("-"))
    }
}

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    // Arm tells numbers instead of a name.
    model("model name").or_else(|| model("Model")).unwrap_or_else(|| std::env::consts::ARCH.into())
}

/// The commit that was built, marked if something in it was changed since.
pub fn commit() -> String {
    let folder = env!("CARGO_MANIFEST_DIR");
    output("git", &["-C", folder, "describe", "--always", "--dirty", "--exclude=*"])
}

fn output(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

/// The processors that this process may use: those of its first thread, which is never pinned.
pub fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(getpid()).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect()
}

/// Where a thread runs. Processes that it starts run there, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The processor of whoever judges packets.
    Consumer,
    /// The one of whoever sends them: another, if there is one.
    Generator,
    /// Wherever the system puts it.
    Anywhere,
}

impl Place {
    /// Moves the calling thread there, as far as the machine has the processors.
    pub fn enter(self) {
        let cpus = cpus();
        let cpu = match self {
            Self::Anywhere => return,
            Self::Consumer => cpus.first(),
            Self::Generator => generator(&cpus),
        };
        let mut set = CpuSet::new();
        if let Some(cpu) = cpu
            && set.set(*cpu).is_ok()
        {
            // Only a wish: a container may forbid it, and the measurement is still one.
            let _ = sched_setaffinity(Pid::from_raw(0), &set);
        }
    }
}

/// The first processor that shares no core with the consumer's, where the kernel tells it, else the
/// second: two threads of one core slow each other down.
fn generator(cpus: &[usize]) -> Option<&usize> {
    let core = |cpu: &usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        fs::read_to_string(path).ok()
    };
    let consumers = cpus.first().and_then(core);
    let rest = cpus.get(1..)?;
    let is_other = |cpu: &&usize| matches!((core(cpu), &consumers), (Some(a), Some(b)) if a != *b);
    rest.iter().find(is_other).or_else(|| rest.first())
}
