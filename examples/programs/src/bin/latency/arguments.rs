//! What latency can be told.

use std::time::Duration;

use netfilterqueue_programs::{Options, Selection};

/// Measures how long packets wait in the queue, and how long for their verdict. They all pass.
///
/// The kernel stamps packets where they come in, so that the time in the queue is known at
/// prerouting, input and forward; packets that begin on this machine have no stamp.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    version,
    mut_arg("hook", |hook| hook.default_value("input")),
    after_help = "Example: latency --hook forward --interval 1s --work 50us"
)]
pub(crate) struct Arguments {
    /// How often to print
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = interval)]
    pub(crate) interval: Duration,

    /// Sleep so long for each packet: what would a program do to the traffic that needs as much?
    #[arg(short, long, default_value = "0s", value_name = "TIME", value_parser = time)]
    pub(crate) work: Duration,

    /// How many packets are judged before their verdicts leave
    #[arg(
        short,
        long,
        default_value_t = 64,
        value_name = "PACKETS",
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub(crate) batch: u16,

    /// Bytes of each packet that are copied to the program, as it is with one that looks at them
    #[arg(
        short,
        long,
        default_value_t = 65_531,
        value_name = "BYTES",
        value_parser = clap::value_parser!(u32).range(1..=65_531)
    )]
    pub(crate) copy: u32,

    /// Have super-packets cut into what is on the wire
    #[arg(long)]
    pub(crate) no_gso: bool,

    #[command(flatten)]
    pub(crate) selection: Selection,

    #[command(flatten)]
    pub(crate) options: Options,
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    (!time.is_zero()).then_some(time).ok_or_else(|| "no time at all".to_owned())
}

fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    (time <= Duration::from_secs(86_400)).then_some(time).ok_or_else(|| "over a day".to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_is_sound() {
        <super::Arguments as clap::CommandFactory>::command().debug_assert();
    }
}
