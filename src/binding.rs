//! What a queue shares with its batches and retained packets: the socket, and who is unanswered.

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netfilterqueue_protocol::attribute::MAX_VALUE_LEN;
use netfilterqueue_protocol::verdict::Verdict;

use crate::error::{Error, Operation};
use crate::socket::Socket;
use crate::stop::WakeUp;
use crate::verdicts::{Answer, Datagram, Form, HEAD_MAX, Outstanding, PAYLOADS_MAX};

/// A queue number that this process holds.
///
/// Each binding has a socket of its own. The kernel accepts verdicts only from the socket that bound the
/// queue, so a handle of an old binding cannot judge a packet of a new one, although packet ids start
/// at 1 again.
#[derive(Debug)]
pub(crate) struct Binding {
    socket: Socket,
    wake: Arc<WakeUp>,
    queue: u16,
    on_undecided: Verdict,
    outstanding: Outstanding,
    closed: AtomicBool,
    sent: Sent,
    /// Answers that could not be sent and whose packets nobody holds any more.
    orphans: Mutex<Vec<Answer>>,
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
    pub(crate) fn new(
        socket: Socket,
        queue: u16,
        on_undecided: Verdict,
        wake: Arc<WakeUp>,
    ) -> Self {
        Self {
            socket,
            wake,
            queue,
            on_undecided,
            outstanding: Outstanding::default(),
            closed: AtomicBool::new(false),
            sent: Sent::default(),
            orphans: Mutex::default(),
        }
    }

    pub(crate) const fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(crate) const fn wake(&self) -> &Arc<WakeUp> {
        &self.wake
    }

    pub(crate) const fn queue(&self) -> u16 {
        self.queue
    }

    /// The verdict of packets that nobody decided about.
    pub(crate) const fn on_undecided(&self) -> Verdict {
        self.on_undecided
    }

    /// The longest payload that a verdict can carry, with up to three bytes of padding.
    pub(crate) fn payload_max(&self) -> usize {
        self.socket.send_limit().saturating_sub(HEAD_MAX + 3).min(MAX_VALUE_LEN)
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

    /// Sends a datagram with its payloads gathered from `payload`, and counts its packets as
    /// answered. On an error nothing was sent and nothing is counted.
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
        self.outstanding.sending();
        self.socket.send(&parts[..=used]).map_err(Error::system(Operation::Verdict, "sendmsg"))?;
        self.outstanding.answered(datagram.answers());
        self.sent.calls.fetch_add(1, Ordering::Relaxed);
        self.sent.answered.fetch_add(datagram.answers() as u64, Ordering::Relaxed);
        self.sent.exact.fetch_add(datagram.exact(), Ordering::Relaxed);
        self.sent.cumulative.fetch_add(datagram.cumulative(), Ordering::Relaxed);
        Ok(())
    }

    /// Takes over answers that could not be sent, for [`Binding::send_orphans`]. An edited payload
    /// is gone with its packet, so an answer with one becomes the default verdict.
    pub(crate) fn adopt(&self, answers: impl Iterator<Item = Answer>) {
        self.orphans().extend(answers.map(|answer| match answer.payload_len {
            None => answer,
            Some(_) => {
                Answer { verdict: self.on_undecided, mark: None, payload_len: None, ..answer }
            }
        }));
        self.wake.wake();
    }

    /// Tries again to send what nobody else can. What fails stays for the next time; returns whether
    /// something does.
    pub(crate) fn send_orphans(&self) -> bool {
        let mut orphans = self.orphans();
        let mut datagram = Datagram::default();
        while !orphans.is_empty() {
            let answers = orphans.iter().copied();
            let filled = datagram.fill(self.queue, answers, Form::Exact, self.socket.send_limit());
            if filled.is_err() || self.send(&datagram, |_| &[]).is_err() {
                return true;
            }
            orphans.drain(..datagram.answers());
        }
        false
    }

    fn orphans(&self) -> MutexGuard<'_, Vec<Answer>> {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
