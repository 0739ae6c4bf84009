//! Keeps retained packets for a while and judges them from a thread of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use netfilterqueue::{Error, NotSent, RetainedPacket, StatsHandle, Verdict};

use crate::judge::{Shared, write_body};
use crate::plan::{QUEUES, Stream};

/// How long a packet is kept.
const HOLD: Duration = Duration::from_millis(3);

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
    /// Index of the queue it came from.
    queue: usize,
    packet: RetainedPacket,
    task: Task,
    since: Instant,
}

impl Held {
    pub(crate) fn new(queue: usize, packet: RetainedPacket, task: Task) -> Self {
        Self { queue, packet, task, since: Instant::now() }
    }
}

/// Keeps packets in the order in which they came.
pub(crate) struct Holder {
    shared: Arc<Shared>,
    stats: [StatsHandle; QUEUES.len()],
    held: VecDeque<Held>,
    /// By queue, because the default verdicts of a queue come in their order.
    expiring: [VecDeque<Held>; QUEUES.len()],
    expired: [u64; QUEUES.len()],
}

impl Holder {
    pub(crate) fn new(shared: Arc<Shared>, stats: [StatsHandle; QUEUES.len()]) -> Self {
        let expiring = [VecDeque::new(), VecDeque::new()];
        Self { shared, stats, held: VecDeque::new(), expiring, expired: [0; QUEUES.len()] }
    }

    /// Returns when nobody can give it packets any more and it has none left.
    pub(crate) fn run(mut self, packets: &Receiver<Held>) {
        loop {
            match packets.recv_timeout(HOLD) {
                Ok(held) if matches!(held.task, Task::Expire) => {
                    self.expiring[held.queue].push_back(held);
                }
                Ok(held) => self.held.push_back(held),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while self.held.front().is_some_and(|held| held.since.elapsed() >= HOLD)
                && let Some(held) = self.held.pop_front()
            {
                if let Err(error) = self.judge(held) {
                    self.shared.trouble.report(|| error.to_string());
                }
            }
            (0..QUEUES.len()).for_each(|queue| self.let_expire(queue));
        }
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
                        format!(
                            "{}: retained datagram {key} cannot be edited: {error}",
                            stream.name
                        )
                    }),
                }
                packet.accept()
            }
        }
    }

    /// Lets go what has got its default verdict; a verdict that comes after it must fail.
    fn let_expire(&mut self, queue: usize) {
        let Some(oldest) = self.expiring[queue].front() else { return };
        if oldest.packet.deadline().is_none_or(|deadline| deadline > Instant::now()) {
            return;
        }
        let expired = self.stats[queue].stats().expired;
        while self.expired[queue] < expired
            && let Some(held) = self.expiring[queue].pop_front()
        {
            self.expired[queue] += 1;
            let id = held.packet.id();
            let result = held.packet.accept();
            if !matches!(result, Err(NotSent { error: Error::Expired, .. })) {
                self.shared.trouble.report(|| {
                    format!("packet {id} could be judged after its deadline: {result:?}")
                });
            }
        }
        if self.expiring[queue].front().is_some_and(|held| held.since.elapsed() > PATIENCE) {
            self.shared.trouble.report(|| "a deadline has passed without a verdict".to_owned());
        }
    }
}
