//! A netlink socket and its buffers, on bare system calls: only what the limit needs.

#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of_val, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::{ptr, slice};

/// The most packets that a receive call takes.
pub const SLOTS: usize = 64;

/// Room for any packet: 65,531 bytes and the attributes in front of them. Not a multiple of 4 KiB,
/// or all slots would start in the same few sets of the caches.
const SLOT_LEN: usize = 68 * 1024 + 192;

/// What the kernel takes of a socket's send buffer for itself.
const SEND_OVERHEAD: usize = 64;

/// A message for a packet with new bytes: headers, verdict, and the header of the payload.
pub const HEAD_LEN: usize = 36;

pub struct Socket {
    fd: OwnedFd,
    send_limit: usize,
}

impl Socket {
    pub fn open(receive_buffer: usize) -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor is new and ours.
        let fd = unsafe {
            let fd = check(libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 12));
            OwnedFd::from_raw_fd(fd?)
        };
        let mut socket = Self { fd, send_limit: 0 };
        let bytes = receive_buffer as libc::c_int;
        if socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_err() {
            socket.set(libc::SOL_SOCKET, libc::SO_RCVBUF, bytes)?;
        }
        socket.set(libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, 1)?;
        let mut granted: libc::c_int = 0;
        let mut len = size_of_val(&granted) as libc::socklen_t;
        // SAFETY: both pointers are to locals of the right size.
        check(unsafe {
            libc::getsockopt(
                socket.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDBUF,
                (&raw mut granted).cast(),
                &raw mut len,
            )
        })?;
        socket.send_limit = granted as usize - SEND_OVERHEAD;
        Ok(socket)
    }

    /// Binds a queue: whole packets, super-packets not cut, as many as the kernel holds.
    pub fn bind(&self, queue: u16) -> io::Result<()> {
        const GSO: u32 = 4;
        let mut message = vec![0_u8; 4];
        message.extend((3_u16 << 8 | 2).to_ne_bytes());
        message.extend((libc::NLM_F_REQUEST as u16 | libc::NLM_F_ACK as u16).to_ne_bytes());
        message.extend([0; 8]);
        message.extend([0, 0]);
        message.extend(queue.to_be_bytes());
        let mut attribute = |kind: u16, value: &[u8]| {
            message.extend((4 + value.len() as u16).to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend(value);
            message.resize(message.len().next_multiple_of(4), 0);
        };
        attribute(1, &[1, 0, 0, 0]);
        attribute(2, &[0, 0, 0xff, 0xfb, 2]);
        attribute(3, &131_072_u32.to_be_bytes());
        attribute(4, &GSO.to_be_bytes());
        attribute(5, &GSO.to_be_bytes());
        let len = message.len() as u32;
        message[..4].copy_from_slice(&len.to_ne_bytes());
        self.send(&message)?;
        let mut answer = [0; 512];
        let len = self.receive(&mut answer)?;
        let errno = answer[..len].get(16..20).ok_or(io::ErrorKind::InvalidData)?;
        match i32::from_ne_bytes(errno.try_into().expect("four bytes")) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }

    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and the length are those of a slice.
        check(unsafe {
            libc::send(self.fd.as_raw_fd(), message.as_ptr().cast(), message.len(), 0)
        })?;
        Ok(())
    }

    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer and the length are those of a slice.
        let len = check(unsafe {
            libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
        })?;
        Ok(len as usize)
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let len = size_of_val(&value) as libc::socklen_t;
        let value = (&raw const value).cast();
        // SAFETY: the pointer is to a local of that size.
        check(unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, value, len) })?;
        Ok(())
    }
}

/// Buffers for one receive call, and the system calls on them. Stays until the process ends.
pub struct Ring {
    /// As long as all slots. A pointer, because the kernel writes there by way of `headers`.
    bytes: *mut u8,
    /// Each points to a part, and that to a slot: written once, because after a call only the
    /// lengths and flags of messages have changed.
    headers: *mut libc::mmsghdr,
    heads: [[u8; HEAD_LEN]; SLOTS],
}

// SAFETY: what it points to is its own.
unsafe impl Send for Ring {}

