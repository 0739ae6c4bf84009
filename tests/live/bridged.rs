//! Frames that cross a bridge: what the bridge family's packets have that others lack.

use std::net::IpAddr;
use std::sync::Mutex;

use netfilterqueue::rules::{Family, Hook, Protocol, Rule, Rules};
use netfilterqueue::{Batch, EditError, Queue, Vlan};
use netfilterqueue_netns::Namespace;

use crate::captures::keep;
use crate::craft::data;
use crate::edits::edit_one;
use crate::kernel::{lacks, queue_bridged};
use crate::netns::{Bridged, LEFT, RIGHT, addresses};
use crate::support::{
    UdpPair, V4, judge_while, queue_udp, queue_udp_at, receive_exactly, wait_until,
};
use crate::{Test, tests};

pub const TESTS: [Test; 6] = tests![
    a_frame_has_the_bridge_its_ports_and_a_link_layer_header,
    each_hook_has_the_devices_on_its_side,
    arp_is_queued_as_well,
    a_frame_has_its_vlan_tag,
    bridged_packets_have_ports_at_ip_hooks,
    outside_a_bridge_there_is_no_link_layer,
];

/// Whether bridged packets meet IP rules; there only with `br_netfilter`.
const IP_RULES: [&str; 2] =
    ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];

pub const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
const BROADCAST: [u8; 6] = [0xff; 6];
pub const ETHERTYPES: [u16; 2] = [IPV4, IPV6];

pub fn udp_rule(number: u16) -> Rule {
    Rule::queue(number).protocol(Protocol::UDP)
}

/// Two hosts at a bridge, which keeps IP packets away from IP rules. Where `br_netfilter` is, it
/// otherwise cuts off what fills short frames, and up to 6.1 keeps IP packets from rules of the
/// bridge family that have the priority 0.
pub fn hosts(namespace: &Namespace) -> Bridged {
    for setting in IP_RULES {
        let _ = namespace.set_sysctl(setting, "0");
    }
    Bridged::by(namespace)
}

/// Two hosts that know each other's addresses, both of which work.
pub fn neighbors(namespace: &Namespace) -> (Bridged, [UdpPair; 2]) {
    let bridged = hosts(namespace);
    let [left, right] = ethernet(&bridged);
    for family in [0, 1] {
        bridged.left.add_neighbor("eth0", RIGHT[family], right).unwrap();
        bridged.right.add_neighbor("eth0", LEFT[family], left).unwrap();
    }
    let pairs = bridged.udp();
    for udp in &pairs {
        // A new IPv6 address is reached a moment later.
        udp.receiver.set_nonblocking(true).unwrap();
        wait_until("a datagram arrives", || {
            udp.send(b"?");
            udp.receiver.recv(&mut [0; 8]).is_ok()
        });
        while udp.receiver.recv(&mut [0; 8]).is_ok() {}
        udp.receiver.set_nonblocking(false).unwrap();
    }
    (bridged, pairs)
}

pub fn ethernet(bridged: &Bridged) -> [[u8; 6]; 2] {
    [&bridged.left, &bridged.right].map(|host| host.link_address("eth0").unwrap())
}

pub fn l2_header(destination: [u8; 6], source: [u8; 6], ethertype: u16) -> Vec<u8> {
    [&destination[..], &source, &ethertype.to_be_bytes()].concat()
}

fn a_frame_has_the_bridge_its_ports_and_a_link_layer_header(namespace: &Namespace) {
    let (bridged, pairs) = neighbors(namespace);
    let mut queue = Queue::builder(1).bind().unwrap();
    let Some(_rules) = queue_bridged(Hook::FORWARD, udp_rule(1)) else { return };
    let index = |link| namespace.link_index(link).ok();
    let [left, right] = ethernet(&bridged);
    for (udp, ethertype) in pairs.iter().zip(ETHERTYPES) {
        udp.send(b"there");
        udp.receiver.send_to(b"back", udp.sender.local_addr().unwrap()).unwrap();
        let mut batch = receive_exactly(&mut queue, 2);
        let ways = [["left", "right"], ["right", "left"]].into_iter().zip([b"there", &b"back"[..]]);
        for (mut packet, ([from, to], text)) in batch.iter_mut().zip(ways) {
            assert_eq!((packet.family(), packet.hook()), (Family::BRIDGE, Hook::FORWARD));
            assert_eq!(packet.hook().name(packet.family()), Some("forward"));
            assert_eq!((packet.indev(), packet.outdev()), (index("bridge"), index("bridge")));
            assert_eq!((packet.physindev(), packet.physoutdev()), (index(from), index(to)));
            let names = [
                packet.indev_name(),
                packet.outdev_name(),
                packet.physindev_name(),
                packet.physoutdev_name(),
            ];
            let expected = ["bridge", "bridge", from, to].map(|name| Some(name.into()));
            assert_eq!(names, expected);
            let (source, destination) = if from == "left" { (left, right) } else { (right, left) };
            assert_eq!(packet.hw_protocol(), ethertype);
            assert_eq!(packet.hwaddr(), Some(&source[..]));
            let expected = l2_header(destination, source, ethertype);
            assert_eq!(packet.l2_header(), Some(&expected[..]));
            assert_eq!(packet.vlan(), None);
            assert_eq!(packet.conntrack(), None);
            assert_eq!(data(packet.payload()), text);
            assert_eq!(packet.complete(), None);
            packet.accept();
        }
        batch.commit().unwrap();
        assert_eq!(udp.receive_all(1), [b"there"]);
    }
}

