//! Requests of different lengths in one batch: padded where they are written, cut where they are read.
#![allow(clippy::unwrap_used)]

mod support;

use std::hash::RandomState;
use std::sync::Arc;
use std::time::Instant;

use lrai_dataplane::answer::{Answer, Ticket};
use lrai_dataplane::batch::{Batch, Entry, Requests};
use lrai_dataplane::check::{PerInput, check};
use lrai_dataplane::dataplane::Dataplane;
use lrai_dataplane::encode::{OutputView, encode};
use lrai_dataplane::error::Code;
use lrai_dataplane::knobs::Knobs;
use lrai_dataplane::line::{Arrival, LOWEST, Line};
use lrai_dataplane::models::Model;
use lrai_dataplane::ragged::{Bucket, Cut, Lengths, Ragged};
use lrai_dataplane::request::{Data, InferRequest, Input};
use lrai_dataplane::slab::{Buffer, Slab, Span};
use lrai_dataplane::tensor::{DType, ModelSpec, Shape, elements};
use lrai_dataplane::wire::Place;
use parking_lot::Mutex;
use proptest::prelude::*;
use support::{attach, dataplane, floats, spec, tensor};

fn ragged(axis: usize, edges: &[u32]) -> Ragged {
    let outputs = vec![Cut { axis, stride: 1, add: 0 }];
    Ragged { inputs: vec![axis], outputs, edges: edges.into(), longest: 64 }
}

/// A model `x [-1, -1, 2] -> y [-1, -1, 2]` with buckets of 4 and 8.
fn model() -> ModelSpec {
    let mut spec = spec(64, DType::Fp32, &[-1, -1, 2]);
    spec.ragged = Some(ragged(1, &[4, 8]));
    spec
}

fn request(shape: &[i64], data: Data<'static>) -> InferRequest<'static> {
    let (shape, parameters) = (Shape::from_slice(shape), smallvec::SmallVec::default());
    let input = Input { name: "x".into(), datatype: DType::Fp32, shape, parameters, data };
    InferRequest { inputs: std::iter::once(input).collect(), ..Default::default() }
}

fn numbers(count: i64) -> Vec<f32> {
    (1..=count).map(|number| number as f32).collect()
}

fn submit(model: &Arc<Model>, rows: i64, length: i64) -> Ticket {
    let data = Data::Raw(floats(&numbers(rows * length * 2)).into());
    model.submit(&request(&[rows, length, 2], data)).unwrap()
}

fn data(answer: &Answer) -> (Vec<i64>, Vec<u8>) {
    let views = answer.views();
    (views[0].shape.to_vec(), views[0].data.to_vec())
}

/// The shape of every batch that an echo has run.
fn echo(dataplane: &Arc<Dataplane>, key: u64) -> Arc<Mutex<Vec<Vec<i64>>>> {
    let shapes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&shapes);
    attach(dataplane, key, move |turn| {
        seen.lock().push(turn.run.inputs[0].as_ref().unwrap().shape.to_vec());
        turn.echo();
        true
    });
    shapes
}

#[tokio::test]
async fn lengths_of_one_bucket_share_a_batch_and_get_their_own_length_back() {
    let (dataplane, key, model) = dataplane(model());
    let asked = [(1, 3), (2, 1), (1, 2), (3, 7), (1, 8), (1, 9)];
    let tickets: Vec<_> = asked.iter().map(|(rows, length)| submit(&model, *rows, *length)).collect();
    let shapes = echo(&dataplane, key);
    for ((rows, length), ticket) in asked.into_iter().zip(tickets) {
        let expected = (vec![rows, length, 2], floats(&numbers(rows * length * 2)));
        assert_eq!(data(&ticket.answer().await.unwrap()), expected);
    }
    // A batch is as long as the longest in it. The last one is beyond every edge and runs as it is.
    assert_eq!(*shapes.lock(), [[4, 3, 2], [4, 8, 2], [1, 9, 2]]);
}

#[tokio::test]
async fn what_a_slot_held_before_is_not_seen_behind_a_short_row() {
    let (dataplane, key, model) = dataplane(model());
    let inputs = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&inputs);
    attach(&dataplane, key, move |turn| {
        seen.lock().push(turn.input(0).to_vec());
        turn.echo();
        true
    });
    submit(&model, 1, 4).answer().await.unwrap();
    for ticket in [1, 3].map(|length| submit(&model, 1, length)) {
        ticket.answer().await.unwrap();
    }
    assert_eq!(inputs.lock()[1], floats(&[1., 2., 0., 0., 0., 0., 1., 2., 3., 4., 5., 6.]));
}

