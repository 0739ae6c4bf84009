//! `tokio_proxy`: connections wait for their answers, many at a time, and fail as they are told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use netfilterqueue_netns::Namespace;

use crate::program::Program;
use crate::support::{Peers, QUIET, SERVER_V4, SERVER_V6, SOON, V4, V6, wait_until};
use crate::{Test, tests};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tokio_proxy");

pub const TESTS: [Test; 6] = tests![
    the_server_decides_and_the_rest_stays_in_the_kernel,
    many_wait_for_their_answers_at_a_time,
    silence_and_absence_have_a_policy,
    a_router_asks_for_those_behind_it,
    a_server_that_talks_nonsense_is_left,
    invalid_arguments_are_told,
];

/// A policy server that answers with what a function says of a question, all of them from
/// different threads.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answer: fn(&str) -> Option<&'static str>) -> Self {
        let listener = TcpListener::bind((V4, 0)).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let noted = Arc::clone(&noted);
                thread::spawn(move || converse(&stream, answer, &noted));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

fn converse(
    stream: &TcpStream,
    answer: fn(&str) -> Option<&'static str>,
    noted: &Mutex<Vec<String>>,
) {
    let lines = BufReader::new(stream.try_clone().expect("a duplicate")).lines();
    for line in lines.map_while(Result::ok) {
        let (number, question) = line.split_once(' ').expect("a number");
        noted.lock().expect("no panic").push(question.to_owned());
        let (number, question) = (number.to_owned(), question.to_owned());
        let mut stream = stream.try_clone().expect("a duplicate");
        thread::spawn(move || {
            if let Some(answer) = answer(&question) {
                let _ = stream.write_all(format!("{number} {answer}\n").as_bytes());
            }
        });
    }
}

fn start(server: SocketAddr, arguments: &[&str]) -> Program {
    Program::start(PROGRAM, &[&["--server", &server.to_string()][..], arguments].concat())
}

fn connects(to: SocketAddr, patience: Duration) -> bool {
    TcpStream::connect_timeout(&to, patience).is_ok()
}

fn listen(address: IpAddr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((address, 0)).expect("a listener");
    let to = listener.local_addr().expect("an address");
    (listener, to)
}

/// Odd ports are dropped.
fn by_port(question: &str) -> Option<&'static str> {
    let port: u16 = question.rsplit(':').next()?.parse().ok()?;
    Some(if port % 2 == 1 { "drop" } else { "accept" })
}

fn the_server_decides_and_the_rest_stays_in_the_kernel(_: &Namespace) {
    let server = Server::start(by_port);
    let program = start(server.address, &[]);
    for address in [V4, V6] {
        let [good, bad] = [8080, 8081].map(|port| SocketAddr::new(address, port));
        let [accepted, _dropped] = [good, bad].map(|to| TcpListener::bind(to).expect("a listener"));
        assert!(!connects(bad, QUIET * 2), "it is dropped");
        let mut client = TcpStream::connect_timeout(&good, SOON).expect("it is accepted");
        let (mut other, _) = accepted.accept().expect("a connection");
        for _ in 0..50 {
            client.write_all(b"data").expect("sent");
            other.read_exact(&mut [0; 4]).expect("received");
        }
    }
    let asked = server.asked();
    let ended = program.interrupt().well();
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert!(asked[3].starts_with("[::1]:"), "{asked:?}");
    assert_eq!((ended.count("accepted"), ended.count("dropped")), (2, 2), "{ended:?}");
    assert_eq!((ended.count("failed"), ended.count("unreadable"), ended.count("lost")), (0, 0, 0));
    // Answers of the server's own, which are not the program's, and nothing of the decided ones.
    assert!(ended.count("older") < 20, "{ended:?}");
}

