//! The two programs of the README of python-netfilterqueue 1.1: one line per packet, which is then
//! accepted, until Control-C.
//!
//! ```text
//! print_and_accept [QUEUE [run|run_socket]]
//! ```
//!
//! | there | here |
//! | --- | --- |
//! | `NetfilterQueue()`, `bind(1, print_and_accept)` | [`Queue::builder`], [`bind`](netfilterqueue::QueueBuilder::bind) |
//! | `run()` | [`Queue::run`] |
//! | `get_fd()`, `socket.fromfd`, `run_socket(s)` | `AsFd`, a `poll`, [`Queue::recv`] that does not block |
//! | `print(packet)` | [`describe`] |
//! | `packet.accept()` | [`Packet::accept`] |
//! | `except KeyboardInterrupt` | a thread that waits for SIGINT and uses the [`StopHandle`] |
//! | `unbind()` | [`Queue::close`] |
//!
//! What one sees of the difference:
//!
//! - Packets are copied whole, where the original cuts them at 4,016 bytes and tells that length.
//! - The protocol of an IPv6 packet is its own. The original reads the byte that has it in IPv4,
//!   which in IPv6 belongs to the source address.
//! - With its output in a pipe, the original's lines come when a buffer is full or it ends.
//!
//! GSO is off as there, so that the lines are about packets as they are on the wire.

use std::error::Error;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::{io, thread};

use netfilterqueue::{
    Batch, Decided, Error as QueueError, Packet, Protocol, Queue, QueueBuilder, StopHandle,
};
use netfilterqueue_ports::{argument, exit_code};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;

fn main() -> ExitCode {
    exit_code("print_and_accept", program())
}

fn program() -> Result<(), Box<dyn Error>> {
    let builder = Queue::builder(argument(1, "queue number", 1_u16)?).gso(false);
    match argument(2, "way to run", "run".to_owned())?.as_str() {
        "run" => run(builder),
        "run_socket" => run_socket(builder),
        other => Err(format!("{other:?} is neither run nor run_socket").into()),
    }
}

fn run(builder: QueueBuilder) -> Result<(), Box<dyn Error>> {
    let mut queue = builder.bind()?;
    stop_at_interrupt(queue.stop_handle())?;
    queue.run(print_and_accept)?;
    println!();
    queue.close()?;
    Ok(())
}

/// The original hands a socket in, so that an event loop can put its own `recv` in place. Here the
/// loop belongs to the program: it waits where it likes, and the queue is only asked for what is
/// there.
fn run_socket(builder: QueueBuilder) -> Result<(), Box<dyn Error>> {
    let mut queue = builder.nonblocking(true).bind()?;
    let stop = queue.stop_handle();
    stop_at_interrupt(stop.clone())?;
    let mut batch = Batch::new(64);
    loop {
        match queue.recv(&mut batch) {
            Ok(_) => {}
            Err(QueueError::WouldBlock) => {
                wait(&queue, &stop)?;
                continue;
            }
            Err(QueueError::Stopped) => break,
            Err(error) => return Err(error.into()),
        }
        for packet in &mut batch {
            print_and_accept(packet);
        }
        batch.commit()?;
    }
    println!();
    queue.close()?;
    Ok(())
}

/// Returns when a packet waits or the queue is told to stop.
fn wait(queue: &Queue, stop: &StopHandle) -> Result<(), Errno> {
    let mut fds = [queue.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn print_and_accept(packet: Packet<'_>) -> Decided<'_> {
    println!("{}", describe(&packet));
    packet.accept()
}

/// What `str(packet)` says there. `Display` of [`Packet`] says more.
fn describe(packet: &Packet<'_>) -> String {
    let payload = packet.payload();
    let protocol = match payload.first().map(|byte| byte >> 4) {
        Some(4) => payload.get(9),
        Some(6) => payload.get(6),
        _ => None,
    };
    let name = protocol.and_then(|number| Protocol(*number).name()).unwrap_or("Unknown protocol");
    format!("{name} packet, {} bytes", payload.len())
}

fn stop_at_interrupt(stop: StopHandle) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            stop.stop();
        }
    });
    Ok(())
}
