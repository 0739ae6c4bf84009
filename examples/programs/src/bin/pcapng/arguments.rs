//! What pcapng can be told.

use std::path::PathBuf;

use netfilterqueue_programs::{Options, Selection, mark};

/// Records what passes, with the verdict and the mark of each packet as its comment.
///
/// Packets pass, unless they are from or to a port given by --drop-port. The file opens in
/// Wireshark; `pcapng - | wireshark -k -i -` shows packets as they come.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    version,
    after_help = "Example: pcapng record.pcapng --hook forward --protocol udp --drop-port 53"
)]
pub(crate) struct Arguments {
    /// File to write, over what is in it; - is the standard output
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// End after so many packets
    #[arg(
        short = 'n',
        long,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub(crate) packets: Option<u64>,

    /// Record so many bytes of each packet, from the IP header on
    #[arg(
        short,
        long,
        default_value_t = 65_531,
        value_name = "BYTES",
        value_parser = clap::value_parser!(u32).range(1..=65_531)
    )]
    pub(crate) snaplen: u32,

    /// Drop packets of TCP and UDP from or to this port; may be given several times
    #[arg(long, value_name = "PORT")]
    pub(crate) drop_port: Vec<u16>,

    /// Give packets that pass this mark
    #[arg(short, long, value_name = "MARK", value_parser = mark)]
    pub(crate) mark: Option<u32>,

    #[command(flatten)]
    pub(crate) selection: Selection,

    #[command(flatten)]
    pub(crate) options: Options,
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_is_sound() {
        <super::Arguments as clap::CommandFactory>::command().debug_assert();
    }
}
