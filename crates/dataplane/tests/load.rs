//! How many requests a second one gateway thread answers, with clients and a replica beside it. A measurement, not a
//! check: `cargo test --release --test load -- --ignored --nocapture`.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use lrai_dataplane::config::Config;
use lrai_dataplane::dataplane::Dataplane;
use lrai_dataplane::listen::serve;
use lrai_dataplane::tensor::DType;
use serde_json::json;
use support::{attach, floats, spec};

const WIDTH: usize = 30;
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
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let is_gateway = |task: &std::path::PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "lrai-gateway-0")
    };
    let text =
        std::fs::read_to_string(tasks.into_iter().find(is_gateway).unwrap().join("schedstat")).unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

#[test]
#[ignore = "a measurement"]
fn requests_per_second() {
    let config = Config::parse(r#"{"http_port":0,"grpc_port":0,"metrics_port":null}"#).unwrap();
    let dataplane = Dataplane::new(config).unwrap();
    let running = serve(&dataplane).unwrap();
    let key = dataplane.add_model(spec(64, DType::Fp32, &[-1, WIDTH as i64])).unwrap();
    dataplane.publish(key).unwrap();
    attach(&dataplane, key, |turn| {
        turn.echo();
        true
    });
    dataplane.ready.store(true, Relaxed);
    let model = dataplane.model("m", "").unwrap();
    while !model.is_ready() {
        std::thread::yield_now();
    }
    let address = running.addresses.http.clone().unwrap();
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
