//! AVX-512: sixteen lanes a register.

use std::arch::x86_64::*;

use half::{bf16, f16};
use nwc_decode_core::{CHUNK_ROWS, Chunk, MAX_LANES, Rows, Synthesis};

use super::trellis::{NONE, REGISTER, TABLE};
use super::{ESCAPE, Layout, ROW_WORDS};

const WIDTH: usize = 16;

/// Decodes rows from `from` on while [`ROW_WORDS`] words are left; returns the row it came to and the words it took.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,bmi2")]
pub(super) fn decode_rows(
    layout: &Layout,
    rows: &mut Rows<'_>,
    words: &[[u8; 2]],
    from: usize,
) -> (usize, usize) {
    match (rows.lanes > WIDTH, layout.packed, layout.trellis()) {
        (true, true, NONE) => kernel::<2, true, NONE>(layout, rows, words, from),
        (true, true, REGISTER) => kernel::<2, true, REGISTER>(layout, rows, words, from),
        (true, true, _) => kernel::<2, true, TABLE>(layout, rows, words, from),
        (true, false, NONE) => kernel::<2, false, NONE>(layout, rows, words, from),
        (true, false, REGISTER) => kernel::<2, false, REGISTER>(layout, rows, words, from),
        (true, false, _) => kernel::<2, false, TABLE>(layout, rows, words, from),
        (false, true, NONE) => kernel::<1, true, NONE>(layout, rows, words, from),
        (false, true, REGISTER) => kernel::<1, true, REGISTER>(layout, rows, words, from),
        (false, true, _) => kernel::<1, true, TABLE>(layout, rows, words, from),
        (false, false, NONE) => kernel::<1, false, NONE>(layout, rows, words, from),
        (false, false, REGISTER) => kernel::<1, false, REGISTER>(layout, rows, words, from),
        (false, false, _) => kernel::<1, false, TABLE>(layout, rows, words, from),
    }
}

