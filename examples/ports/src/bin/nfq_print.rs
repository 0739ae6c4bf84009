//! The example `print` of the crate nfq: prints all there is to know of a packet, and accepts it.
//!
//! ```text
//! nfq_print [QUEUE]
//! ```
//!
//! | there | here |
//! | --- | --- |
//! | `Queue::open()`, `bind(0)` | [`Queue::builder`], [`bind`](netfilterqueue::QueueBuilder::bind) |
//! | `set_recv_conntrack(0, true)` and its like, a request each | [`conntrack`](netfilterqueue::QueueBuilder::conntrack) and its like, before the bind |
//! | `recv()`, `verdict(msg)` | [`Queue::run`] |
//! | `println!("{:#?}", msg)` | [`Message`] |
//! | `set_verdict(Verdict::Accept)` | [`Packet::accept`] |
//!
//! What one sees of the difference:
//!
//! - Each getter of nfq's `Message` has a line. The original prints the fields behind them, which
//!   are pointers in part, and its whole receive buffer, used or not: 17,467 lines for a packet.
//! - What is absent is `None`, where the original has 0.
//! - A kernel without conntrack or security contexts is said to be one, and the rest is printed.
//!   The original ends with "Operation not supported".
//! - A packet that arrives while the flags are set is printed like any other: they come with the
//!   bind. There it is read by the request that waits for its answer, and never gets a verdict.
//!
//! GSO is off as there. As there, nothing ends it but a signal or an error.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use netfilterqueue::{ConfigFlags, Packet, Queue, SkbInfo, Timestamp};
use netfilterqueue_ports::{argument, exit_code};

fn main() -> ExitCode {
    exit_code("nfq_print", program())
}

fn program() -> Result<(), Box<dyn Error>> {
    let number = argument(1, "queue number", 0_u16)?;
    let supported = Queue::supported_flags()?;
    let tells = |flag, what| {
        if !supported.contains(flag) {
            eprintln!("nfq_print: this kernel does not tell {what}");
        }
        supported.contains(flag)
    };
    let builder = Queue::builder(number)
        .gso(false)
        .conntrack(tells(ConfigFlags::CONNTRACK, "conntrack entries"))
        .secctx(tells(ConfigFlags::SECCTX, "security contexts"))
        .uid_gid(tells(ConfigFlags::UID_GID, "user and group ids"));
    builder.bind()?.run(|packet| {
        println!("{:#?}", Message(&packet));
        packet.accept()
    })?;
    Ok(())
}

/// All that nfq's `Message` has getters for, by their names.
struct Message<'a>(&'a Packet<'a>);

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(packet) = self;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let skb_info = packet.skb_info();
        let conntrack = packet.conntrack().and_then(|entry| entry.id());
        let state = packet.conntrack_info().map(|info| info.to_string());
        f.debug_struct("Message")
            .field("queue_num", &packet.queue())
            .field("packet_id", &packet.id())
            .field("nfmark", &packet.mark())
            .field("indev", &packet.indev())
            .field("outdev", &packet.outdev())
            .field("physindev", &packet.physindev())
            .field("physoutdev", &packet.physoutdev())
            .field("original_len", &packet.original_len())
            .field("is_seg_offloaded", &skb_info.is_some_and(SkbInfo::is_gso))
            .field("is_checksum_ready", &!skb_info.is_some_and(SkbInfo::checksum_not_ready))
            .field("security_context", &packet.secctx().map(text))
            .field("uid", &packet.uid())
            .field("gid", &packet.gid())
            .field("timestamp", &packet.timestamp().and_then(Timestamp::to_system_time))
            .field("hw_addr", &packet.hwaddr().map(Hex))
            .field("hw_protocol", &format_args!("{:#06x}", packet.hw_protocol()))
            .field("hook", &format_args!("{}", packet.hook()))
            .field("conntrack_id", &conntrack)
            .field("conntrack_state", &state)
            .field("payload", &Hex(packet.payload()))
            .finish()
    }
}

/// Bytes on one line, which `{:#?}` would give a line each.
struct Hex<'a>(&'a [u8]);

impl fmt::Debug for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .enumerate()
            .try_for_each(|(at, byte)| write!(f, "{}{byte:02x}", if at == 0 { "" } else { " " }))
    }
}
