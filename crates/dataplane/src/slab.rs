//! Slabs: tensors in memory that gateway and actors share, so that a row is written once.
//!
//! The input slab of a model version is one sparse memfd, cut into slots; a slot holds one batch. The gateway maps it
//! for writing; actors get a descriptor that can only be read. The output slab belongs to one replica: the actor writes,
//! the gateway reads. Both are sealed against resizing: a file that shrinks under a mapping would kill the gateway.
//! `F_SEAL_FUTURE_WRITE` is not used because it also forbids giving idle pages back.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;

/// Slots and tensors begin at multiples of this: a page, so that idle slots can be given back.
const PAGE: usize = 4096;
/// Tensors inside a slot begin at multiples of this: a cache line, as engines like it.
const LINE: usize = 64;

fn last_error() -> io::Error {
    io::Error::last_os_error()
}

/// A shared mapping of a whole file.
struct Mapping {
    address: *mut u8,
    len: usize,
}

// SAFETY: the mapping is plain memory; who may touch which bytes is decided by the owners below.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: BorrowedFd<'_>, len: usize, writable: bool) -> io::Result<Self> {
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address that the kernel chooses; the result is checked.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(last_error());
        }
        Ok(Self { address: address.cast(), len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length, and nobody holds a slice of it: slices borrow the owner.
        unsafe { libc::munmap(self.address.cast(), self.len) };
    }
}

/// A memfd of a fixed length, mapped whole.
struct Memory {
    file: File,
    mapping: Mapping,
}

impl Memory {
    fn create(name: &std::ffi::CStr, len: usize, writable: bool) -> io::Result<Self> {
        // SAFETY: a plain system call with a valid C string; the result is checked.
        let raw = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if raw < 0 {
            return Err(last_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(raw) });
        file.set_len(len as u64)?;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: a plain system call on a valid descriptor.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(last_error());
        }
        let mapping = Mapping::new(file.as_fd(), len, writable)?;
        Ok(Self { file, mapping })
    }

    /// Gives the pages of a range back to the system; it reads as zeros afterwards.
    fn punch(&self, offset: usize, len: usize) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a plain system call on our own descriptor; failing only means that the pages stay.
        unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as i64, len as i64) };
    }
}

const fn round_up(value: usize, to: usize) -> usize {
    value.div_ceil(to) * to
}

/// A free slot and what it still holds.
struct FreeSlot {
    index: u32,
    touched: usize,
    since: Instant,
}

/// A memory cut into slots of one size, with a list of the free ones.
struct Slots {
    memory: Memory,
    slot_bytes: usize,
    free: Mutex<Vec<FreeSlot>>,
}

impl Slots {
    fn new(name: &std::ffi::CStr, slot_bytes: usize, num_slots: u32, writable: bool) -> io::Result<Self> {
        let slot_bytes = round_up(slot_bytes.max(1), PAGE);
        let len = slot_bytes
            .checked_mul(num_slots as usize)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let memory = Memory::create(name, len, writable)?;
        let since = Instant::now();
        let free = (0..num_slots).rev().map(|index| FreeSlot { index, touched: 0, since }).collect();
        Ok(Self { memory, slot_bytes, free: Mutex::new(free) })
    }

    fn give_back(&self, index: u32, touched: usize) {
        self.free.lock().push(FreeSlot { index, touched, since: Instant::now() });
    }

    fn trim(&self, now: Instant, idle: Duration) {
        for slot in self.free.lock().iter_mut() {
            if slot.touched > 0 && now.duration_since(slot.since) >= idle {
                self.memory.punch(slot.index as usize * self.slot_bytes, slot.touched);
                slot.touched = 0;
            }
        }
    }
}

/// The input slab of one model version.
pub struct InputSlab(Slots);

impl InputSlab {
    /// A slab of `num_slots` slots of at least `slot_bytes` each; costs no memory until it is written.
    pub fn new(slot_bytes: usize, num_slots: u32) -> io::Result<Arc<Self>> {
        Slots::new(c"lrai-input", slot_bytes, num_slots, true).map(|slots| Arc::new(Self(slots)))
    }

    /// The slab's length in bytes.
    pub fn total_bytes(&self) -> usize {
        self.0.memory.mapping.len
    }

    /// A descriptor that can be mapped for reading only.
    pub fn reader(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.0.memory.file.as_raw_fd());
        Ok(File::open(path)?.into())
    }

    /// Takes the most recently used free slot (its pages are warm).
    pub fn take(self: &Arc<Self>) -> Option<Slot> {
        let slot = self.0.free.lock().pop()?;
        Some(Slot { slab: Arc::clone(self), index: slot.index, touched: slot.touched })
    }

    /// Gives back the pages of slots that have been free for `idle`.
    pub fn trim(&self, now: Instant, idle: Duration) {
        self.0.trim(now, idle);
    }
}

