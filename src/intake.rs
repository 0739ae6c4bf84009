//! The receiving side's books: what came in, what is missing, what the kernel refused, and packets
//! that came while something else was awaited.

use std::collections::VecDeque;

use netfilterqueue_protocol::ack::Ack;
use netfilterqueue_protocol::constants::{NFQNL_MSG_VERDICT, NFQNL_MSG_VERDICT_BATCH};
use netfilterqueue_protocol::packet::PacketIndex;

use crate::errno::Errno;
use crate::slot::{Content, Slot};
use crate::socket::{Arrival, Received};
use crate::stats::{Refusal, Stats};
use crate::sweep::{Unpermitted, swept_queue};
use crate::verdicts::Outstanding;

/// Most refusals that are kept for the user; older ones are only counted.
const REFUSALS_MAX: usize = 256;

/// What arrives on the socket of a queue.
#[derive(Debug)]
pub(crate) struct Intake {
    /// The receiving half of the statistics.
    pub(crate) stats: Stats,
    /// The newest packet id of each queue, in the order of their numbers; ids start at 1.
    last_ids: Box<[(u16, u32)]>,
    refusals: VecDeque<Refusal>,
    kept: VecDeque<Kept>,
    unpermitted: Unpermitted,
}

/// Packets of a queue without a gap between them, which are counted together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Consecutive {
    queue: u16,
    packets: u32,
    next_id: u32,
}

impl Consecutive {
    pub(crate) const fn new(queue: u16, id: u32) -> Self {
        Self { queue, packets: 1, next_id: id.wrapping_add(1) }
    }

    /// Takes in a packet if it is the next one.
    #[inline]
    pub(crate) const fn takes(&mut self, queue: u16, id: u32) -> bool {
        if self.queue != queue || self.next_id != id {
            return false;
        }
        self.packets += 1;
        self.next_id = id.wrapping_add(1);
        true
    }
}

/// A datagram that was received while an acknowledgement was awaited.
#[derive(Debug)]
pub(crate) struct Kept {
    datagram: Box<[u8]>,
    received: Received,
}

impl Kept {
    /// Copies the datagram, as if it had been received into `buffer`.
    pub(crate) fn copy_into(self, buffer: &mut [u8]) -> Received {
        let length = self.datagram.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.datagram[..length]);
        let is_cut = length < self.datagram.len();
        let arrival = if is_cut { Arrival::Truncated } else { self.received.arrival };
        Received { length, arrival }
    }
}

impl Intake {
    pub(crate) fn new(queues: impl Iterator<Item = u16>) -> Self {
        let mut last_ids: Box<[_]> = queues.map(|queue| (queue, 0)).collect();
        last_ids.sort_unstable();
        Self {
            stats: Stats::default(),
            last_ids,
            refusals: VecDeque::with_capacity(REFUSALS_MAX),
            kept: VecDeque::new(),
            unpermitted: Unpermitted::default(),
        }
    }

