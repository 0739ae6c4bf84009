//! A queue with its rule, from the start of a program to its end at a signal.

use std::error::Error;
use std::io;
use std::thread;

use netfilterqueue::rules::{InstalledRules, Rules};
use netfilterqueue::{Decided, Packet, Queue, QueueBuilder, Stats, StopHandle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::Options;

/// A bound queue and the rules that feed it. They go away with it.
#[derive(Debug)]
pub struct Session {
    /// The queue.
    pub queue: Queue,
    /// Its rules, unless somebody else has installed them.
    pub rules: Option<InstalledRules>,
}

impl Session {
    /// Binds the queue, then installs the rules: in this order no packet finds nobody. From now on
    /// SIGINT and SIGTERM stop the queue.
    ///
    /// # Errors
    ///
    /// Those of binding and of installing, and of catching signals.
    pub fn open(
        options: &Options,
        queue: QueueBuilder,
        rules: impl FnOnce(Rules) -> Rules,
    ) -> Result<Self, Box<dyn Error>> {
        let queue = queue.fail_open(options.fail_open).bind()?;
        stop_at_signals(queue.stop_handle())?;
        let rules = match options.no_rule {
            true => None,
            false => Some(rules(Rules::new(options.hook)).install()?),
        };
        let source = if rules.is_some() { "its rule is installed" } else { "no rule is installed" };
        eprintln!("queue {} is bound, {source}; Ctrl-C ends", options.queue);
        Ok(Self { queue, rules })
    }

    /// Judges packets until a signal comes, then those that still wait, and takes the rules away.
    /// Returns the final counters.
    ///
    /// # Errors
    ///
    /// Those of the queue and of the rules.
    pub fn run<F>(mut self, mut judge: F) -> Result<Stats, Box<dyn Error>>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        self.queue.run(&mut judge)?;
        self.finish(judge)
    }

    /// Judges what still waits, for programs with a loop of their own, and takes the rules away. In
    /// this order nothing is lost: no new packets, then those that wait, then the rules, whose
    /// removal makes the kernel drop what waits in any queue.
    ///
    /// # Errors
    ///
    /// As [`Session::run`].
    pub fn finish<F>(mut self, judge: F) -> Result<Stats, Box<dyn Error>>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        if let Some(rules) = &mut self.rules {
            rules.pause()?;
        }
        self.queue.drain(judge)?;
        let stats = self.queue.stats();
        self.queue.close()?;
        Ok(stats)
    }
}

/// Calls `stop` at SIGINT (Ctrl-C) and at SIGTERM.
fn stop_at_signals(stop: StopHandle) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || {
        for _ in signals.forever() {
            stop.stop();
        }
    });
    Ok(())
}
