//! What ratelimit can be told.

use std::num::NonZeroUsize;

use netfilterqueue_programs::{Options, Selection, amount, mark};

/// Lets each source send so much per second, and drops or marks what is beyond.
///
/// Every source address has a bucket of tokens, which fills at the rate and holds a burst; a packet
/// takes one token (or as many as it has bytes) or is beyond the limit.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    version,
    mut_arg("hook", |hook| hook.default_value("input")),
    after_help = "Example: ratelimit --packets 50 --burst 100 --protocol udp --dport 53"
)]
#[command(group = clap::ArgGroup::new("rate").required(true).args(["packets", "bytes"]))]
pub(crate) struct Arguments {
    /// Packets per second that a source may send
    #[arg(
        short = 'n',
        long,
        value_name = "PACKETS",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000_000)
    )]
    pub(crate) packets: Option<u64>,

    /// Bytes per second that a source may send, IP headers included: 125kB, 1MB
    #[arg(short, long, value_name = "BYTES", value_parser = amount)]
    pub(crate) bytes: Option<u64>,

    /// What a bucket holds, in packets, or in bytes with --bytes: what a source that was silent may
    /// send at once. Without it, what a second brings (and room for a packet)
    #[arg(long, value_name = "AMOUNT", value_parser = amount)]
    pub(crate) burst: Option<u64>,

    /// Addresses of IPv4 that begin with the same so many bits share a bucket
    #[arg(
        long,
        default_value_t = 32,
        value_name = "BITS",
        value_parser = clap::value_parser!(u8).range(0..=32)
    )]
    pub(crate) prefix4: u8,

    /// Addresses of IPv6 that begin with the same so many bits share a bucket; a host may well have
    /// 64 bits for itself
    #[arg(
        long,
        default_value_t = 64,
        value_name = "BITS",
        value_parser = clap::value_parser!(u8).range(0..=128)
    )]
    pub(crate) prefix6: u8,

    /// How many sources are remembered; beyond that, the one not heard of for longest is forgotten,
    /// and has a full bucket when it comes again
    #[arg(long, default_value = "65536", value_name = "NUMBER")]
    pub(crate) sources: NonZeroUsize,

    /// Give what is beyond the limit this mark and let it pass, instead of dropping it
    #[arg(short, long, value_name = "MARK", value_parser = mark)]
    pub(crate) mark: Option<u32>,

    #[command(flatten)]
    pub(crate) selection: Selection,

    #[command(flatten)]
    pub(crate) options: Options,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn refusal(arguments: &[&str]) -> String {
        Arguments::try_parse_from([&["ratelimit"], arguments].concat()).unwrap_err().to_string()
    }

    #[test]
    fn the_command_is_sound() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
        let arguments = Arguments::try_parse_from(["ratelimit", "--bytes", "1MB"]).unwrap();
        assert_eq!(arguments.bytes, Some(1_000_000));
        assert_eq!(arguments.options.hook, netfilterqueue::Hook::INPUT);
    }

    #[test]
    fn senseless_limits_are_refused() {
        for (arguments, reason) in [
            (&[][..], "required"),
            (&["--packets", "1", "--bytes", "1"], "cannot be used with"),
            (&["--packets", "0"], "0 is not in 1.."),
            (&["--bytes", "0"], "nothing would ever get through"),
            (&["--packets", "1", "--sources", "0"], "--sources"),
            (&["--packets", "1", "--prefix6", "129"], "129 is not in 0..=128"),
        ] {
            let refusal = refusal(arguments);
            assert!(refusal.contains(reason), "{arguments:?}: {refusal}");
        }
    }
}
