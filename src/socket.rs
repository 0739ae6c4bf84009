//! The netlink socket: the only system calls of the crate. Knows bytes, not their meaning.

use std::array;
use std::cell::RefCell;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread::{self, LocalKey};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, SndBuf, SndBufForce};
use nix::sys::socket::{
    MsgFlags, MultiHeaders, NetlinkAddr, SockaddrLike, bind, connect, getsockname, getsockopt,
    recvmmsg, sendmsg, setsockopt,
};
use socket2::{Protocol, SockRef};

use crate::error::{Error, Operation};

/// Most datagrams that one system call receives.
pub(crate) const RECEIVE_MAX: usize = 64;

/// So many where there is nearly always one, with less preparation.
pub(crate) const RECEIVE_FEW: usize = 4;

/// The kernel adds this much to a datagram before it compares with `SO_SNDBUF`
/// (`SKB_WITH_OVERHEAD` in `netlink_sendmsg`: length above `sk_sndbuf - 32` is `EMSGSIZE`).
const SEND_OVERHEAD: usize = 32;

/// Asked for where the host's default is less: room for an edited packet of the greatest length.
const SEND_BUFFER: usize = 128 << 10;

/// The receive buffer that is asked for unless told otherwise.
pub(crate) const RECEIVE_BUFFER: usize = 8 << 20;

/// How often and after how long a datagram is sent again for which the kernel had no memory.
const SEND_RETRIES: u32 = 50;
const SEND_RETRY_AFTER: Duration = Duration::from_millis(1);

/// What is wrong with a socket that cannot be used.
const NOT_NETFILTER: &str = "the descriptor is not a NETLINK_NETFILTER socket";

/// The port id of the kernel itself.
const KERNEL_PORT: u32 = 0;

thread_local! {
    /// The message headers of `recvmmsg`. They hold raw pointers, so they cannot move to another
    /// thread with a batch, and are made once per thread instead.
    static HEADERS: RefCell<MultiHeaders<()>> =
        RefCell::new(MultiHeaders::preallocate(RECEIVE_MAX, None));

    /// The same with room for the senders.
    static HEADERS_WITH_SENDERS: RefCell<MultiHeaders<NetlinkAddr>> =
        RefCell::new(MultiHeaders::preallocate(RECEIVE_MAX, None));
}

/// What is known of one received datagram.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Received {
    /// Bytes that were written into the buffer.
    pub(crate) length: usize,
    pub(crate) arrival: Arrival,
}

/// How a datagram arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Arrival {
    /// Whole, from the kernel.
    #[default]
    Whole,
    /// From the kernel, but it was longer than the buffer (`MSG_TRUNC`); its tail is lost.
    Truncated,
    /// Not from the kernel: any program with `CAP_NET_ADMIN` can send here too.
    Foreign,
}

/// Why [`Socket::wait`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// There is something to receive (or an error to fetch).
    Readable,
    /// Only the wake-up descriptor is readable.
    Woken,
    /// Time is up, or a signal came.
    Nothing,
}

/// An open `NETLINK_NETFILTER` socket with its own port id.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    port: u32,
    send_limit: usize,
    /// Only the kernel can send to it.
    is_connected: bool,
}

/// Opens a socket for [`QueueBuilder::bind_on`](crate::QueueBuilder::bind_on) in the calling
/// thread's network namespace, with the options that a queue needs and a receive buffer of 8 MiB:
/// to be passed to another process over a Unix socket.
///
/// # Errors
///
/// [`Error::NoQueueSupport`] if the kernel has no nfnetlink, [`Error::System`] if it cannot be
/// opened.
pub fn open_socket() -> Result<OwnedFd, Error> {
    let socket = Socket::open()?;
    socket.set_receive_buffer(RECEIVE_BUFFER)?;
    Ok(socket.fd)
}