/// `HALVES` registers of lanes; `TRELLIS` is one of [`super::trellis`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,bmi2")]
fn kernel<const HALVES: usize, const PACKED: bool, const TRELLIS: u8>(
    layout: &Layout,
    rows: &mut Rows<'_>,
    words: &[[u8; 2]],
    from: usize,
) -> (usize, usize) {
    let lanes = rows.lanes.min(MAX_LANES);
    let active: [__mmask16; HALVES] = std::array::from_fn(|h| (((1u64 << lanes) - 1) >> (WIDTH * h)) as u16);
    let shift = _mm_cvtsi32_si128(layout.precision.cast_signed());
    let slot_mask = _mm512_set1_epi32((1 << layout.precision) - 1);
    let union_mask = _mm512_set1_epi32((layout.unions - 1).cast_signed());
    let one = _mm512_set1_epi32(1);
    let escape = _mm512_set1_epi32(ESCAPE);
    let mut x: [__m512i; HALVES] = std::array::from_fn(|h| load(part(rows.rans, h)));
    let mut state: [__m512i; HALVES] = std::array::from_fn(|h| {
        let bytes: &[u8; WIDTH] = rows.trellis[WIDTH * h..][..WIDTH].try_into().expect("sixteen lanes");
        // SAFETY: sixteen bytes are there.
        let states = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
        // Lanes at rest may hold anything: they must not lead a gather astray.
        _mm512_maskz_mov_epi32(active[h], states)
    });
    let class: [__m512i; HALVES] = std::array::from_fn(|h| load_signed(&rows.class[WIDTH * h..]));
    let (feedback, input) = layout.register.map_or((0, 0), |register| (register.feedback, register.input));
    let feedback = _mm512_set1_epi32(feedback.cast_signed());
    let input = _mm512_set1_epi32(input.cast_signed());

    let (mut taken, mut row) = (0, from);
    let mut known = None;
    let mut base = [one; HALVES];
    while let (Some(&row_class), Some(window)) =
        (rows.row_class.get(row), words.get(taken..taken + ROW_WORDS))
    {
        if known != Some(row_class) {
            known = Some(row_class);
            let last = _mm512_set1_epi32(layout.classes.cast_signed() - 1);
            for h in 0..HALVES {
                let sum = _mm512_add_epi32(class[h], _mm512_set1_epi32(row_class));
                let clamped = _mm512_max_epi32(_mm512_min_epi32(sum, last), _mm512_setzero_si512());
                base[h] = _mm512_mullo_epi32(clamped, _mm512_set1_epi32(layout.unions.cast_signed()));
            }
        }
        let mut used = 0;
        let mut value = [one; HALVES];
        let mut escaped = [0 as __mmask16; HALVES];
        for h in 0..HALVES {
            let table = _mm512_add_epi32(base[h], _mm512_and_si512(state[h], union_mask));
            let slot = _mm512_and_si512(x[h], slot_mask);
            let at = _mm512_add_epi32(_mm512_sll_epi32(table, shift), slot);
            let (frequency, offset);
            if PACKED {
                // SAFETY: the table is below classes * unions and the slot below 2^precision (see `Layout`).
                let entry = unsafe { _mm512_i32gather_epi32::<4>(at, layout.slots.as_ptr().cast()) };
                value[h] = _mm512_srai_epi32::<24>(entry);
                frequency = _mm512_and_si512(_mm512_srli_epi32::<12>(entry), _mm512_set1_epi32(0xFFF));
                offset = _mm512_and_si512(entry, _mm512_set1_epi32(0xFFF));
            } else {
                // SAFETY: as above; the byte is there, and three more behind it.
                let four = unsafe { _mm512_i32gather_epi32::<1>(at, layout.slots.as_ptr().cast()) };
                let byte = _mm512_and_si512(four, _mm512_set1_epi32(0xFF));
                let at = _mm512_add_epi32(_mm512_slli_epi32::<8>(table), byte);
                // SAFETY: the table is below classes * unions and the byte below 256.
                let entry = unsafe { _mm512_i32gather_epi32::<4>(at, layout.symbols.as_ptr().cast()) };
                value[h] = _mm512_add_epi32(byte, escape);
                frequency = _mm512_srli_epi32::<16>(entry);
                offset = _mm512_sub_epi32(slot, _mm512_and_si512(entry, _mm512_set1_epi32(0xFFFF)));
            }
            let quotient = _mm512_srl_epi32(x[h], shift);
            let decoded = _mm512_add_epi32(_mm512_mullo_epi32(frequency, quotient), offset);
            let low = _mm512_mask_testn_epi32_mask(active[h], decoded, _mm512_set1_epi32(!0xFFFF));
            let refill = _mm512_maskz_expand_epi32(low, _mm512_cvtepu16_epi32(sixteen(window, used)));
            used += low.count_ones() as usize;
            let refilled = _mm512_mask_or_epi32(decoded, low, _mm512_slli_epi32::<16>(decoded), refill);
            x[h] = _mm512_mask_mov_epi32(x[h], active[h], refilled);
            escaped[h] = _mm512_mask_cmpeq_epi32_mask(active[h], value[h], escape);
        }
        if escaped != [0; HALVES] {
            for h in 0..HALVES {
                let raw = _mm512_cvtepi16_epi32(sixteen(window, used));
                value[h] = _mm512_mask_expand_epi32(value[h], escaped[h], raw);
                used += escaped[h].count_ones() as usize;
            }
        }
        for h in 0..HALVES {
            let index = if TRELLIS == NONE {
                value[h]
            } else {
                let index =
                    _mm512_add_epi32(_mm512_slli_epi32::<1>(value[h]), _mm512_and_si512(state[h], one));
                state[h] = if TRELLIS == REGISTER {
                    let shifted = _mm512_srli_epi32::<1>(state[h]);
                    let odd = _mm512_test_epi32_mask(state[h], one);
                    let back = _mm512_mask_xor_epi32(shifted, odd, shifted, feedback);
                    _mm512_mask_xor_epi32(back, _mm512_test_epi32_mask(value[h], one), back, input)
                } else {
                    let branch =
                        _mm512_or_si512(_mm512_slli_epi32::<1>(state[h]), _mm512_and_si512(value[h], one));
                    // SAFETY: states are below `states`, so branches are below the length of `next`.
                    unsafe { _mm512_i32gather_epi32::<4>(branch, layout.next.as_ptr().cast()) }
                };
                index
            };
            store(&mut rows.latents[row], h, index);
        }
        taken += used;
        row += 1;
    }

    for h in 0..HALVES {
        let mut states = [0u32; WIDTH];
        // SAFETY: both are sixteen 32-bit numbers long.
        unsafe {
            _mm512_storeu_si512(rows.rans[WIDTH * h..][..WIDTH].as_mut_ptr().cast(), x[h]);
            _mm512_storeu_si512(states.as_mut_ptr().cast(), state[h]);
        }
        let places = rows.trellis[..lanes].iter_mut().skip(WIDTH * h);
        places.zip(states).for_each(|(place, state)| *place = state as u8);
    }
    (row, taken)
}

