//! The socket between gateway and actor: whole messages, descriptors, end of file.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::cmsg_space;
use rustix::io::{Errno, ioctl_fionbio, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, recv, recvmsg, send, sendmsg, shutdown,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::wire::{MAX_MESSAGE, MAX_TEXT, Place, Reply, Run, decode, encode};

/// One end of a `SOCK_SEQPACKET` pair.
pub struct Link(OwnedFd);

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Link {
    /// Takes over a connected socket; it becomes non-blocking where the gateway reads it.
    pub fn new(fd: OwnedFd, nonblocking: bool) -> io::Result<Self> {
        ioctl_fionbio(&fd, nonblocking)?;
        Ok(Self(fd))
    }

    /// Sends ATTACH, the first message: the descriptors of the slabs and the length of an output slot.
    pub fn attach(&self, output_slot_bytes: u64, slabs: [BorrowedFd<'_>; 2]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&slabs));
        sendmsg(&self.0, &[IoSlice::new(&encode(&output_slot_bytes))], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Sends a message. A gateway never waits here: a full socket buffer means that the actor has stopped reading.
    pub fn send(&self, message: &impl Serialize) -> io::Result<()> {
        send(&self.0, &encode(message), SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Receives a message into `buffer`; `None` at end of file. One that does not fit is an error.
    pub fn receive<T: DeserializeOwned>(&self, buffer: &mut [u8]) -> io::Result<Option<T>> {
        // TRUNC makes it return the packet's true length.
        match retry_on_intr(|| recv(&self.0, &mut *buffer, RecvFlags::TRUNC)) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(None),
            Ok((_, len)) => match buffer.get(..len).and_then(decode) {
                None => Err(io::ErrorKind::InvalidData.into()),
                message => Ok(message),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Tells the other side to leave.
    pub fn close(&self) {
        // A socket already closed by the other side is fine.
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

/// The gateway's reading half, on a runtime.
pub struct LinkReader {
    link: AsyncFd<Arc<Link>>,
    buffer: Box<[u8; MAX_MESSAGE]>,
}

impl LinkReader {
    /// Must be called on the runtime that will read.
    pub fn new(link: Arc<Link>) -> io::Result<Self> {
        // SAFETY: a shared link keeps its one descriptor open and never changes it.
        let link = unsafe { AsyncFd::register_with_interest(link, Interest::READABLE)? };
        Ok(Self { link, buffer: Box::new([0; MAX_MESSAGE]) })
    }

    /// The next message; `Ok(None)` at end of file, an error if the actor does not speak the protocol.
    pub async fn next(&mut self) -> io::Result<Option<Reply>> {
        loop {
            // Reading first saves a poll of the selector when the next message is already there.
            match self.link.get_ref().receive(&mut self.buffer[..]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.link.readable().await?.clear_ready();
                }
                outcome => return outcome,
            }
        }
    }
}

/// The actor's end: receives batches, tells when their outputs are written.
pub struct Mailbox {
    link: Link,
    /// The input slab, which can only be read.
    pub input: OwnedFd,
    /// The output slab.
    pub output: OwnedFd,
    /// Length of one output slot.
    pub output_slot_bytes: u64,
}

impl Mailbox {
    /// Waits for the slabs. `None` if the gateway closed the link instead.
    pub fn open(link: OwnedFd) -> io::Result<Option<Self>> {
        let link = Link::new(link, false)?;
        let (mut buffer, mut space) = ([0; 64], [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut buffer)];
        let len = recvmsg(&link.0, parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        if len == 0 {
            return Ok(None);
        }
        let mut slabs = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(slabs) => slabs.collect(),
            _ => Vec::new(),
        });
        let (Some(output_slot_bytes), Some(input), Some(output)) =
            (decode(&buffer[..len]), slabs.next(), slabs.next())
        else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the first message is not ATTACH"));
        };
        Ok(Some(Self { link, input, output, output_slot_bytes }))
    }

    /// Says that batches may come.
    pub fn ready(&self) -> io::Result<()> {
        self.link.send(&Reply::Ready)
    }

    /// The next batch; blocks. `None` when the gateway has closed the link.
    pub fn receive(&self) -> io::Result<Option<Run>> {
        self.link.receive(&mut [0; MAX_MESSAGE])
    }

    /// Says that a batch's outputs are written.
    pub fn done(
        &self,
        batch: u64,
        compute_ns: u64,
        outputs: impl IntoIterator<Item = Place>,
    ) -> io::Result<()> {
        self.link.send(&Reply::Done { batch, compute_ns, outputs: outputs.into_iter().collect() })
    }

    /// Says that a batch failed and why.
    pub fn failed(&self, batch: u64, code: u8, message: &str) -> io::Result<()> {
        let message = message.chars().take(MAX_TEXT).collect();
        self.link.send(&Reply::Failed { batch, code, message })
    }
}
