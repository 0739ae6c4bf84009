//! A backlog that waits in the kernel and is judged as fast as can be.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use netfilterqueue_netns::Namespace;

use super::{Case, Sample, Workload};
use crate::contender::{Contender, Done, Orders, Process, QUEUE, Unsupported};
use crate::counters::{Datagrams, Queues};
use crate::machine::Place;
use crate::results::Unit;
use crate::traffic::{self, BACKLOG_MAX, Backlog};

/// The library's default, so that a backlog is judged with no other buffer than it has anyway.
const BUFFER_MIN: usize = 8 << 20;

pub struct Drain {
    id: &'static str,
    packet_len: usize,
    task: &'static str,
    /// Fewer of long ones, because the kernel holds each of them twice.
    packets: usize,
    quick_packets: usize,
}

pub const DROP_100: Drain = Drain {
    id: "drain-100-drop",
    packet_len: 100,
    task: "drop",
    packets: BACKLOG_MAX,
    quick_packets: 9_984,
};
pub const ACCEPT_100: Drain = Drain { id: "drain-100-accept", task: "accept", ..DROP_100 };
pub const FLIP_1400: Drain =
    Drain { id: "drain-1400-flip", packet_len: 1400, task: "flip", ..DROP_100 };
pub const ACCEPT_60K: Drain = Drain {
    id: "drain-60k-accept",
    packet_len: 60_000,
    task: "accept",
    packets: 2_048,
    quick_packets: 512,
};

impl Workload for Drain {
    fn id(&self) -> String {
        self.id.to_owned()
    }

    fn title(&self) -> String {
        let verdict = if self.task == "flip" { "flip a byte and accept" } else { self.task };
        format!("drain a backlog, {} B, {verdict}", self.packet_len)
    }

    fn unit(&self) -> Unit {
        Unit::NanosecondsPerPacket
    }

    fn notes(&self, quick: bool) -> Vec<String> {
        let wanted = if quick { self.quick_packets } else { self.packets };
        let mut notes = Vec::new();
        // If not even a batch fits, the rows say so.
        if let Ok(packets) = backlog(wanted, 1, self.packet_len) {
            let why =
                if packets < wanted { ", as many as the host's receive buffers hold" } else { "" };
            notes.push(format!("{packets} packets{why}"));
        }
        if self.task == "flip" {
            notes.push(
                "default: the library looks at lengths and checksums of what it sends back; \
                 best: it does not, as the others"
                    .to_owned(),
            );
        }
        notes
    }

    fn rounds(&self, quick: bool) -> usize {
        if quick { 3 } else { 9 }
    }

    fn quick_budget(&self) -> Duration {
        Duration::from_secs(6)
    }

    fn cases(&self, contenders: &[Contender], _quick: bool) -> Vec<Case> {
        let mut cases = Case::best_of(contenders);
        if self.task == "flip" {
            let ours = contenders.iter().find(|contender| contender.name == "ours");
            cases.extend(ours.map(|ours| Case::new(ours, "default")));
        }
        cases
    }

    fn measure(&self, case: &Case, quick: bool) -> Result<Sample> {
        let packets = if quick { self.quick_packets } else { self.packets };
        let drained = Drained {
            packets: backlog(packets, 1, self.packet_len)?,
            packet_len: self.packet_len,
            task: self.task,
            queues: 1,
            place: Place::Consumer,
        };
        let (done, cpu) = drained.measure(case)?;
        let per_packet = |time: Duration| time.as_nanos() as f64 / drained.packets as f64;
        let mut more = Vec::new();
        more.extend(cpu.map(|cpu| ("CPU ns", per_packet(cpu))));
        more.extend(done.calls.map(|calls| ("calls", calls as f64 / drained.packets as f64)));
        Ok(Sample { value: per_packet(done.time), more })
    }
}

/// The most that one system call receives.
pub const BATCH: usize = 64;

