//! Queues in other network namespaces, and on sockets that were opened elsewhere.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::{process, thread};

use caps::{CapSet, Capability};
use netfilterqueue::protocol::config::{self, ConfigMessage};
use netfilterqueue::{
    Batch, CopyMode, Error, Namespace as Reached, NotSent, Operation, Queue, Verdict, open_socket,
};
use netfilterqueue_netns::Namespace;
use netlink_sys::protocols::{
    NETLINK_AUDIT, NETLINK_GENERIC, NETLINK_KOBJECT_UEVENT, NETLINK_NETFILTER, NETLINK_ROUTE,
    NETLINK_SOCK_DIAG, NETLINK_USERSOCK, NETLINK_XFRM,
};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{getsockopt, setsockopt, sockopt::RcvBuf};
use nix::unistd::gettid;

use crate::held::byte;
use crate::support::{
    QUIET, UdpPair, V4, expect_no_packet, judge, kernel_stats, queue_udp, receive_exactly,
    wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 18] = tests![
    a_namespace_is_opened_by_its_descriptor,
    a_namespace_is_opened_by_a_thread_in_it,
    a_namespace_is_opened_by_a_process_in_it,
    running_elsewhere_leaves_the_caller_where_it_is,
    a_panic_elsewhere_is_handed_on,
    what_cannot_be_entered_is_an_error,
    a_queue_elsewhere_works_from_here,
    kernel_counters_are_those_of_the_queues_namespace,
    interface_names_are_those_of_the_queues_namespace,
    a_socket_from_elsewhere_is_bound_here,
    a_passed_socket_keeps_its_receive_buffer,
    a_duplicate_does_not_keep_the_number,
    what_is_no_netfilter_socket_is_refused,
    a_socket_without_a_port_gets_one,
    binding_a_socket_needs_the_capability,
    packets_of_another_number_on_the_socket_are_judged_exactly,
    what_an_earlier_user_of_the_socket_left_is_given_up,
    an_overrun_of_a_socket_that_reports_it_is_survived,
];

/// Which network namespace the calling thread is in.
fn here() -> PathBuf {
    fs::read_link("/proc/thread-self/ns/net").unwrap()
}

/// As a program that knows only a path.
fn by_descriptor(other: &Namespace) -> Reached {
    Reached::open(format!("/proc/self/fd/{}", other.as_fd().as_raw_fd())).unwrap()
}

/// A datagram of a namespace goes through the queue.
fn assert_judges(queue: &mut Queue, udp: &UdpPair) {
    udp.send(b"a");
    judge(&mut receive_exactly(queue, 1), Verdict::Accept);
    assert_eq!(udp.receive(), b"a");
}

fn a_namespace_is_opened_by_its_descriptor(_: &Namespace) {
    let other = Namespace::new().unwrap();
    let there = other.run(here);
    assert_eq!(by_descriptor(&other).run(here).unwrap(), there);
    let passed = Reached::from(other.as_fd().try_clone_to_owned().unwrap());
    assert_eq!(passed.run(here).unwrap(), there);
    let again = Reached::from(passed.as_fd().try_clone_to_owned().unwrap());
    drop((other, passed));
    assert_eq!(again.run(here).unwrap(), there, "the descriptor keeps it");
}

fn a_namespace_is_opened_by_a_thread_in_it(_: &Namespace) {
    let other = Namespace::new().unwrap();
    let (found, task) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let other = &other;
        scope.spawn(move || {
            other.run(move || {
                found.send(gettid()).unwrap();
                let _ = ended.recv();
            });
        });
        let path = format!("/proc/{}/task/{}/ns/net", process::id(), task.recv().unwrap());
        let namespace = Reached::open(path).unwrap();
        assert_eq!(namespace.run(here).unwrap(), other.run(here));
        drop(end);
    });
}

