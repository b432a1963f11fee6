//! NEON: four lanes a register. It has no gather, so a look-up is four loads.

use std::arch::aarch64::*;

use nwc_decode_core::{MAX_LANES, Rows};

use super::trellis::{NONE, REGISTER, TABLE};
use super::{ESCAPE, Layout, ROW_WORDS};

const WIDTH: usize = 4;
const PARTS: usize = MAX_LANES / WIDTH;

/// For each mask of lanes: which bytes of the next words make the lower half of each lane, lane by lane; the rest is zero.
static EXPAND: [[u8; 16]; 16] = {
    let mut table = [[0xFF; 16]; 16];
    let mut mask = 0;
    while mask < 16 {
        let (mut lane, mut word) = (0, 0);
        while lane < WIDTH {
            if mask >> lane & 1 == 1 {
                table[mask][4 * lane] = 2 * word;
                table[mask][4 * lane + 1] = 2 * word + 1;
                word += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// Decodes rows from `from` on while [`ROW_WORDS`] words are left; returns the row it came to and the words it took.
pub(super) fn decode_rows(
    layout: &Layout,
    rows: &mut Rows<'_>,
    words: &[[u8; 2]],
    from: usize,
) -> (usize, usize) {
    match (layout.packed, layout.trellis()) {
        (true, NONE) => kernel::<true, NONE>(layout, rows, words, from),
        (true, REGISTER) => kernel::<true, REGISTER>(layout, rows, words, from),
        (true, _) => kernel::<true, TABLE>(layout, rows, words, from),
        (false, NONE) => kernel::<false, NONE>(layout, rows, words, from),
        (false, REGISTER) => kernel::<false, REGISTER>(layout, rows, words, from),
        (false, _) => kernel::<false, TABLE>(layout, rows, words, from),
    }
}

/// `TRELLIS` is one of [`super::trellis`].
fn kernel<const PACKED: bool, const TRELLIS: u8>(
    layout: &Layout,
    rows: &mut Rows<'_>,
    words: &[[u8; 2]],
    from: usize,
) -> (usize, usize) {
    // SAFETY: every processor of this target has NEON; what is loaded and stored is stated at each place.
    unsafe {
        let lanes = rows.lanes.min(MAX_LANES);
        let parts = lanes.div_ceil(WIDTH);
        let numbers = load(&[0, 1, 2, 3]);
        let (left, right) = (vdupq_n_s32(layout.precision as i32), vdupq_n_s32(-(layout.precision as i32)));
        let slot_mask = vdupq_n_u32((1 << layout.precision) - 1);
        let union_mask = vdupq_n_u32(layout.unions - 1);
        let (one, zero) = (vdupq_n_u32(1), vdupq_n_u32(0));
        let escape = vdupq_n_s32(ESCAPE);
        let (feedback, input) =
            layout.register.map_or((0, 0), |register| (register.feedback, register.input));
        let (feedback, input) = (vdupq_n_u32(feedback), vdupq_n_u32(input));
        let mut active = [zero; PARTS];
        let mut x = [zero; PARTS];
        let mut state = [zero; PARTS];
        let mut base = [zero; PARTS];
        let mut value = [vdupq_n_s32(0); PARTS];
        for p in 0..PARTS {
            let here = lanes.saturating_sub(WIDTH * p) as u32;
            active[p] = vcltq_u32(numbers, vdupq_n_u32(here));
            x[p] = load(rows.rans[WIDTH * p..].first_chunk().expect("four lanes"));
            let bytes: &[u8; WIDTH] = rows.trellis[WIDTH * p..].first_chunk().expect("four lanes");
            // Lanes at rest may hold anything: they must not lead a look-up astray.
            state[p] = vandq_u32(active[p], load(&bytes.map(u32::from)));
        }

        let (mut taken, mut row) = (0, from);
        let mut known = None;
        while let (Some(&row_class), Some(window)) =
            (rows.row_class.get(row), words.get(taken..taken + ROW_WORDS))
        {
            if known != Some(row_class) {
                known = Some(row_class);
                for (p, base) in base.iter_mut().enumerate() {
                    *base = load(&std::array::from_fn(|lane| {
                        let class = rows.class[WIDTH * p + lane].wrapping_add(row_class);
                        class.clamp(0, layout.classes as i32 - 1) as u32 * layout.unions
                    }));
                }
            }
            let mut used = 0;
            let mut any_escape = zero;
            for p in 0..parts {
                let table = vaddq_u32(base[p], vandq_u32(state[p], union_mask));
                let slot = vandq_u32(x[p], slot_mask);
                let at = store(vaddq_u32(vshlq_u32(table, left), slot));
                let (frequency, offset);
                if PACKED {
                    // The table is below classes * unions and the slot below 2^precision (see `Layout`).
                    let entry = load(&at.map(|at| *layout.slots.get_unchecked(at as usize)));
                    value[p] = vshrq_n_s32::<24>(vreinterpretq_s32_u32(entry));
                    frequency = vandq_u32(vshrq_n_u32::<12>(entry), vdupq_n_u32(0xFFF));
                    offset = vandq_u32(entry, vdupq_n_u32(0xFFF));
                } else {
                    // As above; the slots are bytes then, four in a number.
                    let bytes = layout.slots.as_ptr().cast::<u8>();
                    let byte = load(&at.map(|at| u32::from(*bytes.add(at as usize))));
                    let at = store(vaddq_u32(vshlq_n_u32::<8>(table), byte));
                    // The table is below classes * unions and the byte below 256.
                    let entry = load(&at.map(|at| *layout.symbols.get_unchecked(at as usize)));
                    value[p] = vaddq_s32(vreinterpretq_s32_u32(byte), escape);
                    frequency = vshrq_n_u32::<16>(entry);
                    offset = vsubq_u32(slot, vandq_u32(entry, vdupq_n_u32(0xFFFF)));
                }
                let decoded = vmlaq_u32(offset, frequency, vshlq_u32(x[p], right));
                let low = vandq_u32(active[p], vcltq_u32(decoded, vdupq_n_u32(1 << 16)));
                let (refill, count) = expand(window, used, low);
                used += count;
                let refilled = vorrq_u32(vshlq_n_u32::<16>(decoded), refill);
                x[p] = vbslq_u32(active[p], vbslq_u32(low, refilled, decoded), x[p]);
                any_escape = vorrq_u32(any_escape, vandq_u32(active[p], vceqq_s32(value[p], escape)));
            }
            if vmaxvq_u32(any_escape) != 0 {
                for p in 0..parts {
                    let escaped = vandq_u32(active[p], vceqq_s32(value[p], escape));
                    let (raw, count) = expand(window, used, escaped);
                    used += count;
                    let raw = vshrq_n_s32::<16>(vreinterpretq_s32_u32(vshlq_n_u32::<16>(raw)));
                    value[p] = vbslq_s32(escaped, raw, value[p]);
                }
            }
            for p in 0..parts {
                let bits = vreinterpretq_u32_s32(value[p]);
                let odd = vandq_u32(bits, one);
                let index = if TRELLIS == NONE {
                    bits
                } else {
                    let parity = vandq_u32(state[p], one);
                    let index = vaddq_u32(vshlq_n_u32::<1>(bits), parity);
                    state[p] = if TRELLIS == REGISTER {
                        let back = vandq_u32(vsubq_u32(zero, parity), feedback);
                        let forth = vandq_u32(vsubq_u32(zero, odd), input);
                        veorq_u32(vshrq_n_u32::<1>(state[p]), veorq_u32(back, forth))
                    } else {
                        // States are below `states`, so branches are below the length of `next`.
                        let branch = store(vorrq_u32(vshlq_n_u32::<1>(state[p]), odd));
                        load(&branch.map(|branch| *layout.next.get_unchecked(branch as usize)))
                    };
                    index
                };
                let out = rows.latents[row][WIDTH * p..].first_chunk_mut::<WIDTH>().expect("four lanes");
                vst1q_s32(out.as_mut_ptr(), vreinterpretq_s32_u32(index));
            }
            taken += used;
            row += 1;
        }

        for p in 0..parts {
            rows.rans[WIDTH * p..][..WIDTH].copy_from_slice(&store(x[p]));
            let places = rows.trellis[..lanes].iter_mut().skip(WIDTH * p);
            places.zip(store(state[p])).for_each(|(place, state)| *place = state as u8);
        }
        (row, taken)
    }
}

#[inline(always)]
fn load(numbers: &[u32; WIDTH]) -> uint32x4_t {
    // SAFETY: the array is as long as the register.
    unsafe { vld1q_u32(numbers.as_ptr()) }
}

#[inline(always)]
fn store(register: uint32x4_t) -> [u32; WIDTH] {
    let mut numbers = [0; WIDTH];
    // SAFETY: the array is as long as the register.
    unsafe { vst1q_u32(numbers.as_mut_ptr(), register) };
    numbers
}

/// Hands the words from `at` on to the lanes of a mask, in order, and says how many there are. `at` is at most [`ROW_WORDS`] - 4: a row reads
/// sixteen times, at most four words each.
#[inline(always)]
fn expand(window: &[[u8; 2]], at: usize, lanes: uint32x4_t) -> (uint32x4_t, usize) {
    debug_assert!(at + WIDTH <= window.len());
    let bits = load(&[1, 2, 4, 8]);
    // SAFETY: the caller's window is ROW_WORDS long, and `at` as stated; the mask is below 16.
    unsafe {
        let mask = vaddvq_u32(vandq_u32(lanes, bits)) as usize;
        let words = vld1_u8(window.as_ptr().add(at).cast());
        let order = vld1q_u8(EXPAND[mask & 15].as_ptr());
        let words = vqtbl1q_u8(vcombine_u8(words, vdup_n_u8(0)), order);
        (vreinterpretq_u32_u8(words), mask.count_ones() as usize)
    }
}
