//! TCP streams beside the datagrams: super-packets, accepted on one and edited on the other.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use netfilterqueue::{EditError, Packet, SkbInfo};
use nix::sys::socket::{setsockopt, sockopt};

use crate::judge::{Seen, Shared};

/// Where they lead to, by the index of the queue.
pub(crate) const TO: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4011),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 4012),
];

/// The bytes of this one are inverted on the way.
const EDITED: usize = 1;

/// So that the loopback device, which takes packets of 64 KiB, gets super-packets.
const SEGMENT: u32 = 1400;

/// A stream sends so much at a time, and pauses in between: it is there to be different, not fast.
const CHUNK: usize = 128 << 10;
const PAUSE: Duration = Duration::from_millis(20);

/// What became of a stream.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
}

/// Listens, connects, and returns both ends. The connection passes the queue already.
pub(crate) fn connect(to: SocketAddr) -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(to)?;
    setsockopt(&listener, sockopt::TcpMaxSeg, &SEGMENT)?;
    let client = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}

/// Sends until it is told to finish.
pub(crate) fn send(
    mut client: &TcpStream,
    shared: &Shared,
    progress: &Progress,
    finish: &AtomicBool,
) -> io::Result<()> {
    let cycle = shared.pattern.cycle();
    let mut at = 0;
    while !finish.load(Ordering::Relaxed) {
        let mut left = CHUNK;
        while left > 0 {
            let rest = &cycle[at..];
            let sent = client.write(&rest[..rest.len().min(left)])?;
            progress.sent.fetch_add(sent as u64, Ordering::Relaxed);
            left -= sent;
            at = (at + sent) % cycle.len();
        }
        thread::sleep(PAUSE);
    }
    client.shutdown(Shutdown::Write)
}

/// Receives to the end, and looks at every byte.
pub(crate) fn receive(
    mut server: &TcpStream,
    index: usize,
    shared: &Shared,
    progress: &Progress,
) -> io::Result<()> {
    let cycle = shared.pattern.cycle();
    let inverted: Vec<u8> = cycle.iter().map(|byte| !byte).collect();
    let expected = if index == EDITED { &inverted[..] } else { cycle };
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let most = buffer.len().min(expected.len() - at);
        let received = server.read(&mut buffer[..most])?;
        if received == 0 {
            return Ok(());
        }
        if buffer[..received] != expected[at..at + received] {
            let position = progress.received.load(Ordering::Relaxed);
            shared.trouble.report(|| {
                format!("TCP to {}: other bytes than were sent, from byte {position} on", TO[index])
            });
        }
        progress.received.fetch_add(received as u64, Ordering::Relaxed);
        at = (at + received) % expected.len();
    }
}

/// Accepts a segment; the bytes of one stream are inverted, wherever in it they are.
pub(crate) fn judge(mut packet: Packet<'_>, seen: &Seen) -> Result<(), EditError> {
    seen.segments.fetch_add(1, Ordering::Relaxed);
    if packet.skb_info().is_some_and(SkbInfo::is_gso) {
        seen.super_packets.fetch_add(1, Ordering::Relaxed);
    }
    let mut result = Ok(());
    // An IPv6 header without extensions, then TCP's with its length in words of four bytes.
    if packet.payload().first().is_some_and(|first| first >> 4 == 6) {
        let words = packet.payload().get(52).map_or(0, |byte| byte >> 4);
        let data = 40 + usize::from(words) * 4;
        if packet.payload().len() > data {
            result = packet.payload_mut().map(|payload| {
                payload[data..].iter_mut().for_each(|byte| *byte = !*byte);
            });
        }
    }
    packet.accept();
    result
}
