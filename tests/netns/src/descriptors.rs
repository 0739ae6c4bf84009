//! Descriptors handed from one process to another, or from one namespace to another.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::error::Error;

/// Data must go along, or the descriptor does not go.
const COMPANION: [u8; 1] = [0];

/// Sends a descriptor through a Unix socket; the sender keeps its own.
///
/// # Errors
///
/// [`Error::System`]: `EPIPE` if no one is at the other end.
pub fn send_fd(socket: &UnixStream, fd: impl AsFd) -> Result<(), Error> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    let is_in = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    debug_assert!(is_in, "there is room for one");
    let data = [IoSlice::new(&COMPANION)];
    let result = sendmsg(socket, &data, &mut ancillary, SendFlags::NOSIGNAL);
    result.map(drop).map_err(Error::of("sending a descriptor"))
}

/// Waits for a descriptor that [`send_fd`] sends. It is closed on exec.
///
/// # Errors
///
/// [`Error::System`] with `UnexpectedEof` if none comes, or this process has as many as it may.
pub fn receive_fd(socket: &UnixStream) -> Result<OwnedFd, Error> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut data = COMPANION;
    let mut data = [IoSliceMut::new(&mut data)];
    recvmsg(socket, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .map_err(Error::of("receiving a descriptor"))?;
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let missing = || io::Error::new(io::ErrorKind::UnexpectedEof, "none came");
    fd.ok_or_else(missing).map_err(Error::of("receiving a descriptor"))
}
