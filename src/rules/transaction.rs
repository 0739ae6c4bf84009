//! `nf_tables` changes rules only in transactions: one datagram of messages between a begin and an
//! end, applied together or not at all.
//!
//! Only the last message asks for an answer. Refusals come unasked and before it, so its success is
//! the success of all, and however many rules there are, the answers fit the receive buffer.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use netfilterqueue_protocol::ack::Ack;
use netfilterqueue_protocol::message::{Message, Messages};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use nix::errno;

use crate::errno::Errno;
use crate::error::{Error, Operation};
use crate::socket::{Arrival, Received, Socket};

/// `NFNL_SUBSYS_NFTABLES`: begin and end say by it which subsystem the batch is for.
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// The kernel answers before `sendmsg` returns, so this only bounds what cannot happen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// More than a refusal needs that echoes the longest message we send.
const ANSWER_LEN: usize = 8192;

/// One message of a transaction.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// `NLM_F_*` beside `NLM_F_REQUEST`.
    pub(super) flags: u16,
    pub(super) message: NfTablesMessage,
}

/// Why the kernel applied nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// It refused a message.
    Refused {
        /// The first refused request, by its place in the transaction; `None` for the transaction
        /// as a whole.
        request: Option<usize>,
        errno: Errno,
        explanation: Option<String>,
    },
    /// It could not be asked, or its answer did not come.
    Unanswered(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            // The capability is checked once, before the first message.
            Failure::Refused { request: None, errno: Errno::EPERM, .. } => {
                Self::NoCapability { operation: Operation::Rules }
            }
            // No nf_tables: the subsystem is looked up before the first message too.
            Failure::Refused { request: None, errno: Errno::EOPNOTSUPP, .. } => Self::NoRuleSupport,
            Failure::Refused { errno, explanation, .. } => {
                Self::Refused { operation: Operation::Rules, queue: None, errno, explanation }
            }
            Failure::Unanswered(error) => error,
        }
    }
}

/// The sequence numbers of one transaction: its begin's and its last request's.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    first: u32,
    last: u32,
}

/// A socket to `nf_tables` and the sequence number its next message gets.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    sequence: u32,
}

impl Connection {
    pub(super) fn open() -> Result<Self, Error> {
        match Socket::open() {
            Ok(socket) => Ok(Self { socket, sequence: 1 }),
            // Here it is the rules that are out of reach.
            Err(Error::NoQueueSupport) => Err(Error::NoRuleSupport),
            Err(error) => Err(error),
        }
    }

    /// The port id: unique among the open netfilter sockets of a network namespace.
    pub(super) const fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Applies `requests` together: one `sendmsg`, then as many receives as there are answers.
    pub(super) fn commit(
        &mut self,
        family: NetfilterProtoFamily,
        requests: Vec<Request>,
    ) -> Result<(), Failure> {
        let first = self.sequence;
        let (datagram, last) = encode(family, first, requests);
        // The end of the batch has a number too.
        self.sequence = last.wrapping_add(2);
        self.socket.send(&[IoSlice::new(&datagram)]).map_err(|errno| {
            Failure::Unanswered(match errno {
                errno::Errno::EMSGSIZE => {
                    Error::invalid_rules("more rules than one transaction can hold")
                }
                errno => Error::system(Operation::Rules, "sendmsg")(errno),
            })
        })?;
        self.answer(Numbers { first, last })
    }

