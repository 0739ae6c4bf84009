//! The conntrack entry that comes with a packet.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use netfilterqueue::conntrack::{ConntrackInfo, ConntrackStatus, Icmp, TcpState, Tuple};
use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{ConfigFlags, Queue};
use netfilterqueue_netns::Namespace;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use crate::captures::keep;
use crate::flows::{Flow, Seen, accept_one, mirrored, unchanged};
use crate::kernel::bind_with_conntrack;
use crate::support::{
    UdpPair, V4, V6, internet_checksum, judge_while, queue_udp, receive_exactly, wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 10] = tests![
    the_flag_is_supported_where_a_queue_takes_it,
    without_the_flag_or_without_conntrack_there_is_no_entry,
    a_udp_flow_over_ipv4_has_one_entry,
    a_udp_flow_over_ipv6_has_one_entry,
    a_tcp_connection_goes_through_its_states,
    an_echo_request_has_an_id_in_place_of_ports,
    errors_are_related_to_their_flow_over_ipv4,
    errors_are_related_to_their_flow_over_ipv6,
    translated_addresses_are_in_the_reply_direction,
    the_full_tree_is_readable,
];

fn the_flag_is_supported_where_a_queue_takes_it(_: &Namespace) {
    let supported = Queue::supported_flags().unwrap();
    let others = ConfigFlags::FAIL_OPEN | ConfigFlags::GSO | ConfigFlags::UID_GID;
    assert!(supported.contains(others), "{supported}");
    // Asserts the rest.
    if let Some(queue) = bind_with_conntrack(Queue::builder(1)) {
        assert!(queue.flags().contains(ConfigFlags::CONNTRACK));
    }
}

fn without_the_flag_or_without_conntrack_there_is_no_entry(namespace: &Namespace) {
    let Some(mut queue) = bind_with_conntrack(Queue::builder(1)) else { return };
    let mut plain = Queue::builder(2).bind().unwrap();
    let udp = UdpPair::new(V4);
    let expect_no_entry = |queue: &mut Queue| {
        udp.send(b"?");
        let mut batch = receive_exactly(queue, 1);
        let packet = batch.iter_mut().next().unwrap();
        assert_eq!((packet.conntrack(), packet.conntrack_info()), (None, None));
        packet.accept();
        batch.commit().unwrap();
        udp.receive();
    };
    let rules = queue_udp(1);
    expect_no_entry(&mut queue);
    rules.remove().unwrap();
    namespace.track_connections().unwrap();
    let _rules = queue_udp(2);
    expect_no_entry(&mut plain);
}

fn a_udp_flow_over_ipv4_has_one_entry(namespace: &Namespace) {
    udp_flow(namespace, V4);
}

fn a_udp_flow_over_ipv6_has_one_entry(namespace: &Namespace) {
    udp_flow(namespace, V6);
}

fn udp_flow(namespace: &Namespace, address: IpAddr) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    let flow = Flow::new(address);
    let first = flow.ask(&mut queue, |packet| {
        let version = if address == V4 { 4 } else { 6 };
        keep(&format!("ipv{version}-output-udp-ct-new"), &packet.message());
    });
    assert_eq!(first.info, ConntrackInfo::NEW);
    assert!(!first.is_confirmed(), "{first:?}");
    assert_eq!((first.original, first.reply), (flow.tuple(), mirrored(flow.tuple())));
    assert_eq!((first.mark, first.labels, first.tcp_state), (0, None, None));

    let second = flow.ask(&mut queue, unchanged);
    let answer = flow.answer(&mut queue, unchanged);
    let last = flow.ask(&mut queue, unchanged);
    let infos = [second, answer, last].map(|seen| seen.info);
    let expected =
        [ConntrackInfo::NEW, ConntrackInfo::ESTABLISHED_REPLY, ConntrackInfo::ESTABLISHED];
    assert_eq!(infos, expected);
    for seen in [second, answer, last] {
        let is_answered = seen != second;
        assert!(seen.is_confirmed(), "{seen:?}");
        assert_eq!(seen.status.contains(ConntrackStatus::SEEN_REPLY), is_answered, "{seen:?}");
        assert!((1..=180).contains(&seen.timeout), "{seen:?}");
        assert_eq!((seen.id, seen.original, seen.reply), (first.id, first.original, first.reply));
    }
    assert_ne!(Flow::new(address).ask(&mut queue, unchanged).id, first.id);
}

