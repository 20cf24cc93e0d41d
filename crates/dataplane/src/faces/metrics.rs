//! Prometheus text: every counter of every model, and the gauges of the gateway.

use std::fmt::{Arguments, Write};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::access::AccessLog;
use super::durable::Durable;
use super::snapshot::{Distribution, Snapshot};
use crate::gateway::Gateway;
use crate::reply::{self, Reply};
use crate::stats::{Closed, Refusal};

/// What Prometheus wants as content type.
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// One model's labels and numbers.
pub struct ModelMetrics {
    labels: String,
    numbers: Snapshot,
    pending: u32,
}

impl ModelMetrics {
    /// The numbers of that model version.
    pub fn new(name: &str, version: &str, numbers: Snapshot, pending: u32) -> Self {
        Self {
            labels: format!("model=\"{}\",version=\"{}\"", escape(name), escape(version)),
            numbers,
            pending,
        }
    }
}

/// The answer to `/metrics`.
pub fn reply(gateway: &Gateway) -> Reply {
    let models: Vec<_> = gateway
        .dataplane
        .models()
        .iter()
        .map(|model| {
            ModelMetrics::new(&model.spec.name, &model.spec.version, model.stats.snapshot(), model.pending())
        })
        .collect();
    let dropped = gateway.access.as_ref().map_or(0, AccessLog::dropped);
    let (connections, bytes) = (gateway.open_connections() as u64, gateway.dataplane.memory.used() as u64);
    let mut gauges = vec![
        ("lrai_connections", "Open connections.", connections),
        ("lrai_memory_bytes", "Bytes of bodies and answers in memory.", bytes),
        ("lrai_access_log_dropped_lines", "Lines that found no room in the access log.", dropped),
    ];
    gauges.extend(gateway.dataplane.durable.iter().flat_map(Durable::gauges));
    reply::http(StatusCode::OK, CONTENT_TYPE, Bytes::from(render(&models, &gauges)))
}

/// Label values escape backslash, quote and line feed.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Renders the page; `gauges` are the gateway's own: name, help, value.
pub fn render(models: &[ModelMetrics], gauges: &[(&str, &str, u64)]) -> String {
    let mut page = Page { text: String::with_capacity(4096 + models.len() * 8192), models };
    page.histogram("lrai_request_duration_seconds", "Time from submit to the encoded answer.", |n| {
        &n.request_duration
    });
    page.histogram("lrai_queue_duration_seconds", "Time in the queue, of answered requests.", |n| {
        &n.queue_duration
    });
    page.histogram("lrai_compute_duration_seconds", "Time of a batch at its replica.", |n| {
        &n.compute_duration
    });
    page.histogram("lrai_batch_rows", "Rows in a batch.", |n| &n.batch_rows);
    page.reasons("lrai_batch_closed_total", "Batches by what closed them.", &Closed::LABELS, |n| &n.closed);
    page.reasons("lrai_requests_refused_total", "Requests answered with an error.", &Refusal::LABELS, |n| {
        &n.refused
    });
    page.numbers("lrai_inferences_total", "counter", "Rows answered.", |model| model.numbers.inference_count);
    page.numbers("lrai_pending_requests", "gauge", "Requests that wait or run.", |model| {
        model.pending.into()
    });
    page.numbers("lrai_actor_restarts_total", "counter", "Replicas that replaced a dead one.", |model| {
        model.numbers.restarts
    });
    for (name, help, value) in gauges {
        page.head(name, if name.ends_with("_total") { "counter" } else { "gauge" }, help);
        page.line(format_args!("{name} {value}"));
    }
    page.text
}

struct Page<'a> {
    text: String,
    models: &'a [ModelMetrics],
}

impl Page<'_> {
    /// Writes one line; writing to a string cannot fail.
    fn line(&mut self, line: Arguments<'_>) {
        self.text.write_fmt(line).expect("a string takes any text");
        self.text.push('\n');
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn histogram(&mut self, name: &str, help: &str, pick: impl Fn(&Snapshot) -> &Distribution) {
        self.head(name, "histogram", help);
        // Durations are kept in nanoseconds and shown in seconds; rows are shown as they are.
        let scale = if name.ends_with("_seconds") { 1e9 } else { 1.0 };
        for ModelMetrics { labels, numbers, .. } in self.models {
            let distribution = pick(numbers);
            let mut sum = 0;
            for (bound, count) in distribution.bounds.iter().zip(&distribution.buckets) {
                sum += count;
                let bound = *bound as f64 / scale;
                self.line(format_args!("{name}_bucket{{{labels},le=\"{bound}\"}} {sum}"));
            }
            let (count, total) = (distribution.count(), distribution.sum as f64 / scale);
            self.line(format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {count}"));
            self.line(format_args!("{name}_sum{{{labels}}} {total}\n{name}_count{{{labels}}} {count}"));
        }
    }

    fn reasons(&mut self, name: &str, help: &str, reasons: &[&str], pick: impl Fn(&Snapshot) -> &[u64]) {
        self.head(name, "counter", help);
        for ModelMetrics { labels, numbers, .. } in self.models {
            for (reason, count) in reasons.iter().zip(pick(numbers)) {
                self.line(format_args!("{name}{{{labels},reason=\"{reason}\"}} {count}"));
            }
        }
    }

    fn numbers(&mut self, name: &str, kind: &str, help: &str, pick: impl Fn(&ModelMetrics) -> u64) {
        self.head(name, kind, help);
        for model in self.models {
            let (labels, number) = (&model.labels, pick(model));
            self.line(format_args!("{name}{{{labels}}} {number}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Stats;

    #[test]
    fn buckets_are_cumulative_and_in_seconds() {
        let stats = Stats::default();
        stats.answered(10_000, 200_000, 300_000, 1, false);
        stats.answered(10_000, 200_000, 20_000_000_000, 1, false);
        let models = [ModelMetrics::new("m", "1", stats.snapshot(), 0)];
        let text = render(&models, &[("lrai_connections", "Open connections.", 3)]);
        for line in [
            "# TYPE lrai_request_duration_seconds histogram",
            r#"lrai_request_duration_seconds_bucket{model="m",version="1",le="0.00005"} 0"#,
            r#"lrai_request_duration_seconds_bucket{model="m",version="1",le="0.00025"} 0"#,
            r#"lrai_request_duration_seconds_bucket{model="m",version="1",le="0.0005"} 1"#,
            r#"lrai_request_duration_seconds_bucket{model="m",version="1",le="10"} 1"#,
            r#"lrai_request_duration_seconds_bucket{model="m",version="1",le="+Inf"} 2"#,
            r#"lrai_request_duration_seconds_sum{model="m",version="1"} 20.0003"#,
            r#"lrai_request_duration_seconds_count{model="m",version="1"} 2"#,
            r#"lrai_requests_refused_total{model="m",version="1",reason="queue_full"} 0"#,
            "lrai_connections 3",
        ] {
            assert!(text.lines().any(|found| found == line), "missing: {line}\n{text}");
        }
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
