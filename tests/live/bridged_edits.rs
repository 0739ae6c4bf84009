//! Changes of frames that cross a bridge: VLAN tags, link-layer headers, bytes.

use netfilterqueue::checksum::Completion;
use netfilterqueue::rules::{Hook, InstalledRules};
use netfilterqueue::{EditError, EditMode, Queue};
use netfilterqueue_netns::Namespace;

use crate::bridged::{
    ETHERTYPES, IPV4, ethernet, join_vlans, l2_header, neighbors, tagged, udp_in_vlan, udp_rule,
};
use crate::craft::{correct, data, data_mut};
use crate::edits::edit_one;
use crate::kernel::{FRAME_EDITS, lacks, queue_bridged, takes_bytes_of_frames};
use crate::netns::{LEFT, addresses};
use crate::support::{UdpPair, queue_udp_at, receive_exactly};
use crate::{Test, tests};

pub const TESTS: [Test; 7] = tests![
    a_vlan_tag_is_replaced,
    a_vlan_tag_is_added,
    link_addresses_are_rewritten,
    a_header_of_another_length_is_refused,
    everything_leaves_in_one_verdict,
    bytes_are_replaced_up_to_kernel_7_1,
    filling_of_short_frames_is_not_data,
];

/// A queue in the receiving host, which sees what the bridge made of a frame.
fn queue_at(host: &Namespace) -> (Queue, InstalledRules) {
    host.run(|| (Queue::builder(2).bind().unwrap(), queue_udp_at(Hook::PREROUTING, 2)))
}

/// The link on which the only packet that waits has come in; it goes on.
fn arrives_on(queue: &mut Queue) -> String {
    let mut batch = receive_exactly(queue, 1);
    let packet = batch.iter_mut().next().unwrap();
    let name = packet.indev_name().unwrap().to_string();
    packet.accept();
    batch.commit().unwrap();
    name
}

fn a_vlan_tag_is_replaced(namespace: &Namespace) {
    let (bridged, _) = neighbors(namespace);
    let mut queue = Queue::builder(1).bind().unwrap();
    let Some(_rules) = queue_bridged(Hook::FORWARD, udp_rule(1)) else { return };
    let Some(()) = join_vlans(&bridged) else { return };
    let (mut arrived, _arrived_rules) = queue_at(&bridged.right);
    let udp = udp_in_vlan(&bridged, 7);
    udp.send(b"unchanged");
    edit_one(&mut queue, |_| {});
    assert_eq!(arrives_on(&mut arrived), "vlan7");
    udp.send(b"replaced");
    edit_one(&mut queue, |packet| {
        packet.set_vlan(tagged(8)).unwrap();
        assert_eq!(packet.vlan(), Some(tagged(8)));
    });
    assert_eq!(arrives_on(&mut arrived), "vlan8");
    // The same of a retained packet, with a priority in the tag.
    udp.send(b"retained");
    let mut batch = receive_exactly(&mut queue, 1);
    let (mut retained, _) = batch.iter_mut().next().unwrap().retain();
    retained.set_vlan(tagged(5 << 13 | 8)).unwrap();
    retained.accept().unwrap();
    assert_eq!(arrives_on(&mut arrived), "vlan8");
    assert_eq!(udp.receive_all(3), [&b"unchanged"[..], b"replaced", b"retained"]);
}

fn a_vlan_tag_is_added(namespace: &Namespace) {
    let (bridged, pairs) = neighbors(namespace);
    let mut queue = Queue::builder(1).bind().unwrap();
    let Some(_rules) = queue_bridged(Hook::FORWARD, udp_rule(1)) else { return };
    let Some(()) = join_vlans(&bridged) else { return };
    let (mut arrived, _arrived_rules) = queue_at(&bridged.right);
    for udp in pairs {
        udp.send(b"without a tag");
        edit_one(&mut queue, |_| {});
        assert_eq!(arrives_on(&mut arrived), "eth0");
        udp.send(b"with a tag");
        edit_one(&mut queue, |packet| packet.set_vlan(tagged(8)).unwrap());
        assert_eq!(arrives_on(&mut arrived), "vlan8");
        // A tag that the host does not have a link for is a network that it is not in.
        udp.send(b"elsewhere");
        edit_one(&mut queue, |packet| packet.set_vlan(tagged(9)).unwrap());
        udp.receive();
        assert_eq!(udp.receive(), b"with a tag");
        udp.expect_nothing();
    }
}

