//! Guides. There is nothing here but documentation.
//!
//! - [`guide`]: how it all works, what to choose, and what to do when it does not work
//! - [`recipes`]: short programs for everyday tasks
//! - For those who come from another library, what its calls are called here and what is different:
//!   [`from_python_netfilterqueue`], [`from_nfq`], [`from_go_nfqueue`], [`from_libnetfilter_queue`]

pub mod guide;
pub mod recipes;

pub mod from_go_nfqueue {
    #![doc = include_str!("from_go_nfqueue.md")]
    #![doc = include_str!("defaults.md")]

    use crate::*;
}

pub mod from_libnetfilter_queue {
    #![doc = include_str!("from_libnetfilter_queue.md")]
    #![doc = include_str!("defaults.md")]

    use crate::*;
}

pub mod from_nfq {
    #![doc = include_str!("from_nfq.md")]
    #![doc = include_str!("defaults.md")]

    use crate::*;
}

pub mod from_python_netfilterqueue {
    #![doc = include_str!("from_python_netfilterqueue.md")]
    #![doc = include_str!("defaults.md")]

    use crate::*;
}
