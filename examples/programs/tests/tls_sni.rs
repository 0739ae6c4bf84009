//! `tls_sni`: which connections pass, and that decided ones do not come up any more.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use netfilterqueue_netns::Namespace;

use crate::program::{Ended, Program};
use crate::support::{Peers, QUIET, SERVER_V4, SERVER_V6, SOON, V4, V6, connect, wait_until};
use crate::{Test, tests};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tls_sni");

pub const TESTS: [Test; 6] = tests![
    names_decide_and_the_rest_stays_in_the_kernel,
    a_hello_in_pieces_is_put_together_on_a_router,
    what_has_no_name_has_a_policy_of_its_own,
    quic_is_dropped,
    connections_survive_the_end_under_load,
    invalid_arguments_are_told,
];

/// A client hello for a name, with `filler` bytes of another extension before it.
fn hello(name: Option<&str>, filler: usize) -> Vec<u8> {
    let len = |value: usize| u16::try_from(value).expect("short").to_be_bytes();
    let mut extensions = [&[0xff, 0x77][..], &len(filler), &vec![0x55; filler]].concat();
    if let Some(name) = name {
        let n = name.len();
        extensions.extend([&[0, 0][..], &len(n + 5), &len(n + 3), &[0], &len(n)].concat());
        extensions.extend(name.as_bytes());
    }
    let start = [&[3, 3][..], &[9; 32], &[0, 0, 2, 0x13, 1, 1, 0]].concat();
    let body = [&start[..], &len(extensions.len()), &extensions].concat();
    let message = [&[1, 0][..], &len(body.len()), &body].concat();
    [&[22, 3, 1][..], &len(message.len()), &message].concat()
}

/// Sends to the server and back, which arrives, or does not get through to the server.
#[track_caller]
fn exchange(client: &mut TcpStream, server: &mut TcpStream, data: &[u8], passes: bool) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(if passes { SOON } else { QUIET * 3 })).expect("a timeout");
    }
    client.write_all(data).expect("sent");
    let mut received = vec![0; data.len()];
    let result = server.read_exact(&mut received);
    assert_eq!(result.is_ok(), passes, "{result:?}");
    if passes {
        assert!(received == data, "the data was changed");
        server.write_all(b"hello").expect("sent");
        client.read_exact(&mut [0; 5]).expect("answered");
    }
}

fn listen(namespace: &Namespace, address: IpAddr) -> TcpListener {
    namespace.run(|| TcpListener::bind((address, 443)).expect("a listener"))
}

fn expect_end(program: Program) -> Ended {
    let ended = program.interrupt();
    assert!(ended.status.success(), "{ended:?}");
    ended
}

