//! HTTP/2 by prior knowledge: the same answers, gRPC on the same port, a graceful end.
#![allow(clippy::unwrap_used)]

mod support;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lrai_dataplane::dataplane::Dataplane;
use lrai_dataplane::listen::{Running, serve};
use lrai_dataplane::tensor::DType;
use serde_json::{Value, json};
use support::{attach, config, spec};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

async fn start(settings: &Value) -> (Arc<Dataplane>, Running) {
    let dataplane = Dataplane::new(config(settings)).unwrap();
    let running = serve(&dataplane).unwrap();
    let key = dataplane.add_model(spec(64, DType::Fp32, &[-1, -1])).unwrap();
    dataplane.publish(key).unwrap();
    attach(&dataplane, key, |turn| {
        turn.echo();
        true
    });
    dataplane.ready.store(true, Relaxed);
    let model = dataplane.model("m", "").unwrap();
    for _ in 0..5000 {
        if model.is_ready() {
            return (dataplane, running);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the replica is not ready after 5 s");
}

type Outgoing = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

async fn connect(address: &str) -> (SendRequest<Outgoing>, JoinHandle<hyper::Result<()>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn full(body: impl Into<Bytes>) -> Outgoing {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

fn request(method: &str, path: &str, body: Outgoing) -> Request<Outgoing> {
    let uri = format!("http://test{path}");
    Request::builder().method(method).uri(uri).version(Version::HTTP_2).body(body).unwrap()
}

fn infer(value: f32) -> Request<Outgoing> {
    let input = json!({ "name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value] });
    request("POST", "/v2/models/m/infer", full(json!({ "inputs": [input] }).to_string()))
}

async fn body<B: Body<Data = Bytes, Error: std::fmt::Debug>>(response: Response<B>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn many_streams_of_one_connection_get_their_own_answers() {
    let (_dataplane, running) = start(&json!({})).await;
    for address in [running.addresses.http.as_ref(), running.addresses.grpc.as_ref()] {
        let (sender, _) = connect(address.unwrap()).await;
        let asked = (0u8..50).map(|value| sender.clone().send_request(infer(f32::from(value))));
        let asked: Vec<_> = asked.map(tokio::spawn).collect();
        for (value, answer) in asked.into_iter().enumerate() {
            let answer = answer.await.unwrap().unwrap();
            assert_eq!(answer.status(), 200);
            let answer: Value = serde_json::from_slice(&body(answer).await).unwrap();
            assert_eq!(answer["outputs"][0]["data"], json!([value as f64]));
        }
    }
}

#[tokio::test]
async fn head_has_no_body_and_refusals_are_json() {
    let (_dataplane, running) = start(&json!({ "max_body_bytes": 1000 })).await;
    let (mut sender, _) = connect(running.addresses.http.as_ref().unwrap()).await;
    let answer = sender.send_request(request("HEAD", "/v2/health/live", full(""))).await.unwrap();
    assert_eq!((answer.status().as_u16(), body(answer).await.len()), (200, 0));
    let large = request("POST", "/v2/models/m/infer", full(vec![b' '; 2000]));
    let answer = sender.send_request(large).await.unwrap();
    assert_eq!(answer.status(), 413);
    let answer: Value = serde_json::from_slice(&body(answer).await).unwrap();
    assert!(answer["error"].as_str().unwrap().contains("maximum allowed value of 1000"));
    assert_eq!(sender.send_request(infer(1.0)).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_dribbling_stream_gets_408_and_its_neighbours_are_answered() {
    let (_dataplane, running) = start(&json!({ "body_timeout_ms": 200 })).await;
    let (mut sender, _) = connect(running.addresses.http.as_ref().unwrap()).await;
    let slow = request("POST", "/v2/models/m/infer", Silent.boxed_unsync());
    let slow = tokio::spawn(sender.send_request(slow));
    assert_eq!(sender.send_request(infer(1.0)).await.unwrap().status(), 200);
    assert_eq!(slow.await.unwrap().unwrap().status(), 408);
    assert_eq!(sender.send_request(infer(1.0)).await.unwrap().status(), 200);
}

/// A body that never comes.
struct Silent;

impl Body for Silent {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        Poll::Pending
    }
}

#[tokio::test]
async fn grpc_is_answered_on_the_http_port_too() {
    let (_dataplane, running) = start(&json!({})).await;
    let (mut sender, _) = connect(running.addresses.http.as_ref().unwrap()).await;
    let mut live = request("POST", "/inference.GRPCInferenceService/ServerLive", full(&b"\0\0\0\0\0"[..]));
    live.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let answer = sender.send_request(live).await.unwrap();
    let collected = answer.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(&collected.to_bytes()[..], b"\0\0\0\0\x02\x08\x01");
}

#[tokio::test]
async fn an_open_stream_keeps_its_connection_and_an_idle_connection_is_told_to_go() {
    let (_dataplane, running) = start(&json!({ "keep_alive_timeout_ms": 100 })).await;
    let address = running.addresses.grpc.as_ref().unwrap();
    let (mut sender, _) = connect(address).await;
    let path = "/inference.GRPCInferenceService/ModelStreamInfer";
    let mut open = request("POST", path, Silent.boxed_unsync());
    open.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let mut answer = sender.send_request(open).await.unwrap().into_body();
    let (mut other, idle) = connect(address).await;
    assert_eq!(other.send_request(infer(1.0)).await.unwrap().status(), 200);
    tokio::time::timeout(Duration::from_secs(5), idle).await.unwrap().unwrap().unwrap();
    let silence = tokio::time::timeout(Duration::from_millis(500), answer.frame()).await;
    assert!(silence.is_err(), "the stream has ended: {silence:?}");
}

#[tokio::test]
async fn draining_says_goodbye() {
    let (_dataplane, running) = start(&json!({})).await;
    let (mut sender, connection) = connect(running.addresses.http.as_ref().unwrap()).await;
    assert_eq!(sender.send_request(infer(1.0)).await.unwrap().status(), 200);
    running.drain();
    tokio::time::timeout(Duration::from_secs(5), connection).await.unwrap().unwrap().unwrap();
    assert!(sender.send_request(infer(1.0)).await.is_err());
    for _ in 0..5000 {
        if running.open_connections() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("connections are still open after 5 s");
}
