//! Setting a queue up before it is bound.

use std::io;
use std::ops::{Range, RangeInclusive};
use std::os::fd::OwnedFd;

use netfilterqueue_protocol::config::{Command, ConfigFlags, ConfigMessage, CopyMode, FlagChange};
use netfilterqueue_protocol::verdict::Verdict;

use crate::binding::{Binding, Terms};
use crate::control::Control;
use crate::edit::EditMode;
use crate::error::{Error, Operation};
use crate::fanout::Fanout;
use crate::intake::Intake;
use crate::interfaces::Interfaces;
use crate::queue::{Parts, Queue, Settings};
use crate::socket::{RECEIVE_BUFFER, Socket};
use crate::stats::KernelTable;
use crate::stop::WakeUp;
use crate::sync::Shared;

/// Whether a socket belongs to the calling thread's network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Here,
    Elsewhere,
}

/// One queue number or several: `1`, `0..=3` or `[1, 5, 9]`, for [`Queue::builder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueNumbers(Vec<u16>);

impl QueueNumbers {
    /// Each number once, ascending; there must be one.
    fn distinct(&self) -> Result<Vec<u16>, Error> {
        let mut numbers = self.0.clone();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.is_empty() {
            return Err(Error::InvalidQueue("it has no number"));
        }
        Ok(numbers)
    }
}

impl From<u16> for QueueNumbers {
    fn from(number: u16) -> Self {
        Self(vec![number])
    }
}

impl From<RangeInclusive<u16>> for QueueNumbers {
    fn from(numbers: RangeInclusive<u16>) -> Self {
        Self(numbers.collect())
    }
}

impl From<Range<u16>> for QueueNumbers {
    fn from(numbers: Range<u16>) -> Self {
        Self(numbers.collect())
    }
}

impl<const N: usize> From<[u16; N]> for QueueNumbers {
    fn from(numbers: [u16; N]) -> Self {
        Self(numbers.into())
    }
}

impl From<&[u16]> for QueueNumbers {
    fn from(numbers: &[u16]) -> Self {
        Self(numbers.into())
    }
}

impl From<Vec<u16>> for QueueNumbers {
    fn from(numbers: Vec<u16>) -> Self {
        Self(numbers)
    }
}

/// What a queue should be like. Made by [`Queue::builder`].
///
/// Everything goes to the kernel in one message per number, after the socket is ready: there is no
/// moment in which packets arrive and cannot be taken, and a refusal leaves no half-made queue.
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `bind`"]
pub struct QueueBuilder {
    numbers: QueueNumbers,
    settings: Settings,
    terms: Terms,
    receive_buffer: usize,
    batch_len: usize,
    nonblocking: bool,
}

impl QueueBuilder {
    pub(crate) const fn new(numbers: QueueNumbers) -> Self {
        Self {
            numbers,
            settings: Settings {
                copy_mode: CopyMode::WHOLE,
                max_len: 1024,
                flags: ConfigFlags::GSO,
            },
            terms: Terms { on_undecided: Verdict::Drop, edit_mode: EditMode::Complete },
            receive_buffer: RECEIVE_BUFFER,
            batch_len: 64,
            nonblocking: false,
        }
    }

    /// What the kernel copies of each packet. Default: all of it, as with a range of 0.
    pub const fn copy_mode(mut self, copy_mode: CopyMode) -> Self {
        self.settings.copy_mode = copy_mode;
        self
    }

    /// Most packets that the kernel holds without a verdict before it drops new ones; 0 drops all.
    /// Default: 1,024. Kernels since January 2026 (7.0, 6.19.4, 6.18.14, 6.12.75) stop at 65,536
    /// whatever is asked for.
    pub const fn max_len(mut self, packets: u32) -> Self {
        self.settings.max_len = packets;
        self
    }

    /// Whether packets that do not fit, in the queue or in the socket, are accepted instead of
    /// dropped. Default: no. Since 3.6.
    pub fn fail_open(self, yes: bool) -> Self {
        self.flag(ConfigFlags::FAIL_OPEN, yes)
    }

    /// Whether TCP and UDP super-packets come whole. Default: yes, which makes bulk TCP about ten
    /// times faster; `false` gives packets as they are on the wire. Since 3.10.
    ///
    /// They are usually up to 64 KiB long, and longer on loopback and with BIG TCP. Of one above
    /// 65,531 bytes only the start is copied: it can be judged but not edited.
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

    /// Whether packets come with their conntrack entry. Default: no. Since 3.6; needs the kernel
    /// module `nf_conntrack_netlink`.
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

    /// How many packets [`Queue::run`] receives before it sends their verdicts. Default: 64, at
    /// which the time per packet levels off. A program that edits super-packets of 60 KB is about a
    /// fifth faster with 2, which the processor's caches hold.
    pub const fn batch_len(mut self, packets: usize) -> Self {
        self.batch_len = packets;
        self
    }

    /// The verdict of packets that nobody decided about. Default: [`Verdict::Drop`], which is also
    /// what the kernel does when the queue closes. It leaves without a mark or an edit that was
    /// made before.
    pub const fn on_undecided(mut self, verdict: Verdict) -> Self {
        self.terms.on_undecided = verdict;
        self
    }

    /// Whether [`Queue::recv`] fails with [`Error::WouldBlock`] instead of waiting. Default: no.
    pub const fn nonblocking(mut self, yes: bool) -> Self {
        self.nonblocking = yes;
        self
    }

    /// Whether edited packets get right lengths and checksums. Default: [`EditMode::Complete`].
    pub const fn edit_mode(mut self, mode: EditMode) -> Self {
        self.terms.edit_mode = mode;
        self
    }

