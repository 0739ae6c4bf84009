//! Too many packets, too little room, and datagrams that the kernel did not send.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use netfilterqueue::protocol::constants::{NFQNL_MSG_CONFIG, NFQNL_MSG_PACKET, NFQNL_MSG_VERDICT};
use netfilterqueue::{
    Batch, ConfigFlags, CopyMode, Error, FlagChange, KernelStats, Queue, QueueBuilder, Verdict,
};
use netfilterqueue_netns::Namespace;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use crate::support::{UdpPair, V4, judge, kernel_stats, queue_udp, receive_exactly};
use crate::{Test, tests};

pub const TESTS: [Test; 13] = tests![
    overrun_is_counted_and_survived,
    overrun_of_a_queue_that_fails_open_drops_nothing,
    full_queue_drops_without_a_gap,
    full_queue_that_fails_open_drops_nothing,
    queue_takes_packets_again_after_verdicts,
    receive_buffer_is_as_large_as_permitted,
    too_long_packet_gets_the_default_verdict,
    too_long_packet_kept_while_configuring_gets_the_default_verdict,
    too_long_packet_may_be_dropped_by_default,
    strangers_cannot_send_to_a_queue,
    forged_packet_is_discarded,
    forged_refusal_is_discarded,
    forged_answer_to_a_configuration_is_discarded,
];

/// The ids of all packets that wait, which are accepted.
fn accept_what_waits(queue: &mut Queue) -> Vec<u32> {
    let mut batch = Batch::new(64);
    let mut ids = Vec::new();
    queue.set_nonblocking(true);
    while queue.recv(&mut batch).is_ok() {
        for packet in &mut batch {
            ids.push(packet.id());
            packet.accept();
        }
        batch.commit().expect("committed");
    }
    ids
}

fn overrun_is_counted_and_survived(_: &Namespace) {
    const SENT: u8 = 50;
    let mut queue = Queue::builder(1).receive_buffer(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..SENT);
    let mut ids = accept_what_waits(&mut queue);
    let delivered = ids.len() as u8;
    assert!((1..SENT).contains(&delivered), "{delivered} packets fit");
    assert_eq!(queue.stats().lost, 0, "no later packet shows the gap yet");
    udp.receive_all(delivered.into());
    udp.send(&[SENT]);
    ids.extend(accept_what_waits(&mut queue));
    assert_eq!(ids.last(), Some(&(u32::from(SENT) + 1)), "later packets still come");
    assert_eq!(udp.receive_all(1), [[SENT]]);
    let stats = queue.stats();
    assert_eq!(stats.received, u64::from(delivered) + 1);
    assert_eq!(stats.lost, u64::from(SENT - delivered));
    assert_eq!(stats.lost, u64::from(*ids.last().unwrap()) - ids.len() as u64, "the gap");
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!(u64::from(kernel.user_dropped), stats.lost);
        assert_eq!((kernel.queue_dropped, kernel.waiting), (0, 0));
        assert_eq!((kernel.last_id, kernel.peer_port_id), (u32::from(SENT) + 1, queue.port_id()));
    }
}

fn overrun_of_a_queue_that_fails_open_drops_nothing(_: &Namespace) {
    let mut queue = Queue::builder(1).receive_buffer(1).fail_open(true).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..50);
    let delivered = accept_what_waits(&mut queue).len();
    udp.receive_all(50);
    udp.send(&[50]);
    assert_eq!(accept_what_waits(&mut queue), [51]);
    assert_eq!(queue.stats().lost, 50 - delivered as u64, "not seen by this program");
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!((kernel.queue_dropped, kernel.user_dropped), (0, 0));
    }
}

fn full_queue_drops_without_a_gap(_: &Namespace) {
    let mut queue = Queue::builder(1).max_len(4).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..10);
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!((kernel.queue_dropped, kernel.user_dropped, kernel.waiting), (6, 0, 4));
    }
    assert_eq!(accept_what_waits(&mut queue), [1, 2, 3, 4]);
    assert_eq!(udp.receive_all(4), [[0], [1], [2], [3]]);
    udp.send(&[10]);
    assert_eq!(accept_what_waits(&mut queue), [5], "the dropped ones had no ids");
    assert_eq!((queue.stats().lost, queue.stats().received), (0, 5));
}

fn full_queue_that_fails_open_drops_nothing(_: &Namespace) {
    let mut queue = Queue::builder(1).max_len(2).fail_open(true).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..5);
    assert_eq!(udp.receive_all(3), [[2], [3], [4]], "they do not wait for the first two");
    assert_eq!(accept_what_waits(&mut queue), [1, 2]);
    assert_eq!(udp.receive_all(2), [[0], [1]]);
    assert_eq!(queue.stats().lost, 0);
}

