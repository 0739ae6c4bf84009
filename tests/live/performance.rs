//! What packets cost, in system calls and allocations: counts, never times.

use std::hint::black_box;
use std::net::UdpSocket;

use allocation_counter::{AllocationInfo, measure};
use netfilterqueue::conntrack::{ConntrackChange, ConntrackStatus, LabelsChange, MarkChange};
use netfilterqueue::{Batch, Decided, EditMode, Packet, Queue, RetainedPacket, Verdict};
use netfilterqueue_netns::Namespace;

use crate::support::{Feed, UdpPair, V4, queue_udp, receive_exactly, udp_data, wait_until};
use crate::{Test, tests};

pub const TESTS: [Test; 8] = tests![
    a_backlog_takes_two_system_calls_per_32_packets,
    a_batch_of_like_verdicts_is_one_receive_and_one_send,
    a_batch_of_edits_is_one_receive_and_one_send,
    the_packet_path_allocates_nothing,
    several_queues_on_a_socket_allocate_nothing_per_packet,
    edits_in_several_datagrams_allocate_nothing,
    a_run_allocates_nothing_per_packet,
    a_retained_packet_costs_its_size,
];

const BACKLOG: usize = 10_000;

/// Queued packets of one sender, whose send buffer they take: room for about 90.
const PER_SENDER: usize = 50;

/// One in so many packets of the backlog is accepted: few enough for loopback and for the
/// receivers.
const ACCEPTED: usize = 16;
const RECEIVERS: usize = 10;

/// More than a small packet takes of the receive buffer.
const BUFFER_PER_PACKET: usize = 1_000;

const BATCH: usize = 64;

fn a_backlog_takes_two_system_calls_per_32_packets(_: &Namespace) {
    let builder = Queue::builder(1).max_len(20_000);
    let mut queue = builder.receive_buffer(BACKLOG * BUFFER_PER_PACKET).bind().unwrap();
    // At the output hook: there the packets wait as soon as they are sent.
    let _rules = queue_udp(1);
    // An ordinary user in a user namespace gets what the host's limit allows.
    let backlog = BACKLOG.min(queue.receive_buffer().unwrap() / BUFFER_PER_PACKET);
    let receivers = [(); RECEIVERS].map(|()| UdpSocket::bind((V4, 0)).unwrap());
    send_numbered(backlog, &receivers);
    run_for(&mut queue, backlog, |packet| {
        let accept = number(udp_data(packet.payload())).is_multiple_of(ACCEPTED);
        packet.verdict(if accept { Verdict::Accept } else { Verdict::Drop })
    });
    let stats = queue.stats();
    assert_eq!((stats.received, stats.answered), (backlog as u64, backlog as u64));
    assert_eq!((stats.lost, stats.held, stats.refused), (0, 0, 0));
    let calls = stats.receive_calls + stats.wait_calls + stats.send_calls;
    let allowed = 2 * backlog.div_ceil(32) as u64;
    assert!(calls <= allowed, "{calls} calls for {backlog} packets, {allowed} allowed: {stats:?}");
    assert!(stats.wait_calls <= 1, "what waits already is not waited for: {stats:?}");
    let expected: Vec<_> = (0..backlog).step_by(ACCEPTED).collect();
    let mut arrived = Vec::new();
    wait_until("the arrival of what was accepted", || {
        take_numbers(&receivers, &mut arrived);
        arrived.len() >= expected.len()
    });
    arrived.sort_unstable();
    assert_eq!(arrived, expected);
}

/// Sends packets with the numbers from 0 on, the accepted ones to each receiver in turn.
fn send_numbered(count: usize, receivers: &[UdpSocket]) {
    let addresses: Vec<_> = receivers.iter().map(|to| to.local_addr().unwrap()).collect();
    for first in (0..count).step_by(PER_SENDER) {
        let sender = UdpSocket::bind((V4, 0)).unwrap();
        for number in first..count.min(first + PER_SENDER) {
            let to = addresses[number / ACCEPTED % addresses.len()];
            sender.send_to(&(number as u32).to_be_bytes(), to).unwrap();
        }
    }
}

fn number(data: &[u8]) -> usize {
    u32::from_be_bytes(data.try_into().expect("four bytes")) as usize
}

/// `Queue::run` until the last of `count` packets is judged.
fn run_for(
    queue: &mut Queue,
    count: usize,
    mut judge: impl for<'p> FnMut(Packet<'p>) -> Decided<'p>,
) {
    let stop = queue.stop_handle();
    let mut left = count;
    let run = queue.run(|packet| {
        left -= 1;
        if left == 0 {
            stop.stop();
        }
        judge(packet)
    });
    run.unwrap();
}

/// Adds the numbers that the receivers hold.
fn take_numbers(receivers: &[UdpSocket], numbers: &mut Vec<usize>) {
    for receiver in receivers {
        receiver.set_nonblocking(true).unwrap();
        let mut data = [0; 16];
        while let Ok(length) = receiver.recv(&mut data) {
            numbers.push(number(&data[..length]));
        }
    }
}

