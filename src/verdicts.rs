//! The verdict policy, without I/O: which packets are unanswered, which may be answered by a
//! cumulative verdict, and what goes into one datagram.
//!
//! The kernel applies a cumulative verdict (`NFQNL_MSG_VERDICT_BATCH`) to *every* packet of the
//! queue up to an id, retained ones included. It is therefore used only while every unanswered
//! packet is part of the very commit that sends it. Packets that nobody has received yet have
//! higher ids and are out of its reach, provided that packets are counted as received before anyone
//! can judge later ones: that is why only one thread at a time receives on a queue (`Queue::recv`
//! takes `&mut self`). Answered packets are taken off the count after the send; until then the
//! count is too high, which only forces exact verdicts.
//!
//! A verdict can also be refused after it counted as sent, and its packet then still waits:
//! `EPERM`, when the sending thread lacks the capability. The refusal lies in the socket, behind
//! packets that nobody has received yet, and is lost if there is no room for it. So cumulative
//! verdicts are sent only while all verdicts of the queue come from one thread, which keeps a
//! thread with the capability from judging the packets of one without; and after a refusal was
//! read, not at all. What remains is a thread that loses the capability and regains it between two
//! commits. The packets of a refused verdict are dropped later (`sweep`).

use netfilterqueue_protocol::attribute;
use netfilterqueue_protocol::error::EncodeError;
use netfilterqueue_protocol::verdict::{Verdict, VerdictBatchMessage, VerdictMessage};

use crate::changes::{Changes, Extras, L2Header};
use crate::sync::{AtomicBool, AtomicU64, Ordering, this_thread};

/// Most payloads that one datagram carries, so that its parts fit in an array on the stack.
pub(crate) const PAYLOADS_MAX: usize = 64;

/// The longest message without its payload and its [`Extras`]: both headers, verdict, mark,
/// priority and the payload's attribute header.
const HEAD_MAX: usize = 20 + 12 + 8 + 8 + attribute::HEADER_LEN;

/// The longest message without its payload.
pub(crate) const HEAD_AND_EXTRAS_MAX: usize = HEAD_MAX + Extras::ENCODED_MAX;

/// How many packets were received and not answered yet, over all batches and retained packets. Per
/// queue: packet ids and cumulative verdicts are.
#[derive(Debug)]
pub(crate) struct Outstanding {
    /// In the order of the queue numbers.
    queues: Box<[(u16, AtomicU64)]>,
    exact_only: AtomicBool,
    /// Somebody else may receive packets that are not counted here.
    is_shared: AtomicBool,
    /// The number of the thread that has sent the first verdict; 0 while there is none.
    sender: AtomicU64,
}

impl Outstanding {
    pub(crate) fn new(queues: &[u16]) -> Self {
        let mut numbers = queues.to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        Self {
            queues: numbers.into_iter().map(|number| (number, AtomicU64::new(0))).collect(),
            exact_only: AtomicBool::new(false),
            is_shared: AtomicBool::new(false),
            sender: AtomicU64::new(0),
        }
    }

    /// Counts packets before anyone can judge them.
    pub(crate) fn received(&self, queue: u16, packets: u64) {
        if let Some(count) = self.of(queue) {
            count.fetch_add(packets, Ordering::SeqCst);
        }
    }

    /// Takes packets off the count after their verdicts were sent.
    pub(crate) fn answered(&self, queue: u16, packets: u64) {
        if let Some(count) = self.of(queue) {
            count.fetch_sub(packets, Ordering::SeqCst);
        }
    }

    /// The form that a commit of `unanswered` packets of a queue by this thread may use: cumulative
    /// if they are all there are and no verdict before them can have been refused.
    pub(crate) fn form(&self, queue: u16, unanswered: u64) -> Form {
        self.form_by(queue, unanswered, this_thread())
    }

