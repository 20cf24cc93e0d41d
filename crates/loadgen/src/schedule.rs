//! When requests are due: at equal distances, as a Poisson process from a seed, or at given times.

/// The instants, in nanoseconds since the start of the run, at which requests are due.
pub enum Schedule {
    /// Endless, at a rate.
    Rate(Rate),
    /// At microseconds in rising order; these are left.
    Listed(std::vec::IntoIter<u64>),
}

impl Schedule {
    /// The next instant that has not been taken.
    pub fn due(&self) -> u64 {
        match self {
            Self::Rate(rate) => rate.due(),
            Self::Listed(left) => left.as_slice().first().map_or(u64::MAX / 2, |us| us * 1000),
        }
    }

    /// Takes it.
    pub fn advance(&mut self) {
        match self {
            Self::Rate(rate) => rate.advance(),
            Self::Listed(left) => drop(left.next()),
        }
    }
}

/// Instants at equal distances, or with exponentially distributed ones.
pub struct Rate {
    interval: f64,
    random: Option<SplitMix>,
    at: f64,
    number: u64,
}

impl Rate {
    /// `rate` requests per second; with a seed, exponentially distributed gaps instead of equal ones.
    pub fn new(rate: f64, seed: Option<u64>) -> Self {
        let mut schedule = Self { interval: 1e9 / rate, random: seed.map(SplitMix), at: 0.0, number: 0 };
        if schedule.random.is_some() {
            schedule.advance();
        }
        schedule
    }

    /// The next instant that has not been taken.
    pub fn due(&self) -> u64 {
        self.at as u64
    }

    /// Takes it.
    pub fn advance(&mut self) {
        self.number += 1;
        self.at = match &mut self.random {
            // A product, not a sum: no rounding error adds up over a long run.
            None => self.number as f64 * self.interval,
            Some(random) => self.at - random.uniform().ln() * self.interval,
        };
    }
}

/// Steele, Lea and Flood's `SplitMix64`: one addition and a mix, good enough for arrival times.
pub struct SplitMix(pub u64);

impl SplitMix {
    /// In (0, 1], so that its logarithm is finite.
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instants(mut schedule: Rate, count: usize) -> Vec<u64> {
        (0..count)
            .map(|_| {
                let due = schedule.due();
                schedule.advance();
                due
            })
            .collect()
    }

    #[test]
    fn a_constant_rate_has_equal_gaps_and_does_not_drift() {
        let instants = instants(Rate::new(3.0, None), 3_000_001);
        assert_eq!(&instants[..3], &[0, 333_333_333, 666_666_666]);
        assert_eq!(instants[3_000_000], 1_000_000 * 1_000_000_000);
    }

    #[test]
    fn listed_times_come_once_and_then_nothing_is_due() {
        let mut schedule = Schedule::Listed(vec![5, 5, 9].into_iter());
        let taken = [(); 4].map(|()| {
            let due = schedule.due();
            schedule.advance();
            due
        });
        assert_eq!(taken, [5_000, 5_000, 9_000, u64::MAX / 2]);
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_an_exponential_and_repeat_by_seed() {
        let first = instants(Rate::new(10_000.0, Some(7)), 200_001);
        assert_eq!(first, instants(Rate::new(10_000.0, Some(7)), 200_001));
        assert_ne!(first, instants(Rate::new(10_000.0, Some(8)), 200_001));
        let gaps: Vec<f64> = first.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((mean / 100_000.0 - 1.0).abs() < 0.02, "mean {mean}");
        assert!((deviation / 100_000.0 - 1.0).abs() < 0.02, "deviation {deviation}");
    }
}