fn a_namespace_is_opened_by_a_process_in_it(_: &Namespace) {
    let other = Namespace::new().unwrap();
    // Lives as long as its input is open.
    let mut child = other
        .run(|| Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    let namespace = Reached::of_process(child.id()).unwrap();
    assert_eq!(namespace.run(here).unwrap(), other.run(here));
    assert_ne!(namespace.run(here).unwrap(), here());
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(namespace.run(here).unwrap(), other.run(here), "it outlives the process");
}

fn running_elsewhere_leaves_the_caller_where_it_is(_: &Namespace) {
    let other = Namespace::new().unwrap();
    let (before, caller) = (here(), thread::current().id());
    let namespace = by_descriptor(&other);
    let (there, worker) = namespace.run(|| (here(), thread::current().id())).unwrap();
    assert_eq!(here(), before);
    assert_ne!(there, before);
    assert_ne!(worker, caller);
    let error = namespace.run(|| Queue::builder(Vec::new()).bind()).unwrap().unwrap_err();
    assert!(matches!(error, Error::InvalidQueue(_)), "the error of what was run: {error:?}");
}

fn a_panic_elsewhere_is_handed_on(_: &Namespace) {
    let other = Namespace::new().unwrap();
    let namespace = by_descriptor(&other);
    let before = here();
    let panicking = AssertUnwindSafe(|| namespace.run(|| panic!("there")));
    let panic = catch_unwind(panicking).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"there"));
    assert_eq!(here(), before);
}

/// The kind of a namespace's error, which must hold `text`.
fn kind_of(error: &Error, text: &str) -> ErrorKind {
    let Error::System { operation: Operation::Namespace, error, .. } = error else {
        panic!("{error:?}");
    };
    assert!(error.to_string().contains(text), "{error}");
    error.kind()
}

