//! Marks answers whose inputs lie outside of what was proved about the model: a proof says nothing about them.

use serde::Deserialize;

use crate::check::PerInput;
use crate::tensor::{DType, ModelSpec};

/// The parameter of a response that tells whether a proof covers its inputs.
pub const PARAMETER: &str = "lrai_covered";

/// The same as a field of a gRPC response: false and true.
pub const FIELDS: [&[u8]; 2] =
    [b"\x0a\x0clrai_covered\x12\x02\x08\x00", b"\x0a\x0clrai_covered\x12\x02\x08\x01"];

/// A box of inputs that a proof covers; an element for each of a row's, all inputs one after the other.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct GuardBox {
    /// The least values.
    pub lower: Vec<f64>,
    /// The greatest.
    pub upper: Vec<f64>,
}

/// Whether every row lies in one of the model's boxes; `None` for a model without. `inputs` are the bytes of each input.
pub fn covers(spec: &ModelSpec, rows: u32, inputs: &PerInput<&[u8]>) -> Option<bool> {
    if spec.guard.is_empty() {
        return None;
    }
    let rows = rows as usize;
    let is_float = spec.inputs.iter().all(|input| input.datatype == DType::Fp32);
    Some(is_float && (0..rows).all(|row| spec.guard.iter().any(|guard| guard.has(inputs, row, rows))))
}

impl GuardBox {
    fn has(&self, inputs: &PerInput<&[u8]>, row: usize, rows: usize) -> bool {
        let mut bounds = self.lower.iter().zip(&self.upper);
        let parts =
            inputs.iter().map(|bytes| &bytes[bytes.len() / rows * row..bytes.len() / rows * (row + 1)]);
        let is_inside = parts.flat_map(|part| part.as_chunks::<4>().0).all(|value| {
            let value = f64::from(f32::from_le_bytes(*value));
            // What is not a number is in no box.
            bounds.next().is_some_and(|(lower, upper)| *lower <= value && value <= *upper)
        });
        is_inside && bounds.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_in_a_box_with_all_its_elements() {
        let guard = GuardBox { lower: vec![0.0, -1.0], upper: vec![1.0, 1.0] };
        let bytes =
            |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
        for (values, expected) in [
            (&[0.0, 1.0][..], true),
            (&[0.5, 1.5], false),
            (&[f32::NAN, 0.0], false),
            (&[0.5], false),
            (&[0.5, 0.5, 0.5], false),
        ] {
            let bytes = bytes(values);
            let inputs: PerInput<&[u8]> = [&bytes[..]].into_iter().collect();
            assert_eq!(guard.has(&inputs, 0, 1), expected, "{values:?}");
        }
        let two = bytes(&[0.5, 0.5, 2.0, 0.0]);
        let inputs: PerInput<&[u8]> = [&two[..]].into_iter().collect();
        assert!(guard.has(&inputs, 0, 2) && !guard.has(&inputs, 1, 2));
    }
}
