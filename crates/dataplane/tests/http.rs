//! The HTTP face over real sockets: wire bytes, limits, time-outs, refusals, the end of a connection.
#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use lrai_dataplane::config::Config;
use lrai_dataplane::dataplane::Dataplane;
use lrai_dataplane::listen::{Running, serve};
use lrai_dataplane::tensor::DType;
use serde_json::{Value, json};
use support::{Turn, attach, floats, spec, wait_until};

const INFER: &str = "/v2/models/m/infer";

/// A gateway on free ports with the model `m`, whose replica answers with its input.
struct Server {
    running: Running,
    dataplane: Arc<Dataplane>,
}

impl Server {
    fn start(settings: &Value) -> Self {
        Self::with(settings, |turn| {
            turn.echo();
            true
        })
    }

    fn with(settings: &Value, turn: impl FnMut(Turn<'_>) -> bool + Send + 'static) -> Self {
        let dataplane = Dataplane::new(config(settings)).unwrap();
        let running = serve(&dataplane).unwrap();
        let key = dataplane.add_model(spec(64, DType::Fp32, &[-1, -1])).unwrap();
        dataplane.publish(key).unwrap();
        attach(&dataplane, key, turn);
        dataplane.ready.store(true, Relaxed);
        let server = Self { running, dataplane };
        wait_until("the replica is ready", || server.dataplane.model("m", "").unwrap().is_ready());
        server
    }

    fn connect(&self) -> TcpStream {
        connect(self.running.addresses.http.as_ref().unwrap())
    }

    fn get(&self, path: &str) -> Answer {
        let mut stream = self.connect();
        send(&mut stream, "GET", path, &[], b"");
        receive(&mut stream)
    }

    fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        send(&mut stream, "POST", path, headers, body);
        receive(&mut stream)
    }
}

fn config(settings: &Value) -> Config {
    let mut all = json!({ "metrics_port": 0 });
    all.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    support::config(&all)
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status and error text.
    fn error(&self) -> (u16, String) {
        assert_eq!(self.header("content-type"), Some("application/json"));
        (self.status, self.json()["error"].as_str().unwrap().to_owned())
    }
}

fn send(stream: &mut impl Write, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    if method == "POST" && !headers.iter().any(|(name, _)| *name == "Content-Length") {
        write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
    }
    head += "\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
}

fn receive(stream: &mut impl Read) -> Answer {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let pair = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    };
    let mut answer = Answer { status, headers: lines.map(pair).collect(), body: Vec::new() };
    let len: usize = answer.header("content-length").map_or(0, |len| len.parse().unwrap());
    answer.body = vec![0; len];
    stream.read_exact(&mut answer.body).unwrap();
    answer
}

fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(len) => len == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn request(rows: &Value) -> Value {
    let (height, width) = (rows.as_array().unwrap().len(), rows[0].as_array().unwrap().len());
    json!({ "inputs": [{ "name": "x", "shape": [height, width], "datatype": "FP32", "data": rows }] })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A body of the binary tensor extension that wants its output binary, and its head's length.
fn binary(width: usize) -> (Vec<u8>, String) {
    let values: Vec<f32> = (0..width).map(|value| value as f32).collect();
    let head = json!({
        "inputs": [{ "name": "x", "shape": [1, width], "datatype": "FP32",
                     "parameters": { "binary_data_size": width * 4 } }],
        "parameters": { "binary_data_output": true },
    })
    .to_string();
    let len = head.len().to_string();
    ([head.as_bytes(), &floats(&values)].concat(), len)
}

#[test]
fn json_inference_answers_with_the_models_output() {
    let server = Server::start(&json!({}));
    let mut body = request(&json!([[1.5, -2.0], [3.0, 4.25]]));
    body["id"] = json!("seven");
    let answer = server.post(INFER, &[], body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("inference-header-content-length"), None);
    let value = answer.json();
    assert_eq!((&value["model_name"], &value["id"]), (&json!("m"), &json!("seven")));
    assert_eq!(value["outputs"][0]["shape"], json!([2, 2]));
    assert_eq!(value["outputs"][0]["data"], json!([1.5, -2.0, 3.0, 4.25]));
}

#[test]
fn binary_inference_answers_with_head_and_blob_small_and_large() {
    let server = Server::start(&json!({}));
    for width in [3, 50_000] {
        let (body, len) = binary(width);
        let answer = server.post(INFER, &[("inference-header-content-length", &len)], &body);
        assert_eq!(answer.status, 200, "{:?}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        let head_len: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
        let head: Value = serde_json::from_slice(&answer.body[..head_len]).unwrap();
        assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], json!(width * 4));
        assert_eq!(answer.body[head_len..], body[len.parse::<usize>().unwrap()..]);
    }
    wait_until("all memory is given back", || server.dataplane.memory.used() == 0);
}

