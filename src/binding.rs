//! What a queue shares with its batches and retained packets: the socket, and who is unanswered.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use netfilterqueue_protocol::attribute::MAX_VALUE_LEN;
use netfilterqueue_protocol::verdict::Verdict;

use crate::deadlines::Deadlines;
use crate::edit::EditMode;
use crate::error::{Error, Operation};
use crate::interfaces::Interfaces;
use crate::retention::Retention;
use crate::socket::Socket;
use crate::stats::{Counters, KernelStats, KernelTable, Stats, unreadable};
use crate::stop::WakeUp;
use crate::sync::Shared;
use crate::verdicts::{
    Answer, Datagram, HEAD_AND_EXTRAS_MAX, Orphan, Outstanding, PAYLOADS_MAX, send_orphans,
};

/// The queue numbers that this process holds on one socket.
///
/// The kernel accepts verdicts only from the socket that bound the queue, and each binding has one
/// of its own, so a handle of an old binding cannot judge a packet of a new one, although packet
/// ids start at 1 again. (A socket from elsewhere can be bound twice only by passing it twice.)
#[derive(Debug)]
pub(crate) struct Binding {
    socket: Socket,
    wake: Shared<WakeUp>,
    terms: Terms,
    outstanding: Outstanding,
    closed: AtomicBool,
    counters: Arc<Counters>,
    deadlines: Deadlines,
    retention: Retention,
    interfaces: Interfaces,
    /// An error as text: an [`io::Error`] may hold anything, which batches would inherit.
    kernel_table: OnceLock<Result<KernelTable, (io::ErrorKind, String)>>,
    /// Answers that could not be sent and whose packets nobody holds any more.
    orphans: Mutex<Vec<Orphan>>,
}

/// What holds for all packets of a binding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// The verdict of packets that nobody decided about.
    pub(crate) on_undecided: Verdict,
    /// How edited packets leave.
    pub(crate) edit_mode: EditMode,
}

impl Binding {
    pub(crate) fn new(
        socket: Socket,
        interfaces: Interfaces,
        queues: &[u16],
        terms: Terms,
        wake: Shared<WakeUp>,
    ) -> Self {
        Self {
            socket,
            wake,
            terms,
            outstanding: Outstanding::new(queues),
            closed: AtomicBool::new(false),
            counters: Arc::default(),
            deadlines: Deadlines::default(),
            retention: Retention::default(),
            interfaces,
            kernel_table: OnceLock::new(),
            orphans: Mutex::default(),
        }
    }

    pub(crate) const fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(crate) const fn wake(&self) -> &Shared<WakeUp> {
        &self.wake
    }

    pub(crate) const fn terms(&self) -> Terms {
        self.terms
    }

    /// The longest payload that a verdict can carry, with up to three bytes of padding.
    pub(crate) fn payload_max(&self) -> usize {
        self.socket.send_limit().saturating_sub(HEAD_AND_EXTRAS_MAX + 3).min(MAX_VALUE_LEN)
    }

    pub(crate) const fn outstanding(&self) -> &Outstanding {
        &self.outstanding
    }

    pub(crate) const fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    pub(crate) const fn deadlines(&self) -> &Deadlines {
        &self.deadlines
    }

    pub(crate) const fn retention(&self) -> &Retention {
        &self.retention
    }

    pub(crate) const fn interfaces(&self) -> &Interfaces {
        &self.interfaces
    }

    /// Says where the kernel's counters are: known only when the queue is bound, because binding
    /// may load the kernel module that has them.
    pub(crate) fn set_kernel_table(&self, table: io::Result<KernelTable>) {
        let as_text = |error: io::Error| (error.kind(), error.to_string());
        let _ = self.kernel_table.set(table.map_err(as_text));
    }

    /// The kernel's counters of each queue.
    pub(crate) fn kernel_stats(&self) -> Result<Vec<KernelStats>, Error> {
        match self.kernel_table.get() {
            Some(Ok(table)) => {
                let mut rows = table.read().map_err(unreadable)?;
                rows.retain(|row| self.outstanding.is_ours(row.queue));
                rows.sort_unstable_by_key(|row| row.queue);
                Ok(rows)
            }
            Some(Err((kind, text))) => Err(unreadable(io::Error::new(*kind, text.as_str()))),
            None => Ok(Vec::new()),
        }
    }

