//! The namespaces that the other tests are made of: links, addresses, settings, processes,
//! descriptors.

use std::fs::{File, metadata};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use netfilterqueue::rules::{Family, Hook, Protocol, Rule, Rules};
use netfilterqueue::{Queue, Verdict};
use netfilterqueue_netns::{Error, Namespace, receive_fd, send_fd};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use crate::support::{Peers, UdpPair, V4, expect_no_packet, judge, receive_exactly, wait_until};
use crate::{Test, tests};

pub const TESTS: [Test; 12] = tests![
    a_router_routes,
    loopback_is_up,
    a_panic_comes_through,
    mistakes_are_named,
    a_bridge_forwards,
    bridged_packets_meet_ip_rules_if_set_so,
    vlans_on_one_link_are_apart,
    links_are_deleted_and_readdressed,
    a_static_neighbor_is_not_asked_for,
    settings_stay_inside,
    a_namespace_has_a_path_and_a_resident,
    a_descriptor_is_passed,
];

fn a_router_routes(router: &Namespace) {
    let peers = Peers::of(router);
    peers.client.set_mtu("eth0", 1400).unwrap();
    for udp in [peers.udp_v4(), peers.udp_v6()] {
        udp.send(b"hello");
        assert_eq!(udp.receive_all(1), [b"hello"]);
    }
    assert!(peers.client.link_index("eth0").unwrap() > 1);
    peers.client.set_link("eth0", false).unwrap();
}

fn loopback_is_up(_: &Namespace) {
    for address in ["127.0.0.1:7", "[::1]:7"] {
        // Port 7 needs the privileges that the namespace brings.
        UdpSocket::bind(address).unwrap();
    }
}

fn a_panic_comes_through(namespace: &Namespace) {
    let panic = catch_unwind(AssertUnwindSafe(|| {
        namespace.run(|| resume_unwind(Box::new("seen outside")))
    }));
    let panic = panic.expect_err("the panic was lost");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"seen outside"));
}

fn mistakes_are_named(namespace: &Namespace) {
    let error = namespace.add_address("absent", [10, 0, 0, 1].into(), 24).expect_err("no link");
    assert!(error.to_string().starts_with("adding 10.0.0.1/24 to absent: "), "{error}");
    let unreachable = UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"", "10.9.9.9:9");
    assert_eq!(unreachable.expect_err("no route").kind(), ErrorKind::NetworkUnreachable);
    for outside in ["kernel/hostname", "net/../kernel/hostname", "/proc/sys/net/x"] {
        let error = namespace.set_sysctl(outside, "1").expect_err("not of a namespace");
        assert!(error.to_string().contains("net/ only"), "{error}");
    }
    let error = namespace.sysctl("net/absent").expect_err("no such setting");
    assert!(error.to_string().starts_with("reading /proc/sys/net/absent: "), "{error}");
}

/// Two hosts at the ports of the bridge `bridge`, which is in the test's namespace.
pub struct Bridged {
    pub left: Namespace,
    pub right: Namespace,
}

/// Their addresses, IPv4 and IPv6.
pub const LEFT: [IpAddr; 2] = addresses(1);
pub const RIGHT: [IpAddr; 2] = addresses(2);

pub const fn addresses(host: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(10, 3, 0, host)),
        IpAddr::V6(Ipv6Addr::new(0xfd03, 0, 0, 0, 0, 0, 0, host as u16)),
    ]
}

impl Bridged {
    pub fn by(namespace: &Namespace) -> Self {
        namespace.bridge("bridge").unwrap();
        let [left, right] = [("left", LEFT), ("right", RIGHT)].map(|(port, addresses)| {
            let host = Namespace::new().unwrap();
            namespace.veth(port, &host, "eth0").unwrap();
            namespace.set_master(port, "bridge").unwrap();
            for (address, prefix) in addresses.into_iter().zip([24, 64]) {
                host.add_address("eth0", address, prefix).unwrap();
            }
            host
        });
        Self { left, right }
    }

    pub fn udp(&self) -> [UdpPair; 2] {
        [0, 1].map(|family| {
            UdpPair::between((&self.left, LEFT[family]), (&self.right, RIGHT[family]))
        })
    }
}

fn a_bridge_forwards(namespace: &Namespace) {
    let bridged = Bridged::by(namespace);
    for udp in bridged.udp() {
        udp.send(b"hello");
        assert_eq!(udp.receive_all(1), [b"hello"]);
    }
    assert_eq!(errno(namespace.set_master("left", "lo")), Some(Errno::EOPNOTSUPP));
}

