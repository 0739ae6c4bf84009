//! What stands in the file, read by the crate that wrote it and by Wireshark's `tshark`.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use netfilterqueue_netns::Namespace;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::{Block, PcapNgReader};

use crate::harness::{Test, tests};
use crate::kernel::untested;
use crate::program::{Program, count};
use crate::traffic::Pair;

pub const TESTS: [Test; 6] = tests![
    packets_are_recorded_with_verdict_and_mark,
    a_packet_is_recorded_as_far_as_asked_for,
    it_ends_after_so_many_packets,
    wireshark_reads_it,
    a_full_disk_ends_it_and_packets_pass,
    a_file_that_cannot_be_made_is_told,
];

const PCAPNG: &str = env!("CARGO_BIN_EXE_pcapng");

fn start(file: &Path, arguments: &str) -> Program {
    let mut all = vec![file.to_str().unwrap()];
    all.extend(arguments.split_ascii_whitespace());
    Program::start(PCAPNG, &all)
}

struct Recorded {
    packets: Vec<EnhancedPacketBlock<'static>>,
    interfaces: Vec<String>,
}

fn read(file: &Path) -> Recorded {
    let mut reader = PcapNgReader::new(File::open(file).unwrap()).unwrap();
    let mut recorded = Recorded { packets: Vec::new(), interfaces: Vec::new() };
    while let Some(block) = reader.next_block() {
        match block.unwrap().into_owned() {
            Block::EnhancedPacket(packet) => recorded.packets.push(packet),
            Block::InterfaceDescription(interface) => {
                recorded.interfaces.push(format!("{:?}", interface.options));
            }
            other => panic!("{other:?}"),
        }
    }
    recorded
}

fn comment<'a>(packet: &'a EnhancedPacketBlock<'_>) -> &'a str {
    let comment = packet.options.iter().find_map(|option| match option {
        EnhancedPacketOption::Comment(comment) => Some(&**comment),
        _ => None,
    });
    comment.expect("a comment")
}

fn packets_are_recorded_with_verdict_and_mark(_: &Namespace) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("record.pcapng");
    for (address, headers) in [("127.0.0.1", 28), ("::1", 48)] {
        let (pair, unwanted) = (Pair::at(address), Pair::at(address));
        let before = SystemTime::now();
        let arguments = format!("--protocol udp --mark 0x7 --drop-port {}", unwanted.port());
        let program = start(&file, &arguments);
        pair.send(0..3);
        unwanted.send(3..5);
        pair.expect([0, 1, 2]);
        unwanted.expect([]);
        let ended = program.interrupt().well();
        assert_eq!(
            (count(&ended.stderr, "recorded"), count(&ended.stderr, "dropped")),
            (Some(5), Some(2))
        );
        let recorded = read(&file);
        assert_eq!(recorded.interfaces.len(), 1);
        assert!(recorded.interfaces[0].contains("\"lo\""), "{:?}", recorded.interfaces);
        assert_eq!(recorded.packets.len(), 5);
        for (number, packet) in recorded.packets.iter().enumerate() {
            let body = format!("packet {number}");
            assert_eq!(&packet.data[headers..], body.as_bytes());
            assert_eq!(packet.original_len as usize, packet.data.len());
            let time = SystemTime::UNIX_EPOCH + packet.timestamp;
            assert!((before..SystemTime::now()).contains(&time), "{time:?}");
            let decision = if number < 3 { "accept, mark 0x0 → 0x7" } else { "drop" };
            let comment = comment(packet);
            let rest = comment.strip_prefix(decision).unwrap_or_else(|| panic!("{comment}"));
            let rest = rest.strip_prefix(&format!("; packet {} of queue 1", number + 1));
            assert!(rest.is_some_and(|rest| rest.starts_with(", output → lo, uid ")), "{comment}");
            assert!(packet.options.contains(&EnhancedPacketOption::Flags(2)));
        }
    }
}

fn a_packet_is_recorded_as_far_as_asked_for(_: &Namespace) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("record.pcapng");
    let pair = Pair::at("::1");
    let program = start(&file, "--protocol udp --snaplen 50 --hook input");
    pair.sender.send(&[7; 500]).unwrap();
    assert_eq!(pair.receive(1), [[7; 500]]);
    program.interrupt().well();
    let recorded = read(&file);
    let [packet] = recorded.packets.as_slice() else { panic!("{}", recorded.packets.len()) };
    assert_eq!((packet.data.len(), packet.original_len), (50, 548));
    assert!(packet.options.contains(&EnhancedPacketOption::Flags(1)));
    assert!(
        comment(packet).starts_with("accept; packet 1 of queue 1, lo → input"),
        "{}",
        comment(packet)
    );
}

fn it_ends_after_so_many_packets(_: &Namespace) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("record.pcapng");
    let pair = Pair::at("127.0.0.1");
    let program = start(&file, "--protocol udp --packets 5");
    pair.send(0..20);
    pair.expect(0..20);
    program.ended().well();
    let recorded = read(&file);
    assert_eq!(recorded.packets.len(), 5);
    assert!(recorded.packets[4].data.ends_with(b"packet 4"));
}

fn wireshark_reads_it(_: &Namespace) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("record.pcapng");
    let pair = Pair::at("127.0.0.1");
    let mut program = start(&file, "--protocol udp --mark 9");
    pair.send(0..4);
    assert_eq!(pair.numbers(4).len(), 4);
    // What was recorded can be read while the program runs.
    let until = std::time::Instant::now() + crate::program::SOON;
    while read(&file).packets.len() < 4 {
        assert!(std::time::Instant::now() < until, "not flushed");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(program.runs());
    program.interrupt().well();
    let fields = ["-e", "udp.length", "-e", "udp.checksum.status", "-e", "frame.comment"];
    let mut tshark = Command::new("tshark");
    tshark
        // Somebody's settings must not matter, nor that they cannot be read.
        .env("HOME", folder.path())
        .env_remove("XDG_CONFIG_HOME")
        .arg("-r")
        .arg(&file)
        .args(["-o", "udp.check_checksum:TRUE", "-T", "fields"])
        .args(fields);
    let output = match tshark.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let is_required = std::env::var_os("NETFILTERQUEUE_REQUIRE_LIVE").is_some();
            assert!(!is_required, "tshark must be installed");
            return untested("whether Wireshark reads a record", error);
        }
        output => output.unwrap(),
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text} {}", String::from_utf8_lossy(&output.stderr));
    for line in lines {
        // 1 is a right checksum.
        assert!(line.starts_with("16\t1\taccept, mark 0x0 → 0x9; packet "), "{line}");
    }
}

fn a_full_disk_ends_it_and_packets_pass(_: &Namespace) {
    let pair = Pair::at("127.0.0.1");
    let program = start(Path::new("/dev/full"), "--protocol udp");
    pair.send(0..50);
    pair.expect(0..50);
    let ended = program.ended();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("No space left"), "{ended:?}");
    pair.send(50..51);
    // The rule is gone.
    pair.expect([50]);
}

fn a_file_that_cannot_be_made_is_told(_: &Namespace) {
    let ended = Program::spawn(PCAPNG, &["/nowhere/record.pcapng"]).ended();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("creating /nowhere/record.pcapng: No such file"), "{ended:?}");
    assert_eq!(Program::spawn(PCAPNG, &[]).ended().status.code(), Some(2));
}
