//! What the kernel tells about a packet beside its bytes, and when it does not.

use std::env;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, SystemTime};

use netfilterqueue::rules::{Hook, Protocol, Rule, Rules};
use netfilterqueue::{CopyMode, EditMode, Packet, Queue, SkbInfo};
use netfilterqueue_netns::Namespace;
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::{getegid, geteuid, gettid};

use crate::captures::keep;
use crate::craft::correct;
use crate::edits::edit_one;
use crate::kernel::{expect_priority, lacks, takes_bytes};
use crate::support::{
    Peers, UdpPair, V4, V6, outside, queue_udp, queue_udp_at, receive_exactly, wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 12] = tests![
    the_owner_of_a_socket_is_told_where_it_is_known,
    marks_and_priorities_of_a_socket_are_told,
    a_timestamp_comes_with_what_arrived,
    link_addresses_have_their_length,
    devices_have_names,
    a_new_name_of_a_device_is_noticed,
    a_device_that_is_gone_has_no_name,
    what_is_known_of_a_checksum_is_told,
    the_class_of_a_control_group_is_told,
    the_security_context_is_told_where_packets_have_one,
    the_original_length_is_told_if_not_all_was_copied,
    attributes_are_found_by_number,
];

const HOOKS_OF_LOOPBACK: [Hook; 4] =
    [Hook::OUTPUT, Hook::POSTROUTING, Hook::PREROUTING, Hook::INPUT];

fn bind() -> Queue {
    Queue::builder(1).bind().unwrap()
}