fn a_batch_of_like_verdicts_is_one_receive_and_one_send(_: &Namespace) {
    for verdict in [Verdict::Accept, Verdict::Drop] {
        let verdicts = calls_of_a_batch(|packet| packet.verdict(verdict));
        assert_eq!(verdicts, (0, 1), "exact and cumulative verdicts");
    }
}

fn a_batch_of_edits_is_one_receive_and_one_send(_: &Namespace) {
    let verdicts = calls_of_a_batch(|mut packet| {
        packet.set_payload(&LONGER).unwrap();
        packet.accept()
    });
    assert_eq!(verdicts, (BATCH as u64, 0), "exact and cumulative verdicts");
}

/// Judges a full batch and asserts that it took one receive and one send. Returns how many exact
/// and cumulative verdicts that were.
fn calls_of_a_batch(judge: impl for<'p> Fn(Packet<'p>) -> Decided<'p>) -> (u64, u64) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut batch = Batch::new(BATCH);
    udp.send_each(0..BATCH as u8);
    let before = queue.stats();
    assert_eq!(queue.recv(&mut batch).unwrap(), BATCH, "all of them at once");
    for packet in &mut batch {
        judge(packet);
    }
    batch.commit().unwrap();
    let after = queue.stats();
    let receives = after.receive_calls - before.receive_calls;
    assert_eq!((receives, after.wait_calls, after.send_calls), (1, 0, 1), "{after:?}");
    assert_eq!(after.answered, BATCH as u64);
    (after.exact_verdicts, after.cumulative_verdicts)
}

/// As a payload, an IPv4 header that nothing is behind: longer than what is sent, and never
/// delivered.
const LONGER: [u8; 400] = [0x45; 400];

/// Something to do with a packet; what it leaves undecided gets the default verdict.
type Judge = for<'p> fn(Packet<'p>);

const JUDGES: [(&str, Judge); 12] = [
    ("accept", |packet| done(packet.accept())),
    ("drop", |packet| done(packet.verdict(Verdict::Drop))),
    ("leave undecided", |_| {}),
    ("read", |packet| {
        let read = (packet.payload().len(), packet.timestamp(), packet.skb_info(), packet.hwaddr());
        black_box((read, packet.mark(), packet.outdev(), packet.conntrack().is_some()));
        done(packet.accept());
    }),
    ("mark", |mut packet| {
        packet.set_mark(packet.id());
        done(packet.accept());
    }),
    ("mark and priority", |mut packet| {
        packet.set_mark(1);
        packet.set_priority(packet.id());
        done(packet.accept());
    }),
    ("change the connection", |mut packet| {
        packet.set_conntrack(CONNECTION);
        done(packet.accept());
    }),
    ("edit in place", |mut packet| {
        packet.payload_mut().unwrap()[28..].fill(b'x');
        done(packet.accept());
    }),
    ("edit in place, sent as it is", |mut packet| {
        packet.set_edit_mode(EditMode::Raw);
        packet.payload_mut().unwrap()[28..].fill(b'x');
        done(packet.accept());
    }),
    ("set a longer payload", |mut packet| {
        packet.set_payload(&LONGER).unwrap();
        done(packet.accept());
    }),
    ("set a shorter payload", |mut packet| {
        packet.set_payload(&LONGER[..24]).unwrap();
        done(packet.accept());
    }),
    ("a mixture", |mut packet| match packet.id() % 4 {
        0 => done(packet.verdict(Verdict::Drop)),
        1 => done(packet.accept()),
        2 => {
            packet.set_mark(1);
            done(packet.verdict(Verdict::Stop));
        }
        _ => {
            packet.payload_mut().unwrap().reverse();
            done(packet.accept());
        }
    }),
];

/// As long as a change can be.
const CONNECTION: ConntrackChange = ConntrackChange {
    timeout: Some(60),
    status: Some(ConntrackStatus::ASSURED),
    labels: Some(LabelsChange { value: [1; 16], mask: [1; 16] }),
    mark: Some(MarkChange { value: 1, mask: 1 }),
};

