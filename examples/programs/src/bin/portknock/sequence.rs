//! The ports that have to be knocked at, in their order.

use std::fmt;
use std::str::FromStr;

use netfilterqueue::rules::Protocol;

/// A port of TCP or UDP, written `22`, `22/tcp` or `51820/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Port {
    pub(crate) protocol: Protocol,
    pub(crate) number: u16,
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.strip_suffix("/tcp").unwrap_or(text), Protocol::TCP),
            Some((number, "udp")) => (number, Protocol::UDP),
            Some((_, other)) => return Err(format!("{other:?} is neither tcp nor udp")),
        };
        match number.parse() {
            Ok(0) | Err(_) => Err(format!("{number:?} is no port: they are from 1 to 65535")),
            Ok(number) => Ok(Self { protocol, number }),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.protocol == Protocol::UDP { "udp" } else { "tcp" };
        write!(f, "{}/{protocol}", self.number)
    }
}

/// At least three ports that nobody comes across by trying all in ascending or descending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sequence(Vec<Port>);

impl Sequence {
    pub(crate) fn ports(&self) -> &[Port] {
        &self.0
    }
}

impl FromStr for Sequence {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ports: Vec<Port> =
            text.split(',').map(|port| port.trim().parse()).collect::<Result<_, _>>()?;
        if ports.len() < 3 {
            return Err("fewer than three ports are found by chance".into());
        }
        if ports.windows(2).any(|two| two[0] == two[1]) {
            return Err(
                "a port cannot come twice in a row: systems send a first packet again".into()
            );
        }
        let numbers = || ports.iter().map(|port| port.number);
        if numbers().is_sorted() || numbers().rev().is_sorted() {
            return Err("a scan would open this: let the numbers both rise and fall".into());
        }
        Ok(Self(ports))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_written() {
        for (text, written) in [("22", "22/tcp"), ("22/tcp", "22/tcp"), ("53/udp", "53/udp")] {
            assert_eq!(text.parse::<Port>().expect("a port").to_string(), written);
        }
        for text in ["", "0", "65536", "22/", "22/sctp", "/tcp", "-1", "22/tcp/udp"] {
            assert!(text.parse::<Port>().is_err(), "{text}");
        }
    }

    #[test]
    fn sequences_are_not_found_by_scans() {
        assert_eq!("7,9/udp, 7".parse::<Sequence>().expect("a sequence").ports().len(), 3);
        for (text, reason) in [
            ("7,9", "three"),
            ("7,8,9", "scan"),
            ("9,8,7/udp", "scan"),
            ("7,9,9,8", "twice"),
            ("7,,8", "no port"),
        ] {
            let error = text.parse::<Sequence>().expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
