//! Shows the packets of a container, or of any other network namespace, from outside.
//!
//! The queue is bound and the rules are installed inside the namespace; by default they queue what
//! comes in and what goes out, at the input and output hooks. Every packet passes. The program
//! disturbs nothing if it can help it: packets that are more than it can show pass unseen (fail
//! open), and so do all if it is killed. Packets take longer, though, and when rules
//! come or go the kernel drops what waits in other queues of that namespace, if there are any.
//!
//! When the process that the namespace was named by ends, so does the program. It needs
//! `CAP_SYS_ADMIN` to enter and `CAP_NET_ADMIN` inside.
//!
//! TCP may come in packets larger than those on the wire (GSO); `--wire` shows them as they are
//! there, which slows TCP down a lot.
//!
//! To try it with a namespace in a namespace:
//!
//! ```text
//! cargo build --release -p netfilterqueue-programs
//! unshare -rn bash
//! unshare -n sh -c 'ip link set lo up; exec python3 -m http.server --bind 127.0.0.1 8080' &
//! container=$!; sleep 1
//! target/release/namespace --pid $container --protocol tcp --dport 8080 &
//! sleep 1
//! nsenter -n -t $container python3 -c 'from urllib.request import *
//! urlopen("http://127.0.0.1:8080").read()'
//! kill $container; wait; exit
//! ```

mod target;

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use netfilterqueue::rules::{Hook, Rules};
use netfilterqueue::{Decided, Packet, Queue, StopHandle};
use netfilterqueue_programs::{Lines, Selection, Session, Work, tell};
use target::{Target, Watched};

/// How often it is seen whether the process still lives.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Shows the packets of a container, or of any other network namespace
///
/// Ports are seen in both directions: --dport 80 shows the answers as well.
#[derive(Debug, Parser)]
#[command(
    version,
    mut_arg("in_interface", |interface| interface.hide(true)),
    mut_arg("out_interface", |interface| interface.hide(true)),
)]
struct Arguments {
    #[command(flatten)]
    target: Target,

    /// What to show of the namespace's packets
    #[arg(long, value_enum, value_delimiter = ',', default_value = "in,out", value_name = "WAYS")]
    show: Vec<Way>,

    /// Only packets that come in or go out by this interface
    #[arg(long, value_name = "INTERFACE", help_heading = "Which packets")]
    interface: Option<String>,

    /// Show packets as they are on the wire
    #[arg(long)]
    wire: bool,

    #[command(flatten)]
    selection: Selection,

    /// Number of the queue
    #[arg(short, long, default_value_t = 1, value_name = "NUMBER", help_heading = "Queue")]
    queue: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// What is for itself
    In,
    /// What it sends
    Out,
    /// What it passes on as a router
    Forward,
}

impl Way {
    const fn hook(self) -> Hook {
        match self {
            Self::In => Hook::INPUT,
            Self::Out => Hook::OUTPUT,
            Self::Forward => Hook::FORWARD,
        }
    }
}

impl Arguments {
    /// The rules that show packets on their way.
    fn rules(&self, way: Way) -> Rules {
        let mut rules = Rules::new(way.hook());
        let there = self.selection.clone();
        let back = Selection { dport: there.sport, sport: there.dport, ..there.clone() };
        let is_one = there.dport == there.sport;
        for selection in [Some(there), (!is_one).then_some(back)].into_iter().flatten() {
            let rule = selection.rule(self.queue).bypass(true);
            let Some(name) = &self.interface else {
                rules = rules.rule(rule);
                continue;
            };
            let (by_input, by_output) = (way != Way::Out, way != Way::In);
            if by_input {
                rules = rules.rule(rule.clone().input_interface(name));
            }
            if by_output {
                rules = rules.rule(rule.output_interface(name));
            }
        }
        rules
    }
}

/// Prints packets, and looks whether there is still somebody to watch.
struct Watch {
    watched: Watched,
    stop: StopHandle,
    lines: Lines,
    began: Instant,
    next_look: Instant,
    seen: [Count; 3],
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    packets: u64,
    bytes: u64,
}

impl Work for Watch {
    fn judge<'p>(&mut self, packet: Packet<'p>) -> Decided<'p> {
        let (way, word) = match packet.hook() {
            Hook::INPUT => (0, "in "),
            Hook::OUTPUT => (1, "out"),
            _ => (2, "fwd"),
        };
        let seconds = self.began.elapsed().as_secs_f64();
        self.lines.print(format_args!("{seconds:9.3} {word} {packet}"));
        let length = packet.original_len().map_or(packet.payload().len() as u64, u64::from);
        self.seen[way].packets += 1;
        self.seen[way].bytes += length;
        packet.accept()
    }

    fn due(&self) -> Option<Instant> {
        self.watched.has_resident().then_some(self.next_look)
    }

    fn act(&mut self, now: Instant) -> Result<(), Box<dyn Error>> {
        self.next_look = now + LOOK_EVERY;
        if self.watched.is_deserted() {
            tell("the process has ended");
            self.stop.stop();
        }
        Ok(())
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let watched = arguments.target.open()?;
    // By way, because who is asked for twice would come up twice.
    let ways = [Way::In, Way::Out, Way::Forward].into_iter().filter(|w| arguments.show.contains(w));
    let rules = ways.map(|way| arguments.rules(way)).collect();
    let queue = Queue::builder(arguments.queue).fail_open(true).gso(!arguments.wire);
    // Errors as text, because they come from another thread.
    let open = || Session::open_at_hooks(arguments.queue, queue, rules).map_err(|e| e.to_string());
    let session = watched.namespace.run(open)??;
    let (stop, began) = (session.queue.stop_handle(), Instant::now());
    let mut watch = Watch {
        watched,
        lines: Lines::new(stop.clone()),
        stop,
        began,
        next_look: began + LOOK_EVERY,
        seen: [Count::default(); 3],
    };
    let stats = session.serve(&mut watch)?;
    let [input, output, forward] = watch.seen;
    let mut text = format!(
        "{} packets in with {} bytes, {} out with {} bytes",
        input.packets, input.bytes, output.packets, output.bytes
    );
    if arguments.show.contains(&Way::Forward) {
        text += &format!(", {} passed on with {} bytes", forward.packets, forward.bytes);
    }
    watch.lines.print(format_args!("{text}; {} unseen", stats.lost));
    Ok(())
}

fn main() -> ExitCode {
    netfilterqueue_programs::main(|arguments| run(&arguments))
}
