//! Every setting of the data plane; crosses the seam once, as JSON text.

use http::HeaderName;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::faces::durable::Settings;

/// The settings; the control plane states all of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
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
    /// Longest time from the first byte of a request to the end of its headers.
    pub header_timeout_ms: u64,
    /// Longest time for a request body, plus one second for every 64 KiB received.
    pub body_timeout_ms: u64,
    /// Longest time that a connection may stay open between two requests.
    pub keep_alive_timeout_ms: u64,
    /// What `/v2/health/ready` answers when not ready: 400 (as Triton) or 503 (for load balancers).
    pub not_ready_status: u16,
    /// Whether clients may load and unload models.
    pub explicit_control: bool,
    /// Header (and gRPC metadata) that names a request's tenant; empty = there are no tenants.
    pub tenant_header: String,
    /// One JSON line per HTTP request on standard error.
    pub access_log: bool,
    /// Where durable requests are kept, if they are.
    pub journal: Option<Settings>,
    /// What server metadata tells as version.
    pub server_version: String,
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
        macro_rules! named {
            ($($name:ident)*) => { [$((stringify!($name), self.$name as usize)),*] };
        }
        let positive = named!(threads pool_threads max_connections max_body_bytes max_memory_bytes
            header_timeout_ms body_timeout_ms keep_alive_timeout_ms);
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::invalid(format!("{name} is 0, hint: it must be at least 1")));
        }
        let header = &self.tenant_header;
        if !header.is_empty() && HeaderName::from_bytes(header.as_bytes()).is_err() {
            return Err(Error::invalid(format!(
                "tenant_header is '{header}', hint: use a header's name, such as x-tenant"
            )));
        }
        if !matches!(self.not_ready_status, 400 | 503) {
            let status = self.not_ready_status;
            return Err(Error::invalid(format!("not_ready_status is {status}, hint: use 400 or 503")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(name: &str, value: serde_json::Value) -> Result<Config> {
        let mut settings = json!({
            "host": "localhost", "http_port": 0, "grpc_port": 0, "metrics_port": null, "threads": 1, "pool_threads": 1,
            "max_connections": 1, "max_body_bytes": 1, "max_memory_bytes": 1, "header_timeout_ms": 1,
            "body_timeout_ms": 1, "keep_alive_timeout_ms": 1, "not_ready_status": 503, "explicit_control": false,
            "tenant_header": "", "access_log": false, "journal": null, "server_version": "",
        });
        settings[name] = value;
        Config::parse(&settings.to_string())
    }

    #[test]
    fn a_bad_value_is_a_sentence() {
        assert!(parse("not_ready_status", json!(400)).is_ok());
        for (name, value, expected) in [
            ("threads", json!(0), "threads is 0, hint: it must be at least 1"),
            ("not_ready_status", json!(404), "not_ready_status is 404, hint: use 400 or 503"),
            (
                "tenant_header",
                json!("a b"),
                "tenant_header is 'a b', hint: use a header's name, such as x-tenant",
            ),
        ] {
            assert_eq!(parse(name, value), Err(Error::invalid(expected)));
        }
    }

    #[test]
    fn a_setting_that_is_unknown_or_missing_is_refused_by_name() {
        let error = parse("thread", json!(1)).expect_err("a misspelt setting");
        assert!(error.message.contains("unknown field `thread`"), "{error}");
        let error = Config::parse("{}").expect_err("nothing is stated");
        assert!(error.message.contains("missing field `host`"), "{error}");
    }
}