fn a_tcp_connection_goes_through_its_states(namespace: &Namespace) {
    let Some(mut queue) = bind_with_conntrack(Queue::builder(1)) else { return };
    namespace.track_connections().unwrap();
    let rule = Rule::queue(1).protocol(Protocol::TCP);
    let _rules = Rules::new(Hook::OUTPUT).rule(rule).install().unwrap();
    let seen = Mutex::new(Vec::new());
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let addresses = judge_while(
        &mut queue,
        |packet| {
            seen.lock().unwrap().push(Seen::in_packet(&packet));
            if seen.lock().unwrap().len() == 3 {
                keep("ipv4-output-tcp-ct-established", &packet.message());
            }
            packet.accept()
        },
        || {
            let is_in = |state| {
                wait_until("a state", || {
                    seen.lock().unwrap().last().unwrap().tcp_state == Some(state)
                });
            };
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, source) = listener.accept().unwrap();
            client.write_all(b"hello").unwrap();
            server.read_exact(&mut [0; 5]).unwrap();
            drop(client);
            is_in(TcpState::CLOSE_WAIT);
            drop(server);
            is_in(TcpState::TIME_WAIT);
            (source, listener.local_addr().unwrap())
        },
    );
    let seen = seen.into_inner().unwrap();
    let mut states: Vec<_> = seen.iter().map(|seen| seen.tcp_state.unwrap()).collect();
    states.dedup();
    let expected = [
        TcpState::SYN_SENT,
        TcpState::SYN_RECV,
        TcpState::ESTABLISHED,
        TcpState::FIN_WAIT,
        TcpState::CLOSE_WAIT,
        TcpState::LAST_ACK,
        TcpState::TIME_WAIT,
    ];
    assert_eq!(states, expected);
    let (source, destination) = addresses;
    let first = seen[0];
    for (at, seen) in seen.iter().enumerate() {
        let ends = (seen.original.source, seen.original.source_port, seen.original.protocol);
        assert_eq!(ends, (source.ip(), Some(source.port()), 6));
        assert_eq!(seen.original.destination_port, Some(destination.port()));
        assert_eq!((seen.id, seen.reply), (first.id, mirrored(first.original)));
        let expected = match at {
            0 => ConntrackInfo::NEW,
            _ if seen.info.is_reply() => ConntrackInfo::ESTABLISHED_REPLY,
            _ => ConntrackInfo::ESTABLISHED,
        };
        assert_eq!(seen.info, expected, "packet {at}");
        // The third packet ends the handshake.
        let status =
            [ConntrackStatus::CONFIRMED, ConntrackStatus::SEEN_REPLY, ConntrackStatus::ASSURED];
        let has = status.map(|bit| seen.status.contains(bit));
        assert_eq!(has, [at >= 1, at >= 1, at >= 2], "packet {at}");
    }
}

/// The kernel answers.
fn send_echo_request(to: IpAddr, id: u16) {
    let (family, protocol, kind) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
    };
    let [high, low] = id.to_be_bytes();
    let mut message = [kind, 0, 0, 0, high, low, 0, 1];
    // In ICMPv6 the kernel does this.
    let sum = internet_checksum(&[&message]);
    message[2..4].copy_from_slice(&sum);
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
    let to = SockaddrStorage::from(std::net::SocketAddr::from((to, 0)));
    sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty()).unwrap();
}

fn an_echo_request_has_an_id_in_place_of_ports(namespace: &Namespace) {
    const ID: u16 = 0x1234;
    let Some(mut queue) = bind_with_conntrack(Queue::builder(1)) else { return };
    namespace.track_connections().unwrap();
    let rules = [Protocol::ICMP, Protocol::ICMPV6].map(|kind| Rule::queue(1).protocol(kind));
    let [icmp, icmpv6] = rules;
    let _rules = Rules::new(Hook::OUTPUT).rule(icmp).rule(icmpv6).install().unwrap();
    for (address, protocol, request, reply) in [(V4, 1, 8, 0), (V6, 58, 128, 129)] {
        send_echo_request(address, ID);
        // The answer is made while the request's verdict is carried out.
        let seen = ["request", "reply"].map(|message| {
            accept_one(&mut queue, |packet| {
                let version = if address == V4 { 4 } else { 6 };
                keep(&format!("ipv{version}-output-icmp-ct-{message}"), &packet.message());
            })
        });
        let of_kind = |kind| Tuple {
            source: address,
            destination: address,
            protocol,
            source_port: None,
            destination_port: None,
            icmp: Some(Icmp { id: ID, kind, code: 0 }),
            zone: None,
        };
        for Seen { id, original, reply: answer, tcp_state, .. } in seen {
            assert_eq!((original, answer), (of_kind(request), of_kind(reply)));
            assert_eq!((id, tcp_state), (seen[0].id, None));
        }
        let infos = seen.map(|seen| seen.info);
        assert_eq!(infos, [ConntrackInfo::NEW, ConntrackInfo::ESTABLISHED_REPLY]);
    }
}

fn errors_are_related_to_their_flow_over_ipv4(namespace: &Namespace) {
    errors_are_related(namespace, V4, Protocol::ICMP);
}

fn errors_are_related_to_their_flow_over_ipv6(namespace: &Namespace) {
    errors_are_related(namespace, V6, Protocol::ICMPV6);
}

