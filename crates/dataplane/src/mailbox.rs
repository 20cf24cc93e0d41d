//! The actor's end of the link: receives batches, tells when their outputs are written.

use std::io;
use std::os::fd::OwnedFd;

use memmap2::{MmapOptions, MmapRaw};

use crate::link::Link;
use crate::wire::{MAX_MESSAGE, MAX_TEXT, Place, Reply, Run};

/// One replica's mailbox.
pub struct Mailbox {
    link: Link,
    /// The input slab, which can only be read.
    pub input: MmapRaw,
    /// The output slab.
    pub output: MmapRaw,
    /// Length of one output slot.
    pub output_slot_bytes: u64,
}

impl Mailbox {
    /// Waits for the slabs and maps them. `None` if the gateway closed the link instead.
    pub fn open(link: OwnedFd) -> io::Result<Option<Self>> {
        let link = Link::new(link, false)?;
        let Some((attach, input, output)) = link.receive_attach()? else { return Ok(None) };
        Ok(Some(Self {
            input: MmapOptions::new().len(attach.input_bytes as usize).map_raw_read_only(&input)?,
            output: MmapOptions::new().len(attach.output_bytes as usize).map_raw(&output)?,
            output_slot_bytes: attach.output_slot_bytes,
            link,
        }))
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
