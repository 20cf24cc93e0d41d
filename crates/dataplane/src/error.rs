//! The one error type of the data plane: a protocol-neutral code and a sentence.
//!
//! Only `status.rs` knows the HTTP and gRPC numbers behind a code.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A refusal with its reason; the text is what a client sees.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Error {
    /// The kind.
    pub code: Code,
    /// One sentence, without a final period; may end with ` hint: ...`.
    pub message: Cow<'static, str>,
    /// Seconds after which it is worth another try; 0 = that is not known.
    pub retry_after_s: u32,
}

/// The data plane's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a client is told of a fault of ours; the panic hook has told the rest.
pub const PANICKED: &str = "the server failed on this request";

/// Longest message in characters: names that a client sends are part of it, and it travels in a header of gRPC.
const MAX_MESSAGE: usize = 2048;

impl Error {
    /// A refusal of that kind; a very long message loses its end.
    #[cold]
    pub fn new(code: Code, mut message: Cow<'static, str>) -> Self {
        if message.len() > MAX_MESSAGE {
            message = message.chars().take(MAX_MESSAGE).collect();
        }
        Self { code, message, retry_after_s: u32::from(code == Code::Unavailable) }
    }

    /// The same, with the time after which it is worth another try.
    #[must_use]
    pub fn retry_after(mut self, time: Duration) -> Self {
        self.retry_after_s = time.as_secs_f64().ceil().max(1.0) as u32;
        self
    }
}

/// Defines the codes, each with the constructor of its errors.
macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $constructor:ident,)*) => {
        /// What kind of refusal this is (protocol-neutral).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code { $($(#[$doc])* $code,)* }

        impl Error { $($(#[$doc])* #[cold] pub fn $constructor(message: impl Into<Cow<'static, str>>) -> Self {
            Self::new(Code::$code, message.into())
        })* }
    };
}

codes! {
    /// The request itself is wrong.
    InvalidArgument = invalid,
    /// Nothing of that name exists.
    NotFound = not_found,
    /// It exists, but cannot answer now: overload, not ready, draining, queue time-out.
    Unavailable = unavailable,
    /// The body or its decoded form is above a limit.
    TooLarge = too_large,
    /// The protocol knows it, this server does not do it.
    Unsupported = unsupported,
    /// It did not come, or was not done, in the time that it had.
    Timeout = timeout,
    /// The model or the server failed.
    Internal = internal,
    /// It asks to be kept in the journal, which its face sees to.
    Durable = durable,
    /// It contradicts an earlier one.
    Conflict = conflict,
    /// There is no room to keep it.
    Full = full,
}

/// Returns from the function because the request is wrong; takes what `format!` takes.
macro_rules! refuse {
    ($($text:tt)*) => { return Err($crate::error::Error::invalid(format!($($text)*))) };
}
pub(crate) use refuse;
