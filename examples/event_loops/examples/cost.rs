//! What waiting in a tokio runtime costs beside waiting in a thread. The contenders take turns, in
//! a network namespace of their own; times are those of this machine, ratios travel further.
//!
//! ```text
//! cargo run --release -p netfilterqueue-event-loops --example cost [ROUNDS]
//! ```

use std::env;
use std::error::Error;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::AsyncQueue;
use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Decided, Packet, Queue, RetainedPacket, StopHandle, Verdict};
use tokio::runtime::{Builder, Runtime};

type Outcome<T> = Result<T, Box<dyn Error>>;

const BACKLOG: u32 = 20_000;
const STREAM: Duration = Duration::from_millis(700);
const ROUND_TRIPS: usize = 3_000;

/// How packets are waited for.
#[derive(Debug, Clone, Copy)]
enum Contender {
    Run,
    AsyncRun,
    AsyncRunMoving,
    RetainedInThread,
    NextPacket,
}

const CONTENDERS: [(Contender, &str); 5] = [
    (Contender::Run, "Queue::run"),
    (Contender::AsyncRun, "AsyncQueue::run, one thread"),
    (Contender::AsyncRunMoving, "AsyncQueue::run, spawned, two threads"),
    (Contender::RetainedInThread, "Queue::run, each packet retained"),
    (Contender::NextPacket, "AsyncQueue::next_packet, one thread"),
];

