//! The load generator behind `lrai bench`: sends requests at scheduled times and records latencies.
//!
//! One thread drives all connections through epoll. In an open loop a latency counts from the instant at which the
//! request was *due*, also when it had to wait for a free connection, so a server that stalls cannot hide it by keeping
//! the client from asking. This crate shares no code with the server that it judges.

mod config;
mod connection;
mod engine;
mod environment;
mod frame;
mod grpc;
mod histogram;
mod hpack;
mod http;
mod report;
mod schedule;
mod tally;
mod wire;

pub use config::{Config, Protocol};
pub use engine::{Progress, run};
pub use histogram::Histogram;
pub use report::{ErrorCount, Latency, Report, Second, SendDelay};
pub use schedule::SplitMix;

/// Why a run could not take place. What goes wrong during a run is counted in its report instead.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A setting is out of range.
    #[error("{0}")]
    Config(String),
    /// The address cannot be used.
    #[error("cannot use address {address}: {reason}")]
    Address {
        /// As it was given.
        address: String,
        /// What the resolver said.
        reason: String,
    },
    /// The kernel refused an event queue.
    #[error("event queue: {0}")]
    Events(#[from] std::io::Error),
}
