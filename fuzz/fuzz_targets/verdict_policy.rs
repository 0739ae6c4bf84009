//! Batches, retained packets, failing sends, two threads, changing rules: every packet gets one
//! verdict, the chosen one, and none is overtaken.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: &[u8]| netfilterqueue::fuzzing::verdict_policy(steps));
