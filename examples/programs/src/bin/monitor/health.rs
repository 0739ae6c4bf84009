//! How the queue is: what comes and what is lost, by its own counters and the kernel's.

use std::io;
use std::time::{Duration, Instant};

use netfilterqueue::{KernelStats, Stats, StatsHandle};

use crate::flows::per_second;

/// Counters of the queue from time to time.
#[derive(Debug)]
pub(crate) struct Watch {
    handle: StatsHandle,
    before: Stats,
    read_at: Instant,
}

/// How it stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    pub(crate) stats: Stats,
    /// Packets per second since it was last looked at.
    pub(crate) rate: u64,
    /// Losses since then, of all kinds.
    pub(crate) losing: u64,
    pub(crate) kernel: Kernel,
}

/// What the kernel says of it.
#[derive(Debug, Clone, Default)]
pub(crate) enum Kernel {
    Says(KernelStats),
    /// Its counters may be read by root alone.
    #[default]
    Silent,
}

impl Watch {
    pub(crate) fn new(handle: StatsHandle, now: Instant) -> Self {
        let before = handle.stats();
        Self { handle, before, read_at: now }
    }

    pub(crate) fn read(&mut self, now: Instant) -> Health {
        let stats = self.handle.stats();
        let elapsed = now.saturating_duration_since(self.read_at);
        let health = Health::between(&self.before, stats, elapsed, self.handle.kernel_stats());
        self.before = stats;
        self.read_at = now;
        health
    }
}

impl Health {
    fn between(
        before: &Stats,
        stats: Stats,
        elapsed: Duration,
        kernel: io::Result<Vec<KernelStats>>,
    ) -> Self {
        let losses = |stats: &Stats| stats.lost + stats.truncated + stats.malformed;
        Self {
            stats,
            rate: per_second(stats.received.saturating_sub(before.received), elapsed),
            losing: losses(&stats).saturating_sub(losses(before)),
            kernel: match kernel.map(|kernel| kernel.first().copied()) {
                Ok(Some(kernel)) => Kernel::Says(kernel),
                Ok(None) | Err(_) => Kernel::Silent,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(received: u64, lost: u64) -> Stats {
        let mut stats = Stats::default();
        (stats.received, stats.lost) = (received, lost);
        stats
    }

    #[test]
    fn rates_and_losses_are_those_since_before() {
        let kernel = KernelStats::parse("1 2 3 2 65531 5 6 7 1").unwrap();
        let second = Duration::from_secs(1);
        let health = Health::between(&stats(10, 1), stats(30, 4), 2 * second, Ok(vec![kernel]));
        assert_eq!((health.rate, health.losing), (10, 3));
        assert!(matches!(health.kernel, Kernel::Says(kernel) if kernel.queue_dropped == 5));
        let forbidden = Err(io::ErrorKind::PermissionDenied.into());
        let health = Health::between(&stats(0, 0), stats(0, 0), second, forbidden);
        assert!(matches!(health.kernel, Kernel::Silent));
    }
}
