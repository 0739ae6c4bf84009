//! Packets for the programs: numbered datagrams from one socket to another.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// How long silence is taken for the end.
pub const SILENCE: Duration = Duration::from_millis(700);

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

    /// Everything that arrives until there is silence, or until there is as much as was expected
    /// and a little silence.
    pub fn receive(&self) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        self.receiver.set_read_timeout(Some(SILENCE)).expect("set");
        let mut buffer = [0; 2048];
        loop {
            match self.receiver.recv(&mut buffer) {
                Ok(len) => datagrams.push(buffer[..len].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return datagrams,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The numbers that arrive, in order.
    pub fn numbers(&self) -> Vec<u32> {
        let number = |datagram: Vec<u8>| {
            let text = String::from_utf8(datagram).expect("text");
            text.strip_prefix("packet ").expect("one of ours").parse().expect("a number")
        };
        self.receive().into_iter().map(number).collect()
    }

    /// How long one datagram takes from here to there.
    pub fn time_one(&self) -> Duration {
        let start = Instant::now();
        self.send(0..1);
        self.receiver.set_read_timeout(Some(crate::program::SOON)).expect("set");
        self.receiver.recv(&mut [0; 64]).expect("it arrives");
        start.elapsed()
    }
}
