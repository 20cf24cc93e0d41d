//! What Triton's extensions say in parameters: priority and time-out, binary answers, classification, shared memory.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot::error::RecvError;
use tokio::time::timeout_at;

use crate::answer::{Part, Ticket};
use crate::check::{Wanted, WantedOutput};
use crate::error::{Error, Result, refuse};
use crate::line::LOWEST;
use crate::request::Parameters;
use crate::stats::Refusal;
use crate::tensor::ModelSpec;

/// The value of the parameter `key`; of several the last.
pub(super) fn parameter<'p>(parameters: &'p Parameters<'_>, key: &str) -> Option<&'p Value> {
    parameters.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
}

/// The value of a parameter that must be `true` or `false`.
fn flag(parameters: &Parameters<'_>, key: &str) -> Result<Option<bool>> {
    match parameter(parameters, key) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => refuse!("Unable to parse '{key}': expected a boolean"),
    }
}

/// The value of a parameter that must be an integer of at least 0.
pub(super) fn unsigned(parameters: &Parameters<'_>, key: &str) -> Result<Option<u64>> {
    match parameter(parameters, key).map(Value::as_u64) {
        None => Ok(None),
        Some(None) => refuse!("Unable to parse '{key}': expected an integer of at least 0"),
        value => Ok(value.flatten()),
    }
}

/// Reads a request's own parameters; returns whether its outputs are binary where they do not say so themselves.
pub(crate) fn of_request(parameters: &Parameters<'_>, wanted: &mut Wanted) -> Result<bool> {
    let is_reserved = |key: &str| key.starts_with("triton_") && key != "triton_enable_empty_final_response";
    if parameters.iter().any(|(key, _)| is_reserved(key)) {
        let why = "are reserved for Triton usage and should not be specified.";
        refuse!("parameter keys starting with 'triton_' {why}");
    }
    // A model without state between requests ignores sequences, but not flags of a wrong type.
    flag(parameters, "sequence_start")?;
    flag(parameters, "sequence_end")?;
    let is_binary = flag(parameters, "binary_data_output")?.unwrap_or(false);
    wanted.priority = unsigned(parameters, "priority")?.unwrap_or(0);
    wanted.timeout_us = unsigned(parameters, "timeout")?.unwrap_or(0);
    Ok(is_binary)
}

impl ModelSpec {
    /// A request's class in the line; as in Triton, one that the model does not have counts as none.
    pub fn rank(&self, priority: u64) -> u32 {
        let asked = u32::try_from(priority).unwrap_or(LOWEST);
        let is_class = asked > 0 && (self.priority_levels == 0 || asked <= self.priority_levels);
        let default = if self.default_priority == 0 { LOWEST } else { self.default_priority };
        if is_class { asked } else { default }
    }
}

/// Waits for what becomes of a request, in the queue not longer than it allows.
pub(crate) async fn within(timeout_us: u64, ticket: &mut Ticket) -> Result<Result<Result<Part>, RecvError>> {
    let deadline = ticket.enqueued + Duration::from_micros(timeout_us);
    match timeout_at(deadline.into(), &mut ticket.receiver).await {
        Ok(outcome) => Ok(outcome),
        Err(_) if ticket.model.is_waiting(ticket.batch) => {
            Err(ticket.refuse("Request timeout expired", Refusal::Deadline))
        }
        // What is being computed is not waiting any more.
        Err(_) => Ok((&mut ticket.receiver).await),
    }
}

/// Reads the parameters of an output.
pub(crate) fn of_output(parameters: &Parameters<'_>, wanted: &mut WantedOutput) -> Result<()> {
    refuse_shared_memory(parameters)?;
    wanted.binary = flag(parameters, "binary_data")?.unwrap_or(wanted.binary);
    let classes = unsigned(parameters, "classification")?.unwrap_or(0);
    wanted.classification = u32::try_from(classes).unwrap_or(u32::MAX);
    Ok(())
}

/// Refuses an input or an output that is to be in memory of the client's.
pub(crate) fn refuse_shared_memory(parameters: &Parameters<'_>) -> Result<()> {
    if parameter(parameters, "shared_memory_region").is_some() {
        let cure = "Start the server with '--allow-client-shm=true' to enable.";
        refuse!("Client shared memory is disabled. {cure}");
    }
    Ok(())
}

/// Refuses a request that asks to be kept, or for one that is kept, so that its face hears of it: who only puts requests
/// into queues keeps none.
pub(crate) fn refuse_durable(parameters: &Parameters<'_>) -> Result<()> {
    let is_durable = !parameters.is_empty()
        && (flag(parameters, "durable")?.unwrap_or(false) || parameter(parameters, "durable_id").is_some());
    if is_durable {
        let text =
            "this server takes no durable requests here, hint: serve with --journal sqlite or redis://...";
        return Err(Error::durable(format!("{text}, and send them over HTTP or as ModelInfer")));
    }
    Ok(())
}
