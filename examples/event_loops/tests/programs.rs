//! The programs of this package, each run on real packets until it is told to end.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "../../../tests/live/harness.rs"]
mod harness;
#[path = "../../../tests/live/kernel.rs"]
mod kernel;
#[path = "../../../tests/live/support.rs"]
mod support;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use harness::{Test, tests};
use netfilterqueue::Queue;
use netfilterqueue_netns::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{QUIET, UdpPair, V4, wait_until};

const TESTS: [Test; 6] = tests![tokio, async_fd, async_io, mio, epoll, poll];

fn main() -> ExitCode {
    harness::main(&TESTS)
}

fn tokio(_: &Namespace) {
    filters_and_ends_without_loss(env!("CARGO_BIN_EXE_tokio"));
}

fn async_fd(_: &Namespace) {
    filters_and_ends_without_loss(env!("CARGO_BIN_EXE_async_fd"));
}

fn async_io(_: &Namespace) {
    filters_and_ends_without_loss(env!("CARGO_BIN_EXE_async_io"));
}

fn mio(_: &Namespace) {
    filters_and_ends_without_loss(env!("CARGO_BIN_EXE_mio"));
}

fn epoll(_: &Namespace) {
    filters_and_ends_without_loss(env!("CARGO_BIN_EXE_epoll"));
}

fn poll(_: &Namespace) {
    filters_and_ends_without_loss(env!("CARGO_BIN_EXE_poll"));
}

/// A program in this thread's namespace, which ends with the test.
struct Program {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Program {
    /// Starts it, and waits until its rules are in place.
    fn start(path: &str, ports: [u16; 2]) -> Self {
        let mut command = Command::new(path);
        command.args(ports.map(|port| port.to_string())).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it can be run");
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(line.contains("are looked at"), "{line:?}");
        Self { child, output }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end, and returns what it has said.
    fn end(&mut self) -> String {
        wait_until("the program's end", || self.child.try_wait().unwrap().is_some());
        assert!(self.child.try_wait().unwrap().unwrap().success());
        let mut said = String::new();
        self.output.read_to_string(&mut said).unwrap();
        said
    }

    /// The processor time that it has used, in ticks of the kernel.
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, columns) = stat.rsplit_once(')').unwrap();
        let of = |column| columns.split_ascii_whitespace().nth(column).unwrap().parse::<u64>();
        of(11).unwrap() + of(12).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every third one is not to pass.
fn is_forbidden(number: u8) -> bool {
    number.is_multiple_of(3)
}

/// Sends a datagram with a number to each port.
fn send(udp: &[UdpPair; 2], number: u8) {
    let text: &[u8] = if is_forbidden(number) { b"is forbidden" } else { b"passes" };
    udp.iter().for_each(|udp| udp.send(&[&[number], text].concat()));
}

/// Asserts that those of the numbers arrive that are to pass, in their order, and no other.
#[track_caller]
fn expect(udp: &UdpPair, numbers: impl Iterator<Item = u8>) {
    let expected: Vec<u8> = numbers.filter(|number| !is_forbidden(*number)).collect();
    let arrived: Vec<u8> =
        udp.receive_all(expected.len()).iter().map(|datagram| datagram[0]).collect();
    assert_eq!(arrived, expected);
}

fn filters_and_ends_without_loss(path: &str) {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let udp = [UdpPair::new(V4), UdpPair::new(V4)];
        let ports = udp.each_ref().map(|udp| udp.receiver_address().port());
        let mut program = Program::start(path, ports);

        // One at a time, each after a wait; and many at a time, more than a batch holds.
        for number in 0..10 {
            send(&udp, number);
            std::thread::sleep(Duration::from_millis(3));
        }
        (10..110).for_each(|number| send(&udp, number));
        udp.iter().for_each(|udp| expect(udp, 0..110));

        // Only one queue has something, and then only the other.
        for (udp, other) in [(&udp[0], &udp[1]), (&udp[1], &udp[0])] {
            udp.send(&[1]);
            assert_eq!(udp.receive_all(1), [[1]]);
            other.expect_nothing();
        }

        // It sleeps when nothing comes.
        let before = program.ticks();
        std::thread::sleep(3 * QUIET);
        let used = program.ticks() - before;
        assert!(used <= 5, "{used} ticks in {:?}, with nothing to do", 3 * QUIET);

        // What is sent before the signal is judged, by the loop or by the end.
        (110..250).for_each(|number| send(&udp, number));
        program.signal(signal);
        let said = program.end();
        udp.iter().for_each(|udp| expect(udp, 110..250));
        assert!(said.contains("queue 1: 251 packets"), "{said:?}");
        assert!(said.contains("queue 2: 251 packets"), "{said:?}");
        for number in [1, 2] {
            Queue::builder(number).bind().expect("the number is free");
        }
        // Neither rules nor queues are left: what is forbidden passes, and so does the rest.
        udp[0].send(b"forbidden");
        assert_eq!(udp[0].receive_all(1), [b"forbidden"]);
    }
}
