//! Where every packet went. Datagrams carry numbers; a [`Ledger`] notes by packet id which number
//! came and what was decided; [`Traffic::settle`] holds that against what arrived and against what
//! the counters say is missing. [`leaves_nothing`] looks for what a test leaves behind.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::protocol::message::Messages;
use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Decided, Error, Packet, Stats, Verdict};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Mark, RcvBuf};
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use crate::harness::may_be_slow;
use crate::kernel::untested;
use crate::support::{QUIET, SOON, V4, kernel_stats, udp_data, wait_until};

/// Lists tests with their names, each within [`leaves_nothing`].
macro_rules! faults {
    ($($name:ident),* $(,)?) => {
        [$((
            concat!(module_path!(), "::", stringify!($name)),
            (|namespace| crate::accounts::leaves_nothing(|| $name(namespace)))
                as fn(&netfilterqueue_netns::Namespace),
        )),*]
    };
}
pub(crate) use faults;

/// A waiting datagram takes so many bytes of a socket's buffer, and twice its length.
const COST: usize = 2_304;

/// So much of a socket's buffer, of 208 KiB in most places, is made use of.
const ROOM: usize = 110_000;

/// Datagrams numbered from 0, and the sockets they arrive at. Nothing is lost on the way but in the
/// queue: the sockets hold all that is sent.
pub struct Traffic {
    receivers: Vec<UdpSocket>,
    addresses: Vec<SocketAddr>,
    sent: AtomicU32,
    arrived: Mutex<Vec<(u32, u8)>>,
    is_marking: bool,
}

impl Traffic {
    /// For up to `count` datagrams of `len` bytes of data at a time.
    pub fn new(count: usize, len: usize) -> Self {
        let per_socket = 2 * ROOM / (COST + 2 * len);
        let receivers: Vec<_> = (0..count.div_ceil(per_socket.max(1)))
            .map(|_| {
                let socket = UdpSocket::bind((V4, 0)).expect("a socket");
                // As much as is permitted, which is twice the default.
                setsockopt(&socket, RcvBuf, &(1 << 20)).expect("a receive buffer");
                socket.set_nonblocking(true).expect("a socket option");
                socket
            })
            .collect();
        let address = |socket: &UdpSocket| socket.local_addr().expect("an address");
        let addresses = receivers.iter().map(address).collect();
        let (sent, arrived) = (AtomicU32::new(0), Mutex::default());
        Self { receivers, addresses, sent, arrived, is_marking: false }
    }

    /// Each packet also has its number, plus one, as its mark.
    pub fn marking(self) -> Self {
        Self { is_marking: true, ..self }
    }

    /// Sends the next `count` numbers in datagrams of `len` bytes. It never blocks: packets that
    /// wait take their sender's buffer, so there is always a new one.
    pub fn send(&self, count: usize, len: usize) {
        let mut data = vec![0x55; len.max(4)];
        let mut left = count;
        while left > 0 {
            let sender = UdpSocket::bind((V4, 0)).expect("a socket");
            let burst = left.min((ROOM / (COST + 2 * len)).max(1));
            for _ in 0..burst {
                let number = self.sent.fetch_add(1, Ordering::SeqCst);
                data[..4].copy_from_slice(&number.to_be_bytes());
                if self.is_marking {
                    setsockopt(&sender, Mark, &(number + 1)).expect("a mark");
                }
                let to = self.addresses[number as usize % self.addresses.len()];
                assert_eq!(sender.send_to(&data, to).expect("sent"), data.len());
            }
            left -= burst;
        }
    }

    /// The ports that the datagrams go to.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.addresses.iter().map(SocketAddr::port)
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst).into()
    }

    /// Takes what has arrived out of the sockets; returns how many datagrams have come so far.
    pub fn collect(&self) -> usize {
        let mut arrived = self.arrived.lock().expect("nobody panicked");
        let mut data = vec![0; 1 << 16];
        for receiver in &self.receivers {
            while let Ok(length) = receiver.recv(&mut data) {
                let (number, _) = data.split_first_chunk().expect("a number");
                arrived.push((u32::from_be_bytes(*number), data[length - 1]));
            }
        }
        arrived.len()
    }

    /// How many have arrived with this last byte.
    pub fn ending_with(&self, byte: u8) -> usize {
        let arrived = self.arrived.lock().expect("nobody panicked");
        arrived.iter().filter(|(_, last)| *last == byte).count()
    }

    /// Waits until so many have been sent.
    pub fn wait_for(&self, sent: u64) {
        keep_up("the flood", || self.sent() >= sent);
    }

    /// Asserts that each number that was sent had one fate: it was accepted and arrived, was
    /// dropped and did not, or nobody judged it and it is `counted`.
    #[track_caller]
    pub fn settle(&self, ledger: &Ledger, counted: Counted) {
        let fates = ledger.fates();
        let accepted = ledger.accepted() as u64;
        let deadline = Instant::now() + SOON;
        let wanted = accepted - counted.flushed + counted.passed;
        while (self.collect() as u64) < wanted && Instant::now() < deadline {
            thread::sleep(QUIET / 20);
        }
        // Nor may more come.
        thread::sleep(QUIET);
        self.collect();
        let arrived = self.arrived.lock().expect("nobody panicked");
        let distinct: HashSet<_> = arrived.iter().map(|(number, _)| *number).collect();
        assert_eq!(distinct.len(), arrived.len(), "a datagram arrived twice");
        assert!(fates.keys().chain(&distinct).all(|number| u64::from(*number) < self.sent()));
        let mut found = Counted::default();
        for number in 0..self.sent.load(Ordering::SeqCst) {
            match (fates.get(&number), distinct.contains(&number)) {
                (Some(Fate::Accepted), true) | (Some(Fate::Dropped), false) => {}
                (Some(Fate::Accepted), false) => found.flushed += 1,
                (Some(Fate::Dropped), true) => panic!("{number} was dropped and arrived"),
                (None, true) => found.passed += 1,
                (None, false) => found.lost += 1,
            }
        }
        assert_eq!(found, counted, "of {} sent, {} judged", self.sent(), fates.len());
    }
}

