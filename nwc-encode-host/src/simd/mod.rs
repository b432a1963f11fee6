//! Decoding with vector instructions: of x86-64, chosen when the program runs, and of aarch64, which always has them.
//!
//! [`SimdEngine`] decodes the symbols of a tile's rows, [`Level::write`] turns a chunk of latents into weights. Both give the bytes that the
//! plain decoder gives; everything around them is `nwc-decode-core`'s.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod gather;

use nwc_decode_core::{CHUNK_ROWS, Chunk, Element, Error, MAX_LANES, RowEngine, Rows, Synthesis, Tables};

/// Instruction sets with a decoder of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Level {
    /// What every processor of the compiler's target has: the plain decoder.
    Plain,
    /// AVX2 and F16C.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// NEON, for symbols only: the plain code that scales and rounds is vectorised by the compiler already.
    Neon,
}

impl Level {
    /// The best that this processor has.
    pub fn best() -> Self {
        Self::available().last().copied().unwrap_or(Self::Plain)
    }

    /// All that this processor has, the slowest first.
    pub fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("f16c") {
            let wide = std::is_x86_feature_detected!("avx512f")
                && std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512dq")
                && std::is_x86_feature_detected!("avx512vl");
            return if wide { &[Self::Plain, Self::Avx2, Self::Avx512] } else { &[Self::Plain, Self::Avx2] };
        }
        if cfg!(target_arch = "aarch64") { &[Self::Plain, Self::Neon] } else { &[Self::Plain] }
    }

    /// Rounds a chunk's weights to `T` as [`Chunk::write`] does, and hands them to `put` in runs of neighbours: with the position of the first,
    /// where row r and column c of the tile have position `r * row_stride + c * column_stride`.
    ///
    /// # Errors
    /// Those of `put`.
    pub fn write<T: SimdElement>(
        self,
        chunk: &Chunk,
        row_stride: usize,
        column_stride: usize,
        mut put: impl FnMut(usize, &[T]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut weights = [[T::default(); MAX_LANES]; CHUNK_ROWS];
        let (rows, lanes) = (chunk.rows.min(CHUNK_ROWS), chunk.lanes.min(MAX_LANES));
        if matches!(self, Self::Plain | Self::Neon) || !Self::available().contains(&self) {
            let place = Chunk { first_row: 0, first_column: 0, ..chunk.clone() };
            place.write(weights.as_flattened_mut(), MAX_LANES, 1)?;
        } else {
            T::scale(self, chunk, &mut weights);
        }
        let first = chunk.first_row * row_stride + chunk.first_column * column_stride;
        if column_stride == 1 {
            for (row, weights) in weights[..rows].iter().enumerate() {
                put(first + row * row_stride, &weights[..lanes])?;
            }
            return Ok(());
        }
        (0..lanes).try_for_each(|lane| {
            let column: [T; CHUNK_ROWS] = std::array::from_fn(|row| weights[row][lane]);
            let start = first + lane * column_stride;
            if row_stride == 1 {
                return put(start, &column[..rows]);
            }
            let mut places = column[..rows].iter().enumerate();
            places.try_for_each(|(row, weight)| put(start + row * row_stride, std::slice::from_ref(weight)))
        })
    }
}

/// Number types that [`Level::write`] writes.
pub trait SimdElement: Element + private::Scale {}
impl SimdElement for f32 {}
impl SimdElement for half::f16 {}
impl SimdElement for half::bf16 {}

mod private {
    use super::{CHUNK_ROWS, Chunk, Level, MAX_LANES};

    pub trait Scale: Sized {
        /// The weights of a chunk; `level` is AVX2 or AVX-512, whichever of them the processor has.
        fn scale(level: Level, chunk: &Chunk, weights: &mut [[Self; MAX_LANES]; CHUNK_ROWS]);
    }
}

macro_rules! impl_scale {
    ($($type:ty => $name:ident),*) => {$(
        impl private::Scale for $type {
            #[cfg(target_arch = "x86_64")]
            fn scale(level: Level, chunk: &Chunk, weights: &mut [[Self; MAX_LANES]; CHUNK_ROWS]) {
                if level == Level::Avx512 {
                    // SAFETY: the caller vouches for the level.
                    unsafe { gather::avx512::$name(chunk, weights) }
                } else {
                    // SAFETY: as above.
                    unsafe { gather::avx2::$name(chunk, weights) }
                }
            }

            #[cfg(not(target_arch = "x86_64"))]
            fn scale(_: Level, _: &Chunk, _: &mut [[Self; MAX_LANES]; CHUNK_ROWS]) {
                unreachable!("no level here scales by itself")
            }
        }
    )*};
}
impl_scale!(f32 => scale_f32, half::f16 => scale_f16, half::bf16 => scale_bf16);

/// Decodes symbols with vector instructions; or plainly, where the processor or the tables do not suit.
#[derive(Debug)]
pub struct SimdEngine<'t> {
    plain: Tables<'t>,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fast: Option<gather::Engine>,
}

impl<'t> SimdEngine<'t> {
    /// An engine of this level for these tables; a plain one if the processor does not have the level, or a value of a symbol does not fit a byte.
    pub fn new(tables: &Tables<'t>, level: Level) -> Self {
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = level;
        Self {
            plain: *tables,
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            fast: gather::Engine::new(tables, level),
        }
    }

    /// The level that is used.
    pub fn level(&self) -> Level {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if let Some(fast) = &self.fast {
            return fast.level();
        }
        Level::Plain
    }
}

impl RowEngine for SimdEngine<'_> {
    fn decode_rows(&self, rows: Rows<'_>) -> Result<usize, Error> {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if let Some(fast) = self.fast.as_ref().filter(|fast| fast.suits(&rows)) {
            return Ok(fast.decode_rows(rows));
        }
        self.plain.decode_rows(rows)
    }

    fn synthesise(
        &self,
        synthesis: Synthesis<'_>,
        latents: &mut [[i32; MAX_LANES]; CHUNK_ROWS],
        rows: usize,
    ) {
        match self.level() {
            // SAFETY: the processor has the level, or there would be no engine of it.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { gather::avx2::synthesise(synthesis, latents, rows) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { gather::avx512::synthesise(synthesis, latents, rows) },
            // What every processor of aarch64 has, the compiler uses already.
            _ => self.plain.synthesise(synthesis, latents, rows),
        }
    }
}
