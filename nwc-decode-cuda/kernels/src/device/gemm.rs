//! y = W x straight from the compressed tensor.
//!
//! A chunk of a warp is 16 rows of 32 columns: two tensor-core matrices. Indices go to them as they are, exact in binary16 (but for those of careful chunks above 2^16); the scales of the columns that are summed over are multiplied
//! into x, the others into y.

use super::block::Block;
use super::intrinsics::{
    add_global, block, bytes_to_f16, commit_and_wait, f16_to_f32, let_next_begin, load_matrices, load_shared,
    load_shared_2, multiply_add, pack_f16, shuffle, store_shared_2, store_shared_4, store_shared_f32,
    sync_block, sync_warp, thread, threads, wait_for_previous,
};
use super::item::{LAYERS, LINEAR, NONE, Place, Sink, Walk, decode};
use crate::lane::{Bytes, rows, unit_bits};
use crate::layout::{self, CHUNK, LANES, TensorRecord};

/// Bytes of shared memory that a warp turns a chunk around in.
const TILE_BYTES: u32 = layout::TILE_BYTES as u32;
/// Where the second half of a chunk begins.
const HALF_TILE: u32 = TILE_BYTES / 2;

/// Kernels for up to so many rows of x, in so many matrices of 8 columns, with tensors that are transposed or not.
macro_rules! kernels {
    ($($name:ident: $most:literal, $tiles:literal, $transposed:literal, $transform:expr;)*) => {$(
        /// Y = X W^T straight from the compressed tensor: `x` [batch, in] as F16, `y` [batch, out] as F32, to which the product is added. Each of these kernels is for up to
        /// so many rows of x as its name says, and for tensors that are transposed or not; for tensors without a transform, unless it says that they may have a linear one, or any.
        ///
        /// `tensor` is one of the image's, a single matrix, and comes as an argument so that no block need look for it; the grid has the blocks that
        /// [`TensorRecord::block`] counts, of at most `wide` items. The sums of `together` chunks, a power of two, are added up at a time: many, so that the warps of a
        /// block need not wait for each other often. Shared memory is as for `nwc_decode`, with [`layout::product_warp_bytes`] for each warp.
        ///
        /// It may begin before the kernels ahead of it in its stream have ended, and waits for them before it reads x or writes.
        ///
        /// # Safety
        /// `image` is an image, which has the tensor; `x` and `y` have the lengths; `batch` is no larger than what the kernel is for.
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name(
            image: *const u8,
            tensor: TensorRecord,
            wide: u32,
            together: u32,
            x: *const u16,
            batch: u32,
            y: *mut f32,
            status: *mut u32,
        ) {
            // SAFETY: by the caller.
            unsafe { product::<$tiles, $most, $transposed, { $transform }>(image, tensor, wide, together, x, batch, y, status) }
        }
    )*};
}

kernels! {
    nwc_gemm_1: 1, 1, false, NONE;
    nwc_gemm_8: 8, 1, false, NONE;
    nwc_gemm_16: 16, 2, false, NONE;
    nwc_gemm_1_transposed: 1, 1, true, NONE;
    nwc_gemm_8_transposed: 8, 1, true, NONE;
    nwc_gemm_16_transposed: 16, 2, true, NONE;
    nwc_gemm_16_linear: 16, 2, false, LINEAR;
    nwc_gemm_16_transposed_linear: 16, 2, true, LINEAR;
    nwc_gemm_16_layers: 16, 2, false, LAYERS;
    nwc_gemm_16_transposed_layers: 16, 2, true, LAYERS;
}

