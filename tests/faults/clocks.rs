//! Clocks that jump or run elsewhere: deadlines of retained packets keep to the time that passes.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::rules::Hook;
use netfilterqueue::{Error, Queue, Verdict};
use netfilterqueue_netns::Namespace;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimestamp};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime, clock_settime};
use nix::unistd::gettid;

use crate::accounts::{Counted, Ledger, Traffic, number};
use crate::children::{Played, commands, say, wait_patiently};
use crate::kernel::{lacks, untested, version};
use crate::support::{Judging, SOON, UdpPair, V4, queue_udp, queue_udp_at, receive_exactly};
use crate::{Test, faults};

pub const TESTS: [Test; 2] = faults![
    deadlines_keep_to_a_monotonic_clock_that_runs_elsewhere,
    deadlines_and_packets_do_not_mind_that_the_real_time_clock_jumps,
];

/// How long packets are held before they get the default verdict.
const HELD_FOR: Duration = Duration::from_millis(300);

/// Seconds that the monotonic clock is ahead of the kernel's: three years.
const AHEAD: u64 = 100_000_000;

/// A process that retains each packet until its deadline, after which it is accepted.
pub fn sleeper() -> io::Result<()> {
    let queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().map_err(io::Error::from)?;
    let rules = queue_udp(1);
    say(fs::read_to_string("/proc/uptime")?.trim_end())?;
    let mut held = Vec::new();
    let judging = Judging::start(queue, move |packet| {
        let (mut retained, decided) = packet.retain();
        retained.set_deadline(Some(Instant::now() + HELD_FOR));
        held.push(retained);
        decided
    });
    commands().for_each(drop);
    let queue = judging.finish();
    let stats = queue.stats();
    drop(rules);
    say(&format!("{} {} {} {}", stats.received, stats.expired, stats.answered, stats.refused))
}

/// Children of this thread have a monotonic clock that is ahead. `false` where that cannot be had.
fn put_clock_of_children_ahead() -> bool {
    // Not in the list of nix.
    const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(0x80);
    match unshare(CLONE_NEWTIME) {
        Ok(()) => {}
        Err(errno @ (Errno::ENOSYS | Errno::EPERM)) => {
            untested("time namespaces", format!("they are not permitted here: {errno}"));
            return false;
        }
        Err(errno @ Errno::EINVAL) => {
            // `CONFIG_TIME_NS` may be off, as it is where the architecture has none.
            if version() >= (5, 6) && !Path::new("/proc/self/ns/time").exists() {
                untested("time namespaces", format!("this kernel is built without: {errno}"));
            } else {
                lacks("time namespaces", errno);
            }
            return false;
        }
        Err(errno) => panic!("{errno}"),
    }
    let offsets = format!("monotonic {AHEAD} 0\nboottime {AHEAD} 0\n");
    fs::write(format!("/proc/{}/timens_offsets", gettid()), offsets).expect("offsets");
    true
}

fn deadlines_keep_to_a_monotonic_clock_that_runs_elsewhere(_: &Namespace) {
    const PACKETS: usize = 100;
    // In a thread of its own, which on older kernels can start no other thread after that.
    let start = || put_clock_of_children_ahead().then(|| Played::spawn("sleeper"));
    let started = thread::scope(|scope| scope.spawn(start).join().expect("it has started"));
    let Some(process) = started else { return };
    let sleeper = Played::of(process);
    let uptime = sleeper.line();
    let seconds: f64 = uptime.split(' ').next().expect("a time").parse().expect("a time");
    assert!(seconds >= AHEAD as f64, "{uptime}");
    let (traffic, ledger) = (Traffic::new(PACKETS, 100), Ledger::default());
    let started = Instant::now();
    // Each wakes it, and each time it looks for deadlines that have passed.
    let mut sent = 0;
    while traffic.collect() == 0 {
        assert!(started.elapsed() < SOON, "no deadline has passed");
        if sent < PACKETS {
            traffic.send(1, 100);
            sent += 1;
        }
        thread::sleep(Duration::from_millis(5));
    }
    let first = started.elapsed();
    assert!(first >= HELD_FOR, "the first was held for {first:?}");
    traffic.send(PACKETS - sent, 100);
    wait_patiently("the last deadline", || traffic.collect() == PACKETS);
    assert_eq!(sleeper.finish(), [format!("{PACKETS} {PACKETS} {PACKETS} 0")]);
    // All by the default verdict.
    traffic.settle(&ledger, Counted { passed: PACKETS as u64, ..Counted::default() });
}

