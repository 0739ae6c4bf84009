//! Packets for the programs: numbered datagrams from one socket to another.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::program::SOON;

/// How long something that must not arrive is waited for.
pub const SILENCE: Duration = Duration::from_millis(200);

/// Two sockets in the namespace of the calling thread.
pub struct Pair {
    pub sender: UdpSocket,
    pub receiver: UdpSocket,
}

impl Pair {
    /// At an address of the loopback interface: `127.0.0.1` or `::1`.
    pub fn at(address: &str) -> Self {
        let any = SocketAddr::new(address.parse().expect("an address"), 0);
        let receiver = UdpSocket::bind(any).expect("a socket");
        let sender = UdpSocket::bind(any).expect("a socket");
        sender.connect(receiver.local_addr().expect("bound")).expect("connected");
        Self { sender, receiver }
    }

    pub fn port(&self) -> u16 {
        self.receiver.local_addr().expect("bound").port()
    }

    /// Sends datagrams `packet 0`, `packet 1` and so on.
    pub fn send(&self, numbers: std::ops::Range<u32>) {
        for number in numbers {
            self.sender.send(format!("packet {number}").as_bytes()).expect("sent");
        }
    }

    /// As many datagrams as are expected, however long that takes, and what else arrives until
    /// there is silence.
    pub fn receive(&self, expected: usize) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            let patience = if datagrams.len() < expected { SOON } else { SILENCE };
            self.receiver.set_read_timeout(Some(patience)).expect("set");
            match self.receiver.recv(&mut buffer) {
                Ok(len) => datagrams.push(buffer[..len].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return datagrams,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The numbers that arrive, in order, of as many datagrams as in [`Pair::receive`].
    pub fn numbers(&self, expected: usize) -> Vec<u32> {
        let number = |datagram: Vec<u8>| {
            let text = String::from_utf8(datagram).expect("text");
            text.strip_prefix("packet ").expect("one of ours").parse().expect("a number")
        };
        self.receive(expected).into_iter().map(number).collect()
    }

    /// Exactly these arrive, in this order.
    #[track_caller]
    pub fn expect(&self, numbers: impl IntoIterator<Item = u32>) {
        let numbers: Vec<u32> = numbers.into_iter().collect();
        assert_eq!(self.numbers(numbers.len()), numbers);
    }

    /// How long one datagram takes from here to there.
    pub fn time_one(&self) -> Duration {
        let start = Instant::now();
        self.send(0..1);
        self.receiver.set_read_timeout(Some(SOON)).expect("set");
        self.receiver.recv(&mut [0; 64]).expect("it arrives");
        start.elapsed()
    }
}