fn errors_are_related(namespace: &Namespace, address: IpAddr, protocol: Protocol) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    let rule = Rule::queue(1).protocol(protocol);
    let _icmp_rules = Rules::new(Hook::OUTPUT).rule(rule).install().unwrap();
    // An error about a packet goes against its direction.
    let Flow { udp } = Flow::new(address);
    drop(udp.receiver);
    udp.sender.send(b"nobody is there").unwrap();
    let sent = accept_one(&mut queue, unchanged);
    let error = accept_one(&mut queue, unchanged);
    assert_eq!((sent.info, error.info), (ConntrackInfo::NEW, ConntrackInfo::RELATED_REPLY));
    assert_eq!((error.id, error.original), (sent.id, sent.original), "of the flow it is about");

    let flow = Flow::new(address);
    let asked = flow.ask(&mut queue, unchanged);
    let source = flow.source();
    drop(flow.udp.sender);
    flow.udp.receiver.send_to(b"nobody is there any more", source).unwrap();
    let answer = accept_one(&mut queue, unchanged);
    let error = accept_one(&mut queue, unchanged);
    let infos = (answer.info, error.info);
    assert_eq!(infos, (ConntrackInfo::ESTABLISHED_REPLY, ConntrackInfo::RELATED));
    assert_eq!(error.id, asked.id);
}

/// What is sent to 127.0.0.1 goes to 127.0.0.2, from 127.0.0.3 as the receiver sees it.
fn translated_addresses_are_in_the_reply_direction(namespace: &Namespace) {
    let [told, real, seen_as] = [1, 2, 3].map(|host| Ipv4Addr::new(127, 0, 0, host));
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::INPUT) else { return };
    namespace.translate_destinations(real).unwrap();
    namespace.translate_sources(seen_as).unwrap();
    let Flow { udp } = Flow::new(real.into());
    let sender = Flow::new(told.into()).udp.sender;
    let port = udp.receiver_address().port();
    sender.connect((told, port)).unwrap();
    sender.send(b"to another").unwrap();
    let seen = accept_one(&mut queue, |packet| {
        let addresses = &packet.payload()[12..20];
        assert_eq!(addresses, [seen_as.octets(), real.octets()].concat());
        keep("ipv4-input-udp-ct-nat", &packet.message());
    });
    udp.receive();
    assert_eq!(seen.original.source, IpAddr::from(told));
    assert_eq!(seen.original.destination, IpAddr::from(told));
    assert_eq!(seen.reply.source, IpAddr::from(real));
    assert_eq!(seen.reply.destination, IpAddr::from(seen_as));
    assert_eq!((seen.original.destination_port, seen.reply.source_port), (Some(port), Some(port)));
    let translated = ConntrackStatus::SRC_NAT | ConntrackStatus::DST_NAT;
    let done = ConntrackStatus::SRC_NAT_DONE | ConntrackStatus::DST_NAT_DONE;
    assert!(seen.status.contains(translated | done), "{seen:?}");
}

/// In the eyes of another crate, if this one was built to ask it.
fn the_full_tree_is_readable(namespace: &Namespace) {
    let Some((mut queue, _rules)) = Flow::queue_at(namespace, Hook::OUTPUT) else { return };
    let flow = Flow::new(V6);
    let mut count = 0;
    let seen = flow.ask(&mut queue, |packet| {
        let entry = packet.conntrack().unwrap();
        let own = netfilterqueue::protocol::attribute::Attributes::new(entry.bytes());
        count = own.map(Result::unwrap).count();
        #[cfg(feature = "conntrack-attributes")]
        full_tree::expect(&entry, count, flow.tuple());
    });
    assert!(count >= 6, "tuples, id, status, timeout and use at least: {count}");
    assert_eq!(seen.original, flow.tuple());
}

#[cfg(feature = "conntrack-attributes")]
mod full_tree {
    use netfilterqueue::conntrack::{Conntrack, Tuple};
    use netlink_packet_netfilter::conntrack::{
        ConntrackAttribute, IPTuple, ProtoTuple, Tuple as TupleAttribute,
    };

    pub(super) fn expect(entry: &Conntrack<'_>, count: usize, tuple: Tuple) {
        let attributes = entry.to_attributes().unwrap();
        assert_eq!(attributes.len(), count);
        let original = attributes.iter().find_map(|attribute| match attribute {
            ConntrackAttribute::CtaTupleOrig(original) => Some(original),
            _ => None,
        });
        let addresses = TupleAttribute::Ip(vec![
            IPTuple::SourceAddress(tuple.source),
            IPTuple::DestinationAddress(tuple.destination),
        ]);
        let ports = TupleAttribute::Proto(vec![
            ProtoTuple::Protocol(tuple.protocol.into()),
            ProtoTuple::SourcePort(tuple.source_port.unwrap()),
            ProtoTuple::DestinationPort(tuple.destination_port.unwrap()),
        ]);
        assert_eq!(original, Some(&vec![addresses, ports]));
    }
}
