//! The gRPC face over real sockets: framing, inference, streams, Triton's extensions over both protocols.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, clippy::type_complexity)]

mod support;

use std::io::{Read, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request};
use hyper::client::conn::http2::handshake;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lrai_dataplane::dataplane::Dataplane;
use lrai_dataplane::error::Error;
use lrai_dataplane::events::Event;
use lrai_dataplane::faces::repository::IndexRow;
use lrai_dataplane::listen::{Running, serve};
use lrai_dataplane::proto::infer_parameter::ParameterChoice;
use lrai_dataplane::proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use lrai_dataplane::proto::{
    self, InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
};
use lrai_dataplane::stats::Refusal;
use lrai_dataplane::tensor::DType;
use prost::Message;
use serde_json::{Value, json};
use support::{Turn, attach, config, floats, spec, wait_until};

const SERVICE: &str = "/inference.GRPCInferenceService/";
const PATIENCE: Duration = Duration::from_secs(20);

const CONFIG: &str = r#"{"name":"m","backend":"onnxruntime","max_batch_size":64,
    "input":[{"name":"x","data_type":"TYPE_FP32","dims":[-1]}],
    "output":[{"name":"y","data_type":"TYPE_FP32","dims":[-1]}],
    "dynamic_batching":{"preferred_batch_size":[4]},"version_policy":{"specific":{"versions":[1]}}}"#;

/// A gateway with the models `m` (FP32) and `text` (BYTES), whose replicas answer with their input.
struct Server {
    running: Running,
    dataplane: Arc<Dataplane>,
}

impl Server {
    fn start(settings: Value) -> Self {
        Self::with(settings, |turn| {
            turn.echo();
            true
        })
    }

