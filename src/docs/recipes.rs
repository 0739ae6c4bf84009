//! Short programs for everyday tasks.
//!
//! In a checkout each can be run by its name, `cargo run --example recipes -- mark_by_port 1`, and
//! has a test that runs it on real packets. Some use the crates `etherparse`, `nix` and
//! `signal-hook`. Where a recipe does not bring its rule along, have one that sends packets to its
//! queue:
//!
//! ```text
//! iptables -I INPUT -p udp -j NFQUEUE --queue-num 1 --queue-bypass
//! ```
//!
//! # Mark packets by port
//!
//! A mark lives as long as the packet and never leaves the host. Later rules match it (`meta mark`,
//! `-m mark`), and so does policy routing (`ip rule fwmark`) where the routing decision comes
//! later, as it does behind prerouting and output. Parsing headers is left to another crate, here
//! `etherparse`.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/mark_by_port.rs"), "```")]
//!
//! # Block a port
//!
//! The sender is not told, so its connection times out. Where it should be told, set a mark instead
//! and have a later rule reject what carries it. Where later packets of a connection need not come
//! up at all, see [flow bypass](#decide-about-whole-flows).
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/block_port.rs"), "```")]
//!
//! # Rewrite the TTL
//!
//! The IPv4 header checksum is set with the verdict ([`EditMode::Complete`]). What cannot be
//! edited, such as a packet that was copied only in part, [`EditError`] explains.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/rewrite_ttl.rs"), "```")]
//!
//! # Measure latency by time stamps
//!
//! The time between the packet's arrival and its turn in this program. The kernel stamps packets
//! only while a socket on the host wants them stamped, so the recipe opens one.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/latency.rs"), "```")]
//!
//! # Tell senders by their hardware addresses
//!
//! There is no address at the output hook, on links without addresses, and for packets that this
//! host makes.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/hardware_addresses.rs"), "```")]
//!
//! # Analyse packets in another thread
//!
//! A retained packet owns a copy of its bytes and is judged by whoever has it, in any order. The
//! kernel goes on holding it, which is why the queue is longer here than by default.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/analyse_in_a_thread.rs"), "```")]
//!
//! # Give retained packets a deadline
//!
//! If the other thread takes too long, the queue's default verdict is given at the deadline by the
//! thread that receives. The late verdict fails with [`Error::Expired`], so no packet is judged
//! twice.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/deadline.rs"), "```")]
//!
//! # Wait for several queues in an event loop
//!
//! A queue's descriptor is readable when packets wait, its stop handle's when it is told to stop or
//! has something else to do. An event loop of another kind waits for the same two;
//! `examples/event_loops` in a checkout has programs with tokio's `AsyncFd`, async-io, mio and
//! `epoll`. For tokio there is also the feature of that name. Do not run the loop with queues that
//! block, and receive once before the first wait.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/select_loop.rs"), "```")]
//!
//! # Two queues at once
//!
//! One socket and one thread for both: [`Packet::queue`] tells them apart. For a thread each, see
//! the next recipe.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/two_queues.rs"), "```")]
//!
//! # Balance packets over several queues, with a thread each
//!
//! The kernel chooses the queue by a hash of the addresses, so that a connection stays in one.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/balance.rs"), "```")]
//!
//! # Judge the packets of another network namespace
//!
//! Queue numbers are per network namespace, and a socket belongs for good to the one it was opened
//! in. How the socket travels is up to you: over a Unix socket (`SCM_RIGHTS`), or as the standard
//! input of a program that is started inside. An interface's name can only be told for queues that
//! were bound inside.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/other_namespace.rs"), "```")]
//!
//! # Copy less of each packet
//!
//! What is not copied costs nothing. A packet of which not all was copied can be judged and marked,
//! not edited.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/copy_modes.rs"), "```")]
//!
//! # Find and replace in UDP
//!
//! Lengths and checksums follow whatever the new length is. For TCP this works only with texts of
//! the same length, because sequence numbers count bytes.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/replace_in_udp.rs"), "```")]
//!
//! # Decide about whole flows
//!
//! Most flows need a look at their first packets only. The rules that this installs remember the
//! decision, and the kernel carries it out. See [`rules`](crate::rules#flow-bypass) for what counts
//! as a flow.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/flow_bypass.rs"), "```")]
//!
//! # End without losing packets, at a signal
//!
//! Neither signals nor their handlers end [`Queue::run`]. Whoever wants that uses a stop handle,
//! from a thread that waits for signals as here, or in the handler itself. Here with the crate
//! `signal-hook`.
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/drain_at_shutdown.rs"), "```")]
//!
//! # Watch the counters
//!
//! A [`StatsHandle`] reads them while the queue runs elsewhere. Those of the kernel are in
//! [`Queue::kernel_stats`].
//!
#![doc = concat!("```no_run\n", include_str!("../../examples/recipes/monitor.rs"), "```")]

use crate::*;
