//! Configuration requests and the kernel's answers to them.

use std::hash::{BuildHasher, RandomState};
use std::io::IoSlice;
use std::time::{Duration, Instant};

use netfilterqueue_protocol::ack::Ack;
use netfilterqueue_protocol::config::{Command, ConfigFlags, ConfigMessage, FlagChange};
use netfilterqueue_protocol::constants::NFQNL_MSG_CONFIG;
use nix::errno;

use crate::binding::Binding;
use crate::errno::Errno;
use crate::error::{Error, Operation};
use crate::intake::Intake;
use crate::slot::{Content, classify};
use crate::slots::WHOLE_PACKET_LEN;
use crate::socket::Received;
use crate::verdicts::Outstanding;

/// How long an answer is waited for. The kernel answers while the request is being sent, so that an
/// answer is either there at once or was lost because the receive buffer was full.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to let a busy kernel be before the request is sent again.
const RETRY_AFTER: Duration = Duration::from_millis(5);

/// Sends configuration requests for the queues of one socket.
#[derive(Debug)]
pub(crate) struct Control {
    sequence: u32,
}

impl Control {
    /// Numbers requests from anywhere, so that on a socket that was used before an answer to
    /// somebody else's request is not taken for one of ours.
    pub(crate) fn new() -> Self {
        let random = RandomState::new().hash_one(0);
        Self { sequence: (random >> 32) as u32 }
    }

    /// Sends `request` and waits for the kernel's answer. Packets that come first are kept in
    /// `intake`. A lost answer is asked for again: every request but binding may be repeated
    /// freely, and binding twice says `EBUSY`.
    pub(crate) fn ask(
        &mut self,
        binding: &Binding,
        intake: &mut Intake,
        operation: Operation,
        request: &ConfigMessage,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + ACK_TIMEOUT;
        let mut buffer = vec![0; WHOLE_PACKET_LEN];
        let mut is_repeated = false;
        loop {
            self.send(binding, request).map_err(Error::system(operation, "sendmsg"))?;
            if let Some(answer) = self.drain(binding, intake, operation, &mut buffer, deadline)? {
                return answer.or_else(|error| match (request.command, &error) {
                    (Some(Command::Bind), Error::Refused { errno: Errno::EBUSY, .. })
                    | (Some(Command::Unbind), Error::Refused { errno: Errno::ENODEV, .. })
                        if is_repeated =>
                    {
                        Ok(())
                    }
                    _ => Err(about(request, error)),
                });
            }
            if Instant::now() >= deadline {
                let timeout = Error::AckTimeout { operation, queue: None, waited: ACK_TIMEOUT };
                return Err(about(request, timeout));
            }
            is_repeated = true;
            binding
                .socket()
                .wait(None, Some(RETRY_AFTER))
                .map_err(Error::system(operation, "poll"))?;
        }
    }