/// How many packets can wait in the receive buffers that are granted, of those wanted; a multiple
/// of the number of queues.
pub fn backlog(wanted: usize, queues: u16, packet_len: usize) -> Result<usize> {
    let queues = usize::from(queues);
    let share = wanted / queues;
    let granted = traffic::granted(buffer(share, packet_len))?;
    let share = share.min(granted / traffic::cost(packet_len));
    if share < BATCH {
        let why = format!("receive buffers here hold {share} packets, less than a batch");
        return Err(anyhow!(Unsupported(why)));
    }
    // The last batch is full, too, so that system calls per packet can be compared.
    Ok((share - share % BATCH) * queues)
}

/// The receive buffer to ask for; the kernel doubles it.
pub fn buffer(packets: usize, packet_len: usize) -> usize {
    (packets * traffic::cost(packet_len) / 2 + (1 << 20)).max(BUFFER_MIN)
}

/// A backlog and what becomes of it.
pub struct Drained {
    pub packets: usize,
    pub packet_len: usize,
    pub task: &'static str,
    pub queues: u16,
    pub place: Place,
}

impl Drained {
    pub fn measure(&self, case: &Case) -> Result<(Done, Option<Duration>)> {
        let namespace = Namespace::new()?;
        let contender = case.contender.as_ref().context("somebody must judge")?;
        let share = self.packets / usize::from(self.queues);
        let orders = Orders {
            task: self.task,
            settings: &case.settings,
            queues: self.queues,
            buffer: Some(buffer(share, self.packet_len)),
            place: self.place,
        };
        let mut process = Process::start(contender, &namespace, orders)?;
        let has_checksum = self.task != "flip";
        let mut backlog = Backlog::new(&namespace, self.queues, self.packet_len, has_checksum)?;
        backlog.queue()?;
        // Brings the contender's buffers into memory, which happens once in its life. Not more
        // than the receive buffer holds.
        let warm_up = (4 * BATCH * usize::from(self.queues)).min(self.packets);
        let all_fit = backlog.hold(warm_up)?;
        backlog.fill(warm_up)?;
        let before = Datagrams::read(&namespace)?;
        process.judge(warm_up)?;
        self.check(&namespace, &backlog, before, warm_up, all_fit)?;
        backlog.hold_one()?;
        backlog.fill(self.packets)?;
        let before = (Datagrams::read(&namespace)?, process.cpu_time());
        let done = process.judge(self.packets)?;
        let cpu = process.cpu_time().zip(before.1);
        let cpu = cpu.map(|(after, before)| {
            after.checked_sub(before).context("the contender's processor time ran backwards")
        });
        self.check(&namespace, &backlog, before.0, self.packets, false)?;
        Ok((done, cpu.transpose()?))
    }

    /// Whether the packets became what they should: a contender that is fast because it lost them
    /// has no figure.
    fn check(
        &self,
        namespace: &Namespace,
        backlog: &Backlog<'_>,
        before: Datagrams,
        packets: usize,
        all_fit: bool,
    ) -> Result<()> {
        // Dropped packets are delivered nowhere: only this tells a verdict from none.
        if let Some(Queues { waiting, lost }) = Queues::read(namespace, QUEUE, self.queues)?
            && (waiting > 0 || lost > 0)
        {
            bail!("{waiting} of {packets} packets have no verdict, {lost} were lost");
        }
        let received = backlog.take_received();
        let after = Datagrams::read(namespace)?;
        let delivered = after.delivered_since(before)? as usize;
        let expected = if self.task == "drop" { 0 } else { packets };
        if delivered != expected {
            bail!("{delivered} packets were delivered instead of {expected}");
        }
        let last = if self.task == "flip" { b'x' ^ 0xff } else { b'x' };
        if received.is_empty() == (expected > 0) {
            bail!("{} packets were read", received.len());
        }
        if all_fit && received.len() != expected {
            bail!("{} packets were read instead of {expected}", received.len());
        }
        let is_right = |data: &Vec<u8>| {
            let split = data.split_last();
            split.is_some_and(|(end, rest)| *end == last && rest.iter().all(|byte| *byte == b'x'))
        };
        if let Some(at) = received.iter().position(|data| !is_right(data)) {
            bail!("packet {at} of {} is not edited as it should be", received.len());
        }
        Ok(())
    }
}
