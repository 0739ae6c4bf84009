//! What was received, lost, answered and refused, counted here and by the kernel.

use std::fs::File;
use std::io;
use std::iter::Sum;
use std::ops::Add;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::errno::Errno;
use crate::error::{Error, Operation};
use crate::verdicts::Datagram;

/// Counters of a queue since it was bound; over all its numbers, if it has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Packets that were received, unreadable ones included.
    pub received: u64,
    /// Packets that the kernel counted and could not deliver, nearly always because the socket's
    /// receive buffer was full: gaps in the packet ids, which show when a later packet comes. The
    /// kernel has dropped them, or accepted them if the queue fails open. Packets that found the
    /// *queue* full have no id and do not show here: [`KernelStats::queue_dropped`] counts them.
    pub lost: u64,
    /// Packets longer than the batch's buffers. They got the default verdict.
    pub truncated: u64,
    /// Packets whose message made no sense. They got the default verdict.
    pub malformed: u64,
    /// Datagrams from the kernel that could be neither understood nor answered.
    pub unknown: u64,
    /// Datagrams that did not come from the kernel. They were discarded. Only a socket from
    /// elsewhere ([`QueueBuilder::bind_on`](crate::QueueBuilder::bind_on)) receives any: those that
    /// this crate opens are connected to the kernel, and other senders get `ECONNREFUSED`.
    pub foreign: u64,
    /// Verdicts that were sent, those included that the kernel has refused.
    pub answered: u64,
    /// Packets that were received and have no verdict sent yet: in batches or retained.
    pub held: u64,
    /// Retained packets that exist now, judged or not: those whose verdict failed count as well.
    pub retained: u64,
    /// Retained packets whose deadline has passed. They got the default verdict.
    pub expired: u64,
    /// Edited packets that left without a right transport checksum, because it cannot be computed:
    /// see [`Completion`](crate::checksum::Completion). Packets in raw mode do not count.
    pub incomplete_edits: u64,
    /// Verdict messages about one packet.
    pub exact_verdicts: u64,
    /// Verdict messages about a run of packets.
    pub cumulative_verdicts: u64,
    /// Verdicts that the kernel refused, as far as its answers have been received; see
    /// [`Queue::take_refusals`](crate::Queue::take_refusals). A cumulative one counts once,
    /// and so does a whole datagram that was sent without the capability (`EPERM`).
    pub refused: u64,
    /// Times that the kernel reported an answer of its as lost (`ENOBUFS`). Lost packets are not
    /// reported this way, except on a socket from elsewhere without `NETLINK_NO_ENOBUFS`: they
    /// count as [`Stats::lost`].
    pub overruns: u64,
    /// System calls that received (`recvmmsg`).
    pub receive_calls: u64,
    /// System calls that waited without receiving (`poll`). A queue without stop handles, retained
    /// packets and other batches waits in `recvmmsg`.
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

/// Adds the counters of several queues.
impl Add for Stats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            lost: self.lost + other.lost,
            truncated: self.truncated + other.truncated,
            malformed: self.malformed + other.malformed,
            unknown: self.unknown + other.unknown,
            foreign: self.foreign + other.foreign,
            answered: self.answered + other.answered,
            held: self.held + other.held,
            retained: self.retained + other.retained,
            expired: self.expired + other.expired,
            incomplete_edits: self.incomplete_edits + other.incomplete_edits,
            exact_verdicts: self.exact_verdicts + other.exact_verdicts,
            cumulative_verdicts: self.cumulative_verdicts + other.cumulative_verdicts,
            refused: self.refused + other.refused,
            overruns: self.overruns + other.overruns,
            receive_calls: self.receive_calls + other.receive_calls,
            wait_calls: self.wait_calls + other.wait_calls,
            send_calls: self.send_calls + other.send_calls,
        }
    }
}

impl Sum for Stats {
    fn sum<I: Iterator<Item = Self>>(stats: I) -> Self {
        stats.fold(Self::default(), Self::add)
    }
}

/// What is counted by any thread, and what the receiving thread has published.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    answered: AtomicU64,
    exact: AtomicU64,
    cumulative: AtomicU64,
    calls: AtomicU64,
    expired: AtomicU64,
    incomplete_edits: AtomicU64,
    received: Mutex<Stats>,
}

