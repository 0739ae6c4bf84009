//! Options that all programs have, and those that choose packets.

use bytesize::ByteSize;
use netfilterqueue::rules::Rule;
use netfilterqueue::{Hook, Protocol};

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

/// Which packets the rule of a program matches, where the program does not care itself.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Selection {
    /// Only this protocol: tcp, udp, icmp, icmpv6, sctp or a number
    #[arg(short, long, value_parser = protocol, help_heading = "Which packets")]
    pub protocol: Option<Protocol>,

    /// Only packets to this port
    #[arg(long, value_name = "PORT", requires = "protocol", help_heading = "Which packets")]
    pub dport: Option<u16>,

    /// Only packets from this port
    #[arg(long, value_name = "PORT", requires = "protocol", help_heading = "Which packets")]
    pub sport: Option<u16>,

    /// Only packets that came in by this interface
    #[arg(short, long = "in", value_name = "INTERFACE", help_heading = "Which packets")]
    pub in_interface: Option<String>,

    /// Only packets that go out by this interface
    #[arg(short, long = "out", value_name = "INTERFACE", help_heading = "Which packets")]
    pub out_interface: Option<String>,
}

impl Selection {
    /// A rule that sends what is chosen to a queue.
    pub fn rule(&self, queue: u16) -> Rule {
        let mut rule = Rule::queue(queue);
        if let Some(protocol) = self.protocol {
            rule = rule.protocol(protocol);
        }
        if let Some(port) = self.dport {
            rule = rule.destination_port(port);
        }
        if let Some(port) = self.sport {
            rule = rule.source_port(port);
        }
        if let Some(name) = &self.in_interface {
            rule = rule.input_interface(name);
        }
        if let Some(name) = &self.out_interface {
            rule = rule.output_interface(name);
        }
        rule
    }
}

/// Reads a number of bytes, or of anything else, as people write it, also with `/s` behind it:
/// `125kB`, `1MB/s`, `50`.
///
/// # Errors
///
/// It is none, or 0: nothing would ever get through.
pub fn amount(text: &str) -> Result<u64, String> {
    let amount = text.trim_end_matches("/s").parse::<ByteSize>()?.as_u64();
    (amount > 0).then_some(amount).ok_or_else(|| "nothing would ever get through".to_owned())
}

/// Reads a mark as tools write it: `7` or `0x7`.
///
/// # Errors
///
/// It is no number, or one of more than 32 bits.
pub fn mark(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "no mark: they are numbers of 32 bits, such as 7 or 0x7".to_owned())
}

/// Reads a protocol's name or number.
fn protocol(text: &str) -> Result<Protocol, String> {
    let known = match text.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        "icmp" => Protocol::ICMP,
        "icmpv6" => Protocol::ICMPV6,
        "sctp" => Protocol::SCTP,
        number => {
            let error = "neither tcp, udp, icmp, icmpv6 nor sctp, nor a number below 256";
            Protocol(number.parse().map_err(|_| error)?)
        }
    };
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_decimal_or_hexadecimal() {
        for (text, number) in [("7", 7), ("0x7", 7), ("0xffffffff", u32::MAX), ("010", 10)] {
            assert_eq!(mark(text), Ok(number), "{text}");
        }
        for text in ["", "0x", "x7", "-1", "0x100000000", "7/0xff"] {
            assert!(mark(text).is_err(), "{text}");
        }
    }
}
