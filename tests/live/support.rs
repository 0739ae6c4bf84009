//! Sockets, rules and waiting, as most tests need them.

#![allow(dead_code, reason = "every test binary that includes this file uses a part of it")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use caps::{CapSet, Capability};
use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Batch, Decided, Error, KernelStats, Packet, Queue, StopHandle, Verdict};
use netfilterqueue_netns::Namespace;

pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// How long something that must happen is waited for.
pub const SOON: Duration = Duration::from_secs(5);

/// How long something that must not happen is waited for.
pub const QUIET: Duration = Duration::from_millis(100);

/// Sends UDP datagrams that this host makes to a queue.
pub fn queue_udp(number: u16) -> InstalledRules {
    queue_udp_at(Hook::OUTPUT, number)
}

/// Sends UDP datagrams to a queue at a hook.
pub fn queue_udp_at(hook: Hook, number: u16) -> InstalledRules {
    Rules::new(hook).rule(Rule::queue(number).protocol(Protocol::UDP)).install().expect("a rule")
}

/// Two UDP sockets on one address; the first sends to the second.
pub struct UdpPair {
    pub sender: UdpSocket,
    pub receiver: UdpSocket,
}

impl UdpPair {
    pub fn new(address: IpAddr) -> Self {
        let bind = || UdpSocket::bind((address, 0)).expect("a socket");
        Self::connect(bind(), bind())
    }

    /// From an address in one namespace to an address in another.
    pub fn between(from: (&Namespace, IpAddr), to: (&Namespace, IpAddr)) -> Self {
        let bind = |(namespace, address): (&Namespace, IpAddr)| {
            namespace.run(|| UdpSocket::bind((address, 0)).expect("a socket"))
        };
        Self::connect(bind(from), bind(to))
    }

    fn connect(sender: UdpSocket, receiver: UdpSocket) -> Self {
        receiver.set_read_timeout(Some(SOON)).expect("a timeout");
        sender.connect(receiver.local_addr().expect("an address")).expect("connected");
        Self { sender, receiver }
    }

    pub fn send(&self, data: &[u8]) {
        assert_eq!(self.sender.send(data).expect("sent"), data.len());
    }

    /// Sends single bytes, one datagram each.
    pub fn send_each(&self, bytes: impl IntoIterator<Item = u8>) {
        bytes.into_iter().for_each(|byte| self.send(&[byte]));
    }

    /// The next datagram; panics if none comes.
    pub fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        let length = self.receiver.recv(&mut buffer).expect("a datagram arrives");
        buffer.truncate(length);
        buffer
    }

    /// As many datagrams as `count`, which must be all that come.
    pub fn receive_all(&self, count: usize) -> Vec<Vec<u8>> {
        let received = (0..count).map(|_| self.receive()).collect();
        self.expect_nothing();
        received
    }

    /// Panics if a datagram comes.
    pub fn expect_nothing(&self) {
        self.receiver.set_read_timeout(Some(QUIET)).expect("a timeout");
        let mut buffer = [0; 2048];
        let result = self.receiver.recv(&mut buffer);
        assert!(result.is_err(), "a datagram came: {:?}", &buffer[..result.unwrap_or(0)]);
        self.receiver.set_read_timeout(Some(SOON)).expect("a timeout");
    }

    pub fn receiver_address(&self) -> SocketAddr {
        self.receiver.local_addr().expect("an address")
    }
}

/// Sends the datagrams of one socket pair to each queue number.
pub struct Feed<const N: usize> {
    pub udp: [UdpPair; N],
    _rules: InstalledRules,
}

impl<const N: usize> Feed<N> {
    pub fn of(numbers: [u16; N]) -> Self {
        let udp = numbers.map(|_| UdpPair::new(V4));
        let rules =
            numbers.iter().zip(&udp).fold(Rules::new(Hook::OUTPUT), |rules, (number, udp)| {
                let port = udp.receiver_address().port();
                rules.rule(Rule::queue(*number).protocol(Protocol::UDP).destination_port(port))
            });
        Self { udp, _rules: rules.install().expect("rules") }
    }