impl Counters {
    /// A datagram of verdicts has left.
    pub(crate) fn sent(&self, datagram: &Datagram) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.answered.fetch_add(datagram.answered(), Ordering::Relaxed);
        self.exact.fetch_add(datagram.exact(), Ordering::Relaxed);
        self.cumulative.fetch_add(datagram.cumulative(), Ordering::Relaxed);
    }

    pub(crate) fn expired(&self, packets: usize) {
        self.expired.fetch_add(packets as u64, Ordering::Relaxed);
    }

    pub(crate) fn incomplete_edit(&self) {
        self.incomplete_edits.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes the receiving half visible to other threads.
    pub(crate) fn publish(&self, received: &Stats) {
        *self.received.lock().unwrap_or_else(PoisonError::into_inner) = *received;
    }

    pub(crate) fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            answered: read(&self.answered),
            exact_verdicts: read(&self.exact),
            cumulative_verdicts: read(&self.cumulative),
            send_calls: read(&self.calls),
            expired: read(&self.expired),
            incomplete_edits: read(&self.incomplete_edits),
            ..*self.received.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

/// A verdict that the kernel did not carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The queue number.
    pub queue: u16,
    /// The packet id; of a cumulative verdict, the last one it meant.
    pub id: u32,
    /// Whether the verdict was a cumulative one.
    pub cumulative: bool,
    /// The kernel's reason. `ENOENT` is normal: the packet was flushed, because a firewall rule set
    /// changed or a device went down. (A cumulative verdict is refused only if none of its packets
    /// is left.) `EPERM`: the thread that sent it lacked `CAP_NET_ADMIN`, and the packet still
    /// waits; the kernel says so once for a whole datagram, and names the packet of its first
    /// message (of a cumulative verdict the last one).
    ///
    /// Once this refusal has been received, such packets are dropped, whatever was decided, by a
    /// receive of a thread that has the capability (again), at a moment when no packet of the queue
    /// is in a batch or retained; on a socket from elsewhere, or if the refusal found the socket
    /// full, only when the queue closes.
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
    /// Reads the counters of `queue` in the *calling thread's* network namespace; `None` if nobody
    /// has bound it there. Since 3.17.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: `PermissionDenied` unless the file's owner may read it: root, and in a
    /// user namespace only if its ids were mapped before the network namespace was made; `NotFound`
    /// where `/proc` is not mounted or the kernel has no `nfnetlink_queue`.
    pub fn read(queue: u16) -> Result<Option<Self>, Error> {
        let rows = KernelTable::here().and_then(|table| table.read()).map_err(unreadable)?;
        Ok(rows.into_iter().find(|row| row.queue == queue))
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

/// The file's name is in the error already.
pub(crate) fn unreadable(error: io::Error) -> Error {
    Error::system(Operation::Stats, "read")(error)
}

/// `/proc/net/netfilter/nfnetlink_queue` of the network namespace that it was opened in.
#[derive(Debug)]
pub(crate) struct KernelTable(File);

impl KernelTable {
    pub(crate) fn here() -> io::Result<Self> {
        const PATH: &str = "/proc/thread-self/net/netfilter/nfnetlink_queue";
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{PATH}: {error}"));
        File::open(PATH).map(Self).map_err(named)
    }

    /// All rows; once for all numbers of a queue, because the kernel is slow at it.
    pub(crate) fn read(&self) -> io::Result<Vec<KernelStats>> {
        // The kernel writes the table anew for whoever reads from its start.
        let mut table = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match self.0.read_at(&mut chunk, table.len() as u64) {
                Ok(0) => break,
                Ok(read) => table.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let table = String::from_utf8_lossy(&table);
        Ok(table.lines().filter_map(KernelStats::parse).collect())
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

    #[test]
    fn counters_are_added_each_to_its_own() {
        let counters = |factor: u64| Stats {
            received: factor,
            lost: factor * 2,
            truncated: factor * 3,
            malformed: factor * 4,
            unknown: factor * 5,
            foreign: factor * 6,
            answered: factor * 7,
            held: factor * 8,
            retained: factor * 9,
            expired: factor * 10,
            incomplete_edits: factor * 11,
            exact_verdicts: factor * 12,
            cumulative_verdicts: factor * 13,
            refused: factor * 14,
            overruns: factor * 15,
            receive_calls: factor * 16,
            wait_calls: factor * 17,
            send_calls: factor * 18,
        };
        let sum: Stats = [1, 100, 1000].map(counters).into_iter().sum();
        assert_eq!(sum, counters(1101));
        assert_eq!(Stats::default() + counters(1), counters(1));
    }
}
