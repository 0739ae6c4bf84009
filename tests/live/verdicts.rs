//! What each verdict does to a packet, in batches, closures and from retained packets.

use netfilterqueue::{Queue, Verdict};
use netfilterqueue_netns::Namespace;

use crate::support::{UdpPair, V4, queue_udp, receive_exactly};
use crate::{Test, tests};

pub const TESTS: [Test; 1] = tests![mixed_verdicts_of_a_batch_leave_in_one_call];

fn mixed_verdicts_of_a_batch_leave_in_one_call(_: &Namespace) {
    let mut queue = Queue::builder(1).bind().unwrap();
    let _rules = queue_udp(1);
    let udp = UdpPair::new(V4);
    udp.send_each(0..10);
    let mut batch = receive_exactly(&mut queue, 10);
    for packet in &mut batch {
        let data = packet.payload()[28];
        packet.verdict(if data % 3 == 0 { Verdict::Drop } else { Verdict::Accept });
    }
    batch.commit().unwrap();
    assert_eq!(udp.receive_all(6), [[1], [2], [4], [5], [7], [8]]);
    let stats = queue.stats();
    assert_eq!((stats.received, stats.answered, stats.held, stats.lost), (10, 10, 0, 0));
    assert_eq!(stats.send_calls, 1);
    assert_eq!((stats.exact_verdicts, stats.cumulative_verdicts), (4, 3));
}
