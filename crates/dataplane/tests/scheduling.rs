//! What clients see of deadlines, priorities and tenants: over real sockets, with a replica that answers when it is told.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::handshake;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lrai_dataplane::dataplane::Dataplane;
use lrai_dataplane::knobs::Knobs;
use lrai_dataplane::listen::{Running, serve};
use lrai_dataplane::models::Model;
use lrai_dataplane::proto::ModelInferRequest;
use lrai_dataplane::proto::model_infer_request::InferInputTensor;
use lrai_dataplane::stats::Refusal;
use lrai_dataplane::tensor::DType;
use prost::Message;
use serde_json::{Value, json};
use support::{attach, config, floats, spec, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway with the model `m`, whose replica tells the width of each batch and then waits for leave to answer.
struct Server {
    running: Running,
    model: Arc<Model>,
    begun: Receiver<i64>,
    leave: Sender<()>,
}

impl Server {
    fn start(settings: &Value, knobs: &str, max_queue_requests: u32) -> Self {
        let dataplane = Dataplane::new(config(settings)).unwrap();
        let running = serve(&dataplane).unwrap();
        let key = dataplane
            .add_model(lrai_dataplane::tensor::ModelSpec {
                max_queue_requests,
                ..spec(8, DType::Fp32, &[-1, -1])
            })
            .unwrap();
        dataplane.publish(key).unwrap();
        dataplane.set_knobs(key, Knobs::parse(knobs).unwrap()).unwrap();
        let ((tell, begun), (leave, left)) = (channel(), channel());
        attach(&dataplane, key, move |turn| {
            tell.send(turn.run.inputs[0].as_ref().unwrap().shape[1]).unwrap();
            let goes_on = left.recv().is_ok();
            turn.echo();
            goes_on
        });
        dataplane.ready.store(true, Relaxed);
        let model = dataplane.model("m", "").unwrap();
        wait_until("the replica is ready", || model.is_ready() && model.observe().is_none());
        Self { running, model, begun, leave }
    }

    /// Sends a request of that width and does not wait for its answer.
    fn send(&self, width: usize, parameters: &str, header: &str) -> TcpStream {
        let data = vec![1; width];
        let input = json!({ "name": "x", "datatype": "FP32", "shape": [1, width], "data": data });
        let body = format!(r#"{{"inputs":[{input}],"parameters":{{{parameters}}}}}"#);
        let mut stream = TcpStream::connect(self.running.addresses.http.as_ref().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("content-length: {}\r\n{header}", body.len());
        write!(stream, "POST /v2/models/m/infer HTTP/1.1\r\nhost: test\r\n{head}\r\n{body}").unwrap();
        stream
    }

    /// Sends a request that the queue takes, and waits until it has done so.
    fn queue(&self, width: usize, parameters: &str, header: &str) -> TcpStream {
        let before = self.pending();
        let stream = self.send(width, parameters, header);
        wait_until("the request is in the queue", || self.pending() == before + 1);
        stream
    }

    fn pending(&self) -> u32 {
        self.model.pending()
    }

    fn refused(&self, why: Refusal) -> u64 {
        self.model.stats.snapshot().refused[why as usize]
    }

    /// The width of the batch that begins next.
    fn next_width(&self) -> i64 {
        self.begun.recv_timeout(PATIENCE).unwrap()
    }

    /// A gRPC call's status, message and `retry-after`.
    async fn call(&self, header: (&str, &str)) -> (String, String, Option<String>) {
        let input = InferInputTensor {
            name: "x".into(),
            datatype: "FP32".into(),
            shape: vec![1, 2],
            ..InferInputTensor::default()
        };
        let request = ModelInferRequest {
            model_name: "m".into(),
            inputs: vec![input],
            raw_input_contents: vec![floats(&[1., 2.]).into()],
            ..ModelInferRequest::default()
        };
        let (message, mut body) = (request.encode_to_vec(), vec![0]);
        body.extend((message.len() as u32).to_be_bytes());
        body.extend(message);
        let stream = tokio::net::TcpStream::connect(self.running.addresses.grpc.as_ref().unwrap());
        let stream = TokioIo::new(stream.await.unwrap());
        let (mut client, connection) = handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://test/inference.GRPCInferenceService/ModelInfer")
            .header("content-type", "application/grpc")
            .header(header.0, header.1)
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let (head, body) = client.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap();
        let headers = body.trailers().unwrap_or(&head.headers);
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        (text("grpc-status").unwrap(), text("grpc-message").unwrap_or_default(), text("retry-after"))
    }
}

/// Status, headers and body of the one answer that comes.
fn receive(mut stream: TcpStream) -> String {
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let len = stream.read(&mut buffer).unwrap();
        answer.extend_from_slice(&buffer[..len]);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.len());
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        if len == 0 || (body.is_some() && length.map(|length| length.parse().unwrap()) == body) {
            return text;
        }
    }
}

fn assert_late(answer: &str) {
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("after its deadline, hint: "), "{answer}");
    let seconds = answer.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
    assert!((2..=7).contains(&seconds.parse::<u64>().unwrap()), "{answer}");
}

