//! `portknock`: what is hidden, from whom, and for how long.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use netfilterqueue_netns::Namespace;
use socket2::{Domain, Socket, Type};

use crate::program::Program;
use crate::support::{QUIET, SOON, V4, V6, wait_until};
use crate::{Test, tests};

const PROGRAM: &str = env!("CARGO_BIN_EXE_portknock");
const HIDDEN: u16 = 2222;

pub const TESTS: [Test; 5] = tests![
    the_sequence_opens_to_its_sender_for_a_time,
    udp_is_hidden_too,
    older_connections_stay,
    crowds_and_hostile_packets_open_nothing,
    invalid_arguments_are_told,
];

/// Another address of the loopback interface.
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

fn connect(from: IpAddr, to: SocketAddr, patience: Duration) -> Option<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::new(from, 0).into()).expect("an address");
    socket.connect_timeout(&to.into(), patience).ok()?;
    Some(socket.into())
}

fn knock(from: IpAddr, at: IpAddr, ports: &[&str]) {
    for port in ports {
        match port.strip_suffix("/udp") {
            Some(port) => {
                let socket = UdpSocket::bind((from, 0)).expect("a socket");
                socket.send_to(b"", (at, port.parse().unwrap())).expect("sent");
            }
            None => {
                let to = SocketAddr::new(at, port.parse().unwrap());
                assert!(connect(from, to, QUIET / 5).is_none(), "nobody is there");
            }
        }
    }
}

fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"question").expect("sent");
    server.set_read_timeout(Some(SOON)).expect("a timeout");
    server.read_exact(&mut [0; 8]).expect("received");
}

fn the_sequence_opens_to_its_sender_for_a_time(_: &Namespace) {
    let mut program = Program::start(
        PROGRAM,
        &["--port", "2222", "--sequence", "7000,9000/udp,7000", "--open-for", "3s", "--verbose"],
    );
    for address in [V4, V6] {
        let listener = TcpListener::bind((address, HIDDEN)).expect("a listener");
        let hidden = listener.local_addr().expect("an address");
        assert!(connect(address, hidden, QUIET).is_none(), "it is hidden");
        knock(address, address, &["7000", "7000", "9000/udp"]);
        assert!(connect(address, hidden, QUIET).is_none(), "not yet");
        knock(address, address, &["7000"]);
        let mut client = connect(address, hidden, SOON).expect("it is open");
        let (mut server, _) = listener.accept().expect("a connection");
        if address == V4 {
            assert!(connect(OTHER, hidden, QUIET).is_none(), "to nobody else");
        }
        exchange(&mut client, &mut server);
        // What has come in stays in after the time.
        wait_until("it closes", || connect(address, hidden, QUIET).is_none());
        for _ in 0..20 {
            exchange(&mut client, &mut server);
        }
        program.wait_for_output(&format!("open    {address} for 3s"));
    }
    let ended = program.interrupt().well();
    assert!(ended.stdout.contains("knock   ::1 2 of 3\n"), "{ended:?}");
    assert!(ended.stdout.contains("refused 127.0.0.2 to 2222/tcp\n"), "{ended:?}");
    assert_eq!(ended.count("opened"), 2);
    // More if the machine was so slow that systems have sent some again.
    assert!(ended.count("knocks") >= 8, "{ended:?}");
    assert!(ended.count("in") >= 2, "{ended:?}");
    assert_eq!(ended.count("unreadable"), 0);
}

