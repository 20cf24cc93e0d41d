//! The deadline of a gRPC call: the time that its client gives it.

use std::time::Duration;

use http::HeaderMap;

use crate::error::{Error, Result};

/// The time that a client gives a call: at most eight digits and a unit.
pub fn of_call(headers: &HeaderMap) -> Result<Option<Duration>> {
    // One entry for each unit of the gRPC protocol: its letter and its nanoseconds.
    const UNITS: [(char, u64); 6] = [
        ('H', 3_600_000_000_000),
        ('M', 60_000_000_000),
        ('S', 1_000_000_000),
        ('m', 1_000_000),
        ('u', 1_000),
        ('n', 1),
    ];
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let time = value.to_str().ok().and_then(|text| {
        let (digits, nanos) =
            UNITS.iter().find_map(|(unit, nanos)| Some((text.strip_suffix(*unit)?, nanos)))?;
        let count = digits.parse::<u64>().ok().filter(|_| digits.len() <= 8)?;
        Some(Duration::from_nanos(count.saturating_mul(*nanos)))
    });
    let hint = || format!("grpc-timeout {value:?} is not a time, hint: for example 500m or 2S");
    time.map(Some).ok_or_else(|| Error::invalid(hint()))
}

/// The end of a call whose time has passed.
#[cold]
pub fn passed() -> Error {
    Error::timeout("the call's grpc-timeout has passed")
}