    fn with(settings: Value, turn: impl FnMut(Turn<'_>) -> bool + Send + 'static) -> Self {
        let dataplane = Dataplane::new(config(&settings)).unwrap();
        let running = serve(&dataplane).unwrap();
        let mut numbers = spec(64, DType::Fp32, &[-1, -1]);
        numbers.config = CONFIG.into();
        numbers.outputs[0].labels = vec!["zero".into(), "one".into()];
        numbers.max_output_bytes = 16 << 20;
        let mut text = spec(8, DType::Bytes, &[-1, 1]);
        text.name = "text".into();
        let key = dataplane.add_model(numbers).unwrap();
        let text_key = dataplane.add_model(text).unwrap();
        attach(&dataplane, key, turn);
        attach(&dataplane, text_key, |turn| {
            turn.echo();
            true
        });
        dataplane.publish(key).unwrap();
        dataplane.publish(text_key).unwrap();
        dataplane.ready.store(true, Relaxed);
        let server = Self { running, dataplane };
        wait_until("the replicas are ready", || {
            server.dataplane.models().iter().all(|model| model.is_ready())
        });
        server
    }

    async fn connect(&self) -> Client {
        let address = self.running.addresses.grpc.as_ref().unwrap();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Client { sender }
    }

    async fn http(&self, method: Method, path: &str, body: &str) -> (u16, Value) {
        let stream =
            tokio::net::TcpStream::connect(self.running.addresses.http.as_ref().unwrap()).await.unwrap();
        let (mut sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(format!("http://test/v2/{path}"));
        let answer = sender.send_request(request.body(body.to_owned()).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        (status, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() })
    }
}

/// A client that chooses its frames itself.
struct Client {
    sender: SendRequest<Bytes>,
}

/// How a call ended: its messages as they came, and headers and trailers together.
#[derive(Debug)]
struct Ended {
    data: Vec<u8>,
    headers: HeaderMap,
}

impl Ended {
    fn status(&self) -> i32 {
        self.headers["grpc-status"].to_str().unwrap().parse().unwrap()
    }

    fn message(&self) -> String {
        let encoded = self.headers.get("grpc-message").map_or("", |value| value.to_str().unwrap());
        let mut bytes = Vec::new();
        let mut rest = encoded.bytes();
        while let Some(byte) = rest.next() {
            if byte == b'%' {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
            } else {
                bytes.push(byte);
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    fn is(&self, code: tonic::Code, text: &str) {
        assert_eq!(self.status(), code as i32, "{self:?}");
        assert!(self.message().contains(text), "'{}' does not contain '{text}'", self.message());
    }

    fn decode<M: Message + Default>(&self) -> M {
        assert_eq!(self.status(), 0, "{}", self.message());
        let mut messages = split(&self.data);
        assert_eq!(messages.len(), 1);
        let (compressed, message) = messages.remove(0);
        assert!(!compressed);
        M::decode(message.as_slice()).unwrap()
    }
}

fn split(mut data: &[u8]) -> Vec<(bool, Vec<u8>)> {
    let mut messages = Vec::new();
    while let Some(([flag, len @ ..], rest)) = data.split_first_chunk::<5>() {
        let (message, rest) = rest.split_at(u32::from_be_bytes(*len) as usize);
        messages.push((*flag == 1, message.to_vec()));
        data = rest;
    }
    assert!(data.is_empty());
    messages
}

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut framed = vec![flag];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed
}

impl Client {
    async fn open(&mut self, path: &str, headers: &[(&str, &str)]) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request =
            Request::post(format!("http://localhost{path}")).header("content-type", "application/grpc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.sender = self.sender.clone().ready().await.unwrap();
        self.sender.send_request(request.body(()).unwrap(), false).unwrap()
    }

    /// Sends `frames` as one DATA frame each, then ends the request.
    async fn raw(&mut self, path: &str, headers: &[(&str, &str)], frames: &[&[u8]]) -> Ended {
        let (response, mut stream) = self.open(path, headers).await;
        for frame in frames {
            send(&mut stream, frame).await;
        }
        // A server that refused early may have reset the stream.
        drop(stream.send_data(Bytes::new(), true));
        ended(response).await
    }

    async fn call(&mut self, method: &str, message: &impl Message) -> Ended {
        let framed = framed(0, &message.encode_to_vec());
        self.raw(&format!("{SERVICE}{method}"), &[("te", "trailers")], &[&framed]).await
    }

    async fn infer(&mut self, request: &ModelInferRequest) -> Ended {
        self.call("ModelInfer", request).await
    }
}

async fn send(stream: &mut SendStream<Bytes>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let Some(Ok(room)) = std::future::poll_fn(|context| stream.poll_capacity(context)).await else {
            return;
        };
        let (now, later) = bytes.split_at(room.min(bytes.len()));
        if stream.send_data(Bytes::copy_from_slice(now), false).is_err() {
            return;
        }
        bytes = later;
    }
}

async fn ended(response: ResponseFuture) -> Ended {
    tokio::time::timeout(PATIENCE, async {
        let (parts, mut body) = response.await.unwrap().into_parts();
        assert_eq!(parts.status, 200);
        assert_eq!(parts.headers["content-type"], "application/grpc");
        let (mut headers, mut data) = (parts.headers, Vec::new());
        while let Some(chunk) = body.data().await {
            let chunk = chunk.unwrap();
            body.flow_control().release_capacity(chunk.len()).unwrap();
            data.extend_from_slice(&chunk);
        }
        headers.extend(body.trailers().await.unwrap().unwrap_or_default());
        Ended { data, headers }
    })
    .await
    .expect("the call ends in time")
}

/// Reads a stream's messages one by one.
struct Answers {
    body: RecvStream,
    buffer: Vec<u8>,
}

impl Answers {
    async fn of(response: ResponseFuture) -> Self {
        let response = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap();
        Self { body: response.into_body(), buffer: Vec::new() }
    }

    async fn next<M: Message + Default>(&mut self) -> M {
        loop {
            if let Some(([_, len @ ..], rest)) = self.buffer.split_first_chunk::<5>()
                && let Some(message) = rest.get(..u32::from_be_bytes(*len) as usize)
            {
                let message = message.to_vec();
                self.buffer.drain(..5 + message.len());
                return M::decode(message.as_slice()).unwrap();
            }
            let chunk = tokio::time::timeout(PATIENCE, self.body.data()).await.unwrap().unwrap().unwrap();
            self.body.flow_control().release_capacity(chunk.len()).unwrap();
            self.buffer.extend_from_slice(&chunk);
        }
    }

    async fn trailers(mut self) -> HeaderMap {
        assert!(tokio::time::timeout(PATIENCE, self.body.data()).await.unwrap().is_none());
        self.body.trailers().await.unwrap().unwrap()
    }
}

fn input(datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: "x".into(),
        datatype: datatype.into(),
        shape: shape.into(),
        ..Default::default()
    }
}

fn raw_request(values: &[f32]) -> ModelInferRequest {
    ModelInferRequest {
        model_name: "m".into(),
        inputs: vec![input("FP32", &[1, values.len() as i64])],
        raw_input_contents: vec![floats(values).into()],
        ..Default::default()
    }
}

fn typed_request(model: &str, input: InferInputTensor, contents: InferTensorContents) -> ModelInferRequest {
    let inputs = vec![InferInputTensor { contents: Some(contents), ..input }];
    ModelInferRequest { model_name: model.into(), inputs, ..Default::default() }
}

fn raw_outputs(response: &ModelInferResponse) -> Vec<&[u8]> {
    response.raw_output_contents.iter().map(AsRef::as_ref).collect()
}

#[tokio::test]
async fn an_inference_answers_raw_contents_with_the_names_of_the_request() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    let request =
        ModelInferRequest { id: "seven".into(), model_version: "1".into(), ..raw_request(&[1.0, -2.0]) };
    let response: ModelInferResponse = client.infer(&request).await.decode();
    assert_eq!((&*response.model_name, &*response.model_version, &*response.id), ("m", "1", "seven"));
    assert_eq!(raw_outputs(&response), [floats(&[1.0, -2.0])]);
    let [output] = response.outputs.as_slice() else { panic!("{response:?}") };
    assert_eq!((&*output.name, &*output.datatype, &*output.shape), ("y", "FP32", &[1, 2][..]));
    assert_eq!(output.contents, None);
}

#[tokio::test]
async fn typed_contents_are_answered_raw() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    let contents = InferTensorContents { fp32_contents: vec![0.5, 1.5, 2.5], ..Default::default() };
    let request = typed_request("m", input("FP32", &[3, 1]), contents);
    let response: ModelInferResponse = client.infer(&request).await.decode();
    assert_eq!(raw_outputs(&response), [floats(&[0.5, 1.5, 2.5])]);

    let contents = InferTensorContents {
        bytes_contents: vec![Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(&[0, 255])],
        ..Default::default()
    };
    let response: ModelInferResponse =
        client.infer(&typed_request("text", input("BYTES", &[3, 1]), contents)).await.decode();
    assert_eq!(raw_outputs(&response), [b"\x02\0\0\0ab\0\0\0\0\x02\0\0\0\0\xff"]);
}

#[tokio::test]
async fn a_tensor_without_elements_is_answered() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    for request in
        [raw_request(&[]), typed_request("m", input("FP32", &[1, 0]), InferTensorContents::default())]
    {
        let response: ModelInferResponse = client.infer(&request).await.decode();
        assert_eq!(response.outputs[0].shape, [1, 0]);
        assert_eq!(raw_outputs(&response), [b""]);
    }
}

