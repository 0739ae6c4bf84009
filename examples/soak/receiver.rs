//! Receives a stream and tells from each number whether it had to arrive, and with what bytes.

use std::io::{self, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};
use nix::sys::socket::{MsgFlags, MultiHeaders, getsockopt, recvmmsg, setsockopt};

use crate::flight::Flight;
use crate::judge::Shared;
use crate::plan::Stream;

/// Datagrams per system call.
const BURST: usize = 64;
const DATAGRAM_MAX: usize = 1 << 16;
const RECEIVE_BUFFER: usize = 4 << 20;

/// How long it waits before it looks what else there is to do.
const LOOK_UP: Duration = Duration::from_millis(20);

/// A socket for a stream, and how much it holds.
pub(crate) fn open(stream: &Stream) -> io::Result<(UdpSocket, u64)> {
    let socket = UdpSocket::bind(stream.to)?;
    socket.set_read_timeout(Some(LOOK_UP))?;
    if setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
        // As much as the host allows an ordinary user.
        setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER)?;
    }
    let room = getsockopt(&socket, RcvBuf)? as u64;
    Ok((socket, room))
}

/// Receives until it is told that nothing can come any more.
pub(crate) fn receive(flight: &Flight, shared: &Shared, socket: &UdpSocket) -> io::Result<()> {
    let mut headers = MultiHeaders::<()>::preallocate(BURST, None);
    // Written to, so that the memory is there from the start.
    let mut buffers: Vec<_> = (0..BURST).map(|_| vec![0xa5; DATAGRAM_MAX]).collect();
    let mut lengths = Vec::with_capacity(BURST);
    let mut ledger = Ledger::new(flight.span());
    loop {
        lengths.clear();
        {
            let mut slices: Vec<_> =
                buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
            let flags = MsgFlags::MSG_WAITFORONE;
            match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) {
                Ok(results) => lengths.extend(results.map(|result| result.bytes)),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        for (buffer, length) in buffers.iter().zip(&lengths) {
            if let Err(wrong) = arrive(flight, shared, &mut ledger, &buffer[..*length]) {
                let name = flight.stream.name;
                shared.trouble.report(|| format!("{name}: {wrong}"));
            }
        }
        let all_sent = flight.is_sent.load(Ordering::Acquire);
        let sent_to = flight.sent_to.load(Ordering::Acquire);
        if flight.give_up.swap(false, Ordering::AcqRel) {
            let missing = ledger.give_up(sent_to, |number| is_due(&flight.stream, number));
            flight.written_off.fetch_add(missing, Ordering::Relaxed);
            flight.settle_all();
        }
        ledger.settle(sent_to, |number| is_due(&flight.stream, number));
        flight.settled_to.store(ledger.base, Ordering::Release);
        flight.wake_sender();
        if all_sent && ledger.base == sent_to {
            flight.is_settled.store(true, Ordering::Release);
            // What comes from now on comes once too often.
            if lengths.is_empty() && shared.finish.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    }
}

fn is_due(stream: &Stream, number: u64) -> bool {
    stream.arriving(stream.key(number)).is_some()
}

fn arrive(
    flight: &Flight,
    shared: &Shared,
    ledger: &mut Ledger,
    datagram: &[u8],
) -> Result<(), String> {
    let stream = &flight.stream;
    let Some((key, body)) = stream.read(datagram) else {
        return Err(format!("a datagram of {} bytes has no number", datagram.len()));
    };
    // The first number from the oldest open one on that has this key.
    let number = ledger.base.wrapping_add(key.wrapping_sub(ledger.base) & stream.mask());
    let fate = stream.fate(key);
    let which = || format!("datagram {number} ({})", fate.name());
    if number >= flight.sent_to.load(Ordering::Acquire) {
        return Err(format!("{} has arrived, which was not sent, or arrived before", which()));
    }
    let Some(expected) = stream.arriving(key) else {
        return Err(format!("{} has arrived, and must not", which()));
    };
    if body != shared.pattern.body(stream, expected) {
        let (len, expected) = (datagram.len(), expected.len);
        let what = format!("{len} bytes have arrived, {expected} must");
        return Err(format!("{} has other bytes than it must: {what}", which()));
    }
    if !ledger.enter(number) {
        return Err(format!("{} has arrived twice", which()));
    }
    flight.arrived.count(fate);
    flight.settle(stream.cost(key));
    Ok(())
}

/// Which numbers have arrived: all below `base` that had to, and some of those above.
struct Ledger {
    base: u64,
    bits: Vec<u64>,
}

impl Ledger {
    fn new(span: u64) -> Self {
        let words = usize::try_from(span / 64).unwrap_or(1);
        Self { base: 0, bits: vec![0; words.max(1)] }
    }

    /// False if it was entered before.
    fn enter(&mut self, number: u64) -> bool {
        let span = self.bits.len() as u64 * 64;
        let is_open = number >= self.base && number < self.base + span && !self.has(number);
        if is_open {
            let (word, bit) = self.place(number);
            self.bits[word] |= bit;
        }
        is_open
    }

    /// Goes on to the first number that is still to come.
    fn settle(&mut self, sent_to: u64, is_due: impl Fn(u64) -> bool) {
        while self.base < sent_to && (self.has(self.base) || !is_due(self.base)) {
            let (word, bit) = self.place(self.base);
            self.bits[word] &= !bit;
            self.base += 1;
        }
    }

    /// Waits no longer for what is missing, and tells how much that is.
    fn give_up(&mut self, sent_to: u64, is_due: impl Fn(u64) -> bool) -> u64 {
        let open = self.base..sent_to;
        let missing = open.filter(|number| !self.has(*number) && is_due(*number)).count();
        self.bits.fill(0);
        self.base = sent_to;
        missing as u64
    }

    fn has(&self, number: u64) -> bool {
        let (word, bit) = self.place(number);
        self.bits[word] & bit != 0
    }

    fn place(&self, number: u64) -> (usize, u64) {
        let word = usize::try_from(number / 64).unwrap_or(0) % self.bits.len();
        (word, 1 << (number % 64))
    }
}
