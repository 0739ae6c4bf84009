//! Keeps retained packets for a while, then judges them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use netfilterqueue::{Error, NotSent, RetainedPacket, StatsHandle, Verdict};

use crate::judge::{Shared, write_body};
use crate::plan::Stream;

/// How long a packet is kept.
pub(crate) const HOLD: Duration = Duration::from_millis(3);

/// A packet whose deadline has passed for so long should have got its default verdict.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to do with a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Task {
    Accept,
    Drop,
    /// Other content from the byte `at` on.
    Edit {
        stream: Stream,
        key: u64,
        at: usize,
    },
    /// Nothing: its deadline passes.
    Expire,
}

/// A packet that somebody has to judge.
#[derive(Debug)]
pub(crate) struct Held {
    packet: RetainedPacket,
    task: Task,
    since: Instant,
}

impl Held {
    pub(crate) fn new(packet: RetainedPacket, task: Task) -> Self {
        Self { packet, task, since: Instant::now() }
    }
}

/// Keeps the packets of one queue, in the order in which they came.
pub(crate) struct Holder {
    shared: Arc<Shared>,
    stats: StatsHandle,
    held: VecDeque<Held>,
    /// Those with a deadline.
    expiring: VecDeque<Held>,
    expired: u64,
}

impl Holder {
    pub(crate) fn new(shared: Arc<Shared>, stats: StatsHandle) -> Self {
        let (held, expiring) = (VecDeque::new(), VecDeque::new());
        Self { shared, stats, held, expiring, expired: 0 }
    }

    pub(crate) fn keep(&mut self, held: Held) {
        match held.task {
            Task::Expire => self.expiring.push_back(held),
            _ => self.held.push_back(held),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.expiring.is_empty()
    }

    /// Keeps what comes, in a thread of its own, until nobody can give it packets any more.
    pub(crate) fn run(mut self, packets: &Receiver<Held>) {
        loop {
            match packets.recv_timeout(HOLD) {
                Ok(held) => self.keep(held),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.judge_due();
        }
    }

    /// Judges what was kept for long enough.
    pub(crate) fn judge_due(&mut self) {
        while self.held.front().is_some_and(|held| held.since.elapsed() >= HOLD)
            && let Some(held) = self.held.pop_front()
        {
            if let Err(error) = self.judge(held) {
                self.shared.trouble.report(|| error.to_string());
            }
        }
        self.let_expire();
    }

    #[expect(clippy::result_large_err, reason = "a failure gives the packet back")]
    fn judge(&self, held: Held) -> Result<(), NotSent> {
        let mut packet = held.packet;
        match held.task {
            Task::Accept | Task::Expire => packet.accept(),
            Task::Drop => packet.verdict(Verdict::Drop),
            Task::Edit { stream, key, at } => {
                let body = self.shared.pattern.body(&stream, stream.edited(key));
                match packet.payload_mut() {
                    Ok(payload) => write_body(payload, at, body),
                    Err(error) => self.shared.trouble.report(|| {
                        let name = stream.name;
                        format!("{name}: retained datagram {key} cannot be edited: {error}")
                    }),
                }
                packet.accept()
            }
        }
    }

    /// Lets go what has got its default verdict; a verdict that comes after it must fail.
    fn let_expire(&mut self) {
        let Some(oldest) = self.expiring.front() else { return };
        if oldest.packet.deadline().is_none_or(|deadline| deadline > Instant::now()) {
            return;
        }
        let expired = self.stats.stats().expired;
        while self.expired < expired
            && let Some(held) = self.expiring.pop_front()
        {
            self.expired += 1;
            let id = held.packet.id();
            let result = held.packet.accept();
            if !matches!(result, Err(NotSent { error: Error::Expired, .. })) {
                self.shared.trouble.report(|| {
                    format!("packet {id} could be judged after its deadline: {result:?}")
                });
            }
        }
        if self.expiring.front().is_some_and(|held| held.since.elapsed() > PATIENCE) {
            self.shared.trouble.report(|| "a deadline has passed without a verdict".to_owned());
        }
    }
}
