//! How long a simulated replica takes for a batch.

use serde::Deserialize;

/// Measured or made-up service times, and what disturbs them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// `(edge, rows, us)` by edge, then rows: linear between the rows of one edge and beyond the last two. Edge 0 stands
    /// for requests without a length; a batch takes the least edge that is not below its own, else the greatest.
    pub times_us: Vec<(u32, u32, f64)>,
    /// Standard deviation of a factor with mean 1 on each batch.
    #[serde(default)]
    pub noise: f64,
    /// `(probability, us)` of an additional delay of a batch.
    #[serde(default)]
    pub spike: (f64, f64),
    /// `(from_s, to_s, factor)`: batches that begin meanwhile take that much longer, as beside another tenant.
    #[serde(default)]
    pub slowdowns: Vec<(f64, f64, f64)>,
}

impl Service {
    /// Refuses times that no replica can have.
    pub fn check(&self) -> Result<(), String> {
        if self.times_us.is_empty() {
            return Err("there are no service times".into());
        }
        if self.times_us.iter().any(|(_, rows, us)| *rows == 0 || !us.is_finite() || *us <= 0.0) {
            return Err("a service time is not above 0 or for no row".into());
        }
        if !self.times_us.is_sorted_by(|a, b| (a.0, a.1) < (b.0, b.1)) {
            return Err("service times do not rise by edge, then rows".into());
        }
        let factors = self.slowdowns.iter().map(|slowdown| slowdown.2);
        if factors.chain([1.0 + self.noise, 1.0 + self.spike.1]).any(|factor| !(1e-3..1e9).contains(&factor)) {
            return Err("a disturbance is not a positive number".into());
        }
        Ok(())
    }

    /// Microseconds for so many rows padded to an edge, undisturbed.
    pub fn mean_us(&self, edge: u32, rows: u32) -> f64 {
        let edges = || self.times_us.iter().map(|(edge, ..)| *edge);
        let edge = edges().find(|known| *known >= edge).or_else(|| edges().next_back());
        let start = self.times_us.partition_point(|(known, ..)| Some(*known) < edge);
        let end = self.times_us.partition_point(|(known, ..)| Some(*known) <= edge);
        let curve = &self.times_us[start..end];
        let above = curve.partition_point(|(_, known, _)| *known < rows).clamp(1, (curve.len() - 1).max(1));
        let [(_, low, from), .., (_, high, to)] = curve[above - 1..(above + 1).min(curve.len())] else {
            return curve[0].2;
        };
        from + (to - from) * (f64::from(rows) - f64::from(low)) / f64::from(high - low)
    }

    /// Nanoseconds for a batch that begins at `now_s`.
    pub fn draw_ns(&self, edge: u32, rows: u32, now_s: f64, random: &mut Random) -> u64 {
        let disturbed = self.slowdowns.iter().filter(|(from, to, _)| (*from..*to).contains(&now_s));
        let factor: f64 = disturbed.map(|(.., factor)| factor).product();
        let noise = (1.0 + self.noise * random.normal()).max(0.1);
        let spike = if random.uniform() <= self.spike.0 { self.spike.1 } else { 0.0 };
        ((self.mean_us(edge, rows).max(0.001) * noise * factor + spike) * 1e3) as u64
    }
}

/// Steele, Lea and Flood's `SplitMix64`.
pub struct Random(pub u64);

impl Random {
    /// In (0, 1], so that its logarithm is finite.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Standard normal (Box and Muller).
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affine() -> Service {
        Service { times_us: vec![(0, 1, 93.0), (0, 32, 496.0)], ..Service::default() }
    }

    #[test]
    fn times_are_linear_between_and_beyond_the_known_rows() {
        let service = affine();
        let ask = |rows| (service.mean_us(0, rows) * 10.0).round() / 10.0;
        assert_eq!([ask(1), ask(2), ask(32), ask(64)], [93.0, 106.0, 496.0, 912.0]);
        let one = Service { times_us: vec![(0, 4, 50.0)], ..Service::default() };
        assert_eq!([one.mean_us(0, 1), one.mean_us(0, 9)], [50.0, 50.0]);
    }

    #[test]
    fn a_batch_takes_the_next_edge_and_else_the_greatest() {
        let times_us = vec![(64, 1, 10.0), (64, 2, 20.0), (128, 1, 30.0), (128, 2, 60.0)];
        let service = Service { times_us, ..Service::default() };
        assert_eq!([64, 65, 128, 500].map(|edge| service.mean_us(edge, 2)), [20.0, 60.0, 60.0, 60.0]);
    }

    #[test]
    fn noise_keeps_the_mean_and_a_neighbour_slows_down() {
        let service = Service { noise: 0.1, slowdowns: vec![(1.0, 2.0, 3.0)], ..affine() };
        let mean = |now_s| {
            let mut random = Random(7);
            (0..20_000).map(|_| service.draw_ns(0, 1, now_s, &mut random) as f64).sum::<f64>() / 20_000e3
        };
        assert!((mean(0.0) / 93.0 - 1.0).abs() < 0.01, "{}", mean(0.0));
        assert!((mean(1.5) / 279.0 - 1.0).abs() < 0.01, "{}", mean(1.5));
    }

    #[test]
    fn senseless_times_are_refused() {
        for times_us in [vec![], vec![(0, 0, 1.0)], vec![(0, 1, f64::NAN)], vec![(0, 2, 1.0), (0, 1, 1.0)]] {
            assert!(Service { times_us, ..Service::default() }.check().is_err());
        }
        assert_eq!(affine().check(), Ok(()));
    }
}
