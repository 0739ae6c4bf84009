//! `namespace`: what is shown of another namespace, and when that ends.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use netfilterqueue_netns::Namespace;

use crate::program::{Program, SOON};
use crate::support::{UdpPair, V4, V6, wait_until};
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
    let id = resident.id().to_string();
    // Who asks twice for a way sees it once.
    let mut program = Program::start(PROGRAM, &["--pid", &id, "--show", "in,out,in"]);
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
    const MOST: u32 = 3_000_000;
    let container = Namespace::new().expect("a container");
    let resident = container.resident().expect("a process");
    let program = Program::start(PROGRAM, &["--pid", &resident.id().to_string()]);
    let udp = pair(&container, V4);
    let (sent, is_over) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // It ends, too, where what is below fails.
            while !is_over.load(Ordering::SeqCst) && sent.load(Ordering::SeqCst) < MOST {
                let number = sent.fetch_add(1, Ordering::SeqCst).to_be_bytes();
                udp.send(&number);
                assert_eq!(udp.receive(), number);
            }
        });
        wait_until("it is at work", || sent.load(Ordering::SeqCst) > 100);
        let ended = program.interrupt().well();
        let by_then = sent.load(Ordering::SeqCst);
        wait_until("the others pass", || sent.load(Ordering::SeqCst) > by_then + 100);
        is_over.store(true, Ordering::SeqCst);
        let (seen_in, seen_out) = (ended.count("packets"), ended.count("out"));
        assert!(seen_in >= 100 && seen_out >= 100, "{seen_in} {seen_out}");
    });
}

fn invalid_arguments_are_told(_: &Namespace) {
    for (arguments, code, text) in [
        (&[][..], 2, "--pid <PID>|--name <NAME>|--path <FILE>"),
        (&["--pid", "1", "--name", "a"], 2, "cannot be used with"),
        // Its rules cannot come from elsewhere, and are at the hooks that it needs.
        (&["--pid", "1", "--no-rule"], 2, "--no-rule"),
        (&["--pid", "1", "--hook", "forward"], 2, "--hook"),
        (&["--pid", "4194305"], 1, "process 4194305: "),
        (&["--name", "../etc"], 1, "not a name"),
        (&["--path", "/etc/hostname"], 1, "network namespace"),
    ] {
        let ended = Program::spawn(PROGRAM, arguments).ended();
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        assert!(ended.stderr.contains(text), "{ended:?}");
    }
}
