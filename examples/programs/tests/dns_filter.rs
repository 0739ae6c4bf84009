//! `dns_filter`: what clients are told about blocked names, and about others.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use domain::base::iana::Rcode;
use domain::base::{Message, MessageBuilder, Name, Rtype, Ttl};
use domain::rdata::{A, Cname};
use netfilterqueue_netns::Namespace;

use crate::kernel::{lacks, takes_bytes};
use crate::program::{Program, SOON};
use crate::support::{Peers, QUIET, SERVER_V4, SERVER_V6, V4, V6, wait_until};
use crate::{Test, tests};

const PROGRAM: &str = env!("CARGO_BIN_EXE_dns_filter");

pub const TESTS: [Test; 6] = tests![
    a_blocked_name_does_not_exist,
    a_router_blocks_aliases_from_a_file_and_tcp,
    blocked_answers_can_be_dropped,
    hostile_bytes_are_dropped_and_counted,
    no_answer_is_lost_at_the_end,
    invalid_arguments_are_told,
];

fn name(text: &str) -> Name<Vec<u8>> {
    text.parse().expect("a name")
}

fn query(id: u16, asked: &str) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(id);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((name(asked), Rtype::A)).expect("room");
    builder.finish()
}

/// One address for every name; names that begin with `alias.` lead to `cdn.tracker.test`.
fn answer(query: &[u8]) -> Vec<u8> {
    let query = Message::from_slice(query).expect("a query");
    let asked = query.sole_question().expect("a question").into_qname();
    let builder = MessageBuilder::new_vec();
    let mut builder = builder.start_answer(query, Rcode::NOERROR).expect("room");
    let ttl = Ttl::from_secs(60);
    let address = A::from_octets(192, 0, 2, 1);
    if asked.to_string().starts_with("alias.") {
        builder.push((asked, ttl, Cname::new(name("cdn.tracker.test")))).expect("room");
        builder.push((name("cdn.tracker.test"), ttl, address)).expect("room");
    } else {
        builder.push((asked, ttl, address)).expect("room");
    }
    builder.finish()
}

/// Answers as long as the namespace of the test lasts, which ends with its process.
fn serve(namespace: &Namespace, address: IpAddr) -> SocketAddr {
    let socket = namespace.run(|| UdpSocket::bind((address, 53)).expect("a socket"));
    let server = socket.local_addr().expect("an address");
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            let _ = socket.send_to(&answer(&query[..length]), client);
        }
    });
    server
}

struct Client {
    socket: UdpSocket,
}

impl Client {
    fn of(namespace: &Namespace, server: SocketAddr) -> Self {
        let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = namespace.run(|| UdpSocket::bind((any, 0)).expect("a socket"));
        socket.connect(server).expect("connected");
        socket.set_read_timeout(Some(SOON)).expect("a timeout");
        Self { socket }
    }

    /// The response code and the number of records that come for a name.
    fn ask(&self, id: u16, asked: &str) -> Option<(Rcode, u16)> {
        self.socket.send(&query(id, asked)).expect("sent");
        let mut buffer = [0; 512];
        let length = self.socket.recv(&mut buffer).ok()?;
        let message = Message::from_slice(&buffer[..length]).expect("a message");
        assert_eq!(message.header().id(), id);
        assert_eq!(message.sole_question().expect("one").into_qname(), name(asked));
        Some((message.header().rcode(), message.header_counts().ancount()))
    }
}

fn a_blocked_name_does_not_exist(host: &Namespace) {
    let program = Program::start(PROGRAM, &["--block", "ads.test", "--allow", "fine.ads.test"]);
    let blocked = expect_nxdomain();
    for address in [V4, V6] {
        let client = Client::of(host, serve(host, address));
        for (id, asked) in [(1, "ads.test"), (2, "WWW.Ads.test")] {
            if blocked.is_some() {
                assert_eq!(client.ask(id, asked), blocked, "{asked}");
            }
        }
        for (id, asked) in [(3, "notads.test"), (4, "a.fine.ads.test")] {
            assert_eq!(client.ask(id, asked), Some((Rcode::NOERROR, 1)), "{asked}");
        }
    }
    let ended = program.interrupt();
    assert!(ended.status.success(), "{ended:?}");
    if blocked.is_some() {
        assert!(ended.stdout.contains("blocked 127.0.0.1 ads.test\n"), "{ended:?}");
        assert!(ended.stdout.contains("blocked ::1 WWW.Ads.test\n"), "{ended:?}");
        assert!(
            ended.stdout.contains("8 answers, 4 blocked; 0 over TCP, 0 unreadable"),
            "{ended:?}"
        );
    }
    // The rule has gone, too.
    let client = Client::of(host, SocketAddr::new(V4, 53));
    assert_eq!(client.ask(5, "ads.test"), Some((Rcode::NOERROR, 1)));
}

/// What a blocked name gets; `None` where the kernel takes no changed packets from here.
fn expect_nxdomain() -> Option<(Rcode, u16)> {
    if !takes_bytes() {
        lacks("changed packets in user namespaces (up to 7.1)", "not tested");
        return None;
    }
    Some((Rcode::NXDOMAIN, 0))
}