fn bridged_packets_meet_ip_rules_if_set_so(namespace: &Namespace) {
    const SETTING: &str = "net/bridge/bridge-nf-call-iptables";
    let bridged = Bridged::by(namespace);
    let mut queue = Queue::builder(1).bind().unwrap();
    let rule = Rule::queue(1).protocol(Protocol::UDP);
    let _rules = Rules::new(Hook::FORWARD).family(Family::IPV4).rule(rule).install().unwrap();
    let [udp, _] = bridged.udp();
    // Without br_netfilter there is no such setting, and bridged packets never meet the rules.
    let has_setting = namespace.set_sysctl(SETTING, "0").is_ok();
    udp.send(b"past the rules");
    assert_eq!(udp.receive_all(1), [b"past the rules"]);
    expect_no_packet(&mut queue);
    if !has_setting {
        return;
    }

    namespace.set_sysctl(SETTING, "1").unwrap();
    assert_eq!(namespace.sysctl(SETTING).unwrap(), "1");
    udp.send(b"through the queue");
    let mut batch = receive_exactly(&mut queue, 1);
    let packet = batch.iter_mut().next().unwrap();
    let ports = (packet.physindev(), packet.physoutdev());
    let expected = ["left", "right"].map(|port| namespace.link_index(port).ok());
    assert_eq!(ports, expected.into());
    judge(&mut batch, Verdict::Accept);
    assert_eq!(udp.receive_all(1), [b"through the queue"]);
}

fn vlans_on_one_link_are_apart(namespace: &Namespace) {
    let peer = Namespace::new().unwrap();
    namespace.veth("trunk", &peer, "trunk").unwrap();
    for (host, namespace) in [(1, namespace), (2, &peer)] {
        for id in [7, 8] {
            let name = format!("tagged{id}");
            match namespace.vlan("trunk", &name, id) {
                // A kernel without VLANs says so.
                Err(Error::System { source, .. })
                    if source.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) =>
                {
                    return;
                }
                result => result.unwrap(),
            }
            namespace.add_address(&name, [10, 4, id as u8, host].into(), 24).unwrap();
        }
    }
    for net in [7, 8] {
        let [here, there] = [1, 2].map(|host| IpAddr::from([10, 4, net, host]));
        let udp = UdpPair::between((namespace, here), (&peer, there));
        udp.send(b"tagged");
        assert_eq!(udp.receive_all(1), [b"tagged"]);
    }
    // The tag 7 alone is what the two have left in common.
    peer.delete_link("tagged8").unwrap();
    peer.add_address("tagged7", [10, 4, 8, 2].into(), 24).unwrap();
    let udp = UdpPair::between((namespace, [10, 4, 8, 1].into()), (&peer, [10, 4, 8, 2].into()));
    udp.send(b"with the tag 8");
    udp.expect_nothing();
    assert_eq!(errno(namespace.vlan("trunk", "tagged9", 4095)), Some(Errno::ERANGE));
}

fn links_are_deleted_and_readdressed(namespace: &Namespace) {
    const ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 7];
    namespace.veth("near", namespace, "far").unwrap();
    namespace.set_link_address("near", ADDRESS).unwrap();
    assert_eq!(namespace.link_address("near").unwrap(), ADDRESS);
    assert_ne!(namespace.link_address("far").unwrap(), ADDRESS);
    assert_eq!(namespace.link_address("lo").unwrap(), [0; 6]);
    let multicast = namespace.set_link_address("near", [1, 0, 0x5e, 0, 0, 1]);
    assert_eq!(errno(multicast), Some(Errno::EADDRNOTAVAIL));

    namespace.delete_link("near").unwrap();
    assert_eq!(
        errno(namespace.link_index("far")),
        Some(Errno::ENODEV),
        "it goes with its other end"
    );
    assert_eq!(errno(namespace.delete_link("near")), Some(Errno::ENODEV));

    namespace.bridge("bridge").unwrap();
    namespace.set_link_address("bridge", ADDRESS).unwrap();
    namespace.veth("port", namespace, "host").unwrap();
    namespace.set_link_address("port", [2, 0, 0, 0, 0, 1]).unwrap();
    namespace.set_master("port", "bridge").unwrap();
    assert_eq!(namespace.link_address("bridge").unwrap(), ADDRESS, "not that of its port");
}