    /// The counters; nothing is held of a queue that is given back.
    pub(crate) fn stats(&self) -> Stats {
        let held = if self.is_closed() { 0 } else { self.outstanding.count() };
        Stats { held, retained: self.retention.packets(), ..self.counters.stats() }
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
        self.outstanding.sending();
        let sent = if datagram.gaps().is_empty() {
            self.socket.send(&[IoSlice::new(datagram.heads())])
        } else {
            self.send_gathered(datagram, payload)
        };
        sent.map_err(Error::system(Operation::Verdict, "sendmsg"))?;
        for (queue, answers) in datagram.answers() {
            self.outstanding.answered(*queue, *answers);
        }
        self.counters.sent(datagram);
        Ok(())
    }

    fn send_gathered<'a>(
        &self,
        datagram: &'a Datagram,
        payload: impl Fn(usize) -> &'a [u8],
    ) -> nix::Result<()> {
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
        self.socket.send(&parts[..=used])
    }

    /// Takes over answers that could not be sent, for the queue's thread, which is woken for them.
    /// [`Orphan::of_unsent`] tells what is left of them.
    pub(crate) fn hand_over<'a>(&self, answers: impl Iterator<Item = Answer<'a>>) {
        if self.is_closed() {
            return;
        }
        let on_undecided = self.terms.on_undecided;
        self.orphans().extend(answers.map(|answer| Orphan::of_unsent(&answer, on_undecided)));
        self.wake.wake();
    }

    /// Takes over answers, for [`Binding::send_orphans`].
    pub(crate) fn adopt<'a>(&self, answers: impl Iterator<Item = Answer<'a>>) {
        self.orphans().extend(answers.map(|answer| Orphan::new(&answer)));
    }

    /// Tries again to send what nobody else can. What fails stays for the next time; returns
    /// whether something does.
    pub(crate) fn send_orphans(&self) -> bool {
        // Sending may take its time; nobody who hands something over has to wait for it.
        let mut orphans = std::mem::take(&mut *self.orphans());
        if orphans.is_empty() {
            return false;
        }
        let limit = self.socket.send_limit();
        let is_left = send_orphans(&mut orphans, limit, |datagram| self.send(datagram, |_| &[]));
        self.orphans().append(&mut orphans);
        is_left
    }

    fn orphans(&self) -> MutexGuard<'_, Vec<Orphan>> {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The counters of a queue that is used elsewhere, by [`Queue::run`](crate::Queue::run) for one, or
/// of all queues of a [`Fanout`](crate::Fanout), added up. May be cloned, sent to other threads and
/// used after the queue is gone.
#[derive(Debug, Clone)]
pub struct StatsHandle {
    queues: Arc<[(Arc<Counters>, Weak<Binding>)]>,
}

impl StatsHandle {
    pub(crate) fn new<'a>(bindings: impl IntoIterator<Item = &'a Arc<Binding>>) -> Self {
        let of = |binding: &Arc<Binding>| (Arc::clone(&binding.counters), Arc::downgrade(binding));
        Self { queues: bindings.into_iter().map(of).collect() }
    }

    /// As [`Queue::kernel_stats`](crate::Queue::kernel_stats), of each number; nothing once the
    /// queue is gone.
    ///
    /// # Errors
    ///
    /// As [`Queue::kernel_stats`](crate::Queue::kernel_stats).
    pub fn kernel_stats(&self) -> Result<Vec<KernelStats>, Error> {
        let mut all = Vec::new();
        for (_, binding) in &*self.queues {
            if let Some(binding) = binding.upgrade().filter(|binding| !binding.is_closed()) {
                all.append(&mut binding.kernel_stats()?);
            }
        }
        Ok(all)
    }

    /// The counters now. What the queue receives is entered once per receive call.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let of = |(counters, binding): &(Arc<Counters>, Weak<Binding>)| {
            binding.upgrade().map_or_else(|| counters.stats(), |binding| binding.stats())
        };
        self.queues.iter().map(of).sum()
    }
}
