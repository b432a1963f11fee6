//! Decoding an image on the processor, with the code that the GPU's threads run: for tests, and for machines without a GPU.

use nwc_decode_core::Error;
use nwc_decode_kernels::lane::{self, Direct, Indexed, LOWER_BOUND, Lane, Memory, Symbols, Words};
use nwc_decode_kernels::layout::{
    CHUNK, ColumnRecord, Header, ItemRecord, LaneRecord, TensorRecord, UNIT, flag, form,
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
    /// [`Error::Output`] if `out` is not as long as the tensor, or what the first damaged item reports.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn decode_on_host(&self, tensor: usize, out: &mut [f32]) -> Result<(), Error> {
        if out.len() != self.tensors()[tensor].elements() {
            return Err(Error::Output);
        }
        let view = View(self.bytes());
        let header: Header = view.read(0, 0);
        let record: TensorRecord = view.read(header.tensor_records, tensor);
        let tables = &self.bytes()[record.tables as usize * UNIT..][..record.table_bytes as usize];
        for number in self.items_of(tensor) {
            let item: ItemRecord = view.read(header.item_records, number);
            if let Some(error) = error_of(item.error) {
                return Err(error);
            }
            for lane in 0..item.columns_here as usize {
                let decoded = if record.form == form::DIRECT {
                    decode_lane(view, &record, &item, lane, &Direct::new(View(tables), &record), out)
                } else {
                    decode_lane(view, &record, &item, lane, &Indexed::new(View(tables), &record), out)
                };
                decoded?;
            }
        }
        Ok(())
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
        let latents = match tensor.hadamard {
            0 => indices,
            _ if rows == CHUNK as u32 => lane::hadamard(indices),
            _ => indices.map(|index| 4 * index),
        };
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
    if words.read > next.start() as usize {
        Err(Error::Overrun)
    } else if words.read < next.start() as usize {
        Err(Error::Trailing)
    } else if item.flags & flag::LAST != 0 && lane.x != LOWER_BOUND {
        Err(Error::FinalState)
    } else {
        Ok(())
    }
}