#[tokio::test]
async fn classification_is_answered_as_text() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    let count = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(1)) };
    let mut request = raw_request(&[0.25, 4.0]);
    request.outputs = vec![InferRequestedOutputTensor {
        name: "y".into(),
        parameters: [("classification".into(), count)].into(),
    }];
    let response: ModelInferResponse = client.infer(&request).await.decode();
    assert_eq!((&*response.outputs[0].datatype, &*response.outputs[0].shape), ("BYTES", &[1, 1][..]));
    let text = String::from_utf8_lossy(&response.raw_output_contents[0][4..]).into_owned();
    assert!(text.starts_with('4') && text.ends_with(":1:one"), "{text}");
}

#[tokio::test]
async fn contents_that_do_not_fit_the_inputs_are_refused() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    let one = InferTensorContents { fp32_contents: vec![1.0], ..Default::default() };
    let mut mixed = typed_request("m", input("FP32", &[1, 1]), one.clone());
    mixed.raw_input_contents = vec![floats(&[1.0]).into()];
    let two_lists = InferTensorContents { int_contents: vec![1], ..one };
    let mut surplus = raw_request(&[1.0]);
    surplus.raw_input_contents.push(Bytes::new());
    let mut missing = raw_request(&[1.0]);
    missing.raw_input_contents.clear();
    let mut short = raw_request(&[1.0]);
    short.raw_input_contents = vec![Bytes::from_static(&[0; 3])];
    let mut unknown = raw_request(&[1.0]);
    unknown.inputs[0].datatype = "FP31".into();
    for (request, text) in [
        (mixed, "contents field must not be specified when using raw_input_contents for 'x' for model 'm'"),
        (
            typed_request("m", input("FP32", &[1, 1]), two_lists),
            "contents of more than one type for input 'x'",
        ),
        (surplus, "expected 1 raw_input_contents, one for each input, but got 2 for model 'm'"),
        (missing, "'x'"),
        (short, "input byte size mismatch for input 'x' for model 'm'. Expected 4, got 3"),
        (unknown, "unknown datatype 'FP31' of input 'x' for model 'm'"),
    ] {
        let request = ModelInferRequest { id: "9".into(), ..request };
        let ended = client.infer(&request).await;
        ended.is(tonic::Code::InvalidArgument, text);
        assert!(ended.message().starts_with("[request id: 9] "), "{}", ended.message());
        assert!(ended.data.is_empty());
    }
    let refused =
        server.dataplane.model("m", "").unwrap().stats.snapshot().refused[Refusal::Invalid as usize];
    assert_eq!(refused, 6);
}

#[tokio::test]
async fn what_does_not_exist_is_named() {
    let server = Server::start(json!({}));
    server.dataplane.repository.set_index(rows());
    let mut client = server.connect().await;
    let unknown = ModelInferRequest { model_name: "näh%".into(), ..Default::default() };
    client.infer(&unknown).await.is(tonic::Code::NotFound, "Request for unknown model: 'näh%' is not found");
    let version = ModelInferRequest { model_version: "2".into(), ..raw_request(&[1.0]) };
    client.infer(&version).await.is(tonic::Code::NotFound, "'m' version 2 is not found");
    client.call("NoSuchMethod", &()).await.is(tonic::Code::Unimplemented, "'NoSuchMethod'");
    let path = "/inference.GRPCInferenceServiceX/ModelInfer";
    client.raw(path, &[], &[]).await.is(tonic::Code::Unimplemented, path);
}

#[tokio::test]
async fn a_message_may_come_in_any_frames() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    let message = framed(0, &raw_request(&[3.0, 4.0]).encode_to_vec());
    let path = format!("{SERVICE}ModelInfer");
    for size in [1, 4, 5, 6, message.len() - 1] {
        let parts: Vec<&[u8]> = message.chunks(size).collect();
        let response: ModelInferResponse = client.raw(&path, &[], &parts).await.decode();
        assert_eq!(raw_outputs(&response), [floats(&[3.0, 4.0])]);
    }
}

#[tokio::test]
async fn broken_framing_is_refused() {
    let server = Server::start(json!({ "max_body_bytes": 10_000, "body_timeout_ms": 300 }));
    let mut client = server.connect().await;
    let good = framed(0, &raw_request(&[1.0]).encode_to_vec());
    let (mut flag, mut flagged) = (good.clone(), good.clone());
    flag[0] = 2;
    flagged[0] = 1;
    let oversize = [0, 0, 0, 0x27, 0x11];
    let twice = [good.clone(), good.clone()].concat();
    let (gzip, unknown) = ([("grpc-encoding", "gzip")], [("grpc-encoding", "snappy")]);
    let cases: [(&[(&str, &str)], &[u8], tonic::Code, &str); 9] = [
        (
            &[],
            &oversize,
            tonic::Code::ResourceExhausted,
            "10001 bytes exceeds the maximum allowed value of 10000",
        ),
        (&[], &flag, tonic::Code::Internal, "the flag 2"),
        (&[], &flagged, tonic::Code::Internal, "grpc-encoding is not set"),
        (&gzip, &flagged, tonic::Code::InvalidArgument, "cannot be unpacked"),
        (&unknown, &good, tonic::Code::Unimplemented, "'snappy' is not supported"),
        (&[], &good[..good.len() - 1], tonic::Code::Internal, "ended within a message"),
        (&[], &[], tonic::Code::Internal, "ended within a message"),
        (&[], &twice, tonic::Code::Unimplemented, "more"),
        (&[], &framed(0, b"\x07nonsense"), tonic::Code::InvalidArgument, "not a valid message"),
    ];
    for (headers, bytes, code, text) in cases {
        let ended = client.raw(&format!("{SERVICE}ModelInfer"), headers, &[bytes]).await;
        ended.is(code, text);
        assert_eq!(ended.headers["grpc-accept-encoding"], "identity,gzip,deflate");
    }
    let (response, _open) = client.open(&format!("{SERVICE}ServerLive"), &[]).await;
    ended(response).await.is(tonic::Code::DeadlineExceeded, "not complete after 300 ms");
}