/// Sends each traffic to a queue of its own.
pub fn feed(traffics: &[(u16, Traffic)]) -> InstalledRules {
    let mut rules = Rules::new(Hook::OUTPUT);
    for (queue, traffic) in traffics {
        for address in &traffic.addresses {
            let rule = Rule::queue(*queue).protocol(Protocol::UDP);
            rules = rules.rule(rule.destination_port(address.port()));
        }
    }
    rules.install().expect("rules")
}

/// Packets that met with something else than a decision; by what was found, and by the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Nobody judged them, and they did not arrive.
    pub lost: u64,
    /// Nobody judged them, and they arrived.
    pub passed: u64,
    /// They were accepted and did not arrive: their verdicts were refused.
    pub flushed: u64,
}

/// What was decided about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Accepted,
    Dropped,
}

impl Fate {
    /// Two of three are accepted, in no regular order.
    pub const fn of(number: u32) -> Self {
        if number.wrapping_mul(0x9e37_79b1) >> 16 & 0xff < 85 {
            Self::Dropped
        } else {
            Self::Accepted
        }
    }

    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Accepted => Verdict::Accept,
            Self::Dropped => Verdict::Drop,
        }
    }
}

/// The packets that were judged: queue and id, number, and what was decided. For any thread.
#[derive(Default)]
pub struct Ledger(Mutex<HashMap<(u16, u32), (u32, Fate)>>);

impl Ledger {
    /// Enters a decision. No packet has two.
    pub fn note(&self, queue: u16, id: u32, number: u32, fate: Fate) {
        match self.entries().entry((queue, id)) {
            Entry::Vacant(entry) => _ = entry.insert((number, fate)),
            Entry::Occupied(entry) => {
                panic!("{number} came with the id {id} of {:?}", entry.get())
            }
        }
    }

    /// Judges a packet as its number has it, and notes that.
    pub fn judge<'p>(&self, packet: Packet<'p>) -> Decided<'p> {
        let number = number(packet.payload());
        let fate = Fate::of(number);
        self.note(packet.queue(), packet.id(), number, fate);
        packet.verdict(fate.verdict())
    }

    /// The ids and numbers of a queue, in the order of the ids.
    pub fn numbers(&self, queue: u16) -> BTreeMap<u32, u32> {
        let entries = self.entries();
        let of_queue = entries.iter().filter(|((number, _), _)| *number == queue);
        of_queue.map(|((_, id), (number, _))| (*id, *number)).collect()
    }

    /// Asserts that the packets of a queue have the ids from 1 on, so many of them.
    #[track_caller]
    pub fn expect_ids(&self, queue: u16, count: u64) {
        let ids = self.numbers(queue).into_keys();
        assert!(ids.map(u64::from).eq(1..=count), "not the ids from 1 to {count} of {queue}");
    }

    /// How many were accepted.
    pub fn accepted(&self) -> usize {
        self.fates().values().filter(|fate| **fate == Fate::Accepted).count()
    }

    /// By number, none of which may have come twice.
    fn fates(&self) -> HashMap<u32, Fate> {
        let entries = self.entries();
        let fates: HashMap<_, _> = entries.values().copied().collect();
        assert_eq!(fates.len(), entries.len(), "a number was judged under two ids");
        fates
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<(u16, u32), (u32, Fate)>> {
        self.0.lock().expect("nobody panicked")
    }
}

/// The number in a packet of [`Traffic`].
pub fn number(packet: &[u8]) -> u32 {
    let data = udp_data(packet).first_chunk().expect("a number");
    u32::from_be_bytes(*data)
}

