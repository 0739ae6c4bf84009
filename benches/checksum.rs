//! What completing an edited packet costs, by its length. A benchmark's name is its knobs.

#![allow(missing_docs)] // criterion_group! makes an undocumented function

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use netfilterqueue::checksum::{self, Completion};

/// A segment without data, what every host takes, a full Ethernet frame, a jumbo frame, and the
/// longest packet that the kernel copies.
const LENGTHS: [usize; 5] = [40, 576, 1_500, 9_000, 65_531];

const TCP: u8 = 6;
const UDP: u8 = 17;

fn complete(c: &mut Criterion) {
    let mut group = c.benchmark_group("complete");
    for (name, version, protocol) in
        [("ipv4,tcp", 4, TCP), ("ipv4,udp", 4, UDP), ("ipv6,tcp", 6, TCP), ("ipv6,udp", 6, UDP)]
    {
        for len in LENGTHS {
            // 40 bytes are not enough for all headers.
            let len = len.max(headers_len(version, protocol));
            let mut packet = packet(version, protocol, len);
            assert_eq!(checksum::complete(&mut packet), Completion::Everything);
            group.throughput(Throughput::Bytes(len as u64));
            let id = BenchmarkId::from_parameter(format_args!("{name},bytes={len}"));
            group.bench_function(id, |b| {
                b.iter(|| checksum::complete(black_box(&mut packet)));
            });
        }
    }
    group.finish();
}

const fn ip_len(version: u8) -> usize {
    if version == 4 { 20 } else { 40 }
}

const fn headers_len(version: u8, protocol: u8) -> usize {
    ip_len(version) + if protocol == TCP { 20 } else { 8 }
}

/// A packet of `len` bytes whose lengths and checksums are to be set.
fn packet(version: u8, protocol: u8, len: usize) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
    let (ip, transport) = packet.split_at_mut(ip_len(version));
    ip.fill(0);
    ip[0] = version << 4;
    if version == 4 {
        // Five words of header, no fragment.
        ip[0] |= 5;
        (ip[8], ip[9]) = (64, protocol);
    } else {
        (ip[6], ip[7]) = (protocol, 64);
    }
    if protocol == TCP {
        transport[12] = 5 << 4;
    }
    packet
}

criterion_group!(benches, complete);
criterion_main!(benches);
