//! What a program is told when something is refused, and that it can go on.

use std::io;

use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{
    Batch, ConfigFlags, CopyMode, Errno, Error, FlagChange, Operation, Queue, Verdict,
};
use netfilterqueue_netns::Namespace;

use crate::support::{
    UdpPair, V4, expect_no_packet, judge, kernel_stats, queue_udp, receive_exactly,
    without_capability,
};
use crate::{Test, tests};

pub const TESTS: [Test; 13] = tests![
    taken_queue_is_named_and_goes_on,
    binding_without_the_capability_says_so,
    installing_rules_without_the_capability_says_so,
    configuring_without_the_capability_names_the_operation,
    closing_without_the_capability_is_reported,
    verdicts_without_the_capability_are_reported,
    unheard_refusals_let_no_wrong_verdict_pass,
    refusals_are_limited_and_newest_first_kept,
    verdict_on_a_flushed_packet_is_reported_and_harmless,
    unsupported_flag_is_singled_out_when_binding,
    unsupported_flag_is_singled_out_on_a_live_queue,
    unknown_flag_is_refused_and_the_queue_goes_on,
    errors_become_io_errors,
];

/// Sends a datagram through the queue.
fn assert_works(queue: &mut Queue, udp: &UdpPair) {
    udp.send(&[77]);
    judge(&mut receive_exactly(queue, 1), Verdict::Accept);
    assert_eq!(udp.receive_all(1), [[77]]);
}

/// Receives what waits, which must be no packet, so that refusals are read.
fn read_refusals(queue: &mut Queue) -> Vec<(u32, bool, Errno)> {
    expect_no_packet(queue);
    queue
        .take_refusals()
        .into_iter()
        .map(|refusal| (refusal.id, refusal.cumulative, refusal.errno))
        .collect()
}

fn taken_queue_is_named_and_goes_on(_: &Namespace) {
    let mut first = Queue::builder(7).bind().unwrap();
    let _rules = queue_udp(7);
    let udp = UdpPair::new(V4);
    for _ in 0..2 {
        let error = Queue::builder(7).max_len(1).bind().unwrap_err();
        assert!(matches!(error, Error::QueueTaken { queue: 7, .. }), "{error:?}");
        assert!(error.to_string().contains("queue 7 is taken"), "{error}");
    }
    drop(Queue::builder(8).bind().expect("another number is free"));
    udp.send(&[1]);
    assert_works_after_first(&mut first, &udp);
    drop(first);
    drop(Queue::builder(7).bind().expect("free now"));
}

/// The number's owner gets its packets, with the configuration it made.
fn assert_works_after_first(queue: &mut Queue, udp: &UdpPair) {
    udp.send(&[2]);
    judge(&mut receive_exactly(queue, 2), Verdict::Accept);
    assert_eq!(udp.receive_all(2), [[1], [2]], "the other's max_len is not in force");
}

fn binding_without_the_capability_says_so(_: &Namespace) {
    let owner = Queue::builder(7).bind().unwrap();
    without_capability(|| {
        for number in [7, 8] {
            let error = Queue::builder(number).bind().unwrap_err();
            let Error::NoCapability { operation, .. } = error else {
                panic!("queue {number}: {error:?}");
            };
            assert_eq!(operation, Operation::Bind);
            assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        }
    });
    drop(Queue::builder(8).bind().expect("the capability is back"));
    drop(owner);
}

fn installing_rules_without_the_capability_says_so(_: &Namespace) {
    let rules = || Rules::new(Hook::OUTPUT).rule(Rule::queue(1).protocol(Protocol::UDP)).install();
    let error = without_capability(rules).unwrap_err();
    let is_told = matches!(error, Error::NoCapability { operation: Operation::Rules, .. });
    assert!(is_told, "{error:?}");
    UdpPair::new(V4).send_and_receive();
    drop(rules().expect("the capability is back"));
}

