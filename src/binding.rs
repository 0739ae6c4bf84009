//! What a queue shares with its batches and retained packets: the socket, and who is unanswered.

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use netfilterqueue_protocol::verdict::Verdict;

use crate::error::{Error, Operation};
use crate::socket::Socket;
use crate::verdicts::{Datagram, Outstanding, PAYLOADS_MAX};

/// A queue number that this process holds.
///
/// Each binding has a socket of its own. The kernel accepts verdicts only from the socket that bound the
/// queue, so a handle of an old binding cannot judge a packet of a new one, although packet ids start
/// at 1 again.
#[derive(Debug)]
pub(crate) struct Binding {
    socket: Socket,
    queue: u16,
    on_undecided: Verdict,
    outstanding: Outstanding,
    closed: AtomicBool,
    sent: Sent,
}

/// Counters of what was sent, from any thread.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) answered: AtomicU64,
    pub(crate) exact: AtomicU64,
    pub(crate) cumulative: AtomicU64,
    pub(crate) calls: AtomicU64,
}

impl Binding {
    pub(crate) fn new(socket: Socket, queue: u16, on_undecided: Verdict) -> Self {
        Self {
            socket,
            queue,
            on_undecided,
            outstanding: Outstanding::default(),
            closed: AtomicBool::new(false),
            sent: Sent::default(),
        }
    }

    pub(crate) const fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(crate) const fn queue(&self) -> u16 {
        self.queue
    }

    /// The verdict of packets that nobody decided about.
    pub(crate) const fn on_undecided(&self) -> Verdict {
        self.on_undecided
    }

    pub(crate) const fn outstanding(&self) -> &Outstanding {
        &self.outstanding
    }

    pub(crate) const fn sent(&self) -> &Sent {
        &self.sent
    }

    /// Marks the queue as given back. Returns whether it was still open.
    pub(crate) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::SeqCst)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Sends a datagram with its payloads gathered from `payload`, and counts its packets as answered. On an
    /// error nothing was sent and nothing is counted.
    pub(crate) fn send<'a>(
        &self,
        datagram: &'a Datagram,
        payload: impl Fn(usize) -> &'a [u8],
    ) -> Result<(), Error> {
        if self.is_closed() {
            return Err(Error::Closed);
        }
        let mut parts = [IoSlice::new(&[]); 2 * PAYLOADS_MAX + 1];
        let mut used = 0;
        let mut start = 0;
        for gap in datagram.gaps() {
            parts[used] = IoSlice::new(&datagram.heads()[start..gap.at]);
            parts[used + 1] = IoSlice::new(payload(gap.slot));
            used += 2;
            start = gap.at;
        }
        parts[used] = IoSlice::new(&datagram.heads()[start..]);
        self.outstanding
            .sending(|| self.socket.send(&parts[..=used]))
            .map_err(Error::system(Operation::Verdict, "sendmsg"))?;
        self.outstanding.answered(datagram.answers());
        self.sent.calls.fetch_add(1, Ordering::Relaxed);
        self.sent.answered.fetch_add(datagram.answers() as u64, Ordering::Relaxed);
        self.sent.exact.fetch_add(datagram.exact(), Ordering::Relaxed);
        self.sent.cumulative.fetch_add(datagram.cumulative(), Ordering::Relaxed);
        Ok(())
    }
}
