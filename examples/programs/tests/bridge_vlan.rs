//! `bridge_vlan`: in which VLAN frames arrive, and with which priority.

use std::net::{IpAddr, UdpSocket};

use netfilterqueue_netns::Namespace;

use crate::kernel::{has_nft_queue, lacks};
use crate::program::Program;
use crate::support::{QUIET, UdpPair};
use crate::{Test, tests};

const PROGRAM: &str = env!("CARGO_BIN_EXE_bridge_vlan");

pub const TESTS: [Test; 3] = tests![
    hosts_in_different_vlans_reach_each_other,
    untagged_frames_get_a_tag_and_ports_matter,
    invalid_arguments_are_told,
];

/// Two hosts at a bridge, `left` and `right`.
struct Hosts {
    left: Namespace,
    right: Namespace,
}

const LEFT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const RIGHT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

impl Hosts {
    /// Each in a VLAN, or in none. `None` if the kernel has no VLANs.
    fn of(bridge: &Namespace, [left, right]: [Option<u16>; 2]) -> Option<Self> {
        for setting in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"]
        {
            // Only where br_netfilter is loaded; it would take the frames out of the bridge's rules.
            let _ = bridge.set_sysctl(setting, "0");
        }
        bridge.bridge("bridge").expect("a bridge");
        let host = |port, id: Option<u16>, address| {
            let host = Namespace::new().expect("a host");
            bridge.veth(port, &host, "eth0").expect("a link");
            bridge.set_master(port, "bridge").expect("a port");
            let link = match id {
                None => "eth0",
                Some(id) => match host.vlan("eth0", "vlan", id) {
                    Ok(()) => "vlan",
                    Err(error) => {
                        lacks("vlan", error);
                        return None;
                    }
                },
            };
            host.add_address(link, address, 24).expect("an address");
            Some(host)
        };
        Some(Self { left: host("left", left, LEFT)?, right: host("right", right, RIGHT)? })
    }

    fn udp(&self) -> UdpPair {
        UdpPair::between((&self.left, LEFT), (&self.right, RIGHT))
    }
}

/// Starts the program; where the kernel cannot queue frames it says so, and ends.
fn start(arguments: &[&str]) -> Option<Program> {
    if has_nft_queue() {
        return Some(Program::start(PROGRAM, arguments));
    }
    let ended = Program::spawn(PROGRAM, arguments).ended();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("nft_queue"), "it tells what is missing: {ended:?}");
    lacks("bridge", &ended.stderr);
    None
}

fn hosts_in_different_vlans_reach_each_other(bridge: &Namespace) {
    let maps = ["--map", "10:20@left", "--map", "20:10@right", "--priority", "20:5"];
    let Some(mut program) = start(&maps) else { return };
    let Some(hosts) = Hosts::of(bridge, [Some(10), Some(20)]) else { return };
    let udp = hosts.udp();
    udp.send(b"there");
    assert_eq!(udp.receive(), b"there");
    let back = udp.sender.local_addr().expect("an address");
    udp.receiver.send_to(b"back", back).expect("sent");
    udp.sender.set_read_timeout(Some(crate::support::SOON)).expect("a timeout");
    let mut buffer = [0; 8];
    assert_eq!(udp.sender.recv(&mut buffer).expect("received"), 4);
    let to = udp.receiver_address();
    let there = format!("left → right, VLAN 10 → VLAN 20 priority 5, UDP {back} → {to} 33 bytes");
    program.wait_for_output(&there);
    program
        .wait_for_output(&format!("right → left, VLAN 20 → VLAN 10, UDP {to} → {back} 32 bytes"));
    let ended = program.interrupt().well();
    assert!(ended.stdout.contains("left → right, VLAN 10 → VLAN 20 priority 5, ARP 28 bytes"));
    assert!(ended.count("tagged") >= 4, "{ended:?}");
    assert_eq!((ended.count("refused"), ended.count("lost")), (0, 0));
    // Without it they are apart again.
    udp.send(b"?");
    udp.expect_nothing();
}

fn untagged_frames_get_a_tag_and_ports_matter(bridge: &Namespace) {
    let Some(program) = start(&["--map", "untagged:20@left", "--map", "untagged:30", "--quiet"])
    else {
        return;
    };
    let Some(hosts) = Hosts::of(bridge, [None, Some(20)]) else { return };
    // There is no way back, so that nobody is to be asked for an address.
    let ethernet = hosts.right.link_address("vlan").expect("an address");
    hosts.left.add_neighbor("eth0", RIGHT, ethernet).expect("a neighbor");
    let udp = hosts.udp();
    udp.send(b"tagged");
    assert_eq!(udp.receive(), b"tagged");
    // What comes in by the other port gets into VLAN 30, where nobody is.
    hosts.right.add_address("eth0", [10, 1, 0, 2].into(), 24).expect("an address");
    hosts.left.add_address("eth0", [10, 1, 0, 1].into(), 24).expect("an address");
    let ethernet = hosts.left.link_address("eth0").expect("an address");
    hosts.right.add_neighbor("eth0", [10, 1, 0, 1].into(), ethernet).expect("a neighbor");
    let receiver = hosts.left.run(|| UdpSocket::bind(("10.1.0.1", 0)).expect("a socket"));
    let sender = hosts.right.run(|| UdpSocket::bind(("10.1.0.2", 0)).expect("a socket"));
    receiver.set_read_timeout(Some(QUIET)).expect("a timeout");
    sender.send_to(b"?", receiver.local_addr().expect("an address")).expect("sent");
    assert!(receiver.recv(&mut [0; 8]).is_err());
    let ended = program.interrupt().well();
    assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
    assert!(ended.count("tagged") >= 2, "{ended:?}");
}

fn invalid_arguments_are_told(_: &Namespace) {
    for (arguments, text) in [
        (&["--map", "10:4095"][..], "is no VLAN"),
        (&["--map", "10:untagged"], "does not take a tag away"),
        (&["--map", "10:20@"], "the name of the port"),
        (&["--priority", "10:8"], "from 0 to 7"),
    ] {
        let ended = Program::spawn(PROGRAM, arguments).ended();
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains(text), "{ended:?}");
    }
}
