//! Slabs: tensors in memory that gateway and actors share, so that a row is written once.
//!
//! The input slab of a model version is one sparse memfd, cut into slots; a slot holds one batch. The gateway maps it
//! for writing; actors get a descriptor that can only be read. The output slab belongs to one replica: the actor writes,
//! the gateway reads. Both are sealed against resizing: a file that shrinks under a mapping would kill the gateway.
//! `F_SEAL_FUTURE_WRITE` is not used because it also forbids giving idle pages back.

use std::borrow::BorrowMut;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};
use smallvec::SmallVec;

/// Slots and tensors begin at multiples of this: a page, so that idle slots can be given back.
const PAGE: usize = 4096;
/// Tensors inside a slot begin at multiples of this: a cache line, as engines like it.
const LINE: usize = 64;

/// A free slot and what it still holds.
struct FreeSlot {
    index: u32,
    touched: usize,
    since: Instant,
}

/// A sealed memfd, cut into slots of one size.
pub struct Slab {
    file: File,
    mapping: MmapRaw,
    /// Bytes of one slot.
    pub slot_bytes: usize,
    free: Mutex<Vec<FreeSlot>>,
}

impl Slab {
    /// A slab of `num_slots` slots of at least `slot_bytes` each; costs no memory until it is written. The gateway maps it
    /// for reading only if it is not `writable`.
    pub fn new(name: &CStr, slot_bytes: usize, num_slots: u32, writable: bool) -> io::Result<Arc<Self>> {
        let slot_bytes = slot_bytes.max(1).next_multiple_of(PAGE);
        let len = slot_bytes.checked_mul(num_slots as usize).ok_or(io::ErrorKind::OutOfMemory)?;
        let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(len as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let mut options = MmapOptions::new();
        options.len(len).no_reserve_swap();
        let mapping = if writable { options.map_raw(&file)? } else { options.map_raw_read_only(&file)? };
        let since = Instant::now();
        let free = (0..num_slots).rev().map(|index| FreeSlot { index, touched: 0, since }).collect();
        Ok(Arc::new(Self { file, mapping, slot_bytes, free: Mutex::new(free) }))
    }

    /// The descriptor with which it can be written.
    pub fn writer(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A descriptor that can be mapped for reading only.
    pub fn reader(&self) -> io::Result<OwnedFd> {
        Ok(File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?.into())
    }

    /// Takes the most recently used free slot (its pages are warm).
    pub fn take(self: &Arc<Self>) -> Option<Slot> {
        let FreeSlot { index, touched, .. } = self.free.lock().pop()?;
        Some(Slot { slab: Arc::clone(self), index, touched })
    }

    /// Gives the pages of slots that have been free for `idle` back to the system.
    pub fn trim(&self, now: Instant, idle: Duration) {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for slot in self.free.lock().iter_mut() {
            if slot.touched > 0 && now.duration_since(slot.since) >= idle {
                let offset = slot.index as usize * self.slot_bytes;
                // Failing only means that the pages stay.
                let _ = fallocate(&self.file, mode, offset as u64, slot.touched as u64);
                slot.touched = 0;
            }
        }
    }
}

/// One slot of a slab, free again when dropped.
pub struct Slot {
    /// Its number, as the actor knows it.
    pub index: u32,
    slab: Arc<Slab>,
    touched: usize,
}

impl Slot {
    /// Remembers that it is written up to here.
    pub fn touch(&mut self, end: usize) {
        self.touched = self.touched.max(end);
    }

    /// Bytes of the slot; `None` outside of it. An actor may change those of an output slot at any time: readers copy, and
    /// check what they copied.
    pub fn bytes(&self, span: Span) -> Option<&[u8]> {
        let is_inside = span.start.checked_add(span.len)? <= self.slab.slot_bytes;
        // SAFETY: checked to lie in the slot. Another process may write meanwhile; every bit pattern is a byte, and no
        // reader relies on seeing the same byte twice. This one writes through regions only, which are gone when the
        // rows that they wrote are read.
        is_inside.then(|| unsafe { std::slice::from_raw_parts(self.address(span.start), span.len) })
    }

    /// Where a byte of this slot lies in the slab.
    fn offset(&self, start: usize) -> usize {
        debug_assert!(start <= self.slab.slot_bytes);
        self.index as usize * self.slab.slot_bytes + start
    }

    fn address(&self, start: usize) -> *mut u8 {
        // SAFETY: callers pass offsets inside the slot, and the slot lies in the mapping.
        unsafe { self.slab.mapping.as_mut_ptr().add(self.offset(start)) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let slot = FreeSlot { index: self.index, touched: self.touched, since: Instant::now() };
        self.slab.free.lock().push(slot);
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
    slot: Arc<Slot>,
    span: Span,
}

impl Region {
    /// The bytes to write.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: inside the mapping, which `slot` keeps alive; exclusive because `Buffer::append` never gives out a byte
        // twice and `Buffer::pack` runs only when no region is left.
        unsafe { std::slice::from_raw_parts_mut(self.slot.address(self.span.start), self.span.len) }
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

/// The rows of one batch: a slot, cut into columns. A clone is over the same rows, for halves that run again.
#[derive(Clone)]
pub struct Buffer {
    /// Most rows that it can hold.
    pub max_rows: u32,
    slot: Arc<Slot>,
    columns: SmallVec<[Column; 2]>,
}

impl Buffer {
    /// Cuts a slot into one column per input. `row_bytes` is `None` for strings, which share what the others leave.
    /// Returns `None` where not even `rows` rows fit.
    pub fn new(mut slot: Slot, row_bytes: &[Option<usize>], rows: u32, max_rows: u32) -> Option<Self> {
        let total = slot.slab.slot_bytes;
        let per_row: usize = row_bytes.iter().flatten().sum();
        let fitting = total.saturating_sub(row_bytes.len() * LINE).checked_div(per_row);
        let max_rows = fitting.map_or(max_rows, |rows| rows.min(max_rows as usize) as u32);
        if max_rows < rows {
            return None;
        }
        let room = |row_bytes: usize| (row_bytes * max_rows as usize).next_multiple_of(LINE);
        let fixed: usize = row_bytes.iter().flatten().map(|bytes| room(*bytes)).sum();
        let strings = row_bytes.iter().filter(|bytes| bytes.is_none()).count();
        let share = (total - fixed).checked_div(strings).unwrap_or(0) / LINE * LINE;
        let mut base = 0;
        let column = |row_bytes: &Option<usize>| {
            let column = Column { base, capacity: row_bytes.map_or(share, room), used: 0 };
            base += column.capacity;
            column
        };
        let columns = row_bytes.iter().map(column).collect();
        slot.touch(if strings > 0 { total } else { base });
        Some(Self { slot: Arc::new(slot), columns, max_rows })
    }

    /// Whether `sizes` more bytes fit, one per column.
    pub fn fits(&self, sizes: &[usize]) -> bool {
        self.columns.iter().zip(sizes).all(|(column, size)| column.used + size <= column.capacity)
    }

    /// Gives out the next bytes of every column, to be written once.
    pub fn append(&mut self, sizes: &[usize]) -> (SmallVec<[Region; 2]>, SmallVec<[Span; 2]>) {
        let slot = &self.slot;
        let mut spans = SmallVec::new();
        let regions = self.columns.iter_mut().zip(sizes).map(|(column, &len)| {
            assert!(column.used + len <= column.capacity, "the caller asked whether it fits");
            let span = Span { start: column.base + column.used, len };
            column.used += len;
            spans.push(span);
            Region { slot: Arc::clone(slot), span }
        });
        (regions.collect(), spans)
    }

    /// Moves pieces of a column together, in their order and from its base on; call it when nobody writes. Each piece is
    /// told where it begins now.
    pub fn pack(&mut self, column: usize, pieces: impl Iterator<Item: BorrowMut<Span>>) {
        assert_eq!(Arc::strong_count(&self.slot), 1, "nobody writes while rows move");
        let Column { base, used, .. } = &mut self.columns[column];
        *used = 0;
        for mut piece in pieces {
            let (Span { start, len }, target) = (piece.borrow_mut(), *base + *used);
            if target != *start {
                assert!((*start).max(target) + *len <= self.slot.slab.slot_bytes, "pieces lie in the slot");
                // SAFETY: both ranges lie in this slot, and no region is left (both asserted above).
                unsafe { std::ptr::copy(self.slot.address(*start), self.slot.address(target), *len) };
                *start = target;
            }
            *used += *len;
        }
    }

    /// Where a column's range begins in the slab.
    pub fn offset(&self, start: usize) -> u64 {
        self.slot.offset(start) as u64
    }

    /// The bytes of a span, for a digest; call it when nobody writes.
    pub fn bytes(&self, span: Span) -> &[u8] {
        self.slot.bytes(span).expect("spans come from `append` and lie in the slot")
    }
}
