//! The tests of fnfqueue.

use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{Batch, Error, Queue, Verdict};
use netfilterqueue_netns::Namespace;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
    setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::support::{
    Judging, Peers, QUIET, SERVER_V4, SOON, UdpPair, V4, internet_checksum, judge_while,
    kernel_stats, queue_udp, receive_exactly, wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 3] = tests![
    parity_ping_edited,
    parity_flood_of_100_000_without_loss,
    parity_close_from_another_thread,
];

fn parity_ping_edited(router: &Namespace) {
    let peers = Peers::of(router);
    let (note, seen) = mpsc::channel();
    let judging = Judging::start(Queue::builder(1).bind().unwrap(), move |mut packet| {
        let icmp = &mut packet.payload_mut().unwrap()[20..];
        note.send(icmp[0]).unwrap();
        // The checksum follows with the verdict.
        icmp[8..].make_ascii_uppercase();
        packet.accept()
    });
    let _rules =
        Rules::new(Hook::FORWARD).rule(Rule::queue(1).protocol(Protocol::ICMP)).install().unwrap();
    assert_eq!(peers.client.run(|| ping(b"hello")), b"HELLO");
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [8, 0], "an echo request and its reply");
    assert_eq!(judging.finish().stats().answered, 2);
}

/// Sends an echo request to the server and returns the data of the answer.
pub fn ping(data: &[u8]) -> Vec<u8> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let raw = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp).unwrap();
    setsockopt(&raw, ReceiveTimeout, &TimeVal::new(SOON.as_secs().cast_signed(), 0)).unwrap();
    // Echo request, code 0, checksum, identifier 0x1234, sequence 1.
    let mut request = [&[8, 0, 0, 0, 0x12, 0x34, 0, 1], data].concat();
    let sum = internet_checksum(&[&request]);
    request[2..4].copy_from_slice(&sum);
    let IpAddr::V4(server) = SERVER_V4 else { panic!("an IPv4 address") };
    let [a, b, c, d] = server.octets();
    let to = SockaddrIn::new(a, b, c, d, 0);
    sendto(raw.as_raw_fd(), &request, &to, MsgFlags::empty()).unwrap();
    let mut answer = [0; 256];
    let length = recv(raw.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("an answer");
    assert_eq!(answer[20..22], [0, 0], "an echo reply");
    answer[28..length].to_vec()
}

fn parity_flood_of_100_000_without_loss(_: &Namespace) {
    const FLOOD: u64 = 100_000;
    /// As many as the receiver's buffer holds, so that what is missing was lost in the queue.
    const ON_THE_WAY: u64 = 100;
    let mut queue = Queue::builder(1).max_len(4096).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let arrived = AtomicU64::new(0);
    let started = Instant::now();
    judge_while(
        &mut queue,
        |packet| packet.verdict(Verdict::Accept),
        || {
            thread::scope(|scope| {
                scope.spawn(|| {
                    for number in 0..FLOOD {
                        let mut buffer = [0; 16];
                        let length = udp.receiver.recv(&mut buffer).expect("none is missing");
                        assert_eq!(buffer[..length], number.to_be_bytes());
                        arrived.fetch_add(1, Ordering::Relaxed);
                    }
                });
                // It takes 2 seconds, and ten times as long on an emulated kernel.
                let patience = Duration::from_secs(40);
                for number in 0..FLOOD {
                    while number - arrived.load(Ordering::Relaxed) > ON_THE_WAY {
                        assert!(started.elapsed() < patience, "{arrived:?} have arrived");
                        thread::yield_now();
                    }
                    udp.send(&number.to_be_bytes());
                }
            });
        },
    );
    let elapsed = started.elapsed();
    udp.expect_nothing();
    let stats = queue.stats();
    assert_eq!((stats.received, stats.answered, stats.lost), (FLOOD, FLOOD, 0));
    assert_eq!((stats.refused, stats.held), (0, 0));
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!((kernel.queue_dropped, kernel.user_dropped), (0, 0));
    }
    println!("{FLOOD} packets in {elapsed:?}");
}

/// A queue that blocks in one thread is stopped by another and closed by a third.
fn parity_close_from_another_thread(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"kept");
    let mut batch = receive_exactly(&mut queue, 1);
    let (kept, _) = batch.iter_mut().next().unwrap().retain();
    udp.send(b"in a batch");
    let mut open = Batch::new(1);
    assert_eq!(queue.recv(&mut open).unwrap(), 1);

    let stop = queue.stop_handle();
    let blocked = thread::spawn(move || {
        let result = queue.recv(&mut Batch::new(1));
        assert!(matches!(result, Err(Error::Stopped)), "{result:?}");
        queue
    });
    thread::sleep(QUIET);
    stop.stop();
    wait_until("the end of the receive", || blocked.is_finished());
    let queue = blocked.join().unwrap();
    thread::spawn(move || queue.close().unwrap()).join().unwrap();

    assert!(matches!(open.commit(), Err(Error::Closed)));
    assert!(matches!(kept.accept().unwrap_err().error, Error::Closed));
    udp.expect_nothing();
    drop(Queue::builder(1).bind().expect("the number is free at once"));
}
