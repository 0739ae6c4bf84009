//! Two queues in one tokio task, with the feature `tokio`: filters two UDP ports, as the package's
//! `src/lib.rs` tells.
//!
//! ```text
//! cargo run -p netfilterqueue-event-loops --bin tokio -- 7001 7002
//! ```
//!
//! Each round of `select!` drops the futures that were not first. Nothing is lost by that: see
//! `netfilterqueue::AsyncQueue`.

use std::error::Error;

use netfilterqueue::AsyncQueue;
use netfilterqueue::Batch;
use netfilterqueue_event_loops::{Filter, finish, judge};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let ([one, other], rules) = Filter::from_arguments()?.into_parts();
    let (mut one, mut other) = (AsyncQueue::new(one)?, AsyncQueue::new(other)?);
    // One for each, because receiving commits what the batch held before.
    let (mut batch, mut other_batch) = (Batch::new(64), Batch::new(64));
    loop {
        let ready = tokio::select! {
            result = one.recv(&mut batch) => { result?; &mut batch }
            result = other.recv(&mut other_batch) => { result?; &mut other_batch }
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
        };
        for packet in &mut *ready {
            judge(packet);
        }
        ready.commit()?;
    }
    finish([one.into_inner(), other.into_inner()], rules)
}
