//! A socket file instead of ports.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::listen::BACKLOG;

/// Binds a socket file that only owner and group may use; replaces one that nobody listens to.
pub fn bind(path: &Path) -> io::Result<Socket> {
    let address = SockAddr::unix(path)?;
    let socket = || Socket::new(Domain::UNIX, Type::STREAM, None);
    if let Ok(former) = fs::symlink_metadata(path) {
        if !former.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is no socket"));
        }
        if socket()?.connect(&address).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        fs::remove_file(path)?;
    }
    let socket = socket()?;
    socket.set_nonblocking(true)?;
    socket.bind(&address)?;
    // Nobody can connect before `listen`, so nobody slips in under the wider mode.
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}
