//! Every setting of the data plane; crosses the seam once, as JSON text.

use http::HeaderName;
use serde::Deserialize;

use crate::error::{Error, Result};

/// Defines the settings with their defaults.
macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $kind:ty = $default:expr;)*) => {
        /// The settings; every field has a default.
        #[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config { $($(#[$doc])* pub $name: $kind,)* }

        impl Default for Config {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }
    };
}

settings! {
    /// An address, a name, an IPv6 literal with or without brackets, or `unix:/path` (then no port is opened
    /// except `metrics_port`).
    host: String = "127.0.0.1".into();
    /// HTTP/1.1 and HTTP/2 by prior knowledge; 0 = any free port.
    http_port: u16 = 8000;
    /// gRPC; 0 = any free port.
    grpc_port: u16 = 8001;
    /// Prometheus text; 0 = any free port, absent = `/metrics` on the HTTP port only.
    metrics_port: Option<u16> = Some(8002);
    /// Threads that accept, parse and answer.
    threads: usize = 1;
    /// Threads that parse and encode bodies above 64 KB, shared by all.
    pool_threads: usize = 2;
    /// Most open connections; further ones wait in the kernel's backlog.
    max_connections: usize = 16_384;
    /// Most bytes of one request body, before and after decompression.
    max_body_bytes: usize = 64 << 20;
    /// Most bytes of request bodies and answers in memory, all connections together.
    max_memory_bytes: usize = 1 << 30;
    /// Most requests in flight on one HTTP/2 connection.
    max_streams: u32 = 1024;
    /// Longest time from the first byte of a request to the end of its headers.
    header_timeout_ms: u64 = 10_000;
    /// Longest time for a request body, plus one second for every 64 KiB received.
    body_timeout_ms: u64 = 30_000;
    /// Longest time that a connection may stay open between two requests.
    keep_alive_timeout_ms: u64 = 600_000;
    /// What `/v2/health/ready` answers when not ready: 400 (as Triton) or 503 (for load balancers).
    not_ready_status: u16 = 400;
    /// `none`, `explicit` or `poll`: whether clients may load and unload models.
    model_control: String = "none".into();
    /// Header (and gRPC metadata) that names a request's tenant; empty = there are no tenants.
    tenant_header: String = String::new();
    /// One JSON line per HTTP request on standard error.
    access_log: bool = false;
    /// Where durable requests are kept, `sqlite:FOLDER` or `redis://...`; empty = nowhere.
    journal: String = String::new();
    /// Most bytes of durable requests and their answers.
    journal_max_bytes: u64 = 1 << 30;
    /// How long the answer to a durable request is kept.
    journal_keep_ms: u64 = 3_600_000;
    /// How long a durable request waits for its model to be served.
    journal_patience_ms: u64 = 900_000;
    /// What the URL of a webhook may begin with.
    webhooks: Vec<String> = Vec::new();
    /// What server metadata tells as version.
    server_version: String = env!("CARGO_PKG_VERSION").into();
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
        let positive = named!(threads pool_threads max_connections max_body_bytes max_memory_bytes max_streams
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
            (
                r#"{"tenant_header":"a b"}"#,
                "tenant_header is 'a b', hint: use a header's name, such as x-tenant",
            ),
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
