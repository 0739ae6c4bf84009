//! The crate nfq, in the versions that the packages beside this folder name; its interface is the
//! same in all of them.
//!
//! default: whole packets (the crate asks for 65,535 bytes by itself), blocking receive, GSO off.
//! best: `set_recv_gso(true)`, the only setting of the crate that makes anything faster, and where
//! it gives away its descriptor (not in 0.2.5) a receive buffer of 8 MiB. It has no batches: a
//! system call for each packet and one for each verdict.
//! nfq-updated 0.2.6 lengthens edited packets to a multiple of four, which breaks TCP. That is left
//! as it is: no user of the crate can avoid it.
//! With several queues each has its own `Queue`, and so its own socket, and a thread.

#[path = "../rust/contender.rs"]
mod contender;

use std::io;

use contender::{Contender, QUEUE_LEN, Settings, Task, flip, prepare, received, recompute, run};
use nfq::{Message, Queue, Verdict};

struct Nfq {
    queue: Queue,
    calls: u64,
}

impl Contender for Nfq {
    type Packet = Message;

    fn receive(&mut self) -> io::Result<Option<Message>> {
        self.calls += 1; // one datagram for each packet, and a receive call for each datagram
        received(self.queue.recv())
    }

    fn judge(&mut self, mut packet: Message, task: Task) -> io::Result<()> {
        // What was cut off would be gone for good if the rest was sent back.
        let whole = packet.get_original_len() == packet.get_payload().len();
        match task {
            Task::Drop => packet.set_verdict(Verdict::Drop),
            Task::Flip if whole => flip(packet.get_payload_mut()),
            Task::Recompute if whole => {
                recompute(packet.get_payload_mut());
            }
            _ => {} // a message's verdict is to accept unless it is set
        }
        self.calls += 1;
        self.queue.verdict(packet)
    }

    fn calls(&self) -> u64 {
        self.calls
    }
}

fn bind(number: u16, settings: &Settings) -> io::Result<Nfq> {
    #[cfg(not(feature = "as-fd"))]
    let before = descriptors()?;
    let mut queue = Queue::open()?;
    #[cfg(feature = "as-fd")]
    {
        if settings.best {
            contender::set_receive_buffer(&queue, contender::RECEIVE_BUFFER)?;
        }
        prepare(&queue, settings)?;
    }
    #[cfg(not(feature = "as-fd"))]
    {
        // This version does not tell its descriptor: it is the one that was not there before.
        let new = descriptors()?.into_iter().find(|fd| !before.contains(fd));
        let fd = new.ok_or_else(|| io::Error::other("where is the socket?"))?;
        // SAFETY: the queue owns it and lives longer than this borrow.
        prepare(&unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }, settings)?;
    }
    queue.bind(number)?;
    queue.set_queue_max_len(number, QUEUE_LEN)?;
    if settings.best {
        queue.set_recv_gso(number, true)?;
    }
    Ok(Nfq { queue, calls: 0 })
}

#[cfg(not(feature = "as-fd"))]
fn descriptors() -> io::Result<Vec<i32>> {
    // The one that reads the folder is gone again when this returns, and its number would be
    // taken for old: only those that are sockets count.
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().starts_with("socket:") {
            sockets.extend(entry.file_name().to_string_lossy().parse::<i32>());
        }
    }
    Ok(sockets)
}

fn main() {
    run(bind)
}
