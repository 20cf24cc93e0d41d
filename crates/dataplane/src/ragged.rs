//! Ragged input: requests of different lengths share a batch, each padded with zeros to the edge of its bucket, and get
//! outputs of their own length back. A request is padded where it is written and cut where it is encoded; in between,
//! the batch is one of plain tensors that are as long as the edge, and when it leaves, as the longest request in it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::check::{Checked, PerInput};
use crate::encode::OutputView;
use crate::error::Result;
use crate::fill::fill;
use crate::request::{Data, Input};
use crate::tensor::{Shape, elements};

mod batch;

/// Lengths are counted in at most so many bins.
const MAX_BINS: u32 = 2048;
/// A batch can have so many lengths up to its edge.
const STEPS: u32 = 32;

/// What a model's inputs have of different length, and how its outputs follow; made by the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ragged {
    /// For each input, the axis of its length; 0 = it has none.
    pub inputs: Vec<usize>,
    /// For each output, its axis and how long it is.
    pub outputs: Vec<Cut>,
    /// Upper edges of the buckets, ascending, until others are set.
    pub edges: Vec<u32>,
    /// No request is padded beyond this.
    pub longest: u32,
}

/// How the length of an output follows from that of the inputs: `(length + add) / stride`, rounded down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Its axis; 0 = the output does not follow.
    pub axis: usize,
    /// Positions of the input for each of the output.
    pub stride: u32,
    /// What padding and kernels of the model add to the input's length, or take from it.
    pub add: i32,
}

/// A padded request's length, and that to which it is padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its own.
    pub length: u32,
    /// The upper edge of its bucket.
    pub edge: u32,
}

impl Ragged {
    /// Gives a request the shapes and bytes of its bucket. `None` leaves it as it is: the bucket is longer than requests
    /// are padded, or its bytes are more than `max_bytes`.
    fn pad(&self, checked: &mut Checked, bucket: Bucket, max_bytes: usize) -> Option<Bucket> {
        let (length, edge) = (bucket.length as usize, bucket.edge as usize);
        let padded = |(axis, bytes): (&usize, &usize)| match axis {
            0 => Some(*bytes),
            _ => Some(bytes.checked_mul(edge)? / length),
        };
        let sizes = self.inputs.iter().zip(&checked.max_bytes).map(padded);
        let sizes = sizes.collect::<Option<PerInput<usize>>>()?;
        if bucket.edge > self.longest
            || sizes.iter().try_fold(0_usize, |sum, size| sum.checked_add(*size))? > max_bytes
        {
            return None;
        }
        checked.max_bytes = sizes;
        self.set_length(&mut checked.shapes, bucket.edge);
        Some(bucket)
    }

    /// Gives all inputs that length.
    pub fn set_length(&self, shapes: &mut PerInput<Option<Shape>>, length: u32) {
        for (axis, shape) in self.inputs.iter().zip(shapes).filter(|(axis, _)| **axis > 0) {
            if let Some(old) = shape.as_mut().and_then(|shape| shape.get_mut(*axis)) {
                *old = length.into();
            }
        }
    }

    /// The length that all inputs share, if they do and it is not 0.
    pub fn length(&self, shapes: &PerInput<Option<Shape>>) -> Option<u32> {
        let pairs = self.inputs.iter().zip(shapes).filter(|(axis, _)| **axis > 0);
        let mut lengths = pairs.filter_map(|(axis, shape)| shape.as_ref()?.get(*axis));
        let first = *lengths.next()?;
        let is_shared = lengths.all(|length| *length == first);
        u32::try_from(first).ok().filter(|length| is_shared && *length > 0)
    }

    /// A length rounded up to a multiple of a part of its edge: engines keep plans for every shape that they have seen.
    pub fn rounded(length: u32, edge: u32) -> u32 {
        length.next_multiple_of((edge / STEPS).max(1)).min(edge)
    }

    /// How many stretches along its axis the input of that index has in so many rows; `None` = it has no length.
    pub fn stretches(&self, index: usize, shape: &Shape, rows: u32) -> Option<usize> {
        let axis = self.inputs.get(index).filter(|axis| **axis > 0)?;
        Some(elements(shape.get(1..*axis)?)? * rows as usize)
    }