fn link_addresses_are_rewritten(namespace: &Namespace) {
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x42];
    let (bridged, pairs) = neighbors(namespace);
    let [left, right] = ethernet(&bridged);
    let mut queue = Queue::builder(1).bind().unwrap();
    let Some(_rules) = queue_bridged(Hook::FORWARD, udp_rule(1)) else { return };
    let (mut arrived, _arrived_rules) = queue_at(&bridged.right);
    for (udp, ethertype) in pairs.iter().zip(ETHERTYPES) {
        udp.send(b"from another");
        let header = l2_header(right, OTHER, ethertype);
        edit_one(&mut queue, |packet| {
            packet.set_l2_header(&header).unwrap();
            assert_eq!(packet.l2_header(), Some(&header[..]));
            assert_eq!(packet.hwaddr(), Some(&left[..]), "as it came");
        });
        edit_one(&mut arrived, |packet| assert_eq!(packet.hwaddr(), Some(&OTHER[..])));
        assert_eq!(udp.receive_all(1), [b"from another"]);

        udp.send(b"to another");
        edit_one(&mut queue, |packet| {
            packet.set_l2_header(&l2_header(OTHER, left, ethertype)).unwrap();
        });
        udp.expect_nothing();
    }
    // What goes to nobody's address is sent to all ports, and there can still get a right one.
    let nobody = addresses(9)[0];
    bridged.left.add_neighbor("eth0", nobody, OTHER).unwrap();
    bridged.right.add_address("eth0", nobody, 24).unwrap();
    let udp = UdpPair::between((&bridged.left, LEFT[0]), (&bridged.right, nobody));
    for header in [None, Some(l2_header(right, left, IPV4))] {
        udp.send(b"found");
        edit_one(&mut queue, |packet| {
            assert_eq!(packet.l2_header(), Some(&l2_header(OTHER, left, IPV4)[..]));
            if let Some(header) = &header {
                packet.set_l2_header(header).unwrap();
            }
        });
        if header.is_some() {
            edit_one(&mut arrived, |packet| assert_eq!(packet.hwaddr(), Some(&left[..])));
            assert_eq!(udp.receive_all(1), [b"found"]);
        } else {
            udp.expect_nothing();
        }
    }
}

fn a_header_of_another_length_is_refused(namespace: &Namespace) {
    let (bridged, [udp, _]) = neighbors(namespace);
    let mut queue = Queue::builder(1).bind().unwrap();
    let Some(_rules) = queue_bridged(Hook::FORWARD, udp_rule(1)) else { return };
    let [left, right] = ethernet(&bridged);
    let header = l2_header(right, left, IPV4);
    udp.send(b"intact");
    edit_one(&mut queue, |packet| {
        for len in [0, 1, 13, 15, 18, 32, 33, 1000] {
            let error = packet.set_l2_header(&vec![0xa5; len]).unwrap_err();
            assert_eq!(error, EditError::L2HeaderLength { len, present: 14 });
            assert_eq!(packet.l2_header(), Some(&header[..]), "as it was");
        }
    });
    assert_eq!(udp.receive_all(1), [b"intact"]);
    assert_eq!(queue.take_refusals().len(), 0);
}

fn everything_leaves_in_one_verdict(namespace: &Namespace) {
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x42];
    let (bridged, [udp, _]) = neighbors(namespace);
    let [_, right] = ethernet(&bridged);
    let mut queue = Queue::builder(1).bind().unwrap();
    let Some(_rules) = queue_bridged(Hook::FORWARD, udp_rule(1)) else { return };
    let Some(()) = join_vlans(&bridged) else { return };
    let mut later = Queue::builder(3).bind().unwrap();
    let _later_rules = queue_bridged(Hook::POSTROUTING, udp_rule(3).mark(0x77)).unwrap();
    let (mut arrived, _arrived_rules) = queue_at(&bridged.right);
    // Between others that only are accepted.
    udp.send_each(*b"abc");
    let mut batch = receive_exactly(&mut queue, 3);
    let header = l2_header(right, OTHER, IPV4);
    for mut packet in &mut batch {
        if data(packet.payload()) == b"b" {
            packet.set_vlan(tagged(7)).unwrap();
            packet.set_l2_header(&header).unwrap();
            if takes_bytes_of_frames() {
                let mut changed = [packet.payload(), b"!"].concat();
                correct(&mut changed);
                packet.set_payload(&changed).unwrap();
            }
            packet.set_mark(0x77);
        }
        packet.accept();
    }
    batch.commit().unwrap();
    let changed = if takes_bytes_of_frames() { &b"b!"[..] } else { b"b" };
    edit_one(&mut later, |packet| {
        assert_eq!((packet.vlan(), packet.mark()), (Some(tagged(7)), Some(0x77)));
        assert_eq!(packet.l2_header(), Some(&header[..]));
        assert_eq!(data(packet.payload()), changed);
    });
    let mut batch = receive_exactly(&mut arrived, 3);
    let mut seen = Vec::new();
    for packet in &mut batch {
        let is_from_other = packet.hwaddr() == Some(&OTHER[..]);
        let name = packet.indev_name().unwrap().to_string();
        seen.push((data(packet.payload()).to_vec(), name, is_from_other));
        packet.accept();
    }
    batch.commit().unwrap();
    seen.sort();
    let expected = [(&b"a"[..], "eth0", false), (changed, "vlan7", true), (b"c", "eth0", false)]
        .map(|(data, name, is_from_other)| (data.to_vec(), name.to_owned(), is_from_other));
    assert_eq!(seen, expected);
    let messages = (queue.stats().exact_verdicts, queue.stats().cumulative_verdicts);
    assert_eq!(messages, (3, 0));
}

