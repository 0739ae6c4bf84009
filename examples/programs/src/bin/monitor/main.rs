//! Shows which flows pass and how the queue is: live in the terminal, or as lines. All packets
//! pass.
//!
//! Its rule queues everything at a hook, or what `--protocol`, `--dport`, `--in` and their like
//! choose; it goes away with the program.
//!
//! To try it on one machine, in a network of its own (`q` ends it):
//!
//! ```text
//! cargo build --release -p netfilterqueue-programs
//! unshare -rn bash -c '
//!     ip link set lo up
//!     exec 3> /dev/udp/127.0.0.1/9 4> /dev/udp/::1/53
//!     while sleep 0.1; do echo hello >&3; echo "hello, too" >&4; done 2> /dev/null &
//!     target/release/monitor; kill $!'
//! ```
//!
//! Packets are judged by one thread and shown by another: a terminal that is slow or stopped does
//! not hold up the network. Only headers are copied. Super-packets come whole and count as one
//! packet with all its bytes.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::cast_precision_loss, clippy::cast_possible_truncation)
)]

mod arguments;
mod flows;
mod health;
mod screen;
mod view;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use netfilterqueue::{CopyMode, Decided, Packet, Queue, StopHandle, Verdict};
use netfilterqueue_programs::{HEADERS, Session, tell};

use crate::arguments::Arguments;
use crate::flows::{Flows, Order};
use crate::health::Watch;
use crate::screen::Screen;
use crate::view::Picture;

/// How many packets the kernel holds while the program does not come to them.
const MAX_LEN: u32 = 8192;

/// Of the table as lines, in characters: enough for the longest addresses.
const WIDTH: u16 = 156;

/// How soon the end of the queue is seen while nobody presses a key.
const LOOK: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    netfilterqueue_programs::main(|arguments: Arguments| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let queue = Queue::builder(arguments.options.queue)
        .copy_mode(CopyMode::Packet { range: HEADERS })
        .max_len(MAX_LEN)
        .on_undecided(Verdict::Accept);
    let rule = arguments.selection.rule(arguments.options.queue);
    let session = Session::open(&arguments.options, queue, |rules| rules.rule(rule))?;
    let now = Instant::now();
    let flows = Arc::new(Mutex::new(Flows::new(arguments.flows, arguments.idle, now)));
    let is_over = AtomicBool::new(false);
    let mut display = Display {
        flows: Arc::clone(&flows),
        watch: Watch::new(session.queue.stats_handle(), now),
        stop: session.queue.stop_handle(),
        is_over: &is_over,
        order: arguments.sort,
        is_still: false,
        arguments,
    };
    let screen = match arguments.plain || arguments.once {
        true => None,
        false => {
            session.before_sudden_end(screen::give_back);
            Some(Screen::open()?)
        }
    };
    let (judged, shown) = thread::scope(|scope| {
        let display = scope.spawn(move || {
            let _stopping = StopAtEnd(display.stop.clone());
            match screen {
                Some(screen) => display.fill(screen),
                None => display.print(),
            }
        });
        let judged = {
            let _over = OverAtEnd(&is_over);
            session.run(|packet| judge(packet, &flows))
        };
        (judged, display.join())
    });
    // What went wrong with the queue is more important than what did with the terminal.
    let stats = judged?;
    match shown {
        Ok(shown) => shown?,
        Err(panic) => std::panic::resume_unwind(panic),
    }
    tell(format_args!("{} packets passed, {} lost", stats.received, stats.lost));
    Ok(())
}

fn judge<'p>(packet: Packet<'p>, flows: &Mutex<Flows>) -> Decided<'p> {
    let bytes = packet.original_len().map_or(packet.payload().len() as u64, u64::from);
    let mut flows = flows.lock().unwrap_or_else(PoisonError::into_inner);
    flows.count(packet.payload(), bytes, Instant::now());
    packet.accept()
}

/// Stops the queue when the display ends, however it does.
struct StopAtEnd(StopHandle);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Ends the display when the judging ends, also by a panic: the program would wait for a key.
struct OverAtEnd<'a>(&'a AtomicBool);