/// `TILES` matrices of 8 columns hold the batch, of which `KEPT` columns are of use.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn product<const TILES: usize, const KEPT: u32, const TRANSPOSED: bool, const TRANSFORM: u32>(
    image: *const u8,
    tensor: TensorRecord,
    wide: u32,
    together: u32,
    x: *const u16,
    batch: u32,
    y: *mut f32,
    status: *mut u32,
) {
    let sums_bytes = layout::sums_bytes(KEPT as usize, together as usize) as u32;
    // SAFETY: by the caller.
    unsafe {
        let_next_begin();
        let record = tensor.block(block(), wide, 0);
        let block = Block::enter(image, record, Block::warps() * (TILE_BYTES + sums_bytes));
        let warp = Block::warp();
        let number = warp.min(block.record.items - 1);
        let place = block.place(number);
        let walk = Walk::new(&place, TRANSPOSED);
        let scale = place.column_scale();
        let mut product = Product::<TILES, KEPT, TRANSPOSED> {
            x,
            batch,
            y,
            tile: block.own + warp * TILE_BYTES,
            sums: block.own + Block::warps() * TILE_BYTES + warp * sums_bytes,
            all_sums: block.own + Block::warps() * TILE_BYTES,
            together,
            items: block.record.items,
            of_columns: [[[0; 2]; 2]; TILES],
            totals: [[[0.0; 4]; 2]; TILES],
            scale: 1.0,
        };
        wait_for_previous();
        product.load_columns(&place, scale);
        let idle = warp >= block.record.items;
        commit_and_wait::<0>();
        sync_block();
        let code = decode::<TRANSFORM>(&place, walk, idle, &mut product);
        if !idle {
            product.finish(&place, scale);
            block.report(status, number, &place, code);
        }
    }
}

/// The largest of the warp's numbers, and 1 if there is none above 0.
#[inline(always)]
fn largest(mut value: f32) -> f32 {
    let mut apart = 16;
    while apart > 0 {
        value = value.max(f32::from_bits(shuffle(value.to_bits(), (thread() % 32) ^ apart)));
        apart /= 2;
    }
    if value > 0.0 { value } else { 1.0 }
}

struct Product<const TILES: usize, const KEPT: u32, const TRANSPOSED: bool> {
    x: *const u16,
    batch: u32,
    y: *mut f32,
    /// Shared memory of the warp for a chunk.
    tile: u32,
    /// Shared memory of the warp for sums, [chunk][matrix of the batch][place of a row in the tile][column in the matrix].
    sums: u32,
    /// That of the block's first warp.
    all_sums: u32,
    /// Chunks whose products the block sums up together.
    together: u32,
    items: u32,
    /// x of the item's columns, for the two halves of 16 columns.
    of_columns: [[[u32; 2]; 2]; TILES],
    /// Transposed: what is summed up over rows, for the two halves of 16 columns.
    totals: [[[f32; 4]; 2]; TILES],
    /// What the columns' scales were divided by.
    scale: f32,
}

/// The row of a chunk that lies at a place of a column in the tile; and the place where a row lies.
#[inline(always)]
const fn row_at(place: u32) -> u32 {
    place % 4 * 4 + place / 4
}

/// What careful items' latents are multiplied by, so that the largest, 2^20 steps, becomes finite in binary16.
const CAREFUL_UNIT: f32 = 1.0 / 32.0;

impl<const TILES: usize, const KEPT: u32, const TRANSPOSED: bool> Product<TILES, KEPT, TRANSPOSED> {
    /// Columns of the batch in a matrix.
    const WIDTH: u32 = KEPT / TILES as u32;
    /// Sums of a chunk.
    const SUMS: u32 = CHUNK as u32 * KEPT;
    /// Sums that a thread adds to y at a time.
    const EACH: u32 = if KEPT == 1 { 1 } else { 2 };

    /// A chunk's number among those that are summed up together.
    #[inline(always)]
    fn chunk_of(&self, row: u32) -> u32 {
        row / CHUNK as u32 & (self.together - 1)
    }

