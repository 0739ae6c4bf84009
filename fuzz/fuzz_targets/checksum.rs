//! Completing any bytes as an IP packet: no panic, no other length, and nothing left to do the
//! second time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netfilterqueue::checksum::{self, Completion};

fuzz_target!(|packet: &[u8]| {
    let mut once = packet.to_vec();
    let completion = checksum::complete(&mut once);
    if matches!(completion, Completion::Nothing(_)) {
        assert_eq!(once, packet);
    }
    let mut twice = once.clone();
    assert_eq!(checksum::complete(&mut twice), completion);
    assert_eq!(twice, once);
});