#[test]
fn a_head_length_that_is_none_is_refused_with_tritons_texts() {
    let server = Server::start(&json!({}));
    for (value, expected) in [
        ("many", "Unable to parse Inference-Header-Content-Length, got: many"),
        ("-1", "inference header size should be in range (0, 5), got: -1"),
        ("6", "inference header size should be in range (0, 5), got: 6"),
    ] {
        let answer = server.post(INFER, &[("Inference-Header-Content-Length", value)], b"{...}");
        assert_eq!(answer.error(), (400, expected.to_owned()));
    }
}

#[test]
fn gzip_and_deflate_are_understood_and_spoken() {
    let server = Server::start(&json!({}));
    let values: Vec<f32> = (0..1000).map(|value| value as f32).collect();
    let body = request(&json!([values])).to_string();
    let plain = server.post(INFER, &[], body.as_bytes());
    let unzip = |body: &[u8]| std::io::read_to_string(GzDecoder::new(body)).unwrap();
    let inflate = |body: &[u8]| std::io::read_to_string(ZlibDecoder::new(body)).unwrap();
    for name in ["gzip", "deflate"] {
        let packed = if name == "gzip" { gzip(body.as_bytes()) } else { zlib(body.as_bytes()) };
        let unpack = |body| if name == "gzip" { unzip(body) } else { inflate(body) };
        let answer = server.post(INFER, &[("Content-Encoding", name), ("Accept-Encoding", name)], &packed);
        assert_eq!((answer.status, answer.header("content-encoding")), (200, Some(name)));
        assert_eq!(unpack(answer.body.as_slice()).as_bytes(), plain.body);
    }
}

#[test]
fn an_unknown_content_coding_is_refused_and_told_what_is_known() {
    let server = Server::start(&json!({}));
    let answer = server.post(INFER, &[("Content-Encoding", "br")], b"{}");
    assert_eq!(answer.error(), (501, "Unsupported compression type".to_owned()));
    assert_eq!(answer.header("accept-encoding"), Some("gzip, deflate"));
    let answer = server.post(INFER, &[("Content-Encoding", "gzip")], b"no gzip");
    assert_eq!(answer.error().0, 400);
}

#[test]
fn a_body_above_the_limit_is_refused_before_it_is_read_and_the_client_sees_it() {
    let server = Server::start(&json!({ "max_body_bytes": 1000 }));
    let answer = server.post(INFER, &[], &vec![b' '; 3_000_000]);
    let (status, text) = answer.error();
    assert_eq!(status, 413);
    assert!(text.contains("3000000 bytes") && text.contains("maximum allowed value of 1000"), "{text}");

    let mut stream = server.connect();
    send(&mut stream, "POST", INFER, &[("Content-Length", "999999"), ("Expect", "100-continue")], b"");
    assert_eq!(receive(&mut stream).status, 413);

    let mut stream = server.connect();
    let chunks = format!("{:x}\r\n{}\r\n", 2000, " ".repeat(2000));
    write!(stream, "POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}").unwrap();
    assert_eq!(receive(&mut stream).error().0, 413);

    let bomb = gzip(&vec![b' '; 100_000]);
    assert!(bomb.len() < 1000);
    assert_eq!(server.post(INFER, &[("Content-Encoding", "gzip")], &bomb).error().0, 413);
}

