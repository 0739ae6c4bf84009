//! Setting a queue up before it is bound.

use std::sync::Arc;

use netfilterqueue_protocol::config::{Command, ConfigFlags, ConfigMessage, CopyMode, FlagChange};
use netfilterqueue_protocol::verdict::Verdict;

use crate::binding::Binding;
use crate::control::Control;
use crate::error::{Error, Operation};
use crate::intake::Intake;
use crate::queue::Queue;
use crate::socket::Socket;
use crate::stop::WakeUp;

/// What a queue should be like. Made by [`Queue::builder`].
///
/// Everything goes to the kernel in one message, after the socket is ready: there is no moment in which
/// packets arrive and cannot be taken, and a refusal leaves no half-made queue.
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `bind`"]
pub struct QueueBuilder {
    number: u16,
    copy_mode: CopyMode,
    max_len: u32,
    flags: ConfigFlags,
    receive_buffer: usize,
    batch_len: usize,
    on_undecided: Verdict,
    nonblocking: bool,
}

impl QueueBuilder {
    pub(crate) const fn new(number: u16) -> Self {
        Self {
            number,
            copy_mode: CopyMode::WHOLE,
            max_len: 1024,
            flags: ConfigFlags::GSO,
            receive_buffer: 8 << 20,
            batch_len: 64,
            on_undecided: Verdict::Drop,
            nonblocking: false,
        }
    }

    /// What the kernel copies of each packet. Default: all of it.
    pub const fn copy_mode(mut self, copy_mode: CopyMode) -> Self {
        self.copy_mode = copy_mode;
        self
    }

    /// Most packets that the kernel holds without a verdict before it drops new ones; 0 drops all.
    /// Default: 1,024.
    /// Kernels since January 2026 (7.0, 6.19.4, 6.18.14, 6.12.75) stop at 65,536 whatever is asked for.
    pub const fn max_len(mut self, packets: u32) -> Self {
        self.max_len = packets;
        self
    }

    /// Whether packets that do not fit, in the queue or in the socket, are accepted instead of dropped.
    /// Default: no. Since 3.6.
    pub fn fail_open(self, yes: bool) -> Self {
        self.flag(ConfigFlags::FAIL_OPEN, yes)
    }

    /// Whether TCP and UDP super-packets come whole. Default: yes, which makes bulk TCP about ten
    /// times faster; `false` gives packets as they are on the wire. Since 3.10.
    ///
    /// They are usually up to 64 KiB long, and longer on loopback and with BIG TCP. Of one above 65,531
    /// bytes only the start is copied: it can be judged but not edited.
    pub fn gso(self, yes: bool) -> Self {
        self.flag(ConfigFlags::GSO, yes)
    }

    /// Whether packets come with the user and group id of their socket. Default: no. Since 3.14.
    pub fn uid_gid(self, yes: bool) -> Self {
        self.flag(ConfigFlags::UID_GID, yes)
    }

    /// Whether packets come with their security context. Default: no. Since 4.3.
    pub fn secctx(self, yes: bool) -> Self {
        self.flag(ConfigFlags::SECCTX, yes)
    }

    /// Whether packets come with their conntrack entry. Default: no. Since 3.6; needs the kernel module
    /// `nf_conntrack_netlink`.
    pub fn conntrack(self, yes: bool) -> Self {
        self.flag(ConfigFlags::CONNTRACK, yes)
    }

    /// Asks for a receive buffer of this many bytes (the kernel doubles it for its own
    /// bookkeeping). When it is full, the kernel drops packets and their ids are missing. Default:
    /// 8 MiB. Without `CAP_NET_ADMIN` in the initial user namespace the host's `net.core.rmem_max`
    /// is the limit; [`Queue::receive_buffer`] tells what was reached.
    pub const fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = bytes;
        self
    }

    /// How many packets [`Queue::run`] receives before it sends their verdicts. Default: 64.
    pub const fn batch_len(mut self, packets: usize) -> Self {
        self.batch_len = packets;
        self
    }

    /// The verdict of packets that nobody decided about. Default: [`Verdict::Drop`], which is also what
    /// the kernel does when the queue closes. It leaves without a mark or an edit that was made before.
    pub const fn on_undecided(mut self, verdict: Verdict) -> Self {
        self.on_undecided = verdict;
        self
    }

    /// Whether [`Queue::recv`] fails with [`Error::WouldBlock`] instead of waiting. Default: no.
    pub const fn nonblocking(mut self, yes: bool) -> Self {
        self.nonblocking = yes;
        self
    }

    /// Opens a socket in the calling thread's network namespace and binds the queue. The queue belongs to
    /// that namespace for good.
    ///
    /// # Errors
    ///
    /// [`Error::QueueTaken`], [`Error::NoCapability`], [`Error::NoQueueSupport`],
    /// [`Error::FlagsRefused`], or what the kernel says otherwise.
    pub fn bind(self) -> Result<Queue, Error> {
        let wake = Arc::new(WakeUp::new()?);
        let socket = Socket::open()?;
        socket.grow_receive_buffer(self.receive_buffer)?;
        let binding = Binding::new(socket, self.number, self.on_undecided, wake);
        let mut control = Control::default();
        let mut intake = Intake::new();
        let flags = FlagChange { mask: self.flags, values: self.flags };
        let request = ConfigMessage {
            copy_mode: Some(self.copy_mode),
            max_len: Some(self.max_len),
            flags: (!self.flags.is_empty()).then_some(flags),
            ..ConfigMessage::command(self.number, Command::Bind)
        };
        match control.ask(&binding, &mut intake, Operation::Bind, &request) {
            Ok(()) => Ok(Queue::new(binding, control, intake, self.batch_len, self.nonblocking)),
            Err(error) => Err(control.explain_bind(&binding, &mut intake, self.flags, error)),
        }
    }

    fn flag(mut self, flag: ConfigFlags, yes: bool) -> Self {
        self.flags = if yes { self.flags | flag } else { ConfigFlags(self.flags.0 & !flag.0) };
        self
    }
}
