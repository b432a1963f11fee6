//! What all kernels do first: tables into shared memory, and a warp for each item.

use super::intrinsics::{block, shared_base, sync_block, thread, threads};
use super::item::{Image, Place, first_code, stage};
use super::ring::RING_BYTES;
use crate::layout::{BlockRecord, Header, LANES, TensorRecord};

/// Threads of a warp.
const WARP: u32 = LANES as u32;

/// A block of threads at work on neighbouring items of one tensor.
pub(crate) struct Block {
    pub(crate) record: BlockRecord,
    image: Image,
    header: Header,
    pub(crate) tensor: TensorRecord,
    /// The kernel's own shared memory.
    pub(crate) own: u32,
    tables: u32,
}

impl Block {
    /// Copies tables to shared memory. The block's shared memory has first the rings, then `own` bytes, a multiple of 16, for the kernel, then tables.
    ///
    /// # Safety
    /// As the kernels'.
    #[inline(always)]
    pub(crate) unsafe fn enter(image: *const u8, blocks: *const BlockRecord, own: u32) -> Self {
        let image = Image(image);
        // SAFETY: by the caller.
        let (record, (header, tensor)) = unsafe {
            let record = blocks.add(block() as usize).read();
            (record, image.tensor(record.tensor))
        };
        let own_at = shared_base() + threads() * RING_BYTES;
        let tables = own_at + own;
        // SAFETY: the launch has shared memory for the tables.
        unsafe { stage(image, &tensor, tables, thread(), threads()) };
        sync_block();
        Self { record, image, header, tensor, own: own_at, tables }
    }

    /// The warp's number in its block.
    #[inline(always)]
    pub(crate) fn warp() -> u32 {
        thread() / WARP
    }

    /// Number of warps of the block.
    #[inline(always)]
    pub(crate) fn warps() -> u32 {
        threads() / WARP
    }

    /// An item of the block, `number` from its first.
    ///
    /// # Safety
    /// There is such an item.
    #[inline(always)]
    pub(crate) unsafe fn place(&self, number: u32) -> Place {
        // SAFETY: by the caller.
        let item = unsafe { self.image.read(self.header.item_records, self.record.first_item + number) };
        Place {
            image: self.image,
            units: self.header.units,
            tensor: self.tensor,
            item,
            lane: thread() % WARP,
            ring: shared_base() + thread() * RING_BYTES,
            tables: self.tables,
        }
    }

    /// Writes an item's status: the code of its first lane that has one.
    ///
    /// # Safety
    /// `status` has an element for each item of the image.
    #[inline(always)]
    pub(crate) unsafe fn report(&self, status: *mut u32, number: u32, place: &Place, code: u32) {
        let code = first_code(place, code);
        if place.lane == 0 {
            // SAFETY: by the caller.
            unsafe { status.add((self.record.first_item + number) as usize).write(code) };
        }
    }
}
