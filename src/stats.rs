//! What was received, lost, answered and refused, counted here and by the kernel.

use std::io;

use nix::errno::Errno;

/// Counters of a queue since it was bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Packets that were received, unreadable ones included.
    pub received: u64,
    /// Packets that the kernel counted and could not deliver, nearly always because the socket's
    /// receive buffer was full: gaps in the packet ids, which show when a later packet comes. The
    /// kernel has dropped them, or accepted them if the queue fails open.
    pub lost: u64,
    /// Packets longer than the batch's buffers. They got the default verdict.
    pub truncated: u64,
    /// Packets whose message made no sense. They got the default verdict.
    pub malformed: u64,
    /// Datagrams from the kernel that could be neither understood nor answered.
    pub unknown: u64,
    /// Datagrams that did not come from the kernel. They were discarded.
    pub foreign: u64,
    /// Verdicts that were sent.
    pub answered: u64,
    /// Packets that were received and have no verdict sent yet: in batches or retained.
    pub held: u64,
    /// Verdict messages about one packet.
    pub exact_verdicts: u64,
    /// Verdict messages about a run of packets.
    pub cumulative_verdicts: u64,
    /// Verdicts that the kernel refused, as far as its answers have been received; see
    /// [`Queue::take_refusals`](crate::Queue::take_refusals). A cumulative one counts once.
    pub refused: u64,
    /// Times that the kernel reported an answer of its as lost (`ENOBUFS`). Lost packets are not reported
    /// this way: they count as [`Stats::lost`].
    pub overruns: u64,
    /// System calls that received (`recvmmsg`).
    pub receive_calls: u64,
    /// System calls that waited (`poll`).
    pub wait_calls: u64,
    /// System calls that sent verdicts (`sendmsg`).
    pub send_calls: u64,
}

impl Stats {
    /// All system calls of the packet path.
    #[must_use]
    pub const fn system_calls(&self) -> u64 {
        self.receive_calls + self.wait_calls + self.send_calls
    }
}

/// A verdict that the kernel did not carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The packet id; of a cumulative verdict, the last one it meant.
    pub id: u32,
    /// Whether the verdict was a cumulative one.
    pub cumulative: bool,
    /// The kernel's reason. `ENOENT` is normal: the packet was flushed, because a firewall rule set
    /// changed or a device went down. (A cumulative verdict is refused only if none of its packets
    /// is left.) `EPERM`: the program has lost `CAP_NET_ADMIN`, and the packet still waits; the
    /// kernel says so once for a whole datagram, and names its first packet.
    pub errno: Errno,
}

/// The kernel's own counters of a queue: a line of `/proc/net/netfilter/nfnetlink_queue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelStats {
    /// The queue number.
    pub queue: u16,
    /// Port id of the socket that has bound it.
    pub peer_port_id: u32,
    /// Packets that wait for a verdict now.
    pub waiting: u32,
    /// Copy mode: 1 META, 2 PACKET.
    pub copy_mode: u8,
    /// Bytes copied of each packet.
    pub copy_range: u32,
    /// Packets dropped because the queue was full. They have no id, except those dropped by the
    /// limit of 65,536 packets, whose ids are missing.
    pub queue_dropped: u32,
    /// Packets dropped because the socket's receive buffer was full. They leave a gap in the ids.
    pub user_dropped: u32,
    /// Id of the newest packet.
    pub last_id: u32,
}

impl KernelStats {
    /// Reads the counters of `queue` in the *calling thread's* network namespace; `None` if nobody has
    /// bound it there.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` unless the file's owner may read it: root, and in a user namespace only
    /// if its ids were mapped before the network namespace was made. `NotFound` where `/proc` is
    /// not mounted or the kernel has no `nfnetlink_queue`.
    pub fn read(queue: u16) -> io::Result<Option<Self>> {
        let table = std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue")?;
        Ok(table.lines().filter_map(Self::parse).find(|stats| stats.queue == queue))
    }

    /// Reads one line of the file; `None` if it is not of that form.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        fn next<'a, T: std::str::FromStr>(
            columns: &mut impl Iterator<Item = &'a str>,
        ) -> Option<T> {
            columns.next()?.parse().ok()
        }
        let columns = &mut line.split_ascii_whitespace();
        Some(Self {
            queue: next(columns)?,
            peer_port_id: next(columns)?,
            waiting: next(columns)?,
            copy_mode: next(columns)?,
            copy_range: next(columns)?,
            queue_dropped: next(columns)?,
            user_dropped: next(columns)?,
            last_id: next(columns)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_line_is_read() {
        // Printed by a 6.18 kernel with one packet waiting.
        let line = "    1  2147483659     1 2 65531     3     4       12  1";
        let stats = KernelStats::parse(line).expect("a line");
        assert_eq!((stats.queue, stats.peer_port_id, stats.waiting), (1, 2_147_483_659, 1));
        assert_eq!((stats.copy_mode, stats.copy_range), (2, 65_531));
        assert_eq!((stats.queue_dropped, stats.user_dropped, stats.last_id), (3, 4, 12));
        assert_eq!(KernelStats::parse(""), None);
        assert_eq!(KernelStats::parse("1 2 3"), None);
        assert_eq!(KernelStats::parse("70000 1 1 2 65531 0 0 0 1"), None);
    }
}
