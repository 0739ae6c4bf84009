//! Packets whose headers are cut off or lie, given to the programs that get all of a host's packets:
//! they judge them and go on. Those that choose by protocol and port have tests of their own.

use std::net::SocketAddr;

use netfilterqueue_netns::Namespace;
use socket2::{Domain, Protocol, Socket, Type};

use crate::harness::{Test, tests};
use crate::program::{Ended, Program, count};

pub const TESTS: [Test; 6] = tests![chaos, latency, monitor, namespace, pcapng, ratelimit];

/// `IPPROTO_RAW`: packets are sent with the IP header that they have.
const RAW: i32 = 255;
/// How many packets are sent.
const SENT: u64 = 26;

/// What is behind the IP header, with the protocol that it claims to be.
const BODIES: [(u8, &[u8]); 13] = [
    (17, &[]),
    (17, &[1, 2, 3]),
    (17, &[0, 53, 0, 53, 0xff, 0xff, 0, 0]),
    (17, &[0, 53, 0, 53, 0, 0, 0, 0, 9]),
    (6, &[0, 80]),
    (6, &[0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0xf0, 2, 0, 0, 0, 0, 0, 0]),
    (6, &[0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x00, 2, 0, 0, 0, 0, 0, 0]),
    (1, &[8]),
    (58, &[128, 0]),
    (253, &[0xff; 40]),
    (0, &[17, 200, 1, 1]),
    (44, &[17, 0, 0xff]),
    (51, &[17, 255, 0, 0]),
];

fn send_all() {
    let socket = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(RAW))).unwrap();
    let (v4, v6) = (socket(Domain::IPV4), socket(Domain::IPV6));
    for (protocol, body) in BODIES {
        let len = u8::try_from(20 + body.len()).unwrap();
        let mut packet = vec![0x45, 0, 0, len, 0, 1, 0, 0, 64, protocol, 0, 0];
        packet.extend([127, 0, 0, 1, 127, 0, 0, 1]);
        packet.extend(body);
        v4.send_to(&packet, &SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let mut packet = vec![0x60, 0, 0, 0, 0, body.len() as u8, protocol, 64];
        for _ in 0..2 {
            packet.extend(std::net::Ipv6Addr::LOCALHOST.octets());
        }
        packet.extend(body);
        v6.send_to(&packet, &SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0)).into()).unwrap();
    }
}

fn ended(path: &str, arguments: &[&str]) -> Ended {
    let mut program = Program::start(path, arguments);
    send_all();
    assert!(program.runs());
    program.interrupt().well()
}

/// At least those: the kernel answers some of them.
#[track_caller]
fn all(ended: &Ended, number: Option<u64>) {
    assert!(number.is_some_and(|number| number >= SENT), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
}

fn chaos(_: &Namespace) {
    let damage = ["--corrupt", "100", "--duplicate", "50", "--delay", "5ms"];
    for checksums in [&[][..], &["--valid-checksums"]] {
        let ended = ended(env!("CARGO_BIN_EXE_chaos"), &[&damage[..], checksums].concat());
        all(&ended, count(&ended.stdout, "received"));
    }
}

fn latency(_: &Namespace) {
    let ended = ended(env!("CARGO_BIN_EXE_latency"), &["--hook", "output"]);
    all(&ended, count(&ended.stdout, "received"));
}

fn monitor(_: &Namespace) {
    let ended = ended(env!("CARGO_BIN_EXE_monitor"), &["--plain", "--interval", "20ms"]);
    let passed = ended.stderr.lines().find_map(|line| line.strip_suffix(" packets passed, 0 lost"));
    all(&ended, passed.and_then(|number| number.parse().ok()));
}

fn namespace(_: &Namespace) {
    // Of the thread that the test runs in.
    let task = std::fs::read_link("/proc/thread-self").unwrap();
    let path = format!("/proc/{}/ns/net", task.display());
    let ended = ended(env!("CARGO_BIN_EXE_namespace"), &["--path", &path]);
    let seen = ended.stdout.lines().filter(|line| line.contains(" out ")).count() as u64;
    all(&ended, Some(seen));
}

fn pcapng(_: &Namespace) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("record.pcapng");
    let arguments = [file.to_str().unwrap(), "--drop-port", "53"];
    let ended = ended(env!("CARGO_BIN_EXE_pcapng"), &arguments);
    all(&ended, count(&ended.stderr, "recorded"));
}

fn ratelimit(_: &Namespace) {
    let ended = ended(env!("CARGO_BIN_EXE_ratelimit"), &["--hook", "output", "--packets", "9"]);
    all(&ended, count(&ended.stdout, "received"));
    assert_eq!(count(&ended.stdout, "unreadable"), Some(0), "{ended:?}");
}
