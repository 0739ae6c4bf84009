//! Other processes that want the queue, its packets, or to mislead it.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::protocol::config::{Command, ConfigMessage, CopyMode};
use netfilterqueue::protocol::constants::{NFQNL_MSG_CONFIG, NFQNL_MSG_PACKET, NFQNL_MSG_VERDICT};
use netfilterqueue::protocol::verdict::{VerdictBatchMessage, VerdictMessage};
use netfilterqueue::{Decided, Error, Packet, Queue, Stats, Verdict};
use netfilterqueue_netns::Namespace;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

use crate::accounts::{Counted, Fate, Ledger, Traffic, balance, number};
use crate::children::{Played, commands, note_all, say, told_stats, wait_patiently};
use crate::support::{judge_while, queue_udp, without_capability};
use crate::{Test, faults};

pub const TESTS: [Test; 5] = faults![
    the_queue_of_another_process_is_refused_and_undisturbed,
    a_stranger_with_the_capability_changes_nothing,
    processes_take_the_number_over_from_each_other,
    forged_datagrams_do_not_reach_a_queue,
    forged_datagrams_on_an_adopted_socket_are_counted,
];

/// What the kernel says to a request on a socket of one's own.
fn refusal(datagram: &[u8]) -> Errno {
    let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    socket.send_to(datagram, &SocketAddr::new(0, 0), 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    let code = answer[16..].first_chunk().expect("an answer");
    Errno::from_raw(-i32::from_ne_bytes(*code))
}

/// Tries all that could be done to queue 1 from another socket.
fn meddle() {
    let request = |request: ConfigMessage| {
        let mut datagram = Vec::new();
        request.push(&mut datagram, 1);
        datagram
    };
    let mut verdicts = [Vec::new(), Vec::new()];
    VerdictMessage::new(1, 1, Verdict::Drop).push_head(&mut verdicts[0], None).unwrap();
    let last_id = i32::MAX as u32;
    let (verdict, mark, priority) = (Verdict::Drop, None, None);
    VerdictBatchMessage { queue: 1, last_id, verdict, mark, priority }.push(&mut verdicts[1]);
    let copy_mode = Some(CopyMode::Meta);
    let requests = [
        request(ConfigMessage::command(1, Command::Unbind)),
        request(ConfigMessage::command(1, Command::Bind)),
        request(ConfigMessage { copy_mode, ..ConfigMessage::new(1) }),
        request(ConfigMessage { max_len: Some(0), ..ConfigMessage::new(1) }),
    ];
    for datagram in requests.iter().chain(&verdicts) {
        assert_eq!(refusal(datagram), Errno::EPERM);
    }
}

/// With the capability and without it.
fn meddle_twice() {
    meddle();
    without_capability(meddle);
}

const ROUNDS: usize = 10;
const WAVE: usize = 40;

fn the_queue_of_another_process_is_refused_and_undisturbed(_: &Namespace) {
    let (traffic, ledger) = (Traffic::new(ROUNDS * WAVE, 100), Ledger::default());
    let (mut worker, _) = Played::worker("bind 4096");
    for _ in 0..ROUNDS {
        traffic.send(WAVE / 2, 100);
        let error = Queue::builder(1).max_len(0).bind().unwrap_err();
        assert!(matches!(error, Error::QueueTaken { queue: 1, .. }), "{error:?}");
        traffic.send(WAVE / 2, 100);
        meddle_twice();
    }
    wait_patiently("the last verdict", || worker.stats(&ledger)[2] == traffic.sent());
    let told = note_all(&ledger, worker.finish());
    assert_eq!(told_stats(&told[0]), [traffic.sent(), 0, traffic.sent(), 0, 0]);
    traffic.settle(&ledger, Counted::default());
    drop(Queue::builder(1).bind().expect("free when the other has gone"));
}

/// The same, seen by the owner, while it judges.
fn a_stranger_with_the_capability_changes_nothing(_: &Namespace) {
    let (traffic, ledger) = (Traffic::new(ROUNDS * WAVE, 100), Ledger::default());
    let mut queue = Queue::builder(1).max_len(4096).bind().unwrap();
    let _rules = queue_udp(1);
    judge_while(
        &mut queue,
        |packet| ledger.judge(packet),
        || {
            for _ in 0..ROUNDS {
                thread::scope(|scope| {
                    scope.spawn(|| traffic.send(WAVE, 100));
                    meddle_twice();
                });
            }
        },
    );
    queue.set_nonblocking(true);
    queue.run(|packet| ledger.judge(packet)).unwrap();
    assert_eq!(balance(1, &queue.stats(), &ledger).unwrap_or(0), 0);
    assert_eq!((queue.stats().refused, queue.stats().lost), (0, 0));
    traffic.settle(&ledger, Counted::default());
}

/// By turns this process and another one, while packets come: what nobody holds the number for, and
/// what is left when somebody goes, the kernel drops.
fn processes_take_the_number_over_from_each_other(_: &Namespace) {
    const TURNS: u16 = 8;
    const EACH: u64 = 60;
    let (traffic, ledger) = (Traffic::new(20_000, 4), Ledger::default());
    let _rules = queue_udp(1);
    let mut received = 0;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) && traffic.sent() < 20_000 {
                let started = Instant::now();
                traffic.send(20, 4);
                // Far less than can be judged, also where everything is slow.
                thread::sleep(Duration::from_millis(5) + 4 * started.elapsed());
            }
        });
        for turn in 0..TURNS {
            received += if turn % 2 == 0 {
                let mut queue = Queue::builder(1).max_len(4096).bind().expect("the number is free");
                queue.set_nonblocking(true);
                wait_patiently("packets here", || {
                    queue.run(|packet| judge_in_turn(&ledger, turn, packet)).unwrap();
                    queue.stats().received >= EACH
                });
                let stats = queue.stats();
                assert_eq!((stats.lost, stats.refused, stats.held), (0, 0, 0));
                assert_eq!(stats.answered, stats.received);
                ledger.expect_ids(turn, stats.received);
                queue.close().unwrap();
                stats.received
            } else {
                let mut worker = Played::start("worker");
                assert_eq!(worker.ask("bind 4096"), "bound", "the number is free");
                let seen = Ledger::default();
                wait_patiently("packets there", || worker.stats(&seen)[0] >= EACH);
                let told = told_stats(&note_all(&seen, worker.finish())[0]);
                assert_eq!((told[1], told[3], told[4]), (0, 0, 0));
                assert_eq!(told[2], told[0]);
                // What it said that it judged is what it counted.
                seen.expect_ids(1, told[0]);
                for (id, number) in seen.numbers(1) {
                    ledger.note(turn, id, number, Fate::of(number));
                }
                ledger.expect_ids(turn, told[0]);
                told[0]
            };
        }
        is_over.store(true, Ordering::SeqCst);
        sending.join().expect("all is sent");
    });
    // Each holder's ids are without a gap, so what is missing came while there was none.
    let lost = traffic.sent() - received;
    println!("{lost} of {} packets found nobody", traffic.sent());
    traffic.settle(&ledger, Counted { lost, ..Counted::default() });
}

