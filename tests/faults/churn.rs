//! Queues that come and go.

use std::thread;
use std::time::Instant;

use allocation_counter::measure;
use netfilterqueue::{Error, Queue, RetainedPacket};
use netfilterqueue_netns::Namespace;

use crate::accounts::{
    Counted, Fate, Ledger, Traffic, feed, fell_short, netfilter_sockets, number, patience,
};
use crate::support::receive_exactly;
use crate::{Test, faults};

pub const TESTS: [Test; 1] = faults![ten_thousand_bindings_leave_nothing];

/// Of each of two numbers.
const BINDINGS: u32 = 5_000;

/// One binding in so many has packets.
const WITH_PACKETS: u32 = 10;

fn ten_thousand_bindings_leave_nothing(_: &Namespace) {
    let traffics = [1, 2].map(|number| (number, Traffic::new(BINDINGS as usize, 4)));
    let _rules = feed(&traffics);
    let before = netfilter_sockets();
    thread::scope(|scope| {
        for (number, traffic) in &traffics {
            scope.spawn(|| bind_again_and_again(*number, traffic));
        }
    });
    assert_eq!(netfilter_sockets(), before);
}

fn bind_again_and_again(queue: u16, traffic: &Traffic) {
    let ledger = Ledger::default();
    let deadline = Instant::now() + patience();
    let (mut unread, mut stale) = (0, None);
    for round in 0..BINDINGS {
        if Instant::now() > deadline {
            fell_short("10000 bindings of two numbers", round.into());
            break;
        }
        if round % WITH_PACKETS == 0 {
            stale = Some(use_and_close(queue, round, traffic, &ledger, stale));
            unread += 1;
            continue;
        }
        let memory = measure(|| {
            let queue = Queue::builder(queue).bind().expect("the number is free at once");
            // The two ways to give it back.
            match round % 3 {
                0 => queue.close().expect("it was bound"),
                _ => drop(queue),
            }
        });
        assert_eq!((memory.count_current, memory.bytes_current), (0, 0), "round {round}");
    }
    drop(stale);
    traffic.settle(&ledger, Counted { lost: unread, ..Counted::default() });
}

/// Three packets: one is accepted, one retained longer than the queue lives, one never read. What
/// was retained of the binding before has the id of the second.
fn use_and_close(
    queue: u16,
    round: u32,
    traffic: &Traffic,
    ledger: &Ledger,
    stale: Option<RetainedPacket>,
) -> RetainedPacket {
    let mut queue = Queue::builder(queue).bind().expect("the number is free at once");
    traffic.send(3, 4);
    let mut batch = receive_exactly(&mut queue, 2);
    if let Some(stale) = stale {
        assert_eq!(stale.id(), 2);
        let error = stale.accept().unwrap_err().error;
        assert!(matches!(error, Error::Closed), "{error:?}");
    }
    let mut packets = batch.iter_mut();
    let mut next = |fate| {
        let packet = packets.next().expect("a packet");
        // Ids begin anew with each binding.
        ledger.note(packet.queue(), 2 * round + packet.id(), number(packet.payload()), fate);
        packet
    };
    next(Fate::Accepted).accept();
    let (retained, _) = next(Fate::Dropped).retain();
    batch.commit().expect("committed");
    if round.is_multiple_of(4) {
        queue.close().expect("it was bound");
    }
    retained
}
