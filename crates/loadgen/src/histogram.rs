//! A log-linear histogram of nanoseconds: 128 steps per power of two, so any quantile is right within 0.4%.

const STEP_BITS: u32 = 7;
/// Longer values are counted in the last bucket (137 s); the maximum itself stays exact.
const MAX_BITS: u32 = 37;
const BUCKETS: usize = ((MAX_BITS - STEP_BITS) as usize + 1) << STEP_BITS;

/// Counts of latencies; fixed size (31 KiB), constant time per record.
#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u64]>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), count: 0, sum: 0, max: 0 }
    }
}

impl Histogram {
    /// Adds one value in nanoseconds.
    pub fn record(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds)] += 1;
        self.count += 1;
        self.sum += u128::from(nanoseconds);
        self.max = self.max.max(nanoseconds);
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Largest value, exact; 0 when empty.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Arithmetic mean, exact; 0 when empty.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }

    /// The smallest value that at least this share (0 to 1) of all values does not exceed; 0 when empty.
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = ((share * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle(index).min(self.max);
            }
        }
        self.max
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        (self.count, self.sum, self.max) = (0, 0, 0);
    }
}

fn bucket(value: u64) -> usize {
    let value = value.min((1 << MAX_BITS) - 1);
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEP_BITS + 1);
    ((shift as usize) << STEP_BITS) + (value >> shift) as usize
}

fn middle(index: usize) -> u64 {
    let shift = (index >> STEP_BITS).saturating_sub(1);
    let low = ((index - (shift << STEP_BITS)) as u64) << shift;
    low + ((1 << shift) >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_up_to_100_s_comes_back_within_half_a_percent() {
        let mut value = 1_000;
        while value < 100_000_000_000_u64 {
            let mut histogram = Histogram::default();
            histogram.record(value);
            histogram.record(u64::from(u32::MAX) * 64);
            let error = histogram.quantile(0.5).abs_diff(value) as f64 / value as f64;
            assert!(error < 0.005, "{value} came back {error} off");
            value += value / 97 + 1;
        }
    }

    #[test]
    fn quantiles_of_a_ramp_match_the_sorted_values() {
        let mut histogram = Histogram::default();
        (1..=10_000).for_each(|i| histogram.record(i * 1_000));
        for (share, expected) in [(0.5, 5_000_000.0), (0.99, 9_900_000.0), (0.999, 9_990_000.0)] {
            let got = histogram.quantile(share) as f64;
            assert!((got - expected).abs() / expected < 0.005, "{share}: {got}");
        }
        assert_eq!((histogram.max(), histogram.count()), (10_000_000, 10_000));
        assert!((histogram.mean() - 5_000_500.0).abs() < 1.0);
    }

    #[test]
    fn an_empty_histogram_and_the_extremes_stay_in_bounds() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.99), histogram.max()), (0, 0));
        histogram.record(0);
        histogram.record(u64::MAX);
        assert_eq!((histogram.quantile(0.1), histogram.max()), (0, u64::MAX));
        histogram.clear();
        assert_eq!(histogram.count(), 0);
    }
}