/// Set where the clock may be set: in a guest that is there for the tests.
const MAY_SET_CLOCK: &str = "NETFILTERQUEUE_MAY_SET_CLOCK";

/// The real time, moved; put back in the end.
struct Moved(i64);

impl Moved {
    fn by(&mut self, seconds: i64) {
        self.try_by(seconds).expect("it may be set here");
    }

    fn try_by(&mut self, seconds: i64) -> nix::Result<()> {
        let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
        clock_settime(ClockId::CLOCK_REALTIME, now + TimeSpec::seconds(seconds))?;
        self.0 += seconds;
        Ok(())
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        // A second panic would end all tests.
        let _ = self.try_by(-self.0);
    }
}

/// Packets carry the time at which they came: it goes back between two of them, and nothing else
/// happens. Deadlines neither pass before their time nor stay away.
fn deadlines_and_packets_do_not_mind_that_the_real_time_clock_jumps(_: &Namespace) {
    const HOUR: i64 = 3_600;
    const WAVE: usize = 20;
    if std::env::var_os(MAY_SET_CLOCK).is_none() {
        let why = format!("{MAY_SET_CLOCK} is not set, and must not be but in a guest");
        return untested("a real-time clock that jumps", why);
    }
    let mut queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp_at(Hook::INPUT, 1);
    // With a socket that asks for them, packets are stamped.
    let stamped = UdpPair::new(V4);
    setsockopt(&stamped.receiver, ReceiveTimestamp, &true).unwrap();
    let (traffic, ledger) = (Traffic::new(6 * WAVE, 100), Ledger::default());
    let mut moved = Moved(0);
    let mut stamps = Vec::new();
    for jump in [HOUR, -2 * HOUR, HOUR] {
        traffic.send(2 * WAVE, 100);
        let mut batch = receive_exactly(&mut queue, 2 * WAVE);
        let until = Instant::now() + HELD_FOR;
        let mut held = Vec::new();
        for packet in &mut batch {
            stamps.push(packet.timestamp());
            if number(packet.payload()).is_multiple_of(2) {
                ledger.judge(packet);
            } else {
                let (mut retained, _) = packet.retain();
                retained.set_deadline(Some(until));
                held.push(retained);
            }
        }
        batch.commit().unwrap();
        let before = queue.stats().expired;
        moved.by(jump);
        // A queue that waits sees to the deadlines.
        let result = queue.recv_timeout(&mut batch, HELD_FOR / 3);
        assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
        let expired = queue.stats().expired;
        if Instant::now() < until {
            assert_eq!(expired, before, "some had passed before their time");
        }
        wait_patiently("the deadlines", || {
            let _ = queue.recv_timeout(&mut batch, HELD_FOR / 10);
            queue.stats().expired == before + WAVE as u64
        });
        assert!(Instant::now() >= until);
    }
    drop(moved);
    let times: Vec<_> = stamps.iter().flatten().collect();
    println!("{} of {} packets had a time", times.len(), stamps.len());
    let stats = queue.stats();
    assert_eq!((stats.received, stats.answered, stats.held), (traffic.sent(), traffic.sent(), 0));
    assert_eq!((stats.lost, stats.refused), (0, 0));
    traffic.settle(&ledger, Counted { passed: stats.expired, ..Counted::default() });
}