#[tokio::test]
async fn messages_are_compressed_in_both_directions() {
    let server = Server::start(json!({ "max_body_bytes": 1_000_000 }));
    let mut client = server.connect().await;
    let values = vec![1.25; 40_000];
    let message = raw_request(&values).encode_to_vec();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&message).unwrap();
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(&message).unwrap();
    for (name, packed) in [("gzip", gzip.finish().unwrap()), ("deflate", zlib.finish().unwrap())] {
        for accepted in ["identity", "identity, deflate, gzip"] {
            let headers = [("grpc-encoding", name), ("grpc-accept-encoding", accepted)];
            let ended = client.raw(&format!("{SERVICE}ModelInfer"), &headers, &[&framed(1, &packed)]).await;
            assert_eq!(ended.status(), 0, "{}", ended.message());
            let (compressed, message) = split(&ended.data).remove(0);
            assert_eq!(compressed, accepted != "identity");
            assert_eq!(ended.headers.get("grpc-encoding").is_some_and(|value| value == name), compressed);
            let mut plain = Vec::new();
            match (compressed, name) {
                (false, _) => plain = message,
                (_, "gzip") => drop(GzDecoder::new(&*message).read_to_end(&mut plain).unwrap()),
                _ => drop(ZlibDecoder::new(&*message).read_to_end(&mut plain).unwrap()),
            }
            let response = ModelInferResponse::decode(&*plain).unwrap();
            assert_eq!(raw_outputs(&response), [floats(&values)]);
        }
    }
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    bomb.write_all(&vec![0; 3_000_000]).unwrap();
    let bomb = framed(1, &bomb.finish().unwrap());
    let ended = client.raw(&format!("{SERVICE}ModelInfer"), &[("grpc-encoding", "gzip")], &[&bomb]).await;
    ended.is(tonic::Code::ResourceExhausted, "maximum allowed value of 1000000 bytes");
}

#[tokio::test]
async fn a_large_message_is_answered_whole() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    let values: Vec<f32> = (0..1_000_000).map(|n| n as f32).collect();
    let response: ModelInferResponse = client.infer(&raw_request(&values)).await.decode();
    assert!(raw_outputs(&response) == [floats(&values)]);
    wait_until("the bytes in memory are given back", || server.dataplane.memory.used() == 0);
}

#[tokio::test]
async fn a_message_that_would_grow_without_end_is_refused() {
    let server = Server::start(json!({ "max_memory_bytes": 20_000_000 }));
    let mut client = server.connect().await;
    // Two bytes each: inputs, strings of typed contents, raw contents.
    let many = |field: &[u8]| field.repeat(500_000);
    let nested = |field: u8, inner: Vec<u8>| {
        let mut outer = vec![field];
        prost::encoding::encode_varint(inner.len() as u64, &mut outer);
        [outer, inner].concat()
    };
    let strings = nested(0x2a, nested(0x2a, many(b"\x42\0")));
    let numbers = nested(0x2a, nested(0x2a, nested(0x1a, many(b"\0\0\0\0\0"))));
    for message in [many(b"\x2a\0"), strings, numbers, many(b"\x3a\0")] {
        let ended = client.raw(&format!("{SERVICE}ModelInfer"), &[], &[&framed(0, &message)]).await;
        ended.is(tonic::Code::Unavailable, "of 20000000 bytes for requests in memory");
    }
    let response: ModelInferResponse = client.infer(&raw_request(&vec![0.5; 1_000_000])).await.decode();
    assert_eq!(response.raw_output_contents[0].len(), 4_000_000);
}

#[tokio::test]
async fn damaged_messages_are_answered_and_harm_nobody() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    let contents = InferTensorContents { fp32_contents: vec![1.0, 2.0], ..Default::default() };
    let typed = typed_request("m", input("FP32", &[1, 2]), contents);
    let seeds = [raw_request(&[1.0, 2.0]).encode_to_vec(), typed.encode_to_vec()];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for round in 0..600 {
        let mut message = framed(0, &seeds[round % 2]);
        for _ in 0..=random(3) {
            let at = random(message.len());
            match random(4) {
                0 => message[at] ^= 1 << random(8),
                1 => message[at] = [0, 0x7f, 0x80, 0xff][random(4)],
                2 => message.insert(at, random(256) as u8),
                _ => drop(message.remove(at)),
            }
        }
        let ended = client.raw(&format!("{SERVICE}ModelInfer"), &[], &[&message]).await;
        let refused = [3, 5, 8, 12, 13];
        assert!(ended.status() == 0 || refused.contains(&ended.status()), "{ended:?} after {message:?}");
    }
    let response: ModelInferResponse = client.infer(&raw_request(&[1.0])).await.decode();
    assert_eq!(raw_outputs(&response), [floats(&[1.0])]);
}