fn what_cannot_be_entered_is_an_error(_: &Namespace) {
    let error = Reached::open("/proc/self/ns/no-such-thing").unwrap_err();
    assert_eq!(kind_of(&error, "/proc/self/ns/no-such-thing: "), ErrorKind::NotFound);
    let error = Reached::named("no-such-name").unwrap_err();
    assert_eq!(kind_of(&error, "/run/netns/no-such-name: "), ErrorKind::NotFound);
    let error = Reached::named("../no-name").unwrap_err();
    assert_eq!(kind_of(&error, "not a name"), ErrorKind::InvalidInput);
    // Ends with the process that made it.
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let error = Reached::of_process(child.id()).unwrap_err();
    assert_eq!(kind_of(&error, "/ns/net: "), ErrorKind::NotFound);
    for path in ["/proc/self/status", "/proc/self/ns/mnt"] {
        let error = Reached::open(path).unwrap().run(|| panic!("it ran")).unwrap_err();
        let kind = kind_of(&error, "this is no network namespace");
        assert_eq!(kind, ErrorKind::InvalidInput, "{path}");
    }
    let other = Namespace::new().unwrap();
    let namespace = by_descriptor(&other);
    caps::drop(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap();
    let result = namespace.run(|| panic!("it ran"));
    caps::raise(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap();
    assert_eq!(kind_of(&result.unwrap_err(), "CAP_SYS_ADMIN"), ErrorKind::PermissionDenied);
    namespace.run(|| {}).expect("the capability is back");
}

fn a_queue_elsewhere_works_from_here(_: &Namespace) {
    let other = Namespace::new().unwrap();
    let namespace = by_descriptor(&other);
    let mut there = namespace.run(|| Queue::builder(1).bind()).unwrap().unwrap();
    let rules = namespace.run(|| queue_udp(1)).unwrap();
    let there_udp = other.run(|| UdpPair::new(V4));
    // The same number here is another queue.
    let mut here = Queue::builder(1).bind().unwrap();
    let here_udp = UdpPair::new(V4);
    assert_judges(&mut there, &there_udp);
    here_udp.send(b"no rule");
    assert_eq!(here_udp.receive(), b"no rule");
    let here_rules = queue_udp(1);
    here_udp.send(b"here");
    expect_no_packet(&mut there);
    judge(&mut receive_exactly(&mut here, 1), Verdict::Accept);
    assert_eq!(here_udp.receive(), b"here");
    drop((here, here_rules));
    there.set_max_len(1).expect("it is not closed with the other one");
    assert_judges(&mut there, &there_udp);
    let taken = namespace.run(|| Queue::builder(1).bind()).unwrap().unwrap_err();
    assert!(matches!(taken, Error::QueueTaken { queue: 1, .. }), "{taken:?}");
    rules.remove().unwrap();
    there_udp.send(b"unqueued");
    assert_eq!(there_udp.receive(), b"unqueued");
    there.close().unwrap();
    drop(namespace.run(|| Queue::builder(1).bind()).unwrap().unwrap());
}

fn kernel_counters_are_those_of_the_queues_namespace(_: &Namespace) {
    let here = Queue::builder(1).bind().unwrap();
    let other = Namespace::new().unwrap();
    let namespace = by_descriptor(&other);
    let (mut there, _rules) =
        namespace.run(|| (Queue::builder(1).bind().unwrap(), queue_udp(1))).unwrap();
    if kernel_stats(1).is_none() {
        return;
    }
    let udp = other.run(|| UdpPair::new(V4));
    udp.send_each(0..3);
    let [row] = there.kernel_stats().unwrap()[..] else { panic!("one number") };
    assert_eq!((row.queue, row.peer_port_id), (1, there.port_id()));
    assert_eq!((row.waiting, row.last_id), (3, 3));
    let [row] = here.kernel_stats().unwrap()[..] else { panic!("one number") };
    assert_eq!((row.peer_port_id, row.waiting, row.last_id), (here.port_id(), 0, 0));
    judge(&mut receive_exactly(&mut there, 3), Verdict::Accept);
    assert_eq!(there.kernel_stats().unwrap()[0].waiting, 0);
}

fn interface_names_are_those_of_the_queues_namespace(namespace: &Namespace) {
    let other = Namespace::new().unwrap();
    let peer = Namespace::new().unwrap();
    // One with the same index here, if the two namespaces number alike.
    namespace.veth("wrong", &peer, "eth0").unwrap();
    other.veth("right", &peer, "eth1").unwrap();
    other.add_address("right", [10, 9, 0, 1].into(), 24).unwrap();
    peer.add_address("eth1", [10, 9, 0, 2].into(), 24).unwrap();
    let (mut queue, _rules) =
        by_descriptor(&other).run(|| (Queue::builder(1).bind().unwrap(), queue_udp(1))).unwrap();
    let udp = UdpPair::between((&other, [10, 9, 0, 1].into()), (&peer, [10, 9, 0, 2].into()));
    udp.send(b"a");
    let mut batch = receive_exactly(&mut queue, 1);
    let packet = batch.iter_mut().next().unwrap().retain().0;
    assert_eq!(packet.outdev(), Some(other.link_index("right").unwrap()));
    assert_eq!(packet.outdev_name().as_deref(), Some("right"));
    assert_eq!(packet.indev_name(), None);
    other.set_link("right", false).unwrap();
    other.rename_link("right", "renamed").unwrap();
    wait_until("the new name", || packet.outdev_name().as_deref() == Some("renamed"));
}

/// A queue on a socket that was opened in the other namespace.
fn bind_from(other: &Namespace) -> Queue {
    let socket = other.run(|| open_socket().unwrap());
    Queue::builder(1).bind_on(socket).unwrap()
}

fn a_socket_from_elsewhere_is_bound_here(_: &Namespace) {
    let other = Namespace::new().unwrap();
    let mut queue = bind_from(&other);
    let _here = Queue::builder(1).bind().expect("the number here is free");
    let (udp, _rules) = other.run(|| (UdpPair::new(V4), queue_udp(1)));
    udp.send_each(0..3);
    let mut batch = receive_exactly(&mut queue, 3);
    let packet = batch.iter_mut().next().unwrap();
    assert_eq!((packet.outdev(), packet.outdev_name()), (Some(1), None), "out of reach");
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(3), [[0], [1], [2]]);
    let stats = queue.stats();
    assert_eq!(
        (stats.exact_verdicts, stats.cumulative_verdicts),
        (3, 0),
        "nobody knows who else reads"
    );
    let error = queue.kernel_stats().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    queue.set_max_len(5).unwrap();
    udp.send(b"a");
    let packet = receive_exactly(&mut queue, 1).iter_mut().next().unwrap().retain().0;
    queue.close().unwrap();
    let NotSent { error, .. } = packet.accept().unwrap_err();
    assert!(matches!(error, Error::Closed), "{error:?}");
    udp.expect_nothing();
}

fn a_passed_socket_keeps_its_receive_buffer(_: &Namespace) {
    let socket = open_socket().unwrap();
    let before = getsockopt(&socket, RcvBuf).unwrap();
    assert!(before > 300_000, "{before} bytes");
    let queue = Queue::builder(1).receive_buffer(1).bind_on(socket).unwrap();
    assert_eq!(queue.receive_buffer().unwrap(), before);
}

fn a_duplicate_does_not_keep_the_number(_: &Namespace) {
    let socket = open_socket().unwrap();
    let duplicate = || socket.try_clone().unwrap();
    for round in 0..2 {
        let queue = Queue::builder(1).bind_on(duplicate()).unwrap();
        if round == 0 {
            queue.close().unwrap();
        } else {
            drop(queue);
        }
        drop(Queue::builder(1).bind().expect("the number is free"));
    }
    // Nor do numbers that were bound before another one failed.
    let taken = Queue::builder(4).bind().unwrap();
    let error = Queue::builder(2..=5).bind_on(duplicate()).unwrap_err();
    assert!(matches!(error, Error::QueueTaken { queue: 4, .. }), "{error:?}");
    drop(Queue::builder([2, 3, 5]).bind().expect("the others are free"));
    drop(taken);
    drop(Queue::builder(2..=5).bind_on(duplicate()).unwrap());
}

fn what_is_no_netfilter_socket_is_refused(_: &Namespace) {
    let refused = |what: &str, fd: OwnedFd| {
        let error = Queue::builder(1).bind_on(fd).unwrap_err();
        assert!(matches!(error, Error::InvalidQueue(_)), "{what}: {error:?}");
    };
    refused("a file", File::open("/proc/self/status").unwrap().into());
    refused("a pipe", std::io::pipe().unwrap().0.into());
    refused("a UDP socket", UdpPair::new(V4).sender.into());
    let protocols = [
        NETLINK_ROUTE,
        NETLINK_USERSOCK,
        NETLINK_SOCK_DIAG,
        NETLINK_XFRM,
        NETLINK_AUDIT,
        NETLINK_KOBJECT_UEVENT,
        NETLINK_GENERIC,
    ];
    for protocol in protocols {
        // Kernels have not all of them.
        if let Ok(socket) = Socket::new(protocol) {
            let fd = socket.as_fd().try_clone_to_owned().unwrap();
            refused(&format!("netlink protocol {protocol}"), fd);
        }
    }
}

/// A socket with nothing but what the kernel gives it.
fn plain_socket() -> (Socket, OwnedFd) {
    let socket = Socket::new(NETLINK_NETFILTER).unwrap();
    let fd = socket.as_fd().try_clone_to_owned().unwrap();
    (socket, fd)
}

fn a_socket_without_a_port_gets_one(_: &Namespace) {
    let (socket, fd) = plain_socket();
    let mut queue = Queue::builder(1).bind_on(fd).unwrap();
    let mut address = SocketAddr::new(0, 0);
    socket.get_address(&mut address).unwrap();
    assert_ne!(queue.port_id(), 0);
    assert_eq!(queue.port_id(), address.port_number());
    let _rules = queue_udp(1);
    assert_judges(&mut queue, &UdpPair::new(V4));
}

fn binding_a_socket_needs_the_capability(_: &Namespace) {
    let socket = open_socket().unwrap();
    caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
    let result = Queue::builder(1).bind_on(socket);
    caps::raise(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
    let error = result.unwrap_err();
    assert!(matches!(error, Error::NoCapability { operation: Operation::Bind, .. }), "{error:?}");
}

fn packets_of_another_number_on_the_socket_are_judged_exactly(_: &Namespace) {
    let (socket, fd) = plain_socket();
    // Its owner has bound a number before and passes the socket on.
    let mut request = Vec::new();
    let bind = ConfigMessage {
        copy_mode: Some(CopyMode::WHOLE),
        ..ConfigMessage::command(9, config::Command::Bind)
    };
    bind.push(&mut request, 1);
    assert_eq!(socket.send_to(&request, &SocketAddr::new(0, 0), 0).unwrap(), request.len());
    let mut queue = Queue::builder(1).bind_on(fd).unwrap();
    let rules = queue_udp(9);
    let udp = UdpPair::new(V4);
    udp.send_each(0..5);
    let mut batch = receive_exactly(&mut queue, 5);
    let retained = batch.iter_mut().nth(2).unwrap().retain().0;
    assert_eq!((retained.queue(), retained.id()), (9, 3));
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(4), [[0], [1], [3], [4]]);
    let stats = queue.stats();
    assert_eq!((stats.exact_verdicts, stats.cumulative_verdicts, stats.lost), (4, 0, 0));
    assert_eq!((stats.received, stats.answered), (5, 4));
    retained.accept().unwrap();
    assert_eq!(udp.receive_all(1), [[2]]);
    // Even where none of them is in anybody's hands.
    udp.send_each(0..3);
    judge(&mut receive_exactly(&mut queue, 3), Verdict::Accept);
    assert_eq!((queue.stats().exact_verdicts, queue.stats().cumulative_verdicts), (8, 0));
    assert_eq!(udp.receive_all(3), [[0], [1], [2]]);
    drop(rules);
    let _rules = queue_udp(1);
    udp.send_each(0..3);
    judge(&mut receive_exactly(&mut queue, 3), Verdict::Accept);
    assert_eq!(queue.stats().cumulative_verdicts, 0, "nor of its own number");
    assert_eq!((queue.stats().held, queue.stats().refused), (0, 0));
}

/// A worker has died, and its socket is passed to the next one.
fn what_an_earlier_user_of_the_socket_left_is_given_up(_: &Namespace) {
    let socket = open_socket().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    let dead = Queue::builder([1, 2]).bind_on(socket.try_clone().unwrap()).unwrap();
    udp.send_each(0..3);
    // It gives nothing back.
    std::mem::forget(dead);
    let mut queue = Queue::builder(1).bind_on(socket.try_clone().unwrap()).unwrap();
    udp.send_each(10..12);
    let mut batch = receive_exactly(&mut queue, 2);
    let seen: Vec<_> = batch.iter_mut().map(|packet| (packet.id(), byte(&packet))).collect();
    assert_eq!(seen, [(1, 10), (2, 11)], "those of the old binding would have the same ids");
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(2), [[10], [11]]);
    let stats = queue.stats();
    assert_eq!((stats.received, stats.lost, stats.refused), (2, 0, 0));
    let error = Queue::builder(2).bind().unwrap_err();
    assert!(matches!(error, Error::QueueTaken { queue: 2, .. }), "still bound: {error:?}");
    drop(Queue::builder(2).bind_on(socket).unwrap());
    drop(Queue::builder(2).bind().expect("it is free now"));
}