    /// As [`Outstanding::form`], by the thread with this number.
    #[inline]
    pub(crate) fn form_by(&self, queue: u16, unanswered: u64, thread: u64) -> Form {
        // The count first: whoever lowered it had forbidden cumulative verdicts before, if need be.
        let are_all =
            self.of(queue).is_some_and(|count| count.load(Ordering::SeqCst) == unanswered);
        let is_only_sender = [0, thread].contains(&self.sender.load(Ordering::SeqCst));
        if are_all && is_only_sender && !self.exact_only.load(Ordering::SeqCst) {
            Form::Cumulative
        } else {
            Form::Exact
        }
    }

    /// Notes that this thread is about to send verdicts.
    pub(crate) fn sending(&self) {
        self.sending_by(this_thread());
    }

    /// As [`Outstanding::sending`], by the thread with this number.
    #[inline]
    pub(crate) fn sending_by(&self, thread: u64) {
        if self.sender.load(Ordering::SeqCst) == thread {
            return;
        }
        if self.sender.compare_exchange(0, thread, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            self.distrust();
        }
    }

    /// Forbids cumulative verdicts for good: packets that count as answered may still be queued and
    /// must not get another packet's verdict.
    pub(crate) fn distrust(&self) {
        self.exact_only.store(true, Ordering::SeqCst);
    }

    /// Notes that somebody else may receive packets of these queues, which are not counted here.
    pub(crate) fn share(&self) {
        self.is_shared.store(true, Ordering::SeqCst);
        self.distrust();
    }

    /// Whether all packets of a queue are counted here.
    pub(crate) fn counts_all(&self, queue: u16) -> bool {
        self.is_ours(queue) && !self.is_shared.load(Ordering::SeqCst)
    }

    /// Whether a queue is one of those.
    pub(crate) fn is_ours(&self, queue: u16) -> bool {
        self.of(queue).is_some()
    }

    /// The queue numbers, ascending.
    pub(crate) fn queues(&self) -> impl ExactSizeIterator<Item = u16> {
        self.queues.iter().map(|(number, _)| *number)
    }

    /// Whether every packet of a queue that was received counts as answered.
    pub(crate) fn is_idle(&self, queue: u16) -> bool {
        self.of(queue).is_some_and(|count| count.load(Ordering::SeqCst) == 0)
    }

    /// How many packets are unanswered now, over all queues.
    pub(crate) fn count(&self) -> u64 {
        self.queues.iter().map(|(_, count)| count.load(Ordering::SeqCst)).sum()
    }

    /// `None` for a queue that somebody else has bound to the same socket.
    fn of(&self, queue: u16) -> Option<&AtomicU64> {
        let found = match &*self.queues {
            [only] if only.0 == queue => Some(only),
            queues => {
                let at = queues.binary_search_by_key(&queue, |(number, _)| *number).ok()?;
                queues.get(at)
            }
        };
        found.map(|(_, count)| count)
    }
}

/// What was decided about one packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer<'a> {
    pub(crate) queue: u16,
    pub(crate) id: u32,
    pub(crate) verdict: Verdict,
    pub(crate) changes: Option<&'a Changes>,
    /// Where the caller finds the edited payload.
    pub(crate) slot: usize,
}

