//! One inference, whatever face it came through: submitted, awaited, encoded, counted.

use std::sync::Arc;

use futures_util::TryFutureExt;

use crate::answer::{Answer, Ticket};
use crate::error::{Code, Error, Result};
use crate::models::Model;
use crate::pool::Pool;
use crate::request::{InferRequest, Sender, tag};
use crate::stats::Refusal;

/// Runs `submit`, waits for the answer, runs `encode` on it; each in the pool if what it works on is large. Dropping the
/// future cancels the request. Not `async`, which keeps what it is given twice.
pub fn infer<T: Send + 'static>(
    pool: &Pool,
    (is_large, submit): (bool, impl FnOnce() -> Result<Ticket> + Send + 'static),
    is_large_answer: impl FnOnce(&Answer) -> bool,
    encode: impl FnOnce(&Answer) -> Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> {
    pool.run(is_large, submit).and_then(move |ticket| finish(pool, ticket, is_large_answer, encode))
}

/// The second half: waits for the answer of what was submitted, and encodes it.
pub fn finish<T: Send + 'static>(
    pool: &Pool,
    ticket: Ticket,
    is_large_answer: impl FnOnce(&Answer) -> bool,
    encode: impl FnOnce(&Answer) -> Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> {
    ticket.answer().and_then(move |answer| {
        let is_large = is_large_answer(&answer);
        pool.run(is_large, move || {
            let encoded = encode(&answer).map_err(|error| tag(&answer.wanted.id, error))?;
            answer.encoded();
            Ok(encoded)
        })
    })
}

/// Puts a request into its model's queue; one that could not be understood is counted.
pub fn submit(model: &Arc<Model>, sender: Sender, parsed: Result<InferRequest<'_>>) -> Result<Ticket> {
    let request = parsed.inspect_err(|error| refused(model, error))?;
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
