//! Sends a stream, as fast as what is on its way allows.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};

use crate::flight::Flight;
use crate::plan::Pattern;

/// Datagrams per system call.
const BURST: usize = 64;

/// What does not fit now is sent again after this long.
const RETRY_AFTER: Duration = Duration::from_millis(1);

/// Sends the numbers up to `count`, unless it is told to stop before.
pub(crate) fn send(
    flight: &Flight,
    pattern: &Pattern,
    count: u64,
    stop: &AtomicBool,
) -> io::Result<()> {
    let local: IpAddr = match flight.stream.to {
        to if to.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
        _ => Ipv6Addr::LOCALHOST.into(),
    };
    let socket = UdpSocket::bind((local, 0))?;
    socket.connect(flight.stream.to)?;
    let mut headers = MultiHeaders::<()>::preallocate(BURST, None);
    let mut next = 0;
    while next < count && !stop.load(Ordering::Relaxed) {
        let end = launch(flight, next, count);
        if end == next {
            flight.wait_for_room();
            continue;
        }
        let numbers: Vec<_> = (next..end).map(u64::to_le_bytes).collect();
        send_all(flight, pattern, &socket, &mut headers, &numbers)?;
        next = end;
    }
    flight.is_sent.store(true, Ordering::Release);
    Ok(())
}

/// Enters in the books what is sent next: the numbers from `next` up to what it returns.
fn launch(flight: &Flight, next: u64, count: u64) -> u64 {
    let stream = &flight.stream;
    let settled = flight.settled_to.load(Ordering::Acquire);
    let most = count.min(next + BURST as u64).min(settled + flight.span());
    let room = flight.room();
    let (mut end, mut cost) = (next, 0);
    while end < most {
        let key = stream.key(end);
        let more = stream.cost(key);
        if cost + more > room {
            break;
        }
        cost += more;
        flight.sent.count(stream.fate(key));
        if stream.arriving(key).is_some() {
            flight.due.fetch_add(1, Ordering::Relaxed);
        }
        end += 1;
    }
    flight.launch(cost);
    flight.sent_to.store(end, Ordering::Release);
    end
}

fn send_all(
    flight: &Flight,
    pattern: &Pattern,
    socket: &UdpSocket,
    headers: &mut MultiHeaders<()>,
    numbers: &[[u8; 8]],
) -> io::Result<()> {
    let stream = &flight.stream;
    let parts = |number: &[u8; 8]| {
        let content = stream.sent(stream.key(u64::from_le_bytes(*number)));
        pattern.body(stream, content)
    };
    let messages: Vec<_> = numbers
        .iter()
        .map(|number| [IoSlice::new(&number[..stream.number_len]), IoSlice::new(parts(number))])
        .collect();
    let mut sent = 0;
    while sent < messages.len() {
        let rest = &messages[sent..];
        let connected = vec![None; rest.len()];
        match sendmmsg(socket.as_raw_fd(), headers, rest, connected, [], MsgFlags::empty()) {
            Ok(results) => sent += results.count(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN | Errno::ENOBUFS) => thread::sleep(RETRY_AFTER),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
