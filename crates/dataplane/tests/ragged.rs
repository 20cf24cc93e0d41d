//! Requests of different lengths in one batch: padded where they are written, cut where they are read.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use lrai_dataplane::answer::{Answer, Ticket};
use lrai_dataplane::check::check;
use lrai_dataplane::dataplane::Dataplane;
use lrai_dataplane::encode::{OutputView, encode};
use lrai_dataplane::error::Code;
use lrai_dataplane::knobs::Knobs;
use lrai_dataplane::models::Model;
use lrai_dataplane::ragged::{Bucket, Cut, Lengths, Ragged};
use lrai_dataplane::request::{Data, InferRequest, Input};
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
    let asked = [(1, 3), (2, 1), (1, 4), (3, 7), (1, 8), (1, 9)];
    let tickets: Vec<_> = asked.iter().map(|(rows, length)| submit(&model, *rows, *length)).collect();
    let shapes = echo(&dataplane, key);
    for ((rows, length), ticket) in asked.into_iter().zip(tickets) {
        let expected = (vec![rows, length, 2], floats(&numbers(rows * length * 2)));
        assert_eq!(data(&ticket.answer().await.unwrap()), expected);
    }
    // The longest is beyond every edge and runs as it is.
    assert_eq!(*shapes.lock(), [[4, 4, 2], [4, 8, 2], [1, 9, 2]]);
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
    for length in [4, 1] {
        submit(&model, 1, length).answer().await.unwrap();
    }
    assert_eq!(inputs.lock()[1], floats(&[1., 2., 0., 0., 0., 0., 0., 0.]));
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
    let error = encode(&answer.model().spec, &answer.wanted, &answer.views()).unwrap_err();
    assert_eq!(error.code, Code::Internal);
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
    assert_eq!(shapes, [[1, 4, 2], [1, 8, 2], [2, 8, 2], [4, 4, 2]]);
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
    assert_eq!(*shapes.lock(), [[4, 5, 2], [2, 32, 2], [2, 64, 2]]);
    assert_eq!(model.take_lengths(), [(5, 4), (17, 2), (64, 2)]);
    assert_eq!(model.take_lengths(), []);
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

proptest! {
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

        let places = places(&shape, axis, edge.into());
        let mut expected = vec![0.0; checked.max_bytes[0] / 4];
        places.iter().zip(&values).for_each(|(place, value)| expected[*place] = *value);
        let mut out = vec![0xff; checked.max_bytes[0]];
        prop_assert_eq!(ragged.fill(0, &request.inputs[0], bucket, &mut out).unwrap(), out.len());
        prop_assert_eq!(&out, &floats(&expected));

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
