//! `namespace`: what is shown of another namespace, and when that ends.

use std::net::IpAddr;

use netfilterqueue_netns::Namespace;

use crate::program::{Program, SOON};
use crate::support::{UdpPair, V4, V6};
use crate::{Test, tests};

const PROGRAM: &str = env!("CARGO_BIN_EXE_namespace");

pub const TESTS: [Test; 5] = tests![
    the_packets_of_a_container_are_shown,
    only_what_was_asked_for_is_shown,
    the_end_of_the_process_ends_it,
    nothing_is_lost_when_it_ends,
    invalid_arguments_are_told,
];

fn pair(namespace: &Namespace, address: IpAddr) -> UdpPair {
    UdpPair::between((namespace, address), (namespace, address))
}

fn the_packets_of_a_container_are_shown(host: &Namespace) {
    let container = Namespace::new().expect("a container");
    let resident = container.resident().expect("a process");
    let mut program = Program::start(PROGRAM, &["--pid", &resident.id().to_string()]);
    for address in [V4, V6] {
        let (inside, outside) = (pair(&container, address), pair(host, address));
        // By name, and not that of another link with the same number outside.
        outside.send(b"of no interest");
        assert_eq!(outside.receive(), b"of no interest");
        inside.send(b"data");
        assert_eq!(inside.receive(), b"data");
        let [from, to] = [&inside.sender, &inside.receiver].map(|s| s.local_addr().unwrap());
        let bytes = 12 + if address == V4 { 20 } else { 40 };
        for (word, hook) in [("out", "output to lo"), ("in ", "input lo")] {
            let id = program.wait_for_output(&format!("UDP {from} → {to} {bytes} bytes, {hook}"));
            assert!(id.contains(&format!(" {word} ")), "{id}");
        }
    }
    let ended = program.interrupt().well();
    let closing = "2 packets in with 84 bytes, 2 out with 84 bytes; 0 unseen";
    assert!(ended.stdout.contains(closing), "{ended:?}");
    assert_eq!(ended.stdout.lines().count(), 5, "{ended:?}");
}

fn only_what_was_asked_for_is_shown(host: &Namespace) {
    let container = Namespace::new().expect("a container");
    host.veth("veth0", &container, "eth0").expect("a link");
    let [near, far] = [1, 2].map(|last| IpAddr::from([10, 9, 0, last]));
    host.add_address("veth0", near, 24).expect("an address");
    container.add_address("eth0", far, 24).expect("an address");
    let path = format!("/proc/{}/fd/{}", std::process::id(), fd(&container));
    let asked = UdpPair::between((host, near), (&container, far));
    let other = UdpPair::between((host, near), (&container, far));
    let port = asked.receiver_address().port().to_string();
    let selection = ["--protocol", "udp", "--dport", &port, "--interface", "eth0"];
    let program = Program::start(PROGRAM, &[&["--path", &path][..], &selection].concat());
    let inside = pair(&container, V4);
    for udp in [&asked, &other, &inside] {
        udp.send(b"there");
        udp.receive();
        let back = udp.sender.local_addr().unwrap();
        udp.receiver.send_to(b"back again", back).expect("sent");
        udp.sender.set_read_timeout(Some(SOON)).expect("a timeout");
        udp.sender.recv(&mut [0; 20]).expect("received");
    }
    let ended = program.interrupt().well();
    let closing = "1 packets in with 33 bytes, 1 out with 38 bytes; 0 unseen";
    assert!(ended.stdout.contains(closing), "{ended:?}");
    assert!(ended.stdout.contains(", input eth0") && ended.stdout.contains(", output to eth0"));
}

fn fd(namespace: &Namespace) -> i32 {
    use std::os::fd::{AsFd, AsRawFd};
    namespace.as_fd().as_raw_fd()
}

fn the_end_of_the_process_ends_it(_: &Namespace) {
    let container = Namespace::new().expect("a container");
    let resident = container.resident().expect("a process");
    let mut program = Program::start(PROGRAM, &["--pid", &resident.id().to_string()]);
    let udp = pair(&container, V4);
    udp.send(b"seen");
    program.wait_for_output("UDP");
    drop(resident);
    let ended = program.ended().well();
    assert!(ended.stderr.contains("the process has ended"), "{ended:?}");
    // The rule has gone with it.
    udp.send(b"unseen");
    assert_eq!(udp.receive_all(2), [b"seen".to_vec(), b"unseen".to_vec()]);
}

fn nothing_is_lost_when_it_ends(_: &Namespace) {
    const DATAGRAMS: u32 = 3000;
    let container = Namespace::new().expect("a container");
    let resident = container.resident().expect("a process");
    let program = Program::start(PROGRAM, &["--pid", &resident.id().to_string()]);
    let udp = pair(&container, V4);
    let ended = std::thread::scope(|scope| {
        let stream = scope.spawn(|| {
            for number in 0..DATAGRAMS {
                udp.send(&number.to_be_bytes());
                assert_eq!(udp.receive(), number.to_be_bytes());
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(30));
        let ended = program.interrupt().well();
        stream.join().expect("all arrive");
        ended
    });
    let (seen_in, seen_out) = (ended.count("packets"), ended.count("out"));
    assert!(seen_in > 0 && seen_out > 0, "{seen_in} {seen_out}");
    assert!(seen_in < u64::from(DATAGRAMS), "it ended meanwhile");
}

fn invalid_arguments_are_told(_: &Namespace) {
    for (arguments, code, text) in [
        (&[][..], 2, "--pid <PID>|--name <NAME>|--path <FILE>"),
        (&["--pid", "1", "--name", "a"], 2, "cannot be used with"),
        (&["--pid", "4194305"], 1, "process 4194305: "),
        (&["--name", "../etc"], 1, "not a name"),
        (&["--path", "/etc/hostname"], 1, "network namespace"),
    ] {
        let ended = Program::spawn(PROGRAM, arguments).ended();
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        assert!(ended.stderr.contains(text), "{ended:?}");
    }
}