    /// As if all queues had come to this packet id.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn after(mut self, id: u32) -> Self {
        self.last_ids.iter_mut().for_each(|(_, last_id)| *last_id = id);
        self
    }

    /// Keeps a datagram for the next receive.
    pub(crate) fn keep(&mut self, datagram: &[u8], received: Received) {
        self.kept.push_back(Kept { datagram: datagram.into(), received });
    }

    /// Begins anew, except for the kept packets of queues that `is_stale` says no to.
    pub(crate) fn forget(&mut self, is_stale: impl Fn(u16) -> bool) {
        self.stats = Stats::default();
        self.refusals.clear();
        self.unpermitted = Unpermitted::default();
        self.kept.retain(|kept| {
            let packet = PacketIndex::salvage(&kept.datagram);
            !packet.is_some_and(|packet| is_stale(packet.queue()))
        });
    }

    /// Whether there are any.
    pub(crate) fn has_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// The oldest datagram that was kept.
    pub(crate) fn next_kept(&mut self) -> Option<Kept> {
        self.kept.pop_front()
    }

    /// Loads slots with what was received into their buffers and enters it into the books, but for
    /// the packets of the last `run`, which may go on: they are to be counted at the end. Returns
    /// the number of packets that need a verdict.
    #[inline]
    pub(crate) fn load<'a>(
        &mut self,
        received: impl Iterator<Item = (&'a mut Slot, &'a [u8], Received)>,
        run: &mut Consecutive,
        outstanding: &Outstanding,
    ) -> usize {
        let mut packets = 0;
        for (slot, datagram, received) in received {
            if !slot.load_packet(datagram, received) {
                let content = slot.load_other(datagram, received);
                self.count_content(&content, outstanding);
                if !slot.is_pending() {
                    continue;
                }
            }
            if !run.takes(slot.queue(), slot.id()) {
                self.count_packets(*run, outstanding);
                *run = Consecutive::new(slot.queue(), slot.id());
            }
            packets += 1;
        }
        packets
    }

    /// Enters packets into the books that need a verdict.
    pub(crate) fn count_packets(&mut self, run: Consecutive, outstanding: &Outstanding) {
        let Consecutive { queue, packets, next_id } = run;
        if packets == 0 {
            return;
        }
        self.stats.received += u64::from(packets);
        outstanding.received(queue, packets.into());
        let found = self.last_ids.binary_search_by_key(&queue, |(number, _)| *number);
        // A queue that somebody else has bound to the same socket has unknown gaps.
        let Some((_, last_id)) = found.ok().and_then(|at| self.last_ids.get_mut(at)) else {
            return;
        };
        // Ids are consecutive; distances are signed because they wrap at 2^32.
        let after_last = next_id.wrapping_sub(*last_id).wrapping_sub(1);
        if after_last.cast_signed() > 0 {
            self.stats.lost += u64::from(after_last.saturating_sub(packets));
            *last_id = next_id.wrapping_sub(1);
        }
    }

    /// Enters what else a datagram was into the books.
    pub(crate) fn count_content(&mut self, content: &Content<'_>, outstanding: &Outstanding) {
        match content {
            Content::Packet(_) => {}
            Content::Unreadable { truncated: true, .. } => self.stats.truncated += 1,
            Content::Unreadable { truncated: false, .. } => self.stats.malformed += 1,
            Content::Ack(ack) => self.count_ack(ack, outstanding),
            Content::Foreign => self.stats.foreign += 1,
            Content::Unknown => {
                self.stats.unknown += 1;
                // It may have been a refusal, cut off because kernels before 4.3 repeat the whole
                // request.
                outstanding.distrust();
            }
        }
    }

    /// The kernel reported that an answer of its could not be delivered. It may have been a
    /// refusal.
    pub(crate) fn count_overrun(&mut self, outstanding: &Outstanding) {
        self.stats.overruns += 1;
        outstanding.distrust();
    }

    /// The kernel's answer to a verdict. Answers to configuration requests are awaited elsewhere;
    /// one that comes late means nothing any more.
    fn count_ack(&mut self, ack: &Ack<'_>, outstanding: &Outstanding) {
        let cumulative = match ack.request_kind() {
            NFQNL_MSG_VERDICT => false,
            NFQNL_MSG_VERDICT_BATCH => true,
            _ => return,
        };
        let errno = Errno(ack.errno());
        if let Some(queue) = swept_queue(ack.request_port()) {
            // All are dropped, nothing is left, or even the queue is gone.
            if ack.errno() == 0 || matches!(errno, Errno::ENOENT | Errno::ENODEV) {
                self.unpermitted.remove(queue);
            }
            return;
        }
        if ack.errno() == 0 {
            return;
        }
        if errno != Errno::ENOENT {
            outstanding.distrust();
        }
        self.stats.refused += 1;
        if self.refusals.len() == REFUSALS_MAX {
            self.refusals.pop_front();
        }
        // Verdict messages carry the packet id as their sequence number and the queue as their port
        // id.
        let queue = u16::try_from(ack.request_port()).unwrap_or_default();
        if errno == Errno::EPERM && outstanding.counts_all(queue) {
            // The whole datagram was refused, and any queue may have had a verdict in it.
            self.unpermitted.add(outstanding.queues());
        }
        self.refusals.push_back(Refusal { queue, id: ack.request_sequence(), cumulative, errno });
    }

    /// Whether verdicts were refused whose packets may wait still.
    pub(crate) fn has_unpermitted(&self) -> bool {
        !self.unpermitted.is_empty()
    }

    /// The queues of such packets, each with the newest packet id that was received.
    pub(crate) fn unpermitted(&self) -> impl Iterator<Item = (u16, u32)> {
        self.last_ids.iter().copied().filter(|(queue, _)| self.unpermitted.has(*queue))
    }

    /// The refusals since the last call, oldest first.
    pub(crate) fn take_refusals(&mut self) -> Vec<Refusal> {
        self.refusals.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(intake: &mut Intake, queue: u16, id: u32) {
        intake.count_packets(Consecutive::new(queue, id), &Outstanding::new(&[]));
    }

    #[test]
    fn gaps_in_ids_are_losses() {
        let mut intake = Intake::new([1].into_iter());
        receive(&mut intake, 1, 1);
        receive(&mut intake, 1, 2);
        assert_eq!(intake.stats.lost, 0);
        receive(&mut intake, 1, 6);
        assert_eq!(intake.stats.lost, 3);
        receive(&mut intake, 1, 7);
        assert_eq!((intake.stats.lost, intake.stats.received), (3, 4));
    }

    #[test]
    fn each_queue_has_its_own_ids() {
        let mut intake = Intake::new([9, 2].into_iter());
        for id in 1..4 {
            receive(&mut intake, 2, id);
            receive(&mut intake, 9, id);
        }
        assert_eq!((intake.stats.lost, intake.stats.received), (0, 6));
        receive(&mut intake, 2, 5);
        assert_eq!(intake.stats.lost, 1);
        receive(&mut intake, 7, 1_000);
        assert_eq!(intake.stats.lost, 1, "of a queue that is not ours nothing is known");
    }

    #[test]
    fn ids_wrap_without_loss() {
        let mut intake = Intake::new([1].into_iter()).after(u32::MAX - 1);
        receive(&mut intake, 1, u32::MAX);
        receive(&mut intake, 1, 0);
        receive(&mut intake, 1, 2);
        assert_eq!(intake.stats.lost, 1);
    }

    #[test]
    fn an_unreadable_packet_is_counted_and_no_gap() {
        let mut intake = Intake::new([1].into_iter());
        receive(&mut intake, 1, 1);
        let content = Content::Unreadable { packet: PacketIndex::default(), truncated: true };
        intake.count_content(&content, &Outstanding::new(&[1]));
        receive(&mut intake, 1, 2);
        receive(&mut intake, 1, 3);
        assert_eq!((intake.stats.lost, intake.stats.truncated), (0, 1));
    }

    #[test]
    fn a_kept_datagram_is_cut_to_a_shorter_buffer() {
        let received = Received { length: 5, arrival: Arrival::Whole };
        let mut intake = Intake::new([1].into_iter());
        intake.keep(b"abcde", received);
        intake.keep(b"fg", received);
        let mut buffer = [0; 3];
        let first = intake.next_kept().expect("kept").copy_into(&mut buffer);
        assert_eq!((&buffer, first.length, first.arrival), (b"abc", 3, Arrival::Truncated));
        let second = intake.next_kept().expect("kept").copy_into(&mut buffer);
        assert_eq!(&buffer[..second.length], b"fg");
        assert_eq!(second.arrival, Arrival::Whole);
        assert!(intake.next_kept().is_none());
    }
}
