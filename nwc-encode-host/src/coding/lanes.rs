//! Sixteen lanes at a time: the operations of the trellis search, for any processor, for AVX2 and for AVX-512.
//!
//! All three compute the same bits: the same operations in the same order, none fused, so a file does not depend on the machine that made it.

/// Lanes that are searched together.
pub const WIDTH: usize = 16;

/// Costs of the four candidates next to a weight, by index mod 4.
pub type Candidates = [f32; 4];

/// What each candidate's squared distance grows by with the weight's distance t from its floor f, by f mod 4 and index mod 4. The candidates
/// are f - 1, f, f + 1 and f + 2, at squared distances t^2 + (1 + 2t, 0, 1 - 2t, 4 - 4t).
const SLOPES: [[f32; 4]; 4] =
    [[0.0, -2.0, -4.0, 2.0], [2.0, 0.0, -2.0, -4.0], [-4.0, 2.0, 0.0, -2.0], [-2.0, -4.0, 2.0, 0.0]];

/// The part of the candidates' squared distances that does not depend on t, by place.
pub const CONSTANTS: [f32; 4] = [1.0, 0.0, 1.0, 4.0];

/// Index mod 4 of the candidate at f - 1, f, f + 1 or f + 2 (`place` 0 to 3).
pub const fn subset_at(floor: i32, place: usize) -> usize {
    ((floor - 1 + place as i32) & 3) as usize
}

/// Operations on [`WIDTH`] lanes. A value of the type is the proof that the processor has the instructions.
pub trait Lanes: Copy {
    /// A number in each lane.
    type Float: Copy;
    /// An integer in each lane.
    type Int: Copy;

    /// Numbers from memory.
    fn load(self, from: &[f32; WIDTH]) -> Self::Float;
    /// Numbers limited to magnitudes up to `most`.
    fn limit(self, value: Self::Float, most: f32) -> Self::Float;
    /// Integers from memory.
    fn load_int(self, from: &[i32; WIDTH]) -> Self::Int;
    /// Numbers to memory.
    fn store(self, value: Self::Float) -> [f32; WIDTH];
    /// Integers to memory.
    fn store_int(self, value: Self::Int, to: &mut [i32; WIDTH]);
    /// One number in all lanes.
    fn splat(self, value: f32) -> Self::Float;
    /// The even and the odd ones of the numbers of `a` and `b`, one after the other.
    fn split(self, a: Self::Float, b: Self::Float) -> (Self::Float, Self::Float);
    /// In lane l what was in lane l ^ `by`, below [`WIDTH`].
    fn mirror(self, value: Self::Float, by: usize) -> Self::Float;
    /// Sum.
    fn add(self, a: Self::Float, b: Self::Float) -> Self::Float;
    /// Difference.
    fn sub(self, a: Self::Float, b: Self::Float) -> Self::Float;
    /// The smaller, `a` if they are equal, and in bit l whether lane l's is `b`.
    fn choose(self, a: Self::Float, b: Self::Float) -> (Self::Float, u16);

    /// Costs of the candidates next to each weight (short of t^2, which all four share), by index mod 4. `base` is the place in `table`
    /// of each lane's costs for a floor of 0; floors outside `first..=last` cost what the nearest in their place mod 4 does.
    fn metrics(
        self,
        weights: Self::Float,
        base: Self::Int,
        first: i32,
        last: i32,
        table: &[Candidates],
    ) -> [Self::Float; 4];

    /// Index mod 4 of the cheapest candidate.
    fn cheapest(self, metrics: &[Self::Float; 4]) -> Self::Int;

    /// One step back along the best path into each lane's state: the state before, and the index mod 4 that was chosen there. `decisions`
    /// holds, for each of the trellis's `N` states, bit l: which branch lane l came by.
    fn back<const N: usize>(
        self,
        decisions: &[u16; N],
        states: Self::Int,
        taps: (u8, u8),
    ) -> (Self::Int, Self::Int);