fn queue_takes_packets_again_after_verdicts(_: &Namespace) {
    let mut queue = Queue::builder(1).max_len(2).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut kept = Vec::new();
    for round in 0..3 {
        // One of two stays, so that there is room for one more.
        udp.send_each([round, 100, 101]);
        let wanted = if round == 0 { 2 } else { 1 };
        let mut batch = receive_exactly(&mut queue, wanted);
        let mut packets = batch.iter_mut();
        packets.next().unwrap().accept();
        kept.extend(packets.map(|packet| packet.retain().0));
        batch.commit().unwrap();
        assert_eq!(udp.receive_all(1), [[round]]);
    }
    assert_eq!((kept.len(), queue.stats().held), (1, 1));
    queue.set_max_len(3).unwrap();
    udp.send_each([7, 8, 9]);
    assert_eq!(accept_what_waits(&mut queue).len(), 2, "the one that is kept takes a place");
    assert_eq!(udp.receive_all(2), [[7], [8]]);
}

fn receive_buffer_is_as_large_as_permitted(_: &Namespace) {
    const ASKED: usize = 3 << 20;
    let queue = Queue::builder(1).receive_buffer(ASKED).bind().unwrap();
    let reached = queue.receive_buffer().unwrap();
    let limit = std::fs::read_to_string("/proc/sys/net/core/rmem_max");
    let limit = limit.ok().and_then(|limit| limit.trim().parse().ok()).unwrap_or(212_992);
    // Who may read the kernel's counters is root of the initial user namespace, and has no limit.
    let granted = if KernelStats::read(1).is_ok() { ASKED } else { ASKED.min(limit) };
    assert!(reached >= 2 * granted, "{reached} bytes, {granted} were to be granted");
    let small = Queue::builder(2).receive_buffer(1).bind().unwrap();
    assert!(small.receive_buffer().unwrap() < 10_000);
}

/// Sends a short, a long and a short packet into a batch that cannot hold the long one.
fn receive_with_one_too_long(queue: &mut Queue, udp: &UdpPair, between: impl FnOnce(&mut Queue)) {
    udp.send(&[1]);
    udp.send(&[2; 1000]);
    udp.send(&[3]);
    between(queue);
    let mut batch = Batch::with_buffer_len(4, 300);
    assert_eq!(queue.recv(&mut batch).unwrap(), 3);
    assert_eq!(batch.len(), 3);
    let shown: Vec<_> =
        batch.iter_mut().map(|packet| (packet.id(), packet.payload()[28])).collect();
    assert_eq!(shown, [(1, 1), (3, 3)], "the long one is not shown");
    judge(&mut batch, Verdict::Accept);
    let stats = queue.stats();
    assert_eq!((stats.truncated, stats.malformed, stats.lost), (1, 0, 0));
    assert_eq!((stats.received, stats.answered, stats.held), (3, 3, 0));
}

fn too_long_packet_gets_the_default_verdict(_: &Namespace) {
    let mut queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    receive_with_one_too_long(&mut queue, &udp, |_| {});
    assert_eq!(udp.receive_all(3), [vec![1], vec![2; 1000], vec![3]]);
    udp.send(&[4]);
    assert_eq!(accept_what_waits(&mut queue), [4]);
    assert_eq!(udp.receive_all(1), [[4]]);
}

fn too_long_packet_kept_while_configuring_gets_the_default_verdict(_: &Namespace) {
    let mut queue = Queue::builder(1).on_undecided(Verdict::Accept).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    receive_with_one_too_long(&mut queue, &udp, |queue| {
        queue.set_copy_mode(CopyMode::Packet { range: 100 }).unwrap();
    });
    assert_eq!(udp.receive_all(3), [vec![1], vec![2; 1000], vec![3]]);
    // Now the kernel cuts the packet itself, and it fits.
    udp.send(&[4; 1000]);
    let mut batch = Batch::with_buffer_len(4, 300);
    assert_eq!(queue.recv(&mut batch).unwrap(), 1);
    let packet = batch.iter_mut().next().expect("it is shown");
    assert_eq!((packet.payload().len(), packet.original_len()), (100, Some(1028)));
    packet.accept();
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(1), [vec![4; 1000]]);
}

fn too_long_packet_may_be_dropped_by_default(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    receive_with_one_too_long(&mut queue, &udp, |_| {});
    assert_eq!(udp.receive_all(2), [[1], [3]]);
}

/// Sends a netlink message to the queue's socket as another program could.
fn forge(queue: &Queue, kind: u16, sequence: u32, body: &[u8]) {
    let message = message(kind, sequence, body);
    assert_eq!(send_to(queue, &message).unwrap(), message.len());
}

fn send_to(queue: &Queue, datagram: &[u8]) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    socket.send_to(datagram, &SocketAddr::new(queue.port_id(), 0), 0)
}

