//! What the tests of no other library ask about, of the things that not every kernel has: where one
//! lacks them, it must be refused in so many words.

use std::fs;
use std::net::IpAddr;

use netfilterqueue::conntrack::{ConntrackChange, MarkChange};
use netfilterqueue::rules::{Family, Hook, InstalledRules, Protocol, Rule, Rules};
use netfilterqueue::{ConfigFlags, Error, FlowMarks, Queue, QueueBuilder, Verdict};
use netfilterqueue_netns::Namespace;

use crate::kernel::{FRAME_EDITS, lacks, takes_bytes_of_frames};
use crate::support::{
    UdpPair, V4, expect_no_packet, judge, queue_udp, receive_exactly, udp_data_offset,
};
use crate::{Test, tests};

pub const TESTS: [Test; 4] =
    tests![nobody_tests_bridge, nobody_tests_conntrack, nobody_tests_uid, nobody_tests_secctx,];

/// `None` on a kernel that does not have the flag, which then must say so.
fn bind(builder: QueueBuilder, flag: ConfigFlags) -> Option<Queue> {
    let is_supported = Queue::supported_flags().unwrap().contains(flag);
    match builder.bind() {
        Ok(queue) => {
            assert!(is_supported, "{flag:?}");
            assert!(queue.flags().contains(flag));
            Some(queue)
        }
        Err(error) => {
            assert!(!is_supported, "{error}");
            let is_named = matches!(error, Error::FlagsRefused { flags, .. } if flags == flag);
            assert!(is_named, "{error:?}");
            assert!(error.to_string().contains("leave the option out"), "{error}");
            // As a feature is called: without the prefix that all flags have.
            let name = flag.to_string().to_lowercase();
            lacks(name.trim_start_matches("nfqa_cfg_f_"), error);
            None
        }
    }
}

fn nobody_tests_bridge(host: &Namespace) {
    // Where the bridge's filter is, before br_netfilter takes packets out.
    let rules = Rules::new(Hook::FORWARD).family(Family::BRIDGE).priority(-200);
    let rules = match rules.rule(Rule::queue(1).protocol(Protocol::UDP)).install() {
        Ok(rules) => rules,
        Err(error) => {
            assert!(matches!(error, Error::NoRuleSupport), "{error:?}");
            assert!(
                error.to_string().contains("it needs nft_queue (modprobe nft_queue)"),
                "{error}"
            );
            return lacks("bridge", error);
        }
    };
    let [client, server] = [("left", 1), ("right", 2)].map(|(port, last)| {
        let peer = Namespace::new().unwrap();
        host.veth(port, &peer, "eth0").unwrap();
        peer.add_address("eth0", IpAddr::from([10, 3, 0, last]), 24).unwrap();
        peer
    });
    host.bridge("br0").unwrap();
    for port in ["left", "right"] {
        host.set_master(port, "br0").unwrap();
    }
    let udp = UdpPair::between(
        (&client, IpAddr::from([10, 3, 0, 1])),
        (&server, IpAddr::from([10, 3, 0, 2])),
    );
    let mut queue = Queue::builder(1).bind().unwrap();
    udp.send(b"bridged");
    let mut batch = receive_exactly(&mut queue, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    assert_eq!((packet.family(), packet.hook()), (Family::BRIDGE, Hook::FORWARD));
    let header = packet.l2_header().expect("the frame's header").to_vec();
    let addresses = [&server, &client].map(|peer| peer.link_address("eth0").unwrap());
    assert_eq!((&header[..12], &header[12..]), (&addresses.concat()[..], &[8, 0][..]));
    packet.set_l2_header(&header).unwrap();
    packet.accept();
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(1), [b"bridged"]);
    if !takes_bytes_of_frames() {
        return lacks(FRAME_EDITS, "no bytes come back for them");
    }
    udp.send(b"bridged");
    let mut batch = receive_exactly(&mut queue, 1);
    let mut packet = batch.iter_mut().next().unwrap();
    let bytes = packet.payload_mut().unwrap();
    let data = udp_data_offset(bytes);
    bytes[data..].make_ascii_uppercase();
    packet.accept();
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(1), [b"BRIDGED"]);
    drop(rules);
}

/// Rules that make the kernel track connections.
fn tracked_udp() -> Option<InstalledRules> {
    let rules = Rules::new(Hook::OUTPUT).rule(Rule::queue(1).protocol(Protocol::UDP));
    match rules.flow_bypass(FlowMarks::default()).install() {
        Ok(rules) => Some(rules),
        Err(error) => {
            assert!(matches!(error, Error::NoFlowSupport), "{error:?}");
            lacks("conntrack", error);
            None
        }
    }
}

fn nobody_tests_conntrack(_: &Namespace) {
    let builder = Queue::builder(1).conntrack(true);
    let Some(mut queue) = bind(builder, ConfigFlags::CONNTRACK) else { return };
    let Some(_rules) = tracked_udp() else { return };
    let udp = UdpPair::new(V4);
    for mark in [None, Some(7)] {
        udp.send(b"tracked");
        let mut batch = receive_exactly(&mut queue, 1);
        let mut packet = batch.iter_mut().next().unwrap();
        let entry = packet.conntrack().expect("an entry");
        let flow = entry.original().expect("a direction");
        assert_eq!((flow.source, flow.destination, flow.protocol), (V4, V4, 17));
        assert_eq!(flow.destination_port, Some(udp.receiver_address().port()));
        assert_eq!(entry.mark().filter(|mark| *mark > 0), mark);
        assert!(packet.conntrack_info().is_some_and(|info| !info.is_reply()));
        let change = ConntrackChange { mark: Some(MarkChange::set(7)), ..Default::default() };
        packet.set_conntrack(change);
        packet.accept();
        batch.commit().unwrap();
        assert_eq!(udp.receive_all(1), [b"tracked"]);
    }
}

fn nobody_tests_uid(_: &Namespace) {
    let builder = Queue::builder(1).uid_gid(true);
    let Some(mut queue) = bind(builder, ConfigFlags::UID_GID) else { return };
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"whose");
    let mut batch = receive_exactly(&mut queue, 1);
    let packet = batch.iter_mut().next().unwrap();
    assert_eq!((packet.uid(), packet.gid()), (Some(outside("uid")), Some(outside("gid"))));
    judge(&mut batch, Verdict::Accept);
    udp.receive_all(1);
    drop(queue);
    let mut queue = Queue::builder(1).bind().unwrap();
    udp.send(b"not asked for");
    let mut batch = receive_exactly(&mut queue, 1);
    let packet = batch.iter_mut().next().unwrap();
    assert_eq!((packet.uid(), packet.gid()), (None, None));
}

/// What root of this user namespace is outside of it.
fn outside(kind: &str) -> u32 {
    let map = fs::read_to_string(format!("/proc/self/{kind}_map")).unwrap();
    let columns = map.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let mut of_root = columns.filter(|columns| columns[0] == "0");
    of_root.next().expect("root is mapped")[1].parse().unwrap()
}

fn nobody_tests_secctx(_: &Namespace) {
    let builder = Queue::builder(1).secctx(true);
    let Some(mut queue) = bind(builder, ConfigFlags::SECCTX) else { return };
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"labelled");
    let mut batch = receive_exactly(&mut queue, 1);
    // Whether a security module labels packets is the host's affair.
    if let Some(context) = batch.iter_mut().next().unwrap().secctx() {
        assert!(!context.is_empty() && !context.contains(&0), "{context:?}");
    }
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(1), [b"labelled"]);
    expect_no_packet(&mut queue);
}
