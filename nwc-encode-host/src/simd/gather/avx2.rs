//! AVX2: eight lanes a register.

use std::arch::x86_64::*;

use half::{bf16, f16};
use nwc_decode_core::{CHUNK_ROWS, Chunk, MAX_LANES, Rows, Synthesis};

use super::trellis::{NONE, REGISTER, TABLE};
use super::{ESCAPE, Layout, ROW_WORDS};

const WIDTH: usize = 8;

/// For each mask of lanes: which of the next words each lane takes; lane by lane, a byte each.
static EXPAND: [[u8; WIDTH]; 256] = {
    let mut table = [[0; WIDTH]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut word) = (0, 0);
        while lane < WIDTH {
            if mask >> lane & 1 == 1 {
                table[mask][lane] = word;
                word += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// Decodes rows from `from` on while [`ROW_WORDS`] words are left; returns the row it came to and the words it took.
#[target_feature(enable = "avx2,popcnt,bmi1,bmi2")]
pub(super) fn decode_rows(
    layout: &Layout,
    rows: &mut Rows<'_>,
    words: &[[u8; 2]],
    from: usize,
) -> (usize, usize) {
    match (rows.lanes > 2 * WIDTH, layout.packed, layout.trellis()) {
        (true, true, NONE) => kernel::<4, true, NONE>(layout, rows, words, from),
        (true, true, REGISTER) => kernel::<4, true, REGISTER>(layout, rows, words, from),
        (true, true, _) => kernel::<4, true, TABLE>(layout, rows, words, from),
        (true, false, NONE) => kernel::<4, false, NONE>(layout, rows, words, from),
        (true, false, REGISTER) => kernel::<4, false, REGISTER>(layout, rows, words, from),
        (true, false, _) => kernel::<4, false, TABLE>(layout, rows, words, from),
        (false, true, NONE) => kernel::<2, true, NONE>(layout, rows, words, from),
        (false, true, REGISTER) => kernel::<2, true, REGISTER>(layout, rows, words, from),
        (false, true, _) => kernel::<2, true, TABLE>(layout, rows, words, from),
        (false, false, NONE) => kernel::<2, false, NONE>(layout, rows, words, from),
        (false, false, REGISTER) => kernel::<2, false, REGISTER>(layout, rows, words, from),
        (false, false, _) => kernel::<2, false, TABLE>(layout, rows, words, from),
    }
}

/// `PARTS` registers of lanes; `TRELLIS` is one of [`super::trellis`].
#[target_feature(enable = "avx2,popcnt,bmi1,bmi2")]
fn kernel<const PARTS: usize, const PACKED: bool, const TRELLIS: u8>(
    layout: &Layout,
    rows: &mut Rows<'_>,
    words: &[[u8; 2]],
    from: usize,
) -> (usize, usize) {
    let lanes = rows.lanes.min(MAX_LANES);
    let numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let active: [__m256i; PARTS] = std::array::from_fn(|p| {
        _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32 - (WIDTH * p) as i32), numbers)
    });
    let shift = _mm_cvtsi32_si128(layout.precision.cast_signed());
    let slot_mask = _mm256_set1_epi32((1 << layout.precision) - 1);
    let union_mask = _mm256_set1_epi32((layout.unions - 1).cast_signed());
    let one = _mm256_set1_epi32(1);
    let escape = _mm256_set1_epi32(ESCAPE);
    let mut x: [__m256i; PARTS] = std::array::from_fn(|p| load(&rows.rans[WIDTH * p..]));
    let mut state: [__m256i; PARTS] = std::array::from_fn(|p| {
        let bytes: &[u8; WIDTH] = rows.trellis[WIDTH * p..][..WIDTH].try_into().expect("eight lanes");
        // Lanes at rest may hold anything: they must not lead a gather astray.
        _mm256_and_si256(active[p], _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*bytes))))
    });
    let class: [__m256i; PARTS] = std::array::from_fn(|p| load_signed(&rows.class[WIDTH * p..]));
    let (feedback, input) = layout.register.map_or((0, 0), |register| (register.feedback, register.input));
    let feedback = _mm256_set1_epi32(feedback.cast_signed());
    let input = _mm256_set1_epi32(input.cast_signed());

    let (mut taken, mut row) = (0, from);
    let mut known = None;
    let mut base = [one; PARTS];
    while let (Some(&row_class), Some(window)) =
        (rows.row_class.get(row), words.get(taken..taken + ROW_WORDS))
    {
        if known != Some(row_class) {
            known = Some(row_class);
            let last = _mm256_set1_epi32(layout.classes.cast_signed() - 1);
            for p in 0..PARTS {
                let sum = _mm256_add_epi32(class[p], _mm256_set1_epi32(row_class));
                let clamped = _mm256_max_epi32(_mm256_min_epi32(sum, last), _mm256_setzero_si256());
                base[p] = _mm256_mullo_epi32(clamped, _mm256_set1_epi32(layout.unions.cast_signed()));
            }
        }
        let mut used = 0;
        let mut value = [one; PARTS];
        let mut escaped = [0u32; PARTS];
        for p in 0..PARTS {
            let table = _mm256_add_epi32(base[p], _mm256_and_si256(state[p], union_mask));
            let slot = _mm256_and_si256(x[p], slot_mask);
            let at = _mm256_add_epi32(_mm256_sll_epi32(table, shift), slot);
            let (frequency, offset);
            if PACKED {
                // SAFETY: the table is below classes * unions and the slot below 2^precision (see `Layout`).
                let entry = unsafe { _mm256_i32gather_epi32::<4>(layout.slots.as_ptr().cast(), at) };
                value[p] = _mm256_srai_epi32::<24>(entry);
                frequency = _mm256_and_si256(_mm256_srli_epi32::<12>(entry), _mm256_set1_epi32(0xFFF));
                offset = _mm256_and_si256(entry, _mm256_set1_epi32(0xFFF));
            } else {
                // SAFETY: as above; the byte is there, and three more behind it.
                let four = unsafe { _mm256_i32gather_epi32::<1>(layout.slots.as_ptr().cast(), at) };
                let byte = _mm256_and_si256(four, _mm256_set1_epi32(0xFF));
                let at = _mm256_add_epi32(_mm256_slli_epi32::<8>(table), byte);
                // SAFETY: the table is below classes * unions and the byte below 256.
                let entry = unsafe { _mm256_i32gather_epi32::<4>(layout.symbols.as_ptr().cast(), at) };
                value[p] = _mm256_add_epi32(byte, escape);
                frequency = _mm256_srli_epi32::<16>(entry);
                offset = _mm256_sub_epi32(slot, _mm256_and_si256(entry, _mm256_set1_epi32(0xFFFF)));
            }
            let quotient = _mm256_srl_epi32(x[p], shift);
            let decoded = _mm256_add_epi32(_mm256_mullo_epi32(frequency, quotient), offset);
            let small = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(decoded), _mm256_setzero_si256());
            let low = _mm256_and_si256(active[p], small);
            let mask = bits(low);
            let refill = expand(mask, _mm256_cvtepu16_epi32(eight(window, used)));
            used += mask.count_ones() as usize;
            let refilled = _mm256_or_si256(_mm256_slli_epi32::<16>(decoded), refill);
            let kept = _mm256_blendv_epi8(decoded, refilled, low);
            x[p] = _mm256_blendv_epi8(x[p], kept, active[p]);
            escaped[p] = bits(_mm256_and_si256(active[p], _mm256_cmpeq_epi32(value[p], escape)));
        }
        if escaped != [0; PARTS] {
            for p in 0..PARTS {
                let raw = expand(escaped[p], _mm256_cvtepi16_epi32(eight(window, used)));
                value[p] = _mm256_blendv_epi8(value[p], raw, _mm256_cmpeq_epi32(value[p], escape));
                used += escaped[p].count_ones() as usize;
            }
        }
        for p in 0..PARTS {
            let index = if TRELLIS == NONE {
                value[p]
            } else {
                let index =
                    _mm256_add_epi32(_mm256_slli_epi32::<1>(value[p]), _mm256_and_si256(state[p], one));
                // All ones where the lowest bit is set.
                let odd = |x: __m256i| _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_and_si256(x, one));
                state[p] = if TRELLIS == REGISTER {
                    let back = _mm256_and_si256(odd(state[p]), feedback);
                    let forth = _mm256_and_si256(odd(value[p]), input);
                    _mm256_xor_si256(_mm256_srli_epi32::<1>(state[p]), _mm256_xor_si256(back, forth))
                } else {
                    let branch =
                        _mm256_or_si256(_mm256_slli_epi32::<1>(state[p]), _mm256_and_si256(value[p], one));
                    // SAFETY: states are below `states`, so branches are below the length of `next`.
                    unsafe { _mm256_i32gather_epi32::<4>(layout.next.as_ptr().cast(), branch) }
                };
                index
            };
            store(&mut rows.latents[row], p, index);
        }
        taken += used;
        row += 1;
    }

    for p in 0..PARTS {
        let mut states = [0u32; WIDTH];
        // SAFETY: both are eight 32-bit numbers long.
        unsafe {
            _mm256_storeu_si256(rows.rans[WIDTH * p..][..WIDTH].as_mut_ptr().cast(), x[p]);
            _mm256_storeu_si256(states.as_mut_ptr().cast(), state[p]);
        }
        let places = rows.trellis[..lanes].iter_mut().skip(WIDTH * p);
        places.zip(states).for_each(|(place, state)| *place = state as u8);
    }
    (row, taken)
}

