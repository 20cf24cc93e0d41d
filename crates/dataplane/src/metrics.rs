//! Prometheus text: every counter of every model, and the gauges of the gateway.

use std::fmt::Write;

use crate::stats::{Closed, Distribution, Refusal, Snapshot};

/// What Prometheus wants as content type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One model's numbers.
pub struct ModelMetrics<'a> {
    /// The model's name.
    pub name: &'a str,
    /// The version.
    pub version: &'a str,
    /// The numbers.
    pub numbers: Snapshot,
}

/// The gateway's own numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayMetrics {
    /// Open connections.
    pub connections: usize,
    /// Bytes of request bodies and answers in memory.
    pub memory_bytes: usize,
    /// HTTP answers by status.
    pub responses: Vec<(u16, u64)>,
    /// Lines that the access log could not take.
    pub dropped_log_lines: u64,
}

/// Renders everything.
pub fn render(models: &[ModelMetrics<'_>], gateway: &GatewayMetrics) -> String {
    let mut page = Page { text: String::with_capacity(4096 + models.len() * 8192) };
    page.histogram("lrai_request_duration_seconds", "Time from submit to the encoded answer.", models, |n| {
        &n.request_duration
    });
    page.histogram("lrai_queue_duration_seconds", "Time in the queue, of answered requests.", models, |n| {
        &n.queue_duration
    });
    page.histogram("lrai_compute_duration_seconds", "Time of a batch at its replica.", models, |n| {
        &n.compute_duration
    });
    page.histogram("lrai_batch_rows", "Rows in a batch.", models, |n| &n.batch_rows);
    page.reasons("lrai_batch_closed_total", "Batches by the reason that closed them.", models, |n| {
        Closed::ALL.iter().map(|(_, label)| *label).zip(n.closed).collect()
    });
    page.reasons("lrai_requests_refused_total", "Requests answered with an error.", models, |n| {
        Refusal::ALL.iter().map(|(_, label)| *label).zip(n.refused).collect()
    });
    page.numbers("lrai_inferences_total", "counter", "Rows answered.", models, |n| n.inference_count);
    page.numbers("lrai_pending_requests", "gauge", "Requests that wait or run.", models, |n| n.pending);
    page.numbers("lrai_actor_restarts_total", "counter", "Replicas that replaced a dead one.", models, |n| {
        n.restarts
    });
    page.gateway(gateway);
    page.text
}

struct Page {
    text: String,
}

impl Page {
    /// Writes one line; writing to a string cannot fail.
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        self.text.write_fmt(line).expect("a string takes any text");
        self.text.push('\n');
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        models: &[ModelMetrics<'_>],
        pick: impl Fn(&Snapshot) -> &Distribution,
    ) {
        self.head(name, "histogram", help);
        // Durations are kept in nanoseconds and shown in seconds; rows are shown as they are.
        let scale = if name.ends_with("_seconds") { 1e9 } else { 1.0 };
        for model in models {
            let (labels, distribution) = (labels(model), pick(&model.numbers));
            let mut sum = 0;
            for (bound, count) in distribution.bounds.iter().zip(&distribution.buckets) {
                sum += count;
                let bound = *bound as f64 / scale;
                self.line(format_args!("{name}_bucket{{{labels},le=\"{bound}\"}} {sum}"));
            }
            let count = distribution.count();
            let total = distribution.sum as f64 / scale;
            self.line(format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {count}"));
            self.line(format_args!("{name}_sum{{{labels}}} {total}\n{name}_count{{{labels}}} {count}"));
        }
    }

    fn reasons(
        &mut self,
        name: &str,
        help: &str,
        models: &[ModelMetrics<'_>],
        pick: impl Fn(&Snapshot) -> Vec<(&'static str, u64)>,
    ) {
        self.head(name, "counter", help);
        for model in models {
            let labels = labels(model);
            for (reason, count) in pick(&model.numbers) {
                self.line(format_args!("{name}{{{labels},reason=\"{reason}\"}} {count}"));
            }
        }
    }

    fn numbers(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        models: &[ModelMetrics<'_>],
        pick: impl Fn(&Snapshot) -> u64,
    ) {
        self.head(name, kind, help);
        for model in models {
            let (labels, number) = (labels(model), pick(&model.numbers));
            self.line(format_args!("{name}{{{labels}}} {number}"));
        }
    }

    fn gateway(&mut self, gateway: &GatewayMetrics) {
        self.head("lrai_connections", "gauge", "Open connections.");
        self.line(format_args!("lrai_connections {}", gateway.connections));
        self.head("lrai_memory_bytes", "gauge", "Bytes of request bodies and answers in memory.");
        self.line(format_args!("lrai_memory_bytes {}", gateway.memory_bytes));
        self.head("lrai_http_responses_total", "counter", "HTTP answers by status.");
        for (status, count) in &gateway.responses {
            self.line(format_args!("lrai_http_responses_total{{status=\"{status}\"}} {count}"));
        }
        let name = "lrai_access_log_dropped_total";
        self.head(name, "counter", "Lines that the access log could not take.");
        self.line(format_args!("{name} {}", gateway.dropped_log_lines));
    }
}

fn labels(model: &ModelMetrics<'_>) -> String {
    format!("model=\"{}\",version=\"{}\"", escape(model.name), escape(model.version))
}

/// Label values escape backslash, quote and line feed.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Stats;

    #[test]
    fn buckets_are_cumulative_and_in_seconds() {
        let stats = Stats::default();
        stats.answered(10_000, 200_000, 300_000, 1);
        stats.answered(10_000, 200_000, 20_000_000_000, 1);
        let models = [ModelMetrics { name: "m", version: "1", numbers: stats.snapshot() }];
        let text = render(&models, &GatewayMetrics::default());
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
        ] {
            assert!(text.lines().any(|found| found == line), "missing: {line}\n{text}");
        }
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
