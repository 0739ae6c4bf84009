//! Any message: what is written is read the same, and written again the same; what is read from any
//! bytes can be written.
#![no_main]

#[path = "../common.rs"]
mod common;

use common::model::{
    Model, NUMBERS, batch_round_trip, config_round_trip, packet_round_trip, verdict_round_trip,
};
use common::touch::change_round_trip;
use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use netfilterqueue_protocol::EncodeError;
use netfilterqueue_protocol::attribute::MAX_VALUE_LEN;
use netfilterqueue_protocol::config::{Command, ConfigFlags, ConfigMessage, CopyMode, FlagChange};
use netfilterqueue_protocol::conntrack::{
    ConntrackChange, ConntrackStatus, LabelsChange, MarkChange,
};
use netfilterqueue_protocol::interop::QueueMessage;
use netfilterqueue_protocol::message::Message;
use netfilterqueue_protocol::packet::Vlan;
use netfilterqueue_protocol::verdict::{Verdict, VerdictBatchMessage, VerdictMessage};
use netlink_packet_core::NetlinkMessage;

fuzz_target!(|bytes: &[u8]| {
    // Too few bytes end the reading of the parts, not the round trip: they count as zeros.
    let _ = made(&mut Unstructured::new(bytes));
    if let Ok(message) = Message::parse(bytes) {
        read(message);
        // In the other crate's envelope, or refused there.
        if let Err(error) = NetlinkMessage::<QueueMessage>::deserialize(bytes) {
            assert!(!error.to_string().is_empty());
        }
    }
});

/// A message made of parts, by its first byte.
fn made(u: &mut Unstructured<'_>) -> Result<()> {
    match u8::arbitrary(u)? % 6 {
        0 => packet_round_trip(&packet(u)?, usize::from(u8::arbitrary(u)?)),
        1 => verdict_round_trip(VerdictMessage {
            queue: u.arbitrary()?,
            id: u.arbitrary()?,
            verdict: verdict(u)?,
            mark: u.arbitrary()?,
            priority: u.arbitrary()?,
            vlan: vlan(u)?,
            l2_header: u.arbitrary()?,
            conntrack: change(u)?,
            expectation: u.arbitrary()?,
            payload: Option::<&[u8]>::arbitrary(u)?.filter(|payload| !payload.is_empty()),
        }),
        2 => batch_round_trip(VerdictBatchMessage {
            queue: u.arbitrary()?,
            last_id: u.arbitrary()?,
            verdict: verdict(u)?,
            mark: u.arbitrary()?,
            priority: u.arbitrary()?,
        }),
        3 => config_round_trip(config(u)?, u.arbitrary()?),
        4 => head_of_any_payload(u.arbitrary()?),
        _ => change(u)?.into_iter().for_each(change_round_trip),
    }
    Ok(())
}

/// A payload of a length that fits, or an error that leaves nothing behind.
fn head_of_any_payload(len: u32) {
    let mut head = Vec::new();
    let len = usize::try_from(len).expect("a 32-bit machine or larger");
    match VerdictMessage::new(1, 2, Verdict::Accept).push_head(&mut head, Some(len)) {
        Ok(()) => assert!((1..=MAX_VALUE_LEN).contains(&len)),
        Err(error) => {
            assert!(!(1..=MAX_VALUE_LEN).contains(&len) && head.is_empty());
            assert!(!error.to_string().is_empty());
        }
    }
}

/// What was read can be written, and is the same when read again.
fn read(message: Message<'_>) {
    if let Ok(verdict) = VerdictMessage::parse(message) {
        match verdict.payload {
            // The one thing that can be received and not sent.
            Some([]) => {
                assert_eq!(verdict.push(&mut Vec::new()), Err(EncodeError::EmptyPayload));
            }
            _ => verdict_round_trip(verdict),
        }
    }
    VerdictBatchMessage::parse(message).into_iter().for_each(batch_round_trip);
    if let Ok(config) = ConfigMessage::parse(message) {
        config_round_trip(config, message.sequence());
    }
}

fn packet(u: &mut Unstructured<'_>) -> Result<Model> {
    let (queue, family, id, protocol, hook) = u.arbitrary()?;
    let numbers: Vec<(u8, u32)> = u.arbitrary()?;
    let numbers = numbers.into_iter().map(|(at, number)| (NUMBERS[usize::from(at) % 12], number));
    // Beyond those that mean something.
    let unknown: Vec<(u16, Vec<u8>)> = u.arbitrary()?;
    let unknown = unknown.into_iter().map(|(kind, value)| (23 + kind % 0x3fe8, value));
    Ok(Model {
        queue,
        family,
        id,
        protocol,
        hook,
        numbers: numbers.collect(),
        secctx: u.arbitrary()?,
        vlan: vlan(u)?,
        l2_header: u.arbitrary()?,
        conntrack: u.arbitrary()?,
        payload: u.arbitrary()?,
        unknown: unknown.collect(),
    })
}

fn verdict(u: &mut Unstructured<'_>) -> Result<Verdict> {
    Ok(match u8::arbitrary(u)? % 5 {
        0 => Verdict::Accept,
        1 => Verdict::Drop,
        2 => Verdict::Repeat,
        3 => Verdict::Stop,
        _ => Verdict::Queue { number: u.arbitrary()?, bypass: u.arbitrary()? },
    })
}

fn vlan(u: &mut Unstructured<'_>) -> Result<Option<Vlan>> {
    let vlan: Option<(u16, u16)> = u.arbitrary()?;
    Ok(vlan.map(|(proto, tci)| Vlan { proto, tci }))
}

fn change(u: &mut Unstructured<'_>) -> Result<Option<ConntrackChange>> {
    if !bool::arbitrary(u)? {
        return Ok(None);
    }
    // Masks of all ones are written differently, and not found by chance.
    let mark: Option<(u32, Option<u32>)> = u.arbitrary()?;
    let labels: Option<([u8; 16], Option<[u8; 16]>)> = u.arbitrary()?;
    Ok(Some(ConntrackChange {
        timeout: u.arbitrary()?,
        status: Option::<u32>::arbitrary(u)?.map(ConntrackStatus),
        labels: labels.map(|(value, mask)| match mask {
            Some(mask) => LabelsChange::bits(value, mask),
            None => LabelsChange::set(value),
        }),
        mark: mark.map(|(value, mask)| match mask {
            Some(mask) => MarkChange { value, mask },
            None => MarkChange::set(value),
        }),
    }))
}

fn config(u: &mut Unstructured<'_>) -> Result<ConfigMessage> {
    let command = match u8::arbitrary(u)? % 5 {
        0 => None,
        1 => Some(Command::Bind),
        2 => Some(Command::Unbind),
        3 => Some(Command::PfBind),
        _ => Some(Command::PfUnbind),
    };
    let copy_mode = match Option::<Option<u32>>::arbitrary(u)? {
        None => None,
        Some(None) => Some(CopyMode::Meta),
        Some(Some(range)) => Some(CopyMode::Packet { range }),
    };
    let flags: Option<(u32, u32)> = u.arbitrary()?;
    let flags = flags
        .map(|(mask, values)| FlagChange { mask: ConfigFlags(mask), values: ConfigFlags(values) });
    let (queue, max_len) = u.arbitrary()?;
    Ok(ConfigMessage { queue, command, copy_mode, max_len, flags })
}
