use std::thread;
use std::time::Duration;

use netfilterqueue::{Error, Queue, Stats};

/// Prints the counters every ten seconds, from a thread of its own.
pub fn monitor(number: u16) -> Result<(), Error> {
    let mut queue = Queue::builder(number).bind()?;
    let handle = queue.stats_handle();
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_secs(10));
            println!("{}", line(&handle.stats()));
            for kernel in handle.kernel_stats().unwrap_or_default() {
                println!("queue {}: {} dropped, it was full", kernel.queue, kernel.queue_dropped);
            }
        }
    });
    queue.run(|packet| packet.accept())
}

/// What should be watched: `lost` that grows means a receive buffer that is too small or a program
/// that is too slow, `held` that grows means packets without a verdict. Packets that found the
/// queue itself full are known to the kernel only.
pub fn line(stats: &Stats) -> String {
    format!(
        "received {} lost {} held {} refused {} expired {} system calls {}",
        stats.received,
        stats.lost,
        stats.held,
        stats.refused,
        stats.expired,
        stats.system_calls()
    )
}