#[tokio::test]
async fn an_output_of_another_length_than_measured_is_an_error() {
    let (dataplane, key, model) = dataplane(model());
    attach(&dataplane, key, |turn| {
        turn.write(0, &[0; 16]);
        let place = Place { offset: 0, byte_len: 16, shape: Shape::from_slice(&[1, 2, 2]) };
        turn.mailbox.done(turn.run.batch, 1000, [place]).unwrap();
        true
    });
    let answer = submit(&model, 1, 3).answer().await.unwrap();
    let error = encode(&answer.model().spec, answer.wanted(), &answer.views()).unwrap_err();
    assert_eq!(error.code, Code::Internal);
}

#[tokio::test]
async fn a_poison_is_known_again_by_what_it_is_without_padding() {
    let (dataplane, key, model) = dataplane(model());
    let poisoned = || {
        let data = Data::Raw(floats(&[13., 0., 0., 0.]).into());
        model.submit(&request(&[1, 2, 2], data))
    };
    let tickets = [submit(&model, 1, 1), poisoned().unwrap(), submit(&model, 2, 3)];
    let shapes = Arc::new(Mutex::new(Vec::new()));
    let (supervised, seen) = (Arc::clone(&dataplane), Arc::clone(&shapes));
    let supervisor = tokio::spawn(async move {
        loop {
            let seen = Arc::clone(&seen);
            let (replica, thread) = attach(&supervised, key, move |turn| {
                seen.lock().push(turn.run.inputs[0].as_ref().unwrap().shape.to_vec());
                let is_poisoned = turn.input(0).chunks(4).any(|value| value == 13_f32.to_le_bytes());
                if !is_poisoned {
                    turn.echo();
                }
                !is_poisoned
            });
            tokio::task::spawn_blocking(|| thread.join()).await.unwrap().unwrap();
            supervised.settle(replica, "signal");
        }
    });
    let [short, poison, long] = tickets.map(Ticket::answer);
    assert_eq!(data(&short.await.unwrap()), (vec![1, 1, 2], floats(&numbers(2))));
    assert_eq!(poison.await.err().unwrap().code, Code::InvalidArgument);
    assert_eq!(data(&long.await.unwrap()), (vec![2, 3, 2], floats(&numbers(12))));
    // What runs again stays as it was.
    let mut shapes = shapes.lock().clone();
    shapes.sort();
    assert_eq!(shapes, [[1, 3, 2], [1, 3, 2], [2, 3, 2], [3, 3, 2], [4, 3, 2]]);
    let error = poisoned().err().unwrap();
    assert!(error.message.contains("refused for ten minutes"), "{error}");
    supervisor.abort();
}

#[tokio::test]
async fn a_token_budget_bounds_the_rows_of_a_bucket() {
    let (dataplane, key, model) = dataplane(model());
    model.set_knobs(Knobs { token_budget: 16, ..Knobs::default() });
    let tickets: Vec<_> = [3, 4, 2, 1, 3, 8, 8, 8].map(|length| submit(&model, 1, length)).into();
    let shapes = echo(&dataplane, key);
    for ticket in tickets {
        ticket.answer().await.unwrap();
    }
    let mut shapes = shapes.lock().clone();
    shapes.sort();
    assert_eq!(shapes, [[1, 3, 2], [1, 8, 2], [2, 8, 2], [4, 4, 2]]);
}

#[tokio::test]
async fn a_bucket_with_a_cap_of_its_own_leaves_requests_alone_and_as_long_as_they_are() {
    let (dataplane, key, model) = dataplane(model());
    model.set_knobs(Knobs { edges: vec![8, 64], caps: vec![(8, 2), (64, 1)], ..Knobs::default() });
    let tickets: Vec<_> = [3, 33, 4, 35, 5, 37].map(|length| submit(&model, 1, length)).into();
    let shapes = echo(&dataplane, key);
    for ticket in tickets {
        ticket.answer().await.unwrap();
    }
    let mut shapes = shapes.lock().clone();
    shapes.sort();
    assert_eq!(shapes, [[1, 5, 2], [1, 33, 2], [1, 35, 2], [1, 37, 2], [2, 4, 2]]);
}