impl Socket {
    /// Opens a socket and binds it to a port id of its own, in the calling thread's network
    /// namespace.
    ///
    /// `NETLINK_NO_ENOBUFS` is set: without it one overrun makes the kernel drop everything until
    /// the receive buffer is empty. `NETLINK_CAP_ACK` and `NETLINK_EXT_ACK` make refusals short and
    /// explained; kernels before 4.3 and 4.12 lack them, which changes nothing but the text.
    ///
    /// It is connected to the kernel, which refuses other senders from then on (`ECONNREFUSED`, in
    /// `netlink_getsockbyportid`). So nobody's address has to be copied out and looked at with each
    /// packet. What came before is thrown away, but for a datagram whose sender was let through and
    /// held up for all that time.
    pub(crate) fn open() -> Result<Self, Error> {
        let failed = |call| move |error| Error::System { operation: Operation::Open, call, error };
        let mut socket =
            netlink_sys::Socket::new(NETLINK_NETFILTER).map_err(|source| {
                match source.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT) => Error::NoQueueSupport,
                    _ => failed("socket(AF_NETLINK)")(source),
                }
            })?;
        socket.bind_auto().map_err(failed("bind"))?;
        socket.set_no_enobufs(true).map_err(failed("setsockopt(NETLINK_NO_ENOBUFS)"))?;
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        // A duplicate is the same socket, and netlink-sys gives its own descriptor away to no safe
        // code.
        let fd = socket.as_fd().try_clone_to_owned().map_err(failed("fcntl(F_DUPFD)"))?;
        let kernel = NetlinkAddr::new(KERNEL_PORT, 0);
        // Where a sandbox does not permit it, the senders are looked at.
        let is_connected = connect(fd.as_raw_fd(), &kernel).is_ok();
        let socket = Self { is_connected, ..Self::adopt(fd)? };
        if is_connected {
            let failed = Error::system(Operation::Open, "recvmmsg");
            socket.discard_waiting().map_err(failed)?;
        }
        Ok(socket)
    }

    /// Throws away what others sent before the socket was connected.
    fn discard_waiting(&self) -> nix::Result<()> {
        let mut byte = [0];
        loop {
            let received =
                self.receive([byte.as_mut_slice()].into_iter(), &mut [Received::default()], false);
            match received {
                Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Takes over a socket that was opened elsewhere. Its options stay as they are; it gets a port
    /// id if it has none.
    pub(crate) fn adopt(fd: OwnedFd) -> Result<Self, Error> {
        let failed = |call| Error::system::<Errno>(Operation::Open, call);
        if SockRef::from(&fd).protocol().ok().flatten()
            != i32::try_from(NETLINK_NETFILTER).ok().map(Protocol::from)
        {
            return Err(Error::InvalidQueue(NOT_NETFILTER));
        }
        let port = |fd: &OwnedFd| match getsockname::<NetlinkAddr>(fd.as_raw_fd()) {
            Ok(address) => Ok(address.pid()),
            Err(Errno::EINVAL | Errno::ENOTSOCK) => Err(Error::InvalidQueue(NOT_NETFILTER)),
            Err(errno) => Err(failed("getsockname")(errno)),
        };
        if port(&fd)? == KERNEL_PORT {
            bind(fd.as_raw_fd(), &NetlinkAddr::new(KERNEL_PORT, 0)).map_err(failed("bind"))?;
        }
        let port = port(&fd)?;
        if getsockopt(&fd, SndBuf).is_ok_and(|bytes| bytes < SEND_BUFFER) {
            // What cannot be had here only makes datagrams shorter.
            let _ = setsockopt(&fd, SndBufForce, &SEND_BUFFER)
                .or_else(|_| setsockopt(&fd, SndBuf, &SEND_BUFFER));
        }
        let send_buffer = getsockopt(&fd, SndBuf).map_err(failed("getsockopt"))?;
        let send_limit = send_buffer.saturating_sub(SEND_OVERHEAD);
        Ok(Self { fd, port, send_limit, is_connected: false })
    }

    /// Asks for a receive buffer of `bytes`, beyond the host's limit where that is permitted
    /// (`SO_RCVBUFFORCE` needs `CAP_NET_ADMIN` in the initial user namespace), else up to it.
    pub(crate) fn set_receive_buffer(&self, bytes: usize) -> Result<(), Error> {
        // The option is an `int`, to which nix cuts the number down.
        let bytes = bytes.min(i32::MAX as usize);
        setsockopt(&self.fd, RcvBufForce, &bytes)
            .or_else(|_| setsockopt(&self.fd, RcvBuf, &bytes))
            .map_err(Error::system(Operation::Open, "setsockopt(SO_RCVBUF)"))
    }

    /// Gives a socket that was opened elsewhere a receive buffer of at least `bytes`, where that is
    /// permitted. The host's limit does not hold for whoever opened it, and going by it could make
    /// the buffer smaller.
    pub(crate) fn grow_receive_buffer(&self, bytes: usize) -> Result<(), Error> {
        let bytes = bytes.min(i32::MAX as usize);
        if self.receive_buffer()? / 2 < bytes {
            let _ = setsockopt(&self.fd, RcvBufForce, &bytes);
        }
        Ok(())
    }

    /// The receive buffer as the kernel counts it, which is twice what was granted.
    pub(crate) fn receive_buffer(&self) -> Result<usize, Error> {
        getsockopt(&self.fd, RcvBuf)
            .map_err(Error::system(Operation::Open, "getsockopt(SO_RCVBUF)"))
    }

    /// The longest datagram that can be sent.
    pub(crate) const fn send_limit(&self) -> usize {
        self.send_limit
    }

    /// The socket's port id: what the kernel checks the owner of a queue by.
    pub(crate) const fn port(&self) -> u32 {
        self.port
    }

    /// Receives up to [`RECEIVE_MAX`] waiting datagrams, one per buffer: one `recvmmsg`. Returns
    /// how many. Where nothing waits, fails with `EAGAIN`; if it `may_block`, it waits for the
    /// first, unless the socket is in non-blocking mode.
    pub(crate) fn receive<'a>(
        &self,
        buffers: impl Iterator<Item = &'a mut [u8]>,
        received: &mut [Received],
        may_block: bool,
    ) -> nix::Result<usize> {
        let flags = if may_block { MsgFlags::MSG_WAITFORONE } else { MsgFlags::MSG_DONTWAIT };
        if self.is_connected {
            self.receive_with(&HEADERS, |_| true, buffers, received, flags)
        } else {
            let is_kernel = |sender: Option<NetlinkAddr>| {
                sender.is_some_and(|sender| sender.pid() == KERNEL_PORT)
            };
            self.receive_with(&HEADERS_WITH_SENDERS, is_kernel, buffers, received, flags)
        }
    }

    fn receive_with<'a, S: SockaddrLike + Copy>(
        &self,
        headers: &'static LocalKey<RefCell<MultiHeaders<S>>>,
        is_kernel: impl Fn(Option<S>) -> bool,
        buffers: impl Iterator<Item = &'a mut [u8]>,
        received: &mut [Received],
        flags: MsgFlags,
    ) -> nix::Result<usize> {
        let mut buffers = Some(buffers);
        let shared = headers.try_with(|headers| {
            let buffers = buffers.take()?;
            let headers = &mut headers.borrow_mut();
            Some(if received.len() <= RECEIVE_FEW {
                self.receive_up_to::<_, RECEIVE_FEW>(headers, &is_kernel, buffers, received, flags)
            } else {
                self.receive_up_to::<_, RECEIVE_MAX>(headers, &is_kernel, buffers, received, flags)
            })
        });
        match (shared, buffers) {
            (Ok(Some(result)), _) => result,
            // The thread is ending and its headers are gone before what still wants to receive.
            (_, Some(buffers)) => {
                let mut headers = MultiHeaders::preallocate(RECEIVE_MAX, None);
                let headers = &mut headers;
                self.receive_up_to::<_, RECEIVE_MAX>(headers, &is_kernel, buffers, received, flags)
            }
            (_, None) => Err(Errno::EAGAIN),
        }
    }

    /// `MOST` is as many as are received at most.
    fn receive_up_to<'a, S: SockaddrLike + Copy, const MOST: usize>(
        &self,
        headers: &mut MultiHeaders<S>,
        is_kernel: &impl Fn(Option<S>) -> bool,
        buffers: impl Iterator<Item = &'a mut [u8]>,
        received: &mut [Received],
        flags: MsgFlags,
    ) -> nix::Result<usize> {
        let mut slices: [[IoSliceMut<'_>; 1]; MOST] =
            array::from_fn(|_| [IoSliceMut::new(&mut [])]);
        let mut count = 0;
        for (slice, buffer) in slices.iter_mut().zip(buffers.take(received.len())) {
            *slice = [IoSliceMut::new(buffer)];
            count += 1;
        }
        let slices = slices[..count].iter_mut();
        let results = recvmmsg(self.fd.as_raw_fd(), headers, slices, flags, None)?;
        let mut count = 0;
        for (result, received) in results.zip(received) {
            let arrival = if !is_kernel(result.address) {
                Arrival::Foreign
            } else if result.flags.contains(MsgFlags::MSG_TRUNC) {
                Arrival::Truncated
            } else {
                Arrival::Whole
            };
            *received = Received { length: result.bytes, arrival };
            count += 1;
        }
        Ok(count)
    }

    /// Sends one datagram, gathered from `parts`, to the kernel: one `sendmsg`.
    ///
    /// The address is explicit: without one the kernel would also check the capability of whoever
    /// opened the socket. When the kernel has no memory for it (`ENOBUFS`), it is sent again for up
    /// to 50 ms.
    pub(crate) fn send(&self, parts: &[IoSlice<'_>]) -> nix::Result<()> {
        let kernel = NetlinkAddr::new(KERNEL_PORT, 0);
        let mut retries = SEND_RETRIES;
        loop {
            match sendmsg(self.fd.as_raw_fd(), parts, &[], MsgFlags::empty(), Some(&kernel)) {
                // A netlink datagram is taken whole or not at all.
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS | Errno::ENOMEM) if retries > 0 => {
                    retries -= 1;
                    thread::sleep(SEND_RETRY_AFTER);
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Waits until something can be received or `wake` is readable: one `poll`. Without `timeout`,
    /// for as long as it takes.
    pub(crate) fn wait(
        &self,
        wake: Option<BorrowedFd<'_>>,
        timeout: Option<Duration>,
    ) -> nix::Result<Wake> {
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)
        });
        // Without a wake-up descriptor the socket stands in for it and the second answer is not
        // read.
        let wake_fd = wake.unwrap_or_else(|| self.fd.as_fd());
        let mut fds = [
            PollFd::new(self.fd.as_fd(), PollFlags::POLLIN),
            PollFd::new(wake_fd, PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(Wake::Nothing),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        Ok(if ready(&fds[0]) { Wake::Readable } else { Wake::Woken })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
