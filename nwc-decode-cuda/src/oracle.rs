//! Decoding an image on the processor, with the code that the GPU's threads run: for tests, and for machines without a GPU.

use std::ops::Range;

use nwc_decode_core::Error;
use nwc_decode_kernels::lane::{self, Direct, Indexed, LOWER_BOUND, Lane, Memory, Symbols, Words};
use nwc_decode_kernels::layout::{
    CHUNK, ColumnRecord, Header, ItemRecord, LANES, LaneRecord, TensorRecord, UNIT, flag, form,
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

    fn byte(&self, at: u32) -> u32 {
        self.0[at as usize].into()
    }
}

/// A lane's words in the image; those beyond its end are 0.
struct LaneWords<'a> {
    image: View<'a>,
    offset: u32,
    read: usize,
}

impl Words for LaneWords<'_> {
    fn refill(&mut self, x: u32) -> u32 {
        if x < LOWER_BOUND { x << 16 | self.next() } else { x }
    }

    fn next(&mut self) -> u32 {
        let at = self.offset as usize * UNIT + 2 * self.read;
        self.read += 1;
        self.image.0.get(at..at + 2).map_or(0, |word| u16::from_le_bytes([word[0], word[1]]).into())
    }

    fn top_up(&mut self) {}

    fn top_up_now(&mut self) {}
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
        let tables = &self.bytes()[record.tables as usize * UNIT..][..record.table_bytes as usize];
        let status = self.items_of(tensor).map(|number| {
            let item: ItemRecord = view.read(header.item_records, number);
            if item.error != 0 {
                return item.error;
            }
            let mut first = 0;
            for lane in 0..item.columns_here as usize {
                let decoded = if record.form == form::DIRECT {
                    decode_lane(view, &record, &item, lane, &Direct::new(View(tables), &record), out)
                } else {
                    decode_lane(view, &record, &item, lane, &Indexed::new(View(tables), &record), out)
                };
                if let (0, Err(error)) = (first, decoded) {
                    first = error.code().into();
                }
            }
            first
        });
        Ok(status.collect())
    }

    /// Where an item has what kernels take from nobody on trust, as ranges of the image's bytes: its words, and its lanes' states and first words. For tests
    /// of what damage there does.
    ///
    /// # Panics
    /// If there is no such item.
    pub fn untrusted(&self, item: usize) -> Vec<Range<usize>> {
        let view = View(self.bytes());
        let header: Header = view.read(0, 0);
        let item: ItemRecord = view.read(header.item_records, item);
        if item.error != 0 {
            return Vec::new();
        }
        let (words, lanes) = (item.words as usize * UNIT, item.lanes as usize * UNIT);
        let end: LaneRecord = view.read(item.lanes, LANES);
        let words = words..words + 2 * end.start() as usize;
        // All of a record but the last byte, the trellis state, which tables are entered with.
        let record = size_of::<LaneRecord>();
        let records = (0..=LANES).map(|lane| lanes + lane * record..lanes + (lane + 1) * record - 1);
        std::iter::once(words).chain(records).collect()
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

fn decode_lane(
    view: View<'_>,
    tensor: &TensorRecord,
    item: &ItemRecord,
    number: usize,
    symbols: &impl Symbols,
    out: &mut [f32],
) -> Result<(), Error> {
    let (start, next): (LaneRecord, LaneRecord) =
        (view.read(item.lanes, number), view.read(item.lanes, number + 1));
    let column: ColumnRecord = view.read(item.columns, number);
    let mut words = LaneWords { image: view, offset: item.words, read: start.start() as usize };
    let mut lane = Lane::new(start.state, start.trellis());
    let careful = item.flags & flag::CAREFUL != 0;
    let (out_rows, input) = (tensor.out as usize, tensor.input as usize);
    let unit = if tensor.hadamard != 0 { 0.25 } else { 1.0 };
    for first in (0..item.rows).step_by(CHUNK) {
        let chunk = first / CHUNK as u32;
        let escapes: u32 = view.read(item.escapes, chunk as usize / 32);
        let careful = careful || escapes >> (chunk % 32) & 1 == 1;
        let rows = (item.rows - first).min(CHUNK as u32);
        let class_of = |row: u32| {
            let row_class: i32 = view.read(item.row_classes, (first + row) as usize);
            symbols.class(column.class + row_class)
        };
        let indices = if careful || rows < CHUNK as u32 {
            lane::chunk::<true>(symbols, &mut lane, &mut words, rows, class_of)
        } else {
            lane::chunk::<false>(symbols, &mut lane, &mut words, rows, class_of)
        };
        let latents = lane::synthesise(indices, tensor.hadamard != 0, rows);
        for (row, latent) in (first..item.rows).zip(latents) {
            let row_scale: f32 = view.read(item.row_scales, row as usize);
            let weight = if careful {
                lane::weight::<true>(latent, unit, row_scale, column.scale)
            } else {
                lane::weight::<false>(latent, 1.0, row_scale, column.scale * unit)
            };
            let (r, c) = ((item.first_row + row) as usize, item.first_column as usize + number);
            let (o, i) = if tensor.transposed == 1 { (c, r) } else { (r, c) };
            out[(item.matrix as usize * out_rows + o) * input + i] = weight;
        }
    }
    let x = if item.flags & flag::LAST != 0 { lane.x } else { LOWER_BOUND };
    error_of(lane::end_code(words.read as u32, next.start(), x)).map_or(Ok(()), Err)
}