    /// The candidate of a subset next to each weight.
    fn index(self, weights: Self::Float, subset: Self::Int) -> Self::Int;
}

/// Any processor.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

impl Lanes for Portable {
    type Float = [f32; WIDTH];
    type Int = [i32; WIDTH];

    #[inline(always)]
    fn limit(self, value: Self::Float, most: f32) -> Self::Float {
        value.map(|x| x.max(-most).min(most))
    }

    #[inline(always)]
    fn load(self, from: &[f32; WIDTH]) -> Self::Float {
        *from
    }

    #[inline(always)]
    fn load_int(self, from: &[i32; WIDTH]) -> Self::Int {
        *from
    }

    #[inline(always)]
    fn store(self, value: Self::Float) -> [f32; WIDTH] {
        value
    }

    #[inline(always)]
    fn store_int(self, value: Self::Int, to: &mut [i32; WIDTH]) {
        *to = value;
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Float {
        [value; WIDTH]
    }

    #[inline(always)]
    fn split(self, a: Self::Float, b: Self::Float) -> (Self::Float, Self::Float) {
        let at = |place: usize| if place < WIDTH { a[place] } else { b[place - WIDTH] };
        (std::array::from_fn(|lane| at(2 * lane)), std::array::from_fn(|lane| at(2 * lane + 1)))
    }

    #[inline(always)]
    fn mirror(self, value: Self::Float, by: usize) -> Self::Float {
        std::array::from_fn(|lane| value[(lane ^ by) % WIDTH])
    }

    #[inline(always)]
    fn add(self, a: Self::Float, b: Self::Float) -> Self::Float {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn sub(self, a: Self::Float, b: Self::Float) -> Self::Float {
        std::array::from_fn(|lane| a[lane] - b[lane])
    }

    #[inline(always)]
    fn choose(self, a: Self::Float, b: Self::Float) -> (Self::Float, u16) {
        let mut chosen = 0;
        for lane in 0..WIDTH {
            chosen |= u16::from(b[lane] < a[lane]) << lane;
        }
        (std::array::from_fn(|lane| if b[lane] < a[lane] { b[lane] } else { a[lane] }), chosen)
    }

    #[inline(always)]
    fn metrics(
        self,
        weights: Self::Float,
        base: Self::Int,
        first: i32,
        last: i32,
        table: &[Candidates],
    ) -> [Self::Float; 4] {
        let mut metrics = [[0.0; WIDTH]; 4];
        for lane in 0..WIDTH {
            let floor = weights[lane].floor();
            let t = weights[lane] - floor;
            let floor = floor as i32;
            let phase = floor & 3;
            let place = floor.min(last & !3 | phase).max(first & !3 | phase);
            let costs = &table[(base[lane] + place) as usize];
            for subset in 0..4 {
                metrics[subset][lane] = costs[subset] + SLOPES[phase as usize][subset] * t;
            }
        }
        metrics
    }

    #[inline(always)]
    fn cheapest(self, metrics: &[Self::Float; 4]) -> Self::Int {
        std::array::from_fn(|lane| {
            let [a, b, c, d] = metrics.map(|metric| metric[lane]);
            let (low, high) = (if b < a { (b, 1) } else { (a, 0) }, if d < c { (d, 3) } else { (c, 2) });
            if high.0 < low.0 { high.1 } else { low.1 }
        })
    }

    #[inline(always)]
    fn back<const N: usize>(
        self,
        decisions: &[u16; N],
        states: Self::Int,
        taps: (u8, u8),
    ) -> (Self::Int, Self::Int) {
        let mut subsets = [0; WIDTH];
        let before = std::array::from_fn(|lane| {
            let state = states[lane];
            let bit = i32::from(decisions[state as usize % N] >> lane & 1);
            let parity = i32::from(state >= N as i32 / 2);
            subsets[lane] = parity + 2 * bit;
            2 * (state ^ (parity * i32::from(taps.0)) ^ (bit * i32::from(taps.1))) + parity
        });
        (before, subsets)
    }

    #[inline(always)]
    fn index(self, weights: Self::Float, subset: Self::Int) -> Self::Int {
        std::array::from_fn(|lane| {
            let below = weights[lane].floor() as i32 - 1;
            below + ((subset[lane] - below) & 3)
        })
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports)] // Some forty names.
    use std::arch::x86_64::*;

    use super::{Candidates, Lanes, SLOPES, WIDTH};

    /// Column `subset` of [`SLOPES`].
    const fn slopes(subset: usize) -> [f32; 4] {
        [SLOPES[0][subset], SLOPES[1][subset], SLOPES[2][subset], SLOPES[3][subset]]
    }

    /// Calls intrinsics on behalf of a proof that the processor has them.
    macro_rules! simd {
        ($($body:tt)*) => {
            // SAFETY: `self` exists, so the processor has the instructions; pointers come from references to arrays of at least the size that is
            // read or written, and places that are gathered are masked to lie in their array.
            unsafe { $($body)* }
        };
    }

    /// The costs of four lanes that are four lanes apart, side by side.
    type Rows = [i32; WIDTH];

    /// A processor with AVX2.
    #[derive(Debug, Clone, Copy)]
    pub struct Avx2(());

    impl Avx2 {
        /// The proof, if this processor has it.
        pub fn detect() -> Option<Self> {
            std::is_x86_feature_detected!("avx2").then_some(Self(()))
        }
    }

    impl Lanes for Avx2 {
        type Float = [__m256; 2];
        type Int = [__m256i; 2];

        #[inline(always)]
        fn limit(self, value: Self::Float, most: f32) -> Self::Float {
            let [a, b] = value;
            simd!(
                let (most, least) = (_mm256_set1_ps(most), _mm256_set1_ps(-most));
                [_mm256_min_ps(_mm256_max_ps(a, least), most), _mm256_min_ps(_mm256_max_ps(b, least), most)]
            )
        }

        #[inline(always)]
        fn load(self, from: &[f32; WIDTH]) -> Self::Float {
            simd!([_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())])
        }

        #[inline(always)]
        fn load_int(self, from: &[i32; WIDTH]) -> Self::Int {
            simd!([_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from[8..].as_ptr().cast())])
        }

