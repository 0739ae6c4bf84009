//! The verdict policy, without I/O: which packets are unanswered, which may be answered by a
//! cumulative verdict, and what goes into one datagram.
//!
//! The kernel applies a cumulative verdict (`NFQNL_MSG_VERDICT_BATCH`) to *every* packet of the queue up
//! to an id, retained ones included. It is therefore used only while every unanswered packet is part
//! of the very commit that sends it. Packets that nobody has received yet have higher ids and are out
//! of its reach, provided that packets are counted as received before anyone can judge later
//! ones: that is why only one thread at a time receives on a queue (`Queue::recv` takes `&mut
//! self`). Answered packets are taken off the count after the send; until then the count is too high, which
//! only forces exact verdicts.
//!
//! A verdict can also be refused after it counted as sent, and its packet then still waits: `EPERM`, when
//! the sending thread lacks the capability. The refusal lies in the socket, behind packets that nobody has
//! received yet, and is lost if there is no room for it. So cumulative verdicts are sent only while all
//! verdicts of the queue come from one thread, which keeps a thread with the capability from judging the
//! packets of one without; and after a refusal was read, not at all. What remains is a thread that loses
//! the capability and regains it between two commits.

use std::iter::Peekable;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ThreadId};

use netfilterqueue_protocol::attribute;
use netfilterqueue_protocol::error::EncodeError;
use netfilterqueue_protocol::verdict::{Verdict, VerdictBatchMessage, VerdictMessage};

/// Most payloads that one datagram carries, so that its parts fit in an array on the stack.
pub(crate) const PAYLOADS_MAX: usize = 64;

/// The longest message without its payload: both headers, verdict, mark and the payload's attribute
/// header.
pub(crate) const HEAD_MAX: usize = 20 + 12 + 8 + attribute::HEADER_LEN;

/// How many packets of a queue were received and not answered yet, over all batches and retained packets.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    count: AtomicU64,
    exact_only: AtomicBool,
    /// The thread that has sent the first verdict.
    sender: OnceLock<ThreadId>,
}

impl Outstanding {
    /// Counts packets before anyone can judge them.
    pub(crate) fn received(&self, packets: usize) {
        self.count.fetch_add(packets as u64, Ordering::SeqCst);
    }

    /// Takes packets off the count after their verdicts were sent.
    pub(crate) fn answered(&self, packets: usize) {
        self.count.fetch_sub(packets as u64, Ordering::SeqCst);
    }

    /// The form that a commit of `unanswered` packets by this thread may use: cumulative if they are all
    /// there are and no verdict before them can have been refused.
    pub(crate) fn form(&self, unanswered: usize) -> Form {
        // The count first: whoever lowered it had forbidden cumulative verdicts before, if need be.
        let are_all = self.count.load(Ordering::SeqCst) == unanswered as u64;
        let is_only_sender = self.sender.get().is_none_or(is_this_thread);
        if are_all && is_only_sender && !self.exact_only.load(Ordering::SeqCst) {
            Form::Cumulative
        } else {
            Form::Exact
        }
    }

    /// Notes that this thread is about to send verdicts.
    pub(crate) fn sending(&self) {
        if !is_this_thread(self.sender.get_or_init(|| thread::current().id())) {
            self.distrust();
        }
    }

    /// Forbids cumulative verdicts for good: packets that count as answered may still be queued and must not
    /// get another packet's verdict.
    pub(crate) fn distrust(&self) {
        self.exact_only.store(true, Ordering::SeqCst);
    }

    /// How many packets are unanswered now.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
}

fn is_this_thread(thread: &ThreadId) -> bool {
    *thread == thread::current().id()
}

/// What was decided about one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) id: u32,
    pub(crate) verdict: Verdict,
    pub(crate) mark: Option<u32>,
    /// Length of the edited payload that goes back with it.
    pub(crate) payload_len: Option<usize>,
    /// Where the caller finds that payload.
    pub(crate) slot: usize,
}

