//! Private network namespaces for the tests and examples of netfilterqueue: made, wired up and
//! taken away from Rust, as root or, where the host permits user namespaces, as an ordinary user.
//!
//! A namespace belongs to threads, not to the process: tests that run in parallel can each have
//! their own, and the kernel takes a namespace away with all its links and rules when the last
//! thread, socket and [`Namespace`] that hold it are gone.
//!
//! ```no_run
//! use netfilterqueue_netns::{Namespace, enter_user_namespace};
//!
//! // First thing in main, while the process has one thread.
//! enter_user_namespace()?;
//!
//! let client = Namespace::new()?;
//! let server = Namespace::new()?;
//! client.veth("eth0", &server, "eth0")?;
//! client.add_address("eth0", [10, 0, 0, 1].into(), 24)?;
//! server.add_address("eth0", [10, 0, 0, 2].into(), 24)?;
//! let listener = server.run(|| std::net::TcpListener::bind("10.0.0.2:80"));
//! # let _ = listener;
//! # Ok::<(), netfilterqueue_netns::Error>(())
//! ```
//!
//! Its tests are `tests/live/netns.rs`, run by `cargo test --test live netns`.

#![forbid(unsafe_code)]

mod connections;
mod descriptors;
mod error;
mod links;
mod namespace;
mod resident;
mod rtnetlink;
mod user;

pub use descriptors::{receive_fd, send_fd};
pub use error::Error;
pub use namespace::Namespace;
pub use resident::{Resident, stay_if_resident};
pub use user::{enter_private, enter_user_namespace};
