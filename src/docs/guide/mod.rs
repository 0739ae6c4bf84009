//! How to build something on a netfilter queue, and what to do when it does not work.
//!
//! | chapter | answers |
//! | --- | --- |
//! | [`how_it_works`] | what happens to a packet from the rule to the verdict, and where it can be lost |
//! | [`settings`] | which defaults to change, when, and at what cost |
//! | [`gso`] | what super-packets are, and what it means to get them |
//! | [`fail_open_or_closed`] | what becomes of traffic when the program is away, slow or broken |
//! | [`editing`] | what can be changed in a packet, what is refused, and why |
//! | [`retaining`] | how to judge packets later, elsewhere, with a deadline |
//! | [`throughput`] | what costs time, and how to spend less of it |
//! | [`several_queues`] | one socket or many, threads, balancing, one queue per processor |
//! | [`containers`] | images with nothing else in them, capabilities, sidecars |
//! | [`namespaces`] | queues in other network namespaces, ordinary users |
//! | [`troubleshooting`] | "no packets arrive", "TCP is slow" and others: what to type, what it says |
//!
//! Output of commands is what they printed on Linux 6.18 in a private network namespace (`unshare
//! -n`), unless the text names another kernel. Times and rates have their source in
//! `benches/README.md` and `benches/results`.

/// A chapter: a page of its own.
macro_rules! chapters {
    ($($name:ident)*) => {$(
        pub mod $name {
            #![doc = include_str!(concat!(stringify!($name), ".md"))]

            #[allow(unused_imports, reason = "some chapters link to little")]
            use crate::*;
        }
    )*};
}

chapters! {
    how_it_works
    settings
    gso
    fail_open_or_closed
    editing
    retaining
    throughput
    several_queues
    containers
    namespaces
    troubleshooting
}
