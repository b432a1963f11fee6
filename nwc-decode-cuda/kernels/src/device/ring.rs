//! Words of a warp's lanes, copied ahead into a ring for each of them in shared memory.

use core::arch::asm;

use super::intrinsics::{ballot, commit_and_wait, copy_group_async, lanes_below};
use super::item::Image;
use super::view::RingParts;
use crate::lane::{self, LOWER_BOUND, PENDING, Words};
use crate::layout::{self, GROUP};

/// Bytes of a lane's ring.
pub(crate) const RING_BYTES: u32 = layout::RING_BYTES as u32;

/// The words of one lane.
///
/// An item's words lie in the order in which its lanes ask for them, a group at a time, the lower lane first: what lanes ask for before the same chunk lies side by
/// side, and a lane finds its own by counting the lanes below it that ask.
///
/// Lanes read at about the same pace. So that their rings do not meet in the same banks of shared memory, places are counted from `turn`, a group more with
/// each round of the banks.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    /// What changes as words are taken.
    parts: RingParts,
    place: RingPlace,
    image: Image,
}

/// Where the words are, and where they go.
#[derive(Clone, Copy)]
pub(crate) struct RingPlace {
    /// Bytes of the lane's words.
    pub(crate) bytes: u32,
    /// [`RING_BYTES`] of the block's shared memory, at a multiple of them, of this thread alone.
    pub(crate) ring: u32,
    /// Unit of the image that the item's words begin in.
    pub(crate) words: u32,
    /// The last group of the image, from there on.
    pub(crate) last: u32,
}

/// By how much places are turned in a ring.
#[inline(always)]
const fn turn(ring: u32) -> u32 {
    ring / 128 * GROUP as u32 % RING_BYTES
}

impl Ring {
    /// At an item's first word; the first words have arrived when all copies have.
    ///
    /// # Safety
    /// All threads of the warp come. The place is one.
    #[inline(always)]
    pub(crate) unsafe fn new(image: Image, place: RingPlace) -> Self {
        let turn = turn(place.ring);
        let mut ring = Self { parts: RingParts { read: turn, asked: turn, next: 0 }, place, image };
        for _ in 0..RING_BYTES / GROUP as u32 {
            ring.ask();
        }
        ring
    }

    /// The ring that [`parts`](Self::parts) were taken from.
    ///
    /// # Safety
    /// As [`new`](Self::new), and `parts` are of such a ring, which nobody has written to since.
    #[inline(always)]
    pub(crate) unsafe fn resume(parts: RingParts, image: Image, place: RingPlace) -> Self {
        Self { parts, place, image }
    }

    /// What changes as words are taken.
    #[inline(always)]
    pub(crate) fn parts(&self) -> RingParts {
        self.parts
    }

    /// Bytes of words taken, and those that there are.
    #[inline(always)]
    pub(crate) fn taken(&self) -> (u32, u32) {
        (self.parts.read - turn(self.place.ring), self.place.bytes)
    }

    #[inline(always)]
    fn ask(&mut self) {
        let RingParts { read, asked, next } = self.parts;
        let asks = lane::asks(read, asked, turn(self.place.ring) + self.place.bytes);
        let all = ballot(asks);
        if asks {
            let group = (next + (all & lanes_below()).count_ones()).min(self.place.last);
            // SAFETY: by the caller of `new`; the place in the ring is within it.
            unsafe {
                copy_group_async(
                    self.place.ring | (asked & (RING_BYTES - 1)),
                    self.image.at(self.place.words).wrapping_add(group as usize * GROUP),
                )
            };
            self.parts.asked += GROUP as u32;
        }
        self.parts.next += all.count_ones();
    }

    /// Makes sure that the words of a chunk are there. All threads of the warp come.
    #[inline(always)]
    pub(crate) fn top_up(&mut self) {
        self.ask();
        commit_and_wait::<PENDING>();
    }
}

impl Words for Ring {
    #[inline(always)]
    fn refill(&mut self, x: u32) -> u32 {
        let (mut x, mut read) = (x, self.parts.read);
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
                x = inout(reg32) x, read = inout(reg32) read, ring = in(reg32) self.place.ring,
                lower = const LOWER_BOUND, mask = const RING_BYTES - 1,
                options(readonly, nostack)
            );
        }
        self.parts.read = read;
        x
    }
}
