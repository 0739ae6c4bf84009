//! Packets whose verdicts the kernel refused because the sender lacked `CAP_NET_ADMIN`.
//!
//! Such a refusal comes when the packets count as answered and nobody holds them any more; it names
//! the first one of a datagram and no other, which may be of other queues. So that they do not wait
//! for ever, they are dropped together, by a cumulative verdict up to the newest id that was
//! received, as soon as it reaches no packet that somebody holds and the kernel accepts it. What
//! was decided about them is not known by then. They do not get the default verdict: that may be to
//! accept, and some may have been to be dropped.

use std::collections::BTreeSet;

use netfilterqueue_protocol::verdict::{Verdict, VerdictBatchMessage};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer};

/// In the port id of a sweep's message, which the kernel ignores and repeats: what its answer is
/// known by. Verdicts have the queue number alone there.
const SWEEP: u32 = 1 << 16;

/// The queues that have to be swept.
#[derive(Debug, Default)]
pub(crate) struct Unpermitted(BTreeSet<u16>);

impl Unpermitted {
    pub(crate) fn add(&mut self, queues: impl Iterator<Item = u16>) {
        self.0.extend(queues);
    }

    pub(crate) fn remove(&mut self, queue: u16) {
        self.0.remove(&queue);
    }

    pub(crate) fn has(&self, queue: u16) -> bool {
        self.0.contains(&queue)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The message that drops all packets of a queue up to an id, and asks for an answer.
pub(crate) fn sweep(queue: u16, last_id: u32) -> Vec<u8> {
    let mut datagram = Vec::new();
    let verdict = Verdict::Drop;
    VerdictBatchMessage { queue, last_id, verdict, mark: None, priority: None }.push(&mut datagram);
    let mut header = NetlinkBuffer::new(&mut datagram);
    header.set_flags(NLM_F_REQUEST | NLM_F_ACK);
    header.set_port_number(SWEEP | u32::from(queue));
    datagram
}

/// The queue that a message with this port id has swept; `None` for any other message.
pub(crate) fn swept_queue(request_port: u32) -> Option<u16> {
    request_port.checked_sub(SWEEP).and_then(|queue| u16::try_from(queue).ok())
}

#[cfg(test)]
mod tests {
    use netfilterqueue_protocol::message::Message;

    use super::*;

    #[test]
    fn a_sweep_is_a_cumulative_verdict_with_an_answer_of_its_own() {
        let datagram = sweep(0xfffe, 7);
        let message = Message::parse(&datagram).expect("a message");
        assert_eq!(message.flags(), NLM_F_REQUEST | NLM_F_ACK);
        assert_eq!(swept_queue(message.port()), Some(0xfffe));
        let parsed = VerdictBatchMessage::parse(message).expect("a cumulative verdict");
        assert_eq!((parsed.queue, parsed.last_id, parsed.verdict), (0xfffe, 7, Verdict::Drop));
        assert_eq!(swept_queue(0xfffe), None, "as an ordinary verdict has it");
        assert_eq!(swept_queue(1 << 17), None);
    }
}