impl Answer<'_> {
    /// A verdict and nothing else.
    #[inline]
    pub(crate) const fn plain(queue: u16, id: u32, verdict: Verdict) -> Self {
        Self { queue, id, verdict, changes: None, slot: 0 }
    }

    /// Whether one cumulative verdict says the same about both.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.queue == other.queue
            && self.verdict == other.verdict
            && self.mark() == other.mark()
            && self.priority() == other.priority()
            && !self.needs_its_own()
            && !other.needs_its_own()
    }

    /// Whether it says something that a cumulative verdict cannot.
    #[inline]
    pub(crate) fn needs_its_own(&self) -> bool {
        self.payload_len().is_some() || self.extras().is_some()
    }

    pub(crate) fn mark(&self) -> Option<u32> {
        self.changes?.mark
    }

    pub(crate) fn priority(&self) -> Option<u32> {
        self.changes?.priority
    }

    fn extras(&self) -> Option<&Extras> {
        self.changes?.extras()
    }

    #[inline]
    fn payload_len(&self) -> Option<usize> {
        self.changes?.payload_len(self.verdict)
    }

    /// Most bytes of its message without the payload, and those of the payload.
    #[inline]
    fn message_len(&self) -> (usize, usize) {
        let Some(changes) = self.changes else { return (HEAD_MAX, 0) };
        let extras = changes.extras().map_or(0, |_| Extras::ENCODED_MAX);
        (HEAD_MAX + extras, changes.payload_len(self.verdict).map_or(0, attribute::align))
    }
}

/// The answer about a packet that nobody holds any more.
#[derive(Debug)]
pub(crate) struct Orphan {
    queue: u16,
    id: u32,
    verdict: Verdict,
    changes: Changes,
}

impl Orphan {
    pub(crate) fn new(answer: &Answer<'_>) -> Self {
        let Answer { queue, id, verdict, .. } = *answer;
        let (mark, priority) = (answer.mark(), answer.priority());
        let changes = Changes { mark, priority, ..Changes::default() };
        Self { queue, id, verdict, changes }
    }

    /// Of a packet whose holder could not send its answer. An edited payload is gone with it, and
    /// so are the rarer changes; unless the packet is dropped, such an answer becomes the default
    /// verdict. It keeps its mark, by which rules may know what was decided.
    pub(crate) fn of_unsent(answer: &Answer<'_>, on_undecided: Verdict) -> Self {
        let is_cut = answer.needs_its_own() && answer.verdict != Verdict::Drop;
        let verdict = if is_cut { on_undecided } else { answer.verdict };
        Self::new(&Answer { verdict, ..*answer })
    }

    pub(crate) const fn answer(&self) -> Answer<'_> {
        let Self { queue, id, verdict, ref changes } = *self;
        Answer { changes: Some(changes), ..Answer::plain(queue, id, verdict) }
    }
}

/// Sends answers in datagrams of up to `limit` bytes until that fails or none is left. Returns
/// whether some are.
pub(crate) fn send_orphans<E>(
    orphans: &mut Vec<Orphan>,
    limit: usize,
    mut send: impl FnMut(&Datagram) -> Result<(), E>,
) -> bool {
    let mut datagram = Datagram::default();
    while !orphans.is_empty() {
        let runs = orphans.iter().map(|orphan| Run::one(orphan.answer()));
        if datagram.fill(runs, limit).is_err() || send(&datagram).is_err() {
            return true;
        }
        // No more can be answered than there were.
        let answered = usize::try_from(datagram.answered()).unwrap_or(usize::MAX);
        orphans.drain(..answered.min(orphans.len()));
    }
    false
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

/// Packets that get one message together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) first: Answer<'a>,
    pub(crate) last_id: u32,
    pub(crate) packets: u64,
}

impl<'a> Run<'a> {
    /// A packet by itself.
    #[inline]
    pub(crate) const fn one(answer: Answer<'a>) -> Self {
        Self { first: answer, last_id: answer.id, packets: 1 }
    }

    /// Takes in the next packet.
    #[inline]
    pub(crate) const fn add(&mut self, id: u32) {
        self.last_id = id;
        self.packets += 1;
    }
}

/// One datagram of verdict messages, without the payloads, which are gathered from where they are.
/// Its buffers are used again by each [`Datagram::fill`].
#[derive(Debug, Default)]
pub(crate) struct Datagram {
    heads: Vec<u8>,
    gaps: Vec<Gap>,
    /// How many answers of which queue.
    answers: Vec<(u16, u64)>,
    exact: u64,
    cumulative: u64,
}

