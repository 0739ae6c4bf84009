//! What monitor can be told.

use std::num::NonZeroUsize;
use std::time::Duration;

use netfilterqueue_programs::{Options, Selection};

use crate::flows::Order;

/// Shows the flows that pass, and how the queue is, in the terminal. All packets pass.
///
/// Keys: q, Esc or Ctrl-C ends, s sorts by the next column, the space bar stops the picture.
#[derive(Debug, Clone, clap::Parser)]
#[command(version, after_help = "Example: monitor --hook forward --sort bytes")]
pub(crate) struct Arguments {
    /// How often the picture changes
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = interval)]
    pub(crate) interval: Duration,

    /// Print the table again and again, as lines, instead of filling the terminal
    #[arg(long)]
    pub(crate) plain: bool,

    /// Print the table once, after an interval, and end
    #[arg(long)]
    pub(crate) once: bool,

    /// Which flows stand above
    #[arg(short, long, default_value = "rate", value_enum)]
    pub(crate) sort: Order,

    /// How many flows are remembered; beyond that, the one silent for longest is forgotten
    #[arg(long, default_value = "4096", value_name = "NUMBER")]
    pub(crate) flows: NonZeroUsize,

    /// Forget flows that were silent for so long
    #[arg(long, default_value = "1m", value_name = "TIME", value_parser = interval)]
    pub(crate) idle: Duration,

    /// How many flows --plain and --once print
    #[arg(long, default_value_t = 20, value_name = "NUMBER")]
    pub(crate) rows: u16,

    #[command(flatten)]
    pub(crate) selection: Selection,

    #[command(flatten)]
    pub(crate) options: Options,
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let is_sensible = (Duration::from_millis(10)..=Duration::from_secs(86_400)).contains(&time);
    is_sensible.then_some(time).ok_or_else(|| "not between 10ms and a day".to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_is_sound() {
        <super::Arguments as clap::CommandFactory>::command().debug_assert();
    }
}
