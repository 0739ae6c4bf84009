//! What can be parsed can be written, and is the same when parsed and written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netfilterqueue_protocol::EncodeError;
use netfilterqueue_protocol::config::ConfigMessage;
use netfilterqueue_protocol::message::Message;
use netfilterqueue_protocol::verdict::{VerdictBatchMessage, VerdictMessage};

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = Message::parse(bytes) else { return };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    if let Ok(verdict) = VerdictMessage::parse(message) {
        if let Err(error) = verdict.push(&mut first) {
            // The one thing that can be received and not sent.
            assert_eq!((error, verdict.payload), (EncodeError::EmptyPayload, Some(&[][..])));
            return;
        }
        let parsed = VerdictMessage::parse(Message::parse(&first).unwrap()).unwrap();
        assert_eq!(parsed, verdict);
        parsed.push(&mut second).unwrap();
    } else if let Ok(batch) = VerdictBatchMessage::parse(message) {
        batch.push(&mut first);
        let parsed = VerdictBatchMessage::parse(Message::parse(&first).unwrap()).unwrap();
        assert_eq!(parsed, batch);
        parsed.push(&mut second);
    } else if let Ok(config) = ConfigMessage::parse(message) {
        config.push(message.sequence(), &mut first);
        let parsed = ConfigMessage::parse(Message::parse(&first).unwrap()).unwrap();
        assert_eq!(parsed, config);
        parsed.push(message.sequence(), &mut second);
    }
    assert_eq!(first, second);
});