#[tokio::test]
async fn a_batch_of_two_lengths_is_rounded_up_a_little() {
    let (dataplane, key, model) = dataplane(model());
    model.set_knobs(Knobs { edges: vec![64], ..Knobs::default() });
    let tickets = [31, 33].map(|length| submit(&model, 1, length));
    let shapes = echo(&dataplane, key);
    for ticket in tickets {
        ticket.answer().await.unwrap();
    }
    assert_eq!(*shapes.lock(), [[2, 34, 2]]);
}

#[tokio::test]
async fn edges_can_be_set_and_lengths_are_counted_once() {
    let (dataplane, key, model) = dataplane(model());
    model.set_knobs(Knobs { edges: vec![5, 32], ..Knobs::default() });
    let tickets: Vec<_> = [5, 5, 17, 64].map(|length| submit(&model, 2, length)).into();
    let shapes = echo(&dataplane, key);
    for ticket in tickets {
        ticket.answer().await.unwrap();
    }
    assert_eq!(*shapes.lock(), [[4, 5, 2], [2, 17, 2], [2, 64, 2]]);
    assert_eq!(model.observe().unwrap().lengths, [(5, 4), (17, 2), (64, 2)]);
    assert!(model.observe().is_none_or(|observed| observed.lengths.is_empty()));
}

#[test]
fn inputs_that_differ_in_length_are_left_alone() {
    let mut spec = model();
    spec.inputs.push(tensor("mask", DType::Fp32, &[-1, -1]));
    spec.ragged.as_mut().unwrap().inputs.push(1);
    for (length, expected) in [(3, Some(Bucket { length: 3, edge: 4 })), (2, None)] {
        let mut request = request(&[1, 3, 2], Data::Raw(floats(&numbers(6)).into()));
        let mask = Data::Raw(floats(&numbers(length)).into());
        let shape = Shape::from_slice(&[1, length]);
        request.inputs.push(Input { name: "mask".into(), shape, data: mask, ..request.inputs[0].clone() });
        let mut checked = check(&spec, &request).unwrap();
        let before = checked.clone();
        let bucket = Lengths::default().pad(spec.ragged.as_ref().unwrap(), &mut checked, &[], 1 << 20);
        assert_eq!(bucket, expected);
        assert_eq!(checked == before, expected.is_none());
    }
}

#[test]
fn padding_never_makes_a_request_too_large() {
    let spec = model();
    let request = request(&[1, 5, 2], Data::Raw(floats(&numbers(10)).into()));
    for (room, is_padded) in [(64, true), (63, false)] {
        let mut checked = check(&spec, &request).unwrap();
        let bucket = Lengths::default().pad(spec.ragged.as_ref().unwrap(), &mut checked, &[], room);
        assert_eq!(bucket.is_some(), is_padded);
    }
}

/// A shape of two to four dimensions, one of them the length, and an edge that is not below it.
fn shapes() -> impl Strategy<Value = (Vec<i64>, usize, u32)> {
    (proptest::collection::vec(0i64..5, 2..5), 0..4_usize, 0..5_u32).prop_map(|(mut shape, axis, more)| {
        let axis = 1 + axis % (shape.len() - 1);
        shape[axis] += 1;
        let edge = shape[axis] as u32 + more;
        (shape, axis, edge)
    })
}

/// Where each element of a tensor lies if its length were another one.
fn places(shape: &[i64], axis: usize, length: i64) -> Vec<usize> {
    let mut whole = shape.to_vec();
    whole[axis] = length;
    (0..elements(shape).unwrap())
        .map(|index| {
            let (mut rest, mut place, mut step) = (index, 0, 1);
            for (size, whole) in shape.iter().zip(&whole).rev() {
                place += rest % *size as usize * step;
                rest /= *size as usize;
                step *= *whole as usize;
            }
            place
        })
        .collect()
}

/// A tensor of a request, padded to `length`.
fn padded(shape: &[i64], axis: usize, length: i64, values: &[f32]) -> Vec<u8> {
    let whole = elements(shape).unwrap() / shape[axis] as usize * length as usize;
    let mut padded = vec![0.0; whole];
    places(shape, axis, length).iter().zip(values).for_each(|(place, value)| padded[*place] = *value);
    floats(&padded)
}

