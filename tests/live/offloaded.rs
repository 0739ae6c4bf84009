//! Packets with something left to do for whoever sends them: segmenting, or a checksum. An edit must not
//! make it impossible.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use netfilterqueue::rules::{Protocol, Rule, Rules};
use netfilterqueue::{EditError, Hook, Queue, SkbInfo};
use netfilterqueue_netns::{Error, Namespace};
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;

use crate::completed::{FAMILIES, Path, checksum_errors, expect_no_checksum_errors};
use crate::craft::data_mut;
use crate::edits::pattern;
use crate::harness::{Test, tests};
use crate::kernel::lacks;
use crate::support::{Peers, SERVER_V4, UdpPair, connect, judge_while, receive_exactly};

pub const TESTS: [Test; 4] = tests![
    a_udp_super_packet_is_not_edited,
    a_tcp_super_packet_is_not_shortened,
    udp_that_was_cut_is_edited,
    a_packet_with_another_ones_checksum_is_not_edited,
];

/// What one call of a UDP sender is cut into, and how many of them.
const SEGMENT: usize = 1_000;
const SEGMENTS: usize = 12;

/// A sender whose one call makes several datagrams, and what it sends.
fn sender_of_segments(peers: &Peers, (client, server): (IpAddr, IpAddr)) -> (UdpPair, Vec<u8>) {
    let udp = UdpPair::between((&peers.client, client), (&peers.server, server));
    setsockopt(&udp.sender, UdpGsoSegment, &(SEGMENT as i32)).unwrap();
    (udp, pattern(1, SEGMENT * SEGMENTS))
}

fn a_udp_super_packet_is_not_edited(router: &Namespace) {
    let peers = Peers::of(router);
    for addresses in FAMILIES {
        let mut path = Path::new(Protocol::UDP, true);
        let (udp, sent) = sender_of_segments(&peers, addresses);
        udp.send(&sent);
        let mut batch = receive_exactly(&mut path.queue, 1);
        let mut packet = batch.iter_mut().next().unwrap();
        if packet.skb_info().is_some_and(SkbInfo::is_gso) {
            assert_eq!(packet.payload_mut(), Err(EditError::UdpSuperPacket));
            let payload = packet.payload().to_vec();
            assert_eq!(packet.set_payload(&payload), Err(EditError::UdpSuperPacket));
            packet.accept();
            batch.commit().unwrap();
        } else {
            lacks("UDP super-packets", "they are cut before they reach a veth link");
            drop(batch);
            continue;
        }
        assert!(udp.receive_all(SEGMENTS).concat() == sent, "it is still to be judged");
    }
    expect_no_checksum_errors(&peers);
}

fn a_tcp_super_packet_is_not_shortened(router: &Namespace) {
    let peers = Peers::of(router);
    let mut path = Path::new(Protocol::TCP, true);
    let listener = peers.server.run(|| TcpListener::bind((SERVER_V4, 0)).unwrap());
    let sent = pattern(1, 1 << 20);
    let refused = AtomicUsize::new(0);
    judge_while(
        &mut path.queue,
        |mut packet| {
            if packet.skb_info().is_some_and(SkbInfo::is_gso) {
                let payload = packet.payload().to_vec();
                let shorter = packet.set_payload(&payload[..payload.len() - 1]);
                assert_eq!(shorter, Err(EditError::ShorterSuperPacket));
                refused.fetch_add(1, Ordering::Relaxed);
                packet.set_payload(&payload).expect("of the same length");
            }
            packet.accept()
        },
        || {
            let (mut client, mut server) = connect(&peers.client, &listener);
            let mut received = vec![0; sent.len()];
            thread::scope(|scope| {
                scope.spawn(|| client.write_all(&sent).unwrap());
                server.read_exact(&mut received).expect("all of it arrives");
            });
            assert!(received == sent);
        },
    );
    assert!(refused.into_inner() > 0, "there were super-packets");
    expect_no_checksum_errors(&peers);
}

fn udp_that_was_cut_is_edited(router: &Namespace) {
    let peers = Peers::of(router);
    for addresses in FAMILIES {
        let mut path = Path::new(Protocol::UDP, false);
        let (udp, sent) = sender_of_segments(&peers, addresses);
        judge_while(
            &mut path.queue,
            |mut packet| {
                data_mut(packet.payload_mut().unwrap()).iter_mut().for_each(|byte| *byte = !*byte);
                packet.accept()
            },
            || {
                udp.send(&sent);
                let received = udp.receive_all(SEGMENTS).concat();
                assert!(received.iter().map(|byte| !byte).eq(sent), "each byte is inverted");
            },
        );
    }
    expect_no_checksum_errors(&peers);
}

/// The checksum that is not ready is that of the TCP segment in the tunnel.
fn a_packet_with_another_ones_checksum_is_not_edited(here: &Namespace) {
    const OUTER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 6, 0, 1), Ipv4Addr::new(10, 6, 0, 2)];
    const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 7, 0, 1), Ipv4Addr::new(10, 7, 0, 2)];
    let there = Namespace::new().unwrap();
    here.veth("outer", &there, "outer").unwrap();
    for (at, namespace) in [here, &there].into_iter().enumerate() {
        namespace.add_address("outer", OUTER[at].into(), 24).unwrap();
        match namespace.vxlan("inner", 5, OUTER[1 - at]) {
            // A kernel without such tunnels says so.
            Err(Error::System { source, .. })
                if source.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) =>
            {
                return;
            }
            result => result.unwrap(),
        }
        namespace.add_address("inner", INNER[at].into(), 24).unwrap();
    }
    let mut queue = Queue::builder(1).bind().unwrap();
    let rule = Rule::queue(1).protocol(Protocol::UDP).destination_port(4789);
    let _rules = Rules::new(Hook::OUTPUT).rule(rule).install().unwrap();
    let listener = there.run(|| TcpListener::bind((INNER[1], 0)).unwrap());
    let mut refused = 0;
    judge_while(
        &mut queue,
        |mut packet| {
            match packet.payload_mut() {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error, EditError::UnfinishedChecksum);
                    refused += 1;
                }
            }
            packet.accept()
        },
        || {
            let (mut client, mut server) = connect(here, &listener);
            client.write_all(b"through the tunnel").unwrap();
            let mut received = [0; 18];
            server.read_exact(&mut received).expect("it arrives");
            assert_eq!(&received, b"through the tunnel");
        },
    );
    assert!(refused > 0, "the inner checksums were not ready");
    assert_eq!(checksum_errors(&there), 0, "the kernel found checksums wrong");
}
