//! The simulator against closed forms of queueing theory, and its own rules.

use lrai_dataplane::knobs::{self, Knobs};
use lrai_simulator::{Arrival, Config, Outcome, Service, Simulator};

/// Poisson arrivals of one row each, from a seed.
fn poisson(rate: f64, seconds: f64, mut seed: u64) -> Vec<Arrival> {
    let (mut at, mut arrivals) = (0.0, Vec::new());
    while at < seconds {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = ((seed >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        at -= uniform.ln() / rate;
        arrivals.push(Arrival { at_ns: (at * 1e9) as u64, rows: 1, length: 0 });
    }
    arrivals
}

/// `alpha` + `beta` per row, in microseconds, undisturbed.
fn config(alpha: f64, beta: f64) -> Config {
    let times_us = knobs::Service::try_from(vec![(0, 1, alpha + beta), (0, 2, alpha + 2.0 * beta)]);
    Config {
        replicas: 1,
        max_rows: 4096,
        goal_us: 0,
        warmup_s: 1.0,
        seed: 1,
        service: Service { times_us: times_us.unwrap(), ..Service::default() },
    }
}

fn run(config: Config, knobs: Knobs, arrivals: Vec<Arrival>) -> Outcome {
    let mut simulator = Simulator::new(config, arrivals).unwrap();
    simulator.set_knobs(knobs);
    simulator.drain();
    simulator.outcome()
}

#[test]
fn without_batching_the_mean_is_that_of_an_m_d_1_queue() {
    for load in [0.2, 0.5, 0.8] {
        let outcome =
            run(config(100.0, 0.0), Knobs { cap: 1, ..Knobs::default() }, poisson(load * 1e4, 20.0, 3));
        let expected = 100.0 + load * 100.0 / (2.0 * (1.0 - load)); // Pollaczek and Khinchine
        assert!((outcome.mean_us / expected - 1.0).abs() < 0.03, "{load}: {} {expected}", outcome.mean_us);
        assert!((outcome.busy / load - 1.0).abs() < 0.03, "{load}: {}", outcome.busy);
    }
}

/// Upper bound of the mean latency of greedy batching without a limit, l(b) = alpha + beta b: Inoue, Performance Evaluation
/// 147 (2021), theorem 2.
fn inoue_us(rate_per_us: f64, alpha: f64, beta: f64) -> f64 {
    let load = rate_per_us * beta;
    let first = (beta + alpha) / (2.0 * (1.0 - load))
        * (1.0 + 2.0 * rate_per_us * alpha + (1.0 - rate_per_us * alpha) / (1.0 + load));
    let second = 1.5 * alpha / (1.0 - load) + beta / 2.0 * (load + 2.0) / (1.0 - load * load);
    first.min(second)
}

#[test]
fn greedy_batching_keeps_inoues_bound_which_is_tight() {
    for rate in [500.0, 4e3, 2e4, 5e4] {
        let outcome = run(config(80.0, 13.0), Knobs::default(), poisson(rate, 1.0 + 1e5 / rate, 5));
        let bound = inoue_us(rate / 1e6, 80.0, 13.0);
        let share = outcome.mean_us / bound;
        assert!((0.9..1.01).contains(&share), "{rate}/s: {} of {bound}", outcome.mean_us);
    }
}

#[test]
fn a_batch_waits_for_its_age_and_leaves_with_k_rows() {
    let arrivals = |times_us: &[u64]| -> Vec<Arrival> {
        times_us.iter().map(|at_us| Arrival { at_ns: at_us * 1000, rows: 1, length: 0 }).collect()
    };
    let knobs = Knobs::parse(r#"{"k":3,"tau_us":500,"work_conserving":false}"#).unwrap();
    let still = Config { warmup_s: 0.0, ..config(80.0, 13.0) };
    let old = run(still.clone(), knobs.clone(), arrivals(&[0, 100]));
    assert_eq!((old.batches, old.closed["age"], old.max_us), (1, 1, 606.0));
    let full = run(still, knobs, arrivals(&[0, 100, 200]));
    assert_eq!((full.batches, full.closed["full"], full.max_us), (1, 1, 319.0));
}

#[test]
fn what_cannot_be_in_time_is_refused_and_counts_as_a_miss() {
    let late = Knobs::parse(r#"{"goal_us":1000,"cap":1,"service":[[0,1,400.0]]}"#).unwrap();
    let config = Config { warmup_s: 0.0, goal_us: 1000, ..config(400.0, 0.0) };
    let at_once = (0..10).map(|_| Arrival { at_ns: 0, rows: 1, length: 0 }).collect();
    let outcome = run(config.clone(), late, at_once);
    assert_eq!((outcome.requests, outcome.misses, outcome.max_us), (10, 8, 800.0));
    let at_once = (0..10).map(|_| Arrival { at_ns: 0, rows: 1, length: 0 }).collect();
    let patient = run(config, Knobs { cap: 1, ..Knobs::default() }, at_once);
    assert_eq!((patient.requests, patient.misses, patient.max_us), (10, 8, 4000.0));
}

#[test]
fn lengths_share_a_batch_within_their_bucket_only() {
    let arrivals = [10, 20, 70, 30].map(|length| Arrival { at_ns: 0, rows: 1, length });
    let run_with = |text| {
        run(Config { warmup_s: 0.0, ..config(80.0, 13.0) }, Knobs::parse(text).unwrap(), arrivals.into())
    };
    assert_eq!(run_with("{}").batches, 4);
    assert_eq!(run_with(r#"{"edges":[32,128]}"#).batches, 2);
}

#[test]
fn two_replicas_halve_the_busy_share_and_time_stands_where_it_is_put() {
    let arrivals = poisson(4e3, 8.0, 9);
    let one = run(config(80.0, 13.0), Knobs { cap: 1, ..Knobs::default() }, arrivals.clone());
    let two = run(
        Config { replicas: 2, ..config(80.0, 13.0) },
        Knobs { cap: 1, ..Knobs::default() },
        arrivals.clone(),
    );
    assert!((one.busy / two.busy - 2.0).abs() < 0.01, "{} {}", one.busy, two.busy);

    let mut simulator = Simulator::new(config(80.0, 13.0), arrivals).unwrap();
    simulator.advance(0.1);
    let first = simulator.observe();
    simulator.advance(0.1);
    let second = simulator.observe();
    assert!(first.requests > 300 && second.requests > first.requests + 300);
    let batches = |counters: &[(u32, u32, u64, f64, f64)]| counters.iter().map(|row| row.2).sum::<u64>();
    assert_eq!(second.batches, batches(&first.service) + batches(&second.service));
}

#[test]
fn senseless_settings_are_refused() {
    let refused = |config: Config, arrivals: &[(u64, u32)]| {
        let arrivals = arrivals.iter().map(|(at_ns, rows)| Arrival { at_ns: *at_ns, rows: *rows, length: 0 });
        Simulator::new(config, arrivals.collect()).is_err()
    };
    let good = || config(80.0, 13.0);
    assert!(!refused(good(), &[(0, 1), (5, 4096)]));
    assert!(refused(Config { replicas: 0, ..good() }, &[]));
    assert!(refused(Config { max_rows: 0, ..good() }, &[]));
    assert!(refused(good(), &[(5, 1), (0, 1)]));
    assert!(refused(good(), &[(0, 0)]));
    assert!(refused(good(), &[(0, 4097)]));
}
