//! One non-blocking connection: its socket, what it is doing, and the bytes in both directions.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType};

use crate::LoadError;
use crate::wire::{Answer, Fault, Wire};

/// For the choice among several addresses of one name.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The handshake is under way.
    Connecting,
    /// Ready for a request.
    Idle,
    /// Carries the request that was due at that nanosecond of the run.
    Busy(u64),
}

/// What reading brought.
pub enum Heard {
    /// Nothing that ends a request.
    Nothing,
    /// The answer.
    Answer(Answer),
    /// The connection is gone; a request on it has failed for that reason.
    Gone(Fault),
}

/// One connection.
pub struct Connection {
    pub phase: Phase,
    pub wire: Wire,
    socket: OwnedFd,
}

impl Connection {
    /// Begins to connect; whether it fails is known when the socket becomes writable, or at once.
    pub fn open(address: &SocketAddrAny, wire: Wire) -> Result<Self, Fault> {
        let socket = rustix::net::socket_with(
            address.address_family(),
            SocketType::STREAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| fault("connect", error))?;
        if address.address_family() != AddressFamily::UNIX {
            rustix::net::sockopt::set_tcp_nodelay(&socket, true).map_err(|error| fault("connect", error))?;
        }
        match rustix::net::connect(&socket, address) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(Self { phase: Phase::Connecting, wire, socket }),
            Err(error) => Err(fault("connect", error)),
        }
    }

    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The handshake has ended: how.
    pub fn connected(&self) -> Result<(), Fault> {
        match rustix::net::sockopt::socket_error(&self.socket) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) | Err(error) => Err(fault("connect", error)),
        }
    }

    /// Sends a request, as far as the socket takes it.
    pub fn send(&mut self, request: &Arc<[u8]>, due: u64) -> Result<(), Fault> {
        self.phase = Phase::Busy(due);
        self.wire.start(request);
        self.flush()
    }

    /// Writes what waits to be written.
    pub fn flush(&mut self) -> Result<(), Fault> {
        loop {
            let pending = self.wire.pending();
            if pending.is_empty() {
                return Ok(());
            }
            match rustix::net::send(&self.socket, pending, rustix::net::SendFlags::NOSIGNAL) {
                Ok(count) => self.wire.wrote(count),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(fault("reset", error)),
            }
        }
    }

    /// Reads what has arrived. `until_end`: the peer has closed, so read on to the end.
    pub fn read(&mut self, buffer: &mut [u8], until_end: bool) -> Heard {
        let mut heard = Heard::Nothing;
        loop {
            match rustix::io::read(&self.socket, &mut *buffer) {
                Ok(0) => {
                    return match (heard, self.wire.end()) {
                        (Heard::Answer(answer), _) | (Heard::Nothing, Some(answer)) => {
                            Heard::Answer(Answer { reusable: false, ..answer })
                        }
                        _ => Heard::Gone(Fault::new("closed", "connection closed before the answer")),
                    };
                }
                Ok(count) => match self.wire.read(&buffer[..count]) {
                    Ok(answer) => {
                        if let Some(answer) = answer {
                            heard = Heard::Answer(answer);
                        }
                        // The socket is registered edge-triggered: a short read has emptied it, and more makes a new event.
                        if count < buffer.len() && !until_end {
                            break;
                        }
                    }
                    Err(fault) => return Heard::Gone(fault),
                },
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Heard::Gone(fault("reset", error)),
            }
        }
        // Acknowledgements, and DATA that a new window allows.
        match self.flush() {
            Err(fault) if !matches!(heard, Heard::Answer(_)) => Heard::Gone(fault),
            _ => heard,
        }
    }
}

/// The first address behind `host:port` or `unix:/path` that takes a connection.
pub fn resolve(address: &str) -> Result<SocketAddrAny, LoadError> {
    let refuse = |reason: String| LoadError::Address { address: address.to_owned(), reason };
    if let Some(path) = address.strip_prefix("unix:") {
        let unix = SocketAddrUnix::new(path).map_err(|error| refuse(error.to_string()))?;
        return Ok(unix.into());
    }
    let found: Vec<_> = address.to_socket_addrs().map_err(|error| refuse(error.to_string()))?.collect();
    // `localhost` may name two addresses of which one has a listener.
    let takes = |address: &&SocketAddr| TcpStream::connect_timeout(address, PATIENCE).is_ok();
    let takes = if found.len() > 1 { found.iter().find(takes) } else { None };
    let chosen = takes.or(found.first()).ok_or_else(|| refuse("it names no address".into()))?;
    Ok((*chosen).into())
}

fn fault(kind: &str, error: Errno) -> Fault {
    Fault::new(kind, std::io::Error::from(error).to_string())
}
