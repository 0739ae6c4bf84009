//! Processes that are killed, stopped or started while a queue is at work.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread;

use netfilterqueue::Queue;
use netfilterqueue_netns::Namespace;
use nix::sys::signal::Signal;

use crate::accounts::{Counted, Ledger, Traffic, balance, tables};
use crate::children::{Played, commands, note_all, say, told_stats, wait_patiently};
use crate::interference::flush_rules;
use crate::kernel::lacks;
use crate::support::{UdpPair, V4, judge_while, kernel_stats, queue_udp};
use crate::{Test, faults};

pub const TESTS: [Test; 3] = faults![
    killed_with_packets_in_its_hands,
    stopped_under_traffic_and_continued,
    a_child_inherits_no_descriptor,
];

fn killed_with_packets_in_its_hands(_: &Namespace) {
    const WAVE: usize = 100;
    let (traffic, ledger) = (Traffic::new(4 * WAVE, 100), Ledger::default());
    let (mut worker, is_owned) = Played::worker("bind 4096");
    // Judged; retained; read or not, with a judge that does nothing.
    traffic.send(WAVE, 100);
    wait_patiently("the first verdicts", || worker.stats(&ledger)[2] == WAVE as u64);
    worker.order(&ledger, "keep");
    traffic.send(WAVE, 100);
    wait_patiently("the packets that it keeps", || worker.stats(&ledger)[3] == WAVE as u64);
    worker.order(&ledger, "stall");
    traffic.send(WAVE, 100);
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!((kernel.waiting, kernel.last_id), (2 * WAVE as u32, 3 * WAVE as u32));
        assert_eq!((kernel.queue_dropped, kernel.user_dropped), (0, 0));
    }
    assert_eq!(note_all(&ledger, worker.kill()), [""; 0]);
    let kept = 2 * WAVE as u64;
    let mut counted = Counted { lost: kept, ..Counted::default() };
    if is_owned {
        // The kernel may take the rules away a moment after the process is gone.
        wait_patiently("the end of the rules", || tables() == 0);
        traffic.send(WAVE, 100);
        counted.passed = WAVE as u64;
        traffic.settle(&ledger, counted);
    } else {
        lacks("owner tables", "the rules stay when their process is killed");
        traffic.settle(&ledger, counted);
    }
    // The number is free at once, and what is queued now has nothing to do with what was.
    let mut queue = Queue::builder(1).nonblocking(true).bind().expect("the number is free");
    let rules = is_owned.then(|| queue_udp(1));
    let (traffic, ledger) = (Traffic::new(WAVE, 100), Ledger::default());
    traffic.send(WAVE, 100);
    queue.run(|packet| ledger.judge(packet)).unwrap();
    ledger.expect_ids(1, WAVE as u64);
    assert_eq!(balance(1, &queue.stats(), &ledger).unwrap_or(0), 0);
    traffic.settle(&ledger, Counted::default());
    if rules.is_none() {
        flush_rules();
    }
}