fn a_router_blocks_aliases_from_a_file_and_tcp(router: &Namespace) {
    let peers = Peers::of(router);
    let mut list = tempfile::NamedTempFile::new().expect("a file");
    writeln!(list, "# trackers\n0.0.0.0 tracker.test").expect("written");
    let path = list.path().to_str().expect("text");
    let program = Program::start(PROGRAM, &["--hook", "forward", "--block-file", path]);
    drop(list);
    let Some(blocked) = expect_nxdomain() else { return };
    for address in [SERVER_V4, SERVER_V6] {
        let client = Client::of(&peers.client, serve(&peers.server, address));
        assert_eq!(client.ask(1, "alias.site.test"), Some(blocked));
        assert_eq!(client.ask(2, "site.test"), Some((Rcode::NOERROR, 1)));
        let listener = peers.server.run(|| TcpListener::bind((address, 53)).expect("a listener"));
        let server = listener.local_addr().expect("an address");
        let result = peers.client.run(|| TcpStream::connect_timeout(&server, QUIET));
        assert!(result.is_err(), "DNS over TCP is a way around: {result:?}");
    }
    let ended = program.interrupt();
    assert!(ended.status.success(), "{ended:?}");
    let line = "alias.site.test, alias of cdn.tracker.test\n";
    assert!(ended.stdout.contains(line), "{ended:?}");
    assert!(ended.stdout.contains("4 answers, 2 blocked; "), "{ended:?}");
}

fn blocked_answers_can_be_dropped(host: &Namespace) {
    let arguments = ["--block", "ads.test", "--answer", "drop", "--tcp", "accept"];
    let program = Program::start(PROGRAM, &arguments);
    let client = Client::of(host, serve(host, V4));
    client.socket.set_read_timeout(Some(QUIET)).expect("a timeout");
    assert_eq!(client.ask(1, "ads.test"), None);
    client.socket.set_read_timeout(Some(SOON)).expect("a timeout");
    assert_eq!(client.ask(2, "site.test"), Some((Rcode::NOERROR, 1)));
    let listener = TcpListener::bind((V4, 53)).expect("a listener");
    let server = listener.local_addr().expect("an address");
    let mut stream = TcpStream::connect_timeout(&server, SOON).expect("connected");
    let (mut other, _) = listener.accept().expect("a connection");
    other.write_all(b"answer").expect("sent");
    let mut received = [0; 6];
    stream.read_exact(&mut received).expect("received");
    let ended = program.interrupt();
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stdout.contains("2 answers, 1 blocked; "), "{ended:?}");
}

fn hostile_bytes_are_dropped_and_counted(host: &Namespace) {
    let mut program = Program::start(PROGRAM, &["--block", "ads.test", "--answer", "drop"]);
    let server = UdpSocket::bind((V4, 53)).expect("a socket");
    let client = Client::of(host, server.local_addr().expect("an address"));
    let to = client.socket.local_addr().expect("an address");
    let good = answer(&query(7, "site.test"));
    let mut circle = good.clone();
    circle[12..14].copy_from_slice(&[0xc0, 12]);
    let hostile: [&[u8]; 5] = [b"", b"x", &good[..11], &good[..20], &circle];
    for bytes in hostile {
        server.send_to(bytes, to).expect("sent");
    }
    // More records than there are: nothing that hides the question.
    let mut boastful = good.clone();
    boastful[6..12].fill(0xff);
    server.send_to(&boastful, to).expect("sent");
    let mut buffer = [0; 512];
    let length = client.socket.recv(&mut buffer).expect("it passes");
    assert_eq!(buffer[..length], boastful);
    let ended = {
        program.wait_for("domains blocked: ");
        program.interrupt()
    };
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stdout.contains("1 answers, 0 blocked; 0 over TCP, 5 unreadable"), "{ended:?}");
}

fn no_answer_is_lost_at_the_end(host: &Namespace) {
    let program = Program::start(PROGRAM, &["--block", "ads.test"]);
    let server = serve(host, V4);
    let (answers, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let client = Client::of(host, server);
                // They end, too, where what is below fails.
                for id in (0..=u16::MAX).cycle().take(1_000_000) {
                    if is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    let answer = client.ask(id, "site.test");
                    assert_eq!(answer, Some((Rcode::NOERROR, 1)), "answer {id}");
                    answers.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        wait_until("the clients are at work", || answers.load(Ordering::SeqCst) > 100);
        let ended = program.interrupt().well();
        let by_then = answers.load(Ordering::SeqCst);
        wait_until("they go on", || answers.load(Ordering::SeqCst) > by_then + 20);
        is_over.store(true, Ordering::SeqCst);
        assert!(ended.count("answers") > 100, "{ended:?}");
        assert!(ended.stdout.trim_end().ends_with(" 0 lost"), "{ended:?}");
    });
}

fn invalid_arguments_are_told(_: &Namespace) {
    for (arguments, text) in [
        (&["--block", "two words"][..], "is no domain name"),
        (&["--block", "a.test", "--answer", "maybe"], "nxdomain"),
        (&["--block", "a.test", "--queue", "65536"], "65536"),
    ] {
        let ended = Program::spawn(PROGRAM, arguments).ended();
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains(text), "{ended:?}");
    }
    for (arguments, text) in
        [(&[][..], "nothing is blocked"), (&["--block-file", "/nowhere"], "cannot read /nowhere")]
    {
        let ended = Program::spawn(PROGRAM, arguments).ended();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(
            ended.stderr.starts_with("dns_filter: ") && ended.stderr.contains(text),
            "{ended:?}"
        );
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
}
