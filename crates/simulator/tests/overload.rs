//! Three times more than a model can do, with a latency goal: what is admitted is answered in time, and as much of it as
//! can be done is admitted.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use lrai_dataplane::knobs::{self, Knobs};
use lrai_simulator::{Arrival, Config, Outcome, Service, Simulator};

/// Evenly spaced requests of one row each for 10 s, at three times what full batches of `max_rows` can do.
fn overload(max_rows: u32, (alpha, beta): (f64, f64), goal_us: u64, noise: f64) -> (f64, Outcome) {
    let at = |rows: u32| (0, rows, alpha + beta * f64::from(rows));
    let points = vec![at(1), at(max_rows)];
    let capacity = f64::from(max_rows) * 1e6 / (alpha + beta * f64::from(max_rows));
    let gap_ns = 1e9 / (3.0 * capacity);
    let arrivals = (0..(1e10 / gap_ns) as u64).map(|number| Arrival {
        at_ns: (number as f64 * gap_ns) as u64,
        rows: 1,
        length: 0,
    });
    let times_us = knobs::Service::try_from(points).unwrap();
    let config = Config {
        replicas: 1,
        max_rows,
        goal_us,
        warmup_s: 1.0,
        seed: 1,
        service: Service { times_us: times_us.clone(), noise, ..Service::default() },
    };
    let mut simulator = Simulator::new(config, arrivals.collect()).unwrap();
    let goal = Duration::from_micros(goal_us);
    simulator.set_knobs(Knobs { goal, slack: goal / 20, service: times_us, ..Knobs::default() });
    simulator.drain();
    let outcome = simulator.outcome();
    let in_time = (outcome.requests - outcome.misses) as f64 / outcome.seconds;
    (in_time / capacity, outcome)
}

#[test]
fn an_overloaded_transformer_still_answers_what_it_can_in_time() {
    for noise in [0.0, 0.05] {
        let (share, outcome) = overload(64, (500.0, 2800.0), 200_000, noise);
        assert!(share >= 0.95, "{share} of capacity, noise {noise}: {outcome:?}");
    }
}

#[test]
fn an_overloaded_mlp_does_not_fall_apart_into_small_batches() {
    let (share, outcome) = overload(32, (80.0, 13.0), 2_000, 0.05);
    let rows = outcome.rows as f64 / outcome.batches as f64;
    assert!(share >= 0.9 && rows >= 24.0, "{share} of capacity in batches of {rows}: {outcome:?}");
}
