//! One inference, whatever face it came through: submitted, awaited, encoded, counted.

use std::sync::Arc;

use futures_util::TryFutureExt;

use crate::answer::{Answer, Ticket};
use crate::error::{Code, Error, Result};
use crate::faces::parameters::refuse_durable;
use crate::models::Model;
use crate::pool::Pool;
use crate::request::{InferRequest, Sender, tag};
use crate::stats::Refusal;

/// Waits for the answer of what was submitted, and runs `encode` on it, in the pool if it is large. Dropping the future
/// cancels the request. Not `async`, which keeps what it is given twice.
pub fn finish<T: Send + 'static>(
    pool: &Pool,
    ticket: Ticket,
    is_large_answer: impl FnOnce(&Answer) -> bool,
    encode: impl FnOnce(&Answer) -> Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> {
    ticket.answer().and_then(move |answer| {
        let is_large = is_large_answer(&answer);
        pool.run(is_large, move || {
            let encoded = encode(&answer).map_err(|error| tag(&answer.wanted().id, error))?;
            answer.encoded();
            Ok(encoded)
        })
    })
}

/// Puts a request into its model's queue; one that could not be understood is counted. One that asks to be kept comes back.
pub fn submit(model: &Arc<Model>, sender: Sender, parsed: Result<InferRequest<'_>>) -> Result<Ticket> {
    let request = parsed.inspect_err(|error| refused(model, error))?;
    refuse_durable(&request.parameters)?;
    model.submit(&InferRequest { sender, ..request })
}

/// Counts a request that never came as far as the queue.
#[cold]
pub fn refused(model: &Model, error: &Error) {
    let why = match error.code {
        Code::Unavailable => Refusal::BytesFull,
        Code::TooLarge => Refusal::TooLarge,
        Code::Timeout => Refusal::Deadline,
        _ => Refusal::Invalid,
    };
    model.stats.refused(why, 0);
}