#[tokio::test]
async fn a_stream_whose_client_goes_is_cancelled() {
    let (server, release) = held_server();
    let mut client = server.connect().await;
    let (response, mut stream) = client.open(&format!("{SERVICE}ModelStreamInfer"), &[]).await;
    let answers = Answers::of(response).await;
    let request = framed(0, &raw_request(&[1.0]).encode_to_vec());
    let model = server.dataplane.model("m", "").unwrap();
    let pending = || model.observe().map_or(0, |observed| observed.pending);
    send(&mut stream, &request).await;
    until(|| pending() == 1).await;
    send(&mut stream, &request).await;
    until(|| pending() == 2).await;
    stream.send_reset(h2::Reason::CANCEL);
    drop(answers);
    // Each round trip lets the server's tasks hear of it from one another.
    for _ in 0..5 {
        assert_eq!(client.call("ServerLive", &()).await.status(), 0);
    }
    release.send(()).unwrap();
    until(|| pending() == 0).await;
    assert_eq!(model.stats.snapshot().execution_count, 1);
}

/// An actor that answers a batch each time that it is let.
fn held_server() -> (Server, mpsc::Sender<()>) {
    let (release, released) = mpsc::channel();
    let server = Server::with(json!({}), move |turn| {
        let goes_on = released.recv_timeout(PATIENCE).is_ok();
        turn.echo();
        goes_on
    });
    (server, release)
}

#[tokio::test]
async fn a_deadline_ends_the_call() {
    let (server, release) = held_server();
    let mut client = server.connect().await;
    let framed = framed(0, &raw_request(&[1.0]).encode_to_vec());
    let path = format!("{SERVICE}ModelInfer");
    client
        .raw(&path, &[("grpc-timeout", "50m")], &[&framed])
        .await
        .is(tonic::Code::DeadlineExceeded, "grpc-timeout");
    for wrong in ["", "5", "m", "5x", "-5m", "123456789m"] {
        let ended = client.raw(&path, &[("grpc-timeout", wrong)], &[&framed]).await;
        ended.is(tonic::Code::InvalidArgument, "is not a time");
    }
    release.send(()).unwrap();
    release.send(()).unwrap();
    let response: ModelInferResponse =
        client.raw(&path, &[("grpc-timeout", "20S")], &[&framed]).await.decode();
    assert_eq!(raw_outputs(&response), [floats(&[1.0])]);
}

#[tokio::test]
async fn a_cancelled_call_is_not_computed() {
    let (server, release) = held_server();
    let mut client = server.connect().await;
    let framed = framed(0, &raw_request(&[1.0]).encode_to_vec());
    let path = format!("{SERVICE}ModelInfer");
    let (first, mut stream) = client.open(&path, &[]).await;
    stream.send_data(Bytes::from(framed.clone()), true).unwrap();
    let model = server.dataplane.model("m", "").unwrap();
    let pending = || model.observe().map_or(0, |observed| observed.pending);
    until(|| pending() == 1).await;
    let (second, mut stream) = client.open(&path, &[]).await;
    stream.send_data(Bytes::from(framed), true).unwrap();
    until(|| pending() == 2).await;
    stream.send_reset(h2::Reason::CANCEL);
    drop(second);
    // Frames are read in order: once this is answered, the reset has been seen.
    assert_eq!(client.call("ServerLive", &()).await.status(), 0);
    release.send(()).unwrap();
    assert_eq!(ended(first).await.status(), 0);
    until(|| pending() == 0).await;
    let stats = model.stats.snapshot();
    assert_eq!((stats.inference_count, stats.cancelled), (1, 1));
}

/// Waits without blocking the test's own connection.
async fn until(mut is_so: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("after 5 s still not so");
}

#[tokio::test]
async fn a_stream_answers_each_request_and_tells_its_failures() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    let (response, mut stream) = client.open(&format!("{SERVICE}ModelStreamInfer"), &[]).await;
    let mut answers = Answers::of(response).await;
    for id in ["a", "b"] {
        let request = ModelInferRequest { id: id.into(), ..raw_request(&[2.0]) };
        send(&mut stream, &framed(0, &request.encode_to_vec())).await;
        let answer: proto::ModelStreamInferResponse = answers.next().await;
        assert_eq!(answer.error_message, "");
        let response = answer.infer_response.unwrap();
        assert_eq!((&*response.id, raw_outputs(&response)), (id, vec![&*floats(&[2.0])]));
        let last = response.parameters["triton_final_response"].parameter_choice.clone();
        assert_eq!(last, Some(ParameterChoice::BoolParam(true)));
        let request = ModelInferRequest { model_name: "none".into(), ..request };
        send(&mut stream, &framed(0, &request.encode_to_vec())).await;
        let answer: proto::ModelStreamInferResponse = answers.next().await;
        assert_eq!(answer.error_message, "Request for unknown model: 'none' is not found");
    }
    stream.send_data(Bytes::new(), true).unwrap();
    assert_eq!(answers.trailers().await["grpc-status"], "0");
}

#[tokio::test]
async fn a_stream_ends_with_a_status_if_the_client_asks_for_that() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    let headers = [("triton_grpc_error", "true")];
    let request =
        framed(0, &ModelInferRequest { model_name: "none".into(), ..Default::default() }.encode_to_vec());
    let path = format!("{SERVICE}ModelStreamInfer");
    let ended = client.raw(&path, &headers, &[&request]).await;
    ended.is(tonic::Code::NotFound, "Request for unknown model: 'none'");
    client.raw(&path, &[], &[&[3]]).await.is(tonic::Code::Internal, "ended within a message");
}

