//! Decoding an image on the processor, with the code that the GPU's threads run: for tests, and for machines without a GPU.

use std::ops::Range;

use nwc_decode_core::Error;
use nwc_decode_kernels::lane::{self, LOWER_BOUND, Lane, Memory, Planes, Symbols, Words};
use nwc_decode_kernels::layout::{
    CHUNK, GROUP, Header, ItemRecord, LANES, LaneRecord, Patch, RING_BYTES, TensorRecord, UNIT, flag,
};

use crate::Image;

/// The bytes of an image, read by offset.
#[derive(Clone, Copy)]
struct View<'a>(&'a [u8]);

impl View<'_> {
    fn read<T: bytemuck::AnyBitPattern>(self, offset: u32, index: usize) -> T {
        let at = offset as usize * UNIT + index * size_of::<T>();
        bytemuck::pod_read_unaligned(&self.0[at..at + size_of::<T>()])
    }
}

impl Memory for View<'_> {
    fn word(&self, at: u32) -> u32 {
        bytemuck::pod_read_unaligned(&self.0[at as usize..at as usize + 4])
    }
}

/// What a lane has asked for; what is read beyond that is 0, and known to be wrong in the end.
struct Asked {
    words: Vec<u16>,
    read: u32,
    end: u32,
}

impl Words for Asked {
    fn refill(&mut self, x: u32) -> u32 {
        if x >= LOWER_BOUND {
            return x;
        }
        let word = self.words.get(self.read as usize / 2).copied().unwrap_or(0);
        self.read += 2;
        x << 16 | u32::from(word)
    }
}

impl Image {
    /// Decodes a tensor into `out`, row-major [batch, out, in], lane by lane.
    ///
    /// # Errors
    /// [`Error::Output`] if `out` is not as long as the tensor, or what the first damaged item reports: all others are decoded.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn decode_on_host(&self, tensor: usize, out: &mut [f32]) -> Result<(), Error> {
        let status = self.status_on_host(tensor, out)?;
        status.into_iter().find_map(error_of).map_or(Ok(()), Err)
    }

    /// As [`decode_on_host`](Self::decode_on_host), but gives the code of every item of the tensor as kernels do, 0 for those that are good. What lanes with
    /// damaged words decode is written too; items whose record has an error are left as they were.
    ///
    /// # Errors
    /// [`Error::Output`] if `out` is not as long as the tensor.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn status_on_host(&self, tensor: usize, out: &mut [f32]) -> Result<Vec<u32>, Error> {
        if out.len() != self.tensors()[tensor].elements() {
            return Err(Error::Output);
        }
        let view = View(self.bytes());
        let header: Header = view.read(0, 0);
        let record: TensorRecord = view.read(header.tensor_records, tensor);
        let status = (0..record.items as usize).map(|number| {
            let item: ItemRecord = view.read(record.item_records, number);
            if item.error == 0 { Warp::new(view, &record, &item, number).decode(out) } else { item.error }
        });
        Ok(status.collect())
    }

    /// Where an item has what kernels take from nobody on trust, as ranges of the image's bytes: its words, planes and lanes. For tests
    /// of what damage there does.
    ///
    /// # Panics
    /// If there is no such item.
    pub fn untrusted(&self, item: usize) -> Vec<Range<usize>> {
        let view = View(self.bytes());
        let header: Header = view.read(0, 0);
        let tensor = (0..self.tensors().len()).find(|tensor| self.items_of(*tensor).contains(&item));
        let record: TensorRecord = view.read(header.tensor_records, tensor.expect("there is such an item"));
        let number = item - record.first_item as usize;
        let item: ItemRecord = view.read(record.item_records, number);
        if item.error != 0 {
            return Vec::new();
        }
        let (words, planes) = (item.words as usize * UNIT, item.planes as usize * UNIT);
        let plane_words = item.rows.div_ceil(2 * CHUNK as u32) * record.planes * LANES as u32;
        let lanes_bytes = LANES * size_of::<LaneRecord>();
        let lanes = record.lanes as usize * UNIT + number * lanes_bytes;
        // Planes come right after words.
        vec![words..planes + 4 * plane_words as usize, lanes..lanes + lanes_bytes]
    }

    /// The image with one byte changed by exclusive or. For tests, at places that are [`untrusted`](Self::untrusted): kernels trust all others.
    ///
    /// # Panics
    /// If there is no such byte.
    #[must_use]
    pub fn with_flipped(&self, place: usize, bits: u8) -> Self {
        let mut damaged = self.clone();
        damaged.bytes_mut()[place] ^= bits;
        damaged
    }
}

/// The error with a code, if it is not 0.
pub(crate) fn error_of(number: u32) -> Option<Error> {
    Error::ALL.into_iter().find(|error| u32::from(error.code()) == number)
}

/// The lanes of an item, side by side: what one takes moves what the others find.
struct Warp<'a> {
    view: View<'a>,
    tensor: &'a TensorRecord,
    item: &'a ItemRecord,
    lanes: Vec<(Symbols<View<'a>>, Lane, Asked)>,
    next: u32,
    patches: u32,
}