    /// Opens a socket in the calling thread's network namespace and binds the queue; all its
    /// numbers on the one socket, if it has several. The queue belongs to that namespace for good.
    /// For another one, see [`Namespace::run`](crate::Namespace::run).
    ///
    /// # Errors
    ///
    /// [`Error::QueueTaken`], [`Error::NoCapability`], [`Error::NoQueueSupport`],
    /// [`Error::FlagsRefused`], [`Error::InvalidQueue`] without a number, or what the kernel says
    /// otherwise.
    pub fn bind(self) -> Result<Queue, Error> {
        self.bind_socket(Socket::open()?, Origin::Here)
    }

    /// As [`QueueBuilder::bind`], but a socket and a queue for each number, to be run together with
    /// a thread each.
    ///
    /// # Errors
    ///
    /// As [`QueueBuilder::bind`]; then none is bound.
    pub fn bind_fanout(self) -> Result<Fanout, Error> {
        Fanout::new(self.bind_each()?)
    }

    /// As [`QueueBuilder::bind`], but a socket and a queue for each number: for threads or event
    /// loops of the program's own.
    ///
    /// # Errors
    ///
    /// As [`QueueBuilder::bind`]; then none is bound.
    pub fn bind_each(self) -> Result<Vec<Queue>, Error> {
        let one = |number| Self { numbers: QueueNumbers::from(number), ..self.clone() }.bind();
        self.numbers.distinct()?.into_iter().map(one).collect()
    }

    /// Binds the queue on a socket that was opened elsewhere, such as in another network namespace
    /// by a more privileged process that has passed it over a Unix socket.
    /// [`open_socket`](crate::open_socket) makes one.
    ///
    /// Who sends on it needs `CAP_NET_ADMIN` in the user namespace that owns the socket's network
    /// namespace. Its options are for the opener to set: `NETLINK_NO_ENOBUFS`, without which an
    /// overrun of the receive buffer makes the kernel drop everything until the buffer is empty,
    /// and the buffer, which is never made smaller here, and larger only with `CAP_NET_ADMIN` in
    /// the initial user namespace. (The send buffer is raised to 128 KiB if need be.)
    ///
    /// What an earlier user of the socket has left of these numbers is given up: their queues are
    /// unbound, and the kernel drops the packets in them. Nobody else may use the socket for these
    /// numbers while the queue lives. While a duplicate of it is open anywhere, the end of this
    /// process does not unbind them: dropping or closing the queue does. Each packet gets a verdict
    /// message of its own (a cumulative one might reach packets that somebody else has received).
    /// Names of interfaces and [`Queue::kernel_stats`] are not to be had.
    ///
    /// # Errors
    ///
    /// As [`QueueBuilder::bind`]; [`Error::InvalidQueue`] if it is no `NETLINK_NETFILTER` socket.
    pub fn bind_on(self, socket: OwnedFd) -> Result<Queue, Error> {
        self.bind_socket(Socket::adopt(socket)?, Origin::Elsewhere)
    }

    fn bind_socket(self, socket: Socket, origin: Origin) -> Result<Queue, Error> {
        let numbers = &self.numbers.distinct()?;
        match origin {
            Origin::Here => socket.set_receive_buffer(self.receive_buffer)?,
            Origin::Elsewhere => socket.grow_receive_buffer(self.receive_buffer)?,
        }
        let interfaces = match origin {
            Origin::Here => Interfaces::here(),
            Origin::Elsewhere => Interfaces::unknown(),
        };
        let wake = Shared::new(WakeUp::new()?);
        let binding = Binding::new(socket, interfaces, numbers, self.terms, wake);
        let mut intake = Intake::new(binding.outstanding().queues());
        let mut control = Control::new();
        if origin == Origin::Elsewhere {
            control.clear(&binding, &mut intake)?;
            // Somebody else may receive packets on it, which are then not counted here.
            binding.outstanding().share();
        }
        let flags = self.settings.flags;
        for number in binding.outstanding().queues() {
            let request = ConfigMessage {
                copy_mode: Some(self.settings.copy_mode),
                max_len: Some(self.settings.max_len),
                flags: (!flags.is_empty()).then_some(FlagChange::set(flags)),
                ..ConfigMessage::command(number, Command::Bind)
            };
            if let Err(error) = control.ask(&binding, &mut intake, Operation::Bind, &request) {
                let error = control.explain_bind(&binding, &mut intake, number, flags, error);
                // Not left to the closing of the socket: one from elsewhere may be open there
                // still. Of a number whose answer did not come nothing is known.
                for bound in numbers.iter().filter(|bound| **bound <= number) {
                    let unbind = ConfigMessage::command(*bound, Command::Unbind);
                    let _ = control.send(&binding, &unbind);
                }
                return Err(error);
            }
        }
        // Not before: binding may have loaded the kernel module that makes the file.
        binding.set_kernel_table(match origin {
            Origin::Here => KernelTable::here(),
            Origin::Elsewhere => Err(io::ErrorKind::Unsupported.into()),
        });
        Ok(Queue::new(Parts {
            binding,
            control,
            intake,
            settings: self.settings,
            batch_len: self.batch_len,
            nonblocking: self.nonblocking,
        }))
    }

    /// As [`Queue::supported_flags`].
    pub(crate) fn supported_flags(self) -> Result<ConfigFlags, Error> {
        let wake = Shared::new(WakeUp::new()?);
        let binding = Binding::new(Socket::open()?, Interfaces::unknown(), &[], self.terms, wake);
        let mut intake = Intake::new(binding.outstanding().queues());
        Control::new().supported_flags(&binding, &mut intake)
    }

    fn flag(mut self, flag: ConfigFlags, yes: bool) -> Self {
        let flags = &mut self.settings.flags;
        *flags = if yes { *flags | flag } else { ConfigFlags(flags.0 & !flag.0) };
        self
    }
}