fn each_hook_has_the_devices_on_its_side(namespace: &Namespace) {
    let (bridged, [through, _]) = neighbors(namespace);
    let [own, _] = addresses(3);
    namespace.add_address("bridge", own, 24).unwrap();
    let up = UdpPair::between((&bridged.left, LEFT[0]), (namespace, own));
    let down = UdpPair::between((namespace, own), (&bridged.left, LEFT[0]));
    let link = |name| namespace.link_index(name).unwrap();
    let (bridge, left, right) = (link("bridge"), link("left"), link("right"));
    let mut queue = Queue::builder(1).bind().unwrap();
    for (hook, udp, [indev, physindev], [outdev, physoutdev]) in [
        (Hook::PREROUTING, &through, [Some(bridge), Some(left)], [None; 2]),
        (Hook::INPUT, &up, [Some(bridge), Some(left)], [None; 2]),
        (Hook::OUTPUT, &down, [None; 2], [Some(bridge), Some(left)]),
        (Hook::POSTROUTING, &through, [None; 2], [Some(bridge), Some(right)]),
    ] {
        let Some(_rules) = queue_bridged(hook, udp_rule(1)) else { return };
        udp.send(b"?");
        let mut batch = receive_exactly(&mut queue, 1);
        let packet = batch.iter_mut().next().unwrap();
        assert_eq!((packet.family(), packet.hook()), (Family::BRIDGE, hook));
        assert_eq!((packet.indev(), packet.physindev()), (indev, physindev), "{hook}");
        assert_eq!((packet.outdev(), packet.physoutdev()), (outdev, physoutdev), "{hook}");
        packet.accept();
        batch.commit().unwrap();
        assert_eq!(udp.receive_all(1), [b"?"]);
    }
}

fn arp_is_queued_as_well(namespace: &Namespace) {
    let bridged = hosts(namespace);
    let [left, right] = ethernet(&bridged);
    let mut queue = Queue::builder(1).bind().unwrap();
    let Some(_rules) = queue_bridged(Hook::FORWARD, Rule::queue(1)) else { return };
    let [udp, _] = bridged.udp();
    let seen = Mutex::new(Vec::new());
    judge_while(
        &mut queue,
        |packet| {
            let header = packet.l2_header().unwrap().to_vec();
            seen.lock().unwrap().push((packet.hw_protocol(), header, packet.payload().to_vec()));
            if packet.hw_protocol() == ARP {
                keep("bridge-forward-arp-reply", &packet.message());
            }
            packet.accept()
        },
        || {
            udp.send(b"who has you?");
            assert_eq!(udp.receive_all(1), [b"who has you?"]);
        },
    );
    let seen = seen.into_inner().unwrap();
    let arp: Vec<_> = seen.iter().filter(|(protocol, ..)| *protocol == ARP).collect();
    let expected = [l2_header(BROADCAST, left, ARP), l2_header(left, right, ARP)];
    assert_eq!([&arp[0].1, &arp[1].1], [&expected[0], &expected[1]], "a request and a reply");
    for ((.., payload), (operation, sender)) in arp.iter().zip([(1, left), (2, right)]) {
        let start = [0, 1, 8, 0, 6, 4, 0, operation];
        assert_eq!(payload[..14], [&start[..], &sender].concat());
    }
    assert!(seen.iter().any(|(protocol, ..)| *protocol == IPV4));
}

/// The VLAN ids that both hosts have a link for, beside what has no tag.
const VLANS: [u16; 2] = [7, 8];

pub fn vlan_address(id: u16, host: u8) -> IpAddr {
    [10, 4, id as u8, host].into()
}

/// Gives both hosts a link `vlanID` for each VLAN that takes packets for any of their addresses.
/// `None` if the kernel has no VLANs.
pub fn join_vlans(bridged: &Bridged) -> Option<()> {
    let addresses = ethernet(bridged);
    for (host, of_other, number) in
        [(&bridged.left, addresses[1], 1), (&bridged.right, addresses[0], 2)]
    {
        host.set_sysctl("net/ipv4/conf/all/rp_filter", "0").unwrap();
        for id in VLANS {
            let name = format!("vlan{id}");
            if let Err(error) = host.vlan("eth0", &name, id) {
                assert!(error.to_string().contains("not supported"), "{error}");
                lacks("vlan", error);
                return None;
            }
            host.set_sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0").unwrap();
            host.add_address(&name, vlan_address(id, number), 24).unwrap();
            host.add_neighbor(&name, vlan_address(id, 3 - number), of_other).unwrap();
        }
    }
    Some(())
}

