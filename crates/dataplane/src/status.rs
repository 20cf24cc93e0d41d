//! The one place that knows the HTTP and gRPC numbers behind a [`Code`].

use http::StatusCode;
use tonic::Status;

use crate::error::{Code, Error};

/// Both numbers of a code, as Triton maps them.
const fn numbers(code: Code) -> (StatusCode, tonic::Code) {
    match code {
        Code::InvalidArgument => (StatusCode::BAD_REQUEST, tonic::Code::InvalidArgument),
        Code::NotFound => (StatusCode::NOT_FOUND, tonic::Code::NotFound),
        Code::Timeout => (StatusCode::REQUEST_TIMEOUT, tonic::Code::DeadlineExceeded),
        Code::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, tonic::Code::ResourceExhausted),
        Code::Internal => (StatusCode::INTERNAL_SERVER_ERROR, tonic::Code::Internal),
        Code::Conflict => (StatusCode::CONFLICT, tonic::Code::AlreadyExists),
        Code::Full => (StatusCode::INSUFFICIENT_STORAGE, tonic::Code::ResourceExhausted),
        Code::Unsupported | Code::Durable => (StatusCode::NOT_IMPLEMENTED, tonic::Code::Unimplemented),
        Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, tonic::Code::Unavailable),
    }
}

/// The HTTP status of a code.
pub const fn http(code: Code) -> StatusCode {
    numbers(code).0
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut status = Self::new(numbers(error.code).1, error.message);
        if error.retry_after_s > 0 {
            status.metadata_mut().insert("retry-after", error.retry_after_s.into());
        }
        status
    }
}
