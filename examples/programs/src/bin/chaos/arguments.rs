//! What chaos can be told.

use std::time::Duration;

use netfilterqueue_programs::{Options, Selection, amount, mark};

/// Makes a network bad on purpose: loss, delay, jitter, duplicates, reordering, corruption, a low
/// rate.
///
/// Packets go through these in this order: loss, corruption, duplication, reordering, a link of
/// the given rate, and the delay. Without any of them packets just pass.
///
/// Held packets that begin on this machine count against the send buffer of their socket: a sender
/// blocks, or is told to try again, once some hundreds wait. Traffic that is forwarded or comes in
/// (--hook forward, --hook input) has no such limit.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    version,
    after_help = "Example: chaos --hook forward --loss 1 --delay 40ms --jitter 10ms --rate 250kB"
)]
pub(crate) struct Arguments {
    /// Chance that a packet is lost, in per cent
    #[arg(short, long, default_value_t = 0.0, value_parser = percent, value_name = "PERCENT")]
    pub(crate) loss: f64,

    /// Losses come in bursts of this many packets on average, instead of each by itself
    #[arg(long, requires = "loss", value_name = "PACKETS", value_parser = at_least_one)]
    pub(crate) burst: Option<f64>,

    /// How long each packet is held: 20ms, 1s
    #[arg(short, long, default_value = "0s", value_name = "TIME", value_parser = time)]
    pub(crate) delay: Duration,

    /// The delay is longer or shorter by up to this much; packets then overtake each other
    #[arg(short, long, default_value = "0s", value_name = "TIME", value_parser = time)]
    pub(crate) jitter: Duration,

    /// No packet overtakes another one because of the jitter
    #[arg(long)]
    pub(crate) keep_order: bool,

    /// Chance that a packet is sent twice, in per cent
    #[arg(short = 'D', long, default_value_t = 0.0, value_parser = percent, value_name = "PERCENT")]
    pub(crate) duplicate: f64,

    /// Chance that a packet lets others pass before it, in per cent
    #[arg(short, long, default_value_t = 0.0, value_parser = percent, value_name = "PERCENT")]
    pub(crate) reorder: f64,

    /// How many packets it lets pass
    #[arg(
        long,
        default_value_t = 1,
        value_name = "PACKETS",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub(crate) reorder_by: u32,

    /// How long it waits for them at most
    #[arg(long, default_value = "100ms", value_name = "TIME", value_parser = time)]
    pub(crate) reorder_wait: Duration,

    /// Chance that one bit of a packet's data is turned over, in per cent
    #[arg(short, long, default_value_t = 0.0, value_parser = percent, value_name = "PERCENT")]
    pub(crate) corrupt: f64,

    /// Give corrupted packets a right checksum, so that the damage reaches the receiving program
    #[arg(long, requires = "corrupt")]
    pub(crate) valid_checksums: bool,

    /// Bytes per second that get through, IP headers included: 125kB, 1MB
    #[arg(long, value_name = "BYTES", value_parser = amount)]
    pub(crate) rate: Option<u64>,

    /// Packets held at most; those beyond are dropped, or with --fail-open pass at once
    #[arg(
        long,
        default_value_t = 1000,
        value_name = "PACKETS",
        value_parser = clap::value_parser!(u32).range(1..=60_000)
    )]
    pub(crate) limit: u32,

    /// Repeat a run: the same seed decides the same for the same packets in the same order
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,

    /// The bit of the mark that tells copies from other packets, which therefore pass; a rule of
    /// your own (--no-rule) must let them
    #[arg(long, default_value = "0x40000000", value_name = "MARK", value_parser = bit)]
    pub(crate) copy_bit: u32,

    #[command(flatten)]
    pub(crate) selection: Selection,

    #[command(flatten)]
    pub(crate) options: Options,
}

impl Arguments {
    /// Whether packets are held at all, or only judged.
    pub(crate) fn holds(&self) -> bool {
        self.delay + self.jitter > Duration::ZERO
            || self.rate.is_some()
            || self.reorder > 0.0
            || self.duplicate > 0.0
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim_end_matches('%').parse().map_err(|_| "not a number".to_owned())?;
    let is_within = (0.0..=100.0).contains(&number);
    is_within.then_some(number).ok_or_else(|| "not between 0 and 100".to_owned())
}

fn at_least_one(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let is_one = number.is_finite() && number >= 1.0;
    is_one.then_some(number).ok_or_else(|| "less than one packet".to_owned())
}

/// An hour is more than any packet is held, and far from the end of the clock.
fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    (time <= Duration::from_secs(3600)).then_some(time).ok_or_else(|| "over an hour".to_owned())
}

fn bit(text: &str) -> Result<u32, String> {
    let number = mark(text)?;
    number.is_power_of_two().then_some(number).ok_or_else(|| "not a single bit".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn refusal(arguments: &[&str]) -> String {
        Arguments::try_parse_from([&["chaos"], arguments].concat()).unwrap_err().to_string()
    }

    #[test]
    fn amounts_are_written_as_people_write_them() {
        let arguments = "chaos --loss 2.5% --delay 20ms --rate 125kB/s --copy-bit 0x10";
        let arguments = Arguments::try_parse_from(arguments.split(' ')).unwrap();
        assert_eq!((arguments.loss, arguments.rate), (2.5, Some(125_000)));
        assert_eq!((arguments.delay, arguments.copy_bit), (Duration::from_millis(20), 16));
        assert!(arguments.holds());
    }

    #[test]
    fn senseless_amounts_are_refused_with_the_reason() {
        for (arguments, reason) in [
            (["--loss", "101"], "not between 0 and 100"),
            (["--loss", "NaN"], "not between 0 and 100"),
            (["--delay", "3 moons"], "moons"),
            (["--delay", "2h"], "over an hour"),
            (["--rate", "0"], "nothing would ever get through"),
            (["--copy-bit", "3"], "not a single bit"),
            (["--limit", "0"], "1..=60000"),
            (["--dport", "53"], "--protocol"),
            (["--protocol", "256"], "number below 256"),
        ] {
            let refusal = refusal(&arguments);
            assert!(refusal.contains(reason), "{arguments:?}: {refusal}");
        }
    }

    #[test]
    fn the_command_is_sound() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }
}
