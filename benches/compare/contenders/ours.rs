//! The library, as its users call it: `--door run` (the default) or `--door batch`. `--door
//! stoppable` is `run` while somebody has a stop handle. `--door fanout` runs several queues by the
//! library's own threads instead of the dialogue's, `--door pinned` with each bound to processors.

mod dialogue;

use std::sync::atomic::{AtomicU64, Ordering};

use dialogue::{Arguments, Failure, Task, Worker};
use netfilterqueue::{
    Batch, Decided, EditMode, Fanout, FlowBypass, FlowMarks, Packet, Queue, QueueBuilder,
    RetainedPacket, Stats, StopHandle, Verdict,
};

/// More than kernels hold, so that the receive buffer is what limits a backlog.
const MAX_LEN: u32 = 131_072;

/// The rules that the harness installs use these.
const FLOWS: FlowBypass =
    FlowBypass::assume_installed(FlowMarks::new(0x1000_0000, 0x2000_0000).unwrap());

fn main() {
    dialogue::or_exit(run());
}

fn run() -> Result<(), Failure> {
    let arguments = Arguments::read()?;
    if let Some(way @ ("fanout" | "pinned")) = arguments.way.as_deref() {
        let worker = Together::bind(&arguments, way == "pinned")?;
        return dialogue::converse(vec![Box::new(worker)]);
    }
    let bind = |number| bind(number, &arguments);
    dialogue::converse(arguments.numbers().map(bind).collect::<Result<_, _>>()?)
}

fn builder(numbers: Vec<u16>, arguments: &Arguments) -> QueueBuilder {
    let mut builder = Queue::builder(numbers).max_len(MAX_LEN);
    if let Some(bytes) = arguments.buffer {
        builder = builder.receive_buffer(bytes);
    }
    // The defaults are the fastest settings but for this.
    if arguments.best && arguments.task == Task::Flip {
        builder = builder.edit_mode(EditMode::Raw);
    }
    builder
}

fn bind(number: u16, arguments: &Arguments) -> Result<Box<dyn Worker>, Failure> {
    let queue = builder(vec![number], arguments).bind()?;
    let batch = (arguments.way.as_deref() == Some("batch")).then(|| Batch::new(64));
    let stop = (arguments.way.as_deref() == Some("stoppable")).then(|| queue.stop_handle());
    Ok(Box::new(Contender { queue, batch, task: arguments.task, _stop: stop }))
}

struct Contender {
    queue: Queue,
    /// For the door of that name.
    batch: Option<Batch>,
    task: Task,
    /// Nobody stops it; that somebody could is what makes a difference.
    _stop: Option<StopHandle>,
}

impl Worker for Contender {
    fn judge(&mut self, count: Option<u64>) -> Result<u64, Failure> {
        let before = self.queue.stats().system_calls();
        match self.task {
            Task::Drop => self.judge_each(count, |packet| packet.verdict(Verdict::Drop)),
            Task::Accept => self.judge_each(count, |packet| packet.accept()),
            Task::Flip => self.judge_each(count, flip),
            Task::Recompute => self.judge_each(count, change),
            Task::Bypass => self.judge_each(count, |packet| packet.accept_flow(FLOWS)),
            Task::Retain => self.retain(count),
        }?;
        calls(&self.queue.stats(), before)
    }
}

/// The system calls since there were so many `before`, if nothing was lost.
fn calls(stats: &Stats, before: u64) -> Result<u64, Failure> {
    if stats.lost + stats.truncated + stats.malformed + stats.refused > 0 {
        return Err(format!("packets were lost: {stats:?}").into());
    }
    Ok(stats.system_calls() - before)
}

/// All queues as one worker. Only accepts.
struct Together(Fanout);

impl Together {
    fn bind(arguments: &Arguments, is_pinned: bool) -> Result<Self, Failure> {
        if arguments.task != Task::Accept {
            dialogue::unsupported("the threads of a fan-out are compared at accepting packets");
        }
        let mut fanout = builder(arguments.numbers().collect(), arguments).bind_fanout()?;
        fanout.set_pinned(is_pinned);
        Ok(Self(fanout))
    }
}

impl Worker for Together {
    fn judge(&mut self, count: Option<u64>) -> Result<u64, Failure> {
        let queues = self.0.queues().len() as u64;
        let (before, stop) = (self.0.stats().system_calls(), self.0.stop_handle());
        let busy = AtomicU64::new(queues);
        self.0.run(|_| {
            // The packets are spread evenly. Whoever is the last with its share ends all.
            let mut left = count.map_or(u64::MAX, |count| count / queues);
            let (busy, stop) = (&busy, &stop);
            move |packet| {
                left -= 1;
                if left == 0 && busy.fetch_sub(1, Ordering::SeqCst) == 1 {
                    stop.stop();
                }
                packet.accept()
            }
        })?;
        calls(&self.0.stats(), before)
    }
}

impl Contender {
    fn judge_each<F>(&mut self, count: Option<u64>, mut judge: F) -> Result<(), Failure>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        let mut left = count.unwrap_or(u64::MAX);
        let Some(batch) = &mut self.batch else {
            if count.is_none() {
                return Ok(self.queue.run(judge)?);
            }
            let stop = self.queue.stop_handle();
            return Ok(self.queue.run(|packet| {
                left -= 1;
                if left == 0 {
                    stop.stop();
                }
                judge(packet)
            })?);
        };
        while left > 0 {
            left = left.saturating_sub(self.queue.recv(batch)? as u64);
            for packet in &mut *batch {
                judge(packet);
            }
            batch.commit()?;
        }
        Ok(())
    }

    /// Accepts packets when all of them are held.
    fn retain(&mut self, count: Option<u64>) -> Result<(), Failure> {
        let mut held: Vec<RetainedPacket> =
            Vec::with_capacity(usize::try_from(count.unwrap_or(0))?);
        self.judge_each(count, |packet| {
            let (packet, decided) = packet.retain();
            held.push(packet);
            decided
        })?;
        held.into_iter().try_for_each(|packet| Ok(packet.accept()?))
    }
}

/// A packet that cannot be edited is none that was judged faster.
fn bytes_of<'a>(packet: &'a mut Packet<'_>) -> &'a mut [u8] {
    dialogue::or_exit(packet.payload_mut().map_err(Into::into))
}

fn flip(mut packet: Packet<'_>) -> Decided<'_> {
    if let Some(last) = bytes_of(&mut packet).last_mut() {
        *last ^= 0xff;
    }
    packet.accept()
}

/// The library completes the checksum.
fn change(mut packet: Packet<'_>) -> Decided<'_> {
    let bytes = bytes_of(&mut packet);
    if let Some(at) = dialogue::data_offset(bytes)
        && let Some(first) = bytes.get_mut(at)
    {
        *first ^= 0x01;
    }
    packet.accept()
}
