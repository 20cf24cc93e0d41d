//! The shared memory extensions, as a server answers them that lets no client register memory.
//!
//! Clients (perf_analyzer among them) unregister everything before they begin, and ask for the status: both succeed.

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::grpc::{decode, reply};
use crate::proto;

/// A client that could name memory of this machine could read what is not its own; see the security page.
#[cold]
fn disabled() -> Error {
    Error::unavailable(
        "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.",
    )
}

#[cold]
fn no_region(kind: &str, name: &str) -> Error {
    Error::not_found(format!("Unable to find {kind} shared memory region: '{name}'"))
}

/// Paths below `/v2/systemsharedmemory` and `/v2/cudasharedmemory`.
pub(super) fn http(kind: &str, segments: &[&str]) -> Result<String> {
    match segments {
        ["status"] => Ok("[]".into()),
        ["region", name, "status"] => Err(no_region(kind, name)),
        ["unregister"] | ["region", _, "unregister"] => Ok(String::new()),
        ["register"] => Err(Error::invalid("'register' needs the name of a region")),
        _ => Err(disabled()),
    }
}

/// The six gRPC methods; anything else is unknown.
pub(super) fn grpc(method: &str, message: Bytes) -> Result<Vec<u8>> {
    let nothing = |kind, name: String| if name.is_empty() { Ok(()) } else { Err(no_region(kind, &name)) };
    match method {
        "SystemSharedMemoryStatus" => {
            nothing("system", decode::<proto::SystemSharedMemoryStatusRequest>(message)?.name)?;
            Ok(reply(&proto::SystemSharedMemoryStatusResponse::default()))
        }
        "CudaSharedMemoryStatus" => {
            nothing("cuda", decode::<proto::CudaSharedMemoryStatusRequest>(message)?.name)?;
            Ok(reply(&proto::CudaSharedMemoryStatusResponse::default()))
        }
        "SystemSharedMemoryUnregister" => Ok(reply(&proto::SystemSharedMemoryUnregisterResponse {})),
        "CudaSharedMemoryUnregister" => Ok(reply(&proto::CudaSharedMemoryUnregisterResponse {})),
        "SystemSharedMemoryRegister" | "CudaSharedMemoryRegister" => Err(disabled()),
        _ => Err(Error::unsupported(format!("there is no method '{method}'"))),
    }
}