    /// Sends `request`; the kernel has carried it out when this returns. Its answer is left in the
    /// socket.
    pub(crate) fn send(&mut self, binding: &Binding, request: &ConfigMessage) -> nix::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        request.push(&mut datagram, self.sequence);
        binding.socket().send(&[IoSlice::new(&datagram)])
    }

    /// Receives until the answer to the last request is found, nothing waits, or time is up.
    fn drain(
        &self,
        binding: &Binding,
        intake: &mut Intake,
        operation: Operation,
        buffer: &mut [u8],
        deadline: Instant,
    ) -> Result<Option<Result<(), Error>>, Error> {
        while Instant::now() < deadline {
            let mut received = [Received::default()];
            match binding.socket().receive(std::iter::once(&mut *buffer), &mut received, false) {
                Ok(0) | Err(errno::Errno::EAGAIN) => return Ok(None),
                Ok(_) => {}
                Err(errno::Errno::EINTR) => continue,
                Err(errno::Errno::ENOBUFS) => {
                    intake.count_overrun(binding.outstanding());
                    continue;
                }
                Err(errno) => return Err(Error::system(operation, "recvmmsg")(errno)),
            }
            let [received] = received;
            let datagram = buffer.get(..received.length).unwrap_or(buffer);
            let outstanding = binding.outstanding();
            let answer = self.take_in(datagram, received, operation, intake, outstanding);
            if answer.is_some() {
                return Ok(answer);
            }
        }
        Ok(None)
    }

    /// Returns the answer to the last request, if a datagram is that. Packets are kept, and what
    /// else came is entered into the books.
    fn take_in(
        &self,
        datagram: &[u8],
        received: Received,
        operation: Operation,
        intake: &mut Intake,
        outstanding: &Outstanding,
    ) -> Option<Result<(), Error>> {
        match classify(datagram, received) {
            Content::Ack(ack) if self.is_answer(&ack) => return Some(answer(operation, &ack)),
            Content::Packet { .. } | Content::Unreadable { .. } => intake.keep(datagram, received),
            other => intake.count_content(&other, outstanding),
        }
        None
    }

    fn is_answer(&self, ack: &Ack<'_>) -> bool {
        ack.request_kind() == NFQNL_MSG_CONFIG && ack.request_sequence() == self.sequence
    }

    /// Whether the subsystem can be reached and used at all: asks for what needs the capability and
    /// does nothing.
    fn check_access(
        &mut self,
        binding: &Binding,
        intake: &mut Intake,
        operation: Operation,
    ) -> Result<(), Error> {
        let probe = ConfigMessage::command(0, Command::PfBind);
        self.ask(binding, intake, operation, &probe).map_err(|error| match error {
            Error::Refused { errno: Errno::EPERM, .. } => Error::NoCapability { operation },
            Error::Refused { errno: Errno::EINVAL, .. } => Error::NoQueueSupport,
            error => error,
        })
    }

    /// Gives up what an earlier user of the socket has left: queues bound by it, and their packets,
    /// whose ids mean nothing any more.
    pub(crate) fn clear(&mut self, binding: &Binding, intake: &mut Intake) -> Result<(), Error> {
        self.check_access(binding, intake, Operation::Bind)?;
        for number in binding.outstanding().queues() {
            let unbind = ConfigMessage::command(number, Command::Unbind);
            match self.ask(binding, intake, Operation::Unbind, &unbind) {
                // Nobody has it, or somebody else.
                Ok(()) | Err(Error::Refused { .. } | Error::NoCapability { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        intake.forget(|queue| binding.outstanding().is_ours(queue));
        Ok(())
    }

    /// The flags that the kernel knows and can serve. Asks about a number that it does not bind:
    /// flags are looked at before anything else.
    pub(crate) fn supported_flags(
        &mut self,
        binding: &Binding,
        intake: &mut Intake,
    ) -> Result<ConfigFlags, Error> {
        self.check_access(binding, intake, Operation::Probe)?;
        let mut supported = ConfigFlags::default();
        for flag in ConfigFlags(u32::MAX).iter() {
            let flags = Some(FlagChange::set(flag));
            let probe = ConfigMessage { flags, ..ConfigMessage::new(0) };
            match self.ask(binding, intake, Operation::Probe, &probe) {
                Ok(()) => supported |= flag,
                Err(Error::Refused { errno: Errno::EOPNOTSUPP | Errno::EINVAL, .. }) => {}
                // It belongs to nobody, or to somebody else.
                Err(Error::Refused { errno: Errno::ENODEV | Errno::EPERM, .. }) => {
                    supported |= flag;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(supported)
    }

    /// Makes a refused binding tell whose fault it is, by asking questions that change nothing.
    pub(crate) fn explain_bind(
        &mut self,
        binding: &Binding,
        intake: &mut Intake,
        queue: u16,
        flags: ConfigFlags,
        error: Error,
    ) -> Error {
        let Error::Refused { operation, errno, .. } = error else { return error };
        if matches!(errno, Errno::EBUSY | Errno::EEXIST) {
            return Error::QueueTaken { queue };
        }
        let probe = ConfigMessage::command(queue, Command::PfBind);
        match (errno, self.refusal(binding, intake, &probe)) {
            (Errno::EPERM, Ok(Some(Errno::EPERM))) => Error::NoCapability { operation },
            (Errno::EPERM, Ok(None)) => Error::QueueTaken { queue },
            (Errno::EINVAL, Ok(Some(Errno::EINVAL))) => Error::NoQueueSupport,
            (Errno::EOPNOTSUPP | Errno::EINVAL, _) if !flags.is_empty() => {
                let probe = ConfigMessage::new(queue);
                Error::FlagsRefused { queue, flags: self.refused(binding, intake, flags, &probe) }
            }
            _ => error,
        }
    }

    /// Makes a refused change of flags tell which. Binding the queue again changes nothing: the
    /// kernel looks at the flags first and then says `EBUSY`.
    pub(crate) fn explain_flags(
        &mut self,
        binding: &Binding,
        intake: &mut Intake,
        queue: u16,
        flags: ConfigFlags,
    ) -> Error {
        let probe = ConfigMessage::command(queue, Command::Bind);
        Error::FlagsRefused { queue, flags: self.refused(binding, intake, flags, &probe) }
    }

    /// Those of `flags` that the kernel refuses, or all if they cannot be told apart. `probe` is a
    /// request that a known flag does not make succeed: about a number that this socket has not
    /// bound (`ENODEV`), or to bind one that it has.
    fn refused(
        &mut self,
        binding: &Binding,
        intake: &mut Intake,
        flags: ConfigFlags,
        probe: &ConfigMessage,
    ) -> ConfigFlags {
        let known = flags.iter().fold(ConfigFlags::default(), |all, flag| all | flag);
        let mut refused = ConfigFlags(flags.0 & !known.0);
        for flag in known.iter() {
            let probe = ConfigMessage { flags: Some(FlagChange::set(flag)), ..*probe };
            let errno = self.refusal(binding, intake, &probe);
            if matches!(errno, Ok(Some(Errno::EOPNOTSUPP | Errno::EINVAL))) {
                refused |= flag;
            }
        }
        if refused.is_empty() { flags } else { refused }
    }

    /// Why the kernel refuses `request`; `None` if it does not.
    fn refusal(
        &mut self,
        binding: &Binding,
        intake: &mut Intake,
        request: &ConfigMessage,
    ) -> Result<Option<Errno>, Error> {
        match self.ask(binding, intake, Operation::Bind, request) {
            Ok(()) => Ok(None),
            Err(Error::Refused { errno, .. }) => Ok(Some(errno)),
            Err(error) => Err(error),
        }
    }
}

fn answer(operation: Operation, ack: &Ack<'_>) -> Result<(), Error> {
    if ack.errno() == 0 {
        return Ok(());
    }
    let errno = Errno(ack.errno());
    if errno == Errno::EPERM && !matches!(operation, Operation::Bind | Operation::Probe) {
        // The queue is this socket's own, so that nothing else can be missing.
        return Err(Error::NoCapability { operation });
    }
    let explanation = ack.text().map(str::to_owned);
    Err(Error::Refused { operation, queue: None, errno, explanation })
}

/// Names the queue number, where the request has one.
fn about(request: &ConfigMessage, mut error: Error) -> Error {
    if let Error::Refused { queue, operation, .. } | Error::AckTimeout { queue, operation, .. } =
        &mut error
        // A probe has a number that it is not about.
        && *operation != Operation::Probe
        && request.command != Some(Command::PfBind)
    {
        *queue = Some(request.queue);
    }
    error
}

#[cfg(any(test, fuzzing))]
pub(crate) mod model;
