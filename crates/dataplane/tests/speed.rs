//! How fast the codec reads and writes: `cargo test --release --test speed -- --ignored --nocapture`.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use lrai_dataplane::check::{Wanted, WantedOutput, check};
use lrai_dataplane::encode::{OutputView, encode};
use lrai_dataplane::fill::fill;
use lrai_dataplane::request::parse_json;
use lrai_dataplane::tensor::{ModelSpec, Shape};

fn spec() -> ModelSpec {
    let tensor = |name: &str| serde_json::json!({"name": name, "datatype": "FP32", "shape": [-1, -1]});
    let spec = serde_json::json!({
        "max_batch_size": 64, "inputs": [tensor("x")], "outputs": [tensor("y")],
    });
    support::model_spec(spec)
}

/// Numbers between 0 and 1 without a pattern in their digits.
fn float(index: u32) -> f32 {
    (index.wrapping_mul(2_654_435_761) >> 8) as f32 / 16_777_216.0
}

/// Prints and returns the best of 100 short batches: other processes disturb only some of them.
fn time(what: &str, bytes: usize, rounds: u32, work: impl Fn()) -> Duration {
    let batch = |_| {
        let start = Instant::now();
        (0..rounds).for_each(|_| work());
        start.elapsed() / rounds
    };
    let best = (0..100).map(batch).min().unwrap();
    println!("{what}: {best:?} for {bytes} bytes, {:.0} MB/s", bytes as f64 / best.as_secs_f64() / 1e6);
    best
}

#[test]
#[ignore = "measures, on a release build"]
fn reading() {
    let spec = spec();
    let body = |count: u32, text: &dyn Fn(f32) -> String, comma: &str| {
        let data: Vec<_> = (0..count).map(|index| text(float(index))).collect();
        let data = data.join(comma);
        format!(r#"{{"inputs":[{{"name":"x","shape":[1,{count}],"datatype":"FP32","data":[{data}]}}]}}"#)
    };
    let bodies = [
        ("30 floats of 5 digits", body(30, &|value| format!("{value:.5}"), ","), 1_000),
        ("150,528 shortest floats", body(150_528, &|value| value.to_string(), ","), 1),
        ("150,528 floats as doubles", body(150_528, &|value| f64::from(value).to_string(), ", "), 1),
    ];
    let mut rates = Vec::new();
    for (what, body, rounds) in &bodies {
        let room = std::cell::RefCell::new(vec![0; 4 * 150_528]);
        let best = time(&format!("parse, check, fill {what}"), body.len(), *rounds, || {
            let request = parse_json(black_box(body).as_bytes()).unwrap();
            let checked = check(&spec, &request).unwrap();
            let room = &mut room.borrow_mut()[..checked.max_bytes[0]];
            black_box(fill(&request.inputs[0], room).unwrap());
        });
        rates.push(body.len() as f64 / best.as_secs_f64() / 1e6);
    }
    assert!(rates[1] > 350.0, "reads less than 350 MB/s: {rates:?}");
}

#[test]
#[ignore = "measures, on a release build"]
fn writing() {
    let spec = spec();
    for (count, rounds) in [(2_u32, 1_000), (150_528, 1)] {
        let data: Vec<u8> = (0..count).flat_map(|index| float(index + 1).to_le_bytes()).collect();
        let shape = Shape::from_slice(&[1, i64::from(count)]);
        for binary in [false, true] {
            let wanted = WantedOutput { index: 0, binary, classification: 0 };
            let wanted = Wanted { outputs: [wanted].into_iter().collect(), ..Wanted::default() };
            let view = || OutputView {
                spec: &spec.outputs[0],
                shape: shape.clone(),
                data: black_box(&data[..]).into(),
            };
            let work = || encode(&spec, &wanted, &[view()]).unwrap().body;
            let length = work().len();
            time(&format!("encode {count} floats, binary {binary}"), length, rounds, || {
                drop(black_box(work()));
            });
        }
    }
}
