//! How many requests a second one gateway thread answers, with clients and a replica beside it. A measurement, not a
//! check: `cargo test --release --test load -- --ignored --nocapture`.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lrai_dataplane::dataplane::Dataplane;
use lrai_dataplane::listen::{Running, serve};
use lrai_dataplane::tensor::DType;
use lrai_dataplane::wire::Place;
use serde_json::json;
use support::{attach, config, floats, spec};

const WIDTH: usize = 30;
/// As many numbers as make a JSON body of 1.6 MB.
const LARGE: usize = 200_000;
const DURATION: Duration = Duration::from_secs(3);

fn post(headers: &str, body: &[u8]) -> Vec<u8> {
    let len = body.len();
    let head =
        format!("POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn json_request() -> Vec<u8> {
    let values: Vec<f32> = (0..WIDTH).map(|value| value as f32 * 0.37).collect();
    let input = json!({ "name": "x", "shape": [1, WIDTH], "datatype": "FP32", "data": values });
    post("", json!({ "inputs": [input] }).to_string().as_bytes())
}

fn binary_request() -> Vec<u8> {
    let parameters = json!({ "binary_data_size": WIDTH * 4 });
    let input = json!({ "name": "x", "shape": [1, WIDTH], "datatype": "FP32", "parameters": parameters });
    let head = json!({ "inputs": [input], "parameters": { "binary_data_output": true } }).to_string();
    let values: Vec<f32> = (0..WIDTH).map(|value| value as f32 * 0.37).collect();
    let headers = format!("Inference-Header-Content-Length: {}\r\n", head.len());
    post(&headers, &[head.as_bytes(), &floats(&values)].concat())
}

/// Sends on every stream, then reads from every stream, until the time is over; returns the number of answers.
fn client(address: &str, connections: usize, request: &[u8]) -> u64 {
    let mut streams: Vec<_> = (0..connections).map(|_| TcpStream::connect(address).unwrap()).collect();
    let (mut answers, mut buffer, started) = (0, vec![0; 64 << 10], Instant::now());
    while started.elapsed() < DURATION {
        for stream in &mut streams {
            stream.write_all(request).unwrap();
        }
        for stream in &mut streams {
            // An answer of this size comes in one piece.
            let len = stream.read(&mut buffer).unwrap();
            assert!(
                buffer[..len].starts_with(b"HTTP/1.1 200"),
                "{}",
                String::from_utf8_lossy(&buffer[..len])
            );
            answers += 1;
        }
    }
    answers
}

/// Processor time that the gateway's thread has used: a measure that other load on the machine does not spoil.
fn gateway_seconds() -> f64 {
    // A thread that ends while the folder is read can hide others.
    let clock = (0..1000).find_map(|_| {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        let is_gateway = |task: &PathBuf| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "lrai-gateway-0")
        };
        tasks.into_iter().find(is_gateway)
    });
    let text = std::fs::read_to_string(clock.unwrap().join("schedstat")).unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn infer(width: usize, rows: usize) -> Vec<u8> {
    let values: Vec<f64> = (0..width * rows).map(|value| f64::from(value as u32) * 0.001).collect();
    let input = json!({ "name": "x", "shape": [rows, width], "datatype": "FP32", "data": values });
    post("", json!({ "inputs": [input] }).to_string().as_bytes())
}

/// A gateway with two models: `m` answers at once, `large` with the sum of its row.
fn start() -> (Running, String) {
    let dataplane = Dataplane::new(config(&json!({}))).unwrap();
    let running = serve(&dataplane).unwrap();
    for (name, width) in [("m", WIDTH), ("large", LARGE)] {
        let mut model = spec(64, DType::Fp32, &[-1, width as i64]);
        model.name = name.into();
        model.outputs[0].shape = vec![-1, -1];
        let key = dataplane.add_model(model).unwrap();
        dataplane.publish(key).unwrap();
        attach(&dataplane, key, move |turn| {
            let rows = turn.run.rows;
            if name == "m" {
                turn.echo();
            } else {
                let output = Place {
                    offset: 0,
                    byte_len: u64::from(rows) * 4,
                    shape: [rows.into(), 1].into_iter().collect(),
                };
                turn.write(0, &vec![0; rows as usize * 4]);
                turn.mailbox.done(turn.run.batch, 1000, [output]).unwrap();
            }
            true
        });
        let model = dataplane.model(name, "").unwrap();
        while !model.is_ready() {
            std::thread::yield_now();
        }
    }
    let address = running.addresses.http.clone().unwrap();
    (running, address)
}

/// Sends a small request every 2 ms; returns median and 99th percentile from the scheduled time, in milliseconds.
fn small_latencies(address: &str) -> (f64, f64) {
    let (mut stream, request, mut buffer) =
        (TcpStream::connect(address).unwrap(), json_request(), vec![0; 64 << 10]);
    stream.set_nodelay(true).unwrap();
    let (began, period) = (Instant::now(), Duration::from_millis(2));
    let mut latencies = Vec::new();
    for turn in 0.. {
        let scheduled = began + period * turn;
        if scheduled - began > DURATION {
            break;
        }
        std::thread::sleep(scheduled.saturating_duration_since(Instant::now()));
        stream.write_all(&request).unwrap();
        let len = stream.read(&mut buffer).unwrap();
        assert!(buffer[..len].starts_with(b"HTTP/1.1 200"));
        latencies.push(scheduled.elapsed().as_secs_f64() * 1e3);
    }
    latencies.sort_by(f64::total_cmp);
    (latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100])
}

#[test]
#[ignore = "a measurement"]
fn small_requests_beside_large_ones() {
    let (_running, address) = start();
    let (median, worst) = small_latencies(&address);
    println!("alone: p50 {median:.2} ms, p99 {worst:.2} ms");
    let flood: Vec<_> = (0..8)
        .map(|_| {
            let address = address.clone();
            std::thread::spawn(move || {
                let request =
                    String::from_utf8(infer(LARGE, 1)).unwrap().replace("models/m/", "models/large/");
                client(&address, 1, request.as_bytes())
            })
        })
        .collect();
    let (median, worst) = small_latencies(&address);
    let answers: u64 = flood.into_iter().map(|client| client.join().unwrap()).sum();
    let rate = answers as f64 / DURATION.as_secs_f64();
    println!("beside {rate:.0} large requests/s: p50 {median:.2} ms, p99 {worst:.2} ms");
}

#[test]
#[ignore = "a measurement"]
fn requests_per_second() {
    let (_running, address) = start();
    for (name, request) in [("json", json_request()), ("binary", binary_request())] {
        for connections in [1, 64] {
            let before = gateway_seconds();
            let answers = client(&address, connections, &request);
            let rate = answers as f64 / DURATION.as_secs_f64();
            let each = (gateway_seconds() - before) / answers as f64 * 1e6;
            println!(
                "{name}, {connections} connections: {rate:.0} requests/s, {each:.1} us of the gateway each"
            );
        }
    }
}
