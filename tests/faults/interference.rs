//! Somebody else changes the rules: any hook that goes away makes the kernel drop every packet that
//! waits in the namespace.

use std::io;
use std::time::Duration;

use netfilterqueue::rules::{Family, Hook, Rule, Rules};
use netfilterqueue::{Batch, Errno, Error, Queue, RetainedPacket};
use netfilterqueue_netns::Namespace;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::accounts::{Counted, Fate, Ledger, Traffic, number};
use crate::children::{Played, commands, say, wait_patiently};
use crate::kernel::lacks;
use crate::support::{SOON, StopOnDrop, UdpPair, V4, queue_udp, receive_exactly};
use crate::{Test, faults};

pub const TESTS: [Test; 3] = faults![
    rules_of_another_process_come_and_go_under_traffic,
    cumulative_verdicts_go_on_while_rules_come_and_go,
    all_rules_are_flushed_by_another_socket,
];

/// A process with rules that queue nothing, which it takes away at each command, and puts in place
/// again afterwards: only the former flushes, and it is to happen at once.
pub fn meddler() -> io::Result<()> {
    let install = || Rules::new(Hook::FORWARD).family(Family::IPV6).rule(Rule::queue(9)).install();
    let mut rules = install()?;
    for _ in commands() {
        rules.remove()?;
        say("flushed")?;
        rules = install()?;
    }
    Ok(())
}

/// Deletes all tables of this thread's namespace that belong to nobody, as `nft flush ruleset`
/// does.
pub fn flush_rules() {
    const BEGIN: u16 = 16;
    const END: u16 = 17;
    const DELETE_TABLE: u16 = 10 << 8 | 2;
    /// `NLM_F_REQUEST`, and with `NLM_F_ACK`.
    const REQUEST: u16 = 1;
    const ASKING: u16 = 5;
    let message = |kind: u16, flags: u16, subsystem: u16| {
        let length = 20_u32.to_ne_bytes();
        let (kind, flags) = (kind.to_ne_bytes(), flags.to_ne_bytes());
        [&length[..], &kind, &flags, &[0; 10], &subsystem.to_be_bytes()].concat()
    };
    let batch =
        [message(BEGIN, REQUEST, 10), message(DELETE_TABLE, ASKING, 0), message(END, REQUEST, 10)];
    let socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.send(&batch.concat(), 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    assert_eq!(answer[16..20], [0; 4], "it is done");
}

/// Judges what comes, except that some packets are retained and judged a round later.
struct Judge<'a> {
    ledger: &'a Ledger,
    retained: Vec<RetainedPacket>,
    refused: Vec<(u32, bool, Errno)>,
}

impl Judge<'_> {
    /// Until nothing waits.
    fn judge_all(&mut self, queue: &mut Queue, batch: &mut Batch) {
        loop {
            match queue.recv(batch) {
                Ok(_) => {}
                Err(Error::WouldBlock) => break,
                Err(error) => panic!("{error}"),
            }
            for packet in &mut *batch {
                if number(packet.payload()) % 7 == 3 {
                    self.retained.push(packet.retain().0);
                } else {
                    self.ledger.judge(packet);
                }
            }
            batch.commit().expect("refusals come later");
            self.note_refusals(queue);
        }
        self.note_refusals(queue);
    }

    fn judge_retained(&mut self) {
        for packet in self.retained.drain(..) {
            let number = number(packet.payload());
            self.ledger.note(1, packet.id(), number, Fate::of(number));
            packet.verdict(Fate::of(number).verdict()).expect("refusals come later");
        }
    }

    fn note_refusals(&mut self, queue: &mut Queue) {
        let refusals = queue.take_refusals();
        self.refused.extend(
            refusals.into_iter().map(|refusal| (refusal.id, refusal.cumulative, refusal.errno)),
        );
    }
}

/// Every verdict is an exact one here, because a packet is held all the time: so each packet that
/// was flushed is a refusal with its id.
fn rules_of_another_process_come_and_go_under_traffic(_: &Namespace) {
    const ROUNDS: usize = 25;
    const WAVE: usize = 60;
    let mut queue = Queue::builder(1).max_len(4096).bind().unwrap();
    let _rules = queue_udp(1);
    // Not one of those that are flushed: the last of its rounds will be, and that is told.
    let udp = UdpPair::new(V4);
    udp.send(b"held");
    let mut batch = receive_exactly(&mut queue, 1);
    let held = batch.iter_mut().next().unwrap().retain().0;
    queue.set_nonblocking(true);
    let (traffic, ledger) = (Traffic::new(ROUNDS * WAVE, 100), Ledger::default());
    let mut judge = Judge { ledger: &ledger, retained: Vec::new(), refused: Vec::new() };
    let mut meddler = Played::start("meddler");
    let mut batch = Batch::new(16);
    for round in 0..ROUNDS {
        traffic.send(WAVE / 2, 100);
        meddler.tell("flush");
        match round % 3 {
            // The flush falls anywhere into what follows.
            0 => judge.judge_all(&mut queue, &mut batch),
            1 => {}
            // All of the wave waits for it.
            _ => assert_eq!(meddler.line(), "flushed"),
        }
        traffic.send(WAVE / 2, 100);
        judge.judge_all(&mut queue, &mut batch);
        judge.judge_retained();
        if round % 3 < 2 {
            assert_eq!(meddler.line(), "flushed");
        }
    }
    judge.judge_all(&mut queue, &mut batch);
    judge.judge_retained();
    held.accept().expect("refusals come later");
    judge.judge_all(&mut queue, &mut batch);
    assert_eq!(meddler.finish(), [""; 0]);
    udp.expect_nothing();
    let stats = queue.stats();
    assert_eq!((stats.received, stats.lost, stats.held), (traffic.sent() + 1, 0, 0));
    assert_eq!((stats.cumulative_verdicts, stats.answered), (0, stats.received));
    assert_eq!(stats.refused, judge.refused.len() as u64);
    assert!(judge.refused.iter().all(|refusal| (refusal.1, refusal.2) == (false, Errno::ENOENT)));
    let numbers = ledger.numbers(1);
    let fate = |id: &u32| numbers.get(id).map(|number| Fate::of(*number));
    let ids: Vec<_> = judge.refused.iter().map(|refusal| refusal.0).collect();
    assert_eq!(
        ids.iter().filter(|id| fate(id).is_none()).collect::<Vec<_>>(),
        [&1],
        "the held one"
    );
    let flushed = ids.iter().filter(|id| fate(id) == Some(Fate::Accepted)).count() as u64;
    assert!(flushed > 0, "some were flushed");
    println!("{} of {} packets were flushed", ids.len(), stats.received);
    traffic.settle(&ledger, Counted { flushed, ..Counted::default() });
}