impl<'a> Warp<'a> {
    fn new(view: View<'a>, tensor: &'a TensorRecord, item: &'a ItemRecord, number: usize) -> Self {
        let tables = &view.0[tensor.tables as usize * UNIT..][..tensor.table_bytes as usize];
        let lanes = (0..LANES).map(|lane| {
            let record: LaneRecord = view.read(tensor.lanes, number * LANES + lane);
            let symbols = Symbols::new(View(tables), tensor, record.table());
            (symbols, Lane::new(record), Asked { words: Vec::new(), read: 0, end: 2 * record.words() })
        });
        let mut warp = Self { view, tensor, item, lanes: lanes.collect(), next: 0, patches: 0 };
        for _ in 0..RING_BYTES / GROUP {
            warp.ask();
        }
        warp
    }

    fn ask(&mut self) {
        let last = lane::last_group(self.tensor.units, self.item.words);
        for (.., words) in &mut self.lanes {
            if lane::asks(words.read, 2 * words.words.len() as u32, words.end) {
                let group: [u16; GROUP / 2] = self.view.read(self.item.words, self.next.min(last) as usize);
                words.words.extend(group);
                self.next += 1;
            }
        }
    }

    /// Decodes the item into its places in the tensor; the code of the first lane that has one, or 0.
    fn decode(mut self, out: &mut [f32]) -> u32 {
        for first in (0..self.item.rows).step_by(CHUNK) {
            self.ask();
            let patches = self.patches(first);
            for number in 0..LANES {
                let latents = self.latents(number, first, &patches);
                if number < self.item.columns_here as usize {
                    self.write(number, first, latents, !patches.is_empty(), out);
                }
            }
        }
        let codes = self.lanes.iter().take(self.item.columns_here as usize);
        codes
            .map(|(_, lane, words)| lane::end_code(words.read, words.end, lane.x))
            .find(|code| *code != 0)
            .unwrap_or(0)
    }

    /// A lane's word of a plane for the rows around `row`.
    fn plane(&self, number: usize, row: u32, plane: u32) -> u32 {
        let word = self.tensor.plane_word(row / (2 * CHUNK as u32), plane, number as u32);
        if plane < self.tensor.planes { self.view.read(self.item.planes, word as usize) } else { 0 }
    }

    /// The patches of a chunk.
    fn patches(&mut self, first: u32) -> Vec<Patch> {
        let rows = first..first + CHUNK as u32;
        let all = (self.patches..).map(|number| self.view.read::<Patch>(self.item.patches, number as usize));
        let here: Vec<_> = all.take_while(|patch| rows.contains(&(patch.place / LANES as u32))).collect();
        self.patches += here.len() as u32;
        here
    }

    /// The tensor's tables, and its network behind them.
    fn tables(&self) -> View<'a> {
        View(&self.view.0[self.tensor.tables as usize * UNIT..])
    }

    fn latents(&mut self, number: usize, first: u32, patches: &[Patch]) -> [i32; CHUNK] {
        let tensor = self.tensor;
        let high = tensor.high_planes();
        let planes = Planes {
            first: self.plane(number, first, 0),
            lowest: if tensor.trellis == 0 { self.plane(number, first, 1) } else { 0 },
            highest: self.plane(number, first, high),
            next: self.plane(number, first, high + 1),
        };
        let is_odd = first / CHUNK as u32 % 2 == 1;
        let (symbols, lane, words) = &mut self.lanes[number];
        let bytes = lane::chunk(symbols, tensor, lane, words, planes, is_odd);
        let mut indices = lane::by_rows(bytes, tensor.low_bits);
        if tensor.low_bits > 4 {
            let plane = |bit| self.plane(number, first, high + 2 + bit);
            indices = lane::widen(indices, tensor.low_bits, is_odd, plane);
        }
        for patch in patches.iter().filter(|patch| patch.place as usize % LANES == number) {
            indices[(patch.place / LANES as u32 - first) as usize] = patch.index;
        }
        let rows = self.item.rows - first;
        lane::synthesise_any(tensor, &self.tables(), indices, rows)
    }

    fn write(&self, number: usize, first: u32, latents: [i32; CHUNK], is_patched: bool, out: &mut [f32]) {
        let Self { view, tensor, item, .. } = self;
        let (out_rows, input) = (tensor.out as usize, tensor.input as usize);
        let unit = tensor.latent_unit;
        let column_scale: f32 = view.read(item.column_scales, number);
        for (row, latent) in (first..item.rows).zip(latents) {
            let row_scale: f32 = view.read(item.row_scales, row as usize);
            let weight = if item.flags & flag::CAREFUL == 0 && !is_patched {
                lane::weight::<false>(latent, 1.0, row_scale, column_scale * unit)
            } else {
                lane::weight::<true>(latent, unit, row_scale, column_scale)
            };
            let (r, c) = ((item.first_row + row) as usize, item.first_column as usize + number);
            let (o, i) = if tensor.transposed == 1 { (c, r) } else { (r, c) };
            out[(item.matrix as usize * out_rows + o) * input + i] = weight;
        }
    }
}
