//! Completing any bytes as an IP packet: as another implementation would, and nothing left to do
//! the second time.
#![no_main]

#[path = "../../src/checksum/tests/oracle.rs"]
mod oracle;

use libfuzzer_sys::fuzz_target;
use netfilterqueue::checksum::{Completion, WhyIpOnly, complete};

fuzz_target!(|packet: &[u8]| {
    let mut once = packet.to_vec();
    let outcome = complete(&mut once);
    oracle::judge(packet, outcome, &once);
    let mut twice = once.clone();
    assert_eq!(complete(&mut twice), outcome);
    assert_eq!(twice, once);
});
