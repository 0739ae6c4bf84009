//! What reading and writing one message costs, without a socket. A benchmark's name is its knobs.

#![allow(missing_docs)] // criterion_group! makes an undocumented function

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use netfilterqueue_protocol::attribute::{push, push_nested, push_u16_be, push_u32_be};
use netfilterqueue_protocol::config::{Command, ConfigFlags, ConfigMessage, CopyMode, FlagChange};
use netfilterqueue_protocol::constants::*;
use netfilterqueue_protocol::packet::PacketIndex;
use netfilterqueue_protocol::verdict::{Verdict, VerdictBatchMessage, VerdictMessage};

/// A packet message with the attributes that a forwarded packet has.
fn packet(payload_len: usize) -> Vec<u8> {
    let mut attributes = Vec::new();
    push(&mut attributes, NFQA_PACKET_HDR, &[0, 0, 0, 42, 8, 0, NF_INET_FORWARD]);
    push_u32_be(&mut attributes, NFQA_IFINDEX_INDEV, 2);
    push_u32_be(&mut attributes, NFQA_IFINDEX_OUTDEV, 3);
    push_u32_be(&mut attributes, NFQA_MARK, 7);
    push(&mut attributes, NFQA_HWADDR, &[0, 6, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0]);
    push_nested(&mut attributes, NFQA_VLAN, |out| {
        push_u16_be(out, NFQA_VLAN_TCI, 100);
        push_u16_be(out, NFQA_VLAN_PROTO, 0x8100);
    });
    push(&mut attributes, NFQA_PAYLOAD, &vec![0x45; payload_len]);

    let length = u32::try_from(20 + attributes.len()).expect("a message of at most 64 KiB");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(NFQNL_MSG_PACKET.to_ne_bytes());
    // Flags, sequence and port id are 0 in the kernel's packets.
    message.extend([0; 10]);
    message.extend([NFPROTO_IPV4, NFNETLINK_V0, 0, 1]);
    message.extend(attributes);
    message
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    // A small packet, and the longest payload that the kernel copies.
    for payload_len in [100, 65_531] {
        let message = packet(payload_len);
        let id = BenchmarkId::from_parameter(format_args!("payload={payload_len}"));
        group.bench_with_input(id, &message, |b, message| {
            b.iter(|| PacketIndex::parse(black_box(message)));
        });
    }
    let message = packet(100);
    group.bench_function("payload=100,read=id+payload+mark+indev", |b| {
        b.iter(|| {
            let index = PacketIndex::parse(black_box(&message)).expect("a whole packet");
            let packet = index.view(&message);
            (packet.id(), packet.payload().len(), packet.mark(), packet.indev())
        });
    });
    group.finish();
}

fn verdict(c: &mut Criterion) {
    let mut group = c.benchmark_group("verdict");
    let payload = [0x45; 100];
    let accept = VerdictMessage::new(1, 42, Verdict::Accept);
    let knobs = [
        ("accept", accept),
        ("accept,mark", VerdictMessage { mark: Some(7), ..accept }),
        ("accept,payload=100", VerdictMessage { payload: Some(&payload), ..accept }),
    ];
    let mut out = Vec::with_capacity(256);
    for (name, verdict) in knobs {
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                black_box(&verdict).push(&mut out).expect("a payload that fits");
                black_box(&out);
            });
        });
    }
    group.finish();
}

fn batch(c: &mut Criterion) {
    let mut out = Vec::with_capacity(64);
    let mut group = c.benchmark_group("batch");
    for (name, mark) in [("accept", None), ("accept,mark", Some(7))] {
        let batch = VerdictBatchMessage {
            queue: 1,
            last_id: 42,
            verdict: Verdict::Accept,
            mark,
            priority: None,
        };
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                black_box(&batch).push(&mut out);
                black_box(&out);
            });
        });
    }
    group.finish();
}

fn config(c: &mut Criterion) {
    let config = ConfigMessage {
        copy_mode: Some(CopyMode::WHOLE),
        max_len: Some(4096),
        flags: Some(FlagChange {
            mask: ConfigFlags::FAIL_OPEN | ConfigFlags::GSO,
            values: ConfigFlags::GSO,
        }),
        ..ConfigMessage::command(1, Command::Bind)
    };
    let mut out = Vec::with_capacity(64);
    c.bench_function("config/bind,params,maxlen,flags", |b| {
        b.iter(|| {
            out.clear();
            black_box(&config).push(1, &mut out);
            black_box(&out);
        });
    });
}

criterion_group!(benches, parse, verdict, batch, config);
criterion_main!(benches);