/// A queue on a socket that anybody with the capability can send to.
fn bind_open_to_all(builder: QueueBuilder) -> Queue {
    let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    builder.bind_on(socket.as_fd().try_clone_to_owned().unwrap()).unwrap()
}

fn strangers_cannot_send_to_a_queue(_: &Namespace) {
    let mut queue = Queue::builder(1).nonblocking(true).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let packet = message(NFQNL_MSG_PACKET, 0, &forged_packet(1, 1));
    let refused = send_to(&queue, &packet).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    udp.send(&[1]);
    assert_eq!(accept_what_waits(&mut queue), [1]);
    assert_eq!(udp.receive_all(1), [[1]]);
    assert_eq!((queue.stats().foreign, queue.stats().received), (0, 1));
}

/// `struct nlmsghdr` and what follows.
fn message(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = 16 + body.len() as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(sequence.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(body);
    message
}

/// The body of a packet message: `struct nfgenmsg`, `NFQA_PACKET_HDR`, `NFQA_PAYLOAD`.
fn forged_packet(queue: u16, id: u32) -> Vec<u8> {
    let mut body = vec![2, 0];
    body.extend(queue.to_be_bytes());
    body.extend(11_u16.to_ne_bytes());
    body.extend(1_u16.to_ne_bytes());
    body.extend(id.to_be_bytes());
    body.extend([0x08, 0x00, 3, 0]);
    body.extend(8_u16.to_ne_bytes());
    body.extend(10_u16.to_ne_bytes());
    body.extend(b"fake");
    body
}

/// The body of `NLMSG_ERROR`: the negative error number and the header of the request.
fn forged_error(errno: i32, request: u16, sequence: u32) -> Vec<u8> {
    let mut body = (-errno).to_ne_bytes().to_vec();
    body.extend(message(request, sequence, &[]));
    body
}

const NLMSG_ERROR: u16 = 2;
const EPERM: i32 = 1;

fn forged_packet_is_discarded(_: &Namespace) {
    let mut queue = bind_open_to_all(Queue::builder(1).nonblocking(true));
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    forge(&queue, NFQNL_MSG_PACKET, 0, &forged_packet(1, 1));
    let result = queue.recv(&mut Batch::new(4));
    assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
    udp.send(&[1]);
    forge(&queue, NFQNL_MSG_PACKET, 0, &forged_packet(1, 1));
    forge(&queue, NFQNL_MSG_PACKET, 0, &forged_packet(1, 2));
    udp.send(&[2]);
    let mut batch = Batch::new(8);
    assert_eq!(queue.recv(&mut batch).unwrap(), 2);
    let shown: Vec<_> =
        batch.iter_mut().map(|packet| (packet.id(), packet.payload().len())).collect();
    assert_eq!(shown, [(1, 29), (2, 29)]);
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(2), [[1], [2]]);
    // Also where the queue waits for an answer of the kernel.
    forge(&queue, NFQNL_MSG_PACKET, 0, &forged_packet(1, 3));
    queue.set_max_len(100).unwrap();
    let result = queue.recv(&mut batch);
    assert!(matches!(result, Err(Error::WouldBlock)), "{result:?}");
    let stats = queue.stats();
    assert_eq!((stats.foreign, stats.received, stats.lost), (4, 2, 0));
    assert_eq!((stats.unknown, stats.malformed, stats.held), (0, 0, 0));
}

fn forged_refusal_is_discarded(_: &Namespace) {
    let mut queue = bind_open_to_all(Queue::builder(1).nonblocking(true));
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..2);
    forge(&queue, NLMSG_ERROR, 1, &forged_error(EPERM, NFQNL_MSG_VERDICT, 1));
    assert_eq!(accept_what_waits(&mut queue), [1, 2]);
    udp.receive_all(2);
    assert_eq!(queue.take_refusals().len(), 0);
    let stats = queue.stats();
    assert_eq!((stats.foreign, stats.refused, stats.received), (1, 0, 2));
}

fn forged_answer_to_a_configuration_is_discarded(_: &Namespace) {
    let mut queue = bind_open_to_all(Queue::builder(1));
    // The numbers of requests are easy to guess.
    for sequence in 0..10 {
        forge(&queue, NLMSG_ERROR, sequence, &forged_error(EPERM, NFQNL_MSG_CONFIG, sequence));
    }
    queue.set_max_len(100).expect("the kernel agreed");
    assert_eq!(queue.stats().foreign, 10);
    // And a refusal cannot be turned into a success.
    for sequence in 0..10 {
        forge(&queue, NLMSG_ERROR, sequence, &forged_error(0, NFQNL_MSG_CONFIG, sequence));
    }
    let unknown = ConfigFlags(1 << 20);
    let change = FlagChange::set(unknown);
    let result = queue.set_flags(change);
    assert!(matches!(result, Err(Error::FlagsRefused { .. })), "{result:?}");
    assert_eq!(queue.stats().foreign, 20);
}
