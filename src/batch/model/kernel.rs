//! The kernel's queues and the socket in front of them, as far as verdicts can tell.
//!
//! It reads the very bytes that would be sent and does with them what the kernel does: an exact
//! verdict takes one packet off the list, a cumulative one takes every packet off whose id is at or
//! before the given one by signed distance. It drops what waits when rules change, refuses all that
//! a thread without the capability sends, and puts its refusals behind packets that nobody has
//! received yet, or nowhere.

use netfilterqueue_protocol::constants::NFQNL_MSG_VERDICT;
use netfilterqueue_protocol::message::{Message, Messages};
use netfilterqueue_protocol::verdict::{VerdictBatchMessage, VerdictMessage};

use super::*;
use crate::errno::Errno;

/// Queue number and packet id.
pub(in super::super) type Key = (u16, u32);

/// What waits in the socket.
#[derive(Debug)]
pub(super) enum Waiting {
    Packet(Key, Shape),
    Refusal(Vec<u8>),
    /// The answer to a sweep.
    Swept(Vec<u8>),
}

impl Waiting {
    pub(super) fn datagram(&self) -> (Vec<u8>, Arrival) {
        match self {
            Self::Packet((queue, id), shape) => sample::packet(*queue, *id, *shape),
            Self::Refusal(bytes) | Self::Swept(bytes) => (bytes.clone(), Arrival::Whole),
        }
    }
}

#[derive(Debug, Default)]
pub(in super::super) struct Kernel {
    /// Queue numbers and ids that wait for a verdict, oldest first.
    pub(in super::super) list: Vec<Key>,
    pub(super) socket: VecDeque<Waiting>,
    pub(in super::super) fates: BTreeMap<Key, Fate>,
    pub(super) next_ids: BTreeMap<u16, u32>,
    /// Packets that nobody has received yet.
    pub(super) unread: BTreeSet<Key>,
    /// Packets that were dropped unasked.
    pub(super) flushed: BTreeSet<Key>,
    /// Packets that a refused verdict was about and that still wait.
    pub(super) denied: BTreeSet<Key>,
    /// Those of them that were dropped later.
    pub(super) swept: BTreeSet<Key>,
    /// The socket has no room for refusals.
    pub(super) is_full: bool,
}

impl Kernel {
    pub(in super::super) fn enqueue(&mut self, queue: u16, shape: Shape) {
        let packet = (queue, self.lose(queue));
        self.list.push(packet);
        self.unread.insert(packet);
        self.socket.push_back(Waiting::Packet(packet, shape));
    }

    /// A packet that the socket had no room for.
    pub(super) fn lose(&mut self, queue: u16) -> u32 {
        let next_id = self.next_ids.get_mut(&queue).expect("a known queue");
        let id = *next_id;
        *next_id = id.wrapping_add(1);
        id
    }

    /// Rules have changed.
    pub(super) fn flush(&mut self) {
        self.flushed.extend(self.list.drain(..));
        self.denied.clear();
    }

    /// All of a datagram, or nothing of it.
    pub(super) fn take(&mut self, datagram: &[u8], is_permitted: bool) {
        for message in Messages::new(datagram) {
            let message = message.expect("well-formed message");
            if message.kind() == NFQNL_MSG_VERDICT {
                let verdict = VerdictMessage::parse(message).expect("well-formed verdict");
                let key = (verdict.queue, verdict.id);
                let fate = Fate {
                    verdict: verdict.verdict,
                    mark: verdict.mark,
                    priority: verdict.priority,
                    vlan: verdict.vlan,
                    payload: verdict.payload.map(<[u8]>::to_vec),
                };
                self.judge(message, is_permitted, &fate, |packet| *packet == key);
            } else {
                let batch = VerdictBatchMessage::parse(message).expect("well-formed batch");
                let VerdictBatchMessage { mark, priority, .. } = batch;
                let fate = Fate { mark, priority, ..Fate::plain(batch.verdict) };
                self.judge(message, is_permitted, &fate, |(queue, id)| {
                    *queue == batch.queue && id.wrapping_sub(batch.last_id).cast_signed() <= 0
                });
            }
        }
        if !is_permitted && let Some(Ok(first)) = Messages::new(datagram).next() {
            self.refuse(first, Errno::EPERM);
        }
    }

    pub(super) fn judge(
        &mut self,
        message: Message<'_>,
        is_permitted: bool,
        fate: &Fate,
        reaches: impl Fn(&Key) -> bool,
    ) {
        let mut reached = 0;
        let Self { list, unread, denied, fates, .. } = self;
        list.retain(|packet| {
            if !reaches(packet) {
                return true;
            }
            reached += 1;
            assert!(!unread.contains(packet), "a verdict reached a packet nobody received");
            if !is_permitted {
                denied.insert(*packet);
                return true;
            }
            assert!(!denied.contains(packet), "a verdict reached a packet that was judged before");
            assert!(fates.insert(*packet, fate.clone()).is_none());
            false
        });
        if reached == 0 && is_permitted {
            assert!(self.flushed.iter().any(reaches), "a verdict on packets that were gone");
            self.refuse(message, Errno::ENOENT);
        }
    }

    /// Drops what refused verdicts were about; it may reach no other packet.
    pub(super) fn sweep(&mut self, datagram: &[u8], is_permitted: bool) {
        let message = Message::parse(datagram).expect("well-formed message");
        let batch = VerdictBatchMessage::parse(message).expect("well-formed batch");
        assert_eq!((batch.verdict, batch.mark), (Verdict::Drop, None));
        let mut errno = if is_permitted { Errno::ENOENT.0 } else { Errno::EPERM.0 };
        let Self { list, denied, swept, .. } = self;
        list.retain(|packet| {
            let is_reached = is_permitted
                && packet.0 == batch.queue
                && packet.1.wrapping_sub(batch.last_id).cast_signed() <= 0;
            if is_reached {
                assert!(
                    denied.remove(packet),
                    "a sweep reached a packet without a refused verdict"
                );
                swept.insert(*packet);
                errno = 0;
            }
            !is_reached
        });
        if !self.is_full {
            let answer = sample::Answer::new(message.kind(), message.sequence(), errno);
            self.socket.push_back(Waiting::Swept(answer.port(message.port()).write()));
        }
    }

    pub(super) fn refuse(&mut self, request: Message<'_>, errno: Errno) {
        if !self.is_full {
            let answer = sample::Answer::new(request.kind(), request.sequence(), errno.0);
            self.socket.push_back(Waiting::Refusal(answer.port(request.port()).write()));
        }
    }
}
