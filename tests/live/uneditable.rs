//! Packets that cannot be edited, and payloads that cannot be sent back: the packet can still be
//! judged.

use netfilterqueue::{Batch, CopyMode, EditError, Queue, Verdict};
use netfilterqueue_netns::Namespace;

use crate::craft::{correct, data};
use crate::edits::{MOST_DATA, bind, edit_one, pattern, replace_data};
use crate::support::{UdpPair, V4, V6, queue_udp, receive_exactly};
use crate::{Test, tests};

pub const TESTS: [Test; 7] = tests![
    a_truncated_packet_is_not_edited,
    a_retained_truncated_packet_is_not_edited,
    a_packet_too_long_to_copy_is_not_edited,
    a_packet_without_bytes_is_not_edited,
    a_payload_that_cannot_be_sent_is_refused,
    a_payload_without_its_network_header_is_refused,
    a_payload_longer_than_the_buffer_is_refused,
];

fn a_truncated_packet_is_not_edited(_: &Namespace) {
    let mut queue = copying(CopyMode::Packet { range: 40 });
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&pattern(1, 1_000));
    udp.send(&pattern(2, 12));
    let mut batch = receive_exactly(&mut queue, 2);
    let mut packets = batch.iter_mut();
    let mut cut = packets.next().unwrap();
    assert_eq!((cut.payload().len(), cut.original_len()), (40, Some(1_028)));
    let error = EditError::Truncated { copied: 40, full: 1_028 };
    assert_eq!(cut.payload_mut().unwrap_err(), error);
    assert_eq!(cut.set_payload(&[0x45; 40]).unwrap_err(), error);
    cut.accept();
    let mut whole = packets.next().unwrap();
    assert_eq!((whole.payload().len(), whole.original_len()), (40, None));
    replace_data(&mut whole, b"longer than the copy range allows");
    whole.accept();
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(2), [&pattern(1, 1_000)[..], b"longer than the copy range allows"]);
}

fn copying(copy_mode: CopyMode) -> Queue {
    Queue::builder(1).copy_mode(copy_mode).bind().unwrap()
}

fn a_retained_truncated_packet_is_not_edited(_: &Namespace) {
    let mut queue = copying(CopyMode::Packet { range: 40 });
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&pattern(1, 1_000));
    let mut packet = receive_exactly(&mut queue, 1).iter_mut().next().unwrap().retain().0;
    let error = EditError::Truncated { copied: 40, full: 1_028 };
    assert_eq!(packet.payload_mut().unwrap_err(), error);
    assert_eq!(packet.set_payload(&[0x45; 40]).unwrap_err(), error);
    assert_eq!((packet.payload().len(), packet.original_len()), (40, Some(1_028)));
    packet.accept().unwrap();
    assert_eq!(udp.receive_all(1), [pattern(1, 1_000)]);
}

fn a_packet_too_long_to_copy_is_not_edited(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(&pattern(1, MOST_DATA + 1));
    edit_one(&mut queue, |packet| {
        assert_eq!((packet.payload().len(), packet.original_len()), (65_531, Some(65_532)));
        let error = EditError::Truncated { copied: 65_531, full: 65_532 };
        assert_eq!(packet.payload_mut().unwrap_err(), error);
    });
    udp.send(&pattern(2, MOST_DATA));
    edit_one(&mut queue, |packet| {
        assert_eq!((packet.payload().len(), packet.original_len()), (65_531, None));
        correct(packet.payload_mut().unwrap());
    });
    assert_eq!(udp.receive_all(2), [pattern(1, MOST_DATA + 1), pattern(2, MOST_DATA)]);
}

fn a_packet_without_bytes_is_not_edited(_: &Namespace) {
    let mut queue = copying(CopyMode::Meta);
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..2);
    let mut batch = receive_exactly(&mut queue, 2);
    let mut packets = batch.iter_mut();
    let mut packet = packets.next().unwrap();
    assert_eq!((packet.payload(), packet.original_len()), (&[][..], None));
    assert_eq!(packet.payload_mut().unwrap_err(), EditError::NotCopied);
    assert_eq!(packet.set_payload(b"a").unwrap_err(), EditError::NotCopied);
    packet.accept();
    let mut retained = packets.next().unwrap().retain().0;
    assert_eq!(retained.payload_mut().unwrap_err(), EditError::NotCopied);
    assert_eq!(retained.set_payload(b"a").unwrap_err(), EditError::NotCopied);
    batch.commit().unwrap();
    retained.accept().unwrap();
    assert_eq!(udp.receive_all(2), [[0], [1]]);
}

fn a_payload_that_cannot_be_sent_is_refused(_: &Namespace) {
    const TOO_LONG: EditError = EditError::TooLong { len: 65_532, max: 65_531 };
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..2);
    let mut batch = receive_exactly(&mut queue, 2);
    let mut packets = batch.iter_mut();
    let mut packet = packets.next().unwrap();
    assert_eq!(packet.set_payload(&[]).unwrap_err(), EditError::Empty);
    assert_eq!(packet.set_payload(&[0; 65_532]).unwrap_err(), TOO_LONG);
    packet.accept();
    let mut retained = packets.next().unwrap().retain().0;
    assert_eq!(retained.set_payload(&[]).unwrap_err(), EditError::Empty);
    assert_eq!(retained.set_payload(&[0; 65_532]).unwrap_err(), TOO_LONG);
    batch.commit().unwrap();
    retained.accept().unwrap();
    assert_eq!(udp.receive_all(2), [[0], [1]]);
}

/// Kernels before 5.19 crash on them.
fn a_payload_without_its_network_header_is_refused(_: &Namespace) {
    for (address, min) in [(V4, 20), (V6, 40)] {
        let mut queue = bind();
        let _rules = queue_udp(1);
        let udp = UdpPair::new(address);
        udp.send_each(0..2);
        let mut batch = receive_exactly(&mut queue, 2);
        let mut packets = batch.iter_mut();
        let mut packet = packets.next().unwrap();
        let mut edited = packets.next().unwrap();
        edited.payload_mut().unwrap()[0] &= 0xf0;
        let mut retained = edited.retain().0;
        for len in [1, min - 1] {
            // An edit of the header that states its length makes no difference.
            packet.payload_mut().unwrap()[0] &= 0xf0;
            retained.payload_mut().unwrap()[0] &= 0xf0;
            let too_short = EditError::TooShort { len, min };
            assert_eq!(packet.set_payload(&vec![0x45; len]).unwrap_err(), too_short);
            assert_eq!(retained.set_payload(&vec![0x45; len]).unwrap_err(), too_short);
        }
        packet.verdict(Verdict::Drop);
        batch.commit().unwrap();
        retained.verdict(Verdict::Drop).unwrap();
        udp.expect_nothing();
    }
}

fn a_payload_longer_than_the_buffer_is_refused(_: &Namespace) {
    let mut queue = bind();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"before");
    let mut batch = Batch::with_buffer_len(2, 512);
    assert_eq!(queue.recv(&mut batch).unwrap(), 1);
    let mut packet = batch.iter_mut().next().unwrap();
    replace_data(&mut packet, b"an edit that fits");
    let error = packet.set_payload(&[0; 1_024]).unwrap_err();
    assert!(matches!(error, EditError::TooLong { len: 1_024, max } if max < 1_024), "{error}");
    assert_eq!(data(packet.payload()), b"an edit that fits");
    packet.accept();
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(1), [b"an edit that fits"]);
}
