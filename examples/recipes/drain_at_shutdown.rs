use std::error::Error;
use std::{io, thread};

use netfilterqueue::rules::{Hook, InstalledRules, Rule, Rules};
use netfilterqueue::{Decided, Error as QueueError, Packet, Queue, StopHandle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

pub fn drain_at_shutdown(number: u16) -> Result<(), Box<dyn Error>> {
    let mut queue = Queue::builder(number).bind()?;
    let rules = Rules::new(Hook::FORWARD).rule(Rule::queue(number)).install()?;
    stop_at(&[SIGINT, SIGTERM], queue.stop_handle())?;
    queue.run(|packet| packet.accept())?;
    finish(queue, rules, |packet| packet.accept())?;
    Ok(())
}

/// Stops the queue when one of the signals comes.
pub fn stop_at(signals: &[i32], stop: StopHandle) -> io::Result<()> {
    let mut signals = Signals::new(signals)?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            stop.stop();
        }
    });
    Ok(())
}

/// Ends without loss: first no more packets come, then those that wait are judged, and only then
/// the hook goes away, which would drop them.
pub fn finish<F>(mut queue: Queue, mut rules: InstalledRules, judge: F) -> Result<(), QueueError>
where
    F: for<'p> FnMut(Packet<'p>) -> Decided<'p>,
{
    rules.pause()?;
    queue.drain(judge)?;
    queue.close()?;
    rules.remove()
}
