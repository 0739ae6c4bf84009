//! What the kernel counts in a network namespace.

use std::fs;
use std::io;

use anyhow::{Context, Result};
use netfilterqueue::KernelStats;
use netfilterqueue_netns::Namespace;

/// Datagrams of the whole namespace.
#[derive(Debug, Clone, Copy)]
pub struct Datagrams {
    /// IP packets that came in, before the hook at which they are queued.
    pub arrived: u64,
    /// Those that a program has read.
    pub read: u64,
    /// Those that reached a socket whose buffer was full.
    pub overflowed: u64,
}

impl Datagrams {
    pub fn read(namespace: &Namespace) -> Result<Self> {
        // Of the thread, because that is where the namespace is.
        let text = namespace
            .run(|| fs::read_to_string("/proc/thread-self/net/snmp"))
            .context("reading the counters of IP and UDP")?;
        let value = |protocol: &str, name: &str| {
            let mut lines = text.lines().filter(|line| line.starts_with(protocol));
            let (names, values) = (lines.next()?, lines.next()?);
            let place = names.split_whitespace().position(|other| other == name)?;
            values.split_whitespace().nth(place)?.parse().ok()
        };
        let value = |protocol: &str, name: &str| {
            value(protocol, name).with_context(|| format!("no counter {name}"))
        };
        Ok(Self {
            arrived: value("Ip:", "InReceives")?,
            read: value("Udp:", "InDatagrams")?,
            overflowed: value("Udp:", "RcvbufErrors")?,
        })
    }

    /// Those that passed the queue and reached a socket.
    const fn delivered(&self) -> u64 {
        self.read + self.overflowed
    }

    /// Those that did since an earlier look.
    pub fn delivered_since(&self, before: Self) -> Result<u64> {
        let delivered = self.delivered().checked_sub(before.delivered());
        delivered.context("the count of delivered packets ran backwards")
    }

    pub fn arrived_since(&self, before: Self) -> Result<u64> {
        let arrived = self.arrived.checked_sub(before.arrived);
        arrived.context("the count of arrived packets ran backwards")
    }
}

/// What the queues of a namespace say about themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Queues {
    pub waiting: u64,
    pub lost: u64,
}

impl Queues {
    /// Over the queues from `first` on. `None` for who may not read it: in a user namespace the
    /// file belongs to nobody.
    pub fn read(namespace: &Namespace, first: u16, queues: u16) -> Result<Option<Self>> {
        namespace.run(|| {
            let mut sum = Self::default();
            for queue in first..first + queues {
                match KernelStats::read(queue) {
                    Ok(Some(stats)) => {
                        sum.waiting += u64::from(stats.waiting);
                        sum.lost += u64::from(stats.queue_dropped) + u64::from(stats.user_dropped);
                    }
                    Ok(None) => anyhow::bail!("queue {queue} is not bound"),
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        return Ok(None);
                    }
                    Err(error) => return Err(error).context("reading the queues' counters"),
                }
            }
            Ok(Some(sum))
        })
    }
}