/// Judges differ in whether they decide.
fn done(_: Decided<'_>) {}

/// Judges a batch, whose packets wait, and counts what that allocates: receiving, judging, sending.
fn allocations(queue: &mut Queue, batch: &mut Batch, judge: impl Fn(Packet<'_>)) -> AllocationInfo {
    let capacity = batch.capacity();
    measure(|| {
        assert_eq!(queue.recv(batch).unwrap(), capacity, "all of them at once");
        batch.iter_mut().for_each(judge);
        batch.commit().unwrap();
    })
}

/// The first round makes the buffers for verdicts as long as they get; they belong to the batch.
fn longest(mut packet: Packet<'_>) {
    packet.set_mark(1);
    packet.set_priority(1);
    packet.set_conntrack(CONNECTION);
    packet.payload_mut().unwrap();
    packet.accept();
}

/// What is not among the judges: a bridged frame's VLAN tag and link-layer header are kept where a
/// change of the connection is. And these allocate: `retain` (see below), deadlines, names of
/// interfaces when they are asked for first, packets that come while the kernel's answer to a
/// reconfiguration is awaited, and verdicts that could not be sent.
fn the_packet_path_allocates_nothing(_: &Namespace) {
    const ROUNDS: usize = 20;
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut batch = Batch::new(BATCH);
    let mut round = |queue: &mut Queue, judge: Judge| {
        udp.send_each(0..BATCH as u8);
        allocations(queue, &mut batch, judge)
    };
    let first = round(&mut queue, longest);
    assert!(first.count_total > 0, "allocations are counted: {first:?}");
    let mut all = |queue: &mut Queue| {
        for (name, judge) in JUDGES {
            for _ in 0..ROUNDS {
                let counted = round(queue, judge);
                assert_eq!(counted.count_total, 0, "{name}: {counted:?}");
            }
        }
        queue.stats()
    };
    let freely = all(&mut queue);
    assert!(freely.cumulative_verdicts > 0, "{freely:?}");
    // Exact verdicts only, while another packet waits for its own.
    udp.send(&[0]);
    let retained = receive_exactly(&mut queue, 1).iter_mut().next().unwrap().retain().0;
    let exactly = all(&mut queue);
    assert_eq!(exactly.cumulative_verdicts, freely.cumulative_verdicts);
    retained.accept().unwrap();
    let packets = (2 * JUDGES.len() * ROUNDS + 1) * BATCH + 1;
    let stats = queue.stats();
    assert_eq!((stats.answered, stats.lost, stats.refused), (packets as u64, 0, 0));
}

fn several_queues_on_a_socket_allocate_nothing_per_packet(_: &Namespace) {
    let numbers = [1, 2, 3];
    let mut queue = Queue::builder(numbers).bind().unwrap();
    let feed = Feed::of(numbers);
    let mut batch = Batch::new(20 * numbers.len());
    let mut round = |judge: Judge| {
        feed.send_each(0..20);
        allocations(&mut queue, &mut batch, judge)
    };
    round(longest);
    for (name, judge) in JUDGES {
        let counted = round(judge);
        assert_eq!(counted.count_total, 0, "{name}: {counted:?}");
    }
}

fn edits_in_several_datagrams_allocate_nothing(_: &Namespace) {
    // As much as three senders' buffers hold, and more than goes into one datagram.
    const PER_SENDER: usize = 2;
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let senders = [(); 3].map(|()| UdpPair::new(V4));
    let mut batch = Batch::new(PER_SENDER * senders.len());
    let mut round = || {
        let large = [0; 60_000];
        senders.iter().for_each(|udp| (0..PER_SENDER).for_each(|_| udp.send(&large)));
        allocations(&mut queue, &mut batch, longest)
    };
    round();
    let counted = round();
    assert_eq!(counted.count_total, 0, "{counted:?}");
    let calls = queue.stats().send_calls;
    assert!(calls > 2, "{calls} datagrams of two batches");
}

/// `Queue::run` keeps its batch from one run to the next.
fn a_run_allocates_nothing_per_packet(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut round = || {
        udp.send_each(0..BATCH as u8);
        measure(|| {
            run_for(&mut queue, BATCH, |mut packet| {
                packet.set_mark(packet.id());
                packet.payload_mut().unwrap();
                packet.accept()
            });
        })
    };
    assert!(round().count_total > 0, "the first run makes the batch");
    let counted = round();
    assert_eq!(counted.count_total, 0, "{counted:?}");
    assert_eq!(queue.stats().answered, 2 * BATCH as u64);
}

fn a_retained_packet_costs_its_size(_: &Namespace) {
    const OVERHEAD_MAX: usize = 256;
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let sizes = [1, 100, 1_400];
    sizes.iter().for_each(|size| udp.send(&vec![0; *size]));
    let mut batch = receive_exactly(&mut queue, sizes.len());
    let mut retained = Vec::with_capacity(sizes.len());
    let mut kept = 0;
    for packet in &mut batch {
        let payload_len = packet.payload().len();
        let counted = measure(|| retained.push(packet.retain().0));
        assert_eq!(counted.count_total, 1, "it is copied once: {counted:?}");
        let cost = counted.bytes_total as usize + size_of::<RetainedPacket>();
        let allowed = payload_len + 1..=payload_len + OVERHEAD_MAX;
        assert!(allowed.contains(&cost), "{payload_len} bytes take {cost} to retain");
        kept += counted.bytes_current;
    }
    let freed = measure(|| retained.drain(..).for_each(|packet| packet.accept().unwrap()));
    assert_eq!(freed.bytes_current, -kept, "they are freed with their verdict");
    let received = udp.receive_all(sizes.len());
    assert_eq!(received.iter().map(Vec::len).collect::<Vec<_>>(), sizes);
}
