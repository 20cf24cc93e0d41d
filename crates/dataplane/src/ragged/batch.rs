//! A batch of padded requests: what padding all of them have in common, and what of one is not padding.

use std::hash::{BuildHasher, Hash, Hasher};

use super::Ragged;
use crate::batch::{Batch, Entry, Requests};
use crate::slab::Span;

impl Batch {
    /// Takes off the padding that all its requests have in common; call it when the batch leaves, its rows together. What
    /// has run before stays as it is.
    pub fn shorten(&mut self, ragged: &Ragged) {
        let is_rerun = self.is_rerun();
        let Requests { entries, buffer, shapes, .. } = &mut self.payload;
        let Some(edge) = ragged.length(shapes).filter(|_| !is_rerun) else { return };
        let mut lengths = entries.iter().map(|entry| if entry.length == 0 { edge } else { entry.length });
        let most = lengths.clone().max().unwrap_or(edge);
        // Equal lengths need no padding at all.
        let longest = if lengths.all(|length| length == most) { most } else { Ragged::rounded(most, edge) };
        if longest == edge {
            return;
        }
        let cut = |bytes: usize| bytes / edge as usize * longest as usize;
        for (column, shape) in shapes.iter().enumerate() {
            let count = shape.as_ref().and_then(|shape| ragged.stretches(column, shape, self.rows));
            let Some(count) = count else { continue };
            let base = entries.first().map_or(0, |entry| entry.spans[column].start);
            let used: usize = entries.iter().map(|entry| entry.spans[column].len).sum();
            let whole = used / count.max(1);
            buffer
                .pack(column, (0..count).map(|index| Span { start: base + index * whole, len: cut(whole) }));
            for span in entries.iter_mut().map(|entry| &mut entry.spans[column]) {
                *span = Span { start: base + cut(span.start - base), len: cut(span.len) };
            }
        }
        ragged.set_length(shapes, longest);
    }
}

impl Ragged {
    /// A digest of a padded request's inputs, as if they were not.
    pub(crate) fn digest(&self, requests: &Requests, entry: &Entry, hasher: &impl BuildHasher) -> u64 {
        let (mut state, mut shapes) = (hasher.build_hasher(), requests.shapes.clone());
        let edge = self.length(&shapes);
        self.set_length(&mut shapes, entry.length);
        (&shapes, entry.rows).hash(&mut state);
        for (column, (span, shape)) in entry.spans.iter().zip(&shapes).enumerate() {
            let bytes = requests.buffer.bytes(*span);
            let stretches = || {
                let count = self.stretches(column, shape.as_ref()?, entry.rows)?;
                let whole = bytes.len().checked_div(count).filter(|whole| *whole > 0)?;
                Some((whole, whole / edge? as usize * entry.length as usize))
            };
            match stretches() {
                None => bytes.hash(&mut state),
                Some((whole, own)) => {
                    bytes.chunks_exact(whole).for_each(|chunk| chunk[..own].hash(&mut state));
                }
            }
        }
        state.finish()
    }
}
