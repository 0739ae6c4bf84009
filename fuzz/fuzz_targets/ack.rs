//! Answers to configuration requests among packets: no packet is lost, and only the right answer
//! ends the waiting.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|steps: &[u8]| netfilterqueue::fuzzing::ack(steps));
