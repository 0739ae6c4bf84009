//! The tests of python-netfilterqueue that are about the process rather than its packets: 9, a
//! signal interrupts; 10, the socket of another namespace.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{Batch, Error, Namespace as Place, Queue, Verdict};
use netfilterqueue_netns::{Namespace, receive_fd, send_fd};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::unistd::getpid;
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::support::{
    Peers, UdpPair, V4, judge, queue_udp, queue_udp_at, receive_exactly, wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 6] = tests![
    parity_9_a_signal_interrupts_and_ends_nothing,
    parity_9_a_storm_of_signals_loses_no_packet,
    parity_9_a_signal_ends_run_where_the_program_wants_it,
    parity_10_the_socket_of_another_namespace,
    parity_10_another_namespace_entered_for_a_moment,
    parity_10_what_is_no_queue_socket_is_refused,
];

/// Meets one thread only: all others have it blocked, from the start of the process on.
const SIGNAL: Signal = Signal::SIGUSR1;

/// To be called before the first thread is started.
pub fn block_signal() {
    SigSet::from(SIGNAL).thread_block().unwrap();
}

/// One test at a time may have the signal.
static SIGNAL_IN_USE: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Judges in a thread that gets the signal, and interrupts it while `work` runs; `work` may call
/// its argument, which returns when the thread has been interrupted once more.
fn interrupt_while(queue: &mut Queue, work: impl FnOnce(&dyn Fn())) {
    let _in_use = SIGNAL_IN_USE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let caught = Arc::new(AtomicBool::new(false));
    let handler = flag::register(SIGNAL as i32, Arc::clone(&caught)).unwrap();
    let interrupt = || {
        kill(getpid(), SIGNAL).unwrap();
        wait_until("the signal", || caught.swap(false, Ordering::SeqCst));
    };
    let stop = queue.stop_handle();
    thread::scope(|scope| {
        let judging = scope.spawn(move || {
            SigSet::from(SIGNAL).thread_unblock().unwrap();
            let result = queue.run(|packet| packet.verdict(Verdict::Accept));
            SigSet::from(SIGNAL).thread_block().unwrap();
            result
        });
        work(&interrupt);
        assert!(!judging.is_finished(), "a signal ended it");
        stop.stop();
        judging.join().unwrap().unwrap();
    });
    signal_hook::low_level::unregister(handler);
}

fn parity_9_a_signal_interrupts_and_ends_nothing(_: &Namespace) {
    const SIGNALS: u64 = 20;
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    interrupt_while(&mut queue, |interrupt| {
        udp.send(b"before");
        assert_eq!(udp.receive(), b"before");
        for _ in 0..SIGNALS {
            // It is back in its wait by then.
            thread::sleep(Duration::from_millis(5));
            interrupt();
        }
        udp.send(b"after");
        assert_eq!(udp.receive_all(1), [b"after"]);
    });
    let stats = queue.stats();
    assert!(stats.wait_calls >= SIGNALS, "{} waits were interrupted", stats.wait_calls);
    assert_eq!((stats.received, stats.answered, stats.held), (2, 2, 0));
}

fn parity_9_a_storm_of_signals_loses_no_packet(_: &Namespace) {
    const PACKETS: u32 = 3_000;
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    interrupt_while(&mut queue, |interrupt| {
        for number in 0..PACKETS {
            udp.send(&number.to_be_bytes());
            if number % 3 == 0 {
                interrupt();
            }
            assert_eq!(udp.receive(), number.to_be_bytes());
        }
    });
    let stats = queue.stats();
    let packets = u64::from(PACKETS);
    assert_eq!((stats.received, stats.answered, stats.lost), (packets, packets, 0));
}

fn parity_9_a_signal_ends_run_where_the_program_wants_it(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    // By a thread that waits for signals.
    let mut signals = Signals::new([Signal::SIGALRM as i32]).unwrap();
    let (stop, handle) = (queue.stop_handle(), signals.handle());
    thread::scope(|scope| {
        scope.spawn(move || signals.forever().for_each(|_| stop.stop()));
        let judging = scope.spawn(|| queue.run(|packet| packet.verdict(Verdict::Accept)));
        udp.send(b"passes");
        assert_eq!(udp.receive(), b"passes");
        kill(getpid(), Signal::SIGALRM).unwrap();
        judging.join().unwrap().unwrap();
        handle.close();
    });
    // By a flag that a handler sets, looked at now and then.
    let is_over = Arc::new(AtomicBool::new(false));
    flag::register(Signal::SIGALRM as i32, Arc::clone(&is_over)).unwrap();
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        let mut batch = Batch::new(1);
        while !is_over.load(Ordering::SeqCst) {
            match queue.recv_timeout(&mut batch, Duration::from_millis(10)) {
                Ok(_) => judge(&mut batch, Verdict::Accept),
                Err(Error::WouldBlock) => {}
                Err(error) => panic!("{error}"),
            }
        }
        done.send(()).unwrap();
    });
    udp.send(b"passes, too");
    assert_eq!(udp.receive_all(1), [b"passes, too"]);
    kill(getpid(), Signal::SIGALRM).unwrap();
    ended.recv_timeout(crate::support::SOON).expect("it has seen the flag");
}