/// Sends a datagram through the queue at `hook` and calls `check` with it.
fn at(hook: Hook, queue: &mut Queue, udp: &UdpPair, check: impl FnOnce(&mut Packet<'_>)) {
    let _rules = queue_udp_at(hook, 1);
    udp.send(b"?");
    edit_one(queue, check);
    assert_eq!(udp.receive_all(1), [b"?"]);
}

fn the_owner_of_a_socket_is_told_where_it_is_known(_: &Namespace) {
    let own = (
        Some(outside("uid_map", geteuid().as_raw())),
        Some(outside("gid_map", getegid().as_raw())),
    );
    for address in [V4, V6] {
        let udp = UdpPair::new(address);
        for (uid_gid, known) in [(true, own), (false, (None, None))] {
            let mut queue = Queue::builder(1).uid_gid(uid_gid).bind().unwrap();
            for hook in HOOKS_OF_LOOPBACK {
                at(hook, &mut queue, &udp, |packet| {
                    let leaves = matches!(hook, Hook::OUTPUT | Hook::POSTROUTING);
                    let expected = if leaves { known } else { (None, None) };
                    assert_eq!((packet.uid(), packet.gid()), expected, "{hook}");
                });
            }
        }
    }
}

fn marks_and_priorities_of_a_socket_are_told(_: &Namespace) {
    let mut queue = bind();
    let udp = UdpPair::new(V4);
    at(Hook::OUTPUT, &mut queue, &udp, |packet| {
        assert_eq!((packet.mark(), packet.priority()), (None, None));
    });
    setsockopt(&udp.sender, sockopt::Mark, &0x0102_0304).unwrap();
    setsockopt(&udp.sender, sockopt::Priority, &5).unwrap();
    at(Hook::OUTPUT, &mut queue, &udp, |packet| {
        assert_eq!(packet.mark(), Some(0x0102_0304));
        expect_priority(packet.priority(), 5);
        // What is set is what it says from then on.
        packet.set_mark(0);
        packet.set_priority(0);
        assert_eq!((packet.mark(), packet.priority()), (Some(0), Some(0)));
    });
}

fn a_timestamp_comes_with_what_arrived(router: &Namespace) {
    let peers = Peers::of(router);
    let (local, routed) = (UdpPair::new(V4), peers.udp_v4());
    let mut queue = bind();
    let asking = UdpSocket::bind((V4, 0)).unwrap();
    setsockopt(&asking, sockopt::ReceiveTimestamp, &true).unwrap();
    for (hook, udp) in [
        (Hook::PREROUTING, &local),
        (Hook::INPUT, &local),
        (Hook::PREROUTING, &routed),
        (Hook::FORWARD, &routed),
    ] {
        let before = SystemTime::now();
        let mut found = None;
        // The kernel begins a moment after it was asked.
        wait_until("a timestamp", || {
            at(hook, &mut queue, udp, |packet| found = packet.timestamp());
            found.is_some()
        });
        let found = found.unwrap();
        assert!(found.microseconds < 1_000_000, "{found:?}");
        let found = found.to_system_time().unwrap();
        let margin = Duration::from_millis(100);
        assert!(
            (before - margin..SystemTime::now() + margin).contains(&found),
            "{hook}: {found:?}"
        );
    }
    for (hook, udp) in
        [(Hook::OUTPUT, &local), (Hook::POSTROUTING, &local), (Hook::POSTROUTING, &routed)]
    {
        at(hook, &mut queue, udp, |packet| assert_eq!(packet.timestamp(), None, "{hook}"));
    }
}

fn link_addresses_have_their_length(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = bind();
    for (local, routed) in [(UdpPair::new(V4), peers.udp_v4()), (UdpPair::new(V6), peers.udp_v6())]
    {
        let client = peers.client.link_address("eth0").unwrap();
        for (hook, udp, expected) in [
            (Hook::OUTPUT, &local, None),
            (Hook::POSTROUTING, &local, None),
            (Hook::PREROUTING, &local, Some([0; 6])),
            (Hook::INPUT, &local, Some([0; 6])),
            (Hook::PREROUTING, &routed, Some(client)),
            (Hook::FORWARD, &routed, Some(client)),
            (Hook::POSTROUTING, &routed, Some(client)),
        ] {
            at(hook, &mut queue, udp, |packet| {
                assert_eq!(
                    packet.hwaddr(),
                    expected.as_ref().map(|address| &address[..]),
                    "{hook}"
                );
            });
        }
    }
}

fn devices_have_names(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = bind();
    let (local, routed) = (UdpPair::new(V4), peers.udp_v4());
    for (hook, udp, [input, output]) in [
        (Hook::OUTPUT, &local, [None, Some("lo")]),
        (Hook::POSTROUTING, &local, [None, Some("lo")]),
        (Hook::PREROUTING, &local, [Some("lo"), None]),
        (Hook::INPUT, &local, [Some("lo"), None]),
        (Hook::PREROUTING, &routed, [Some("left"), None]),
        (Hook::FORWARD, &routed, [Some("left"), Some("right")]),
        (Hook::POSTROUTING, &routed, [Some("left"), Some("right")]),
    ] {
        at(hook, &mut queue, udp, |packet| {
            let names = [packet.indev_name(), packet.outdev_name()];
            assert_eq!(names, [input, output].map(|name| name.map(Into::into)), "{hook}");
            let index = |name: Option<&str>| name.map(|name| router.link_index(name).unwrap());
            assert_eq!([packet.indev(), packet.outdev()], [input, output].map(index));
            assert_eq!([packet.physindev_name(), packet.physoutdev_name()], [None, None]);
        });
    }
}

fn a_new_name_of_a_device_is_noticed(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = bind();
    let _rules = queue_udp_at(Hook::FORWARD, 1);
    peers.udp_v4().send(b"?");
    let mut batch = receive_exactly(&mut queue, 1);
    let (retained, _) = batch.iter_mut().next().unwrap().retain();
    let names = || [retained.indev_name(), retained.outdev_name()];
    assert_eq!(names(), [Some("left".into()), Some("right".into())]);
    router.rename_link("left", "other").unwrap();
    wait_until("the other name", || names()[0].as_deref() == Some("other"));
    assert_eq!(names()[1].as_deref(), Some("right"));
}

fn a_device_that_is_gone_has_no_name(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = bind();
    let _rules = queue_udp_at(Hook::FORWARD, 1);
    peers.udp_v4().send(b"?");
    let mut batch = receive_exactly(&mut queue, 1);
    let packet = batch.iter_mut().next().unwrap();
    let index = packet.indev();
    router.delete_link("left").unwrap();
    assert_eq!(packet.indev_name(), None, "its name was not asked for before");
    assert_eq!(packet.indev(), index);
    assert_eq!(packet.outdev_name().as_deref(), Some("right"));
}

fn what_is_known_of_a_checksum_is_told(_: &Namespace) {
    let udp = UdpPair::new(V4);
    let mut whole = bind();
    at(Hook::OUTPUT, &mut whole, &udp, |packet| {
        let info = packet.skb_info().unwrap();
        assert!(info.checksum_not_ready() && !info.is_gso() && !info.checksum_not_verified());
        assert_eq!(info, SkbInfo(1));
    });
    whole.close().unwrap();

    // On the wire's terms there is nothing special.
    let mut cut = Queue::builder(1).gso(false).bind().unwrap();
    at(Hook::OUTPUT, &mut cut, &udp, |packet| assert_eq!(packet.skb_info(), None));
    cut.close().unwrap();

    if !takes_bytes() {
        return lacks("edits", "no bytes come back from a user namespace");
    }
    let mut whole = bind();
    // Who replaces a packet's bytes takes from the kernel what it knew.
    let mut replacing = Queue::builder(2).edit_mode(EditMode::Raw).bind().unwrap();
    let rules = queue_udp_at(Hook::OUTPUT, 2);
    for hook in [Hook::PREROUTING, Hook::INPUT] {
        let _rules = queue_udp_at(hook, 1);
        udp.send(b"?");
        edit_one(&mut replacing, |packet| correct(packet.payload_mut().unwrap()));
        edit_one(&mut whole, |packet| {
            let info = packet.skb_info().unwrap();
            assert!(!info.checksum_not_ready() && !info.is_gso() && info.checksum_not_verified());
        });
        assert_eq!(udp.receive_all(1), [b"?"]);
    }
    rules.remove().unwrap();
}

/// The root of a mounted `net_cls` hierarchy in which this test may make a group: it is the host's,
/// so nobody looks for one.
const NET_CLS: &str = "NETFILTERQUEUE_NET_CLS";

fn the_class_of_a_control_group_is_told(_: &Namespace) {
    const CLASS: u32 = 0x0010_0001;
    let mut queue = bind();
    at(Hook::OUTPUT, &mut queue, &UdpPair::new(V4), |packet| {
        assert_eq!(packet.cgroup_classid(), None);
    });
    let Some(root) = env::var_os(NET_CLS) else {
        return lacks("net_cls", format!("{NET_CLS} is not set"));
    };
    let group = Path::new(&root).join("netfilterqueue-test");
    fs::create_dir(&group).unwrap();
    fs::write(group.join("net_cls.classid"), CLASS.to_string()).unwrap();
    fs::write(group.join("tasks"), gettid().to_string()).unwrap();
    let udp = UdpPair::new(V4);
    for hook in HOOKS_OF_LOOPBACK {
        let has_socket = matches!(hook, Hook::OUTPUT | Hook::POSTROUTING);
        at(hook, &mut queue, &udp, |packet| {
            let told = packet.cgroup_classid();
            if has_socket && told.is_none() {
                lacks("cgroup class id", "it is not told");
            } else {
                assert_eq!(told, has_socket.then_some(CLASS), "{hook}");
            }
            if hook == Hook::OUTPUT {
                keep("ipv4-output-udp-classid", &packet.message());
            }
        });
    }
    fs::write(Path::new(&root).join("tasks"), gettid().to_string()).unwrap();
    fs::remove_dir(&group).unwrap();
}

fn the_security_context_is_told_where_packets_have_one(namespace: &Namespace) {
    // A context that SELinux knows before it has a policy.
    const CONTEXT: &str = "unlabeled";
    let udp = UdpPair::new(V4);
    let mut queue = Queue::builder(1).secctx(true).bind().unwrap();
    at(Hook::OUTPUT, &mut queue, &udp, |packet| assert_eq!(packet.secctx(), None));
    if let Err(error) = namespace.label_packets(CONTEXT) {
        return lacks("secctx", error);
    }
    for address in [V4, V6] {
        let udp = UdpPair::new(address);
        at(Hook::OUTPUT, &mut queue, &udp, |packet| {
            // The kernel's value may have a NUL at its end.
            assert_eq!(packet.secctx(), Some(CONTEXT.as_bytes()));
            if address == V4 {
                keep("ipv4-output-udp-secctx", &packet.message());
            }
        });
    }
    queue.close().unwrap();
    at(Hook::OUTPUT, &mut bind(), &udp, |packet| assert_eq!(packet.secctx(), None));
}

fn the_original_length_is_told_if_not_all_was_copied(_: &Namespace) {
    for (address, header) in [(V4, 28), (V6, 48)] {
        let udp = UdpPair::new(address);
        let _rules = queue_udp(1);
        for (range, sent, copied, original) in [
            (41, 1000, 41, Some(1000 + header)),
            (1000 + header, 1000, 1000 + header, None),
            (999 + header, 1000, 999 + header, Some(1000 + header)),
            (1, 0, 1, Some(header)),
        ] {
            let copy_mode = CopyMode::Packet { range };
            let mut queue = Queue::builder(1).copy_mode(copy_mode).bind().unwrap();
            udp.send(&vec![0x55; sent]);
            edit_one(&mut queue, |packet| {
                assert_eq!(packet.original_len(), original, "of {range}");
                assert_eq!(packet.payload().len(), copied as usize);
            });
            assert_eq!(udp.receive().len(), sent);
        }
        let mut queue = Queue::builder(1).copy_mode(CopyMode::Meta).bind().unwrap();
        udp.send(b"unseen");
        edit_one(&mut queue, |packet| {
            assert_eq!((packet.original_len(), packet.payload()), (None, &[][..]));
        });
        assert_eq!(udp.receive(), b"unseen");
    }
}

fn attributes_are_found_by_number(router: &Namespace) {
    let peers = Peers::of(router);
    let mut queue = Queue::builder(1).uid_gid(true).secctx(true).bind().unwrap();
    let rule = Rule::queue(1).protocol(Protocol::UDP);
    let _rules = Rules::new(Hook::FORWARD).rule(rule).install().unwrap();
    let udp = peers.udp_v4();
    udp.send(b"?");
    edit_one(&mut queue, |packet| {
        let message = packet.message();
        let all: Vec<_> = message.attributes().map(Result::unwrap).collect();
        for kind in 0..u16::MAX {
            let expected = all.iter().find(|attribute| attribute.kind() == kind);
            assert_eq!(packet.attribute(kind).as_ref(), expected, "attribute {kind}");
        }
        assert_eq!(packet.attribute(10).unwrap().value(), packet.payload());
        let devices = [5, 6].map(|kind| packet.attribute(kind).unwrap().u32_be());
        assert_eq!(devices, [packet.indev(), packet.outdev()]);
    });
    assert_eq!(udp.receive_all(1), [b"?"]);
}
