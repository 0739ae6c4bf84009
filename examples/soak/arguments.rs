//! What the program was asked for.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const USAGE: &str = "\
usage: soak [--packets N] [--minutes M] [--result FILE]

Sends N numbered datagrams (1000000 unless told otherwise) through two queues, or as many as it can
in M minutes, whichever ends first, and accounts for every one of them. --result writes what came
out of it to FILE, as JSON. The exit code is 1 if anything differs from what it must be.";

/// The options, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) packets: u64,
    pub(crate) time: Option<Duration>,
    pub(crate) result: Option<PathBuf>,
}

impl Arguments {
    /// `None` if help was asked for.
    pub(crate) fn read(mut given: impl Iterator<Item = OsString>) -> Result<Option<Self>, String> {
        let mut arguments = Self { packets: 1_000_000, time: None, result: None };
        while let Some(option) = given.next() {
            let option = option.to_string_lossy().into_owned();
            let mut value = || given.next().ok_or_else(|| format!("{option} needs a value"));
            match option.as_str() {
                "--help" | "-h" => return Ok(None),
                "--packets" => arguments.packets = number(&option, &value()?)?,
                "--minutes" => {
                    let minutes = number(&option, &value()?)?;
                    arguments.time = Some(Duration::from_secs(minutes.saturating_mul(60)));
                }
                "--result" => arguments.result = Some(value()?.into()),
                _ => return Err(format!("{option:?} is no option")),
            }
        }
        Ok(Some(arguments))
    }
}

fn number(option: &str, value: &OsString) -> Result<u64, String> {
    let value = value.to_string_lossy();
    match value.parse() {
        Ok(0) => Err(format!("{option} must be more than 0")),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{option} {value:?}: {error}")),
    }
}
