//! The receive buffers of a batch, with a slot for the packet in each.

use std::fmt;
use std::iter::Take;
use std::ops::Range;
use std::slice::{ChunksExactMut, IterMut};

use crate::slot::Slot;
use crate::socket::{RECEIVE_MAX, Received};

/// Room for the longest message: 65,531 bytes of payload and everything else (about 250 bytes with
/// a conntrack entry) with plenty to spare.
pub(crate) const WHOLE_PACKET_LEN: usize = 65_536 + 4_096;

/// Room for what must always be readable: a packet's id, and the kernel's answer to a request with
/// its explanation.
const BUFFER_LEN_MIN: usize = 256;

/// Distance between buffers beyond their length. Buffers a multiple of 4 KiB apart would all start
/// in the same few sets of the processor's caches; three lines more spread them over all sets.
const STRIDE_EXTRA: usize = 192;

/// A row of buffers in one allocation, with a slot each.
pub(crate) struct Slots {
    slots: Box<[Slot]>,
    /// So many slots at the front may hold something.
    filled: usize,
    /// What the last receive call has told.
    received: Box<[Received]>,
    /// Allocated zeroed, so that the system gives each page only when a packet fills it.
    memory: Vec<u8>,
    stride: usize,
    buffer_len: usize,
}

impl Slots {
    pub(crate) fn new(count: usize, buffer_len: usize) -> Self {
        let count = count.max(1);
        let buffer_len = buffer_len.max(BUFFER_LEN_MIN);
        let stride = buffer_len.checked_next_multiple_of(64);
        let stride = stride.and_then(|stride| stride.checked_add(STRIDE_EXTRA));
        let stride = stride.expect("buffers longer than the address space");
        let total = stride.checked_mul(count).expect("more buffers than the address space holds");
        Self {
            slots: std::iter::repeat_with(Slot::default).take(count).collect(),
            filled: 0,
            received: vec![Received::default(); count.min(RECEIVE_MAX)].into(),
            memory: vec![0; total],
            stride,
            buffer_len,
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Calls `receive` with up to `count` buffers, from the one at `first` on, and as many places
    /// to note what was received into them.
    pub(crate) fn receive_by<'a, T>(
        &'a mut self,
        first: usize,
        count: usize,
        receive: impl FnOnce(BuffersMut<'a>, &'a mut [Received]) -> T,
    ) -> T {
        let memory = self.memory.get_mut(first * self.stride..).unwrap_or_default();
        let chunks = memory.chunks_exact_mut(self.stride);
        let count = count.min(self.received.len());
        receive(BuffersMut { chunks, len: self.buffer_len }, &mut self.received[..count])
    }

    /// The slots from the one at `first` on, as many as have been received into, with the datagrams
    /// they are to take in.
    #[inline]
    pub(crate) fn received(
        &mut self,
        first: usize,
        count: usize,
    ) -> impl Iterator<Item = (&mut Slot, &[u8], Received)> {
        self.filled = first + count;
        let slots = self.slots.get_mut(first..).unwrap_or_default();
        let memory = self.memory.get(first * self.stride..).unwrap_or_default();
        let pairs = slots.iter_mut().zip(memory.chunks_exact(self.stride));
        pairs.zip(&self.received[..count]).map(|((slot, chunk), received)| {
            (slot, chunk.get(..received.length).unwrap_or(chunk), *received)
        })
    }

    /// The edited payload of the packet in a slot; empty if it was not edited.
    pub(crate) fn edited(&self, at: usize) -> &[u8] {
        self.slots[at].edit().map_or(&[], |edit| &self.memory[at * self.stride..][edit.range()])
    }

    /// One slot with its buffer.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn at_mut(&mut self, at: usize) -> (&mut Slot, &mut [u8]) {
        (&mut self.slots[at], &mut self.memory[at * self.stride..][..self.buffer_len])
    }

    /// Empties up to `most` of the slots in `range` that hold something. Returns how many.
    #[inline]
    pub(crate) fn clear(&mut self, range: Range<usize>, most: u64) -> u64 {
        let mut cleared = 0;
        for slot in &mut self.slots[range] {
            if cleared == most {
                break;
            }
            cleared += u64::from(slot.is_pending());
            slot.clear();
        }
        cleared
    }

    /// The slots that may hold something.
    #[inline]
    pub(crate) fn filled(&self) -> &[Slot] {
        &self.slots[..self.filled]
    }

    /// Empties all slots: what is in them means nothing from now on.
    pub(crate) const fn clear_all(&mut self) {
        self.filled = 0;
    }

    /// Each slot that may hold something, with its buffer.
    #[inline]
    pub(crate) fn pairs_mut(&mut self) -> Pairs<'_> {
        let slots = self.slots.iter_mut().take(self.filled);
        Pairs { slots, chunks: self.memory.chunks_exact_mut(self.stride) }
    }
}

/// Buffers to receive into.
#[derive(Debug)]
pub(crate) struct BuffersMut<'a> {
    chunks: ChunksExactMut<'a, u8>,
    len: usize,
}

impl<'a> Iterator for BuffersMut<'a> {
    type Item = &'a mut [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a mut [u8]> {
        self.chunks.next()?.get_mut(..self.len)
    }
}

impl fmt::Debug for Slots {
    /// Without the megabytes of memory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.filled().iter().filter(|slot| slot.is_pending())).finish()
    }
}

/// Iterates over slots with their buffers (padding included).
pub(crate) struct Pairs<'a> {
    slots: Take<IterMut<'a, Slot>>,
    chunks: ChunksExactMut<'a, u8>,
}

impl fmt::Debug for Pairs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pairs").finish_non_exhaustive()
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a mut Slot, &'a mut [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        Some((self.slots.next()?, self.chunks.next()?))
    }
}