/// Ids begin again with each holder: entered as if of a queue each.
fn judge_in_turn<'p>(ledger: &Ledger, turn: u16, packet: Packet<'p>) -> Decided<'p> {
    let number = number(packet.payload());
    let fate = Fate::of(number);
    ledger.note(turn, packet.id(), number, fate);
    packet.verdict(fate.verdict())
}

const FORGED_KINDS: usize = 5;

/// A process that sends to the port it is told, as often as it is told, and says how many datagrams
/// were taken and how many refused.
pub fn forger() -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    for command in commands() {
        let mut numbers = command.split(' ').filter_map(|number| number.parse::<u32>().ok());
        let (port, times) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let (mut taken, mut refused) = (0, 0);
        for time in 0..times {
            for datagram in forged(time) {
                match socket.send_to(&datagram, &SocketAddr::new(port, 0), 0) {
                    Ok(_) => taken += 1,
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => refused += 1,
                    Err(error) => return Err(error),
                }
            }
        }
        say(&format!("forged {taken} {refused}"))?;
    }
    Ok(())
}

/// A packet, a refused verdict, a refused and an accepted configuration, and nonsense.
fn forged(time: u32) -> [Vec<u8>; FORGED_KINDS] {
    const NLMSG_ERROR: u16 = 2;
    let message = |kind: u16, sequence: u32, body: &[u8]| {
        let length = 16 + body.len() as u32;
        let (length, sequence) = (length.to_ne_bytes(), sequence.to_ne_bytes());
        [&length[..], &kind.to_ne_bytes(), &[0; 2], &sequence, &[0; 4], body].concat()
    };
    let id = time + 1;
    let attribute = |length: u16, kind: u16| [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    let packet = [
        &[2, 0, 0, 1][..],
        &attribute(11, 1),
        &id.to_be_bytes(),
        &[8, 0, 3, 0],
        &attribute(8, 10),
        b"fake",
    ];
    let error = |errno: i32, request: u16, sequence: u32| {
        let body = [&(-errno).to_ne_bytes()[..], &message(request, sequence, &[])].concat();
        message(NLMSG_ERROR, sequence, &body)
    };
    [
        message(NFQNL_MSG_PACKET, 0, &packet.concat()),
        error(1, NFQNL_MSG_VERDICT, id),
        error(1, NFQNL_MSG_CONFIG, id),
        error(0, NFQNL_MSG_CONFIG, id),
        vec![0xff; 7],
    ]
}

/// Judges traffic while another process sends forged datagrams, and reconfigures the queue between
/// times. Returns the counters and how many datagrams were taken and refused.
fn under_forgery(mut queue: Queue, traffic: &Traffic, ledger: &Ledger) -> (Stats, u64, u64) {
    const FORGED: usize = 100;
    let _rules = queue_udp(1);
    let mut forger = Played::start("forger");
    let (mut taken, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let port = queue.port_id();
        judge_while(
            &mut queue,
            |packet| ledger.judge(packet),
            || {
                forger.tell(&format!("forge {port} {FORGED}"));
                traffic.send(WAVE, 100);
                let line = forger.line();
                let mut told = line.split(' ').skip(1).map(|n| n.parse::<u64>().expect("a number"));
                taken += told.next().expect("a number");
                refused += told.next().expect("a number");
            },
        );
        // Its answer is told from all that were forged.
        queue.set_max_len(4_000 + round as u32).expect("the kernel agrees");
    }
    assert_eq!(forger.finish(), [""; 0]);
    queue.set_nonblocking(true);
    queue.run(|packet| ledger.judge(packet)).unwrap();
    // By which gaps before it are seen.
    traffic.send(1, 100);
    queue.run(|packet| ledger.judge(packet)).unwrap();
    assert_eq!(taken + refused, (ROUNDS * FORGED * FORGED_KINDS) as u64);
    assert_eq!(queue.take_refusals().len(), 0);
    let stats = queue.stats();
    assert_eq!((stats.refused, stats.unknown, stats.malformed, stats.truncated), (0, 0, 0, 0));
    // But for the forged ones.
    balance(1, &without_foreign(stats), ledger);
    traffic.settle(ledger, Counted { lost: stats.lost, ..Counted::default() });
    (stats, taken, refused)
}

fn without_foreign(mut stats: Stats) -> Stats {
    stats.foreign = 0;
    stats
}

fn forged_datagrams_do_not_reach_a_queue(_: &Namespace) {
    let (traffic, ledger) = (Traffic::new(ROUNDS * WAVE + 1, 100), Ledger::default());
    let queue = Queue::builder(1).max_len(4096).bind().unwrap();
    let (stats, taken, _) = under_forgery(queue, &traffic, &ledger);
    assert_eq!((taken, stats.foreign, stats.lost), (0, 0, 0));
}

fn forged_datagrams_on_an_adopted_socket_are_counted(_: &Namespace) {
    let (traffic, ledger) = (Traffic::new(ROUNDS * WAVE + 1, 100), Ledger::default());
    // One that everybody may send to.
    let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    socket.set_no_enobufs(true).unwrap();
    let fd = socket.as_fd().try_clone_to_owned().unwrap();
    drop(socket);
    let queue = Queue::builder(1).max_len(4096).bind_on(fd).unwrap();
    let (stats, taken, refused) = under_forgery(queue, &traffic, &ledger);
    assert_eq!((refused, stats.foreign), (0, taken));
    println!("{} of {} packets were lost to {taken} forged datagrams", stats.lost, traffic.sent());
}
