//! Every setting of the data plane; crosses the seam once, as JSON text.

use serde::Deserialize;

use crate::error::{Error, Result};

/// The settings; every field has a default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// An address, a name, an IPv6 literal with or without brackets, or `unix:/path` (then no port is opened
    /// except `metrics_port`).
    pub host: String,
    /// HTTP/1.1 and HTTP/2 by prior knowledge; 0 = any free port.
    pub http_port: u16,
    /// gRPC; 0 = any free port.
    pub grpc_port: u16,
    /// Prometheus text; 0 = any free port, absent = `/metrics` on the HTTP port only.
    pub metrics_port: Option<u16>,
    /// Threads that accept, parse and answer.
    pub threads: usize,
    /// Threads that parse and encode bodies above 64 KB, shared by all.
    pub pool_threads: usize,
    /// Most open connections; further ones wait in the kernel's backlog.
    pub max_connections: usize,
    /// Most bytes of one request body, before and after decompression.
    pub max_body_bytes: usize,
    /// Most bytes of request bodies and answers in memory, all connections together.
    pub max_memory_bytes: usize,
    /// Most requests in flight on one HTTP/2 connection.
    pub max_streams: u32,
    /// Longest time from the first byte of a request to the end of its headers.
    pub header_timeout_ms: u64,
    /// Longest time for a request body, plus one second for every 64 KiB received.
    pub body_timeout_ms: u64,
    /// Longest time that a connection may stay open between two requests.
    pub keep_alive_timeout_ms: u64,
    /// What `/v2/health/ready` answers when not ready: 400 (as Triton) or 503 (for load balancers).
    pub not_ready_status: u16,
    /// `none`, `explicit` or `poll`: whether clients may load and unload models.
    pub model_control: String,
    /// One JSON line per HTTP request on standard error.
    pub access_log: bool,
    /// What server metadata tells as version.
    pub server_version: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            http_port: 8000,
            grpc_port: 8001,
            metrics_port: Some(8002),
            threads: 1,
            pool_threads: 2,
            max_connections: 16_384,
            max_body_bytes: 64 << 20,
            max_memory_bytes: 1 << 30,
            max_streams: 1024,
            header_timeout_ms: 10_000,
            body_timeout_ms: 30_000,
            keep_alive_timeout_ms: 600_000,
            not_ready_status: 400,
            model_control: "none".into(),
            access_log: false,
            server_version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

impl Config {
    /// Reads the settings from JSON text; a bad value is a sentence.
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(text)
            .map_err(|error| Error::invalid(format!("settings of the data plane: {error}")))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let positive = [
            ("threads", self.threads),
            ("pool_threads", self.pool_threads),
            ("max_connections", self.max_connections),
            ("max_body_bytes", self.max_body_bytes),
            ("max_memory_bytes", self.max_memory_bytes),
            ("max_streams", self.max_streams as usize),
            ("header_timeout_ms", self.header_timeout_ms as usize),
            ("body_timeout_ms", self.body_timeout_ms as usize),
            ("keep_alive_timeout_ms", self.keep_alive_timeout_ms as usize),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::invalid(format!("{name} is 0, hint: it must be at least 1")));
        }
        if !matches!(self.not_ready_status, 400 | 503) {
            let status = self.not_ready_status;
            return Err(Error::invalid(format!("not_ready_status is {status}, hint: use 400 or 503")));
        }
        if !matches!(self.model_control.as_str(), "none" | "explicit" | "poll") {
            let mode = &self.model_control;
            return Err(Error::invalid(format!(
                "model_control is '{mode}', hint: use none, explicit or poll"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_fields_take_their_defaults() {
        assert_eq!(Config::parse("{}"), Ok(Config::default()));
    }

    #[test]
    fn a_bad_value_is_a_sentence() {
        for (text, expected) in [
            (r#"{"threads":0}"#, "threads is 0, hint: it must be at least 1"),
            (r#"{"not_ready_status":404}"#, "not_ready_status is 404, hint: use 400 or 503"),
            (r#"{"model_control":"all"}"#, "model_control is 'all', hint: use none, explicit or poll"),
        ] {
            assert_eq!(Config::parse(text), Err(Error::invalid(expected)));
        }
    }

    #[test]
    fn an_unknown_setting_is_refused_by_name() {
        let error = Config::parse(r#"{"thread":1}"#).expect_err("a misspelt setting");
        assert!(error.message.contains("unknown field `thread`"), "{error}");
    }
}