    fn answer(&self, numbers: Numbers) -> Result<(), Failure> {
        let failed = |call| {
            move |errno| {
                Failure::Unanswered(Error::system::<errno::Errno>(Operation::Rules, call)(errno))
            }
        };
        let started = Instant::now();
        let mut buffer = vec![0; ANSWER_LEN];
        let mut received = [Received::default()];
        loop {
            match self.socket.receive([buffer.as_mut_slice()].into_iter(), &mut received, false) {
                Ok(_) if received[0].arrival == Arrival::Foreign => {}
                Ok(_) => {
                    let datagram = buffer.get(..received[0].length).unwrap_or_default();
                    if let Some(verdict) = judge(datagram, numbers) {
                        return verdict;
                    }
                }
                Err(errno::Errno::EAGAIN) => {
                    let Some(left) = ANSWER_TIMEOUT.checked_sub(started.elapsed()) else {
                        return Err(Failure::Unanswered(Error::AckTimeout {
                            operation: Operation::Rules,
                            queue: None,
                            waited: ANSWER_TIMEOUT,
                        }));
                    };
                    self.socket.wait(None, Some(left)).map_err(failed("poll"))?;
                }
                Err(errno::Errno::EINTR) => {}
                Err(errno) => return Err(failed("recvmmsg")(errno)),
            }
        }
    }
}

/// The datagram and the sequence number of its last request; the begin has `first`.
fn encode(family: NetfilterProtoFamily, first: u32, requests: Vec<Request>) -> (Vec<u8>, u32) {
    let mut out = Vec::new();
    let mut sequence = first;
    push(&mut out, sequence, NLM_F_REQUEST, boundary(ControlMessage::BatchBegin));
    let mut rest = requests.into_iter().peekable();
    while let Some(Request { flags, message }) = rest.next() {
        sequence = sequence.wrapping_add(1);
        let ack = if rest.peek().is_none() { NLM_F_ACK } else { 0 };
        let header = NetfilterHeader::new(family, 0, 0);
        let message = NetfilterMessage::new(header, message);
        push(&mut out, sequence, NLM_F_REQUEST | flags | ack, message);
    }
    let end = sequence.wrapping_add(1);
    push(&mut out, end, NLM_F_REQUEST, boundary(ControlMessage::BatchEnd));
    (out, sequence)
}

fn boundary(message: impl Into<NetfilterMessageInner>) -> NetfilterMessage {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES);
    NetfilterMessage::new(header, message)
}

fn push(out: &mut Vec<u8>, sequence: u32, flags: u16, message: NetfilterMessage) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let start = out.len();
    // Its attributes are padded, so the next message starts aligned.
    out.resize(start + message.buffer_len(), 0);
    message.serialize(&mut out[start..]);
}

/// What a datagram says of the transaction with these sequence numbers, if it says anything.
fn judge(datagram: &[u8], numbers: Numbers) -> Option<Result<(), Failure>> {
    Messages::new(datagram)
        .map_while(Result::ok)
        .filter(|message| message.kind() == NLMSG_ERROR)
        .find_map(|message| verdict(message, numbers))
}

