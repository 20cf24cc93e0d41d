//! The queue with real slabs and links: batching, several rows, loss, poison, cancellation, overload, lies.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use lrai_dataplane::answer::{Answer, Ticket};
use lrai_dataplane::dataplane::Dataplane;
use lrai_dataplane::error::{Code, Result};
use lrai_dataplane::events::Event;
use lrai_dataplane::knobs::Knobs;
use lrai_dataplane::models::Model;
use lrai_dataplane::request::{Data, InferRequest, Input};
use lrai_dataplane::tensor::{DType, Shape};
use lrai_dataplane::wire::Place;
use support::{attach, dataplane, floats, spec};

fn submit(model: &Arc<Model>, rows: i64, bytes: &[u8]) -> Result<Ticket> {
    submit_as(model, DType::Fp32, &[rows, 2], bytes)
}

fn submit_as(model: &Arc<Model>, datatype: DType, shape: &[i64], bytes: &[u8]) -> Result<Ticket> {
    let input = Input {
        name: "x".into(),
        datatype,
        shape: Shape::from_slice(shape),
        parameters: smallvec::SmallVec::default(),
        data: Data::Raw(bytes.into()),
    };
    let inputs = std::iter::once(input).collect();
    model.submit(&InferRequest { inputs, ..Default::default() })
}

fn row(value: f32) -> Vec<u8> {
    floats(&[value, -value])
}

fn data(answer: &Answer) -> (Vec<i64>, Vec<u8>) {
    let views = answer.views();
    (views[0].shape.to_vec(), views[0].data.to_vec())
}