impl Datagram {
    /// Writes as many of `runs` as fit in `limit` bytes, at least one. If there are longer ones
    /// than one packet, the runs of a queue must come together and in the order of their ids.
    ///
    /// The messages work in order: an exact verdict takes its packet off the queue before a later
    /// cumulative one passes over its id.
    #[inline]
    pub(crate) fn fill<'a>(
        &mut self,
        runs: impl Iterator<Item = Run<'a>>,
        limit: usize,
    ) -> Result<(), EncodeError> {
        self.heads.clear();
        self.gaps.clear();
        self.answers.clear();
        (self.exact, self.cumulative) = (0, 0);
        let mut len = 0;
        // The answers of a queue are counted together.
        let (mut queue, mut answers) = (0, 0);
        for run in runs {
            let (head, payload) = run.first.message_len();
            let is_full =
                len + head + payload > limit || payload > 0 && self.gaps.len() == PAYLOADS_MAX;
            if is_full && len > 0 {
                break;
            }
            len += head + payload;
            self.push(&run)?;
            if run.first.queue != queue && answers > 0 {
                self.answers.push((queue, answers));
                answers = 0;
            }
            queue = run.first.queue;
            answers += run.packets;
        }
        if answers > 0 {
            self.answers.push((queue, answers));
        }
        Ok(())
    }

    /// Appends the message that answers a run.
    #[inline(always)]
    fn push(&mut self, run: &Run<'_>) -> Result<(), EncodeError> {
        let Run { first, last_id, packets } = *run;
        let Answer { queue, id, verdict, changes, slot } = first;
        if packets > 1 {
            let (mark, priority) = (first.mark(), first.priority());
            VerdictBatchMessage { queue, last_id, verdict, mark, priority }.push(&mut self.heads);
            self.cumulative += 1;
            return Ok(());
        }
        match changes {
            None => VerdictMessage::new(queue, id, verdict).push_head(&mut self.heads, None)?,
            Some(changes) => self.push_changed(queue, id, verdict, changes, slot)?,
        }
        self.exact += 1;
        Ok(())
    }

    /// Appends a message with what was done to its packet. Takes the parts of an answer: those of
    /// unchanged packets, which are most, then need not be in memory.
    fn push_changed(
        &mut self,
        queue: u16,
        id: u32,
        verdict: Verdict,
        changes: &Changes,
        slot: usize,
    ) -> Result<(), EncodeError> {
        let Changes { mark, priority, .. } = *changes;
        let message = VerdictMessage { mark, priority, ..VerdictMessage::new(queue, id, verdict) };
        let payload_len = changes.payload_len(verdict);
        match changes.extras() {
            None => message.push_head(&mut self.heads, payload_len)?,
            Some(extras) => self.push_with_extras(message, extras, payload_len)?,
        }
        if let Some(payload_len) = payload_len {
            self.gaps.push(Gap { at: self.heads.len(), slot });
            attribute::pad(&mut self.heads, payload_len);
        }
        Ok(())
    }

    #[cold]
    fn push_with_extras(
        &mut self,
        message: VerdictMessage<'_>,
        extras: &Extras,
        payload_len: Option<usize>,
    ) -> Result<(), EncodeError> {
        let message = VerdictMessage {
            vlan: extras.vlan,
            l2_header: extras.l2_header.as_ref().map(L2Header::as_bytes),
            conntrack: extras.conntrack,
            ..message
        };
        message.push_head(&mut self.heads, payload_len)
    }

    /// All bytes but the payloads.
    pub(crate) fn heads(&self) -> &[u8] {
        &self.heads
    }

    /// Where the payloads go, in order.
    pub(crate) fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// How many packets of which queue it answers: the first ones that were not answered before.
    pub(crate) fn answers(&self) -> &[(u16, u64)] {
        &self.answers
    }

    /// How many packets it answers.
    pub(crate) fn answered(&self) -> u64 {
        self.answers.iter().map(|(_, count)| count).sum()
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
