//! Differences that any thread may find.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// So many are told; the others are counted.
const TOLD: usize = 20;

/// What was found to be wrong so far.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    found: AtomicU64,
    told: Mutex<Vec<String>>,
}

impl Trouble {
    pub(crate) fn report(&self, difference: impl FnOnce() -> String) {
        self.found.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < TOLD {
            told.push(difference());
        }
    }

    pub(crate) fn is_any(&self) -> bool {
        self.found.load(Ordering::Relaxed) > 0
    }

    /// The first differences, and how many there are in all.
    pub(crate) fn all(&self) -> (Vec<String>, u64) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        (told.clone(), self.found.load(Ordering::Relaxed))
    }
}