fn a_static_neighbor_is_not_asked_for(namespace: &Namespace) {
    const NOWHERE: [u8; 6] = [2, 0, 0, 0, 0, 9];
    let peer = Namespace::new().unwrap();
    namespace.veth("eth0", &peer, "eth0").unwrap();
    let ethernet = peer.link_address("eth0").unwrap();
    for (family, prefix) in [24, 64].into_iter().enumerate() {
        let ([here, there], elsewhere) = ([LEFT, RIGHT].map(|of| of[family]), addresses(3)[family]);
        namespace.add_address("eth0", here, prefix).unwrap();
        namespace.add_neighbor("eth0", there, ethernet).unwrap();
        namespace.add_neighbor("eth0", elsewhere, NOWHERE).unwrap();
        assert_eq!(errno(namespace.add_neighbor("eth0", there, ethernet)), Some(Errno::EEXIST));
        for address in [there, elsewhere] {
            peer.add_address("eth0", address, prefix).unwrap();
        }
        let udp = UdpPair::between((namespace, here), (&peer, there));
        // A new IPv6 address is reached a moment later.
        udp.receiver.set_nonblocking(true).unwrap();
        wait_until("a datagram arrives", || {
            udp.send(b"hello");
            udp.receiver.recv(&mut [0; 8]).is_ok()
        });
        let udp = UdpPair::between((namespace, here), (&peer, elsewhere));
        udp.send(b"an answer to a question would bring this");
        udp.expect_nothing();
    }
}

fn settings_stay_inside(namespace: &Namespace) {
    const SETTING: &str = "net/ipv4/ip_default_ttl";
    let other = Namespace::new().unwrap();
    namespace.set_sysctl(SETTING, "17").unwrap();
    assert_eq!(
        (namespace.sysctl(SETTING).unwrap(), other.sysctl(SETTING).unwrap()),
        ("17".to_owned(), "64".to_owned())
    );
}

fn a_namespace_has_a_path_and_a_resident(_: &Namespace) {
    let other = Namespace::new().unwrap();
    let resident = other.resident().unwrap();
    let of_resident = format!("/proc/{}/ns/net", resident.id());
    let identity = |path: &Path| metadata(path).map(|file| (file.dev(), file.ino()));
    let expected = other.run(|| identity(Path::new("/proc/thread-self/ns/net"))).unwrap();
    assert_ne!(identity(Path::new("/proc/thread-self/ns/net")).unwrap(), expected);
    for path in [&other.path(), Path::new(&of_resident)] {
        assert_eq!(identity(path).unwrap(), expected, "{}", path.display());
        let file = File::open(path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| setns(&file, CloneFlags::CLONE_NEWNET).expect("it can be entered"));
        });
    }
    drop(resident);
    assert_eq!(identity(Path::new(&of_resident)).unwrap_err().kind(), ErrorKind::NotFound);
}

fn a_descriptor_is_passed(namespace: &Namespace) {
    let other = Namespace::new().unwrap();
    let (sender, receiver) = UnixStream::pair().unwrap();
    let listener = other.run(|| TcpListener::bind((V4, 0))).unwrap();
    send_fd(&sender, &listener).unwrap();
    let received = TcpListener::from(receive_fd(&receiver).unwrap());
    assert_eq!(received.local_addr().unwrap(), listener.local_addr().unwrap());
    drop(listener);
    let address = received.local_addr().unwrap();
    let connect = || TcpStream::connect(address);
    other.run(connect).expect("the listener lives on, in its own namespace");
    assert_eq!(namespace.run(connect).unwrap_err().kind(), ErrorKind::ConnectionRefused);

    send_fd(&sender, namespace.as_fd()).unwrap();
    let namespace_file = receive_fd(&receiver).unwrap();
    other.run(|| {
        setns(&namespace_file, CloneFlags::CLONE_NEWNET).expect("entered by a passed descriptor");
    });
    drop(sender);
    let error = receive_fd(&receiver).expect_err("the other end is gone");
    assert_eq!(error.to_string(), "receiving a descriptor: none came");
}

/// The number of the error, if it is one of the kernel.
fn errno<T>(result: Result<T, Error>) -> Option<Errno> {
    match result {
        Err(Error::System { source, .. }) => source.raw_os_error().map(Errno::from_raw),
        _ => None,
    }
}