/// Asserts that a queue has answered all it received, and that its own counters agree with each
/// other, with the ledger and, where they can be read, with the kernel's. Returns how many packets
/// the kernel dropped because the queue was full: `None` where that cannot be read.
#[track_caller]
pub fn balance(queue: u16, stats: &Stats, ledger: &Ledger) -> Option<u64> {
    let unreadable = stats.truncated + stats.malformed;
    assert_eq!(stats.received, ledger.numbers(queue).len() as u64 + unreadable, "{stats:?}");
    assert_eq!((stats.answered, stats.held), (stats.received, 0), "{stats:?}");
    assert_eq!((stats.retained, stats.unknown, stats.foreign), (0, 0, 0), "{stats:?}");
    let kernel = kernel_stats(queue)?;
    assert_eq!(kernel.waiting, 0, "{kernel:?}");
    assert_eq!(u64::from(kernel.last_id), stats.received + stats.lost, "{kernel:?} {stats:?}");
    Some(kernel.queue_dropped.into())
}

/// Whether a receive that does not block has brought packets; panics at any other error than that
/// there are none.
#[track_caller]
pub fn received(result: Result<usize, Error>) -> bool {
    match result {
        Ok(packets) => packets > 0,
        Err(Error::WouldBlock) => false,
        Err(error) => panic!("{error}"),
    }
}

/// As `wait_until`, for what happens all the time.
#[track_caller]
pub fn keep_up(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen within {SOON:?}");
        thread::sleep(Duration::from_micros(20));
    }
}

/// How long a test goes on that is about a great number. On a machine that may be slow it is as
/// much as there is after a while.
pub fn patience() -> Duration {
    Duration::from_secs(if may_be_slow() { 15 } else { 45 })
}

/// Less was done than the test is about: that is noted where the machine may be slow, and a failure
/// elsewhere. No commas in `wanted`, which becomes part of a list.
#[track_caller]
pub fn fell_short(wanted: &str, done: u64) {
    let why = format!("no more than {done} in {:?}", patience());
    assert!(may_be_slow(), "{wanted}: {why}");
    untested(wanted, why);
}

/// Runs a test, and asserts that it leaves no netfilter socket (and so no queue) and no nftables
/// table behind in its namespace.
pub fn leaves_nothing(test: impl FnOnce()) {
    assert_eq!((netfilter_sockets(), tables()), (0, 0), "before the test");
    test();
    wait_until("the end of all sockets and tables", || (netfilter_sockets(), tables()) == (0, 0));
}

/// How many netfilter sockets there are in this thread's namespace.
pub fn netfilter_sockets() -> usize {
    let table = fs::read_to_string("/proc/thread-self/net/netlink").expect("a table");
    let protocol = NETLINK_NETFILTER.to_string();
    // The second column; port id 0 is the kernel's own.
    let is_ours = |line: &&str| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        columns.next() == Some(&protocol) && columns.next() != Some("0")
    };
    table.lines().filter(is_ours).count()
}

/// How many nftables tables there are in this thread's namespace, of whatever family.
pub fn tables() -> usize {
    const NFT_MSG_NEWTABLE: u16 = 10 << 8;
    /// `NFT_MSG_GETTABLE` with `NLM_F_REQUEST | NLM_F_DUMP`, for all families.
    const REQUEST: ([u8; 4], u16, u16) = (20_u32.to_ne_bytes(), NFT_MSG_NEWTABLE + 1, 0x301);
    let socket = Socket::new(NETLINK_NETFILTER).expect("a socket");
    let (length, kind, flags) = REQUEST;
    let request = [&length[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 12]].concat();
    socket.send(&request, 0).expect("sent");
    let mut tables = 0;
    loop {
        let (answer, _) = socket.recv_from_full().expect("an answer");
        for message in Messages::new(&answer) {
            match message.expect("a message").kind() {
                NFT_MSG_NEWTABLE => tables += 1,
                // The end, or that this kernel has none.
                _ => return tables,
            }
        }
    }
}

/// What the descriptors of this process stand for, and how many there are of each.
pub fn descriptors() -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd").expect("descriptors").flatten() {
        // The descriptor that lists them is gone when asked about.
        if let Ok(target) = fs::read_link(entry.path()) {
            let target = target.to_string_lossy();
            // Without the number of the single object.
            let kind = target.split_once(":[").map_or(&*target, |(kind, _)| kind);
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
    }
    kinds
}

/// Whether no child process is left, and as many descriptors as before.
pub fn process_is_clean(before: &BTreeMap<String, usize>) -> bool {
    let deadline = Instant::now() + SOON;
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        let no_child = waitid(Id::All, flags) == Err(Errno::ECHILD);
        let now = descriptors();
        if no_child && now == *before {
            return true;
        }
        if Instant::now() > deadline {
            eprintln!("left behind: descriptors {now:?}, before {before:?}; no child: {no_child}");
            return false;
        }
        thread::sleep(QUIET / 20);
    }
}
