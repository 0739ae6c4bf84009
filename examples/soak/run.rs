//! Sets everything up, lets it run, and ends it in order.

use std::error::Error;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netfilterqueue::rules::{Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{Queue, StatsHandle, StopHandle};

use crate::arguments::Arguments;
use crate::flight::Flight;
use crate::holder::Holder;
use crate::judge::{Judge, Keeper, Seen, Shared};
use crate::plan::{DEFAULTS, Pattern, QUEUES, STREAMS, mark_bit};
use crate::report::{Outcome, Progress, QueueOutcome};
use crate::trouble::Trouble;
use crate::watch::{Losses, Resources};
use crate::{receiver, sender, streams};

/// How often is looked at how things stand.
const TICK: Duration = Duration::from_millis(100);

/// If nothing has moved for so long, something is missing.
const STANDSTILL: Duration = Duration::from_secs(10);

/// How long the end is waited for when something is wrong already.
const IN_TROUBLE: Duration = Duration::from_secs(1);

/// Memory that may be added after one part in so many of the run, but not before so many datagrams,
/// in KiB. After a tenth it is what 64 packets of 64 KiB take in the batches of two queues, which
/// are touched as far as packets fill them, and half as much again; after half of a run that is not
/// short, nearly all that ever are have been.
const GROWTH: [(u32, u64, u64); 2] = [(10, 0, 12 << 10), (2, 250_000, 2 << 10)];

/// A judge under its queue, which it gives back.
type JudgeThread = JoinHandle<Option<Queue>>;

/// True if there is no difference.
pub(crate) fn run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    // First of all, because only a process with a single thread can become root in a user
    // namespace.
    netfilterqueue_netns::enter_private()?;
    let before = Resources::read()?;
    let mut soak = Soak::start(arguments)?;
    let watched = soak.watch(arguments);
    let outcome = soak.finish(watched?, before)?;
    outcome.print();
    if let Some(file) = &arguments.result {
        std::fs::write(file, outcome.json())
            .map_err(|error| format!("writing {}: {error}", file.display()))?;
    }
    Ok(outcome.is_well())
}

/// Everything that runs.
struct Soak {
    started: Instant,
    shared: Arc<Shared>,
    rules: [InstalledRules; 2],
    stats: [StatsHandle; QUEUES.len()],
    stops: [StopHandle; QUEUES.len()],
    judges: Vec<JudgeThread>,
    tcp: Vec<Arc<streams::Progress>>,
    tcp_finish: Arc<AtomicBool>,
    tcp_threads: Vec<JoinHandle<Option<()>>>,
    /// Those of datagrams, and the holder's.
    threads: Vec<JoinHandle<Option<()>>>,
    /// What was there when all threads ran, and the memory after some parts of the run.
    at_start: Resources,
    memory: [Option<u64>; GROWTH.len()],
}

impl Soak {
    fn start(arguments: &Arguments) -> Result<Self, Box<dyn Error>> {
        // Queues first, rules second: a packet that meets a rule without a listener is dropped.
        let bind = |index: usize| {
            Queue::builder(QUEUES[index]).max_len(8192).on_undecided(DEFAULTS[index]).bind()
        };
        let queues = [bind(0)?, bind(1)?];
        let rules = install_rules()?;
        let stats = [queues[0].stats_handle(), queues[1].stats_handle()];
        let stops = [queues[0].stop_handle(), queues[1].stop_handle()];

        let mut room = u64::MAX;
        for queue in &queues {
            room = room.min(queue.receive_buffer()? as u64);
        }
        let mut receivers = Vec::new();
        for stream in &STREAMS {
            let (socket, receiver_room) = receiver::open(stream)?;
            room = room.min(receiver_room);
            receivers.push(socket);
        }
        let shared = Arc::new(Shared {
            pattern: Pattern::new(),
            flights: STREAMS.map(|stream| Flight::new(stream, room)),
            seen: [Seen::default(), Seen::default()],
            trouble: Trouble::default(),
            stop: AtomicBool::new(false),
            finish: AtomicBool::new(false),
        });

        // The retained packets of the first queue are judged by another thread, those of the second
        // one by the thread that receives.
        let (to_holder, held) = mpsc::channel();
        let holder =
            |index: usize| Holder::new(Arc::clone(&shared), StatsHandle::clone(&stats[index]));
        let keepers = [Keeper::Thread(to_holder), Keeper::Own(holder(1))];
        let holder = holder(0);
        let mut threads = vec![spawn(&shared, "holder", move |_| -> Result<(), String> {
            holder.run(&held);
            Ok(())
        })];
        let judges = queues.into_iter().zip(keepers).enumerate().map(|(index, (queue, keeper))| {
            let judge = Judge::new(index, Arc::clone(&shared), keeper);
            spawn(&shared, "judge", move |_| judge.run(queue))
        });
        let judges: Vec<_> = judges.collect();
        for (index, socket) in receivers.into_iter().enumerate() {
            threads.push(spawn(&shared, "receiver", move |shared| {
                receiver::receive(&shared.flights[index], shared, &socket)
            }));
        }

        let started = Instant::now();
        let tcp_finish = Arc::new(AtomicBool::new(false));
        let (mut tcp, mut tcp_threads) = (Vec::new(), Vec::new());
        for (index, to) in streams::TO.into_iter().enumerate() {
            let (client, server) = streams::connect(to)?;
            let progress = Arc::new(streams::Progress::default());
            let (counted, finish) = (Arc::clone(&progress), Arc::clone(&tcp_finish));
            tcp_threads.push(spawn(&shared, "TCP sender", move |shared| {
                streams::send(&client, shared, &counted, &finish)
            }));
            let counted = Arc::clone(&progress);
            tcp_threads.push(spawn(&shared, "TCP receiver", move |shared| {
                streams::receive(&server, index, shared, &counted)
            }));
            tcp.push(progress);
        }
        let mut left = arguments.packets;
        for (index, stream) in STREAMS.iter().enumerate().rev() {
            let share = if index == 0 { left } else { arguments.packets * stream.share / 100 };
            left -= share;
            threads.push(spawn(&shared, "sender", move |shared| {
                sender::send(&shared.flights[index], &shared.pattern, share, &shared.stop)
            }));
        }
        Ok(Self {
            started,
            shared,
            rules,
            stats,
            stops,
            judges,
            tcp,
            tcp_finish,
            tcp_threads,
            threads,
            at_start: Resources::default(),
            memory: [None; GROWTH.len()],
        })
    }

