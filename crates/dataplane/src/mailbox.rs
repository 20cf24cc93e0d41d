//! The actor's end of the link: receives batches, tells when their outputs are written.

use std::io;
use std::os::fd::OwnedFd;

use crate::link::Link;
use crate::slab::ActorMapping;
use crate::wire::{Place, Reply, Run};

/// One replica's mailbox.
pub struct Mailbox {
    link: Link,
    /// The input slab, which can only be read.
    pub input: ActorMapping,
    /// The output slab.
    pub output: ActorMapping,
    /// Length of one output slot.
    pub output_slot_bytes: u64,
}

impl Mailbox {
    /// Waits for the slabs and maps them. `None` if the gateway closed the link instead.
    pub fn open(link: OwnedFd) -> io::Result<Option<Self>> {
        let link = Link::new(link, false)?;
        let Some((attach, input, output)) = link.receive_attach()? else { return Ok(None) };
        let output_bytes = attach.output_slot_bytes * u64::from(attach.output_slots);
        Ok(Some(Self {
            input: ActorMapping::new(input, attach.input_bytes as usize, false)?,
            output: ActorMapping::new(output, output_bytes as usize, true)?,
            output_slot_bytes: attach.output_slot_bytes,
            link,
        }))
    }

    /// Says that batches may come.
    pub fn ready(&self) -> io::Result<()> {
        self.link.send(&Reply::Ready.encode())
    }

    /// The next batch; blocks. `None` when the gateway has closed the link.
    pub fn receive(&self) -> io::Result<Option<Run>> {
        self.link.next_run()
    }

    /// Says that a batch's outputs are written.
    pub fn done(
        &self,
        batch: u64,
        compute_ns: u64,
        outputs: impl IntoIterator<Item = Place>,
    ) -> io::Result<()> {
        let outputs = outputs.into_iter().collect();
        self.link.send(&Reply::Done { batch, compute_ns, outputs }.encode())
    }

    /// Says that a batch failed and why.
    pub fn failed(&self, batch: u64, code: u8, message: String) -> io::Result<()> {
        self.link.send(&Reply::Failed { batch, code, message }.encode())
    }
}