impl Drop for OverAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Shows what there is to see, until it is told to end or the queue has ended.
struct Display<'a> {
    flows: Arc<Mutex<Flows>>,
    watch: Watch,
    stop: StopHandle,
    is_over: &'a AtomicBool,
    order: Order,
    is_still: bool,
    arguments: &'a Arguments,
}

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    End,
    Sort,
    Still,
}

impl Display<'_> {
    /// Prints lines from time to time.
    fn print(&mut self) -> io::Result<()> {
        let mut next = Instant::now() + self.arguments.interval;
        let mut stdout = io::stdout();
        while !self.is_over.load(Ordering::Acquire) {
            let now = Instant::now();
            if now < next {
                thread::sleep(LOOK.min(next - now));
                continue;
            }
            next = now + self.arguments.interval;
            for line in self.picture(now).lines(WIDTH, self.arguments.rows) {
                writeln!(stdout, "{line}")?;
            }
            writeln!(stdout)?;
            if self.arguments.once {
                break;
            }
        }
        Ok(())
    }

    /// Fills the terminal.
    fn fill(&mut self, mut screen: Screen) -> io::Result<()> {
        let mut picture = self.picture(Instant::now());
        let mut next = Instant::now() + self.arguments.interval;
        let mut is_ending = false;
        screen.show(&picture)?;
        while !self.is_over.load(Ordering::Acquire) {
            let now = Instant::now();
            if now >= next {
                next = now + self.arguments.interval;
                if !self.is_still {
                    picture = self.picture(now);
                }
                screen.show(&picture)?;
            }
            let wait = LOOK.min(next.saturating_duration_since(now));
            let keys = screen.keys(wait)?;
            for key in meanings(&keys) {
                match key {
                    Key::End if is_ending => {
                        // It was told to end, and still has packets to judge.
                        drop(screen);
                        std::process::exit(1);
                    }
                    Key::End => {
                        is_ending = true;
                        self.stop.stop();
                    }
                    Key::Sort => {
                        self.order = self.order.next();
                        picture.order = self.order;
                        self.order.sort(&mut picture.rows);
                    }
                    Key::Still => {
                        self.is_still = !self.is_still;
                        picture.is_still = self.is_still;
                    }
                }
            }
            if !keys.is_empty() || screen.is_resized() {
                screen.show(&picture)?;
            }
        }
        Ok(())
    }

    fn picture(&mut self, now: Instant) -> Picture {
        let (mut rows, unreadable, forgotten) = {
            let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
            (flows.read(now), flows.unreadable, flows.forgotten)
        };
        self.order.sort(&mut rows);
        let options = &self.arguments.options;
        Picture {
            title: format!("queue {} at {}", options.queue, options.hook),
            max_len: MAX_LEN,
            health: self.watch.read(now),
            rows,
            order: self.order,
            unreadable,
            forgotten,
            is_still: self.is_still,
        }
    }
}

/// What keys mean. Ctrl-C is one, because the terminal is told to leave that to the program.
fn meanings(keys: &[u8]) -> Vec<Key> {
    const CTRL_C: u8 = 3;
    const ESC: u8 = 27;
    let (pressed, is_alone) = match keys.iter().position(|&key| key == ESC) {
        // Keys such as arrows send it with more behind it.
        Some(at) => (&keys[..at], at + 1 == keys.len()),
        None => (keys, false),
    };
    let meaning = |&key: &u8| match key {
        b'q' | CTRL_C => Some(Key::End),
        b's' => Some(Key::Sort),
        b' ' => Some(Key::Still),
        _ => None,
    };
    pressed.iter().filter_map(meaning).chain(is_alone.then_some(Key::End)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_meanings() {
        assert_eq!(meanings(b"xs q"), [Key::Sort, Key::Still, Key::End]);
        assert_eq!([meanings(b"\x03"), meanings(b"\x1b")], [[Key::End], [Key::End]]);
        assert_eq!(meanings(b"s\x1b[A"), [Key::Sort], "an arrow");
        assert_eq!(meanings("äöü".as_bytes()), []);
    }
}
