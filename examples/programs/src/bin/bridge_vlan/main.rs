//! Shows the frames that cross a bridge, and puts them into other VLANs: `--map 10:20`.
//!
//! The rule is one of the bridge family, at the forward hook; it queues all frames, ARP included,
//! unless an option says which. The first `--map` that fits a frame's tag, and the port by which
//! it came in if it names one, gives the frame another tag, `--priority` a priority. A way there
//! and back takes two: `--map 10:20@left --map 20:10@right`.
//!
//! - Frames without a tag can be given one; the kernel takes none away with a verdict.
//! - Of two tags the outer one counts.
//! - A bridge that filters VLANs has done so by the forward hook. With `--hook prerouting` frames
//!   are tagged before that, and no port is known by which they will leave.
//! - It needs the kernel module `nft_queue`, which most distributions have. Kernels since 7.2 drop
//!   frames whose bytes were changed, but a tag is not among these.
//!
//! To try it in a network namespace, with two hosts at a bridge, one in VLAN 10 and one in VLAN 20:
//!
//! ```text
//! cargo build --release -p netfilterqueue-programs
//! unshare -rn bash
//! ip link add bridge type bridge; ip link set bridge up
//! for host in left right; do
//! unshare -n sleep 100 & sleep 1
//! ip link add $host type veth peer name eth0 netns $!
//! ip link set $host master bridge up
//! id=10; [ $host = right ] && id=20
//! nsenter -n -t $! sh -c "ip link set eth0 up; ip link add link eth0 name vlan type vlan id $id
//! ip addr add 10.0.0.$id/24 dev vlan; ip link set vlan up"
//! left=${left:-$!}
//! done
//! target/release/bridge_vlan --map 10:20@left --map 20:10@right --priority 20:5 &
//! sleep 2; nsenter -n -t $left ping -c 1 10.0.0.20
//! kill $!; exit
//! ```

mod tags;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use netfilterqueue::rules::Family;
use netfilterqueue::{Decided, Packet, Queue, Verdict};
use netfilterqueue_programs::{Flow, Lines, Options, Selection, Session, tell};
use tags::{Map, Priority, Shown, Tags};

/// Shows the frames that cross a bridge, and puts them into other VLANs
#[derive(Debug, Parser)]
#[command(version, mut_arg("hook", |hook| hook.default_value("forward")))]
struct Arguments {
    /// Put frames of a VLAN into another: 10:20, untagged:20, 10:20@PORT; may be repeated
    #[arg(short, long, value_name = "FROM:TO")]
    map: Vec<Map>,

    /// Give frames of a VLAN a priority from 0 to 7, after the maps: 20:5; may be repeated
    #[arg(short = 'P', long, value_name = "VLAN:PRIORITY")]
    priority: Vec<Priority>,

    /// Print no frames
    #[arg(long)]
    quiet: bool,

    #[command(flatten)]
    selection: Selection,

    #[command(flatten)]
    options: Options,
}

struct Tagger {
    tags: Tags,
    quiet: bool,
    lines: Lines,
    numbers: Numbers,
}

#[derive(Debug, Default)]
struct Numbers {
    frames: u64,
    tagged: u64,
    refused: u64,
}

impl Tagger {
    fn judge<'p>(&mut self, mut packet: Packet<'p>) -> Decided<'p> {
        self.numbers.frames += 1;
        // Without CONFIG_BRIDGE_NETFILTER the kernel tells the port where else it tells the bridge.
        let from = packet.physindev_name().or_else(|| packet.indev_name());
        let to = packet.physoutdev_name().or_else(|| packet.outdev_name());
        let old = packet.vlan();
        let new = self.tags.change(old, from.as_deref());
        if !self.quiet {
            let name = |port: Option<Arc<str>>| port.unwrap_or_else(|| "?".into());
            // Who makes a link may put anything into its name.
            let way = format!("{} → {}", name(from).escape_debug(), name(to).escape_debug());
            let contents = contents(&packet);
            match new {
                Some(_) => self.lines.print(format_args!(
                    "{way}, {} → {}, {contents}",
                    Shown(old),
                    Shown(new)
                )),
                None => self.lines.print(format_args!("{way}, {}, {contents}", Shown(old))),
            }
        }
        let Some(new) = new else { return packet.accept() };
        match packet.set_vlan(new) {
            Ok(()) => {
                self.numbers.tagged += 1;
                packet.accept()
            }
            Err(error) => {
                // In its old VLAN it would be where it does not belong.
                self.numbers.refused += 1;
                tell(format_args!("a frame is dropped: {error}"));
                packet.verdict(Verdict::Drop)
            }
        }
    }
}

/// What a frame is about.
fn contents(packet: &Packet<'_>) -> String {
    let length = packet.original_len().map_or(packet.payload().len() as u64, u64::from);
    match (packet.hw_protocol(), Flow::of(packet.payload())) {
        (0x0806, _) => format!("ARP {length} bytes"),
        (0x0800 | 0x86dd, Some(flow)) => format!("{flow} {length} bytes"),
        (ethertype, _) => format!("ethertype {ethertype:#06x} {length} bytes"),
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let Arguments { options, selection, .. } = arguments;
    let session = Session::open(options, Queue::builder(options.queue), |rules| {
        rules.family(Family::BRIDGE).rule(selection.rule(options.queue))
    })?;
    let mut tagger = Tagger {
        tags: Tags { maps: arguments.map.clone(), priorities: arguments.priority.clone() },
        quiet: arguments.quiet,
        lines: Lines::new(session.queue.stop_handle()),
        numbers: Numbers::default(),
    };
    let stats = session.run(|packet| tagger.judge(packet))?;
    let Numbers { frames, tagged, refused } = tagger.numbers;
    tagger.lines.print(format_args!(
        "{frames} frames, {tagged} tagged; {refused} refused, {} lost",
        stats.lost
    ));
    Ok(())
}

fn main() -> ExitCode {
    netfilterqueue_programs::main(|arguments| run(&arguments))
}