/// Opens the socket as their test does, without the help of the library.
fn parity_10_the_socket_of_another_namespace(router: &Namespace) {
    let peers = Peers::of(router);
    let udp = peers.udp_v4();
    let (inside, here) = UnixStream::pair().unwrap();
    router.run(|| {
        let netfilter = SockProtocol::NetlinkNetFilter;
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, netfilter).unwrap();
        send_fd(&inside, fd).unwrap();
    });
    let passed = receive_fd(&here).unwrap();
    let elsewhere = Namespace::new().unwrap();
    elsewhere.run(|| {
        let mut queue = Queue::builder(1).receive_buffer(131_072).bind_on(passed).unwrap();
        let _rules = router.run(|| queue_udp_at(Hook::FORWARD, 1));
        udp.send(b"this is a test");
        let mut batch = receive_exactly(&mut queue, 1);
        let packet = batch.iter_mut().next().unwrap();
        assert!(packet.payload().ends_with(b"this is a test"));
        assert_eq!(packet.outdev(), Some(router.link_index("right").unwrap()));
        assert_eq!(packet.outdev_name(), None, "the name is another namespace's matter");
        judge(&mut batch, Verdict::Accept);
        assert_eq!(udp.receive_all(1), [b"this is a test"]);
        // The same number here is another queue.
        let mut own = Queue::builder(1).bind().unwrap();
        let _own_rules = queue_udp(1);
        let local = UdpPair::new(V4);
        local.send(b"not of the router");
        judge(&mut receive_exactly(&mut own, 1), Verdict::Accept);
        assert_eq!(local.receive_all(1), [b"not of the router"]);
        assert_eq!((queue.stats().received, own.stats().received), (1, 1));
        queue.close().unwrap();
    });
}

fn parity_10_another_namespace_entered_for_a_moment(router: &Namespace) {
    let peers = Peers::of(router);
    let udp = peers.udp_v4();
    let place = Place::open(router.path()).unwrap();
    let elsewhere = Namespace::new().unwrap();
    elsewhere.run(|| {
        let mut queue = place.run(|| Queue::builder(1).bind()).unwrap().unwrap();
        let rule = Rule::queue(1).protocol(Protocol::UDP);
        let rules = place.run(|| Rules::new(Hook::FORWARD).rule(rule).install());
        let rules = rules.unwrap().unwrap();
        udp.send(b"this is a test");
        let mut batch = receive_exactly(&mut queue, 1);
        let name = batch.iter_mut().next().unwrap().outdev_name();
        assert_eq!(name.as_deref(), Some("right"));
        judge(&mut batch, Verdict::Accept);
        assert_eq!(udp.receive_all(1), [b"this is a test"]);
        rules.remove().expect("removed from outside");
        udp.send(b"no more rules");
        assert_eq!(udp.receive_all(1), [b"no more rules"]);
    });
}

fn parity_10_what_is_no_queue_socket_is_refused(_: &Namespace) {
    let (stream, _other) = UnixStream::pair().unwrap();
    let null = File::open("/dev/null").unwrap();
    let flags = SockFlag::SOCK_CLOEXEC;
    let route = SockProtocol::NetlinkRoute;
    let route = socket(AddressFamily::Netlink, SockType::Raw, flags, route).unwrap();
    for fd in [null.into(), stream.into(), route] {
        let error = Queue::builder(1).bind_on(fd).unwrap_err();
        assert!(matches!(error, Error::InvalidQueue(_)), "{error:?}");
        assert!(error.to_string().contains("NETLINK_NETFILTER"), "{error}");
    }
    let absent = Place::named("absent").unwrap_err();
    assert!(matches!(absent, Error::System { call: "open", .. }), "{absent}");
    let none = Place::open("/dev/null").unwrap().run(|| ());
    assert!(matches!(none, Err(Error::System { call: "setns", .. })), "{none:?}");
}