/// Later kernels drop a frame of which bytes come back, changed or not, and say nothing.
fn bytes_are_replaced_up_to_kernel_7_1(namespace: &Namespace) {
    let (_bridged, pairs) = neighbors(namespace);
    let mut queue = Queue::builder(1).bind().unwrap();
    let Some(_rules) = queue_bridged(Hook::FORWARD, udp_rule(1)) else { return };
    for udp in pairs {
        for sent in [&b"same"[..], b"longer", b"new"] {
            udp.send(b"old!");
            edit_one(&mut queue, |packet| {
                let header = packet.payload().len() - 4;
                let mut changed = [&packet.payload()[..header], sent].concat();
                correct(&mut changed);
                packet.set_payload(&changed).unwrap();
            });
            if takes_bytes_of_frames() {
                assert_eq!(udp.receive_all(1), [sent]);
            } else {
                udp.expect_nothing();
            }
        }
    }
    assert_eq!((queue.stats().answered, queue.take_refusals().len()), (6, 0));
}

/// Ethernet has no frames shorter than 46 bytes of payload; virtual links do not fill theirs up, so
/// the sender's own queue does.
fn filling_of_short_frames_is_not_data(namespace: &Namespace) {
    const FILLED: usize = 46;
    let (bridged, [udp, _]) = neighbors(namespace);
    let mut queue = Queue::builder(1).bind().unwrap();
    let Some(_rules) = queue_bridged(Hook::FORWARD, udp_rule(1)) else { return };
    if !takes_bytes_of_frames() {
        return lacks(FRAME_EDITS, "no bytes come back for them");
    }
    let (mut filler, _filler_rules) = bridged
        .left
        .run(|| (Queue::builder(4).bind().unwrap(), queue_udp_at(Hook::POSTROUTING, 4)));
    let (mut arrived, _arrived_rules) = queue_at(&bridged.right);
    for replaced in [false, true] {
        udp.send(b"x");
        edit_one(&mut filler, |packet| {
            let mut filled = packet.payload().to_vec();
            assert_eq!(filled.len(), 29);
            correct(&mut filled);
            filled.resize(FILLED, 0xa5);
            packet.set_edit_mode(EditMode::Raw);
            packet.set_payload(&filled).unwrap();
        });
        edit_one(&mut queue, |packet| {
            assert_eq!(
                (packet.payload().len(), packet.payload()[2..4].to_vec()),
                (FILLED, vec![0, 29])
            );
            if replaced {
                let mut changed = packet.payload().to_vec();
                changed[28] = b'Y';
                packet.set_payload(&changed).unwrap();
            } else {
                data_mut(packet.payload_mut().unwrap())[0] = b'Y';
            }
            assert_eq!(packet.complete(), Some(Completion::Everything), "it is IP and edited");
            assert_eq!(packet.payload().len(), FILLED);
            assert_eq!(packet.payload()[2..4], [0, 29], "the total length is without the filling");
        });
        edit_one(&mut arrived, |packet| {
            let mut right = packet.payload().to_vec();
            correct(&mut right);
            assert_eq!(packet.payload(), right);
            assert_eq!(data(packet.payload()), b"Y");
        });
        assert_eq!(udp.receive_all(1), [b"Y"]);
    }
}
