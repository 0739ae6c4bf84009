//! What becomes of each packet, by chance that a seed repeats.

use std::time::Duration;

use fastrand::Rng;

use crate::arguments::Arguments;

/// Decides for packet after packet. Every effect has random numbers of its own, and draws as many
/// for each packet whatever it decides: turning one effect on leaves the others as they were.
#[derive(Debug)]
pub(crate) struct Chance {
    loss: Losses,
    duplicate: Coin,
    reorder: Coin,
    corrupt: Coin,
    place: Rng,
    jitter: Rng,
    most_jitter: Duration,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fate {
    pub(crate) is_lost: bool,
    pub(crate) is_duplicated: bool,
    pub(crate) is_reordered: bool,
    /// Which bit of its data is turned over: 0 the first, close to 1 the last.
    pub(crate) corrupt_at: Option<f64>,
    /// How much the delay is longer, of the packet and of its copy.
    pub(crate) jitter: [Jitter; 2],
}

/// Added to a delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Jitter {
    Longer(Duration),
    Shorter(Duration),
}

impl Chance {
    /// # Errors
    ///
    /// Says which bursts of losses are impossible.
    pub(crate) fn new(arguments: &Arguments, seed: u64) -> Result<Self, String> {
        let mut seeds = Rng::with_seed(seed);
        Ok(Self {
            loss: Losses::new(arguments.loss, arguments.burst, seeds.fork())?,
            duplicate: Coin::new(arguments.duplicate, seeds.fork()),
            reorder: Coin::new(arguments.reorder, seeds.fork()),
            corrupt: Coin::new(arguments.corrupt, seeds.fork()),
            place: seeds.fork(),
            jitter: seeds.fork(),
            most_jitter: arguments.jitter,
        })
    }

    /// Decides about the next packet.
    pub(crate) fn next(&mut self) -> Fate {
        let place = self.place.f64();
        Fate {
            is_lost: self.loss.next(),
            is_duplicated: self.duplicate.toss(),
            is_reordered: self.reorder.toss(),
            corrupt_at: self.corrupt.toss().then_some(place),
            jitter: [self.next_jitter(), self.next_jitter()],
        }
    }

    fn next_jitter(&mut self) -> Jitter {
        let share = self.jitter.f64();
        let by = self.most_jitter.mul_f64(share);
        if self.jitter.bool() { Jitter::Longer(by) } else { Jitter::Shorter(by) }
    }
}

impl Jitter {
    /// The delay with it; never less than none.
    pub(crate) fn applied_to(self, delay: Duration) -> Duration {
        match self {
            Self::Longer(by) => delay + by,
            Self::Shorter(by) => delay.saturating_sub(by),
        }
    }
}

/// Falls on its face with a given chance.
#[derive(Debug)]
struct Coin {
    percent: f64,
    rng: Rng,
}

impl Coin {
    const fn new(percent: f64, rng: Rng) -> Self {
        Self { percent, rng }
    }

    fn toss(&mut self) -> bool {
        // Below 1, so that 100 per cent is always, and 0 never.
        self.rng.f64() * 100.0 < self.percent
    }
}

/// Losses each by itself, or in bursts: then a link goes bad and good again, with the chances that
/// make both the share of losses and the length of the bursts come out right (Gilbert's model).
#[derive(Debug)]
struct Losses {
    /// In per cent: of a loss after none, and of a loss after another one.
    first: f64,
    further: f64,
    is_bad: bool,
    rng: Rng,
}

impl Losses {
    fn new(percent: f64, burst: Option<f64>, rng: Rng) -> Result<Self, String> {
        let (first, further) = match burst {
            None => (percent, percent),
            Some(_) if percent >= 100.0 => (100.0, 100.0),
            Some(burst) => {
                let share = percent / 100.0;
                let begin = share / (1.0 - share) / burst;
                if begin > 1.0 {
                    let least = share / (1.0 - share);
                    return Err(format!(
                        "a loss of {percent} % comes in bursts of {least:.1} packets at least; \
                         give --burst more, or leave it out"
                    ));
                }
                (begin * 100.0, (1.0 - 1.0 / burst) * 100.0)
            }
        };
        Ok(Self { first, further, is_bad: false, rng })
    }

