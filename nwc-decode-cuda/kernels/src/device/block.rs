//! What all kernels do first: tables into shared memory, and a warp for each item.

use super::intrinsics::{shared_base, thread, threads};
use super::item::{Image, Place, first_code, stage};
use crate::layout::{AHEAD_BYTES, BlockRecord, LANES};

/// Threads of a warp.
const WARP: u32 = LANES as u32;

/// A block of threads at work on neighbouring items of one tensor.
pub(crate) struct Block {
    pub(crate) record: BlockRecord,
    image: Image,
    /// The kernel's own shared memory.
    pub(crate) own: u32,
    tables: u32,
}

impl Block {
    /// Begins to copy tables to shared memory: they are there when all threads' copies have arrived. The block's shared memory has first what warps read ahead, then `own`
    /// bytes, a multiple of 16, for the kernel, then tables.
    ///
    /// # Safety
    /// As the kernels'.
    #[inline(always)]
    pub(crate) unsafe fn enter(image: *const u8, record: BlockRecord, own: u32) -> Self {
        let image = Image(image);
        let own_at = shared_base() + Self::warps() * AHEAD_BYTES as u32;
        let tables = own_at + own;
        // SAFETY: the launch has shared memory for the tables.
        unsafe { stage(image, &record.tensor, tables, thread(), threads()) };
        Self { record, image, own: own_at, tables }
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
        let ahead = shared_base() + Self::warp() * AHEAD_BYTES as u32;
        let number = self.record.first_item + number;
        // SAFETY: by the caller.
        unsafe { Place::new(self.image, &self.record.tensor, number, thread() % WARP, ahead, self.tables) }
    }

    /// Writes an item's status: the code of its first lane that has one.
    ///
    /// # Safety
    /// `status` has an element for each item of the image.
    #[inline(always)]
    pub(crate) unsafe fn report(&self, status: *mut u32, number: u32, place: &Place, code: u32) {
        let code = first_code(place, code);
        if place.lane == 0 {
            let item = self.record.tensor.first_item + self.record.first_item + number;
            // SAFETY: by the caller.
            unsafe { status.add(item as usize).write(code) };
        }
    }
}