#[inline]
#[target_feature(enable = "avx2")]
fn bits(lanes: __m256i) -> u32 {
    _mm256_movemask_ps(_mm256_castsi256_ps(lanes)).cast_unsigned()
}

/// Hands the first of `words` to the lanes of `mask`, in order. What the others get does not matter.
#[inline]
#[target_feature(enable = "avx2")]
fn expand(mask: u32, words: __m256i) -> __m256i {
    let order = i64::from_le_bytes(EXPAND[(mask & 0xFF) as usize]);
    _mm256_permutevar8x32_epi32(words, _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(order)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(numbers: &[u32]) -> __m256i {
    let numbers = numbers.first_chunk::<WIDTH>().expect("eight numbers");
    // SAFETY: the array is as long as the register.
    unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_signed(numbers: &[i32]) -> __m256i {
    let numbers = numbers.first_chunk::<WIDTH>().expect("eight numbers");
    // SAFETY: the array is as long as the register.
    unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(row: &mut [i32; MAX_LANES], p: usize, numbers: __m256i) {
    // SAFETY: p is below 4, so eight of the thirty-two numbers are there from 8 p on.
    unsafe { _mm256_storeu_si256(row.as_mut_ptr().add(WIDTH * p).cast(), numbers) }
}

/// Eight words from `at` on, which is at most [`ROW_WORDS`] - 8: a row reads eight times, at most eight words each.
#[inline]
#[target_feature(enable = "avx2")]
fn eight(window: &[[u8; 2]], at: usize) -> __m128i {
    debug_assert!(at + WIDTH <= window.len());
    // SAFETY: the caller's window is ROW_WORDS long, and `at` as stated.
    unsafe { _mm_loadu_si128(window.as_ptr().add(at).cast()) }
}

/// The weights of a part of a row before they are rounded (§10.3); `largest` is what they saturate at.
#[inline]
#[target_feature(enable = "avx2")]
fn scaled(chunk: &Chunk, row: usize, p: usize, unit: __m256, largest: f32) -> __m256 {
    let columns = chunk.column_scale[WIDTH * p..].first_chunk::<WIDTH>().expect("eight columns");
    // SAFETY: the array is as long as the register.
    let columns = unsafe { _mm256_loadu_ps(columns.as_ptr()) };
    let step = saturate(_mm256_mul_ps(_mm256_set1_ps(chunk.row_scale[row]), columns), f32::MAX);
    let latents = _mm256_mul_ps(_mm256_cvtepi32_ps(load_signed(&chunk.latents[row][WIDTH * p..])), unit);
    saturate(_mm256_mul_ps(latents, step), largest)
}

#[inline]
#[target_feature(enable = "avx2")]
fn saturate(x: __m256, largest: f32) -> __m256 {
    _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(largest)), _mm256_set1_ps(-largest))
}

#[inline]
#[target_feature(enable = "avx2")]
fn unit(chunk: &Chunk) -> __m256 {
    _mm256_set1_ps(((1u32 << (chunk.fraction_bits & 15)) as f32).recip())
}

#[target_feature(enable = "avx2,f16c")]
pub(in crate::simd) fn scale_f32(chunk: &Chunk, weights: &mut [[f32; MAX_LANES]; CHUNK_ROWS]) {
    let unit = unit(chunk);
    for (row, weights) in weights.iter_mut().enumerate().take(chunk.rows) {
        for p in 0..4 {
            let scaled = scaled(chunk, row, p, unit, f32::MAX);
            // SAFETY: eight of the thirty-two numbers are there from 8 p on.
            unsafe { _mm256_storeu_ps(weights.as_mut_ptr().add(WIDTH * p), scaled) };
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(in crate::simd) fn scale_f16(chunk: &Chunk, weights: &mut [[f16; MAX_LANES]; CHUNK_ROWS]) {
    let unit = unit(chunk);
    for (row, weights) in weights.iter_mut().enumerate().take(chunk.rows) {
        for p in 0..4 {
            // What lies between the largest finite number and the first that rounds to infinity rounds down anyway.
            let scaled = scaled(chunk, row, p, unit, 65504.0);
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(scaled);
            // SAFETY: eight of the thirty-two numbers are there from 8 p on.
            unsafe { _mm_storeu_si128(weights.as_mut_ptr().add(WIDTH * p).cast(), halves) };
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(in crate::simd) fn scale_bf16(chunk: &Chunk, weights: &mut [[bf16; MAX_LANES]; CHUNK_ROWS]) {
    let unit = unit(chunk);
    let largest = bf16::MAX.to_f32();
    for (row, weights) in weights.iter_mut().enumerate().take(chunk.rows) {
        for p in 0..4 {
            let bits = _mm256_castps_si256(scaled(chunk, row, p, unit, largest));
            // Ties to even: add a half, less one where the bit that stays is even.
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
            let upper = _mm256_srli_epi32::<16>(rounded);
            let packed =
                _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256::<1>(upper));
            // SAFETY: eight of the thirty-two numbers are there from 8 p on.
            unsafe { _mm_storeu_si128(weights.as_mut_ptr().add(WIDTH * p).cast(), packed) };
        }
    }
}

/// [`Synthesis::apply`], compiled for the vectors of AVX2.
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn synthesise(
    synthesis: Synthesis<'_>,
    latents: &mut [[i32; MAX_LANES]; CHUNK_ROWS],
    rows: usize,
) {
    synthesis.apply_abreast::<MAX_LANES>(latents, rows);
}