    /// An element of x, 0 where there is none.
    ///
    /// # Safety
    /// As the kernels'.
    #[inline(always)]
    unsafe fn input(&self, place: &Place, n: u32, at: u32, here: bool) -> f32 {
        if here && n < self.batch {
            // SAFETY: by the caller.
            f16_to_f32(unsafe { self.x.add(n as usize * place.tensor.input as usize + at as usize).read() })
        } else {
            0.0
        }
    }

    #[inline(always)]
    unsafe fn load_columns(&mut self, place: &Place, column_scale: f32) {
        if TRANSPOSED {
            return;
        }
        self.scale = largest(if place.lane < place.item.columns_here { column_scale } else { 0.0 });
        let share = (column_scale / self.scale).to_bits();
        for tile in 0..TILES {
            for part in 0..2 {
                for half in 0..2 {
                    let n = 8 * tile as u32 + place.lane / 4;
                    let at = (16 * part + 8 * half) as u32 + place.lane % 4 * 2;
                    // SAFETY: by the caller.
                    let (low, high) = unsafe {
                        (self.of_column(place, n, at, share), self.of_column(place, n, at + 1, share))
                    };
                    self.of_columns[tile][part][half] = pack_f16(low, high);
                }
            }
        }
    }

    /// x of a column of the item, times the column's share.
    ///
    /// # Safety
    /// As the kernels'.
    #[inline(always)]
    unsafe fn of_column(&self, place: &Place, n: u32, at: u32, share: u32) -> f32 {
        let share = f32::from_bits(shuffle(share, at));
        // SAFETY: by the caller.
        share * unsafe { self.input(place, n, place.item.first_column + at, at < place.item.columns_here) }
    }

    /// Adds the block's sums of the chunks up to the one at `row` to y, once there are enough or no more.
    #[inline(always)]
    fn add_up(&self, place: &Place, row: u32) {
        let chunk = self.chunk_of(row);
        if chunk + 1 < self.together && row + (CHUNK as u32) < place.item.rows {
            return;
        }
        let first = row - chunk * CHUNK as u32;
        let count = (chunk + 1) * Self::SUMS / Self::EACH;
        let mut at = thread();
        // What a thread needs first is on its way before it waits.
        let mut scale = self.scale_of(place, first, at, count);
        sync_block();
        while at < count {
            let (row, n, sum) = Self::element(at);
            let sums = self.sums_of_warps(self.all_sums + sum * 4);
            let row = first + row;
            for i in 0..Self::EACH {
                if row < place.item.rows && n + i < self.batch {
                    let out =
                        (n + i) as usize * place.tensor.out as usize + (place.item.first_row + row) as usize;
                    // SAFETY: y has an element for each row and column of the batch.
                    unsafe { add_global(self.y.add(out), sums[i as usize] * scale) };
                }
            }
            at += threads();
            if at < count {
                scale = self.scale_of(place, first, at, count);
            }
        }
        sync_block();
    }

    /// Of sums that a thread adds to y: their row, their first column of the batch, and their place among those of a warp.
    #[inline(always)]
    const fn element(at: u32) -> (u32, u32, u32) {
        let chunk = CHUNK as u32;
        if KEPT == 1 {
            return (at, 0, at / chunk * chunk + row_at(at % chunk));
        }
        let of_line = Self::WIDTH / Self::EACH;
        let (line, column) = (at / of_line, at % of_line * Self::EACH);
        let matrix = line / chunk;
        let row = matrix / TILES as u32 * chunk + row_at(line % chunk);
        (row, matrix % TILES as u32 * Self::WIDTH + column, at * Self::EACH)
    }

    /// The scale of their row, counted from `first`, if there are so many.
    #[inline(always)]
    fn scale_of(&self, place: &Place, first: u32, at: u32, count: u32) -> f32 {
        if at < count {
            // SAFETY: there are scales for whole chunks.
            unsafe { place.image.read(place.item.row_scales, first + Self::element(at).0) }
        } else {
            0.0
        }
    }