/// One batch takes 3.5 s as the queue believes, and the replica runs one.
const SLOW: &str = r#""service":[[0,1,3500000]]"#;

#[tokio::test]
async fn a_request_that_would_miss_the_goal_is_refused_over_both_faces() {
    let server = Server::start(&json!({}), &format!(r#"{{"goal_us":1,{SLOW}}}"#), 1024);
    let first = server.queue(2, "", "");
    assert_eq!(server.next_width(), 2, "nobody competes with the first one");
    assert_late(&receive(server.send(2, "", "")));
    let (status, message, retry) = server.call(("x-none", "")).await;
    assert_eq!(status, "14");
    assert!(message.contains("deadline") && message.contains("hint"), "{message}");
    assert!((2..=7).contains(&retry.unwrap().parse::<u64>().unwrap()));
    assert_eq!((server.refused(Refusal::Late), server.pending()), (2, 1));
    server.leave.send(()).unwrap();
    assert!(receive(first).starts_with("HTTP/1.1 200 OK"));
    assert_eq!(server.model.stats.snapshot().late, 1, "it missed the goal of one microsecond");
}

#[tokio::test]
async fn a_request_that_would_miss_its_own_time_is_refused_and_others_wait() {
    let server = Server::start(&json!({}), &format!("{{{SLOW}}}"), 1024);
    let first = server.queue(2, "", "");
    server.next_width();
    assert_late(&receive(server.send(2, r#""timeout":500000"#, "")));
    let (status, message, _) = server.call(("grpc-timeout", "900m")).await;
    assert_eq!(status, "14", "{message}");
    let patient = server.queue(2, r#""timeout":60000000"#, "");
    let unbound = server.queue(2, "", "");
    assert_eq!(server.refused(Refusal::Late), 2);
    (0..2).for_each(|_| server.leave.send(()).unwrap());
    for stream in [first, patient, unbound] {
        assert!(receive(stream).starts_with("HTTP/1.1 200 OK"));
    }
}

#[tokio::test]
async fn what_became_late_while_it_waited_is_refused_instead_of_computed() {
    let server = Server::start(&json!({}), "{}", 1024);
    let first = server.queue(1, "", "");
    server.next_width();
    let late = server.queue(2, r#""timeout":30000000"#, "");
    let unbound = server.queue(3, "", "");
    server.model.set_knobs(Knobs::parse(r#"{"service":[[0,1,60000000]]}"#).unwrap());
    (0..2).for_each(|_| server.leave.send(()).unwrap());
    let answer = receive(late);
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("after its deadline"), "{answer}");
    assert_eq!(server.next_width(), 3);
    for stream in [first, unbound] {
        assert!(receive(stream).starts_with("HTTP/1.1 200 OK"));
    }
    assert_eq!((server.refused(Refusal::Late), server.pending()), (1, 0));
}

#[tokio::test]
async fn priorities_decide_who_is_next() {
    let server = Server::start(&json!({}), "{}", 1024);
    let mut streams = vec![server.queue(1, "", "")];
    server.next_width();
    for (width, parameters) in [(2, ""), (3, r#""priority":2"#), (4, r#""priority":1"#)] {
        streams.push(server.queue(width, parameters, ""));
    }
    (0..4).for_each(|_| server.leave.send(()).unwrap());
    assert_eq!([4, 3, 2], [(); 3].map(|()| server.next_width()));
    for stream in streams {
        assert!(receive(stream).starts_with("HTTP/1.1 200 OK"));
    }
}

#[tokio::test]
async fn a_tenant_leaves_others_their_place_and_their_turn() {
    let server = Server::start(&json!({ "tenant_header": "X-Tenant" }), "{}", 8);
    let mut streams = vec![server.queue(1, "", "x-tenant: flood\r\n")];
    server.next_width();
    for width in [2, 3, 4] {
        streams.push(server.queue(width, "", "x-tenant: flood\r\n"));
    }
    let refused = receive(server.send(9, "", "x-tenant: flood\r\n"));
    assert!(refused.contains("this tenant holds 4 of 8 places"), "{refused}");
    let (status, message, _) = server.call(("x-tenant", "flood")).await;
    assert_eq!((status.as_str(), message.contains("tenant%20holds")), ("14", true), "{message}");
    streams.push(server.queue(5, "", "X-Tenant: other\r\n"));
    (0..5).for_each(|_| server.leave.send(()).unwrap());
    let widths = [(); 4].map(|()| server.next_width());
    assert!(widths[..2].contains(&5), "the other one does not wait for the whole flood: {widths:?}");
    for stream in streams {
        assert!(receive(stream).starts_with("HTTP/1.1 200 OK"));
    }
}