        #[inline(always)]
        fn store(self, value: Self::Float) -> [f32; WIDTH] {
            let mut to = [0.0; WIDTH];
            simd!(_mm256_storeu_ps(to.as_mut_ptr(), value[0]));
            simd!(_mm256_storeu_ps(to[8..].as_mut_ptr(), value[1]));
            to
        }

        #[inline(always)]
        fn store_int(self, value: Self::Int, to: &mut [i32; WIDTH]) {
            simd!(_mm256_storeu_si256(to.as_mut_ptr().cast(), value[0]));
            simd!(_mm256_storeu_si256(to[8..].as_mut_ptr().cast(), value[1]));
        }

        #[inline(always)]
        fn splat(self, value: f32) -> Self::Float {
            simd!([_mm256_set1_ps(value); 2])
        }

        #[inline(always)]
        fn split(self, a: Self::Float, b: Self::Float) -> (Self::Float, Self::Float) {
            let half = |a: __m256, b: __m256| {
                simd!(
                    // Within 128 bits first, then their halves in order.
                    let even = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(a, b));
                    let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0xDD>(a, b));
                    (
                        _mm256_castpd_ps(_mm256_permute4x64_pd::<0xD8>(even)),
                        _mm256_castpd_ps(_mm256_permute4x64_pd::<0xD8>(odd)),
                    )
                )
            };
            let ((even_a, odd_a), (even_b, odd_b)) = (half(a[0], a[1]), half(b[0], b[1]));
            ([even_a, even_b], [odd_a, odd_b])
        }

        #[inline(always)]
        fn mirror(self, value: Self::Float, by: usize) -> Self::Float {
            let (low, high) = if by >= 8 { (value[1], value[0]) } else { (value[0], value[1]) };
            simd!(
                let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                let lanes = _mm256_xor_si256(lanes, _mm256_set1_epi32(by as i32 & 7));
                [_mm256_permutevar8x32_ps(low, lanes), _mm256_permutevar8x32_ps(high, lanes)]
            )
        }

        #[inline(always)]
        fn add(self, a: Self::Float, b: Self::Float) -> Self::Float {
            simd!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
        }

        #[inline(always)]
        fn sub(self, a: Self::Float, b: Self::Float) -> Self::Float {
            simd!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
        }

        #[inline(always)]
        fn choose(self, a: Self::Float, b: Self::Float) -> (Self::Float, u16) {
            // The minimum of equal numbers is the second operand.
            simd!(
                let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(b[0], a[0]));
                let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(b[1], a[1]));
                ([_mm256_min_ps(b[0], a[0]), _mm256_min_ps(b[1], a[1])], (low | high << 8) as u16)
            )
        }

        #[inline(always)]
        fn metrics(
            self,
            weights: Self::Float,
            base: Self::Int,
            first: i32,
            last: i32,
            table: &[Candidates],
        ) -> [Self::Float; 4] {
            let mut places: Rows = [0; WIDTH];
            let mut floors = base;
            let mut rests = weights;
            for i in 0..2 {
                simd!(
                    let floor = _mm256_floor_ps(weights[i]);
                    rests[i] = _mm256_sub_ps(weights[i], floor);
                    floors[i] = _mm256_cvtps_epi32(floor);
                    let phase = _mm256_and_si256(floors[i], _mm256_set1_epi32(3));
                    let most = _mm256_or_si256(phase, _mm256_set1_epi32(last & !3));
                    let least = _mm256_or_si256(phase, _mm256_set1_epi32(first & !3));
                    let place = _mm256_max_epi32(_mm256_min_epi32(floors[i], most), least);
                    let place = _mm256_add_epi32(place, base[i]);
                    _mm256_storeu_si256(places[8 * i..].as_mut_ptr().cast(), place)
                );
            }
            let place = |lane: usize| &table[places[lane] as usize];
            let mut metrics = [weights; 4];
            for i in 0..2 {
                // Two lanes a register, four lanes apart, so that the transposition below stays inside 128 bits.
                let mut rows = [weights[i]; 4];
                for (lane, row) in rows.iter_mut().enumerate() {
                    let (low, high) = (place(8 * i + lane), place(8 * i + lane + 4));
                    *row = simd!(_mm256_insertf128_ps::<1>(
                        _mm256_castps128_ps256(_mm_loadu_ps(low.as_ptr())),
                        _mm_loadu_ps(high.as_ptr())
                    ));
                }
                let [a, b, c, d] = rows;
                let costs = simd!(
                    let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                    let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                    [
                        _mm256_shuffle_ps::<0x44>(ab_low, cd_low),
                        _mm256_shuffle_ps::<0xEE>(ab_low, cd_low),
                        _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                        _mm256_shuffle_ps::<0xEE>(ab_high, cd_high),
                    ]
                );
                for subset in 0..4 {
                    metrics[subset][i] = simd!(
                        let slopes = _mm256_broadcast_ps(&_mm_loadu_ps(SLOPES_BY_SUBSET[subset].as_ptr()));
                        let slope = _mm256_permutevar_ps(slopes, floors[i]);
                        _mm256_add_ps(costs[subset], _mm256_mul_ps(slope, rests[i]))
                    );
                }
            }
            metrics
        }

        #[inline(always)]
        fn cheapest(self, metrics: &[Self::Float; 4]) -> Self::Int {
            let (low, low_bits) = self.choose(metrics[0], metrics[1]);
            let (high, high_bits) = self.choose(metrics[2], metrics[3]);
            let (_, upper) = self.choose(low, high);
            let mut subsets = [0; WIDTH];
            for (lane, subset) in subsets.iter_mut().enumerate() {
                let [low, high, upper] = [low_bits, high_bits, upper].map(|bits| i32::from(bits >> lane & 1));
                *subset = if upper == 0 { low } else { 2 + high };
            }
            self.load_int(&subsets)
        }

        #[inline(always)]
        fn back<const N: usize>(
            self,
            decisions: &[u16; N],
            states: Self::Int,
            taps: (u8, u8),
        ) -> (Self::Int, Self::Int) {
            let mut before = states;
            let mut subsets = states;
            for i in 0..2 {
                simd!(
                    let state = _mm256_and_si256(states[i], _mm256_set1_epi32(N as i32 - 1));
                    // Pairs of decisions as 32-bit words: no word reaches beyond the array.
                    let words = _mm256_i32gather_epi32::<4>(decisions.as_ptr().cast(), _mm256_srli_epi32::<1>(state));
                    let odd = _mm256_slli_epi32::<4>(_mm256_and_si256(state, _mm256_set1_epi32(1)));
                    let lanes = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(8 * i as i32));
                    let bit = _mm256_and_si256(_mm256_srlv_epi32(words, _mm256_add_epi32(odd, lanes)), _mm256_set1_epi32(1));
                    let parity = _mm256_srl_epi32(state, _mm_cvtsi32_si128(N.ilog2() as i32 - 1));
                    let zero = _mm256_setzero_si256();
                    let by_parity = _mm256_and_si256(_mm256_sub_epi32(zero, parity), _mm256_set1_epi32(i32::from(taps.0)));
                    let by_bit = _mm256_and_si256(_mm256_sub_epi32(zero, bit), _mm256_set1_epi32(i32::from(taps.1)));
                    let pair = _mm256_xor_si256(state, _mm256_xor_si256(by_parity, by_bit));
                    before[i] = _mm256_add_epi32(_mm256_add_epi32(pair, pair), parity);
                    subsets[i] = _mm256_add_epi32(_mm256_add_epi32(bit, bit), parity);
                );
            }
            (before, subsets)
        }

        #[inline(always)]
        fn index(self, weights: Self::Float, subset: Self::Int) -> Self::Int {
            let mut indices = subset;
            for i in 0..2 {
                indices[i] = simd!(
                    let floor = _mm256_cvtps_epi32(_mm256_floor_ps(weights[i]));
                    let below = _mm256_sub_epi32(floor, _mm256_set1_epi32(1));
                    let place = _mm256_and_si256(_mm256_sub_epi32(subset[i], below), _mm256_set1_epi32(3));
                    _mm256_add_epi32(below, place)
                );
            }
            indices
        }
    }

    /// A processor with AVX-512 F and BW.
    #[derive(Debug, Clone, Copy)]
    pub struct Avx512(());

    impl Avx512 {
        /// The proof, if this processor has it.
        pub fn detect() -> Option<Self> {
            let has = std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw");
            has.then_some(Self(()))
        }
    }

    impl Lanes for Avx512 {
        type Float = __m512;
        type Int = __m512i;

        #[inline(always)]
        fn limit(self, value: Self::Float, most: f32) -> Self::Float {
            simd!(_mm512_min_ps(_mm512_max_ps(value, _mm512_set1_ps(-most)), _mm512_set1_ps(most)))
        }

        #[inline(always)]
        fn load(self, from: &[f32; WIDTH]) -> Self::Float {
            simd!(_mm512_loadu_ps(from.as_ptr()))
        }

        #[inline(always)]
        fn load_int(self, from: &[i32; WIDTH]) -> Self::Int {
            simd!(_mm512_loadu_si512(from.as_ptr().cast()))
        }

        #[inline(always)]
        fn store(self, value: Self::Float) -> [f32; WIDTH] {
            let mut to = [0.0; WIDTH];
            simd!(_mm512_storeu_ps(to.as_mut_ptr(), value));
            to
        }

        #[inline(always)]
        fn store_int(self, value: Self::Int, to: &mut [i32; WIDTH]) {
            simd!(_mm512_storeu_si512(to.as_mut_ptr().cast(), value));
        }

        #[inline(always)]
        fn splat(self, value: f32) -> Self::Float {
            simd!(_mm512_set1_ps(value))
        }

        #[inline(always)]
        fn split(self, a: Self::Float, b: Self::Float) -> (Self::Float, Self::Float) {
            simd!(
                let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
                (_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b))
            )
        }

        #[inline(always)]
        fn mirror(self, value: Self::Float, by: usize) -> Self::Float {
            simd!(
                let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
                let lanes = _mm512_xor_si512(lanes, _mm512_set1_epi32(by as i32 & 15));
                _mm512_permutexvar_ps(lanes, value)
            )
        }

        #[inline(always)]
        fn add(self, a: Self::Float, b: Self::Float) -> Self::Float {
            simd!(_mm512_add_ps(a, b))
        }

        #[inline(always)]
        fn sub(self, a: Self::Float, b: Self::Float) -> Self::Float {
            simd!(_mm512_sub_ps(a, b))
        }

        #[inline(always)]
        fn choose(self, a: Self::Float, b: Self::Float) -> (Self::Float, u16) {
            // The minimum of equal numbers is the second operand.
            simd!((_mm512_min_ps(b, a), _mm512_cmp_ps_mask::<_CMP_LT_OQ>(b, a)))
        }

        #[inline(always)]
        fn metrics(
            self,
            weights: Self::Float,
            base: Self::Int,
            first: i32,
            last: i32,
            table: &[Candidates],
        ) -> [Self::Float; 4] {
            let mut places: Rows = [0; WIDTH];
            let (floors, rests) = simd!(
                let floor = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(weights);
                (_mm512_cvtps_epi32(floor), _mm512_sub_ps(weights, floor))
            );
            simd!(
                let phase = _mm512_and_si512(floors, _mm512_set1_epi32(3));
                let most = _mm512_or_si512(phase, _mm512_set1_epi32(last & !3));
                let least = _mm512_or_si512(phase, _mm512_set1_epi32(first & !3));
                let place = _mm512_max_epi32(_mm512_min_epi32(floors, most), least);
                _mm512_storeu_si512(places.as_mut_ptr().cast(), _mm512_add_epi32(place, base))
            );
            // Four lanes a register, four lanes apart, so that the transposition below stays inside 128 bits.
            let place = |lane: usize| &table[places[lane] as usize];
            let mut rows = [weights; 4];
            for (lane, row) in rows.iter_mut().enumerate() {
                let (a, b, c, d) = (place(lane), place(lane + 4), place(lane + 8), place(lane + 12));
                *row = simd!(
                    let all = _mm512_castps128_ps512(_mm_loadu_ps(a.as_ptr()));
                    let all = _mm512_insertf32x4::<1>(all, _mm_loadu_ps(b.as_ptr()));
                    let all = _mm512_insertf32x4::<2>(all, _mm_loadu_ps(c.as_ptr()));
                    _mm512_insertf32x4::<3>(all, _mm_loadu_ps(d.as_ptr()))
                );
            }
            let [a, b, c, d] = rows;
            let costs = simd!(
                let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                [
                    _mm512_shuffle_ps::<0x44>(ab_low, cd_low),
                    _mm512_shuffle_ps::<0xEE>(ab_low, cd_low),
                    _mm512_shuffle_ps::<0x44>(ab_high, cd_high),
                    _mm512_shuffle_ps::<0xEE>(ab_high, cd_high),
                ]
            );
            let mut metrics = costs;
            for (metric, slopes) in metrics.iter_mut().zip(&SLOPES_BY_SUBSET) {
                *metric = simd!(
                    let slopes = _mm512_broadcast_f32x4(_mm_loadu_ps(slopes.as_ptr()));
                    let slope = _mm512_permutevar_ps(slopes, floors);
                    _mm512_add_ps(*metric, _mm512_mul_ps(slope, rests))
                );
            }
            metrics
        }

        #[inline(always)]
        fn cheapest(self, metrics: &[Self::Float; 4]) -> Self::Int {
            let (low, low_bits) = self.choose(metrics[0], metrics[1]);
            let (high, high_bits) = self.choose(metrics[2], metrics[3]);
            let (_, upper) = self.choose(low, high);
            simd!(
                let low = _mm512_maskz_set1_epi32(low_bits, 1);
                let high = _mm512_mask_set1_epi32(_mm512_set1_epi32(2), high_bits, 3);
                _mm512_mask_mov_epi32(low, upper, high)
            )
        }

        #[inline(always)]
        fn back<const N: usize>(
            self,
            decisions: &[u16; N],
            states: Self::Int,
            taps: (u8, u8),
        ) -> (Self::Int, Self::Int) {
            let from = decisions.as_ptr();
            simd!(
                let states = _mm512_and_si512(states, _mm512_set1_epi32(N as i32 - 1));
                // The decisions of each lane's state, in the lower half of its 32 bits; N says how many registers they take.
                let words = match N {
                    8 => _mm512_permutexvar_epi16(states, _mm512_broadcast_i32x4(_mm_loadu_si128(from.cast()))),
                    16 => _mm512_permutexvar_epi16(states, _mm512_broadcast_i64x4(_mm256_loadu_si256(from.cast()))),
                    32 => _mm512_permutexvar_epi16(states, _mm512_loadu_si512(from.cast())),
                    64 => {
                        let (low, high) = (_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(32).cast()));
                        _mm512_permutex2var_epi16(low, states, high)
                    }
                    _ => {
                        // Pairs of decisions as 32-bit words: no word reaches beyond the array.
                        let pairs = _mm512_i32gather_epi32::<4>(_mm512_srli_epi32::<1>(states), from.cast());
                        let odd = _mm512_slli_epi32::<4>(_mm512_and_si512(states, _mm512_set1_epi32(1)));
                        _mm512_srlv_epi32(pairs, odd)
                    }
                };
                let lanes = _mm512_sllv_epi32(
                    _mm512_set1_epi32(1),
                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                );
                let bit = _mm512_test_epi32_mask(words, lanes);
                let parity = _mm512_srl_epi32(states, _mm_cvtsi32_si128(N.ilog2() as i32 - 1));
                let odd = _mm512_test_epi32_mask(states, _mm512_set1_epi32(N as i32 / 2));
                let pair = _mm512_mask_xor_epi32(states, odd, states, _mm512_set1_epi32(i32::from(taps.0)));
                let pair = _mm512_mask_xor_epi32(pair, bit, pair, _mm512_set1_epi32(i32::from(taps.1)));
                let before = _mm512_add_epi32(_mm512_add_epi32(pair, pair), parity);
                (before, _mm512_mask_add_epi32(parity, bit, parity, _mm512_set1_epi32(2)))
            )
        }

        #[inline(always)]
        fn index(self, weights: Self::Float, subset: Self::Int) -> Self::Int {
            simd!(
                let floor = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(weights);
                let below = _mm512_sub_epi32(_mm512_cvtps_epi32(floor), _mm512_set1_epi32(1));
                let place = _mm512_and_si512(_mm512_sub_epi32(subset, below), _mm512_set1_epi32(3));
                _mm512_add_epi32(below, place)
            )
        }
    }

    /// [`SLOPES`] transposed.
    static SLOPES_BY_SUBSET: [[f32; 4]; 4] = [slopes(0), slopes(1), slopes(2), slopes(3)];
}
