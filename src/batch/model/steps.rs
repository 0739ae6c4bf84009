//! What can happen to packets and verdicts, one step per four bytes: for random bytes and those of
//! a fuzzer.

use super::*;

pub(in super::super) const STEP_LEN: usize = 4;

/// A sequence of steps, and what holds all the time.
#[derive(Debug)]
pub(in super::super) struct Play {
    /// Most bytes of one datagram.
    limit: usize,
    first_id: u32,
    queues: &'static [u16],
    permitted: [bool; 2],
    refusals_are_lost: bool,
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    /// So many packets, of these queues in turn.
    Enqueue(usize, &'static [u16], Shape),
    Receive(usize),
    Decide(usize, usize, Fate),
    DecideAll(usize, Fate),
    Retain(usize, usize),
    JudgeRetained(usize, Fate, usize),
    /// The last number is the thread that sends.
    Commit(usize, usize),
    DropBatch(usize, usize),
    FailSends(usize),
    Expire(usize),
    SendOrphans(usize),
    Sweep(usize),
    /// Whether a thread has the capability from now on.
    Permit(usize, bool),
    Lose(u16),
    Flush,
}

/// Each id leaves with the verdict chosen for it, once, and none stays.
#[cfg(fuzzing)]
pub(crate) fn play(bytes: &[u8]) {
    Play::read(bytes).run();
}

impl Play {
    pub(in super::super) fn read(bytes: &[u8]) -> Self {
        let (chunks, _) = bytes.as_chunks::<STEP_LEN>();
        let (&[limit, ids, permissions, _], steps) =
            chunks.split_first().unwrap_or((&[0; STEP_LEN], &[]));
        // Nearly always all may send.
        let permitted = [0b1111_0000, 0b0000_1111].map(|mask| permissions & mask != mask);
        Self {
            limit: if limit == u8::MAX { 212_960 } else { 100 + 2 * usize::from(limit) },
            first_id: [1, u32::MAX - 20, 0x7fff_fff0][usize::from(ids % 3)],
            queues: if ids / 3 % 4 == 0 { &QUEUES[..1] } else { &QUEUES },
            permitted,
            refusals_are_lost: ids >= 0x80,
            steps: steps.iter().map(|step| Step::read(*step)).collect(),
        }
    }

    pub(in super::super) fn run(self) {
        let mut library = Library::with(self.queues, self.first_id, self.limit);
        library.wire.permitted = self.permitted;
        library.wire.kernel.is_full = self.refusals_are_lost;
        for step in self.steps {
            step.take(&mut library);
        }
        library.finish();
    }
}

impl Step {
    fn read([what, a, b, c]: [u8; STEP_LEN]) -> Self {
        let [at_a, at_b] = [a, b].map(usize::from);
        // A second thread makes all verdicts exact, so it is rare.
        let sender = usize::from(c >= 0xf0);
        match what % 16 {
            0 | 1 => {
                // Now and then more edited packets than one datagram carries.
                let packets = if a >= 0xf0 { 90 } else { 1 + at_a % 11 };
                let queues: &[u16] = match b % 8 {
                    0 => &QUEUES,
                    1 => &[QUEUES[1]],
                    2 => &[QUEUE, FOREIGN],
                    _ => &[QUEUE],
                };
                let shape = match c {
                    0..16 => Shape::Truncated,
                    16..32 => Shape::Malformed,
                    _ => Shape::Whole,
                };
                Self::Enqueue(packets, queues, shape)
            }
            2 | 3 => Self::Receive(if a >= 0xe0 { 90 } else { 1 + at_a % 8 }),
            4 | 5 => Self::Decide(at_a, at_b, fate(c)),
            6 | 7 => Self::DecideAll(at_a, fate(c)),
            8 => Self::Retain(at_a, at_b),
            9 => Self::JudgeRetained(at_a, fate(b), sender),
            10..=12 => Self::Commit(at_a, sender),
            13 => Self::FailSends(1 + at_a % 2),
            14 => Self::DropBatch(at_a, sender),
            _ => match b % 8 {
                0 => Self::Permit(sender, at_a % 2 == 0),
                1 => Self::Expire(at_a),
                2 | 3 => Self::SendOrphans(sender),
                4 => Self::Sweep(sender),
                5 | 6 => Self::Lose(QUEUES[at_a % 2]),
                _ => Self::Flush,
            },
        }
    }

    fn take(self, library: &mut Library) {
        match self {
            Self::Enqueue(packets, queues, shape) => {
                for queue in queues.iter().cycle().take(packets) {
                    library.wire.kernel.enqueue(*queue, shape);
                }
            }
            Self::Receive(most) => library.receive(most),
            Self::Decide(batch, at, fate) => library.decide(batch, at, fate),
            Self::DecideAll(batch, fate) => library.decide_all(batch, &fate),
            Self::Retain(batch, at) => library.retain(batch, at),
            Self::JudgeRetained(at, fate, sender) => library.judge_retained(at, fate, sender),
            Self::Commit(batch, sender) => library.commit(batch, sender),
            Self::DropBatch(batch, sender) => library.drop_batch(batch, sender),
            Self::FailSends(sends) => library.wire.failing_sends = sends,
            Self::Expire(at) => library.expire(at),
            Self::SendOrphans(sender) => library.send_orphans(sender),
            Self::Sweep(sender) => library.sweep(sender),
            Self::Permit(sender, is_permitted) => library.permit(sender, is_permitted),
            Self::Lose(queue) => drop(library.wire.kernel.lose(queue)),
            Self::Flush => library.wire.kernel.flush(),
        }
    }
}

/// Most fates are plain, and many the same.
fn fate(byte: u8) -> Fate {
    let verdict = match byte % 8 {
        0..4 => Verdict::Accept,
        4 | 5 => Verdict::Drop,
        6 => Verdict::Stop,
        _ => Verdict::Queue { number: u16::from(byte), bypass: byte >= 0x80 },
    };
    let mut fate = Fate::plain(verdict);
    match byte / 8 {
        0..18 => {}
        number @ 18..21 => fate.mark = Some(number.into()),
        number @ 21..24 => fate.priority = Some(number.into()),
        24 | 25 => fate.vlan = Some(Vlan { proto: 0x8100, tci: byte.into() }),
        number => fate.payload = Some(vec![byte; 1 + 13 * usize::from(number - 26)]),
    }
    fate
}
