//! How long packets have waited, as a distribution.

use std::fmt::{self, Write as _};
use std::time::Duration;

use hdrhistogram::Histogram;

/// From a nanosecond on, with three digits: a thousandth is all that a percentile is wrong by.
const DIGITS: u8 = 3;
/// An hour, in nanoseconds. What takes longer counts as this.
const LONGEST: u64 = 3_600_000_000_000;
/// What is written of each distribution.
const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];
/// The longest bar, in characters.
const BAR: u64 = 50;

/// Durations, of which a distribution is kept in a bounded space.
#[derive(Debug, Clone)]
pub(crate) struct Times(Histogram<u64>);

impl Times {
    pub(crate) fn new() -> Result<Self, String> {
        let histogram = Histogram::new_with_bounds(1, LONGEST, DIGITS);
        histogram.map(Self).map_err(|error| format!("making room for a histogram: {error}"))
    }

    pub(crate) fn record(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(LONGEST);
        self.0.saturating_record(nanoseconds);
    }

    /// Moves what others have recorded here.
    pub(crate) fn absorb(&mut self, other: &mut Self) {
        // Both have the same bounds, which is all that can be wrong.
        let _ = self.0.add(&other.0);
        other.0.reset();
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// Bars, one for each doubling of the time; nothing if there is nothing.
    pub(crate) fn bars(&self) -> String {
        let mut steps: Vec<(u64, u64)> = Vec::new();
        let mut upper = 1;
        for value in self.0.iter_recorded() {
            while value.value_iterated_to() > upper {
                upper *= 2;
            }
            match steps.last_mut() {
                Some((last, count)) if *last == upper => {
                    *count += value.count_since_last_iteration();
                }
                _ => steps.push((upper, value.count_since_last_iteration())),
            }
        }
        let most = steps.iter().map(|(_, count)| *count).max().unwrap_or(1);
        let mut bars = String::new();
        for (upper, count) in steps {
            // Whatever there is can be seen.
            let len = usize::try_from((count * BAR).div_ceil(most)).unwrap_or(0);
            let time = format!("{:.1?}", Duration::from_nanos(upper));
            let _ = writeln!(bars, "  up to {time:>9} {count:>10} {}", "#".repeat(len));
        }
        bars
    }
}

/// The percentiles in a line.
impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values are known to three digits, and may be rounded up beyond the longest.
        let time = |nanoseconds: u64| Duration::from_nanos(nanoseconds.min(LONGEST));
        for percentile in PERCENTILES {
            write!(f, "p{percentile} {:.1?}, ", time(self.0.value_at_percentile(percentile)))?;
        }
        write!(f, "max {:.1?}", time(self.0.max()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(microseconds: impl IntoIterator<Item = u64>) -> Times {
        let mut times = Times::new().unwrap();
        microseconds.into_iter().for_each(|us| times.record(Duration::from_micros(us)));
        times
    }

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let line = times(1..=1000).to_string();
        assert_eq!(line, "p50 500.2µs, p90 900.1µs, p99 990.2µs, p99.9 1.0ms, max 1.0ms");
    }

    #[test]
    fn what_is_out_of_range_counts_as_the_longest() {
        let mut times = times([]);
        times.record(Duration::ZERO);
        times.record(Duration::MAX);
        assert_eq!(times.len(), 2);
        assert!(times.to_string().ends_with("max 3600.0s"), "{times}");
    }

    #[test]
    fn absorbing_moves() {
        let (mut all, mut part) = (times(1..=10), times(11..=20));
        all.absorb(&mut part);
        assert_eq!((all.len(), part.len()), (20, 0));
    }

    #[test]
    fn bars_are_as_long_as_their_shares() {
        let bars = times([1, 1, 1, 1, 100]).bars();
        let lines: Vec<&str> = bars.lines().collect();
        assert_eq!(lines.len(), 2, "{bars}");
        assert!(lines[0].ends_with(&format!(" 4 {}", "#".repeat(50))), "{bars}");
        assert!(lines[1].ends_with(&format!(" 1 {}", "#".repeat(13))), "{bars}");
        assert_eq!(times([]).bars(), "");
    }
}