/// An input `[rows, 3, length, 2]`, one `[rows, length]` and one without a length, `[rows, 2]`.
const INPUTS: [(&[i64], usize); 3] = [(&[0, 3, 0, 2], 2), (&[0, 0], 1), (&[0, 2], 0)];

/// What all requests have in common, that length included.
fn common(length: u32) -> PerInput<Option<Shape>> {
    let shape = |(shape, axis): &(&[i64], usize)| {
        let mut shape = Shape::from_slice(shape);
        shape[*axis] = if *axis > 0 { length.into() } else { 0 };
        Some(shape)
    };
    INPUTS.iter().map(shape).collect()
}

/// A batch of requests, each `(rows, length)`, written as the queue does, and their values.
fn batch(ragged: &Ragged, asked: &[(u32, u32)], edge: u32) -> (Batch, Vec<Vec<f32>>) {
    let slab = Slab::new(c"test", 1 << 20, 1, true).unwrap();
    let positions = [6 * edge as usize, edge as usize, 2].map(|count| Some(count * 4));
    let mut buffer = Buffer::new(slab.take().unwrap(), &positions, 1, 64).unwrap();
    let (mut entries, mut values) = (Vec::new(), Vec::new());
    for (rows, length) in asked.iter().copied() {
        let sizes = positions.map(|bytes| bytes.unwrap() * rows as usize);
        let (mut regions, spans) = buffer.append(&sizes);
        for (index, region) in regions.iter_mut().enumerate() {
            let mut shape = common(length)[index].clone().unwrap();
            shape[0] = rows.into();
            let count = elements(&shape).unwrap();
            let first = values.len() * 1000 + 1;
            values.push((first..first + count).map(|value| value as f32).collect::<Vec<_>>());
            let request = request(&shape, Data::Raw(floats(&values[values.len() - 1]).into()));
            region.bytes().fill(0xff);
            ragged.fill(index, &request.inputs[0], Bucket { length, edge }, region.bytes()).unwrap();
        }
        let (answer, enqueued) = (tokio::sync::oneshot::channel().0, Instant::now());
        let entry = Entry {
            rows,
            length,
            spans,
            ready: true,
            answer,
            enqueued,
            deadline: None,
            account: 0,
            bytes: 0,
        };
        entries.push(entry);
    }
    let payload = Requests { id: 1, buffer, shapes: common(edge), entries, losses: 0 };
    let (rows, now) = (asked.iter().map(|(rows, _)| rows).sum(), Instant::now());
    let arrival = Arrival { rows, edge, rank: LOWEST, account: 0, now, deadline: None };
    let mut line = Line::default();
    line.open(&arrival, 64, payload);
    let mut batch = line.take(|_| true).unwrap();
    batch.rows = rows;
    (batch, values)
}