#[tokio::test]
async fn requests_of_a_stream_run_side_by_side_and_are_answered_in_their_order() {
    let (server, release) = held_server();
    let mut client = server.connect().await;
    let (response, mut stream) = client.open(&format!("{SERVICE}ModelStreamInfer"), &[]).await;
    let mut answers = Answers::of(response).await;
    let slow = ModelInferRequest { id: "slow".into(), ..raw_request(&[1.0]) };
    let contents =
        InferTensorContents { bytes_contents: vec![Bytes::from_static(b"t")], ..Default::default() };
    let fast =
        ModelInferRequest { id: "fast".into(), ..typed_request("text", input("BYTES", &[1, 1]), contents) };
    let both = [framed(0, &slow.encode_to_vec()), framed(0, &fast.encode_to_vec())].concat();
    let unknown = ModelInferRequest { model_name: "none".into(), ..slow };
    let all = [both, framed(0, &unknown.encode_to_vec())].concat();
    send(&mut stream, &all).await;
    let done = server.dataplane.model("text", "").unwrap();
    until(|| done.stats.snapshot().success.count == 1).await;
    release.send(()).unwrap();
    for id in ["slow", "fast"] {
        let answer: proto::ModelStreamInferResponse = answers.next().await;
        assert_eq!(answer.infer_response.unwrap().id, id);
    }
    let last: proto::ModelStreamInferResponse = answers.next().await;
    assert_eq!(last.error_message, "Request for unknown model: 'none' is not found");
}

#[tokio::test]
async fn the_server_and_its_models_tell_what_they_are() {
    let server = Server::start(json!({ "server_version": "9.8" }));
    let mut client = server.connect().await;
    let live: proto::ServerLiveResponse = client.call("ServerLive", &()).await.decode();
    let ready: proto::ServerReadyResponse = client.call("ServerReady", &()).await.decode();
    assert!(live.live && ready.ready);
    for (name, version, expected) in
        [("m", "", true), ("m", "1", true), ("m", "2", false), ("none", "", false)]
    {
        let request = proto::ModelReadyRequest { name: name.into(), version: version.into() };
        let answer: proto::ModelReadyResponse = client.call("ModelReady", &request).await.decode();
        assert_eq!(answer.ready, expected);
    }
    let metadata: proto::ServerMetadataResponse = client.call("ServerMetadata", &()).await.decode();
    assert_eq!((&*metadata.name, &*metadata.version), ("lrai", "9.8"));
    assert!(metadata.extensions.contains(&"statistics".to_owned()));
    let request = proto::ModelMetadataRequest { name: "m".into(), version: String::new() };
    let metadata: proto::ModelMetadataResponse = client.call("ModelMetadata", &request).await.decode();
    assert_eq!((&*metadata.platform, &*metadata.versions), ("test", &["1".to_owned()][..]));
    let [tensor] = metadata.inputs.as_slice() else { panic!("{metadata:?}") };
    assert_eq!((&*tensor.name, &*tensor.datatype, &*tensor.shape), ("x", "FP32", &[-1, -1][..]));
    server.dataplane.ready.store(false, Relaxed);
    let ready: proto::ServerReadyResponse = client.call("ServerReady", &()).await.decode();
    assert!(!ready.ready);
}

#[tokio::test]
async fn health_follows_the_server_and_its_models() {
    use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    let request = |service: &str| framed(0, &HealthCheckRequest { service: service.into() }.encode_to_vec());
    for service in ["", "inference.GRPCInferenceService", "m"] {
        let ended = client.raw("/grpc.health.v1.Health/Check", &[], &[&request(service)]).await;
        assert_eq!(ended.decode::<HealthCheckResponse>().status(), ServingStatus::Serving);
    }
    let ended = client.raw("/grpc.health.v1.Health/Check", &[], &[&request("none")]).await;
    ended.is(tonic::Code::NotFound, "no service");
    let (response, mut stream) = client.open("/grpc.health.v1.Health/Watch", &[]).await;
    stream.send_data(request("").into(), true).unwrap();
    let mut answers = Answers::of(response).await;
    assert_eq!(answers.next::<HealthCheckResponse>().await.status(), ServingStatus::Serving);
    server.dataplane.ready.store(false, Relaxed);
    assert_eq!(answers.next::<HealthCheckResponse>().await.status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn reflection_lists_the_service() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    // list_services is field 7 of a reflection request.
    let request = framed(0, b"\x3a\x01*");
    for version in ["v1", "v1alpha"] {
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        let ended = client.raw(&path, &[], &[&request]).await;
        assert_eq!(ended.status(), 0);
        let listed = String::from_utf8_lossy(&ended.data).into_owned();
        assert!(listed.contains("inference.GRPCInferenceService"), "{listed}");
    }
}

#[tokio::test]
async fn both_protocols_tell_the_same_configuration() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    let request = proto::ModelConfigRequest { name: "m".into(), version: String::new() };
    let answer: proto::ModelConfigResponse = client.call("ModelConfig", &request).await.decode();
    let config = answer.config.unwrap();
    assert_eq!((&*config.name, config.max_batch_size, config.input[0].dims[0]), ("m", 64, -1));
    assert_eq!(config.input[0].data_type(), proto::DataType::TypeFp32);
    let (status, json) = server.http(Method::GET, "models/m/versions/1/config", "").await;
    assert_eq!(
        (status, &json["max_batch_size"], &json["input"][0]["data_type"]),
        (200, &json!(64), &json!("TYPE_FP32"))
    );
    assert_eq!(json["dynamic_batching"]["preferred_batch_size"], json!([4]));
    // What was not set has its default, so that a client needs no schema.
    assert_eq!((&json["default_model_filename"], &json["cc_model_filenames"]), (&json!(""), &json!({})));
    assert_eq!(server.http(Method::GET, "models/none/config", "").await.0, 404);
    assert_eq!(server.http(Method::POST, "models/m/config", "").await.0, 405);
}