impl UdpPair {
    fn send_and_receive(&self) {
        self.send(&[1]);
        assert_eq!(self.receive_all(1), [[1]], "no rule was left");
    }
}

fn configuring_without_the_capability_names_the_operation(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&[1]);
    let error = without_capability(|| queue.set_copy_mode(CopyMode::Meta)).unwrap_err();
    let is_told = matches!(error, Error::NoCapability { operation: Operation::Configure, .. });
    assert!(is_told, "{error:?}");
    udp.send(&[2]);
    let mut batch = receive_exactly(&mut queue, 2);
    assert!(batch.iter_mut().all(|packet| packet.payload().len() == 29), "nothing was changed");
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(2), [[1], [2]]);
}

fn closing_without_the_capability_is_reported(_: &Namespace) {
    let queue = Queue::builder(1).bind().unwrap();
    let error = without_capability(|| queue.close()).unwrap_err();
    let is_told = matches!(error, Error::NoCapability { operation: Operation::Unbind, .. });
    assert!(is_told, "{error:?}");
    drop(Queue::builder(1).bind().expect("closed all the same, with its socket"));
}

/// The kernel refuses a whole datagram and says so once, about its first message. The packets count
/// as answered and their handles are gone, but they wait on until a receive drops them.
fn verdicts_without_the_capability_are_reported(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(1..=4);
    let mut batch = receive_exactly(&mut queue, 4);
    let (retained, _) = batch.iter_mut().nth(3).unwrap().retain();
    batch.iter_mut().next().unwrap().accept();
    batch.iter_mut().next().unwrap().verdict(Verdict::Drop);
    without_capability(|| {
        // The third packet gets the default verdict.
        batch.commit().expect("refusals come later");
        retained.accept().expect("refusals come later");
    });
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!(kernel.waiting, 4, "the packets still wait");
    }
    let refusals = read_refusals(&mut queue);
    assert_eq!(refusals, [(1, false, Errno::EPERM), (4, false, Errno::EPERM)]);
    let stats = queue.stats();
    assert_eq!((stats.refused, stats.answered, stats.held), (2, 4, 0));
    // From here on a cumulative verdict could judge the waiting ones too.
    for _ in 0..2 {
        udp.send_each(5..=6);
        judge(&mut receive_exactly(&mut queue, 2), Verdict::Accept);
        assert_eq!(udp.receive_all(2), [[5], [6]]);
    }
    let stats = queue.stats();
    assert_eq!((stats.cumulative_verdicts, stats.refused), (0, 2));
    if let Some(kernel) = kernel_stats(1) {
        assert_eq!(kernel.waiting, 0, "dropped before these came");
    }
    queue.close().unwrap();
    udp.expect_nothing();
}

/// The refusal of the first batch, which a thread without the capability commits, waits in the
/// socket while the second batch is committed.
fn unheard_refusals_let_no_wrong_verdict_pass(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(1..=4);
    let mut refused = Batch::new(2);
    let mut carried_out = Batch::new(2);
    assert_eq!(queue.recv(&mut refused).unwrap(), 2);
    assert_eq!(queue.recv(&mut carried_out).unwrap(), 2);
    std::thread::scope(|scope| {
        scope.spawn(|| without_capability(|| judge(&mut refused, Verdict::Drop)));
    });
    judge(&mut carried_out, Verdict::Accept);
    assert_eq!(udp.receive_all(2), [[3], [4]], "the others were to be dropped");
}