    /// The totals over the block's items of such sums, which the first item's warp has at an address.
    #[inline(always)]
    fn sums_of_warps(&self, mut from: u32) -> [f32; 2] {
        const AT_ONCE: u32 = 4;
        let warp_bytes = self.together * Self::SUMS * 4;
        let mut totals = [[0.0; 2]; 4];
        let mut left = self.items;
        while left > 0 {
            for warp in 0..AT_ONCE {
                if warp < left {
                    let from = from + warp * warp_bytes;
                    // SAFETY: the block's own shared memory.
                    let sums = unsafe {
                        if Self::EACH == 1 {
                            [f32::from_bits(load_shared(from)), 0.0]
                        } else {
                            load_shared_2(from)
                        }
                    };
                    let total = &mut totals[warp as usize];
                    *total = [total[0] + sums[0], total[1] + sums[1]];
                }
            }
            from += AT_ONCE * warp_bytes;
            left = left.saturating_sub(AT_ONCE);
        }
        let [a, b, c, d] = totals;
        [(a[0] + b[0]) + (c[0] + d[0]), (a[1] + b[1]) + (c[1] + d[1])]
    }

    /// Multiplies a chunk with x: in word (g, h), its rows g + 8h and g + 8h + 4.
    #[inline(always)]
    fn multiply(&mut self, place: &Place, row: u32, [a, b, c, d]: [[u32; 2]; 4], unit: f32) {
        let at = self.tile + place.lane * 16;
        // SAFETY: the warp's own shared memory.
        unsafe {
            store_shared_4(at, [a[0], a[1], b[0], b[1]]);
            store_shared_4(at + HALF_TILE, [c[0], c[1], d[0], d[1]]);
        }
        sync_warp();
        if TRANSPOSED {
            self.by_rows(place, row, unit);
        } else {
            self.by_columns(place, row, unit);
        }
        sync_warp();
    }

    /// Multiplies with x by columns, and keeps the sums.
    #[inline(always)]
    fn by_columns(&self, place: &Place, row: u32, unit: f32) {
        let (matrix, line) = (place.lane / 8, place.lane % 8);
        let mut sums = [[0.0; 4]; TILES];
        for part in 0..2 {
            let at = self.tile + matrix % 2 * (HALF_TILE) + (16 * part + matrix / 2 * 8 + line) * 16;
            // SAFETY: the warp's own shared memory.
            let a = unsafe { load_matrices::<true>(at) };
            for tile in 0..TILES {
                multiply_add(&mut sums[tile], a, self.of_columns[tile][part as usize]);
            }
        }
        // The lane's first sum of the chunk.
        let (line, n) = (place.lane / 4, place.lane % 4 * 2);
        let first = self.sums + (line * Self::WIDTH + n) * 4 + self.chunk_of(row) * Self::SUMS * 4;
        let scale = self.scale * unit;
        for tile in 0..TILES {
            for half in 0..2 {
                let at = first + (tile * CHUNK + half * 8) as u32 * Self::WIDTH * 4;
                let pair = [sums[tile][2 * half] * scale, sums[tile][2 * half + 1] * scale];
                // SAFETY: the warp's own shared memory.
                unsafe {
                    if KEPT > 1 {
                        store_shared_2(at, pair);
                    } else if n == 0 {
                        store_shared_f32(at, pair[0]);
                    }
                }
            }
        }
    }

