//! Single cases against the model.

use super::*;

fn plain(verdict: Verdict) -> Fate {
    Fate { verdict, mark: None, payload: None }
}

/// The first batch drops its packets and is committed after the second, which accepts. Were the
/// second sent as one cumulative verdict, it would accept the packets of the first.
#[test]
fn two_batches_in_flight_do_not_overtake_each_other() {
    let mut library = Library::new(1, 4096);
    (0..8).for_each(|_| library.kernel.enqueue(QUEUE));
    library.receive(4, 0);
    library.receive(4, 0);
    for at in 0..4 {
        library.decide(0, at, plain(Verdict::Drop));
        library.decide(1, at, plain(Verdict::Accept));
    }
    library.commit(1);
    assert_eq!(library.kernel.list, [1, 2, 3, 4].map(|id| (QUEUE, id)), "the first is untouched");
    library.commit(0);
    assert_eq!(library.kernel.fates[&(QUEUE, 1)].verdict, Verdict::Drop);
    library.finish();
}

/// Packets of two queues in turn: one cumulative message each, and neither reaches the other's ids.
#[test]
fn the_packets_of_two_queues_make_two_runs() {
    let mut library = Library::new(1, 4096);
    (0..8).for_each(|at| library.kernel.enqueue(QUEUES[at % 2]));
    library.receive(8, 0);
    for at in 0..8 {
        let verdict = if at % 2 == 0 { Verdict::Accept } else { Verdict::Drop };
        library.decide(0, at, plain(verdict));
    }
    let (slots, order, datagram) = &mut library.batches[0];
    order.make(slots.filled(), |queue, pending| library.outstanding.form(queue, pending));
    datagram.fill(Runs::new(slots.filled(), order, ON_UNDECIDED), 4096).expect("valid");
    assert_eq!((datagram.exact(), datagram.cumulative()), (0, 2));
    assert_eq!(datagram.answers(), [(QUEUES[0], 4), (QUEUES[1], 4)]);
    library.commit(0);
    library.finish();
}

#[test]
fn a_retained_packet_is_not_overtaken() {
    let mut library = Library::new(1, 4096);
    (0..4).for_each(|_| library.kernel.enqueue(QUEUE));
    library.receive(4, 0);
    library.retain(0, 1);
    for at in [0, 2, 3] {
        library.decide(0, at, plain(Verdict::Accept));
    }
    library.commit(0);
    assert_eq!(library.kernel.list, [(QUEUE, 2)]);
    library.judge_retained(0, plain(Verdict::Drop));
    assert_eq!(library.kernel.fates[&(QUEUE, 2)].verdict, Verdict::Drop);
    library.finish();
}

#[test]
fn one_run_is_one_message_and_an_edit_splits_it() {
    let mut library = Library::new(1, 4096);
    (0..5).for_each(|_| library.kernel.enqueue(QUEUE));
    library.receive(5, 0);
    for at in 0..5 {
        library.decide(0, at, plain(Verdict::Accept));
    }
    library.commit(0);
    assert_eq!(library.kernel.list.len(), 0);

    (0..4).for_each(|_| library.kernel.enqueue(QUEUE));
    library.receive(4, 0);
    for at in 0..4 {
        let payload = (at == 2).then(|| b"edit!".to_vec());
        library.decide(0, at, Fate { payload, ..plain(Verdict::Accept) });
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
    (0..6).for_each(|_| library.kernel.enqueue(QUEUE));
    library.receive(6, 0);
    for at in 0..6 {
        library.decide(
            0,
            at,
            Fate { mark: Some(u32::try_from(at).expect("small")), ..plain(Verdict::Accept) },
        );
    }
    library.failing_sends = 1;
    library.commit(0);
    assert_eq!(library.kernel.fates.len(), 0);
    library.commit(0);
    assert_eq!(library.kernel.fates.len(), 6);
    library.finish();
}
