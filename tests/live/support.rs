//! Sockets, rules and waiting, as most tests need them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Batch, Decided, Error, KernelStats, Packet, Queue, StopHandle, Verdict};

pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// How long something that must happen is waited for.
pub const SOON: Duration = Duration::from_secs(5);

/// How long something that must not happen is waited for.
pub const QUIET: Duration = Duration::from_millis(100);

/// Sends UDP datagrams that this host makes to a queue.
pub fn queue_udp(number: u16) -> InstalledRules {
    queue_udp_at(Hook::Output, number)
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
        let receiver = UdpSocket::bind((address, 0)).expect("a receiver");
        receiver.set_read_timeout(Some(SOON)).expect("a timeout");
        let sender = UdpSocket::bind((address, 0)).expect("a sender");
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

/// Receives until `count` packets are in the batch, one after another call if need be; the batch must be
/// large enough for all. Only for packets that were sent before.
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
struct StopOnDrop(StopHandle);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
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
