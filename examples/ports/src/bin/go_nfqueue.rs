//! The example of go-nfqueue 2, which the documentation of `RegisterWithErrorFunc` shows: prints
//! the bytes of each packet and accepts it, for ten seconds.
//!
//! ```text
//! go_nfqueue [QUEUE [SECONDS]]
//! ```
//!
//! | there | here |
//! | --- | --- |
//! | `Open(&Config{…})`, `RegisterWithErrorFunc(ctx, fn, errfn)` | [`Queue::builder`], [`bind`](netfilterqueue::QueueBuilder::bind), [`Queue::run`] |
//! | `NfQueue: 100`, `MaxQueueLen: 0xFF` | `builder(100)`, [`max_len(0xff)`](netfilterqueue::QueueBuilder::max_len) |
//! | `MaxPacketLen: 0xFFFF`, `Copymode: NfQnlCopyPacket` | the default |
//! | `WriteTimeout` | nothing: a verdict does not wait |
//! | `SetOption(netlink.NoENOBUFS, true)` | the default |
//! | `context.WithTimeout(…)`, `<-ctx.Done()` | a thread that sleeps, and the [`StopHandle`](netfilterqueue::StopHandle) |
//! | `*a.PacketID`, `*a.Payload` | [`Packet::id`](netfilterqueue::Packet::id), [`Packet::payload`](netfilterqueue::Packet::payload) |
//! | `SetVerdict(id, NfAccept)` | [`Packet::accept`](netfilterqueue::Packet::accept) |
//! | `Close()` | [`Queue::close`] |
//!
//! What one sees of the difference:
//!
//! - The end is silent. There the deadline ends the wait with an error, so the error function is
//!   called once more.
//! - An error ends the program at once, with a message. There the error function ends the
//!   receiving, and the program goes on waiting for its context.
//!
//! GSO is off as there.

use std::error::Error;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use netfilterqueue::Queue;
use netfilterqueue_ports::{argument, exit_code};

fn main() -> ExitCode {
    exit_code("go_nfqueue", program())
}

fn program() -> Result<(), Box<dyn Error>> {
    let number = argument(1, "queue number", 100_u16)?;
    let timeout = Duration::from_secs(argument(2, "number of seconds", 10)?);
    let mut queue = Queue::builder(number).max_len(0xff).gso(false).bind()?;
    let stop = queue.stop_handle();
    thread::spawn(move || {
        thread::sleep(timeout);
        stop.stop();
    });
    queue.run(|packet| {
        println!("[{}]\t{}", packet.id(), go_slice(packet.payload()));
        packet.accept()
    })?;
    queue.close()?;
    Ok(())
}

/// As Go's `%v` prints a slice of bytes.
fn go_slice(bytes: &[u8]) -> String {
    let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
    format!("[{}]", numbers.join(" "))
}
