//! Words of a lane, copied ahead into a ring of its own in shared memory.

use core::arch::asm;

use super::intrinsics::{commit_and_wait, copy_async};
use crate::lane::{LOWER_BOUND, Words};
use crate::layout;

/// Bytes of a lane's ring.
pub(crate) const RING_BYTES: u32 = layout::RING_BYTES as u32;
/// Bytes that are copied at a time.
const COPY_BYTES: u32 = 16;
/// Groups of copies that may be under way.
const PENDING: u32 = RING_BYTES / COPY_BYTES - 2;

/// The words of one lane.
///
/// Lanes read at about the same pace. So that their rings do not meet in the same banks of shared memory, places are counted from `turn`, 16 bytes more for each
/// lane.
///
/// Half a chunk takes at most 16 bytes off a ring, if there are no escapes, and [`top_up`](Words::top_up) brings 16 as soon as there is room, so that more
/// than 112 of a ring's 128 bytes have been asked for. With [`PENDING`] groups of copies under way, each of at most 16 bytes, 16 have arrived: enough
/// for the next half. The more may be under way, the longer memory may take.
pub(crate) struct Ring {
    /// Place of the next word, in bytes from `source`.
    read: u32,
    /// What has been asked for, likewise.
    asked: u32,
    /// The last place that may be copied from, likewise.
    last: u32,
    /// Address of the ring in shared memory, a multiple of its size.
    ring: u32,
    source: *const u8,
    turn: u32,
}

impl Ring {
    /// From the word at `start` on.
    ///
    /// # Safety
    /// `ring` is [`RING_BYTES`] of the block's shared memory, of this thread alone; `source` is a multiple of 16, and 16 bytes can be read at each
    /// multiple of 16 from it up to `last`.
    #[inline(always)]
    pub(crate) unsafe fn new(ring: u32, source: *const u8, start: u32, last: u32) -> Self {
        let turn = Self::turn(ring);
        let read = start * 2 + turn;
        let source = source.wrapping_sub(turn as usize);
        let mut ring = Self { read, asked: read & !(COPY_BYTES - 1), last: last + turn, ring, source, turn };
        for _ in 0..RING_BYTES / COPY_BYTES {
            ring.ask();
        }
        commit_and_wait::<0>();
        ring
    }

    /// By how much places are turned in a ring.
    #[inline(always)]
    const fn turn(ring: u32) -> u32 {
        ring / RING_BYTES * COPY_BYTES % RING_BYTES
    }

    /// The ring that [`parts`](Self::parts) were taken from, at the same place with the same source.
    ///
    /// # Safety
    /// As [`new`](Self::new), and `parts` are of such a ring, which nobody has written to since.
    #[inline(always)]
    pub(crate) unsafe fn resume(parts: [u32; 2], ring: u32, source: *const u8, last: u32) -> Self {
        let [read, asked] = parts;
        let turn = Self::turn(ring);
        Self { read, asked, last: last + turn, ring, source: source.wrapping_sub(turn as usize), turn }
    }

    /// What changes as words are taken.
    #[inline(always)]
    pub(crate) fn parts(&self) -> [u32; 2] {
        [self.read, self.asked]
    }

    /// Words taken, from the first lane's first on.
    #[inline(always)]
    pub(crate) fn position(&self) -> u32 {
        (self.read - self.turn) / 2
    }

    #[inline(always)]
    fn ask(&mut self) {
        let from = self.asked.min(self.last);
        // SAFETY: by the caller of `new`; the place in the ring is within it.
        unsafe {
            copy_async(self.ring | (self.asked & (RING_BYTES - 1)), self.source.wrapping_add(from as usize));
        }
        self.asked += COPY_BYTES;
    }

    #[inline(always)]
    fn ask_if_room(&mut self) {
        if self.asked - self.read <= RING_BYTES - COPY_BYTES {
            self.ask();
        }
    }
}

impl Words for Ring {
    #[inline(always)]
    fn refill(&mut self, x: u32) -> u32 {
        let (mut x, mut read) = (x, self.read);
        // With predicates, for the threads of a warp must not part here.
        // SAFETY: the place in the ring is within it.
        unsafe {
            asm!(
                // One register for the place and the word: a second would count as alive from one row to the next.
                "{{ .reg .pred low; .reg .b32 word;",
                "setp.lt.u32 low, {x}, {lower};",
                "lop3.b32 word, {read}, {mask}, {ring}, 0xEA;", // (read & mask) | ring
                "@low ld.shared.u16 word, [word];",
                "@low prmt.b32 {x}, {x}, word, 0x1054;", // x << 16 | word
                "@low add.u32 {read}, {read}, 2; }}",
                x = inout(reg32) x, read = inout(reg32) read, ring = in(reg32) self.ring,
                lower = const LOWER_BOUND, mask = const RING_BYTES - 1,
                options(readonly, nostack)
            );
        }
        self.read = read;
        x
    }

    #[inline(always)]
    fn next(&mut self) -> u32 {
        let at = self.ring | (self.read & (RING_BYTES - 1));
        self.read += 2;
        let word: u32;
        // SAFETY: the place in the ring is within it.
        unsafe {
            asm!("ld.shared.u16 {}, [{}];", out(reg32) word, in(reg32) at, options(readonly, nostack));
        }
        word
    }

    #[inline(always)]
    fn top_up(&mut self) {
        self.ask_if_room();
        commit_and_wait::<PENDING>();
    }

    #[inline(always)]
    fn top_up_now(&mut self) {
        self.ask_if_room();
        commit_and_wait::<0>();
    }
}
