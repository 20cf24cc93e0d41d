//! The one place that knows the HTTP and gRPC numbers behind a [`Code`].

use http::StatusCode;

use crate::error::Code;

/// The HTTP status of a code, as Triton maps them.
pub const fn http(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument | Code::AlreadyExists | Code::Cancelled => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The gRPC status of a code, as Triton maps them.
pub const fn grpc(code: Code) -> tonic::Code {
    match code {
        Code::InvalidArgument => tonic::Code::InvalidArgument,
        Code::NotFound => tonic::Code::NotFound,
        Code::Unavailable => tonic::Code::Unavailable,
        Code::TooLarge => tonic::Code::ResourceExhausted,
        Code::Unsupported => tonic::Code::Unimplemented,
        Code::AlreadyExists => tonic::Code::AlreadyExists,
        Code::Cancelled => tonic::Code::Cancelled,
        Code::Internal => tonic::Code::Internal,
    }
}
