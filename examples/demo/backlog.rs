//! Packets that have piled up: received 64 at a time, each batch answered with one system call.

use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{KernelStats, Queue};

use crate::report::{Findings, QueueReport, Terminal};
use crate::traffic::PATIENCE;

const QUEUE: u16 = 3;
const PACKETS_MAX: u16 = 10_000;
/// What a small packet takes in the receive buffer, in bytes, rounded up.
const COST: usize = 1000;
/// So many that each gets no more datagrams than a socket holds by default, about 250.
const RECEIVERS: usize = 64;
/// The loopback device holds 1,000 packets between sending and receiving; longer bursts may lose
/// some.
const BURST: usize = 500;
const BETWEEN_BURSTS: Duration = Duration::from_millis(1);

/// Queues some thousands of datagrams while nobody receives, then accepts them all.
pub(crate) fn judge_backlog(
    terminal: Terminal,
    findings: &mut Findings,
) -> Result<QueueReport, Box<dyn Error>> {
    let builder = Queue::builder(QUEUE).max_len(PACKETS_MAX.into()).nonblocking(true);
    let mut queue = builder.bind()?;
    let mut rules =
        Rules::new(Hook::PREROUTING).rule(Rule::queue(QUEUE).protocol(Protocol::UDP)).install()?;
    // The host limits the receive buffer of ordinary users.
    let packets = usize::from(PACKETS_MAX).min(queue.receive_buffer()? / COST);
    let receivers = send(packets)?;

    let started = Instant::now();
    let mut judged = 0;
    while judged < packets && started.elapsed() < PATIENCE {
        // Returns when no packet waits, because the queue is non-blocking.
        queue.run(|packet| {
            judged += 1;
            packet.accept()
        })?;
    }
    let elapsed = started.elapsed();

    rules.pause()?;
    let report = QueueReport { library: queue.stats(), kernel: KernelStats::read(QUEUE) };
    queue.close()?;

    terminal.heading("A backlog");
    println!(
        "{judged} packets waited and were accepted in {:.1} ms: {:.0} packets/s, {:.2} system calls \
         per packet",
        elapsed.as_secs_f64() * 1e3,
        judged as f64 / elapsed.as_secs_f64(),
        report.calls_per_packet(),
    );
    findings.expect("backlog: packets judged", &judged, &packets);
    findings.expect("backlog: datagrams delivered", &count_delivered(&receivers)?, &packets);
    Ok(report)
}

/// Sends datagrams to the receivers in turn.
fn send(packets: usize) -> io::Result<Vec<UdpSocket>> {
    let bind = |_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    let receivers = (0..RECEIVERS).map(bind).collect::<io::Result<Vec<_>>>()?;
    let addresses = receivers.iter().map(UdpSocket::local_addr).collect::<io::Result<Vec<_>>>()?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    for (at, address) in addresses.iter().cycle().take(packets).enumerate() {
        if at % BURST == 0 {
            thread::sleep(BETWEEN_BURSTS);
        }
        sender.send_to(b"one of many", address)?;
    }
    thread::sleep(BETWEEN_BURSTS);
    Ok(receivers)
}

/// What has arrived; an accepted packet is delivered before the sending of its verdict returns.
fn count_delivered(receivers: &[UdpSocket]) -> io::Result<usize> {
    let mut delivered = 0;
    for receiver in receivers {
        receiver.set_nonblocking(true)?;
        while receiver.recv(&mut [0; 64]).is_ok() {
            delivered += 1;
        }
    }
    Ok(delivered)
}
