//! What the program takes of the machine, and what the kernel has counted as lost.

use std::fs;
use std::io;

use netfilterqueue::StatsHandle;

use crate::plan::QUEUES;

/// What the process takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    /// Resident memory, in KiB.
    pub(crate) memory: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
}

impl Resources {
    pub(crate) fn read() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let descriptors = fs::read_dir("/proc/self/fd")?.count() as u64;
        Ok(Self { memory: of("VmRSS:"), descriptors, threads: of("Threads:") })
    }
}

/// Packets that the kernel has thrown away and counted, by where that was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// A queue was full.
    pub(crate) queue: u64,
    /// A queue's socket was full.
    pub(crate) socket: u64,
    /// A receiver of datagrams was full.
    pub(crate) receiver: u64,
    /// The loopback device was full.
    pub(crate) device: u64,
    /// Not a loss like the others, because a full buffer is no reason for it: datagrams that a
    /// receiver did not take because their checksum was wrong.
    pub(crate) checksum: u64,
}

impl Losses {
    /// Of this process's network namespace.
    pub(crate) fn read(queues: &[StatsHandle; QUEUES.len()]) -> io::Result<Self> {
        let mut losses = Self::default();
        for queue in queues {
            let stats = queue.stats();
            // Root may read them, mostly.
            match queue.kernel_stats() {
                Ok(rows) => {
                    losses.queue +=
                        rows.iter().map(|row| u64::from(row.queue_dropped)).sum::<u64>();
                    losses.socket +=
                        rows.iter().map(|row| u64::from(row.user_dropped)).sum::<u64>();
                }
                Err(_) => losses.socket += stats.lost,
            }
        }
        let v4 = udp_counters(&fs::read_to_string("/proc/self/net/snmp")?);
        let v6 = fs::read_to_string("/proc/self/net/snmp6").unwrap_or_default();
        for (name, value) in v4.iter().map(|(name, value)| (name.as_str(), *value)).chain(
            v6.lines().filter_map(|line| {
                let (name, value) = line.split_once(char::is_whitespace)?;
                Some((name.strip_prefix("Udp6")?, value.trim().parse().ok()?))
            }),
        ) {
            match name {
                "RcvbufErrors" => losses.receiver += value,
                "InCsumErrors" => losses.checksum += value,
                _ => {}
            }
        }
        losses.device = device_drops(&fs::read_to_string("/proc/self/net/dev")?);
        Ok(losses)
    }

    pub(crate) const fn total(&self) -> u64 {
        self.queue + self.socket + self.receiver + self.device
    }
}

/// The names and values of `/proc/net/snmp`'s two lines about UDP.
fn udp_counters(table: &str) -> Vec<(String, u64)> {
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let values = values.split_whitespace().map(|value| value.parse().unwrap_or(0));
    names.split_whitespace().map(str::to_owned).zip(values).collect()
}

/// What the loopback device has thrown away of what it had to receive.
fn device_drops(table: &str) -> u64 {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix("lo:"));
    line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok()).unwrap_or(0)
}

/// The kernel's release and the processors, for the result.
pub(crate) fn machine() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<_> = processors
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, model)| model.trim())
        .collect();
    let series = release.trim().split('-').next().unwrap_or_default().to_owned();
    let model = models.first().copied().unwrap_or("processor");
    format!("{} x {model}, Linux {series}", models.len().max(1))
}
