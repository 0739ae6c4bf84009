//! Messages of the running kernel, read twice: by our codec and by netlink-packet-core's.
//!
//! With `NETFILTERQUEUE_CAPTURES=DIR` in the environment they are also written there, one per file
//! as hex on one line: the test data of the protocol crate. With `NETFILTERQUEUE_CAPTURES=-` they
//! are printed, which brings them out of a guest; `protocol/tests/data/README.md` has the command.
//!
//! Messages that need more to come about are kept by the tests of what they contain.

use std::fmt::Write as _;
use std::net::TcpListener;

use netfilterqueue::protocol::interop::QueueMessage;
use netfilterqueue::protocol::message::Message;
use netfilterqueue::protocol::packet::PacketMessage;
use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{CopyMode, Queue, QueueBuilder};
use netfilterqueue_netns::Namespace;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload, NlaBuffer, NlasIterator};

use crate::support::{SOON, UdpPair, V4, V6, receive_exactly};
use crate::{Test, tests};

pub const TESTS: [Test; 5] = tests![
    udp_over_ipv4_at_output,
    tcp_syn_over_ipv6_at_input,
    truncated_copy,
    attributes_without_payload,
    owner_of_the_socket,
];

/// Queues one packet of `protocol` that `send` makes, and reads its message.
fn capture(
    name: &str,
    builder: QueueBuilder,
    hook: Hook,
    protocol: Protocol,
    send: impl FnOnce(),
    check: impl FnOnce(&PacketMessage<'_>),
) {
    let mut queue = builder.bind().unwrap();
    let rules =
        Rules::new(hook).rule(Rule::queue(queue.numbers().next().unwrap()).protocol(protocol));
    let _rules = rules.install().unwrap();
    send();
    let mut batch = receive_exactly(&mut queue, 1);
    let packet = batch.iter_mut().next().unwrap();
    let message = packet.message();
    check(&message);
    keep(name, &message);
    packet.accept();
}

/// Reads a message once more with another codec and writes it down, if that is asked for.
pub fn keep(name: &str, message: &PacketMessage<'_>) {
    read_with_netlink_packet_core(message);
    let Some(place) = std::env::var_os("NETFILTERQUEUE_CAPTURES") else { return };
    let mut hex = String::new();
    message.bytes().iter().for_each(|byte| write!(hex, "{byte:02x}").unwrap());
    if place == "-" {
        // On a line of its own, whatever stands before.
        println!("\ncapture {name} {hex}");
    } else {
        let file = std::path::Path::new(&place).join(format!("{name}.hex"));
        std::fs::write(file, hex + "\n").unwrap();
    }
}

fn read_with_netlink_packet_core(message: &PacketMessage<'_>) {
    let parsed = NetlinkMessage::<QueueMessage>::deserialize(message.bytes()).unwrap();
    let ours = Message::parse(message.bytes()).unwrap();
    assert_eq!(parsed.header, ours.netlink_header());
    assert!(matches!(parsed.payload, NetlinkPayload::InnerMessage(_)));
    let attributes: Vec<NlaBuffer<&[u8]>> =
        NlasIterator::new(&message.bytes()[20..]).collect::<Result<_, _>>().unwrap();
    assert_eq!(attributes.len(), message.attributes().count());
    for (theirs, ours) in attributes.iter().zip(message.attributes().map(Result::unwrap)) {
        assert_eq!((theirs.kind(), theirs.value()), (ours.kind(), ours.value()));
    }
}

fn udp_over_ipv4_at_output(_: &Namespace) {
    let udp = UdpPair::new(V4);
    let send = || udp.send(b"five!");
    let builder = Queue::builder(7);
    capture("ipv4-output-udp", builder, Hook::OUTPUT, Protocol::UDP, send, |message| {
        assert_eq!((message.queue(), message.id(), message.family(), message.hook()), (7, 1, 2, 3));
        assert_eq!((message.indev(), message.outdev(), message.mark()), (None, Some(1), None));
        assert_eq!(message.payload().len(), 33);
        assert_eq!(message.bytes().len() % 4, 1, "the message ends with the payload, unpadded");
    });
    assert_eq!(udp.receive(), b"five!");
}

fn tcp_syn_over_ipv6_at_input(_: &Namespace) {
    let listener = TcpListener::bind((V6, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut connecting = None;
    let send = || connecting = Some(std::thread::spawn(move || connect(address)));
    let builder = Queue::builder(65_535);
    capture("ipv6-input-tcp-syn", builder, Hook::INPUT, Protocol::TCP, send, |message| {
        assert_eq!((message.queue(), message.family(), message.hook()), (65_535, 10, 1));
        assert_eq!((message.indev(), message.outdev()), (Some(1), None));
        assert_eq!(message.hw_protocol(), 0x86dd);
        assert_eq!(message.hwaddr(), Some(&[0; 6][..]), "loopback has an address of zeros");
        assert!(message.skb_info().unwrap().checksum_not_ready());
    });
    connecting.unwrap().join().unwrap();
}

/// The queue is gone when the handshake goes on, so this may fail; only the first packet matters.
fn connect(address: std::net::SocketAddr) {
    let _ = std::net::TcpStream::connect_timeout(&address, SOON / 10);
}

fn truncated_copy(_: &Namespace) {
    let udp = UdpPair::new(V4);
    let send = || udp.send(&[0x55; 1000]);
    let builder = Queue::builder(0).copy_mode(CopyMode::Packet { range: 41 });
    capture("ipv4-output-udp-truncated", builder, Hook::OUTPUT, Protocol::UDP, send, |message| {
        assert_eq!((message.payload().len(), message.cap_len()), (41, Some(1028)));
    });
    assert_eq!(udp.receive(), [0x55; 1000]);
}

fn attributes_without_payload(_: &Namespace) {
    let udp = UdpPair::new(V6);
    let send = || udp.send(b"unseen");
    let builder = Queue::builder(1).copy_mode(CopyMode::Meta);
    capture(
        "ipv6-prerouting-udp-meta",
        builder,
        Hook::PREROUTING,
        Protocol::UDP,
        send,
        |message| {
            assert_eq!((message.payload(), message.cap_len()), (&[][..], None));
            assert_eq!(message.index().payload_range(), None);
        },
    );
    assert_eq!(udp.receive(), b"unseen");
}

fn owner_of_the_socket(_: &Namespace) {
    let udp = UdpPair::new(V4);
    let send = || udp.send(b"whose?");
    let builder = Queue::builder(1).uid_gid(true);
    capture(
        "ipv4-postrouting-udp-uid",
        builder,
        Hook::POSTROUTING,
        Protocol::UDP,
        send,
        |message| {
            // The initial user namespace's numbers: in a user namespace of our own they are not
            // ours.
            assert!(message.uid().is_some() && message.gid().is_some());
        },
    );
    assert_eq!(udp.receive(), b"whose?");
}
