//! What goes wrong is counted by kind, and a run always ends.
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lrai_loadgen::{LoadError, Progress, Report, run};
use support::{ANSWER, REQUEST, config, fixed, load, read_request, say, scripted};

fn count(report: &Report, kind: &str) -> u64 {
    report.errors_by_kind.get(kind).map_or(0, |errors| errors.count)
}

#[test]
fn a_refusal_is_an_error_with_its_text_and_no_latency() {
    let server = scripted(|mut stream, _| {
        let mut number = 0;
        while read_request(&mut stream) {
            let full = b"HTTP/1.1 503 Full\r\nContent-Length: 16\r\n\r\n{\"error\":\"full\"}";
            say(&mut stream, if number % 2 == 0 { ANSWER } else { full });
            number += 1;
        }
    });
    let report = load(&config(&server.address.to_string()));
    let refused = count(&report, "http 503");
    assert!(refused > 10 && refused.abs_diff(report.answered) <= 4, "{refused} of {}", report.answered);
    assert_eq!(report.errors_by_kind["http 503"].first, "{\"error\":\"full\"}");
    assert_eq!((report.errors, report.scheduled), (refused, refused + report.answered));
}

#[test]
fn nobody_there_is_an_error_per_attempt_with_growing_pauses() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = unused.local_addr().expect("bound").to_string();
    drop(unused);
    let mut config = config(&address);
    let report = load(&config);
    let attempts = count(&report, "connect");
    assert_eq!((report.answered, report.scheduled, report.errors), (0, 0, attempts));
    assert!((4..100).contains(&attempts), "{attempts} attempts of 4 connections in half a second");
    assert!(report.errors_by_kind["connect"].first.contains("refused"));

    (config.rate, config.timeout_s) = (Some(1_000.0), 0.2);
    let started = Instant::now();
    let report = load(&config);
    assert_eq!((report.answered, report.scheduled), (0, 500));
    assert_eq!(count(&report, "timeout"), 500);
    assert!(report.latency.p50_us >= 200_000.0, "their age counts: {}", report.latency.p50_us);
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_connection_that_its_server_closes_politely_costs_nothing() {
    let server = scripted(|mut stream, _| {
        if read_request(&mut stream) {
            say(&mut stream, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let report = load(&config(&server.address.to_string()));
    assert_eq!(report.errors, 0, "{:?}", report.errors_by_kind);
    assert!(report.answered > 50, "{}", report.answered);
}

#[test]
fn a_connection_that_breaks_fails_its_request_and_is_opened_again() {
    let server = scripted(|mut stream, _| {
        for _ in 0..3 {
            if read_request(&mut stream) {
                say(&mut stream, ANSWER);
            }
        }
        read_request(&mut stream);
        say(&mut stream, &ANSWER[..30]);
    });
    let report = load(&config(&server.address.to_string()));
    let closed = count(&report, "closed") + count(&report, "reset");
    assert!(closed > 10, "{:?}", report.errors_by_kind);
    assert_eq!(report.errors, closed);
    assert!((2.5..3.5).contains(&(report.answered as f64 / closed as f64)), "{} {closed}", report.answered);
}

#[test]
fn what_is_never_answered_is_given_up_and_the_connection_with_it() {
    let server = scripted(|mut stream, number| {
        while read_request(&mut stream) {
            if number >= 4 {
                say(&mut stream, ANSWER);
            }
        }
    });
    let mut config = config(&server.address.to_string());
    config.timeout_s = 0.1;
    let report = load(&config);
    assert_eq!(count(&report, "timeout"), 4, "{:?}", report.errors_by_kind);
    assert!(report.answered > 100, "the next connections answer: {}", report.answered);
    assert!(report.latency.max_us >= 100_000.0);
}

#[test]
fn an_answer_before_the_request_was_sent_ends_the_connection() {
    // More than the socket buffers hold, to a server that refuses after the first bytes.
    let server = scripted(|mut stream, _| {
        if read_request(&mut stream) {
            say(&mut stream, b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let mut config = config(&server.address.to_string());
    (config.connections, config.duration_s) = (1, 0.3);
    let large = [REQUEST, &vec![b'x'; 32 << 20]].concat();
    let report = run(&config, vec![large], &Progress::default()).expect("a run");
    assert!(count(&report, "http 413") >= 2, "{:?}", report.errors_by_kind);
    assert_eq!(report.answered, 0);
}

#[test]
fn a_large_request_arrives_whole_and_requests_are_used_in_turn() {
    use std::io::Read;
    let bodies: Vec<Vec<u8>> = (1_u8..=3).map(|byte| vec![byte; 3_000_000]).collect();
    let server = scripted(|mut stream, _| {
        let mut body = vec![0; 3_000_000];
        let mut expected = 1;
        while stream.read_exact(&mut body).is_ok() {
            let whole = body.iter().all(|&byte| byte == expected);
            say(&mut stream, if whole { ANSWER } else { b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n" });
            expected = expected % 3 + 1;
        }
    });
    let mut config = config(&server.address.to_string());
    config.connections = 1;
    let report = run(&config, bodies, &Progress::default()).expect("a run");
    assert_eq!(report.errors, 0, "{:?}", report.errors_by_kind);
    assert!(report.answered >= 3, "{}", report.answered);
}

#[test]
fn a_run_can_be_watched_and_stopped() {
    let server = fixed(None);
    let mut config = config(&server.address.to_string());
    config.duration_s = 60.0;
    let progress = Arc::new(Progress::default());
    let watched = Arc::clone(&progress);
    let thread = std::thread::spawn(move || run(&config, vec![REQUEST.to_vec()], &watched));
    let started = Instant::now();
    while progress.answered.load(Ordering::Relaxed) == 0 && started.elapsed() < Duration::from_secs(5) {
        std::thread::yield_now();
    }
    progress.stop.store(true, Ordering::Relaxed);
    let report = thread.join().expect("no panic").expect("a report");
    assert!(report.answered > 0 && started.elapsed() < Duration::from_secs(6));
}

#[test]
fn settings_that_no_run_can_have_are_refused() {
    let good = config("127.0.0.1:1");
    let refused = |change: fn(&mut lrai_loadgen::Config)| {
        let mut config = good.clone();
        change(&mut config);
        run(&config, vec![REQUEST.to_vec()], &Progress::default()).err()
    };
    assert!(matches!(refused(|config| config.connections = 0), Some(LoadError::Config(_))));
    assert!(matches!(refused(|config| config.rate = Some(f64::NAN)), Some(LoadError::Config(_))));
    assert!(matches!(refused(|config| config.duration_s = -1.0), Some(LoadError::Config(_))));
    assert!(matches!(refused(|config| config.address = "nowhere".into()), Some(LoadError::Address { .. })));
    assert!(run(&good, vec![], &Progress::default()).is_err());
}