fn an_overrun_of_a_socket_that_reports_it_is_survived(_: &Namespace) {
    const SENT: u8 = 50;
    let (_socket, fd) = plain_socket();
    setsockopt(&fd, RcvBuf, &1).unwrap();
    let mut queue = Queue::builder(1).receive_buffer(1).nonblocking(true).bind_on(fd).unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..SENT);
    let mut judged = 0;
    let mut accept_all = |queue: &mut Queue| {
        queue
            .run(|packet| {
                judged += 1;
                packet.accept()
            })
            .unwrap();
        judged
    };
    let delivered = accept_all(&mut queue);
    assert!((1..u64::from(SENT)).contains(&delivered), "{delivered} packets fit");
    assert!(queue.stats().overruns >= 1);
    udp.send(&[SENT]);
    assert_eq!(accept_all(&mut queue), delivered + 1, "later packets still come");
    let stats = queue.stats();
    assert_eq!(stats.lost, u64::from(SENT) - delivered);
    assert_eq!((stats.answered, stats.held), (delivered + 1, 0));
    udp.receive_all(judged as usize);
    // A blocked queue is not ended by it either.
    queue.set_nonblocking(false);
    udp.send_each(0..SENT);
    let mut batch = Batch::new(4);
    assert!(queue.recv_timeout(&mut batch, QUIET).unwrap() > 0);
}
