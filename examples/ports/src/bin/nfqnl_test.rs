//! The program `utils/nfqnl_test.c` of `libnetfilter_queue` 1.0.5: prints what comes with each
//! packet and accepts it. The lines about packets are the same.
//!
//! ```text
//! nfqnl_test [QUEUE]
//! ```
//!
//! | there | here |
//! | --- | --- |
//! | `nfq_open`, `nfq_create_queue`, `nfq_set_mode`, `nfq_set_queue_flags` twice | [`Queue::builder`], [`bind`](netfilterqueue::QueueBuilder::bind) |
//! | `nfq_unbind_pf`, `nfq_bind_pf` | nothing: without effect since Linux 3.8 |
//! | `nfq_fd`, `recv`, `nfq_handle_packet` | [`Queue::recv`] |
//! | `recv` fails with `ENOBUFS` | [`Stats::lost`](netfilterqueue::Stats::lost) has grown |
//! | `nfq_get_msg_packet_hdr` | [`Packet::hw_protocol`], [`Packet::hook`], [`Packet::id`] |
//! | `nfq_get_packet_hw`, `nfq_get_nfmark`, `nfq_get_indev` and its like, `nfq_get_uid`, `nfq_get_gid`, `nfq_get_secctx`, `nfq_get_payload` | the methods of [`Packet`] with these names |
//! | `nfq_set_verdict(qh, id, NF_ACCEPT, 0, NULL)` | [`Packet::accept`], [`Batch::commit`] |
//! | `nfq_destroy_queue`, `nfq_close` | [`Queue::close`] |
//!
//! What one sees of the difference:
//!
//! - There are fewer steps to report before the first packet.
//! - Packets of any length are printed and pass. The original reads into 4,096 bytes; a longer
//!   message is cut and not understood, so the line after "pkt received" is missing, and the packet
//!   stays in the kernel's queue until the program ends.
//! - "losing packets!" tells how many, once a later packet has shown it. There the kernel, after
//!   the first loss, drops everything until the receive buffer is empty.
//! - With its output in a pipe, the original's lines come when a buffer is full, and what is in it
//!   is lost when a signal ends it.
//!
//! GSO is off as there. As there, nothing ends it but a signal or an error.

use std::error::Error;
use std::fmt::Write;
use std::process::ExitCode;

use netfilterqueue::{Batch, ConfigFlags, Packet, Queue};
use netfilterqueue_ports::{argument, exit_code};

fn main() -> ExitCode {
    exit_code("nfqnl_test", program())
}

fn program() -> Result<(), Box<dyn Error>> {
    let number = argument(1, "queue number", 0_u16)?;
    let supported = Queue::supported_flags()?;
    let tells = |flag, what| {
        if !supported.contains(flag) {
            eprintln!("this kernel does not tell {what}");
        }
        supported.contains(flag)
    };
    let builder = Queue::builder(number)
        .gso(false)
        .uid_gid(tells(ConfigFlags::UID_GID, "user and group ids"))
        .secctx(tells(ConfigFlags::SECCTX, "security contexts"));
    println!("binding this socket to queue '{number}'");
    let mut queue = builder.bind()?;
    println!("Waiting for packets...");
    let mut batch = Batch::new(64);
    let mut lost = 0;
    loop {
        if let Err(error) = queue.recv(&mut batch) {
            eprintln!("recv failed: {error}");
            break;
        }
        let lost_by_now = queue.stats().lost;
        if lost_by_now > lost {
            println!("losing packets! {} since the last one", lost_by_now - lost);
            lost = lost_by_now;
        }
        for packet in &mut batch {
            println!("pkt received");
            println!("{}", attributes(&packet)?);
            println!("entering callback");
            packet.accept();
        }
        batch.commit()?;
    }
    println!("unbinding from queue {number}");
    queue.close()?;
    Ok(())
}

/// The line about a packet: what is absent is left out.
fn attributes(packet: &Packet<'_>) -> Result<String, std::fmt::Error> {
    let mut line = format!(
        "hw_protocol=0x{:04x} hook={} id={} ",
        packet.hw_protocol(),
        packet.hook().0,
        packet.id()
    );
    if let Some(address) = packet.hwaddr() {
        let bytes: Vec<String> = address.iter().map(|byte| format!("{byte:02x}")).collect();
        write!(line, "hw_src_addr={} ", bytes.join(":"))?;
    }
    for (name, value) in [
        ("mark", packet.mark()),
        ("indev", packet.indev()),
        ("outdev", packet.outdev()),
        ("physindev", packet.physindev()),
        ("physoutdev", packet.physoutdev()),
        ("uid", packet.uid()),
        ("gid", packet.gid()),
    ] {
        if let Some(value) = value {
            write!(line, "{name}={value} ")?;
        }
    }
    if let Some(context) = packet.secctx() {
        write!(line, "secctx=\"{}\" ", String::from_utf8_lossy(context))?;
    }
    write!(line, "payload_len={} ", packet.payload().len())?;
    Ok(line)
}