pub fn udp_in_vlan(bridged: &Bridged, id: u16) -> UdpPair {
    let [from, to] = [1, 2].map(|host| vlan_address(id, host));
    UdpPair::between((&bridged.left, from), (&bridged.right, to))
}

pub const fn tagged(tci: u16) -> Vlan {
    Vlan { proto: 0x8100, tci }
}

fn a_frame_has_its_vlan_tag(namespace: &Namespace) {
    let (bridged, _) = neighbors(namespace);
    let mut queue = Queue::builder(1).bind().unwrap();
    let Some(_rules) = queue_bridged(Hook::FORWARD, udp_rule(1)) else { return };
    let Some(()) = join_vlans(&bridged) else { return };
    let [left, right] = ethernet(&bridged);
    for id in VLANS {
        let udp = udp_in_vlan(&bridged, id);
        udp.send(b"tagged");
        edit_one(&mut queue, |packet| {
            assert_eq!(packet.vlan(), Some(tagged(id)));
            // The tag is apart from the header, and the ethertype is what it says inside.
            assert_eq!(packet.l2_header(), Some(&l2_header(right, left, IPV4)[..]));
            assert_eq!(packet.hw_protocol(), IPV4);
            assert_eq!(data(packet.payload()), b"tagged");
            keep("bridge-forward-vlan", &packet.message());
        });
        assert_eq!(udp.receive_all(1), [b"tagged"]);
    }
}

fn bridged_packets_have_ports_at_ip_hooks(namespace: &Namespace) {
    let (_bridged, pairs) = neighbors(namespace);
    for setting in IP_RULES {
        if let Err(error) = namespace.set_sysctl(setting, "1") {
            // Whether it is as the kernel says it is: bridged packets never meet IP rules.
            let _rules = queue_udp_at(Hook::FORWARD, 1);
            pairs[0].send(b"past the rules");
            assert_eq!(pairs[0].receive_all(1), [b"past the rules"]);
            return lacks("br_netfilter", error);
        }
    }
    let link = |name| namespace.link_index(name).ok();
    let (bridge, left, right) = (link("bridge"), link("left"), link("right"));
    let mut queue = Queue::builder(1).bind().unwrap();
    for (hook, [indev, physindev], [outdev, physoutdev]) in [
        (Hook::PREROUTING, [bridge, left], [None; 2]),
        (Hook::FORWARD, [bridge, left], [bridge, right]),
        (Hook::POSTROUTING, [None, None], [bridge, right]),
    ] {
        let rules = Rules::new(hook).rule(udp_rule(1)).install().unwrap();
        for (udp, family) in pairs.iter().zip([Family::IPV4, Family::IPV6]) {
            udp.send(b"?");
            edit_one(&mut queue, |packet| {
                assert_eq!((packet.family(), packet.hook()), (family, hook));
                assert_eq!((packet.indev(), packet.outdev()), (indev, outdev), "{hook}");
                let ports = (packet.physindev(), packet.physoutdev());
                assert_eq!(ports, (physindev, physoutdev), "{hook}");
                assert_eq!((packet.l2_header(), packet.vlan()), (None, None));
                assert_eq!(packet.set_vlan(tagged(7)), Err(EditError::NotBridged));
                if hook == Hook::FORWARD && family == Family::IPV6 {
                    keep("ipv6-forward-udp-ports", &packet.message());
                }
            });
            assert_eq!(udp.receive_all(1), [b"?"]);
        }
        rules.remove().unwrap();
    }
}

fn outside_a_bridge_there_is_no_link_layer(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send(b"?");
    let mut batch = Batch::new(1);
    queue.recv(&mut batch).unwrap();
    let mut packet = batch.iter_mut().next().unwrap();
    assert_eq!((packet.vlan(), packet.l2_header()), (None, None));
    assert_eq!((packet.physindev(), packet.physoutdev()), (None, None));
    assert_eq!((packet.physindev_name(), packet.physoutdev_name()), (None, None));
    assert_eq!(packet.set_vlan(tagged(7)), Err(EditError::NotBridged));
    assert_eq!(packet.set_l2_header(&[0; 14]), Err(EditError::NotBridged));
    assert_eq!(packet.set_l2_header(&[]), Err(EditError::NotBridged));
    assert_eq!((packet.vlan(), packet.l2_header()), (None, None), "nothing was set");
    packet.accept();
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(1), [b"?"]);
}
