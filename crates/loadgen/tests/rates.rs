//! Rates, latencies and what the client itself costs. The ignored test prints the numbers of this machine:
//! `cargo test --release -p lrai-loadgen --test rates -- --ignored --nocapture`.
mod support;

use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use support::{ANSWER, REQUEST, config, fixed, load};

#[test]
fn an_open_loop_sends_what_is_due_and_counts_each_request_once() {
    let server = fixed(None);
    let mut config = config(&server.address.to_string());
    (config.rate, config.duration_s, config.warmup_s) = (Some(2_000.0), 1.0, 0.2);
    for poisson in [false, true] {
        config.poisson = poisson;
        let report = load(&config);
        assert_eq!(report.errors, 0, "{:?}", report.errors_by_kind);
        assert_eq!(report.answered, report.scheduled);
        let spread = if poisson { 200 } else { 0 };
        assert!(report.scheduled.abs_diff(2_000) <= spread, "{}", report.scheduled);
        assert!((report.rate / 2_000.0 - 1.0).abs() < 0.3, "{}", report.rate);
    }
}

#[test]
fn listed_times_are_sent_once_each_and_the_warm_up_is_part_of_them() {
    let server = fixed(None);
    let mut config = config(&server.address.to_string());
    (config.duration_s, config.warmup_s) = (0.4, 0.1);
    config.due_us = (0..500).map(|number| number * 1_000 + number % 3 * 300).collect();
    let report = load(&config);
    assert_eq!(report.errors, 0, "{:?}", report.errors_by_kind);
    assert_eq!((report.scheduled, report.answered), (400, 400));
    config.due_us = vec![2_000, 1_000];
    assert!(lrai_loadgen::run(&config, vec![REQUEST.to_vec()], &lrai_loadgen::Progress::default()).is_err());
}

#[test]
fn a_closed_loop_keeps_every_connection_busy() {
    let server = fixed(None);
    let report = load(&config(&server.address.to_string()));
    assert_eq!((report.errors, report.scheduled), (0, report.answered));
    assert!(report.answered > 1_000, "{}", report.answered);
    assert!(report.latency.p50_us <= report.latency.p99_us && report.latency.p99_us <= report.latency.max_us);
    assert!(report.send_delay.is_none());
}

#[test]
fn a_unix_socket_carries_the_same_load() {
    let path = std::env::temp_dir().join(format!("loadgen-{}.sock", std::process::id()));
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a free path");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        while stream.read_exact(&mut [0; REQUEST.len()]).is_ok() {
            stream.write_all(ANSWER).expect("written");
        }
    });
    let mut config = config(&format!("unix:{}", path.display()));
    config.connections = 1;
    let report = load(&config);
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(report.errors, 0, "{:?}", report.errors_by_kind);
    assert!(report.answered > 500, "{}", report.answered);
    server.join().expect("no panic");
}

#[test]
fn a_stall_is_charged_to_every_request_that_was_due_in_it() {
    let server = fixed(Some((Duration::from_millis(500), Duration::from_millis(200))));
    let mut config = config(&server.address.to_string());
    // One connection: a client that waited for its answers would notice a single slow request.
    (config.connections, config.rate, config.duration_s) = (1, Some(1_000.0), 2.0);
    let report = load(&config);
    assert_eq!((report.errors, report.scheduled, report.answered), (0, 2_000, 2_000));
    // 200 of 2,000 requests were due in the stall, their latencies spread evenly over 0 to 200 ms.
    assert!(report.latency.p99_us > 150_000.0, "p99 {}", report.latency.p99_us);
    assert!(report.latency.p95_us > 90_000.0, "p95 {}", report.latency.p95_us);
    assert!(report.latency.p50_us < 90_000.0, "p50 {}", report.latency.p50_us);
    let delay = report.send_delay.expect("an open loop");
    assert!(delay.waited >= 150 && delay.late >= 150, "{delay:?}");
}

#[test]
fn the_series_shows_the_second_of_the_stall() {
    let server = fixed(Some((Duration::from_millis(1_300), Duration::from_millis(300))));
    let mut config = config(&server.address.to_string());
    (config.rate, config.duration_s) = (Some(500.0), 3.0);
    let report = load(&config);
    assert!(report.series.len() >= 3, "{:?}", report.series);
    assert!(report.series[1].p99_us > 200_000.0, "{:?}", report.series);
    assert!(report.series[0].p99_us < report.series[1].p99_us, "{:?}", report.series);
    assert_eq!(report.series.iter().map(|second| second.answered).sum::<u64>(), 1_500);
}

#[test]
#[ignore = "prints what this machine reaches; needs both cores"]
fn what_this_machine_reaches() {
    let server = fixed(None);
    let address = server.address.to_string();
    for connections in [1, 8, 64] {
        let mut config = config(&address);
        (config.connections, config.duration_s, config.warmup_s) = (connections, 2.0, 0.2);
        let report = load(&config);
        let client = report.environment.client_cpu_seconds * 1e6 / (report.rate * 2.2);
        println!(
            "closed {connections:3}: {:8.0}/s p50 {:6.1} us, client {client:.1} us each",
            report.rate, report.latency.p50_us
        );
        let wrk = Command::new("wrk")
            .args(["-t1", "-d2", "-c", &connections.to_string(), &format!("http://{address}/")])
            .output();
        let text = wrk.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        println!(
            "   wrk {connections:3}: {}",
            text.lines().find(|line| line.contains("Requests/sec")).unwrap_or("not installed")
        );
    }
    for spin_us in [Some(0.0), Some(50.0), None] {
        for rate in [1_000.0, 10_000.0, 30_000.0, 50_000.0, 100_000.0] {
            let mut config = config(&address);
            (config.connections, config.rate, config.duration_s, config.warmup_s) =
                (128, Some(rate), 1.5, 0.2);
            config.spin_us = spin_us;
            let report = load(&config);
            let delay = report.send_delay.as_ref().expect("an open loop");
            println!(
                "spin {spin_us:?} us, {rate:6}/s: {:8.0}/s errors {} p50 {:6.1} p99 {:7.1} p99.9 {:7.1} us; sent late by p50 {:5.1} p99 {:6.1} us, {} late, {} waited; client {:.0}% cpu, machine {:.0}%",
                report.rate,
                report.errors,
                report.latency.p50_us,
                report.latency.p99_us,
                report.latency.p999_us,
                delay.p50_us,
                delay.p99_us,
                delay.late,
                delay.waited,
                report.environment.client_cpu_percent,
                report.environment.busy_percent,
            );
        }
    }
}