fn packets(ended: &Ended) -> usize {
    let before = ended.stdout.split(" packets: ").next().expect("a line");
    before.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

fn names_decide_and_the_rest_stays_in_the_kernel(host: &Namespace) {
    let program = Program::start(PROGRAM, &["--block", "ads.test", "--allow", "fine.ads.test"]);
    let mut expected = Vec::new();
    for address in [V4, V6] {
        let listener = listen(host, address);
        for (name, passes) in [
            ("site.test", true),
            ("ads.test", false),
            ("x.ADS.test", false),
            ("fine.ads.test", true),
        ] {
            let (mut client, mut server) = connect(host, &listener);
            let from = client.local_addr().expect("an address");
            let fate = if passes { "accept" } else { "drop  " };
            expected.push(format!("{fate} {name}, {from} → {}", listener.local_addr().unwrap()));
            exchange(&mut client, &mut server, &hello(Some(name), 0), passes);
            if passes {
                // None of these comes up.
                for _ in 0..50 {
                    exchange(&mut client, &mut server, b"data", true);
                }
            }
        }
    }
    let ended = expect_end(program);
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(lines[..8], expected);
    assert!(lines[8].starts_with("4 accepted, 4 dropped; "), "{ended:?}");
    // A SYN, an ACK and the data of each, with some retransmissions of what was dropped before the
    // decision was in the kernel.
    assert!((24..40).contains(&packets(&ended)), "{ended:?}");
}

fn a_hello_in_pieces_is_put_together_on_a_router(router: &Namespace) {
    let peers = Peers::of(router);
    let arguments = ["--hook", "forward", "--allow", "good.test", "--others", "drop"];
    let program = Program::start(PROGRAM, &arguments);
    for address in [SERVER_V4, SERVER_V6] {
        let listener = listen(&peers.server, address);
        for (name, passes) in [("good.test", true), ("bad.test", false)] {
            let hello = hello(Some(name), 3000);
            let (mut client, mut server) = connect(&peers.client, &listener);
            client.set_nodelay(true).expect("an option");
            // A segment each, the last of which has the end of the name.
            let (last, before) = hello.split_last().expect("bytes");
            for piece in before.chunks(1500) {
                client.write_all(piece).expect("sent");
                let mut received = vec![0; piece.len()];
                server.set_read_timeout(Some(SOON)).expect("a timeout");
                server.read_exact(&mut received).expect("the start may pass");
            }
            exchange(&mut client, &mut server, &[*last], passes);
        }
    }
    let ended = expect_end(program);
    assert!(ended.stdout.contains("\n2 accepted, 2 dropped; "), "{ended:?}");
}

fn what_has_no_name_has_a_policy_of_its_own(host: &Namespace) {
    let listener = listen(host, V4);
    let broken = [&[22, 3, 1, 0, 5, 1, 0, 0, 1, 0][..], b"x"].concat();
    let cases = [
        (hello(None, 5), "(no name)"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "(no TLS)"),
        (broken, "(unreadable)"),
        (vec![22, 3, 1, 0, 4, 1, 0xff, 0, 0], "(unreadable)"),
    ];
    for (policy, passes) in [("drop", false), ("accept", true)] {
        let program = Program::start(PROGRAM, &["--block", "ads.test", "--nameless", policy]);
        for (start, _) in &cases {
            let (mut client, mut server) = connect(host, &listener);
            exchange(&mut client, &mut server, start, passes);
        }
        let ended = expect_end(program);
        for (line, (_, why)) in ended.stdout.lines().zip(&cases) {
            assert!(line.contains(why), "{line} {why}");
        }
    }
}

fn quic_is_dropped(_: &Namespace) {
    let receiver = UdpSocket::bind((V4, 443)).expect("a socket");
    receiver.set_read_timeout(Some(QUIET)).expect("a timeout");
    let program = Program::start(PROGRAM, &["--block", "ads.test"]);
    let sender = UdpSocket::bind((V4, 0)).expect("a socket");
    let send = || sender.send_to(b"quic", SocketAddr::new(V4, 443)).expect("sent");
    send();
    assert!(receiver.recv(&mut [0; 9]).is_err());
    let ended = expect_end(program);
    assert!(ended.stdout.contains(" 1 QUIC, "), "{ended:?}");
    let program = Program::start(PROGRAM, &["--block", "ads.test", "--quic", "accept"]);
    send();
    assert!(receiver.recv(&mut [0; 9]).is_ok());
    expect_end(program);
}

fn connections_survive_the_end_under_load(host: &Namespace) {
    let listener = listen(host, V4);
    let program = Program::start(PROGRAM, &["--block", "ads.test"]);
    let (made, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            // It ends, too, where what is below fails.
            while !is_over.load(Ordering::SeqCst) && made.load(Ordering::SeqCst) < 200_000 {
                let (mut client, mut server) = connect(host, &listener);
                exchange(&mut client, &mut server, &hello(Some("site.test"), 100), true);
                client.shutdown(Shutdown::Both).expect("shut down");
                made.fetch_add(1, Ordering::SeqCst);
            }
        });
        wait_until("connections are made", || made.load(Ordering::SeqCst) > 10);
        let ended = expect_end(program);
        let by_then = made.load(Ordering::SeqCst);
        wait_until("others are made", || made.load(Ordering::SeqCst) > by_then + 2);
        is_over.store(true, Ordering::SeqCst);
        let accepted =
            ended.stdout.lines().filter(|line| line.starts_with("accept site.test")).count();
        assert!(accepted > 10, "{accepted}");
        assert!(ended.stdout.trim_end().ends_with(" 0 lost"), "{ended:?}");
    });
}

fn invalid_arguments_are_told(_: &Namespace) {
    for (arguments, code, text) in [
        (&["--block", "a..b"][..], 2, "is no domain name"),
        (&["--block", "a.test", "--flows", "0"], 2, "--flows"),
        (&["--block", "a.test", "--quic", "maybe"], 2, "accept"),
        (&[], 1, "nothing is blocked"),
        (&["--block", "a.test", "--no-rule"], 1, "--no-rule"),
    ] {
        let ended = Program::spawn(PROGRAM, arguments).ended();
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        assert!(ended.stderr.contains(text), "{ended:?}");
    }
}
