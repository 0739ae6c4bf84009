//! The kernel's error numbers, as a type of this crate: so that no other crate's version is part of
//! its interface.

use std::fmt;
use std::io;

/// An error number of the kernel's on this processor (`asm/errno.h`), positive, as it answers a
/// request with it. Any number can come; those that nfnetlink answers with have names here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_structs, reason = "a number of the kernel's, whatever it is")]
pub struct Errno(
    /// The number.
    pub i32,
);

macro_rules! named {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self(nix::errno::Errno::$name as i32);)*

            /// The name that C has for it, if it is one of those named here.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

named! {
    /// The capability is missing, or the queue is another socket's.
    EPERM,
    /// No such packet, rule or table.
    ENOENT,
    /// The kernel has no memory.
    ENOMEM,
    /// Something that was asked for is in use.
    EBUSY,
    /// It is there already.
    EEXIST,
    /// No such queue, or no such interface.
    ENODEV,
    /// The kernel does not understand the request, often because a module is missing.
    EINVAL,
    /// No room is left.
    ENOSPC,
    /// A number is out of range.
    ERANGE,
    /// A part of the protocol is not there.
    EPROTO,
    /// The kernel does not know the operation or the flag.
    EOPNOTSUPP,
    /// The kernel has no such protocol.
    EPROTONOSUPPORT,
    /// No room in a buffer.
    ENOBUFS,
}

/// The name, or `errno 524`.
impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

/// The name and what it means: `ENOENT: No such file or directory`.
impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}: {}", nix::errno::Errno::from_raw(self.0).desc())
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_system() {
        let mut named = 0;
        for number in 1..1000 {
            if let Some(name) = Errno(number).name() {
                assert_eq!(format!("{:?}", nix::errno::Errno::from_raw(number)), name);
                named += 1;
            }
        }
        assert_eq!(named, 13);
    }

    #[test]
    fn texts_name_the_error() {
        assert_eq!(Errno::ENOENT.to_string(), "ENOENT: No such file or directory");
        assert_eq!(Errno(524).to_string(), "errno 524: Unknown errno");
        assert_eq!(io::Error::from(Errno::EPERM).kind(), io::ErrorKind::PermissionDenied);
    }
}