proptest! {
    #[test]
    fn a_batch_is_shortened_as_if_it_had_been_written_so(
        asked in proptest::collection::vec((1u32..4, 1u32..40, any::<bool>()), 1..6), more in 0u32..40, is_rerun: bool,
    ) {
        let ragged = Ragged { inputs: INPUTS.map(|(_, axis)| axis).into(), ..ragged(2, &[]) };
        let requests: Vec<_> = asked.iter().map(|(rows, length, _)| (*rows, *length)).collect();
        let edge = requests.iter().map(|(_, length)| length).max().unwrap() + more;
        let (mut batch, values) = batch(&ragged, &requests, edge);
        let hasher = RandomState::new();
        let digests = |batch: &Batch| -> Vec<u64> {
            let Requests { entries, .. } = &batch.payload;
            entries.iter().map(|entry| batch.payload.digest(entry, Some(&ragged), &hasher)).collect()
        };
        // Some have gone meanwhile; the first one has not.
        let gone: Vec<_> = asked.iter().enumerate().filter(|(index, ask)| *index > 0 && ask.2).collect();
        let starts: Vec<_> = gone.iter().map(|(index, _)| batch.payload.entries[*index].spans[0]).collect();
        prop_assert_eq!(batch.remove(|entry| starts.contains(&entry.spans[0])).len(), gone.len());
        let kept = || (0..asked.len()).filter(|index| !gone.iter().any(|(other, _)| other == index));
        let before = digests(&batch);
        if is_rerun {
            batch.rank = 0;
        }
        batch.shorten(&ragged);
        prop_assert_eq!(digests(&batch), before);

        let longest = kept().map(|index| requests[index].1).max().unwrap();
        let is_even = kept().all(|index| requests[index].1 == longest);
        let rounded = longest.next_multiple_of((edge / 32).max(1)).min(edge);
        let length = if is_rerun { edge } else if is_even { longest } else { rounded };
        let run = batch.payload.run(batch.rows, true, 0);
        for (input, place) in run.inputs.iter().enumerate() {
            let place = place.as_ref().unwrap();
            let mut shape = common(length)[input].clone().unwrap();
            shape[0] = batch.rows.into();
            prop_assert_eq!(&place.shape, &shape);
            let mut expected = Vec::new();
            for (entry, index) in kept().enumerate() {
                let mut own = common(requests[index].1)[input].clone().unwrap();
                own[0] = requests[index].0.into();
                let (axis, values) = (INPUTS[input].1, &values[index * INPUTS.len() + input]);
                let whole = if axis > 0 { padded(&own, axis, length.into(), values) } else { floats(values) };
                let span = batch.payload.entries[entry].spans[input];
                prop_assert_eq!(batch.payload.buffer.bytes(span), &whole[..]);
                expected.extend(whole);
            }
            let start = batch.payload.entries[0].spans[input].start;
            prop_assert_eq!(place.offset, start as u64);
            prop_assert_eq!(place.byte_len, expected.len() as u64);
            prop_assert_eq!(batch.payload.buffer.bytes(Span { start, len: expected.len() }), &expected[..]);
        }
    }

    #[test]
    fn rows_are_padded_and_cut_as_element_by_element((shape, axis, edge) in shapes(), is_json: bool) {
        let ragged = ragged(axis, &[edge]);
        let values = numbers(elements(&shape).unwrap() as i64);
        let text = format!("{values:?}");
        let data = if is_json { Data::Json(text.leak().as_bytes()) } else { Data::Raw(floats(&values).into()) };
        let request = request(&shape, data);
        let spec = spec(8, DType::Fp32, &vec![-1; shape.len()]);
        let mut checked = check(&spec, &request).unwrap();
        let bucket = Lengths::default().pad(&ragged, &mut checked, &[], 1 << 20).unwrap();
        prop_assert_eq!(bucket, Bucket { length: shape[axis] as u32, edge });

        let expected = padded(&shape, axis, edge.into(), &values);
        let mut out = vec![0xff; checked.max_bytes[0]];
        prop_assert_eq!(ragged.fill(0, &request.inputs[0], bucket, &mut out).unwrap(), out.len());
        prop_assert_eq!(&out, &expected);

        let mut padded = Shape::from_slice(&shape);
        padded[axis] = edge.into();
        let mut view = OutputView { spec: &spec.outputs[0], shape: padded, data: out[..].into() };
        ragged.cut(bucket, std::slice::from_mut(&mut view));
        prop_assert_eq!(view.shape.to_vec(), shape);
        prop_assert_eq!(view.data.to_vec(), floats(&values));
    }

    #[test]
    fn a_strided_output_keeps_what_it_has_for_the_length(length in 1u32..40, more in 0u32..40, stride in 1u32..9, add in -8i32..9) {
        let cut = Cut { axis: 1, stride, add };
        let ragged = Ragged { outputs: vec![cut], ..ragged(1, &[]) };
        let of = |length: u32| (i64::from(length) + i64::from(add)).div_euclid(stride.into()).max(0);
        let (own, whole) = (of(length), of(length + more));
        let spec = spec(8, DType::Fp32, &[-1, -1]);
        let data = floats(&numbers(2 * whole));
        let shape = Shape::from_slice(&[2, whole]);
        let mut view = OutputView { spec: &spec.outputs[0], shape, data: data[..].into() };
        ragged.cut(Bucket { length, edge: length + more }, std::slice::from_mut(&mut view));
        prop_assert_eq!(view.shape.to_vec(), vec![2, own]);
        let rows = numbers(2 * whole);
        let expected: Vec<f32> = [0, whole].iter().flat_map(|start| &rows[*start as usize..(start + own) as usize]).copied().collect();
        prop_assert_eq!(view.data.to_vec(), floats(&expected));
    }
}