#[tokio::test]
async fn statistics_count_requests_rows_and_batches() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    let mut request = raw_request(&[1.0, 2.0, 3.0]);
    request.inputs[0].shape = vec![3, 1];
    for _ in 0..2 {
        assert_eq!(client.infer(&request).await.status(), 0);
    }
    request.inputs[0].shape = vec![4, 1];
    assert_ne!(client.infer(&request).await.status(), 0);
    let query = proto::ModelStatisticsRequest { name: "m".into(), version: "1".into() };
    let answer: proto::ModelStatisticsResponse = client.call("ModelStatistics", &query).await.decode();
    let [stats] = answer.model_stats.as_slice() else { panic!("{answer:?}") };
    assert_eq!((&*stats.name, stats.inference_count, stats.execution_count), ("m", 6, 2));
    let durations = stats.inference_stats.unwrap();
    let (success, fail, queue) =
        (durations.success.unwrap(), durations.fail.unwrap(), durations.queue.unwrap());
    assert_eq!((success.count, fail.count, queue.count), (2, 1, 2));
    assert!(success.ns >= queue.ns + durations.compute_infer.unwrap().ns);
    assert_eq!((stats.batch_stats[0].batch_size, stats.batch_stats[0].compute_infer.unwrap().count), (3, 2));

    let (code, json) = server.http(Method::GET, "models/m/stats", "").await;
    assert_eq!(code, 200);
    let json = &json["model_stats"][0];
    assert_eq!((&json["inference_count"], &json["memory_usage"]), (&json!(6), &json!([])));
    assert_eq!(json["inference_stats"]["success"], json!({ "count": 2, "ns": success.ns }));
    assert_eq!(json["response_stats"]["0"]["fail"]["count"], json!(1));
    let (_, all) = server.http(Method::GET, "models/stats", "").await;
    assert_eq!(all["model_stats"].as_array().unwrap().len(), 2);
    assert_eq!(server.http(Method::GET, "models/none/stats", "").await.0, 404);
}

fn rows() -> Vec<IndexRow> {
    let row = |name: &str, version: &str, state: &str, reason: &str| IndexRow {
        name: name.into(),
        version: version.into(),
        state: state.into(),
        reason: reason.into(),
    };
    vec![
        row("broken", "1", "UNAVAILABLE", "no such file"),
        row("idle", "", "", ""),
        row("m", "1", "READY", ""),
    ]
}

