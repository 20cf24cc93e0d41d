//! The classification extension: the best classes of each row as text.

use std::fmt::Display;

use crate::encode::Answered;
use crate::error::{Result, refuse};
use crate::tensor::{DType, ModelSpec, elements, push_text, with_number};

/// Most elements of a row that are ranked.
const MAX_CLASSES: usize = 1_000_000;

/// Replaces an output by the best `count` elements of each row as `BYTES`, "value:index[:label]" each.
pub(crate) fn classify(
    spec: &ModelSpec,
    labels: &[String],
    count: u32,
    output: &mut Answered<'_>,
) -> Result<()> {
    let has_rows = usize::from(spec.is_batched() && !output.shape.is_empty());
    let width = elements(&output.shape[has_rows..]).unwrap_or(0);
    let count = width.min(count as usize);
    if width > MAX_CLASSES {
        refuse!("classification output tensor too large");
    }
    let classes = with_number!(output.datatype,
        I => rank_rows(&output.data, I::from_le_bytes, width, count, labels),
        F => rank_rows(&output.data, F::from_le_bytes, width, count, labels),
        datatype => {
            refuse!("class result not available for output due to unsupported type '{}'", datatype.name());
        },
    );
    output.shape.truncate(has_rows);
    output.shape.push(count as i64);
    output.datatype = DType::Bytes;
    output.data = classes.into();
    Ok(())
}

/// The classes of each row of `width` elements of `N` bytes.
fn rank_rows<T: PartialOrd + Copy + Display, const N: usize>(
    data: &[u8],
    from_bytes: impl Fn([u8; N]) -> T,
    width: usize,
    count: usize,
    labels: &[String],
) -> Vec<u8> {
    let mut classes = Vec::new();
    for row in data.as_chunks::<N>().0.chunks_exact(width.max(1)) {
        let row: Vec<T> = row.iter().map(|bytes| from_bytes(*bytes)).collect();
        for (value, index) in rank(&row, count) {
            let label = labels.get(index).map(|label| format!(":{label}")).unwrap_or_default();
            // The precision counts for floats only.
            push_text(&mut classes, format!("{value:.6}:{index}{label}").as_bytes());
        }
    }
    classes
}

/// The largest `count` elements of a row with their indices, the largest first; NaN is the smallest.
fn rank<T: PartialOrd + Copy>(row: &[T], count: usize) -> Vec<(T, usize)> {
    let is_number = |value: &T| value.partial_cmp(value).is_some();
    let order = |(a, i): &(T, usize), (b, j): &(T, usize)| {
        let values = b.partial_cmp(a).unwrap_or_else(|| is_number(b).cmp(&is_number(a)));
        values.then(i.cmp(j))
    };
    let mut ranks: Vec<_> = row.iter().copied().zip(0..).collect();
    if count < ranks.len() {
        ranks.select_nth_unstable_by(count, order);
        ranks.truncate(count);
    }
    ranks.sort_unstable_by(order);
    ranks
}