fn many_wait_for_their_answers_at_a_time(_: &Namespace) {
    const CONNECTIONS: usize = 60;
    // A server that answers when the test says so.
    static MAY_ANSWER: AtomicBool = AtomicBool::new(false);
    let answer = |_: &str| {
        wait_until("it may answer", || MAY_ANSWER.load(Ordering::SeqCst));
        Some("accept")
    };
    let server = Server::start(answer);
    let (_listener, to) = listen(V4);
    let limited = ["--concurrent", "40", "--timeout", "8s"];
    let program = start(server.address, &limited);
    let connected = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                if connects(to, SOON) {
                    connected.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        wait_until("the limit is reached", || server.asked().len() >= 40);
        // They wait side by side, while the others are put off, and come again.
        thread::sleep(QUIET);
        assert_eq!(server.asked().len(), 40);
        MAY_ANSWER.store(true, Ordering::SeqCst);
    });
    assert_eq!(connected.load(Ordering::SeqCst), CONNECTIONS);
    let ended = program.interrupt().well();
    assert_eq!(ended.count("accepted"), CONNECTIONS as u64);
    assert!(ended.count("put") >= 20, "{ended:?}");
    assert!(ended.stdout.contains("; at most 40 at a time"), "{ended:?}");
}

fn silence_and_absence_have_a_policy(_: &Namespace) {
    let silent = Server::start(|_| None).address;
    let (gone, absent) = listen(V4);
    drop(gone);
    let (_listener, to) = listen(V4);
    for server in [silent, absent] {
        for (fate, connected) in [("accept", true), ("drop", false)] {
            let program = start(server, &["--timeout", "1s", "--on-failure", fate]);
            let patience = if connected { SOON } else { QUIET * 3 };
            assert_eq!(connects(to, patience), connected, "{server} {fate}");
            let ended = program.interrupt().well();
            assert!(ended.count("failed") >= 1, "{ended:?}");
            assert_eq!(ended.stderr.contains("policy server"), server == absent, "{ended:?}");
        }
    }
}

fn a_router_asks_for_those_behind_it(router: &Namespace) {
    let peers = Peers::of(router);
    let server =
        Server::start(|question| Some(if question.contains(":8080") { "accept" } else { "drop" }));
    let ports = ["--dport", "8080", "--dport", "8081"];
    let program = start(server.address, &[&["--hook", "forward"][..], &ports].concat());
    for address in [SERVER_V4, SERVER_V6] {
        for (port, connected) in [(8080, true), (8081, false)] {
            let to = SocketAddr::new(address, port);
            let _listener = peers.server.run(|| TcpListener::bind(to).expect("a listener"));
            let patience = if connected { SOON } else { QUIET * 2 };
            assert_eq!(peers.client.run(|| connects(to, patience)), connected, "{to}");
        }
        let other = SocketAddr::new(address, 9090);
        let _listener = peers.server.run(|| TcpListener::bind(other).expect("a listener"));
        assert!(peers.client.run(|| connects(other, SOON)), "of this one nobody asks");
    }
    let ended = program.interrupt().well();
    assert_eq!((ended.count("accepted"), ended.count("dropped")), (2, 2), "{ended:?}");
}

fn a_server_that_talks_nonsense_is_left(_: &Namespace) {
    let server = Server::start(|_| Some("perhaps"));
    let (_listener, to) = listen(V4);
    let mut program = start(server.address, &["--on-failure", "accept"]);
    assert!(connects(to, SOON));
    program.wait_for("it answers what was not asked");
    let ended = program.interrupt().well();
    assert_eq!(ended.count("failed"), 1, "{ended:?}");
}

fn invalid_arguments_are_told(_: &Namespace) {
    for (arguments, text) in [
        (&[][..], "--server"),
        (&["--server", "localhost"], "--server"),
        (&["--server", "127.0.0.1:1", "--concurrent", "0"], "--concurrent"),
        (&["--server", "127.0.0.1:1", "--timeout", "1"], "--timeout"),
    ] {
        let ended = Program::spawn(PROGRAM, arguments).ended();
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains(text), "{ended:?}");
    }
}