#[tokio::test]
async fn the_index_tells_every_model_or_those_that_are_ready() {
    let server = Server::start(json!({}));
    server.dataplane.repository.set_index(rows());
    let mut client = server.connect().await;
    for (ready, expected) in [(false, &["broken", "idle", "m"][..]), (true, &["m"][..])] {
        let request = proto::RepositoryIndexRequest { ready, ..Default::default() };
        let answer: proto::RepositoryIndexResponse = client.call("RepositoryIndex", &request).await.decode();
        assert_eq!(answer.models.iter().map(|row| &*row.name).collect::<Vec<_>>(), expected);
        let (_, json) =
            server.http(Method::POST, "repository/index", &json!({ "ready": ready }).to_string()).await;
        assert_eq!(json.as_array().unwrap().len(), expected.len());
    }
    let (_, json) = server.http(Method::POST, "repository/index", "").await;
    assert_eq!(
        json[0],
        json!({ "name": "broken", "version": "1", "state": "UNAVAILABLE", "reason": "no such file" })
    );
    assert_eq!(json[1], json!({ "name": "idle" }));
    let named = proto::RepositoryIndexRequest { repository_name: "r".into(), ready: false };
    let text = "'repository_name' specification is not supported";
    client.call("RepositoryIndex", &named).await.is(tonic::Code::Unimplemented, text);
    assert_eq!(server.http(Method::POST, "repository/r/index", "").await, (501, json!({ "error": text })));
    assert_eq!(server.http(Method::POST, "repository/index", "[1").await.0, 400);
    assert_eq!(server.http(Method::POST, "repository/index", r#"{"ready":1}"#).await.0, 400);
}

#[tokio::test]
async fn models_are_loaded_only_where_that_is_allowed() {
    let server = Server::start(json!({ "explicit_control": false }));
    let mut client = server.connect().await;
    let text = "explicit model load / unload is not allowed if polling is enabled";
    let load = proto::RepositoryModelLoadRequest { model_name: "m".into(), ..Default::default() };
    client.call("RepositoryModelLoad", &load).await.is(tonic::Code::Unavailable, text);
    assert_eq!(
        server.http(Method::POST, "repository/models/m/unload", "").await,
        (503, json!({ "error": text }))
    );
}

#[tokio::test]
async fn the_control_plane_answers_load_and_unload() {
    let server = Server::start(json!({ "explicit_control": true }));
    let dataplane = Arc::clone(&server.dataplane);
    let control = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < 3 {
            for event in dataplane.events.take() {
                let Event::Command { ticket, kind, model, parameters } = event else { continue };
                let outcome = if model == "no" {
                    Err(Error::not_found("failed to load 'no'"))
                } else {
                    Ok(String::new())
                };
                dataplane.repository.answer(ticket, outcome);
                seen.push((kind, model, parameters));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        seen
    });
    let mut client = server.connect().await;
    let bytes = proto::model_repository_parameter::ParameterChoice::BytesParam(Bytes::from_static(&[0, 1]));
    let file = proto::ModelRepositoryParameter { parameter_choice: Some(bytes) };
    let load = proto::RepositoryModelLoadRequest {
        model_name: "a/b".into(),
        parameters: [("file:1/model.onnx".into(), file)].into(),
        ..Default::default()
    };
    client.call("RepositoryModelLoad", &load).await.is(tonic::Code::InvalidArgument, "path traversal");
    let load = proto::RepositoryModelLoadRequest { model_name: "yes".into(), ..load };
    client.call("RepositoryModelLoad", &load).await.decode::<proto::RepositoryModelLoadResponse>();
    let body = r#"{"parameters":{"unload_dependents":true}}"#;
    assert_eq!(
        server.http(Method::POST, "repository/models/y%C3%A9s/unload", body).await,
        (200, Value::Null)
    );
    let refused = server.http(Method::POST, "repository/models/no/load", "").await;
    assert_eq!(refused, (404, json!({ "error": "failed to load 'no'" })));
    let seen = tokio::time::timeout(PATIENCE, control).await.unwrap().unwrap();
    assert_eq!(seen[0], ("load", "yes".into(), json!({ "file:1/model.onnx": "AAE=" })));
    assert_eq!(seen[1], ("unload", "yés".into(), json!({ "unload_dependents": true })));
    assert_eq!(seen[2], ("load", "no".into(), json!({})));
}

#[tokio::test]
async fn shared_memory_can_be_forgotten_but_not_registered() {
    let server = Server::start(json!({}));
    let mut client = server.connect().await;
    let disabled =
        "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.";
    for (kind, path) in [("System", "systemsharedmemory"), ("Cuda", "cudasharedmemory")] {
        for method in ["Unregister", "Status"] {
            let ended = client.call(&format!("{kind}SharedMemory{method}"), &()).await;
            assert_eq!((ended.status(), ended.data.len()), (0, 5));
        }
        client.call(&format!("{kind}SharedMemoryRegister"), &()).await.is(tonic::Code::Unavailable, disabled);
        assert_eq!(server.http(Method::POST, &format!("{path}/unregister"), "").await, (200, Value::Null));
        assert_eq!(server.http(Method::POST, &format!("{path}/region/r/unregister"), "").await.0, 200);
        assert_eq!(server.http(Method::GET, &format!("{path}/status"), "").await, (200, json!([])));
        let (status, error) = server.http(Method::GET, &format!("{path}/region/r/status"), "").await;
        let kind = kind.to_lowercase();
        let expected = format!("Unable to find {kind} shared memory region: 'r'");
        assert_eq!((status, &error["error"]), (404, &json!(expected)));
        let refused = server.http(Method::POST, &format!("{path}/region/r/register"), "{}").await;
        assert_eq!(refused, (503, json!({ "error": disabled })));
        assert_eq!(server.http(Method::POST, &format!("{path}/register"), "{}").await.0, 400);
    }
}

#[tokio::test]
async fn settings_are_told_and_changes_are_refused_openly() {
    let server = Server::start(json!({}));
    let (_, trace) = server.http(Method::GET, "trace/setting", "").await;
    assert_eq!(trace["trace_level"], json!(["OFF"]));
    let (_, log) = server.http(Method::GET, "logging", "").await;
    assert_eq!((&log["log_info"], &log["log_verbose_level"]), (&json!(true), &json!(0)));
    for (path, body, status) in [
        ("trace/setting", r#"{"trace_level":["OFF"],"trace_rate":null}"#, 200),
        ("trace/setting", r#"{"trace_level":["TIMESTAMPS"]}"#, 501),
        ("trace/setting", r#"{"trace_file":"x"}"#, 501),
        ("trace/setting", r#"{"trace_speed":"1"}"#, 400),
        ("trace/setting", "[]", 400),
        ("models/m/trace/setting", r#"{"trace_rate":"2"}"#, 501),
        ("models/none/trace/setting", "{}", 404),
        ("logging", r#"{"log_info":true}"#, 200),
        ("logging", r#"{"log_info":false}"#, 501),
        ("logging", r#"{"log_colour":true}"#, 400),
    ] {
        assert_eq!(server.http(Method::POST, path, body).await.0, status, "{path} {body}");
    }
    let mut client = server.connect().await;
    let told: proto::TraceSettingResponse = client.call("TraceSetting", &()).await.decode();
    assert_eq!(told.settings["trace_level"].value, ["OFF"]);
    let told: proto::LogSettingsResponse = client.call("LogSettings", &()).await.decode();
    let verbose = told.settings["log_verbose_level"].parameter_choice.clone().unwrap();
    assert_eq!(verbose, proto::log_settings_response::setting_value::ParameterChoice::Uint32Param(0));
    let value = proto::trace_setting_request::SettingValue { value: vec!["5".into()] };
    let request =
        proto::TraceSettingRequest { settings: [("trace_rate".into(), value)].into(), ..Default::default() };
    client.call("TraceSetting", &request).await.is(tonic::Code::Unimplemented, "it is \"1000\"");
    let quiet = proto::log_settings_request::setting_value::ParameterChoice::BoolParam(false);
    let value = proto::log_settings_request::SettingValue { parameter_choice: Some(quiet) };
    let request = proto::LogSettingsRequest { settings: [("log_error".into(), value)].into() };
    client.call("LogSettings", &request).await.is(tonic::Code::Unimplemented, "it is true");
}

#[tokio::test]
async fn a_draining_server_finishes_what_it_has() {
    let (server, release) = held_server();
    let mut client = server.connect().await;
    let (first, mut stream) = client.open(&format!("{SERVICE}ModelInfer"), &[]).await;
    stream.send_data(framed(0, &raw_request(&[1.0]).encode_to_vec()).into(), true).unwrap();
    let model = server.dataplane.model("m", "").unwrap();
    until(|| model.observe().map_or(0, |observed| observed.pending) == 1).await;
    server.running.drain();
    release.send(()).unwrap();
    assert_eq!(ended(first).await.status(), 0);
}