impl Answer {
    /// Whether one cumulative verdict says the same about both.
    fn is_like(&self, other: &Self) -> bool {
        self.verdict == other.verdict
            && self.mark == other.mark
            && self.payload_len.is_none()
            && other.payload_len.is_none()
    }

    fn message_len(&self) -> usize {
        HEAD_MAX + self.payload_len.map_or(0, attribute::align)
    }
}

/// Which verdict messages a commit may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// One message per packet.
    Exact,
    /// One message per run of like packets.
    Cumulative,
}

/// A place in [`Datagram::heads`] where a payload from elsewhere goes in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gap {
    /// Offset in the heads.
    pub(crate) at: usize,
    /// Whose payload.
    pub(crate) slot: usize,
}

/// One datagram of verdict messages, without the payloads, which are gathered from where they are. Its
/// buffers are used again by each [`Datagram::fill`].
#[derive(Debug, Default)]
pub(crate) struct Datagram {
    heads: Vec<u8>,
    gaps: Vec<Gap>,
    answers: usize,
    exact: u64,
    cumulative: u64,
}

impl Datagram {
    /// Writes as many of `answers` as fit in `limit` bytes, at least one. Answers must come in the order
    /// of their ids.
    ///
    /// The messages work in order: an exact verdict takes its packet off the queue before a later
    /// cumulative one passes over its id.
    pub(crate) fn fill(
        &mut self,
        queue: u16,
        answers: impl Iterator<Item = Answer>,
        form: Form,
        limit: usize,
    ) -> Result<(), EncodeError> {
        *self = Self {
            heads: std::mem::take(&mut self.heads),
            gaps: std::mem::take(&mut self.gaps),
            ..Self::default()
        };
        self.heads.clear();
        self.gaps.clear();
        let mut answers = answers.peekable();
        let mut len = 0;
        while let Some(answer) = answers.next_if(|next| {
            let payloads = self.gaps.len() + usize::from(next.payload_len.is_some());
            len == 0 || (len + next.message_len() <= limit && payloads <= PAYLOADS_MAX)
        }) {
            len += answer.message_len();
            self.push(queue, answer, &mut answers, form)?;
        }
        Ok(())
    }

    fn push(
        &mut self,
        queue: u16,
        answer: Answer,
        answers: &mut Peekable<impl Iterator<Item = Answer>>,
        form: Form,
    ) -> Result<(), EncodeError> {
        let mut last = answer;
        let mut run = 1;
        if form == Form::Cumulative {
            while let Some(next) = answers.next_if(|next| next.is_like(&answer)) {
                last = next;
                run += 1;
            }
        }
        if run > 1 {
            let (verdict, mark) = (answer.verdict, answer.mark);
            let message =
                VerdictBatchMessage { queue, last_id: last.id, verdict, mark, priority: None };
            message.push(&mut self.heads);
            self.cumulative += 1;
        } else {
            let message = VerdictMessage {
                mark: answer.mark,
                ..VerdictMessage::new(queue, answer.id, answer.verdict)
            };
            message.push_head(&mut self.heads, answer.payload_len)?;
            if let Some(payload_len) = answer.payload_len {
                self.gaps.push(Gap { at: self.heads.len(), slot: answer.slot });
                attribute::pad(&mut self.heads, payload_len);
            }
            self.exact += 1;
        }
        self.answers += run;
        Ok(())
    }

    /// All bytes but the payloads.
    pub(crate) fn heads(&self) -> &[u8] {
        &self.heads
    }

    /// Where the payloads go, in order.
    pub(crate) fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// How many packets it answers: the first ones that were not answered before.
    pub(crate) const fn answers(&self) -> usize {
        self.answers
    }

    /// How many messages about one packet it holds.
    pub(crate) const fn exact(&self) -> u64 {
        self.exact
    }

    /// How many cumulative messages it holds.
    pub(crate) const fn cumulative(&self) -> u64 {
        self.cumulative
    }
}