    /// Looks on until everything has arrived, or something is wrong.
    fn watch(&mut self, arguments: &Arguments) -> Result<Resources, Box<dyn Error>> {
        thread::sleep(TICK);
        self.at_start = Resources::read()?;
        let mut progress = Progress::new(arguments.packets);
        let (mut moved, mut moved_at, mut gave_up) = (0, Instant::now(), false);
        loop {
            let is_over = self.flights().all(|flight| flight.is_settled.load(Ordering::Acquire));
            let now = Resources::read()?;
            self.check_resources(arguments, now);
            if is_over || self.shared.trouble.is_any() {
                return Ok(now);
            }
            let losses = Losses::read(&self.stats)?;
            progress.show(&self.shared, now, losses, self.held());
            if arguments.time.is_some_and(|time| self.started.elapsed() >= time) {
                self.shared.stop.store(true, Ordering::Relaxed);
            }
            let movement = self.flights().map(|f| f.judged.sum() + f.arrived.sum()).sum();
            if movement != moved {
                (moved, moved_at, gave_up) = (movement, Instant::now(), false);
            } else if moved_at.elapsed() > STANDSTILL {
                self.end_standstill(losses, gave_up);
                (moved_at, gave_up) = (Instant::now(), true);
            }
            thread::sleep(TICK);
        }
    }

    fn check_resources(&mut self, arguments: &Arguments, now: Resources) {
        let sent: u64 = self.flights().map(|f| f.sent_to.load(Ordering::Relaxed)).sum();
        let elapsed = self.started.elapsed();
        let trouble = &self.shared.trouble;
        for ((part, at_least, growth), then) in GROWTH.into_iter().zip(&mut self.memory) {
            let is_reached = sent >= arguments.packets / u64::from(part)
                || arguments.time.is_some_and(|time| elapsed >= time / part);
            let is_reached = is_reached && sent >= at_least;
            if is_reached && now.memory > then.get_or_insert(now.memory).saturating_add(growth) {
                let had = then.unwrap_or_default();
                trouble.report(|| {
                    format!("memory has grown from {had} KiB to {}, since 1/{part}", now.memory)
                });
            }
        }
        // The senders end, each in its time.
        let most = (self.at_start.descriptors, self.at_start.threads);
        if now.descriptors > most.0 || now.threads > most.1 {
            trouble.report(|| {
                let had = format!("{} descriptors and {} threads", most.0, most.1);
                format!("there were {had}, now {} and {}", now.descriptors, now.threads)
            });
        }
    }

    /// What has not arrived by now will not: it is either counted somewhere as lost, or a
    /// difference. Once that is given up, there is no reason to stand still again.
    fn end_standstill(&self, losses: Losses, gave_up: bool) {
        let missing: u64 = self.flights().map(Flight::missing).sum();
        let written_off: u64 = self.flights().map(|f| f.written_off.load(Ordering::Relaxed)).sum();
        if gave_up || missing + written_off > losses.total() {
            self.shared.trouble.report(|| {
                let held = self.held();
                format!(
                    "nothing moves any more: {missing} datagrams are missing, {held} are held, and \
                     the kernel has counted {losses:?}"
                )
            });
            return;
        }
        self.flights().for_each(|flight| flight.give_up.store(true, Ordering::Release));
    }