fn refusals_are_limited_and_newest_first_kept(_: &Namespace) {
    const PACKETS: u32 = 300;
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let mut kept = Vec::new();
    for data in 0..PACKETS {
        // Many sockets, because packets that wait fill the send buffer of theirs.
        let sender = std::net::UdpSocket::bind((V4, 0)).unwrap();
        sender.send_to(&[data as u8], udp.receiver_address()).unwrap();
    }
    let mut batch = receive_exactly(&mut queue, PACKETS as usize);
    kept.extend(batch.iter_mut().map(|packet| packet.retain().0));
    without_capability(|| kept.into_iter().for_each(|packet| packet.accept().expect("sent")));
    let ids: Vec<_> = read_refusals(&mut queue).iter().map(|(id, ..)| *id).collect();
    assert_eq!(ids, (PACKETS - 255..=PACKETS).collect::<Vec<_>>(), "the newest, oldest first");
    assert_eq!(queue.stats().refused, u64::from(PACKETS));
    assert_eq!(queue.take_refusals().len(), 0, "taken");
}

fn verdict_on_a_flushed_packet_is_reported_and_harmless(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(1..=3);
    let mut batch = receive_exactly(&mut queue, 3);
    let (retained, _) = batch.iter_mut().nth(2).unwrap().retain();
    // Taking a hook away makes the kernel drop everything that waits.
    drop(rules);
    judge(&mut batch, Verdict::Accept);
    retained.accept().unwrap();
    let expected = [1, 2, 3].map(|id| (id, false, Errno::ENOENT));
    assert_eq!(read_refusals(&mut queue), expected);
    udp.expect_nothing();
    let _rules = queue_udp(1);
    udp.send_each(4..=5);
    judge(&mut receive_exactly(&mut queue, 2), Verdict::Accept);
    assert_eq!(udp.receive_all(2), [[4], [5]]);
    assert_eq!(queue.stats().cumulative_verdicts, 1, "no reason to give them up");
}

fn unsupported_flag_is_singled_out_when_binding(_: &Namespace) {
    let builder = Queue::builder(1).gso(true).uid_gid(true);
    match builder.clone().conntrack(true).bind() {
        Ok(queue) => {
            eprintln!("this kernel serves all flags");
            drop(queue);
        }
        Err(error) => {
            let Error::FlagsRefused { queue, flags, .. } = error else { panic!("{error:?}") };
            assert_eq!((queue, flags), (1, ConfigFlags::CONNTRACK));
            assert!(error.to_string().contains("refused NFQA_CFG_F_CONNTRACK for"), "{error}");
        }
    }
    let mut queue = builder.bind().expect("no half-made queue is left");
    let _rules = queue_udp(1);
    assert_works(&mut queue, &UdpPair::new(V4));
}

fn unsupported_flag_is_singled_out_on_a_live_queue(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&[1]);
    let wanted = ConfigFlags::UID_GID | ConfigFlags::CONNTRACK;
    let result = queue.set_flags(FlagChange::set(wanted));
    let is_refused = match result {
        Ok(()) => false,
        Err(Error::FlagsRefused { queue: 1, flags, .. }) => {
            assert_eq!(flags, ConfigFlags::CONNTRACK);
            true
        }
        Err(error) => panic!("{error:?}"),
    };
    udp.send(&[2]);
    let mut batch = receive_exactly(&mut queue, 2);
    let known: Vec<_> = batch.iter_mut().map(|packet| packet.uid().is_some()).collect();
    assert_eq!(known, [false, !is_refused], "a refusal changes nothing");
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(2), [[1], [2]]);
}

fn unknown_flag_is_refused_and_the_queue_goes_on(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let unknown = ConfigFlags(1 << 20);
    let error = queue.set_flags(FlagChange::set(unknown)).unwrap_err();
    assert!(matches!(error, Error::FlagsRefused { queue: 1, flags, .. } if flags == unknown));
    assert!(error.to_string().contains("0x100000"), "{error}");
    assert_works(&mut queue, &UdpPair::new(V4));
}

fn errors_become_io_errors(_: &Namespace) {
    let mut queue = Queue::builder(1).nonblocking(true).bind().unwrap();
    let result: io::Result<usize> = queue.recv(&mut Batch::new(1)).map_err(Into::into);
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WouldBlock);
}