    fn next(&mut self) -> bool {
        let percent = if self.is_bad { self.further } else { self.first };
        self.is_bad = self.rng.f64() * 100.0 < percent;
        self.is_bad
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn chance(arguments: &str, seed: u64) -> Chance {
        let arguments = Arguments::try_parse_from(arguments.split_ascii_whitespace()).unwrap();
        Chance::new(&arguments, seed).unwrap()
    }

    fn fates(arguments: &str, seed: u64) -> Vec<Fate> {
        let mut chance = chance(arguments, seed);
        (0..20_000).map(|_| chance.next()).collect()
    }

    fn share(fates: &[Fate], is: impl Fn(&Fate) -> bool) -> f64 {
        let count = fates.iter().filter(|fate| is(fate)).count();
        f64::from(u32::try_from(count).unwrap()) / f64::from(u32::try_from(fates.len()).unwrap())
    }

    #[test]
    fn a_seed_repeats_a_run_and_another_one_does_not() {
        let all = "chaos --loss 10 --duplicate 10 --reorder 10 --corrupt 10 --jitter 10ms";
        assert_eq!(fates(all, 7), fates(all, 7));
        assert_ne!(fates(all, 7), fates(all, 8));
    }

    #[test]
    fn one_effect_leaves_the_others_as_they_are() {
        let lost = |arguments| -> Vec<bool> {
            fates(arguments, 7).iter().map(|fate| fate.is_lost).collect()
        };
        assert_eq!(lost("chaos --loss 10"), lost("chaos --loss 10 --corrupt 50 --jitter 5ms"));
    }

    #[test]
    fn shares_come_out_as_told() {
        let all = fates("chaos --loss 20 --duplicate 5 --reorder 50 --corrupt 100", 1);
        assert!((share(&all, |fate| fate.is_lost) - 0.2).abs() < 0.02);
        assert!((share(&all, |fate| fate.is_duplicated) - 0.05).abs() < 0.01);
        assert!((share(&all, |fate| fate.is_reordered) - 0.5).abs() < 0.02);
        assert!(all.iter().all(|fate| fate.corrupt_at.is_some_and(|at| (0.0..1.0).contains(&at))));
        assert!(fates("chaos", 1).iter().all(|fate| !fate.is_lost && fate.corrupt_at.is_none()));
    }

    #[test]
    fn bursts_keep_the_share_and_have_their_length() {
        let lost: Vec<bool> =
            fates("chaos --loss 20 --burst 5", 3).iter().map(|fate| fate.is_lost).collect();
        let losses = lost.iter().filter(|lost| **lost).count();
        let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        assert!((3_400..4_600).contains(&losses), "{losses}");
        let mean = losses as f64 / bursts as f64;
        assert!((4.5..5.5).contains(&mean), "{mean}");
    }

    #[test]
    fn impossible_bursts_are_refused() {
        let arguments = Arguments::try_parse_from("chaos --loss 90 --burst 2".split(' ')).unwrap();
        let error = Chance::new(&arguments, 1).unwrap_err();
        assert!(error.contains("9.0 packets at least"), "{error}");
        assert!(fates("chaos --loss 100 --burst 2", 1).iter().all(|fate| fate.is_lost));
    }

    #[test]
    fn jitter_stays_within_and_goes_both_ways() {
        let most = Duration::from_millis(10);
        let (mut shorter, mut longer) = (false, false);
        for fate in fates("chaos --jitter 10ms", 5) {
            for jitter in fate.jitter {
                let delay = jitter.applied_to(most);
                assert!(delay <= 2 * most);
                shorter |= delay < most;
                longer |= delay > most;
            }
        }
        assert!(shorter && longer);
        assert_eq!(Jitter::Shorter(most).applied_to(Duration::ZERO), Duration::ZERO);
    }
}
