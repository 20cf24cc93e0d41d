//! How long a simulated replica takes for a batch.

use std::time::Duration;

use lrai_dataplane::knobs;
use lrai_loadgen::SplitMix;
use serde::Deserialize;

/// Measured or made-up service times, and what disturbs them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// `(edge, rows, us)`, as the knobs tell them; 0 = without a length.
    pub times_us: knobs::Service,
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
        if self.times_us.predict(0, 1).is_none() {
            return Err("there are no service times".into());
        }
        let factors = self.slowdowns.iter().map(|slowdown| slowdown.2);
        let mut disturbances = factors.chain([1.0 + self.noise, 1.0 + self.spike.1]);
        if disturbances.any(|factor| !(1e-3..1e9).contains(&factor)) {
            return Err("a disturbance is not a positive number".into());
        }
        Ok(())
    }

    /// Nanoseconds for so many rows of a length, in a batch that begins at `now_s`; at least one.
    pub fn draw_ns(&self, length: u32, rows: u32, now_s: f64, random: &mut SplitMix) -> u64 {
        let disturbed = self.slowdowns.iter().filter(|(from, to, _)| (*from..*to).contains(&now_s));
        let factor: f64 = disturbed.map(|(.., factor)| factor).product();
        let noise = if self.noise > 0.0 { (1.0 + self.noise * normal(random)).max(0.1) } else { 1.0 };
        let is_spike = self.spike.0 > 0.0 && random.uniform() <= self.spike.0;
        let spike_ns = if is_spike { self.spike.1 * 1e3 } else { 0.0 };
        let mean = self.times_us.predict(length, rows).unwrap_or(Duration::ZERO);
        ((mean.as_nanos() as f64 * noise * factor + spike_ns) as u64).max(1)
    }
}

/// Standard normal (Box and Muller).
fn normal(random: &mut SplitMix) -> f64 {
    (-2.0 * random.uniform().ln()).sqrt() * (std::f64::consts::TAU * random.uniform()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affine() -> Service {
        let times_us = knobs::Service::try_from(vec![(0, 1, 93.0), (0, 32, 496.0)]).unwrap();
        Service { times_us, ..Service::default() }
    }

    #[test]
    fn noise_keeps_the_mean_spikes_add_and_a_neighbour_slows_down() {
        let mean = |service: &Service, now_s| {
            let mut random = SplitMix(7);
            (0..20_000).map(|_| service.draw_ns(0, 1, now_s, &mut random) as f64).sum::<f64>() / 20_000e3
        };
        let noisy = Service { noise: 0.1, slowdowns: vec![(1.0, 2.0, 3.0)], ..affine() };
        assert!((mean(&noisy, 0.0) / 93.0 - 1.0).abs() < 0.01, "{}", mean(&noisy, 0.0));
        assert!((mean(&noisy, 1.5) / 279.0 - 1.0).abs() < 0.01, "{}", mean(&noisy, 1.5));
        let spiky = Service { spike: (0.1, 300.0), ..affine() };
        assert!((mean(&spiky, 0.0) / 123.0 - 1.0).abs() < 0.02, "{}", mean(&spiky, 0.0));
    }

    #[test]
    fn senseless_disturbances_are_refused() {
        assert_eq!(affine().check(), Ok(()));
        assert!(Service::default().check().is_err());
        assert!(Service { noise: f64::NAN, ..affine() }.check().is_err());
        assert!(Service { slowdowns: vec![(0.0, 1.0, 0.0)], ..affine() }.check().is_err());
    }
}