/// One slot of an input slab, free again when dropped.
pub struct Slot {
    slab: Arc<InputSlab>,
    index: u32,
    touched: usize,
}

impl Slot {
    /// Where a byte of this slot lies in the slab.
    fn offset(&self, start: usize) -> usize {
        self.index as usize * self.slab.0.slot_bytes + start
    }

    fn address(&self, start: usize) -> *mut u8 {
        debug_assert!(start <= self.slab.0.slot_bytes);
        // SAFETY: callers pass offsets inside the slot, and the slot lies in the mapping.
        unsafe { self.slab.0.memory.mapping.address.add(self.offset(start)) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slab.0.give_back(self.index, self.touched);
    }
}

/// How one input lies in a slot.
#[derive(Clone, Copy, Debug)]
struct Column {
    /// Where it begins, from the slot's start.
    base: usize,
    /// Bytes set aside.
    capacity: usize,
    /// Bytes given out.
    used: usize,
}

/// A piece of a slot that one request writes.
pub struct Region {
    _slot: Arc<Slot>,
    address: *mut u8,
    len: usize,
}

// SAFETY: a region is handed out once and covers bytes that no other region covers.
unsafe impl Send for Region {}

impl Region {
    /// The bytes to write.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: inside the mapping, which `_slot` keeps alive; exclusive because `Buffer::append` never gives out a
        // byte twice and `Buffer::keep` runs only when no region is left.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.len) }
    }
}

/// Where a request's bytes of one input lie, from the slot's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// Number of bytes.
    pub len: usize,
}

/// The rows of one batch: a slot, cut into columns.
pub struct Buffer {
    slot: Arc<Slot>,
    columns: SmallVec<[Column; 2]>,
    max_rows: u32,
}

impl Buffer {
    /// Cuts a slot into one column per input. `row_bytes` is `None` for strings, which share what the others leave.
    /// Returns `None` where not even `rows` rows fit.
    pub fn new(mut slot: Slot, row_bytes: &[Option<usize>], rows: u32, max_rows: u32) -> Option<Self> {
        let total = slot.slab.0.slot_bytes;
        let per_row: usize = row_bytes.iter().flatten().sum();
        let padding = row_bytes.len() * LINE;
        let fitting = (total.saturating_sub(padding)).checked_div(per_row).unwrap_or(usize::MAX);
        let max_rows = max_rows.min(u32::try_from(fitting).unwrap_or(u32::MAX));
        if max_rows < rows {
            return None;
        }
        let fixed: usize =
            row_bytes.iter().flatten().map(|bytes| round_up(bytes * max_rows as usize, LINE)).sum();
        let strings = row_bytes.iter().filter(|bytes| bytes.is_none()).count();
        let share = total.saturating_sub(fixed).checked_div(strings).unwrap_or(0) / LINE * LINE;
        let mut base = 0;
        let columns = row_bytes
            .iter()
            .map(|&row_bytes| {
                let capacity = row_bytes.map_or(share, |bytes| round_up(bytes * max_rows as usize, LINE));
                let column = Column { base, capacity, used: 0 };
                base += capacity;
                column
            })
            .collect();
        slot.touched = slot.touched.max(if strings > 0 { total } else { base });
        Some(Self { slot: Arc::new(slot), columns, max_rows })
    }

    /// Most rows that it can hold.
    pub fn max_rows(&self) -> u32 {
        self.max_rows
    }

    /// Bytes given out.
    pub fn used(&self) -> usize {
        self.columns.iter().map(|column| column.used).sum()
    }

    /// Whether `sizes` more bytes fit, one per column.
    pub fn fits(&self, sizes: &[usize]) -> bool {
        self.columns.iter().zip(sizes).all(|(column, size)| column.used + size <= column.capacity)
    }

    /// Gives out the next bytes of every column, to be written once.
    pub fn append(&mut self, sizes: &[usize]) -> (SmallVec<[Region; 2]>, SmallVec<[Span; 2]>) {
        debug_assert!(self.fits(sizes));
        let slot = &self.slot;
        let mut spans = SmallVec::new();
        let regions = self.columns.iter_mut().zip(sizes).map(|(column, &len)| {
            assert!(column.used + len <= column.capacity, "the caller asked whether it fits");
            let start = column.base + column.used;
            column.used += len;
            spans.push(Span { start, len });
            Region { _slot: Arc::clone(slot), address: slot.address(start), len }
        });
        (regions.collect(), spans)
    }