async fn event(dataplane: &Dataplane, wanted: impl Fn(&Event) -> bool) -> Event {
    for _ in 0..2000 {
        if let Some(event) = dataplane.events.take().into_iter().find(&wanted) {
            return event;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the event did not come");
}

#[tokio::test]
async fn requests_that_wait_share_a_batch_and_get_their_own_rows() {
    let (dataplane, key, model) = dataplane(spec(64, DType::Fp32, &[-1, 2]));
    let tickets: Vec<_> = (0..10).map(|n| submit(&model, 1, &row(n as f32)).unwrap()).collect();
    let batches = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&batches);
    attach(&dataplane, key, move |turn| {
        seen.fetch_add(1, SeqCst);
        turn.echo();
        true
    });
    for (n, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(data(&ticket.answer().await.unwrap()), (vec![1, 2], row(n as f32)));
    }
    assert_eq!(batches.load(SeqCst), 1);
}

#[tokio::test]
async fn a_request_with_several_rows_stays_whole_and_a_full_batch_makes_room_for_the_next() {
    let (dataplane, key, model) = dataplane(spec(4, DType::Fp32, &[-1, 2]));
    let three = floats(&[1., 2., 3., 4., 5., 6.]);
    let tickets = [submit(&model, 3, &three).unwrap(), submit(&model, 3, &three).unwrap()];
    let sizes = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = Arc::clone(&sizes);
    attach(&dataplane, key, move |turn| {
        seen.lock().push(turn.run.rows);
        turn.echo();
        true
    });
    for ticket in tickets {
        assert_eq!(data(&ticket.answer().await.unwrap()), (vec![3, 2], three.clone()));
    }
    assert_eq!(*sizes.lock(), [3, 3]);
    let error = submit(&model, 5, &[0; 40]).err().unwrap();
    assert_eq!(error.code, Code::InvalidArgument);
}

#[tokio::test]
async fn more_answers_than_output_slots_are_delivered() {
    let (dataplane, key, model) = dataplane(spec(1, DType::Fp32, &[-1, 2]));
    attach(&dataplane, key, |turn| {
        turn.echo();
        true
    });
    let tickets: Vec<_> = (0..40).map(|n| submit(&model, 1, &row(n as f32)).unwrap()).collect();
    let mut answers = Vec::new();
    for (n, ticket) in tickets.into_iter().enumerate() {
        let answer = ticket.answer().await.unwrap();
        assert_eq!(data(&answer).1, row(n as f32));
        answers.push(answer);
        if answers.len() == 4 {
            answers.clear();
        }
    }
}

#[tokio::test]
async fn requests_of_different_shapes_do_not_share_a_batch() {
    let (dataplane, key, model) = dataplane(spec(8, DType::Fp32, &[-1, -1]));
    let narrow = submit_as(&model, DType::Fp32, &[1, 2], &floats(&[1., 2.])).unwrap();
    let wide = submit_as(&model, DType::Fp32, &[1, 3], &floats(&[1., 2., 3.])).unwrap();
    let narrow_too = submit_as(&model, DType::Fp32, &[1, 2], &floats(&[3., 4.])).unwrap();
    attach(&dataplane, key, |turn| {
        turn.echo();
        true
    });
    assert_eq!(data(&narrow.answer().await.unwrap()), (vec![1, 2], floats(&[1., 2.])));
    assert_eq!(data(&wide.answer().await.unwrap()), (vec![1, 3], floats(&[1., 2., 3.])));
    assert_eq!(data(&narrow_too.answer().await.unwrap()).1, floats(&[3., 4.]));
    assert_eq!(model.stats.snapshot().execution_count, 2);
}

#[tokio::test]
async fn strings_of_different_lengths_share_a_batch() {
    let (dataplane, key, model) = dataplane(spec(8, DType::Bytes, &[-1, 1]));
    let texts: [&[u8]; 3] = [b"\x05\0\0\0hello", b"\0\0\0\0", b"\x02\0\0\0ab"];
    let tickets: Vec<_> =
        texts.iter().map(|text| submit_as(&model, DType::Bytes, &[1, 1], text).unwrap()).collect();
    attach(&dataplane, key, |turn| {
        assert_eq!(turn.run.rows, 3);
        turn.echo();
        true
    });
    for (ticket, text) in tickets.into_iter().zip(texts) {
        assert_eq!(data(&ticket.answer().await.unwrap()), (vec![1, 1], text.to_vec()));
    }
}

#[tokio::test]
async fn a_request_whose_client_has_gone_is_not_computed() {
    let (dataplane, key, model) = dataplane(spec(8, DType::Fp32, &[-1, 2]));
    let mut tickets: Vec<_> = (0..5).map(|n| submit(&model, 1, &row(n as f32)).unwrap()).collect();
    drop(tickets.remove(1));
    drop(tickets.remove(2));
    attach(&dataplane, key, |turn| {
        assert_eq!(turn.run.rows, 3);
        turn.echo();
        true
    });
    for (ticket, value) in tickets.into_iter().zip([0., 2., 4.]) {
        assert_eq!(data(&ticket.answer().await.unwrap()).1, row(value));
    }
}

#[tokio::test]
async fn a_full_queue_answers_overloaded_at_once_and_gone_clients_make_room() {
    let mut small = spec(8, DType::Fp32, &[-1, 2]);
    small.max_queue_requests = 3;
    let (_dataplane, _key, model) = dataplane(small);
    let mut tickets: Vec<_> = (0..3).map(|n| submit(&model, 1, &row(n as f32)).unwrap()).collect();
    let error = submit(&model, 1, &row(9.)).err().unwrap();
    assert_eq!((error.code, error.message.as_ref()), (Code::Unavailable, "Exceeds maximum queue size"));
    tickets.pop();
    assert!(submit(&model, 1, &row(9.)).is_ok());
}

#[tokio::test]
async fn a_batch_lost_without_fault_is_run_again_by_the_successor() {
    // Only what died counts as restarted; a retired replica was replaced on purpose.
    for (fault, restarts) in [("", 1), ("retired", 0)] {
        let (dataplane, key, model) = dataplane(spec(8, DType::Fp32, &[-1, 2]));
        let tickets: Vec<_> = (0..4).map(|n| submit(&model, 1, &row(n as f32)).unwrap()).collect();
        let (replica, _) = attach(&dataplane, key, |_| false);
        event(&dataplane, |event| matches!(event, Event::ReplicaLost { .. })).await;
        dataplane.settle(replica, fault);
        attach(&dataplane, key, |turn| {
            assert_eq!(turn.run.rows, 4);
            turn.echo();
            true
        });
        for (n, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(data(&ticket.answer().await.unwrap()).1, row(n as f32));
        }
        assert_eq!(model.stats.snapshot().restarts, restarts);
    }
}

#[tokio::test]
async fn only_the_culprit_of_a_poison_is_refused_and_at_once_when_it_comes_again() {
    let (dataplane, key, model) = dataplane(spec(64, DType::Fp32, &[-1, 2]));
    let tickets: Vec<_> = (0..64).map(|n| submit(&model, 1, &row(n as f32)).unwrap()).collect();
    let poison = row(37.);
    let deaths = Arc::new(AtomicU32::new(0));
    let (supervised, count) = (Arc::clone(&dataplane), Arc::clone(&deaths));
    let supervisor = tokio::spawn(async move {
        loop {
            let poison = poison.clone();
            let (replica, _) = attach(&supervised, key, move |turn| {
                let is_poisoned = turn.input(0).chunks(8).any(|row| row == poison);
                if !is_poisoned {
                    turn.echo();
                }
                !is_poisoned
            });
            event(&supervised, |event| matches!(event, Event::ReplicaLost { .. })).await;
            count.fetch_add(1, SeqCst);
            supervised.settle(replica, "signal");
        }
    });
    for (n, ticket) in tickets.into_iter().enumerate() {
        match ticket.answer().await {
            Ok(answer) => assert_eq!(data(&answer).1, row(n as f32)),
            Err(error) => assert_eq!((n, error.code), (37, Code::InvalidArgument)),
        }
    }
    assert_eq!(deaths.load(SeqCst), 7, "64, 32, 16, 8, 4, 2, 1");
    let error = submit(&model, 1, &row(37.)).err().unwrap();
    assert!(error.message.contains("refused for ten minutes"), "{error}");
    assert!(submit(&model, 1, &row(1.)).unwrap().answer().await.is_ok());
    supervisor.abort();
}

#[tokio::test]
async fn a_model_that_must_not_run_twice_answers_unavailable() {
    let mut once = spec(8, DType::Fp32, &[-1, 2]);
    once.retry = false;
    let (dataplane, key, model) = dataplane(once);
    let ticket = submit(&model, 1, &row(1.)).unwrap();
    let (replica, _) = attach(&dataplane, key, |_| false);
    event(&dataplane, |event| matches!(event, Event::ReplicaLost { .. })).await;
    dataplane.settle(replica, "");
    assert_eq!(ticket.answer().await.err().unwrap().code, Code::Unavailable);
}

#[tokio::test]
async fn a_failing_request_does_not_fail_the_others_of_its_batch() {
    let (dataplane, key, model) = dataplane(spec(8, DType::Fp32, &[-1, 2]));
    let tickets: Vec<_> = (0..8).map(|n| submit(&model, 1, &row(n as f32)).unwrap()).collect();
    let bad = row(5.);
    attach(&dataplane, key, move |turn| {
        if turn.input(0).chunks(8).any(|row| row == bad) {
            turn.mailbox.failed(turn.run.batch, 1, "row out of range").unwrap();
        } else {
            turn.echo();
        }
        true
    });
    for (n, ticket) in tickets.into_iter().enumerate() {
        match ticket.answer().await {
            Ok(answer) => assert_eq!(data(&answer).1, row(n as f32)),
            Err(error) => {
                assert_eq!((n, error.message.as_ref()), (5, "row out of range"));
            }
        }
    }
}

#[tokio::test]
async fn an_actor_that_lies_about_its_outputs_costs_only_itself() {
    let lies: [fn(Place) -> Place; 5] = [
        |place| Place { offset: 1 << 40, ..place },
        |place| Place { byte_len: 1 << 21, ..place },
        |place| Place { byte_len: place.byte_len - 1, ..place },
        |place| Place { shape: Shape::from_slice(&[-1, 2]), ..place },
        |place| Place { shape: Shape::from_slice(&[i64::MAX, 8]), ..place },
    ];
    for lie in lies {
        let (dataplane, key, model) = dataplane(spec(8, DType::Fp32, &[-1, 2]));
        let ticket = submit(&model, 1, &row(1.)).unwrap();
        let (replica, _) = attach(&dataplane, key, move |turn| {
            let honest = Place { offset: 0, ..turn.run.inputs[0].clone().unwrap() };
            turn.mailbox.done(turn.run.batch, 1, [lie(honest)]).unwrap();
            true
        });
        let lost = event(&dataplane, |event| matches!(event, Event::ReplicaLost { .. })).await;
        assert!(format!("{lost:?}").contains("protocol violation"), "{lost:?}");
        dataplane.settle(replica, "");
        attach(&dataplane, key, |turn| {
            turn.echo();
            true
        });
        assert_eq!(data(&ticket.answer().await.unwrap()).1, row(1.));
    }
}

#[tokio::test]
async fn an_actor_cannot_write_its_inputs_or_resize_its_outputs() {
    let (dataplane, key, model) = dataplane(spec(8, DType::Fp32, &[-1, 2]));
    let ticket = submit(&model, 1, &row(1.)).unwrap();
    attach(&dataplane, key, |turn| {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let address = format!("{:x}-", turn.slabs.input.as_ptr() as usize);
        let line = maps.lines().find(|line| line.starts_with(&address)).unwrap();
        assert!(line.contains("r--s"), "{line}");
        // SAFETY: plain system calls on the mapping's own range; they must fail.
        let denied = unsafe { libc::mprotect(turn.slabs.input.as_mut_ptr().cast(), 4096, libc::PROT_WRITE) };
        assert_eq!(denied, -1);
        turn.echo();
        true
    });
    assert_eq!(data(&ticket.answer().await.unwrap()).1, row(1.));
}

#[tokio::test]
async fn a_patient_queue_waits_for_k_rows_or_age() {
    let (dataplane, key, model) = dataplane(spec(64, DType::Fp32, &[-1, 2]));
    let tau = Duration::from_millis(30);
    let knobs = Knobs { k: 4, tau, work_conserving: false, ..Knobs::default() };
    dataplane.set_knobs(key, knobs).unwrap();
    let sizes = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = Arc::clone(&sizes);
    attach(&dataplane, key, move |turn| {
        seen.lock().push(turn.run.rows);
        turn.echo();
        true
    });
    event(&dataplane, |event| matches!(event, Event::ReplicaReady { .. })).await;
    let tickets: Vec<_> = (0..6).map(|n| submit(&model, 1, &row(n as f32)).unwrap()).collect();
    for ticket in tickets {
        ticket.answer().await.unwrap();
    }
    assert_eq!(*sizes.lock(), [4, 2]);
    let snapshot = model.stats.snapshot();
    assert_eq!(snapshot.closed[..2], [1, 1], "one full, one of age");
}

#[tokio::test]
async fn a_removed_model_answers_what_it_has_and_then_says_so() {
    let (dataplane, key, model) = dataplane(spec(8, DType::Fp32, &[-1, 2]));
    let ticket = submit(&model, 1, &row(1.)).unwrap();
    dataplane.remove_model(key).unwrap();
    assert_eq!(submit(&model, 1, &row(2.)).err().unwrap().code, Code::Unavailable);
    assert!(dataplane.model("m", "").is_err());
    let (ours, theirs) = support::socketpair();
    dataplane.attach(key, ours).unwrap();
    std::thread::spawn(move || {
        let mailbox = lrai_dataplane::link::Mailbox::open(theirs).unwrap().unwrap();
        let slabs = support::Slabs::map(&mailbox);
        mailbox.ready().unwrap();
        while let Ok(Some(run)) = mailbox.receive() {
            support::Turn { mailbox: &mailbox, slabs: &slabs, run: &run }.echo();
        }
    });
    assert_eq!(data(&ticket.answer().await.unwrap()).1, row(1.));
    event(&dataplane, |event| matches!(event, Event::Removed { .. })).await;
}
