//! A queue with its rule, from the start of a program to its end at a signal.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::rules::{InstalledRules, Rules};
use netfilterqueue::{Batch, Decided, Packet, Queue, QueueBuilder, Stats, StopHandle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::{Options, tell};

/// As many packets as one system call receives.
const BATCH: usize = 64;

/// What a program does that has more to do than to judge: also something from time to time.
pub trait Work {
    /// Judges a packet.
    fn judge<'p>(&mut self, packet: Packet<'p>) -> Decided<'p>;

    /// When there is something to do, if at all.
    fn due(&self) -> Option<Instant>;

    /// Does what is due at `now`.
    ///
    /// # Errors
    ///
    /// They end the program, after what waits was judged.
    fn act(&mut self, now: Instant) -> Result<(), Box<dyn Error>>;

    /// Comes after the last packet and before the queue is closed, which drops packets that are
    /// still retained.
    fn end(&mut self) {}
}

/// A bound queue and the rules that feed it. They go away with it.
#[derive(Debug)]
pub struct Session {
    /// The queue.
    pub queue: Queue,
    /// Its rules, unless somebody else has installed them.
    pub rules: Option<InstalledRules>,
    /// Those at further hooks.
    more_rules: Vec<InstalledRules>,
    last_act: LastAct,
}

impl Session {
    /// Binds the queue, then installs the rules: in this order no packet finds nobody. From now on
    /// SIGINT and SIGTERM stop the queue, and a second one ends the program at once: the kernel
    /// then drops what waits, and takes the rules away.
    ///
    /// # Errors
    ///
    /// Those of binding and of installing, and of catching signals.
    pub fn open(
        options: &Options,
        queue: QueueBuilder,
        rules: impl FnOnce(Rules) -> Rules,
    ) -> Result<Self, Box<dyn Error>> {
        let mut session = Self::bind(queue.fail_open(options.fail_open))?;
        if !options.no_rule {
            session.rules = Some(rules(Rules::new(options.hook)).install()?);
        }
        let source = if options.no_rule { "no rule is installed" } else { "its rule is installed" };
        tell(format_args!("queue {} is bound, {source}; Ctrl-C ends", options.queue));
        Ok(session)
    }

    /// As [`Session::open`] for a queue of this number, with rules at several hooks. They must let
    /// packets pass while nobody listens, because they are installed first: where the kernel lacks
    /// `nft_queue`, the attempt to do without the xtables target makes it drop what waits in any
    /// queue, so that the second rules would take away packets of the first.
    ///
    /// # Errors
    ///
    /// As [`Session::open`].
    pub fn open_at_hooks(
        number: u16,
        queue: QueueBuilder,
        rules: Vec<Rules>,
    ) -> Result<Self, Box<dyn Error>> {
        let rules = rules.into_iter().map(Rules::install).collect::<Result<Vec<_>, _>>()?;
        let mut session = Self::bind(queue)?;
        session.more_rules = rules;
        tell(format_args!("queue {number} is bound, its rules are installed; Ctrl-C ends"));
        Ok(session)
    }

    fn bind(queue: QueueBuilder) -> Result<Self, Box<dyn Error>> {
        let queue = queue.bind()?;
        let last_act = LastAct::default();
        stop_at_signals(queue.stop_handle(), last_act.clone())?;
        Ok(Self { queue, rules: None, more_rules: Vec::new(), last_act })
    }

    /// Something to do before a second signal ends the program, for what the kernel does not clean
    /// up.
    pub fn before_sudden_end(&self, act: impl FnOnce() + Send + 'static) {
        self.last_act.set(Box::new(act));
    }

    /// Judges packets until a signal comes, then those that still wait, and takes the rules away;
    /// after an error, too, as far as that goes. Returns the final counters.
    ///
    /// # Errors
    ///
    /// Those of the queue and of the rules.
    pub fn run<F>(mut self, mut judge: F) -> Result<Stats, Box<dyn Error>>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        let ran = self.queue.run(&mut judge);
        let finished = self.finish(judge);
        ran?;
        finished
    }

    /// As [`Session::run`], for a program that also has something to do from time to time.
    ///
    /// # Errors
    ///
    /// As [`Session::run`], and those of the work.
    pub fn serve(mut self, work: &mut impl Work) -> Result<Stats, Box<dyn Error>> {
        let served = self.serve_until_stopped(work);
        let finished = self.finish_with(work, Work::judge, Work::end);
        served?;
        finished
    }

    /// Judges what still waits, for programs with a loop of their own, and takes the rules away. In
    /// this order nothing is lost: no new packets, then those that wait, then the rules, whose
    /// removal makes the kernel drop what waits in any queue.
    ///
    /// # Errors
    ///
    /// As [`Session::run`].
    pub fn finish<F>(self, mut judge: F) -> Result<Stats, Box<dyn Error>>
    where
        F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
    {
        self.finish_with(&mut (), |(), packet| judge(packet), |()| {})
    }

    fn serve_until_stopped(&mut self, work: &mut impl Work) -> Result<(), Box<dyn Error>> {
        let mut batch = Batch::new(BATCH);
        loop {
            let wait = work
                .due()
                .map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()));
            match self.queue.recv_timeout(&mut batch, wait) {
                Ok(_) | Err(netfilterqueue::Error::WouldBlock) => {}
                Err(netfilterqueue::Error::Stopped) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            for packet in &mut batch {
                work.judge(packet);
            }
            batch.commit()?;
            let now = Instant::now();
            if work.due().is_some_and(|due| due <= now) {
                work.act(now)?;
            }
        }
    }

    fn finish_with<W>(
        mut self,
        work: &mut W,
        mut judge: impl for<'p> FnMut(&mut W, Packet<'p>) -> Decided<'p>,
        end: impl FnOnce(&mut W),
    ) -> Result<Stats, Box<dyn Error>> {
        for rules in self.rules.iter_mut().chain(&mut self.more_rules) {
            rules.pause()?;
        }
        self.queue.drain(|packet| judge(work, packet))?;
        end(work);
        let stats = self.queue.stats();
        self.queue.close()?;
        Ok(stats)
    }
}

/// What is done before the program ends without coming to its end.
#[derive(Clone, Default)]
struct LastAct(Arc<Mutex<Option<Act>>>);

type Act = Box<dyn FnOnce() + Send>;

impl LastAct {
    fn set(&self, act: Act) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(act);
    }

    fn perform(&self) {
        let act = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(act) = act {
            act();
        }
    }
}

impl fmt::Debug for LastAct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastAct").finish_non_exhaustive()
    }
}

/// Calls `stop` at the first SIGINT (Ctrl-C) or SIGTERM. The second one does what it does by
/// default.
fn stop_at_signals(stop: StopHandle, last_act: LastAct) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            stop.stop();
        }
        if let Some(signal) = signals.next() {
            last_act.perform();
            // It does not return: by default both end the process.
            let _ = emulate_default_handler(signal);
        }
    });
    Ok(())
}