fn main() -> Outcome<()> {
    netfilterqueue_netns::enter_private()?;
    let rounds: usize = env::args().nth(1).map_or(Ok(7), |rounds| rounds.parse())?;
    type Measurement = fn(Contender) -> Outcome<f64>;
    let measurements: [(&str, Measurement); 3] = [
        ("backlog dropped, ns per packet", backlog),
        ("TCP over loopback, Gbit/s", stream),
        ("UDP there and back, p50 in µs", round_trip),
    ];
    for (what, measure) in measurements {
        let mut results = vec![Vec::new(); CONTENDERS.len()];
        for _ in 0..rounds {
            for ((contender, _), results) in CONTENDERS.iter().zip(&mut results) {
                results.push(measure(*contender)?);
            }
        }
        let medians: Vec<f64> = results.iter_mut().map(|results| median(results)).collect();
        println!("{what}, median of {rounds}:");
        for ((_, name), median) in CONTENDERS.iter().zip(&medians) {
            println!("  {median:10.2}  {:5.2}  {name}", median / medians[0]);
        }
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Judges until a stop handle is used.
fn run<F>(mut queue: Queue, contender: Contender, mut judge: F) -> Outcome<()>
where
    F: FnMut(&[u8]) -> Verdict + Send + 'static,
{
    match contender {
        Contender::Run => queue.run(|packet| decide(packet, &mut judge))?,
        Contender::RetainedInThread => queue.run(|packet| {
            let (held, decided) = packet.retain();
            judge_retained(held, &mut judge);
            decided
        })?,
        Contender::AsyncRun => one_thread()?.block_on(async {
            AsyncQueue::new(queue)?.run(|packet| decide(packet, &mut judge)).await
        })?,
        Contender::AsyncRunMoving => two_threads()?.block_on(async {
            let judging = async move {
                AsyncQueue::new(queue)?.run(|packet| decide(packet, &mut judge)).await
            };
            tokio::spawn(judging).await
        })??,
        Contender::NextPacket => one_thread()?.block_on(async {
            let mut queue = AsyncQueue::new(queue)?;
            loop {
                match queue.next_packet().await {
                    Ok(packet) => judge_retained(packet, &mut judge),
                    Err(netfilterqueue::Error::Stopped) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        })?,
    }
    Ok(())
}

fn decide<'p>(packet: Packet<'p>, judge: &mut impl FnMut(&[u8]) -> Verdict) -> Decided<'p> {
    let verdict = judge(packet.payload());
    packet.verdict(verdict)
}

fn judge_retained(packet: RetainedPacket, judge: &mut impl FnMut(&[u8]) -> Verdict) {
    let verdict = judge(packet.payload());
    packet.verdict(verdict).unwrap_or_else(|not_sent| eprintln!("{not_sent}"));
}

fn one_thread() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn two_threads() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// A queue of UDP or TCP packets that arrive at this host.
fn queue_of(protocol: Protocol) -> Outcome<(Queue, InstalledRules)> {
    let queue = Queue::builder(1).max_len(2 * BACKLOG).receive_buffer(64 << 20).bind()?;
    let rules = Rules::new(Hook::INPUT).rule(Rule::queue(1).protocol(protocol)).install()?;
    Ok((queue, rules))
}

/// How long it takes to drop what has piled up, per packet.
fn backlog(contender: Contender) -> Outcome<f64> {
    let (queue, _rules) = queue_of(Protocol::UDP)?;
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    for _ in 0..BACKLOG / 100 {
        // What waits counts against its sender.
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        sender.connect(receiver.local_addr()?)?;
        for _ in 0..100 {
            sender.send(&[0; 72])?;
        }
    }
    thread::sleep(Duration::from_millis(20));
    let (stop, stats) = (queue.stop_handle(), queue.stats_handle());
    let mut judged = 0;
    let started = Instant::now();
    run(queue, contender, move |_| {
        judged += 1;
        if judged == BACKLOG {
            stop.stop();
        }
        Verdict::Drop
    })?;
    let elapsed = started.elapsed();
    if stats.stats().lost > 0 {
        return Err("the receive buffer is too small for the backlog".into());
    }
    Ok(elapsed.as_nanos() as f64 / f64::from(BACKLOG))
}

/// How much a stream carries with every packet accepted here.
fn stream(contender: Contender) -> Outcome<f64> {
    let (queue, _rules) = queue_of(Protocol::TCP)?;
    let stop = queue.stop_handle();
    let judging = spawn(queue, contender);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let receiving = thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        let mut bytes = 0;
        while let Ok(received @ 1..) = receiver.read(&mut buffer) {
            bytes += received;
        }
        bytes
    });
    let data = vec![0; 1 << 18];
    let started = Instant::now();
    while started.elapsed() < STREAM {
        sender.write_all(&data)?;
    }
    drop(sender);
    let bytes = receiving.join().map_err(|_| "the receiver panicked")?;
    let elapsed = started.elapsed();
    end(&stop, judging)?;
    Ok(bytes as f64 * 8.0 / elapsed.as_nanos() as f64)
}

/// How long a datagram takes there and back, each way through the queue, one at a time.
fn round_trip(contender: Contender) -> Outcome<f64> {
    let (queue, _rules) = queue_of(Protocol::UDP)?;
    let stop = queue.stop_handle();
    let judging = spawn(queue, contender);
    let one = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    one.connect(other.local_addr()?)?;
    other.connect(one.local_addr()?)?;
    other.set_read_timeout(Some(Duration::from_secs(2)))?;
    one.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let started = Instant::now();
        one.send(&[0; 72])?;
        other.recv(&mut [0; 100])?;
        other.send(&[0; 72])?;
        one.recv(&mut [0; 100])?;
        times.push(started.elapsed().as_nanos() as f64 / 1e3);
    }
    end(&stop, judging)?;
    Ok(median(&mut times))
}

type Judging = thread::JoinHandle<Result<(), String>>;

/// Accepts everything in a thread.
fn spawn(queue: Queue, contender: Contender) -> Judging {
    thread::spawn(move || {
        run(queue, contender, |_| Verdict::Accept).map_err(|error| error.to_string())
    })
}

fn end(stop: &StopHandle, judging: Judging) -> Outcome<()> {
    stop.stop();
    Ok(judging.join().map_err(|_| "the judge panicked")??)
}
