use std::error::Error;
use std::net::UdpSocket;
use std::time::{Duration, SystemTime};

use netfilterqueue::{Packet, Queue};
use nix::sys::socket::{setsockopt, sockopt};

pub fn latency(number: u16) -> Result<(), Box<dyn Error>> {
    let _stamps = ask_for_time_stamps()?;
    let mut queue = Queue::builder(number).bind()?;
    queue.run(|packet| {
        match age(&packet) {
            Some(age) => println!("{packet}: {age:?}"),
            None => println!("{packet}: not stamped"),
        }
        packet.accept()
    })?;
    Ok(())
}

/// How long ago the packet was received. None at the output and postrouting hooks.
pub fn age(packet: &Packet<'_>) -> Option<Duration> {
    let received = packet.timestamp()?.to_system_time()?;
    SystemTime::now().duration_since(received).ok()
}

/// The kernel stamps packets while a socket on the host wants it to.
pub fn ask_for_time_stamps() -> Result<UdpSocket, Box<dyn Error>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    setsockopt(&socket, sockopt::ReceiveTimestamp, &true)?;
    Ok(socket)
}
