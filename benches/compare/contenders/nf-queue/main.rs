//! The crate nf-queue, a thin layer over libmnl.
//!
//! default: what its README's program does (whole packets, a receive buffer of 69,631 bytes, a
//! verdict per packet), but without the flags that it sets there: those are asked for, not given.
//! best: GSO and a receive buffer of 8 MiB. It has no batches.
//! Edits are not possible: 0.1.0's `VerdictMsgBuilder::payload` copies the memory of the reference
//! to the payload and what lies behind it, not the payload.

#[path = "../rust/contender.rs"]
#[allow(dead_code)] // the edits
mod contender;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use contender::{Contender, QUEUE_LEN, Settings, Task, prepare, received, run};
use nf_queue::{CfgFlag, CmdType, CopyMode, MsgBuilder, SOCKET_BUFFER_SIZE, Socket, VerdictType};

struct NfQueue {
    socket: Socket<'static>,
    number: u16,
    receive_buffer: Vec<u8>,
    send_buffer: Vec<u8>,
    calls: u64,
}

// SAFETY: a libmnl socket is a descriptor and an address, and only one thread has this one.
unsafe impl Send for NfQueue {}

impl Contender for NfQueue {
    type Packet = u32;

    fn receive(&mut self) -> io::Result<Option<u32>> {
        self.calls += 1;
        let messages = received(self.socket.recv(&mut self.receive_buffer))?;
        // The kernel puts one packet into a datagram.
        let packet = messages.and_then(|mut messages| messages.next()?.as_packet_msg());
        Ok(packet.and_then(|packet| Some(packet.packet_hdr()?.packet_id)))
    }

    fn judge(&mut self, packet: u32, task: Task) -> io::Result<()> {
        let verdict = if task == Task::Drop { VerdictType::Drop } else { VerdictType::Accept };
        let builder = MsgBuilder::new(&mut self.send_buffer, self.number).verdict();
        self.calls += 1;
        self.socket.send(builder.verdict_hdr(packet, verdict).build())
    }

    fn calls(&self) -> u64 {
        self.calls
    }
}

fn bind(number: u16, settings: &Settings) -> io::Result<NfQueue> {
    let socket = Socket::new(0)?;
    // SAFETY: nothing closes it.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    if settings.best {
        contender::set_receive_buffer(&fd, contender::RECEIVE_BUFFER)?;
    }
    prepare(&fd, settings)?;
    let mut receive_buffer = vec![0; 0xffff + SOCKET_BUFFER_SIZE / 2];
    let mut send_buffer = vec![0; SOCKET_BUFFER_SIZE];
    let request = MsgBuilder::new(&mut send_buffer, number).ack().cfg();
    let request = request.cmd(CmdType::Bind).params(0xffff, CopyMode::Packet);
    let request = request.queue_maxlen(QUEUE_LEN);
    let request = if settings.best { request.flags(CfgFlag::Gso as u32) } else { request };
    socket.send(request.build())?;
    socket.recv(&mut receive_buffer)?; // the answer
    Ok(NfQueue { socket, number, receive_buffer, send_buffer, calls: 0 })
}

fn main() {
    let edits = std::env::args().any(|arg| arg == "flip" || arg == "recompute");
    if edits {
        println!("unsupported its verdict sends other bytes than the payload it is given");
        return;
    }
    run(bind)
}