    /// Writes the input of that index as `fill` does, but each stretch along its axis with zeros behind it up to the edge,
    /// which takes all of `out`; returns the bytes written.
    pub fn fill(&self, index: usize, input: &Input<'_>, bucket: Bucket, out: &mut [u8]) -> Result<usize> {
        let axis = self.inputs.get(index).copied().unwrap_or(0);
        if axis == 0 || out.is_empty() {
            return fill(input, out);
        }
        let position = elements(&input.shape[axis + 1..]).unwrap_or(0) * input.datatype.size();
        let (own, whole) = (bucket.length as usize * position, bucket.edge as usize * position);
        if let Data::Raw(data) = &input.data {
            for (target, source) in out.chunks_exact_mut(whole).zip(data.chunks_exact(own)) {
                target[..own].copy_from_slice(source);
                target[own..].fill(0);
            }
            return Ok(out.len());
        }
        // JSON is decoded as one piece; the last stretch moves first, so that none is overwritten.
        let written = fill(input, out)?;
        for index in (0..written / own).rev() {
            let (start, target) = (index * own, index * whole);
            out.copy_within(start..start + own, target);
            out[target + own..target + whole].fill(0);
        }
        Ok(out.len())
    }

    /// Cuts the outputs of one request, in the order of the model, back to its own length.
    pub fn cut(&self, bucket: Bucket, views: &mut [OutputView<'_>]) {
        for (cut, view) in self.outputs.iter().zip(views).filter(|(cut, _)| cut.axis > 0) {
            cut.apply(bucket, view);
        }
    }
}

impl Cut {
    /// An output's length for that of the inputs.
    fn length(&self, length: u32) -> i64 {
        (i64::from(length) + i64::from(self.add)).div_euclid(self.stride.max(1).into()).max(0)
    }

    /// Cuts one request's part of an output. One that is not as long as it should be for the edge gets a shape that no
    /// data have, and so is not answered.
    fn apply(&self, bucket: Bucket, view: &mut OutputView<'_>) {
        let (own, whole) = (self.length(bucket.length), self.length(bucket.edge));
        let before = view.shape.get(..self.axis).and_then(elements).unwrap_or(0);
        match view.shape.get_mut(self.axis) {
            Some(length) if *length == whole => *length = own,
            _ => return view.shape = Shape::from_slice(&[-1]),
        }
        let stretch = view.data.len() / before.max(1);
        let kept = stretch / whole.max(1) as usize * own as usize;
        if kept == stretch {
            return;
        }
        view.data = match &view.data {
            Cow::Borrowed(data) if before == 1 => Cow::Borrowed(&data[..kept]),
            data => {
                let mut cut = Vec::with_capacity(before * kept);
                data.chunks_exact(stretch).for_each(|chunk| cut.extend_from_slice(&chunk[..kept]));
                cut.into()
            }
        };
    }
}

/// How many rows of a queue's requests had which length since the last look.
#[derive(Debug, Default)]
pub struct Lengths {
    counts: Vec<u64>,
}

impl Lengths {
    /// Counts a request's rows, and pads it to the least of the `edges` (ascending, empty = the model's first ones) that
    /// is not below its length.
    pub fn pad(
        &mut self,
        ragged: &Ragged,
        checked: &mut Checked,
        edges: &[u32],
        max_bytes: usize,
    ) -> Option<Bucket> {
        let length = ragged.length(&checked.shapes)?;
        let width = bin_width(ragged);
        self.counts.resize(ragged.longest.div_ceil(width) as usize + 1, 0);
        if let Some(count) = self.counts.get_mut(length.div_ceil(width) as usize) {
            *count += u64::from(checked.rows);
        }
        let edges = if edges.is_empty() { &ragged.edges } else { edges };
        let edge =
            *edges.get(edges.partition_point(|edge| *edge < length)).filter(|edge| **edge >= length)?;
        ragged.pad(checked, Bucket { length, edge }, max_bytes)
    }

    /// Takes the lengths that occurred, each with its rows; where lengths share a bin, its upper end stands for them.
    pub fn take(&mut self, ragged: &Ragged) -> Vec<(u32, u64)> {
        let bins = (0..).step_by(bin_width(ragged) as usize);
        let pairs = bins.zip(self.counts.iter_mut().map(std::mem::take));
        pairs.filter(|(_, rows)| *rows > 0).collect()
    }
}

fn bin_width(ragged: &Ragged) -> u32 {
    ragged.longest.div_ceil(MAX_BINS).max(1)
}