#[test]
fn bodies_beyond_the_memory_budget_are_refused_at_once_and_others_still_answered() {
    let server = Server::start(&json!({ "max_memory_bytes": 100_000 }));
    let body = format!("{}{}", " ".repeat(200_000), request(&json!([[1.0]])));
    let answer = server.post(INFER, &[], body.as_bytes());
    assert_eq!((answer.error().0, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(server.post(INFER, &[], request(&json!([[1.0]])).to_string().as_bytes()).status, 200);
    wait_until("all memory is given back", || server.dataplane.memory.used() == 0);
}

#[test]
fn slow_headers_close_the_connection_and_slow_bodies_answer_408() {
    let server = Server::start(&json!({ "header_timeout_ms": 200, "body_timeout_ms": 200 }));
    let started = Instant::now();
    let mut silent = server.connect();
    let mut slow_header = server.connect();
    slow_header.write_all(b"GET /v2 HTTP/1.1\r\nHos").unwrap();
    let mut slow_body = server.connect();
    send(&mut slow_body, "POST", INFER, &[("Content-Length", "100")], b"{");
    assert_eq!(receive(&mut slow_body).error().0, 408);
    assert!(is_closed(&mut slow_body));
    assert!(is_closed(&mut slow_header));
    assert!(is_closed(&mut silent));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_second_request_has_no_more_time_for_its_headers_than_the_first() {
    let server = Server::start(&json!({ "header_timeout_ms": 200 }));
    let (mut idle, mut dribbling) = (server.connect(), server.connect());
    for stream in [&mut idle, &mut dribbling] {
        send(stream, "GET", "/v2/health/live", &[], b"");
        assert_eq!(receive(stream).status, 200);
    }
    dribbling.write_all(b"GET /v2 HTTP/1.1\r\nHos").unwrap();
    assert!(is_closed(&mut dribbling));
    send(&mut idle, "GET", "/v2/health/live", &[], b"");
    assert_eq!(receive(&mut idle).status, 200);
}

#[test]
fn a_connection_that_stays_idle_is_closed_and_one_that_does_not_is_kept() {
    let server = Server::start(&json!({ "keep_alive_timeout_ms": 300 }));
    let mut stream = server.connect();
    for _ in 0..5 {
        send(&mut stream, "GET", "/v2/health/live", &[], b"");
        assert_eq!(receive(&mut stream).status, 200);
        std::thread::sleep(Duration::from_millis(100));
    }
    let waiting = Instant::now();
    assert!(is_closed(&mut stream));
    assert!(waiting.elapsed() < Duration::from_secs(5));
}

#[test]
fn health_tells_the_truth_as_json() {
    let server = Server::start(&json!({}));
    assert_eq!(server.get("/v2/health/live").json(), json!({ "live": true }));
    assert_eq!(server.get("/v2/health/ready").json(), json!({ "ready": true }));
    assert_eq!(server.get("/v2/models/m/ready").json(), json!({ "name": "m", "ready": true }));
    assert_eq!(server.get("/v2/models/m/versions/1/ready").status, 200);
    server.dataplane.ready.store(false, Relaxed);
    let answer = server.get("/v2/health/ready");
    assert_eq!((answer.status, answer.json()), (400, json!({ "ready": false })));
    assert_eq!(server.get("/v2/health/live").status, 200);
}

#[test]
fn not_ready_is_503_where_load_balancers_ask() {
    let server = Server::start(&json!({ "not_ready_status": 503 }));
    server.dataplane.ready.store(false, Relaxed);
    assert_eq!(server.get("/v2/health/ready").status, 503);
}

#[test]
fn metadata_names_server_and_model() {
    let server = Server::start(&json!({ "server_version": "9.9" }));
    let value = server.get("/v2").json();
    assert_eq!((&value["name"], &value["version"]), (&json!("lrai"), &json!("9.9")));
    let tensor = |name: &str| json!([{ "name": name, "datatype": "FP32", "shape": [-1, -1] }]);
    let expected = json!({
        "name": "m", "versions": ["1"], "platform": "test", "inputs": tensor("x"), "outputs": tensor("y")
    });
    assert_eq!(server.get("/v2/models/m").json(), expected);
    assert_eq!(server.get("/v2/models/%6D/versions/1").json(), expected);
    assert_eq!(server.get("/v2/models").json(), json!({ "models": ["m"] }));
}

#[test]
fn unknown_paths_and_models_are_404_with_a_sentence() {
    let server = Server::start(&json!({}));
    for path in ["/nothing", "/v2x", "/v2/nothing", "/v2/models/m/versions/one/ready", "/v2/models/m/x"] {
        assert_eq!(server.get(path).error().0, 404, "{path}");
    }
    let unknown = "Request for unknown model: 'no one' is not found".to_owned();
    assert_eq!(server.get("/v2/models/no%20one").error(), (404, unknown.clone()));
    assert_eq!(server.post("/v2/models/no%20one/infer", &[], b"{}").error(), (404, unknown));
}

#[test]
fn names_that_climb_out_of_the_path_are_refused() {
    let server = Server::start(&json!({}));
    for name in ["..", "%2e%2e%2fetc", "a%2Fb", "a%5Cb"] {
        let (status, text) = server.get(&format!("/v2/models/{name}/ready")).error();
        assert_eq!((status, text.as_str()), (400, "model name must not contain path traversal characters"));
    }
    assert_eq!(server.get("/v2/models/%ff/ready").error().0, 400);
}

#[test]
fn a_wrong_method_is_405_and_told_the_right_one() {
    let server = Server::start(&json!({}));
    let answer = server.get(INFER);
    assert_eq!((answer.error().0, answer.header("allow")), (405, Some("POST")));
    for path in ["/v2", "/v2/models/m", "/v2/models/m/ready", "/v2/health/ready", "/metrics"] {
        let answer = server.post(path, &[], b"");
        assert_eq!((answer.error().0, answer.header("allow")), (405, Some("GET, HEAD")), "{path}");
    }
}

#[test]
fn head_answers_like_get_without_a_body() {
    let server = Server::start(&json!({}));
    let mut stream = server.connect();
    send(&mut stream, "HEAD", "/v2/health/live", &[], b"");
    send(&mut stream, "GET", "/v2/health/live", &[], b"");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200") && head.contains("content-length: 13"), "{head}");
    assert_eq!(receive(&mut stream).json(), json!({ "live": true }));
}

#[test]
fn expect_continue_is_answered_before_the_body_comes() {
    let server = Server::start(&json!({}));
    let body = request(&json!([[1.0]])).to_string();
    let mut stream = server.connect();
    let len = body.len().to_string();
    send(&mut stream, "POST", INFER, &[("Content-Length", &len), ("Expect", "100-continue")], b"");
    assert_eq!(receive(&mut stream).status, 100);
    stream.write_all(body.as_bytes()).unwrap();
    assert_eq!(receive(&mut stream).status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start(&json!({}));
    let mut stream = server.connect();
    for value in 0..20 {
        send(&mut stream, "POST", INFER, &[], request(&json!([[value]])).to_string().as_bytes());
    }
    for value in 0..20 {
        assert_eq!(receive(&mut stream).json()["outputs"][0]["data"], json!([f64::from(value)]));
    }
}

#[test]
fn a_request_whose_client_has_gone_is_cancelled_before_it_is_dispatched() {
    let (release, gate) = mpsc::channel::<()>();
    let (told, started) = mpsc::channel();
    let server = Server::with(&json!({}), move |turn| {
        told.send(turn.run.rows).unwrap();
        gate.recv().unwrap();
        turn.echo();
        true
    });
    let body = request(&json!([[1.0]])).to_string();
    let mut first = server.connect();
    send(&mut first, "POST", INFER, &[], body.as_bytes());
    assert_eq!(started.recv().unwrap(), 1);
    let mut gone = server.connect();
    send(&mut gone, "POST", INFER, &[], body.as_bytes());
    let model = server.dataplane.model("m", "").unwrap();
    wait_until("both requests are pending", || model.pending() == 2);
    let open = server.running.open_connections();
    drop(gone);
    wait_until("the connection is closed", || server.running.open_connections() < open);
    let mut last = server.connect();
    send(&mut last, "POST", INFER, &[], body.as_bytes());
    wait_until("the last request is pending", || model.pending() >= 2);
    release.send(()).unwrap();
    assert_eq!(receive(&mut first).status, 200);
    assert_eq!(started.recv().unwrap(), 1, "the cancelled row must not run");
    release.send(()).unwrap();
    assert_eq!(receive(&mut last).status, 200);
    assert_eq!(model.stats.snapshot().cancelled, 1);
}

#[test]
fn connections_above_the_limit_wait_until_one_ends() {
    let server = Server::start(&json!({ "max_connections": 2 }));
    let mut held: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for stream in &mut held {
        send(stream, "GET", "/v2/health/live", &[], b"");
        assert_eq!(receive(stream).status, 200);
    }
    let mut waiting = server.connect();
    send(&mut waiting, "GET", "/v2/health/live", &[], b"");
    waiting.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(waiting.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    let metrics = connect(server.running.addresses.metrics.as_ref().unwrap());
    let mut metrics = metrics;
    send(&mut metrics, "GET", "/metrics", &[], b"");
    assert_eq!(receive(&mut metrics).status, 200);
    drop(held.pop());
    waiting.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(receive(&mut waiting).status, 200);
}

#[test]
fn metrics_count_requests_and_the_metrics_port_shows_nothing_else() {
    let server = Server::start(&json!({}));
    server.post(INFER, &[], request(&json!([[1.0], [2.0]])).to_string().as_bytes());
    server.post(INFER, &[], b"{}");
    let mut stream = connect(server.running.addresses.metrics.as_ref().unwrap());
    send(&mut stream, "GET", "/metrics", &[], b"");
    let answer = receive(&mut stream);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = String::from_utf8(answer.body).unwrap();
    for line in [
        r#"lrai_request_duration_seconds_count{model="m",version="1"} 1"#,
        r#"lrai_inferences_total{model="m",version="1"} 2"#,
        r#"lrai_batch_rows_bucket{model="m",version="1",le="2"} 1"#,
        r#"lrai_requests_refused_total{model="m",version="1",reason="invalid"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "missing: {line}\n{text}");
    }
    send(&mut stream, "GET", "/v2", &[], b"");
    assert_eq!(receive(&mut stream).error().0, 404);
    assert!(String::from_utf8(server.get("/metrics").body).unwrap().contains("lrai_connections 1"));
}

#[test]
fn draining_closes_idle_connections_and_lets_requests_finish() {
    let (release, gate) = mpsc::channel::<()>();
    let (told, started) = mpsc::channel();
    let mut server = Server::with(&json!({}), move |turn| {
        told.send(()).unwrap();
        gate.recv().unwrap();
        turn.echo();
        true
    });
    let (mut silent, mut idle, mut busy) = (server.connect(), server.connect(), server.connect());
    send(&mut idle, "GET", "/v2/health/live", &[], b"");
    receive(&mut idle);
    send(&mut busy, "POST", INFER, &[], request(&json!([[1.0]])).to_string().as_bytes());
    started.recv().unwrap();
    server.running.drain();
    assert!(is_closed(&mut idle));
    assert!(is_closed(&mut silent));
    wait_until("only the busy one is open", || server.running.open_connections() == 1);
    let address = server.running.addresses.http.clone().unwrap();
    wait_until("nothing is accepted", || TcpStream::connect(&address).is_err());
    release.send(()).unwrap();
    let answer = receive(&mut busy);
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(is_closed(&mut busy));
    wait_until("none is open", || server.running.open_connections() == 0);
    server.running.stop();
}

#[test]
fn a_port_in_use_is_a_sentence_with_a_hint() {
    let server = Server::start(&json!({}));
    let address = server.running.addresses.http.clone().unwrap();
    let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
    for threads in [1, 2] {
        let config = config(&json!({ "http_port": port, "threads": threads }));
        let error = serve(&Dataplane::new(config).unwrap()).err().expect("the port is taken");
        assert!(error.message.starts_with(&format!("cannot listen on {address} (http)")), "{error}");
        assert!(
            error.message.ends_with("hint: choose another --http-port, or 0 for any free one"),
            "{error}"
        );
    }
}

#[test]
fn several_threads_share_one_port() {
    let server = Server::start(&json!({ "threads": 3 }));
    let body = request(&json!([[1.0]])).to_string();
    for _ in 0..50 {
        assert_eq!(server.post(INFER, &[], body.as_bytes()).status, 200);
    }
}

#[test]
fn an_ipv6_literal_is_a_host_with_and_without_brackets() {
    for host in ["::1", "[::1]"] {
        let server = Server::start(&json!({ "host": host }));
        assert!(server.running.addresses.http.as_ref().unwrap().starts_with("[::1]:"));
        assert_eq!(server.get("/v2/health/live").status, 200);
    }
}

fn socket_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("lrai-{}-{name}.sock", std::process::id()))
}

#[test]
fn a_unix_socket_replaces_a_dead_one_is_private_and_goes_at_the_end() {
    let path = socket_path("private");
    drop(UnixListener::bind(&path).unwrap());
    let mut server = Server::start(&json!({ "host": format!("unix:{}", path.display()) }));
    assert_eq!(server.running.addresses.http, None);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let mut stream = UnixStream::connect(&path).unwrap();
    send(&mut stream, "GET", "/v2/health/live", &[], b"");
    assert_eq!(receive(&mut stream).status, 200);
    let second = config(&json!({ "host": format!("unix:{}", path.display()) }));
    let error = serve(&Dataplane::new(second).unwrap()).err().expect("the socket is alive");
    assert!(error.message.ends_with("hint: another server listens there"), "{error}");
    server.running.stop();
    assert!(!path.exists());
}

#[test]
fn a_file_that_is_no_socket_is_not_replaced() {
    let path = socket_path("file");
    std::fs::write(&path, "precious").unwrap();
    let config = config(&json!({ "host": format!("unix:{}", path.display()) }));
    let error = serve(&Dataplane::new(config).unwrap()).err().expect("not a socket");
    assert!(error.message.contains("it exists and is no socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn malformed_requests_get_a_4xx_or_an_end() {
    let server = Server::start(&json!({ "header_timeout_ms": 300 }));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(2000));
    for bytes in [
        "\r\n\r\n\r\n",
        "GARBAGE\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "POST /v2 HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        "POST /v2 HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnot a frame at all, really not",
        &long,
        &many,
    ] {
        let mut stream = server.connect();
        // The server may close while we still write.
        drop(stream.write_all(bytes.as_bytes()));
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        let is_refusal = answer.starts_with(b"HTTP/1.1 4") || !answer.starts_with(b"HTTP/1.1");
        assert!(is_refusal, "{bytes:.40?} got {:.80?}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(server.get("/v2/health/live").status, 200);
}