    /// Sends single bytes to each queue in turn.
    pub fn send_each(&self, bytes: impl IntoIterator<Item = u8>) {
        for byte in bytes {
            self.udp.iter().for_each(|udp| udp.send(&[byte]));
        }
    }
}

/// Receives until `count` packets are in the batch, one after another call if need be; the batch
/// must be large enough for all. Only for packets that were sent before.
pub fn receive_exactly(queue: &mut Queue, count: usize) -> Batch {
    let mut batch = Batch::new(count.max(1));
    let deadline = Instant::now() + SOON;
    queue.set_nonblocking(true);
    let mut received = 0;
    while received < count {
        match queue.recv(&mut batch) {
            Ok(packets) => received += packets,
            Err(Error::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "only {received} of {count} packets came");
    }
    queue.set_nonblocking(false);
    assert_eq!(batch.len(), count, "the packets came in several receives");
    batch
}

/// Judges all packets of a batch alike.
pub fn judge(batch: &mut Batch, verdict: Verdict) {
    for packet in &mut *batch {
        packet.verdict(verdict);
    }
    batch.commit().expect("the kernel takes the message");
}

/// Asserts that no packet comes through the queue.
pub fn expect_no_packet(queue: &mut Queue) {
    std::thread::sleep(QUIET);
    queue.set_nonblocking(true);
    let mut batch = Batch::new(1);
    let result = queue.recv(&mut batch);
    assert!(
        matches!(result, Err(Error::WouldBlock)),
        "{result:?}: {:?}",
        (&mut batch).into_iter().next()
    );
    queue.set_nonblocking(false);
}

/// Judges with `judge` in a thread while `work` runs.
pub fn judge_while<T>(
    queue: &mut Queue,
    judge: impl for<'p> FnMut(Packet<'p>) -> Decided<'p> + Send,
    work: impl FnOnce() -> T,
) -> T {
    let stop = StopOnDrop(queue.stop_handle());
    std::thread::scope(|scope| {
        let judging = scope.spawn(move || queue.run(judge));
        let result = {
            let _stop = stop;
            work()
        };
        judging.join().expect("the judge does not panic").expect("run ends without an error");
        result
    })
}

/// Ends a `run` also when the test fails meanwhile.
pub struct StopOnDrop(pub StopHandle);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A queue whose packets a thread judges, until it is finished or dropped.
pub struct Judging {
    stop: StopHandle,
    thread: Option<JoinHandle<Queue>>,
}

impl Judging {
    pub fn start<F>(mut queue: Queue, judge: F) -> Self
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p> + Send + 'static,
    {
        let stop = queue.stop_handle();
        let thread = std::thread::spawn(move || {
            queue.run(judge).expect("the queue works");
            queue
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops the thread and gives the queue back.
    pub fn finish(mut self) -> Queue {
        self.stop.stop();
        self.thread.take().expect("a thread").join().expect("the thread ends well")
    }
}

impl Drop for Judging {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

pub const CLIENT_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2));
pub const CLIENT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2));
pub const SERVER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 2));
pub const SERVER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 2));
/// The router's addresses on the client's side.
pub const ROUTER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
pub const ROUTER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1));
const ROUTER_RIGHT_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1));
const ROUTER_RIGHT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 1));

/// The two peers of a router, which is the namespace of the test: client, `left` and `right` of the
/// router, server.
pub struct Peers {
    pub client: Namespace,
    pub server: Namespace,
}

impl Peers {
    pub fn of(router: &Namespace) -> Self {
        router.set_forwarding().expect("a router");
        let client = Namespace::new().expect("a client");
        let server = Namespace::new().expect("a server");
        let left = [(ROUTER_V4, CLIENT_V4, 24), (ROUTER_V6, CLIENT_V6, 64)];
        let right = [(ROUTER_RIGHT_V4, SERVER_V4, 24), (ROUTER_RIGHT_V6, SERVER_V6, 64)];
        for (link, peer, addresses) in [("left", &client, left), ("right", &server, right)] {
            router.veth(link, peer, "eth0").expect("a link");
            for (near, far, prefix) in addresses {
                router.add_address(link, near, prefix).expect("an address");
                peer.add_address("eth0", far, prefix).expect("an address");
                peer.add_default_route(near).expect("a route");
            }
        }
        Self { client, server }
    }

