//! Options that all programs have.

use netfilterqueue::Hook;

/// Which packets a program gets, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Number of the queue
    #[arg(short, long, default_value_t = 1, value_name = "NUMBER", help_heading = "Queue")]
    pub queue: u16,

    /// Where on their way packets are queued: prerouting, input, forward, output or postrouting
    #[arg(long, default_value_t = Hook::OUTPUT, value_name = "HOOK", help_heading = "Queue")]
    pub hook: Hook,

    /// Let packets pass unseen while they are more than fit; without it they are dropped
    #[arg(long, help_heading = "Queue")]
    pub fail_open: bool,

    /// Leave the rules alone: somebody else has installed one that sends packets to the queue
    #[arg(long, help_heading = "Queue")]
    pub no_rule: bool,
}
