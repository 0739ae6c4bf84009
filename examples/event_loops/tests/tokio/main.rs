//! `netfilterqueue::AsyncQueue` on the running kernel: every packet is accounted for by its id and by
//! the number that was sent in it, as in the fault tests, whose accounts these have.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]
#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "`Packet::accept` is not generic over the lifetime, which `run` asks for"
)]

#[path = "../../../../tests/faults/accounts.rs"]
#[allow(dead_code, reason = "these tests use a part of it")]
mod accounts;
mod cancelled;
#[path = "../../../../tests/live/harness.rs"]
mod harness;
#[path = "../../../../tests/live/kernel.rs"]
mod kernel;
mod limits;
mod others;
mod runtimes;
#[path = "../../../../tests/live/support.rs"]
mod support;
mod unsent;

use std::future::Future;
use std::process::ExitCode;
use std::task::{Context, Poll, Waker};

use accounts::faults;
use harness::Test;
use tokio::runtime::{Builder, Runtime};

fn main() -> ExitCode {
    // tokio keeps a few descriptors for its signals, from the first runtime on.
    drop(one_thread());
    let before = accounts::descriptors();
    let tests = [
        &cancelled::TESTS[..],
        &limits::TESTS[..],
        &others::TESTS[..],
        &runtimes::TESTS[..],
        &unsent::TESTS[..],
    ];
    let result = harness::main(&tests.concat());
    // A test that failed may have left a thread at work.
    if result == ExitCode::SUCCESS && !accounts::process_is_clean(&before) {
        return ExitCode::FAILURE;
    }
    result
}

/// A runtime that does everything in the thread that calls it.
fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn two_threads() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Awaits something for as long as something that must happen is waited for.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(support::SOON, what).await.expect("it takes too long")
}

/// Polls something once, so that it waits, and drops it.
async fn must_wait(what: impl Future) {
    let mut what = std::pin::pin!(what);
    tokio::time::timeout(support::QUIET, &mut what).await.map(drop).expect_err("it has to wait");
}

/// Polls something once, outside of any task.
fn poll_once<T>(what: impl Future<Output = T>) -> Poll<T> {
    std::pin::pin!(what).poll(&mut Context::from_waker(Waker::noop()))
}

/// Numbers below `limit`, in no regular order.
fn irregular(limit: u64) -> impl Iterator<Item = u64> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) % limit
    })
}

/// Polls something until it has had to wait so many times, or for long, and drops it then.
async fn until_it_has_waited<T>(times: u64, what: impl Future<Output = T>) -> Option<T> {
    let (mut what, mut left) = (std::pin::pin!(what), times);
    let polling = std::future::poll_fn(|cx| match what.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    });
    tokio::time::timeout(support::QUIET / 5, polling).await.ok().flatten()
}