    pub fn udp_v4(&self) -> UdpPair {
        UdpPair::between((&self.client, CLIENT_V4), (&self.server, SERVER_V4))
    }

    pub fn udp_v6(&self) -> UdpPair {
        UdpPair::between((&self.client, CLIENT_V6), (&self.server, SERVER_V6))
    }
}

/// A TCP connection from one namespace to a listener in another: its two ends.
pub fn connect(from: &Namespace, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let to = listener.local_addr().expect("an address");
    let client = from.run(|| TcpStream::connect_timeout(&to, SOON)).expect("connected");
    let (server, _) = listener.accept().expect("a connection");
    client.set_write_timeout(Some(SOON)).expect("a timeout");
    server.set_read_timeout(Some(SOON)).expect("a timeout");
    (client, server)
}

/// Where the data of a UDP packet starts: behind an IPv4 header without options or an IPv6 one
/// without extensions.
pub fn udp_data_offset(packet: &[u8]) -> usize {
    8 + if packet[0] >> 4 == 4 { 20 } else { 40 }
}

pub fn udp_data(packet: &[u8]) -> &[u8] {
    &packet[udp_data_offset(packet)..]
}

/// The same UDP packet with other data, lengths and checksums made to fit.
pub fn with_udp_data(packet: &[u8], data: &[u8]) -> Vec<u8> {
    let start = udp_data_offset(packet);
    let udp = start - 8;
    let mut out = [&packet[..start], data].concat();
    let length = |bytes: usize| u16::try_from(bytes).expect("a short packet").to_be_bytes();
    let udp_length = length(out.len() - udp);
    let addresses = if udp == 20 {
        let total = length(out.len());
        out[2..4].copy_from_slice(&total);
        out[10..12].fill(0);
        let sum = internet_checksum(&[&out[..20]]);
        out[10..12].copy_from_slice(&sum);
        12..20
    } else {
        out[4..6].copy_from_slice(&udp_length);
        8..40
    };
    out[udp + 4..udp + 6].copy_from_slice(&udp_length);
    out[udp + 6..udp + 8].fill(0);
    let sum = internet_checksum(&[&out[addresses], &[0, 17], &udp_length, &out[udp..]]);
    // 0 would mean that there is none.
    let sum = if sum == [0, 0] { [0xff, 0xff] } else { sum };
    out[udp + 6..udp + 8].copy_from_slice(&sum);
    out
}

/// The one's complement sum of 16-bit words; only the last part may have an odd length.
pub fn internet_checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 =
        words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Does something without `CAP_NET_ADMIN`, which only this thread lacks.
pub fn without_capability<T>(work: impl FnOnce() -> T) -> T {
    caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).expect("dropped");
    let value = work();
    caps::raise(None, CapSet::Effective, Capability::CAP_NET_ADMIN).expect("raised again");
    value
}

/// Waits until `condition` holds; panics if that takes too long.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen within {SOON:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The kernel's counters of a queue, which only root of the initial user namespace may read.
pub fn kernel_stats(number: u16) -> Option<KernelStats> {
    match KernelStats::read(number) {
        Ok(stats) => Some(stats.expect("the queue is bound")),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("the kernel's counters are not compared: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A number as the parent of this user namespace has it, which is the initial one, or this is.
pub fn outside(map: &str, inside: u32) -> u32 {
    let map = std::fs::read_to_string(format!("/proc/self/{map}")).unwrap();
    let ids = map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u32>().unwrap());
        let (start, outside, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let distance = inside.checked_sub(start).filter(|distance| *distance < count)?;
        Some(outside + distance)
    });
    ids.expect("we are somebody")
}
