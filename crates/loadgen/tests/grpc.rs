//! The gRPC client against the h2 crate: a server that we did not write.
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use lrai_loadgen::{Config, Progress, Protocol, Report, run};
use support::config;

const PATH: &str = "/inference.GRPCInferenceService/ModelInfer";

/// What the server does with a call, chosen by the first byte of its message.
#[derive(Clone, Copy)]
enum Act {
    Answer(usize),
    Status(&'static str, &'static str),
    TrailersOnly,
    NoStatus,
    Http404,
    Reset,
}

struct Server {
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Serves calls; after `calls_per_connection` of them it says goodbye. Small windows make flow control work.
fn serve(act: Act, calls_per_connection: usize, window: u32) -> Server {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build().expect("a runtime");
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let address = listener.local_addr().expect("bound");
    runtime.spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                builder.initial_window_size(window).initial_connection_window_size(window.max(65_535));
                let Ok(mut connection) = builder.handshake::<_, Bytes>(socket).await else { return };
                let mut calls = 0;
                while let Some(Ok((request, respond))) = connection.accept().await {
                    calls += 1;
                    tokio::spawn(answer(request, respond, act));
                    if calls == calls_per_connection {
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    Server { address, runtime: Some(runtime) }
}

async fn answer(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>, act: Act) {
    let headers = request.headers();
    let is_grpc = request.uri().path() == PATH
        && request.method() == "POST"
        && headers["content-type"] == "application/grpc"
        && headers["te"] == "trailers"
        && request.uri().authority().is_some();
    let mut body = request.into_body();
    let mut message = Vec::new();
    while let Some(Ok(part)) = body.data().await {
        message.extend_from_slice(&part);
        let _ = body.flow_control().release_capacity(part.len());
    }
    let length = u32::from_be_bytes(message[1..5].try_into().expect("four bytes")) as usize;
    let whole = is_grpc
        && message[0] == 0
        && length == message.len() - 5
        && message[5..].iter().all(|&byte| byte == message[5]);
    let mut trailers = HeaderMap::new();
    let ok = Response::builder().header("content-type", "application/grpc").body(()).expect("a response");
    match act {
        Act::Answer(size) => {
            let mut stream = respond.send_response(ok, false).expect("open");
            let _ = stream.send_data(Bytes::from(vec![0; size]), false);
            trailers.insert("grpc-status", if whole { "0" } else { "3" }.parse().expect("a value"));
            let _ = stream.send_trailers(trailers);
        }
        Act::Status(status, text) => {
            trailers.insert("grpc-message", text.parse().expect("a value"));
            trailers.insert("grpc-status", status.parse().expect("a value"));
            let _ = respond.send_response(ok, false).expect("open").send_trailers(trailers);
        }
        Act::TrailersOnly => {
            let response =
                Response::builder().header("grpc-status", "14").header("grpc-message", "gone").body(());
            let _ = respond.send_response(response.expect("a response"), true);
        }
        Act::NoStatus => {
            let _ = respond.send_response(ok, false).expect("open").send_data(Bytes::from_static(b"x"), true);
        }
        Act::Http404 => {
            let response = Response::builder().status(404).body(()).expect("a response");
            let _ = respond.send_response(response, true);
        }
        Act::Reset => respond.send_reset(h2::Reason::REFUSED_STREAM),
    }
}

fn grpc(server: &Server) -> Config {
    let mut config = config(&server.address.to_string());
    (config.protocol, config.path) = (Protocol::Grpc, PATH.into());
    config
}

fn load(config: &Config, message_bytes: usize) -> Report {
    run(config, vec![vec![7; message_bytes]], &Progress::default()).expect("a run")
}

fn first(report: &Report, kind: &str) -> String {
    report
        .errors_by_kind
        .get(kind)
        .map_or_else(|| format!("{:?}", report.errors_by_kind), |errors| errors.first.clone())
}

#[test]
fn calls_are_answered_on_connections_that_last() {
    let server = serve(Act::Answer(40), usize::MAX, 65_535);
    let report = load(&grpc(&server), 100);
    assert_eq!(report.errors, 0, "{:?}", report.errors_by_kind);
    assert!(report.answered > 200, "{}", report.answered);
}

#[test]
fn large_messages_pass_small_windows_both_ways() {
    for (out, back) in [(1_000_000, 10), (10, 1_000_000), (300_000, 300_000)] {
        let server = serve(Act::Answer(back), usize::MAX, 20_000);
        let report = load(&grpc(&server), out);
        assert_eq!(report.errors, 0, "{:?}", report.errors_by_kind);
        assert!(report.answered >= 4, "{}", report.answered);
        assert!(report.received_bytes > report.answered * back as u64);
    }
}

#[test]
fn a_status_is_an_error_of_its_own_kind() {
    let server = serve(Act::Status("3", "unexpected shape for input"), usize::MAX, 65_535);
    let report = load(&grpc(&server), 100);
    assert_eq!(first(&report, "grpc 3"), "unexpected shape for input");
    assert!(report.answered == 0 && report.errors == report.scheduled);

    for (act, kind, text) in [
        (Act::TrailersOnly, "grpc 14", "gone"),
        (Act::NoStatus, "malformed", "answer without a grpc-status"),
        (Act::Http404, "http 404", "in answer to a gRPC call"),
        (Act::Reset, "grpc reset", "RST_STREAM code 7"),
    ] {
        let server = serve(act, usize::MAX, 65_535);
        let report = load(&grpc(&server), 100);
        assert_eq!((first(&report, kind).as_str(), report.answered), (text, 0));
    }
}

#[test]
fn a_server_that_says_goodbye_is_connected_to_again() {
    let server = serve(Act::Answer(10), 5, 65_535);
    let report = load(&grpc(&server), 100);
    assert_eq!(report.errors, 0, "{:?}", report.errors_by_kind);
    assert!(report.answered > 50, "{}", report.answered);
}

#[test]
fn a_server_of_another_protocol_is_an_error() {
    let server = support::fixed(None);
    let mut config = config(&server.address.to_string());
    (config.protocol, config.path) = (Protocol::Grpc, PATH.into());
    let report = load(&config, 10);
    assert_eq!(report.answered, 0);
    assert!(first(&report, "malformed").contains("HTTP/2 frame"), "{:?}", report.errors_by_kind);
}

#[test]
#[ignore = "prints what this machine reaches; needs both cores"]
fn what_this_machine_reaches() {
    let server = serve(Act::Answer(40), usize::MAX, 65_535);
    for connections in [1, 8, 64] {
        let mut config = grpc(&server);
        (config.connections, config.duration_s, config.warmup_s) = (connections, 3.0, 0.5);
        let report = load(&config, 150);
        let client = report.environment.client_cpu_seconds * 1e6 / (report.rate * 3.5);
        println!(
            "grpc closed {connections:3}: {:8.0}/s p50 {:6.1} us, client {client:.1} us each, {} errors",
            report.rate, report.latency.p50_us, report.errors
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}
