//! The socket between gateway and actor: whole messages, descriptors, end of file.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::wire::{Attach, MAX_MESSAGE, Reply, Run};

/// Room for two descriptors in a control message, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 32]);

/// One end of a `SOCK_SEQPACKET` pair.
pub struct Link {
    fd: OwnedFd,
}

impl Link {
    /// Takes over a connected socket; it becomes non-blocking where the gateway reads it.
    pub fn new(fd: OwnedFd, nonblocking: bool) -> io::Result<Self> {
        // SAFETY: plain system calls on a descriptor that we own.
        let outcome = unsafe {
            let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
            let wanted = if nonblocking { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
            libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, wanted)
        };
        if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { fd }) }
    }

    /// Sends the slabs to the actor.
    pub fn attach(&self, message: Attach, slabs: [BorrowedFd<'_>; 2]) -> io::Result<()> {
        let packet = message.encode();
        let mut part = libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
        let mut control = Control([0; 32]);
        // SAFETY: the header points at live buffers of the stated sizes; CMSG_* stay inside `control`, which holds two
        // descriptors (24 bytes of the 32).
        let sent = unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = &raw mut part;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(8) as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(8) as _;
            let data = libc::CMSG_DATA(first).cast::<[u8; size_of::<RawFd>()]>();
            data.write(slabs[0].as_raw_fd().to_ne_bytes());
            data.add(1).write(slabs[1].as_raw_fd().to_ne_bytes());
            libc::sendmsg(self.fd.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Receives the slabs, as the actor; blocks. `None` at end of file.
    pub fn receive_attach(&self) -> io::Result<Option<(Attach, OwnedFd, OwnedFd)>> {
        let mut buffer = [0u8; 64];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut control = Control([0; 32]);
        let mut descriptors: SmallVec<[OwnedFd; 2]> = SmallVec::new();
        // SAFETY: as in `attach`; received descriptors are new and owned by nobody else.
        let len = unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = &raw mut part;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = control.0.len() as _;
            let len = libc::recvmsg(self.fd.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC);
            let first = if len > 0 { libc::CMSG_FIRSTHDR(&raw const header) } else { std::ptr::null_mut() };
            if !first.is_null() && (*first).cmsg_type == libc::SCM_RIGHTS {
                let count = ((*first).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                let data = libc::CMSG_DATA(first).cast::<[u8; size_of::<RawFd>()]>();
                for index in 0..count {
                    descriptors.push(OwnedFd::from_raw_fd(RawFd::from_ne_bytes(data.add(index).read())));
                }
            }
            len
        };
        if len < 0 {
            return Err(io::Error::last_os_error());
        }
        if len == 0 {
            return Ok(None);
        }
        match (Attach::decode(&buffer[..len as usize]), descriptors.pop(), descriptors.pop()) {
            (Some(attach), Some(output), Some(input)) => Ok(Some((attach, input, output))),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the first message is not ATTACH")),
        }
    }

    /// Sends one packet. A gateway never waits here: a full socket buffer means that the actor has stopped reading.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        // SAFETY: a plain system call on a live buffer.
        let sent = unsafe {
            libc::send(self.fd.as_raw_fd(), packet.as_ptr().cast(), packet.len(), libc::MSG_NOSIGNAL)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Receives one packet into `buffer`; 0 bytes at end of file. A packet that does not fit is an error.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: a plain system call on a live buffer; MSG_TRUNC makes it return the packet's true length.
        let len = unsafe {
            libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_TRUNC)
        };
        match usize::try_from(len) {
            Err(_) => Err(io::Error::last_os_error()),
            Ok(len) if len > buffer.len() => Err(io::ErrorKind::InvalidData.into()),
            Ok(len) => Ok(len),
        }
    }

    /// The next RUN, as the actor; blocks. `None` at end of file.
    pub fn next_run(&self) -> io::Result<Option<Run>> {
        let mut buffer = [0u8; MAX_MESSAGE];
        loop {
            match self.receive(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(len) => {
                    return Run::decode(&buffer[..len])
                        .map(Some)
                        .ok_or_else(|| io::ErrorKind::InvalidData.into());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Tells the actor to leave.
    pub fn close(&self) {
        // SAFETY: a plain system call; a socket already closed by the other side is fine.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

/// A link as tokio's selector needs it.
struct Shared(Arc<Link>);

impl AsRawFd for Shared {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd.as_raw_fd()
    }
}

/// The gateway's reading half, on a runtime.
pub struct LinkReader {
    link: AsyncFd<Shared>,
    buffer: Box<[u8; MAX_MESSAGE]>,
}

impl LinkReader {
    /// Must be called on the runtime that will read.
    pub fn new(link: Arc<Link>) -> io::Result<Self> {
        // SAFETY: a shared link keeps its one descriptor open and never changes it.
        let link = unsafe { AsyncFd::register_with_interest(Shared(link), Interest::READABLE)? };
        Ok(Self { link, buffer: Box::new([0; MAX_MESSAGE]) })
    }

    /// The next message; `Ok(None)` at end of file, an error if the actor does not speak the protocol.
    pub async fn next(&mut self) -> io::Result<Option<Reply>> {
        loop {
            // Reading first saves a poll of the selector when the next message is already there.
            match self.link.get_ref().0.receive(&mut self.buffer[..]) {
                Ok(0) => return Ok(None),
                Ok(len) => {
                    return Reply::decode(&self.buffer[..len])
                        .map(Some)
                        .ok_or_else(|| io::ErrorKind::InvalidData.into());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.link.readable().await?.clear_ready();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}
