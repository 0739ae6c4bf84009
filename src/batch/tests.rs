//! Batches against the model of the kernel's queues.

use netfilterqueue_protocol::verdict::Verdict;
use proptest::prelude::*;

use super::commit::Runs;
use super::model::{Fate, Library, ON_UNDECIDED, Play, QUEUE, QUEUES, STEP_LEN};
use crate::sample::Shape;
use crate::verdicts::Form;
use crate::verdicts::Outstanding;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Each id leaves with the verdict chosen for it, once, and none stays.
    #[test]
    fn every_packet_meets_the_fate_chosen_for_it(
        play in proptest::collection::vec(any::<[u8; STEP_LEN]>(), 1..60)
            .prop_map(|steps| Play::read(steps.as_flattened())),
    ) {
        play.run();
    }
}

/// The first batch drops its packets and is committed after the second, which accepts. Were the
/// second sent as one cumulative verdict, it would accept the packets of the first.
#[test]
fn two_batches_in_flight_do_not_overtake_each_other() {
    let mut library = Library::new(1, 4096);
    (0..8).for_each(|_| library.wire.kernel.enqueue(QUEUE, Shape::Whole));
    library.receive(4);
    library.receive(4);
    for at in 0..4 {
        library.decide(0, at, Fate::plain(Verdict::Drop));
        library.decide(1, at, Fate::plain(Verdict::Accept));
    }
    library.commit(1, 0);
    assert_eq!(
        library.wire.kernel.list,
        [1, 2, 3, 4].map(|id| (QUEUE, id)),
        "the first is untouched"
    );
    library.commit(0, 0);
    assert_eq!(library.wire.kernel.fates[&(QUEUE, 1)].verdict, Verdict::Drop);
    library.finish();
}

/// Packets of two queues in turn: one cumulative message each, and neither reaches the other's ids.
#[test]
fn the_packets_of_two_queues_make_two_runs() {
    let mut library = Library::new(1, 4096);
    (0..8).for_each(|at| library.wire.kernel.enqueue(QUEUES[at % 2], Shape::Whole));
    library.receive(8);
    for at in 0..8 {
        let verdict = if at % 2 == 0 { Verdict::Accept } else { Verdict::Drop };
        library.decide(0, at, Fate::plain(verdict));
    }
    let (slots, order, datagram) = &mut library.batches[0];
    order.make(slots.filled(), |queue, pending| library.wire.outstanding.form(queue, pending));
    datagram.fill(Runs::new(slots.filled(), order, ON_UNDECIDED), 4096).expect("valid");
    assert_eq!((datagram.exact(), datagram.cumulative()), (0, 2));
    assert_eq!(datagram.answers(), [(QUEUES[0], 4), (QUEUES[1], 4)]);
    library.commit(0, 0);
    library.finish();
}

/// The kernel refuses a datagram as a whole and names only its first message.
#[test]
fn packets_of_all_queues_in_a_refused_datagram_are_dropped_later() {
    let mut library = Library::new(1, 4096);
    (0..8).for_each(|at| library.wire.kernel.enqueue(QUEUES[at % 2], Shape::Whole));
    library.receive(8);
    (0..8).for_each(|at| library.decide(0, at, Fate::plain(Verdict::Accept)));
    library.permit(0, false);
    library.commit(0, 0);
    assert_eq!(library.wire.kernel.list.len(), 8);
    library.receive(1);
    library.permit(0, true);
    // This one is behind them and must not be reached.
    library.wire.kernel.enqueue(QUEUE, Shape::Whole);
    library.finish();
}

#[test]
fn a_retained_packet_is_not_overtaken() {
    let mut library = Library::new(1, 4096);
    (0..4).for_each(|_| library.wire.kernel.enqueue(QUEUE, Shape::Whole));
    library.receive(4);
    library.retain(0, 1);
    for at in [0, 2, 3] {
        library.decide(0, at, Fate::plain(Verdict::Accept));
    }
    library.commit(0, 0);
    assert_eq!(library.wire.kernel.list, [(QUEUE, 2)]);
    library.judge_retained(0, Fate::plain(Verdict::Drop), 0);
    assert_eq!(library.wire.kernel.fates[&(QUEUE, 2)].verdict, Verdict::Drop);
    library.finish();
}

#[test]
fn one_run_is_one_message_and_an_edit_splits_it() {
    let mut library = Library::new(1, 4096);
    (0..5).for_each(|_| library.wire.kernel.enqueue(QUEUE, Shape::Whole));
    library.receive(5);
    for at in 0..5 {
        library.decide(0, at, Fate::plain(Verdict::Accept));
    }
    library.commit(0, 0);
    assert_eq!(library.wire.kernel.list.len(), 0);

    (0..4).for_each(|_| library.wire.kernel.enqueue(QUEUE, Shape::Whole));
    library.receive(4);
    for at in 0..4 {
        let payload = (at == 2).then(|| b"edit!".to_vec());
        library.decide(0, at, Fate { payload, ..Fate::plain(Verdict::Accept) });
    }
    let (slots, order, datagram) = &mut library.batches[0];
    for (form, messages, gaps) in [(Form::Cumulative, (2, 1), 1), (Form::Exact, (4, 0), 1)] {
        order.make(slots.filled(), |_, _| form);
        datagram.fill(Runs::new(slots.filled(), order, ON_UNDECIDED), 4096).expect("valid");
        assert_eq!(datagram.answered(), 4);
        assert_eq!((datagram.exact(), datagram.cumulative()), messages);
        assert_eq!(datagram.gaps().len(), gaps);
    }
}

#[test]
fn after_a_refused_datagram_only_exact_verdicts_are_used() {
    let outstanding = Outstanding::new(&[QUEUE]);
    outstanding.received(QUEUE, 4);
    assert_eq!(outstanding.form(QUEUE, 3), Form::Exact);
    assert_eq!(outstanding.form(QUEUE, 4), Form::Cumulative);
    outstanding.distrust();
    assert_eq!(outstanding.form(QUEUE, 4), Form::Exact);
}

#[test]
fn after_a_second_thread_has_sent_only_exact_verdicts_are_used() {
    let outstanding = Outstanding::new(&[QUEUE]);
    let form_elsewhere = || {
        std::thread::scope(|scope| {
            scope.spawn(|| outstanding.form(QUEUE, 0)).join().expect("no panic")
        })
    };
    assert_eq!(
        (outstanding.form(QUEUE, 0), form_elsewhere()),
        (Form::Cumulative, Form::Cumulative)
    );
    outstanding.sending();
    assert_eq!((outstanding.form(QUEUE, 0), form_elsewhere()), (Form::Cumulative, Form::Exact));
    std::thread::scope(|scope| scope.spawn(|| outstanding.sending()).join().expect("no panic"));
    assert_eq!((outstanding.form(QUEUE, 0), form_elsewhere()), (Form::Exact, Form::Exact));
}

#[test]
fn a_failed_send_keeps_what_was_not_sent() {
    let mut library = Library::new(1, 100);
    (0..6).for_each(|_| library.wire.kernel.enqueue(QUEUE, Shape::Whole));
    library.receive(6);
    for at in 0..6 {
        library.decide(
            0,
            at,
            Fate { mark: Some(u32::try_from(at).expect("small")), ..Fate::plain(Verdict::Accept) },
        );
    }
    library.wire.failing_sends = 1;
    library.commit(0, 0);
    assert_eq!(library.wire.kernel.fates.len(), 0);
    library.commit(0, 0);
    assert_eq!(library.wire.kernel.fates.len(), 6);
    library.finish();
}