/// More comes meanwhile than the socket and the queue hold; afterwards everything goes on.
fn stopped_under_traffic_and_continued(_: &Namespace) {
    const ROUNDS: usize = 5;
    const WAVE: usize = 120;
    const MAX_LEN: usize = 50;
    let (traffic, ledger) = (Traffic::new(2 * ROUNDS * WAVE, 100), Ledger::default());
    // Of a receive buffer of 8,000 bytes, 16,000 to the kernel, a score of packets are the fill.
    let (mut worker, _) = Played::worker(&format!("bind {MAX_LEN} 8000"));
    let mut counters = None;
    for _ in 0..ROUNDS {
        worker.signal(Signal::SIGSTOP);
        traffic.send(WAVE, 100);
        worker.signal(Signal::SIGCONT);
        // One that is not lost has all before it judged or lost, and shows gaps in the ids.
        wait_patiently("a packet after the stop", || {
            let last = traffic.sent() as u32;
            traffic.send(1, 100);
            traffic.collect();
            (0..10).any(|_| {
                worker.stats(&ledger);
                ledger.numbers(1).values().any(|number| *number == last)
            })
        });
        counters = kernel_stats(1);
    }
    let told = worker.finish();
    let told = note_all(&ledger, told);
    let [received, lost, answered, held, refused] = told_stats(&told[0]);
    assert_eq!((answered, held, refused), (received, 0, 0));
    assert_eq!(received, ledger.numbers(1).len() as u64);
    assert!(received >= 2 * ROUNDS as u64);
    // By the ids it received: what is missing between them.
    let newest = *ledger.numbers(1).last_key_value().expect("packets").0;
    assert_eq!(u64::from(newest), received + lost);
    let missing = traffic.sent() - received;
    assert!(missing >= lost && lost > 0, "{missing} missing, {lost} lost");
    if let Some(kernel) = counters {
        assert_eq!(u64::from(kernel.user_dropped), lost, "{kernel:?}");
        assert_eq!(u64::from(kernel.queue_dropped), missing - lost, "{kernel:?}");
    }
    traffic.settle(&ledger, Counted { lost: missing, ..Counted::default() });
}

/// What this process has open: where each descriptor leads, but for the one that lists them.
fn open_here() -> io::Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir("/proc/self/fd")?.flatten();
    Ok(entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect())
}

/// A child that lists its descriptors.
pub fn lister() -> io::Result<()> {
    for path in open_here()? {
        say(&path.to_string_lossy())?;
    }
    say("end")?;
    commands().for_each(drop);
    Ok(())
}

/// Children come and go while the queue is at work. (A `fork` without `exec` takes unsafe code:
/// what becomes of descriptors then, the kernel's manuals tell.)
fn a_child_inherits_no_descriptor(_: &Namespace) {
    const CHILDREN: usize = 5;
    const EACH: usize = 200;
    let mut queue = Queue::builder(1).max_len(4096).bind().unwrap();
    let mut adopted = Queue::builder(2).bind_on(netfilterqueue::open_socket().unwrap()).unwrap();
    adopted.set_nonblocking(true);
    let rules = queue_udp(1);
    let link = |fd: i32| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    let ours = [link(queue.as_raw_fd()), link(adopted.as_raw_fd())];
    assert!(ours.iter().all(|path| path.to_string_lossy().starts_with("socket:[")));
    let (traffic, ledger) = (Traffic::new(CHILDREN * EACH, 100), Ledger::default());
    let mut alive = Vec::new();
    judge_while(
        &mut queue,
        |packet| ledger.judge(packet),
        || {
            for _ in 0..CHILDREN {
                let child = thread::scope(|scope| {
                    scope.spawn(|| traffic.send(EACH, 100));
                    Played::start("lister")
                });
                let listed: Vec<_> =
                    std::iter::from_fn(|| Some(child.line()).filter(|l| l != "end"))
                        .map(PathBuf::from)
                        .collect();
                assert!(listed.len() >= 3, "input, output and error: {listed:?}");
                for path in &listed {
                    assert!(!ours.contains(path), "{path:?} was inherited");
                    // Neither what wakes a queue, nor the kernel's counters.
                    let name = path.to_string_lossy();
                    assert!(!name.contains("eventfd"), "{name} was inherited");
                    assert!(!name.contains("nfnetlink_queue"), "{name} was inherited");
                }
                alive.push(child);
            }
        },
    );
    queue.set_nonblocking(true);
    queue.run(|packet| ledger.judge(packet)).unwrap();
    assert_eq!(balance(1, &queue.stats(), &ledger).unwrap_or(0), 0);
    traffic.settle(&ledger, Counted::default());
    // And so they keep neither the numbers nor the rules.
    drop((queue, adopted, rules));
    for number in [1, 2] {
        drop(Queue::builder(number).bind().expect("the number is free"));
    }
    let udp = UdpPair::new(V4);
    udp.send(b"passes");
    assert_eq!(udp.receive_all(1), [b"passes"]);
    for child in alive {
        assert_eq!(child.finish(), [""; 0]);
    }
}