    /// Ends everything in order, and compares.
    fn finish(
        mut self,
        resources: Resources,
        before: Resources,
    ) -> Result<Outcome, Box<dyn Error>> {
        let elapsed = self.started.elapsed();
        let trouble = &self.shared.trouble;
        let mut queues = Vec::new();
        // What is known to be wrong already may keep the rest from ending.
        let patience = if trouble.is_any() { IN_TROUBLE } else { STANDSTILL };
        self.shared.stop.store(true, Ordering::Relaxed);
        self.tcp_finish.store(true, Ordering::Relaxed);
        if !wait_for(patience, || self.tcp_threads.iter().all(JoinHandle::is_finished)) {
            trouble.report(|| "a TCP stream does not end".to_owned());
        }
        let is_idle = |stats: &StatsHandle| {
            let stats = stats.stats();
            stats.held == 0 && stats.retained == 0
        };
        if !wait_for(patience, || self.stats.iter().all(is_idle)) {
            trouble.report(|| format!("{} packets are held for ever", self.held()));
        }
        // Deleting rules makes the kernel drop what waits in queues.
        for rules in &mut self.rules {
            rules.pause()?;
        }
        self.stops.iter().for_each(StopHandle::stop);
        if !wait_for(patience, || self.judges.iter().all(JoinHandle::is_finished)) {
            trouble.report(|| "a queue does not stop".to_owned());
        }
        let losses = Losses::read(&self.stats)?;
        for stats in &self.stats {
            let kernel = stats.kernel_stats().ok().and_then(|rows| rows.first().copied());
            queues.push(QueueOutcome { library: stats.stats(), kernel });
        }
        for judge in self.judges.drain(..).filter(JoinHandle::is_finished) {
            // One without a queue has reported why, and a panic as well.
            if let Ok(Some(queue)) = judge.join()
                && let Err(error) = queue.close()
            {
                trouble.report(|| format!("a queue cannot be closed: {error}"));
            }
        }
        self.shared.finish.store(true, Ordering::Release);
        // As long as a receiver may need to see it, and what comes too late.
        thread::sleep(TICK);
        self.threads.append(&mut self.tcp_threads);
        if !wait_for(patience, || self.threads.iter().all(JoinHandle::is_finished)) {
            trouble.report(|| "a thread does not end".to_owned());
        }
        for thread in self.threads.drain(..).filter(JoinHandle::is_finished) {
            // It has reported what there was to report.
            let _ = thread.join();
        }
        let tcp = self.tcp.iter().map(|progress| {
            (progress.sent.load(Ordering::Relaxed), progress.received.load(Ordering::Relaxed))
        });
        let tcp = tcp.collect();
        let memory = self.memory.map(|then| then.unwrap_or(resources.memory));
        // All that is left of the queues and rules.
        let shared = self.shared;
        drop((self.rules, self.stats, self.stops));
        // The kernel counts a thread for a moment longer than it can be joined.
        wait_for(IN_TROUBLE, || Resources::read().is_ok_and(|now| now.threads == before.threads));
        let closed = Resources::read()?;
        let outcome = Outcome { shared, queues, losses, tcp, memory, resources, closed, elapsed };
        outcome.compare();
        outcome.compare_resources(before);
        Ok(outcome)
    }

    fn held(&self) -> u64 {
        self.stats.iter().map(|stats| stats.stats().held).sum()
    }

    fn flights(&self) -> impl Iterator<Item = &Flight> {
        self.shared.flights.iter()
    }
}

/// Each stream goes to its queue; what is marked for a queue goes to that one.
fn install_rules() -> Result<[InstalledRules; 2], netfilterqueue::Error> {
    let marked = |index: usize| {
        let bit = mark_bit(index);
        Rule::queue(QUEUES[index]).protocol(Protocol::UDP).mark_masked(bit, bit)
    };
    let input = Rules::new(Hook::INPUT).rule(marked(0)).rule(marked(1));
    let mut prerouting = Rules::new(Hook::PREROUTING).rule(marked(0)).rule(marked(1));
    for stream in &STREAMS {
        let rule = Rule::queue(QUEUES[stream.queue]).protocol(Protocol::UDP);
        prerouting = prerouting.rule(rule.destination_port(stream.to.port()));
    }
    for (index, to) in streams::TO.iter().enumerate() {
        let rule = Rule::queue(QUEUES[index]).protocol(Protocol::TCP);
        prerouting = prerouting.rule(rule.destination_port(to.port()));
    }
    Ok([prerouting.install()?, input.install()?])
}

/// Reports that a thread has panicked, when it is dropped by that.
struct Panics(Arc<Shared>, &'static str);

impl Drop for Panics {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.trouble.report(|| format!("{}: panicked", self.1));
        }
    }
}

/// Starts a thread whose error or panic is a difference.
fn spawn<T: Send + 'static, E: Display>(
    shared: &Arc<Shared>,
    name: &'static str,
    work: impl FnOnce(&Shared) -> Result<T, E> + Send + 'static,
) -> JoinHandle<Option<T>> {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let _panics = Panics(Arc::clone(&shared), name);
        let result = work(&shared);
        result.map_err(|error| shared.trouble.report(|| format!("{name}: {error}"))).ok()
    })
}

/// Waits for something that should happen at once.
fn wait_for(patience: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}