fn part(lanes: &[u32; MAX_LANES], h: usize) -> &[u32] {
    &lanes[WIDTH * h..]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(numbers: &[u32]) -> __m512i {
    let numbers = numbers.first_chunk::<WIDTH>().expect("sixteen numbers");
    // SAFETY: the array is as long as the register.
    unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_signed(numbers: &[i32]) -> __m512i {
    let numbers = numbers.first_chunk::<WIDTH>().expect("sixteen numbers");
    // SAFETY: the array is as long as the register.
    unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(row: &mut [i32; MAX_LANES], h: usize, numbers: __m512i) {
    // SAFETY: h is 0 or 1, so sixteen of the thirty-two numbers are there from 16 h on.
    unsafe { _mm512_storeu_si512(row.as_mut_ptr().add(WIDTH * h).cast(), numbers) }
}

/// Sixteen words from `at` on, which is at most [`ROW_WORDS`] - 16: a row reads four times, at most sixteen words each.
#[inline]
#[target_feature(enable = "avx512f")]
fn sixteen(window: &[[u8; 2]], at: usize) -> __m256i {
    debug_assert!(at + WIDTH <= window.len());
    // SAFETY: the caller's window is ROW_WORDS long, and `at` as stated.
    unsafe { _mm256_loadu_si256(window.as_ptr().add(at).cast()) }
}

/// The weights of a row's half before they are rounded (§10.3); `largest` is what they saturate at.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn scaled(chunk: &Chunk, row: usize, h: usize, unit: __m512, largest: f32) -> __m512 {
    let columns = chunk.column_scale[WIDTH * h..].first_chunk::<WIDTH>().expect("sixteen columns");
    // SAFETY: the array is as long as the register.
    let columns = unsafe { _mm512_loadu_ps(columns.as_ptr()) };
    let step = saturate(_mm512_mul_ps(_mm512_set1_ps(chunk.row_scale[row]), columns), f32::MAX);
    let latents = _mm512_mul_ps(_mm512_cvtepi32_ps(load_signed(&chunk.latents[row][WIDTH * h..])), unit);
    saturate(_mm512_mul_ps(latents, step), largest)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn saturate(x: __m512, largest: f32) -> __m512 {
    _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(largest)), _mm512_set1_ps(-largest))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn unit(chunk: &Chunk) -> __m512 {
    _mm512_set1_ps(((1u32 << (chunk.fraction_bits & 15)) as f32).recip())
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(in crate::simd) fn scale_f32(chunk: &Chunk, weights: &mut [[f32; MAX_LANES]; CHUNK_ROWS]) {
    let unit = unit(chunk);
    for (row, weights) in weights.iter_mut().enumerate().take(chunk.rows) {
        for h in 0..2 {
            let scaled = scaled(chunk, row, h, unit, f32::MAX);
            // SAFETY: sixteen of the thirty-two numbers are there from 16 h on.
            unsafe { _mm512_storeu_ps(weights.as_mut_ptr().add(WIDTH * h), scaled) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(in crate::simd) fn scale_f16(chunk: &Chunk, weights: &mut [[f16; MAX_LANES]; CHUNK_ROWS]) {
    let unit = unit(chunk);
    for (row, weights) in weights.iter_mut().enumerate().take(chunk.rows) {
        for h in 0..2 {
            // What lies between the largest finite number and the first that rounds to infinity rounds down anyway.
            let scaled = scaled(chunk, row, h, unit, 65504.0);
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(scaled);
            // SAFETY: sixteen of the thirty-two numbers are there from 16 h on.
            unsafe { _mm256_storeu_si256(weights.as_mut_ptr().add(WIDTH * h).cast(), halves) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(in crate::simd) fn scale_bf16(chunk: &Chunk, weights: &mut [[bf16; MAX_LANES]; CHUNK_ROWS]) {
    let unit = unit(chunk);
    let largest = bf16::MAX.to_f32();
    for (row, weights) in weights.iter_mut().enumerate().take(chunk.rows) {
        for h in 0..2 {
            let bits = _mm512_castps_si512(scaled(chunk, row, h, unit, largest));
            // Ties to even: add a half, less one where the bit that stays is even.
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
            let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
            // SAFETY: sixteen of the thirty-two numbers are there from 16 h on.
            unsafe { _mm256_storeu_si256(weights.as_mut_ptr().add(WIDTH * h).cast(), halves) };
        }
    }
}

/// [`Synthesis::apply`], compiled for the vectors of AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(in crate::simd) fn synthesise(
    synthesis: Synthesis<'_>,
    latents: &mut [[i32; MAX_LANES]; CHUNK_ROWS],
    rows: usize,
) {
    synthesis.apply_abreast::<MAX_LANES>(latents, rows);
}