impl Ring {
    pub fn new() -> Self {
        let bytes = vec![0; SLOTS * SLOT_LEN].leak().as_mut_ptr();
        let part = |at| {
            // SAFETY: so many slots were allocated.
            let slot = unsafe { bytes.add(at * SLOT_LEN) };
            libc::iovec { iov_base: slot.cast(), iov_len: SLOT_LEN }
        };
        let parts = (0..SLOTS).map(part).collect::<Vec<_>>().leak().as_mut_ptr();
        let header = |at| {
            // SAFETY: all zeroes are valid for this plain struct, and there are so many parts.
            let (mut header, part) = unsafe { (zeroed::<libc::mmsghdr>(), parts.add(at)) };
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header
        };
        let headers = (0..SLOTS).map(header).collect::<Vec<_>>().leak().as_mut_ptr();
        Self { bytes, headers, heads: [[0; HEAD_LEN]; SLOTS] }
    }

    /// A message of the last call.
    pub fn message(&mut self, at: usize) -> &mut [u8] {
        assert!(at < SLOTS, "so many slots there are");
        // SAFETY: the slot is ours, the kernel has written so many bytes there, and nobody else
        // has a reference while this one borrows the ring.
        unsafe {
            let len = (*self.headers.add(at)).msg_len as usize;
            slice::from_raw_parts_mut(self.bytes.add(at * SLOT_LEN), len.min(SLOT_LEN))
        }
    }

    /// Waits for a message and takes only that.
    pub fn receive_one(&mut self, socket: &Socket) -> io::Result<usize> {
        // SAFETY: there is at least one slot, and nothing refers to it meanwhile.
        unsafe {
            let len = socket.receive(slice::from_raw_parts_mut(self.bytes, SLOT_LEN))?;
            (*self.headers).msg_len = len as libc::c_uint;
        }
        Ok(1)
    }

    /// Waits for one message, then takes all that are there, up to `most`.
    pub fn receive_many(&mut self, socket: &Socket, most: usize) -> io::Result<usize> {
        // SAFETY: each header points to a part, and each part to a slot; all stay for ever, and
        // nothing refers to them meanwhile.
        let count = check(unsafe {
            libc::recvmmsg(
                socket.fd.as_raw_fd(),
                self.headers,
                most.min(SLOTS) as libc::c_uint,
                libc::MSG_WAITFORONE as _,
                ptr::null_mut(),
            )
        })?;
        Ok(count as usize)
    }

    /// Sends the bytes of the first `count` packets back from where they are, with the heads that
    /// `head` writes for them: one datagram, or more where the send buffer is too small for that.
    /// Returns how many datagrams.
    pub fn send_payloads(
        &mut self,
        socket: &Socket,
        payloads: &[(usize, usize)],
        head: impl Fn(usize, usize) -> [u8; HEAD_LEN],
    ) -> io::Result<u64> {
        // SAFETY: all zeroes are valid for this plain struct.
        let mut parts: [libc::iovec; 2 * SLOTS] = unsafe { zeroed() };
        let (mut calls, mut first, mut sum) = (0, 0, 0);
        for (at, &(start, len)) in payloads.iter().enumerate() {
            // The slot has room for the padding behind the payload.
            let padded = len.next_multiple_of(4);
            if sum + HEAD_LEN + padded > socket.send_limit {
                send_parts(socket, &parts[2 * first..2 * at])?;
                (calls, first, sum) = (calls + 1, at, 0);
            }
            self.heads[at] = head(at, len);
            assert!(at < SLOTS && start + padded <= SLOT_LEN, "it was received into a slot");
            // SAFETY: that is within the slot.
            let payload = unsafe { self.bytes.add(at * SLOT_LEN + start) };
            parts[2 * at] =
                libc::iovec { iov_base: self.heads[at].as_mut_ptr().cast(), iov_len: HEAD_LEN };
            parts[2 * at + 1] = libc::iovec { iov_base: payload.cast(), iov_len: padded };
            sum += HEAD_LEN + padded;
        }
        send_parts(socket, &parts[2 * first..2 * payloads.len()])?;
        Ok(calls + 1)
    }
}

/// The parts must point to memory that lives and is not written meanwhile.
fn send_parts(socket: &Socket, parts: &[libc::iovec]) -> io::Result<()> {
    // SAFETY: all zeroes are valid for this plain struct; the kernel reads the parts only.
    let sent = unsafe {
        let mut header: libc::msghdr = zeroed();
        header.msg_iov = parts.as_ptr().cast_mut();
        header.msg_iovlen = parts.len() as _;
        libc::sendmsg(socket.fd.as_raw_fd(), &raw const header, 0)
    };
    check(sent).map(|_| ())
}

/// Negative results of system calls are errors.
fn check<T: Default + PartialOrd>(result: T) -> io::Result<T> {
    if result < T::default() { Err(io::Error::last_os_error()) } else { Ok(result) }
}