    /// Multiplies with x by rows, and adds to the totals.
    #[inline(always)]
    fn by_rows(&mut self, place: &Place, row: u32, unit: f32) {
        let (matrix, line) = (place.lane / 8, place.lane % 8);
        let mut a = [[0; 4]; 2];
        for part in 0..2 {
            let at = self.tile + matrix / 2 * (HALF_TILE) + (16 * part as u32 + matrix % 2 * 8 + line) * 16;
            // SAFETY: the warp's own shared memory.
            a[part] = unsafe { load_matrices::<false>(at) };
        }
        sync_warp(); // the other lanes' copies of scales have arrived too
        for tile in 0..TILES {
            let n = 8 * tile as u32 + place.lane / 4;
            let b = [0, 8].map(|half| {
                let at = place.lane % 4 * 2 + half;
                // SAFETY: by the caller of the kernel.
                unsafe {
                    pack_f16(
                        self.of_row(place, n, row + row_at(at)),
                        self.of_row(place, n, row + row_at(at + 1)),
                    )
                }
            });
            for part in 0..2 {
                let mut sums = [0.0; 4];
                multiply_add(&mut sums, a[part], b);
                for i in 0..4 {
                    self.totals[tile][part][i] += sums[i] * unit;
                }
            }
        }
    }

    /// x of a row of the item, times the row's scale in units of the largest.
    ///
    /// # Safety
    /// As the kernels'.
    #[inline(always)]
    unsafe fn of_row(&self, place: &Place, n: u32, row: u32) -> f32 {
        // SAFETY: scales lie in memory for whole chunks; x by the caller.
        unsafe {
            let scale = place.row_scale(row);
            let x = self.input(place, n, place.item.first_row + row, row < place.item.rows);
            x * (scale / place.item.largest_row_scale)
        }
    }

    /// Adds the totals to y.
    #[inline(always)]
    unsafe fn finish(&self, place: &Place, column_scale: f32) {
        if !TRANSPOSED {
            return;
        }
        let scale = (column_scale * place.item.largest_row_scale).to_bits();
        for tile in 0..TILES {
            for part in 0..2 {
                for i in 0..4 {
                    let lane = (16 * part + i / 2 * 8) as u32 + place.lane / 4;
                    let n = (tile * 8 + i % 2) as u32 + place.lane % 4 * 2;
                    let scale = f32::from_bits(shuffle(scale, lane));
                    if lane < place.item.columns_here && n < self.batch {
                        let out = n as usize * place.tensor.out as usize
                            + (place.item.first_column + lane) as usize;
                        // SAFETY: by the caller.
                        unsafe { add_global(self.y.add(out), self.totals[tile][part][i] * scale) };
                    }
                }
            }
        }
    }
}

impl<const TILES: usize, const KEPT: u32, const TRANSPOSED: bool> Sink for Product<TILES, KEPT, TRANSPOSED> {
    #[inline(always)]
    fn scratch(&self) -> u32 {
        self.tile
    }

    #[inline(always)]
    fn chunk<const CAREFUL: bool>(&mut self, place: &Place, row: u32, latents: [i32; CHUNK]) {
        let factor = if CAREFUL { CAREFUL_UNIT } else { 1.0 };
        // In steps, so that they fit binary16 whatever the synthesis.
        let unit = place.tensor.latent_unit * factor;
        let values = rows!(ROW => latents[ROW] as f32 * unit);
        let pair = |row: usize| pack_f16(values[row], values[row + 4]);
        let words = [0, 1, 2, 3].map(|row| [pair(row), pair(row + 8)]);
        self.multiply(place, row, words, 1.0 / factor);
    }

    #[inline(always)]
    fn bytes(&mut self, place: &Place, row: u32, indices: Bytes) {
        let unit = 1.0 / (1 << unit_bits(place.tensor.low_bits)) as f32;
        self.multiply(place, row, indices.map(bytes_to_f16), unit);
    }

    #[inline(always)]
    fn skip(&mut self, place: &Place, row: u32) {
        if !TRANSPOSED {
            let sums = self.chunk_of(row) * Self::SUMS;
            let mut at = place.lane;
            while at < Self::SUMS {
                // SAFETY: the warp's own shared memory.
                unsafe { store_shared_f32(self.sums + (sums + at) * 4, 0.0) };
                at += LANES as u32;
            }
        }
    }

    #[inline(always)]
    fn after(&mut self, place: &Place, row: u32) {
        if !TRANSPOSED {
            self.add_up(place, row);
        }
    }
}
