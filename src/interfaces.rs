//! Names of network interfaces, asked of the kernel where the queue is.
//!
//! One request (`RTM_GETLINK`) and one attribute of its answer are all that is needed of rtnetlink,
//! which does not pay for a crate that knows the rest of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use byteorder::{ByteOrder, NativeEndian};
use netfilterqueue_protocol::attribute::Attributes;
use netfilterqueue_protocol::constants::NLM_F_REQUEST;
use netlink_sys::protocols::NETLINK_ROUTE;

/// A name is asked for again after this long: interfaces can be renamed, and their indexes used
/// again.
const FRESH: Duration = Duration::from_secs(1);

// linux/rtnetlink.h and linux/if_link.h

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;

/// `sizeof(struct nlmsghdr)`, and `sizeof(struct ifinfomsg)`.
const HEADER_LEN: usize = 16;
const IFINFOMSG_LEN: usize = 16;
const REQUEST_LEN: u32 = 32;

/// The kernel's port id: any program with `CAP_NET_ADMIN` can send here too.
const KERNEL_PORT: u32 = 0;

/// More names than this are forgotten, so that indexes that come and go do not pile up.
const NAMES_MAX: usize = 1_024;

/// The name is one of the answer's first attributes; what is cut off is not needed.
const ANSWER_LEN: usize = 1024;

/// Finds names by index, in the network namespace it was made in.
#[derive(Debug)]
pub(crate) struct Interfaces {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// `None` where there is nobody to ask.
    socket: Option<Socket>,
    names: HashMap<u32, (Instant, Option<Arc<str>>)>,
}

#[derive(Debug)]
struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
}

impl Interfaces {
    /// For the calling thread's network namespace.
    pub(crate) fn here() -> Self {
        let socket = netlink_sys::Socket::new(NETLINK_ROUTE).ok();
        // The kernel has answered when a request is sent: there is nothing to wait for.
        let socket = socket.filter(|socket| socket.set_non_blocking(true).is_ok());
        let socket = socket.map(|socket| Socket { socket, sequence: 0 });
        Self { known: Mutex::new(Known { socket, names: HashMap::new() }) }
    }

    /// For a namespace that is out of reach: no index has a name.
    pub(crate) fn unknown() -> Self {
        Self { known: Mutex::default() }
    }

    /// The name of the interface with this index; `None` if there is none.
    pub(crate) fn name(&self, index: u32) -> Option<Arc<str>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { socket, names } = &mut *known;
        let now = Instant::now();
        if let Some((asked, name)) = names.get(&index)
            && now.duration_since(*asked) < FRESH
        {
            return name.clone();
        }
        // Without an answer there is no name for as long: where asking is forbidden it would cost
        // each time.
        let name = socket.as_mut()?.ask(index);
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        names.insert(index, (now, name.clone()));
        name
    }
}

impl Socket {
    fn ask(&mut self, index: u32) -> Option<Arc<str>> {
        const NO_FLAGS: i32 = 0;
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&request(self.sequence, index), NO_FLAGS).ok()?;
        let mut answer = [0; ANSWER_LEN];
        loop {
            let (length, sender) = self.socket.recv_from(&mut &mut answer[..], NO_FLAGS).ok()?;
            if sender.port_number() != KERNEL_PORT {
                continue;
            }
            let answer = answer.get(..length).unwrap_or(&answer);
            if sequence(answer) == Some(self.sequence) {
                return name(answer);
            }
        }
    }
}

/// `struct nlmsghdr` and `struct ifinfomsg`, both in host order.
fn request(sequence: u32, index: u32) -> [u8; REQUEST_LEN as usize] {
    let mut request = [0; REQUEST_LEN as usize];
    NativeEndian::write_u32(&mut request[0..4], REQUEST_LEN);
    NativeEndian::write_u16(&mut request[4..6], RTM_GETLINK);
    NativeEndian::write_u16(&mut request[6..8], NLM_F_REQUEST);
    NativeEndian::write_u32(&mut request[8..12], sequence);
    NativeEndian::write_u32(&mut request[20..24], index);
    request
}

fn sequence(answer: &[u8]) -> Option<u32> {
    answer.get(8..12).map(NativeEndian::read_u32)
}

/// The name in an answer; `None` if it is a refusal.
fn name(answer: &[u8]) -> Option<Arc<str>> {
    if answer.get(4..6).map(NativeEndian::read_u16) != Some(RTM_NEWLINK) {
        return None;
    }
    let attributes = Attributes::new(answer.get(HEADER_LEN + IFINFOMSG_LEN..)?);
    let name = attributes.last_of(IFLA_IFNAME)?.value();
    let name = name.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use netfilterqueue_protocol::attribute;

    fn answer(kind: u16, attributes: &[u8]) -> Vec<u8> {
        let mut answer = request(7, 3).to_vec();
        NativeEndian::write_u16(&mut answer[4..6], kind);
        answer.extend_from_slice(attributes);
        answer
    }

    #[test]
    fn the_name_is_read_even_where_the_answer_is_cut_off() {
        let mut attributes = Vec::new();
        attribute::push(&mut attributes, IFLA_IFNAME, b"eth0\0");
        attribute::push(&mut attributes, 99, &[0; 40]);
        let answer = answer(RTM_NEWLINK, &attributes);
        for length in HEADER_LEN + IFINFOMSG_LEN + 12..=answer.len() {
            assert_eq!(name(&answer[..length]).as_deref(), Some("eth0"), "{length} bytes");
        }
        for length in 0..HEADER_LEN + IFINFOMSG_LEN + 9 {
            assert_eq!(name(&answer[..length]), None, "{length} bytes");
        }
        assert_eq!(sequence(&answer), Some(7));
    }

    #[test]
    fn a_refusal_is_no_name() {
        assert_eq!(name(&answer(2, &[0xa5; 40])), None);
    }

    #[test]
    fn loopback_has_index_1_everywhere() {
        let interfaces = Interfaces::here();
        assert_eq!(interfaces.name(1).as_deref(), Some("lo"));
        assert_eq!(interfaces.name(0x7fff_fff0), None);
        assert_eq!(interfaces.name(1).as_deref(), Some("lo"), "from memory");
        assert_eq!(Interfaces::unknown().name(1), None);
    }
}