/// A run of which some packets are left is not refused, so that it cannot be told of each packet
/// whether it was flushed. But nothing ends, nothing waits for ever, and a wave that is
/// queued while no rules go away arrives whole.
fn cumulative_verdicts_go_on_while_rules_come_and_go(_: &Namespace) {
    const ROUNDS: usize = 25;
    const WAVE: usize = 60;
    let mut queue = Queue::builder(1).max_len(4096).bind().unwrap();
    let _rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(2 * ROUNDS * WAVE, 100), Ledger::default());
    let mut meddler = Played::start("meddler");
    let stats = queue.stats_handle();
    let stop = StopOnDrop(queue.stop_handle());
    let accepted_from = |first: u64| {
        (first..traffic.sent()).filter(|n| Fate::of(*n as u32) == Fate::Accepted).count()
    };
    // Of the waves that met with a flush.
    let mut flushed = 0;
    std::thread::scope(|scope| {
        let stop = stop;
        let run = scope.spawn(|| {
            queue.run(|packet| {
                // So that a flush finds packets.
                std::thread::sleep(Duration::from_micros(300));
                ledger.judge(packet)
            })
        });
        let (mut first, mut before) = (0, 0);
        let all_judged = || stats.stats().answered == traffic.sent();
        for round in 0..ROUNDS {
            meddler.tell("flush");
            traffic.send(WAVE, 100);
            assert_eq!(meddler.line(), "flushed");
            assert!(!run.is_finished(), "the loop has ended");
            if round % 3 == 0 {
                wait_patiently("the verdicts of flushed waves", all_judged);
                let accepted = accepted_from(first);
                // A packet is where it goes to when its verdict has been sent.
                let arrived = traffic.collect() - before;
                assert!(arrived <= accepted, "{arrived} of {accepted} arrived");
                flushed += (accepted - arrived) as u64;
                first = traffic.sent();
                before = traffic.collect();
                traffic.send(WAVE, 100);
                let whole = before + accepted_from(first);
                wait_patiently("a wave without a flush", || traffic.collect() == whole);
                wait_patiently("its last verdict", all_judged);
                (first, before) = (traffic.sent(), whole);
            }
        }
        assert_eq!(first, traffic.sent(), "the last wave was without a flush");
        drop(stop);
        run.join().unwrap().unwrap();
    });
    assert_eq!(meddler.finish(), [""; 0]);
    let before = queue.stats();
    assert_eq!((before.received, before.lost, before.held), (traffic.sent(), 0, 0));
    assert!(before.cumulative_verdicts > 0);
    println!("{flushed} accepted packets were flushed");
    // From here on nothing is missing.
    queue.set_nonblocking(true);
    traffic.send(60, 100);
    queue.run(|packet| ledger.judge(packet)).unwrap();
    traffic.settle(&ledger, Counted { flushed, ..Counted::default() });
}

/// Those that a last receive finds.
fn refusals_unread(queue: &mut Queue) -> u64 {
    let before = queue.stats().refused;
    let result = queue.recv_timeout(&mut Batch::new(1), SOON / 100);
    assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
    queue.stats().refused - before
}

/// `nft flush ruleset`: it spares the table with an owner, and so packets go on being queued. What
/// waited stays queued, too, unless some other hook went away with it.
fn all_rules_are_flushed_by_another_socket(_: &Namespace) {
    const WAVE: usize = 60;
    let mut queue = Queue::builder(1).nonblocking(true).bind().unwrap();
    let rules = queue_udp(1);
    let (traffic, ledger) = (Traffic::new(2 * WAVE, 100), Ledger::default());
    traffic.send(WAVE, 100);
    flush_rules();
    traffic.send(WAVE, 100);
    queue.run(|packet| ledger.judge(packet)).unwrap();
    let stats = queue.stats();
    if rules.is_owned() {
        assert_eq!((stats.received, stats.lost), (2 * WAVE as u64, 0));
        traffic.settle(&ledger, Counted::default());
        assert_eq!(refusals_unread(&mut queue), 0);
    } else {
        lacks("owner tables", "the rules are gone when somebody flushes all");
        assert_eq!((stats.received, stats.lost), (WAVE as u64, 0));
        let numbers = ledger.numbers(1).into_values();
        let flushed = numbers.filter(|number| Fate::of(*number) == Fate::Accepted).count() as u64;
        let counted = Counted { flushed, passed: WAVE as u64, ..Counted::default() };
        traffic.settle(&ledger, counted);
        assert!(refusals_unread(&mut queue) + queue.stats().refused > 0);
    }
    match rules.remove() {
        Ok(()) | Err(Error::Refused { errno: Errno::ENOENT, .. }) => {}
        Err(error) => panic!("{error}"),
    }
}