    /// Moves the given spans together, so that each column is contiguous from its base; call it when nobody writes.
    /// `spans[request][column]` is updated.
    pub fn keep<'a>(&mut self, requests: impl Iterator<Item = &'a mut SmallVec<[Span; 2]>>) {
        assert_eq!(Arc::strong_count(&self.slot), 1, "nobody writes while rows move");
        for column in &mut self.columns {
            column.used = 0;
        }
        for spans in requests {
            for (column, span) in self.columns.iter_mut().zip(spans) {
                let target = column.base + column.used;
                if target != span.start {
                    // SAFETY: both ranges lie in this slot, and no region is left (asserted above).
                    unsafe {
                        std::ptr::copy(self.slot.address(span.start), self.slot.address(target), span.len);
                    };
                    span.start = target;
                }
                column.used += span.len;
            }
        }
    }

    /// Where a column's range begins in the slab.
    pub fn offset(&self, start: usize) -> u64 {
        self.slot.offset(start) as u64
    }

    /// The bytes of a span, for a digest.
    pub fn bytes(&self, span: Span) -> &[u8] {
        // SAFETY: spans come from `append` and lie in the slot; only regions write, and the owner of the buffer reads
        // when they are gone.
        unsafe { std::slice::from_raw_parts(self.slot.address(span.start), span.len) }
    }

    /// A second buffer over the same slot: the halves of a batch that is run again.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { slot: Arc::clone(&self.slot), columns: self.columns.clone(), max_rows: self.max_rows }
    }
}

/// The output slab of one replica: written by its actor, read by the gateway.
pub struct OutputSlab {
    slots: Slots,
    num_slots: u32,
}

impl OutputSlab {
    /// A sparse slab of `num_slots` slots.
    pub fn new(slot_bytes: usize, num_slots: u32) -> io::Result<Arc<Self>> {
        let slots = Slots::new(c"lrai-output", slot_bytes, num_slots, false)?;
        Ok(Arc::new(Self { slots, num_slots }))
    }

    /// The descriptor for the actor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.slots.memory.file.as_fd()
    }

    /// Bytes of one slot.
    pub fn slot_bytes(&self) -> usize {
        self.slots.slot_bytes
    }

    /// Number of slots.
    pub fn num_slots(&self) -> u32 {
        self.num_slots
    }

    /// Takes a free slot.
    pub fn take(self: &Arc<Self>) -> Option<OutputSlot> {
        let slot = self.slots.free.lock().pop()?;
        Some(OutputSlot { slab: Arc::clone(self), index: slot.index, touched: slot.touched })
    }

    /// Gives back the pages of slots that have been free for `idle`.
    pub fn trim(&self, now: Instant, idle: Duration) {
        self.slots.trim(now, idle);
    }
}

/// One slot of an output slab, free again when dropped.
pub struct OutputSlot {
    slab: Arc<OutputSlab>,
    index: u32,
    touched: usize,
}

impl OutputSlot {
    /// Its number, as the actor knows it.
    pub fn index(&self) -> u16 {
        self.index as u16
    }

    /// Remembers that the actor wrote up to here.
    pub fn touch(&mut self, end: usize) {
        self.touched = self.touched.max(end);
    }

    /// Bytes of the slot; `None` outside of it. The actor may change them at any time: readers copy, and check what
    /// they copied.
    pub fn bytes(&self, start: usize, len: usize) -> Option<&[u8]> {
        if start.checked_add(len)? > self.slab.slots.slot_bytes {
            return None;
        }
        let offset = self.index as usize * self.slab.slots.slot_bytes + start;
        // SAFETY: checked to lie in the mapping. Another process may write meanwhile; every bit pattern is a byte, and
        // no reader relies on seeing the same byte twice.
        Some(unsafe { std::slice::from_raw_parts(self.slab.slots.memory.mapping.address.add(offset), len) })
    }
}

impl Drop for OutputSlot {
    fn drop(&mut self) {
        self.slab.slots.give_back(self.index, self.touched);
    }
}

/// A mapping on the actor's side.
pub struct ActorMapping {
    mapping: Mapping,
    _file: OwnedFd,
}

impl ActorMapping {
    /// Maps a slab that the gateway sent.
    pub fn new(file: OwnedFd, len: usize, writable: bool) -> io::Result<Self> {
        Ok(Self { mapping: Mapping::new(file.as_fd(), len, writable)?, _file: file })
    }

    /// The first byte's address; valid as long as this value.
    pub fn address(&self) -> *mut u8 {
        self.mapping.address
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.mapping.len
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.mapping.len == 0
    }
}
