//! What reading and writing one message costs, without a socket. A benchmark's name is its knobs.
//!
//! The verdict policy, which is private, and everything else that a queue does with its packets
//! are not here: they happen between system calls, and the kernel's time, which is most of a
//! drain's, is not the same from one run to the next by more than they take. `instructions` counts
//! them instead.

#![allow(missing_docs)] // criterion_group! makes an undocumented function

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use netfilterqueue_benches::messages;
use netfilterqueue_protocol::config::{Command, ConfigFlags, ConfigMessage, CopyMode, FlagChange};
use netfilterqueue_protocol::message::{Message, Nfgenmsg};
use netfilterqueue_protocol::packet::PacketIndex;
use netfilterqueue_protocol::verdict::{Verdict, VerdictBatchMessage, VerdictMessage};

/// Captured messages of each size, and one with the payloads of a full Ethernet frame and of the
/// longest packet that the kernel copies.
fn messages() -> [(&'static str, Vec<u8>); 7] {
    [
        ("meta", messages::of(messages::META)),
        ("udp", messages::of(messages::OUTPUT_UDP)),
        ("udp,bridged", messages::of(messages::FORWARD_UDP)),
        ("tcp,conntrack", messages::of(messages::TCP_CONNTRACK)),
        ("tcp,everything", messages::of(messages::SYN_EVERYTHING)),
        ("udp,payload=1500", messages::with_payload(messages::OUTPUT_UDP, 1_500)),
        ("udp,payload=65531", messages::with_payload(messages::OUTPUT_UDP, 65_531)),
    ]
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    for (name, message) in messages() {
        PacketIndex::parse(&message).expect("a whole packet message");
        let id = BenchmarkId::from_parameter(format_args!("{name},bytes={}", message.len()));
        group.bench_with_input(id, &message, |b, message| {
            b.iter(|| PacketIndex::parse(black_box(message)));
        });
    }
    let message = messages::of(messages::OUTPUT_UDP);
    group.bench_function("udp,read=id+payload+mark+outdev", |b| {
        b.iter(|| {
            let index = PacketIndex::parse(black_box(&message)).expect("a whole packet message");
            let packet = index.view(&message);
            (packet.id(), packet.payload().len(), packet.mark(), packet.outdev())
        });
    });
    group.finish();
}

/// The walk alone, without checks of what each attribute holds.
fn attributes(c: &mut Criterion) {
    let mut group = c.benchmark_group("attributes");
    for (name, message) in messages() {
        let id = BenchmarkId::from_parameter(format_args!("{name},bytes={}", message.len()));
        group.bench_with_input(id, &message, |b, message| {
            b.iter(|| {
                let message = Message::parse(black_box(message)).expect("a whole message");
                let (_, attributes) = Nfgenmsg::parse(message.body()).expect("its header");
                for attribute in attributes {
                    black_box(attribute).expect("a whole attribute");
                }
            });
        });
    }
    group.finish();
}

fn verdict(c: &mut Criterion) {
    let mut group = c.benchmark_group("verdict");
    let payload = [0x45; 1_500];
    let accept = VerdictMessage::new(1, 42, Verdict::Accept);
    let marked = VerdictMessage { mark: Some(7), ..accept };
    let knobs = [
        ("accept", accept),
        ("accept,mark", marked),
        ("accept,mark,priority", VerdictMessage { priority: Some(1), ..marked }),
        ("accept,payload=100", VerdictMessage { payload: Some(&payload[..100]), ..accept }),
        ("accept,payload=1500", VerdictMessage { payload: Some(&payload), ..accept }),
    ];
    let mut out = Vec::with_capacity(2 * payload.len());
    for (name, verdict) in knobs {
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                black_box(&verdict).push(&mut out).expect("a payload that fits");
                black_box(&out);
            });
        });
    }
    // As a queue sends it: the payload is gathered from where it was received.
    for (name, verdict) in [("accept,head=1500", accept), ("accept,mark,head=1500", marked)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                let payload_len = Some(black_box(payload.len()));
                black_box(&verdict).push_head(&mut out, payload_len).expect("it fits");
                black_box(&out);
            });
        });
    }
    group.finish();
}

fn cumulative(c: &mut Criterion) {
    let mut out = Vec::with_capacity(64);
    let mut group = c.benchmark_group("cumulative");
    let accept = VerdictBatchMessage {
        queue: 1,
        last_id: 42,
        verdict: Verdict::Accept,
        mark: None,
        priority: None,
    };
    let marked = VerdictBatchMessage { mark: Some(7), ..accept };
    for (name, verdict) in [("accept", accept), ("accept,mark", marked)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                black_box(&verdict).push(&mut out);
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
            black_box(&config).push(&mut out, 1);
            black_box(&out);
        });
    });
}

criterion_group!(benches, parse, attributes, verdict, cumulative, config);
criterion_main!(benches);