fn udp_is_hidden_too(_: &Namespace) {
    let arguments = ["--port", "5555/udp", "--sequence", "7000/udp,9000/udp,8000/udp"];
    let program = Program::start(PROGRAM, &arguments);
    let server = UdpSocket::bind((V4, 5555)).expect("a socket");
    let client = UdpSocket::bind((V4, 0)).expect("a socket");
    client.connect(server.local_addr().unwrap()).expect("connected");
    server.set_read_timeout(Some(QUIET)).expect("a timeout");
    client.send(b"?").expect("sent");
    assert!(server.recv(&mut [0; 9]).is_err(), "it is hidden");
    // The wrong order, then the right one.
    knock(V4, V4, &["9000/udp", "7000/udp", "8000/udp"]);
    client.send(b"?").expect("sent");
    assert!(server.recv(&mut [0; 9]).is_err(), "it is hidden");
    knock(V4, V4, &["7000/udp", "9000/udp", "8000/udp"]);
    server.set_read_timeout(Some(SOON)).expect("a timeout");
    for _ in 0..20 {
        client.send(b"?").expect("sent");
        server.recv(&mut [0; 9]).expect("it is open");
    }
    let ended = program.interrupt().well();
    let closing = "6 knocks, 1 opened, 1 in, 2 refused, 0 unreadable, 0 lost";
    assert!(ended.stdout.contains(closing), "the flow came up once: {ended:?}");
}

fn older_connections_stay(_: &Namespace) {
    let listener = TcpListener::bind((V4, HIDDEN)).expect("a listener");
    let mut client = connect(V4, listener.local_addr().unwrap(), SOON).expect("not hidden yet");
    let (mut server, _) = listener.accept().expect("a connection");
    let program = Program::start(PROGRAM, &["-p", "2222", "-s", "7000,9000,8000"]);
    for _ in 0..20 {
        exchange(&mut client, &mut server);
    }
    let ended = program.interrupt().well();
    assert!(ended.stdout.contains("0 knocks, 0 opened, 0 in, 0 refused"), "{ended:?}");
}

fn crowds_and_hostile_packets_open_nothing(_: &Namespace) {
    let sequence = ["-p", "2222", "-s", "7000/udp,9000/udp,7000/udp"];
    let program = Program::start(PROGRAM, &[&sequence[..], &["--senders", "10"]].concat());
    let listener = TcpListener::bind((V4, HIDDEN)).expect("a listener");
    knock(OTHER, V4, &["7000/udp", "9000/udp", "7000/udp"]);
    // A raw socket sends UDP without a header of its own: too short, and lengths that lie.
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(17.into())).expect("a socket");
    for length in [0_u16, 7, 8, 9, 0xffff] {
        let header = [9, 9, 0x1b, 0x58, (length >> 8) as u8, length as u8, 0, 0, 1];
        let to = SocketAddr::new(V4, 0).into();
        raw.send_to(&header, &to).expect("sent");
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            for last in 3..250 {
                knock([127, 0, 0, last].into(), V4, &["7000/udp"]);
            }
        });
    });
    assert!(connect(V4, listener.local_addr().unwrap(), QUIET).is_none(), "it is hidden");
    assert!(connect(OTHER, listener.local_addr().unwrap(), SOON).is_some(), "not from this one");
    let ended = program.interrupt().well();
    assert_eq!(ended.count("opened"), 1);
    // The kernel takes none of the malformed ones for a packet to a port, or they are knocks.
    assert!((250..=255).contains(&ended.count("knocks")), "{ended:?}");
}

fn invalid_arguments_are_told(_: &Namespace) {
    for (arguments, code, text) in [
        (&["--port", "22"][..], 2, "--sequence"),
        (&["--sequence", "7,9,8"], 2, "--port"),
        (&["--port", "22", "--sequence", "7,8,9"], 2, "a scan would open this"),
        (&["--port", "0", "--sequence", "7,9,8"], 2, "is no port"),
        (&["--port", "22", "--sequence", "7,9,8", "--open-for", "soon"], 2, "--open-for"),
        (&["--port", "9", "--sequence", "7,9,8"], 1, "9/tcp cannot be hidden and knocked at"),
    ] {
        let ended = Program::spawn(PROGRAM, arguments).ended();
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        assert!(ended.stderr.contains(text), "{ended:?}");
    }
}