fn verdict(message: Message<'_>, numbers: Numbers) -> Option<Result<(), Failure>> {
    let ack = Ack::parse(message).ok()?;
    let place = ack.request_sequence().wrapping_sub(numbers.first);
    let last = numbers.last.wrapping_sub(numbers.first);
    if place > last {
        return None;
    }
    match ack.errno() {
        0 if place == last => Some(Ok(())),
        0 => None,
        errno => Some(Err(Failure::Refused {
            // The begin itself is not a request.
            request: place.checked_sub(1).map(|place| place as usize),
            errno: Errno(errno),
            explanation: ack.text().map(str::to_owned),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{NLM_F_CAPPED, NLM_F_CREATE};
    use netlink_packet_netfilter::nftables::{TableAttribute, TableMessage};

    /// A begin and two requests.
    const NUMBERS: Numbers = Numbers { first: 8, last: 10 };

    const NFT_MSG_NEWTABLE: u16 = 10 << 8;
    const NFT_MSG_DELTABLE: u16 = NFT_MSG_NEWTABLE | 2;
    const NFNL_MSG_BATCH_BEGIN: u16 = 16;
    const NFNL_MSG_BATCH_END: u16 = 17;

    fn table() -> TableMessage {
        TableMessage { attributes: vec![TableAttribute::Name("t".to_owned())] }
    }

    /// An answer to the request with this number, as the kernel writes it for a socket with
    /// `NETLINK_CAP_ACK`: nlmsghdr, errno, the request's nlmsghdr.
    fn answer(sequence: u32, errno: i32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(36_u32.to_ne_bytes());
        bytes.extend(NLMSG_ERROR.to_ne_bytes());
        bytes.extend(NLM_F_CAPPED.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(77_u32.to_ne_bytes());
        bytes.extend((-errno).to_ne_bytes());
        bytes.extend(24_u32.to_ne_bytes());
        bytes.extend(NFT_MSG_NEWTABLE.to_ne_bytes());
        bytes.extend(NLM_F_REQUEST.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_batch_is_framed_and_only_its_last_request_asks_for_an_answer() {
        let requests = vec![
            Request { flags: NLM_F_CREATE, message: NfTablesMessage::NewTable(table()) },
            Request { flags: 0, message: NfTablesMessage::DeleteTable(table()) },
        ];
        let (datagram, last) = encode(NetfilterProtoFamily::IPv4, 8, requests);
        assert_eq!(last, 10);
        let messages: Vec<_> =
            Messages::new(&datagram).map(|message| message.expect("well formed")).collect();
        let seen: Vec<_> = messages
            .iter()
            .map(|message| (message.kind(), message.flags(), message.sequence()))
            .collect();
        let expected = [
            (NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 8),
            (NFT_MSG_NEWTABLE, NLM_F_REQUEST | NLM_F_CREATE, 9),
            (NFT_MSG_DELTABLE, NLM_F_REQUEST | NLM_F_ACK, 10),
            (NFNL_MSG_BATCH_END, NLM_F_REQUEST, 11),
        ];
        assert_eq!(seen, expected);
        // struct nfgenmsg: the subsystem in network order at both ends, the family between.
        assert_eq!(messages[0].body(), [0, 0, 0, 10]);
        assert_eq!(messages[1].body()[..4], [2, 0, 0, 0]);
        assert_eq!(messages[3].body(), [0, 0, 0, 10]);
    }

    #[test]
    fn only_the_last_success_is_success() {
        assert!(judge(&answer(9, 0), NUMBERS).is_none());
        assert!(matches!(judge(&answer(10, 0), NUMBERS), Some(Ok(()))));
    }

    #[test]
    fn refusals_name_their_request() {
        for (sequence, place) in [(8, None), (9, Some(0)), (10, Some(1))] {
            let Some(Err(Failure::Refused { request, errno, explanation })) =
                judge(&answer(sequence, 2), NUMBERS)
            else {
                panic!("not refused");
            };
            assert_eq!((request, errno, explanation), (place, Errno::ENOENT, None));
        }
    }

    #[test]
    fn answers_to_other_transactions_are_passed_over() {
        assert!(judge(&answer(7, 2), NUMBERS).is_none());
        assert!(judge(&answer(11, 2), NUMBERS).is_none());
        let mut both = answer(7, 2);
        both.extend(answer(10, 0));
        assert!(matches!(judge(&both, NUMBERS), Some(Ok(()))));
        assert!(judge(&[0xa5; 40], NUMBERS).is_none());
    }

    #[test]
    fn numbers_may_wrap() {
        let numbers = Numbers { first: u32::MAX, last: 1 };
        assert!(matches!(judge(&answer(1, 0), numbers), Some(Ok(()))));
        assert!(judge(&answer(u32::MAX, 1), numbers).is_some());
        assert!(judge(&answer(2, 0), numbers).is_none());
    }

    #[test]
    fn refusals_before_the_first_message_are_told_apart() {
        let refused =
            |request, errno| Error::from(Failure::Refused { request, errno, explanation: None });
        assert!(matches!(refused(None, Errno::EPERM), Error::NoCapability { .. }));
        assert!(matches!(refused(None, Errno::EOPNOTSUPP), Error::NoRuleSupport));
        assert!(matches!(
            refused(Some(0), Errno::EPERM),
            Error::Refused { errno: Errno::EPERM, .. }
        ));
    }
}
