//! Making an image: a container's coded tensors in the form that kernels read.

use std::collections::HashMap;

use bytemuck::Pod;
use nwc_decode_core::{
    CodedTensor, Coding, Container, DType, Error, RowValue, Scratch, Synthesis, Table, Tables,
};
use nwc_decode_kernels::layout::{
    BlockRecord, CHUNK, Header, ItemRecord, LANES, LaneRecord, TensorRecord, UNIT, flag,
};
use rayon::prelude::*;

use crate::indices::TileIndices;
use crate::network;
use crate::quads::{QuadTable, Split, Spread, TableSet};
use crate::recode::{PathCode, Piece, Recoder};
use nwc_decode_kernels::lane::unit_bits;

/// Bytes of shared memory that a tensor's tables may take: with more, too few warps would fit beside them.
const MOST_TABLES: usize = 64 << 10;
/// Rows of an item, if it is not said.
const ITEM_ROWS: usize = 256;

/// How an image is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageOptions {
    /// The most rows that one warp decodes, a multiple of 16: fewer let one matrix keep more of a GPU busy, and cost some 500 bytes of the image each.
    pub item_rows: usize,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self { item_rows: ITEM_ROWS }
    }
}

/// The coded tensors of a container as kernels read them.
#[derive(Debug, Clone)]
pub struct Image {
    bytes: Vec<u8>,
    tensors: Vec<ImageTensor>,
    records: Vec<TensorRecord>,
    items: u32,
}

/// A tensor of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTensor {
    /// Its index in the container's directory.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Its own type.
    pub dtype: DType,
    /// [batch, out, in].
    pub shape: [usize; 3],
}

impl ImageTensor {
    /// Number of weights.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Image {
    /// Makes the image of all coded tensors of a container: decodes each of their tiles once, on all cores, and codes its indices as kernels read them.
    /// A tile that is damaged becomes items that report the error; nothing else suffers.
    ///
    /// # Errors
    /// What is wrong with the container's directory or codecs; [`Error::Limit`] if the image would be larger than 64 GiB.
    pub fn new(container: &Container<'_>, options: ImageOptions) -> Result<Self, Error> {
        let codecs: Vec<_> =
            (0..container.codec_count()).map(|index| container.codec(index)).collect::<Result<_, _>>()?;
        let mut memory: Vec<_> = codecs
            .iter()
            .map(|codec| codec.required_scratch(codec.precision()))
            .map(|need| (vec![Table::default(); need.tables], vec![0; need.words]))
            .collect();
        let expanded: Vec<_> = codecs
            .iter()
            .zip(&mut memory)
            .map(|(codec, (tables, words))| {
                let tables = Tables::expand(codec, codec.precision(), Scratch { tables, words })?;
                Ok((codec.synthesis(), tables))
            })
            .collect::<Result<_, Error>>()?;

        let mut writer = Writer::default();
        let (mut tensors, mut records, mut items) = (Vec::new(), Vec::<TensorRecord>::new(), 0);
        for (index, tensor) in container.tensors().enumerate() {
            if tensor.coding() != Coding::Coded {
                continue;
            }
            let coded = tensor.coded()?;
            let (synthesis, tables) = expanded.get(coded.codec_index()).ok_or(Error::Index)?;
            let shape = coded.shape();
            let synthesis = if coded.is_direct() { Synthesis::Identity } else { *synthesis };
            let record = add_tensor(&mut writer, &coded, synthesis, tables, options)?;
            records.push(TensorRecord { first_item: items, ..record });
            items += record.items;
            tensors.push(ImageTensor {
                index,
                name: tensor.name().to_string(),
                dtype: tensor.dtype(),
                shape,
            });
        }
        let tensor_records = writer.put(&records)?;
        let units = writer.units()?;
        records.iter_mut().for_each(|record| record.units = units);
        let header = Header {
            magic: Header::MAGIC,
            units,
            tensors: records.len() as u32,
            tensor_records,
            items,
            spare: [0; 3],
        };
        writer.bytes[..size_of::<Header>()].copy_from_slice(bytemuck::bytes_of(&header));
        let records_at = tensor_records as usize * UNIT;
        writer.bytes[records_at..].copy_from_slice(bytemuck::cast_slice(&records));
        Ok(Self { bytes: writer.bytes, tensors, records, items })
    }

    /// The image, to be copied to a multiple of 16 bytes in the memory of the device.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Its tensors, in the order of the directory.
    pub fn tensors(&self) -> &[ImageTensor] {
        &self.tensors
    }

    /// Number of items of all tensors: kernels write a status for each.
    pub fn items(&self) -> usize {
        self.items as usize
    }

    /// The numbers of a tensor's items.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn items_of(&self, tensor: usize) -> std::ops::Range<usize> {
        let record = &self.records[tensor];
        record.first_item as usize..(record.first_item + record.items) as usize
    }

    /// Bytes of shared memory that the tables of a tensor take in kernels.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn table_bytes(&self, tensor: usize) -> usize {
        self.records[tensor].table_bytes as usize
    }

    /// Blocks of threads with `warps` warps each that decode some tensors, the n-th into the n-th output.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn blocks(&self, tensors: &[usize], warps: usize) -> Vec<BlockRecord> {
        let wide = warps.max(1) as u32;
        let of = |(output, &tensor): (usize, &usize)| {
            let record = self.records[tensor];
            (0..record.blocks(wide)).map(move |number| record.block(number, wide, output as u32))
        };
        tensors.iter().enumerate().flat_map(of).collect()
    }

    /// The record of a tensor.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn record(&self, tensor: usize) -> &TensorRecord {
        &self.records[tensor]
    }
}

/// Appends to an image.
struct Writer {
    bytes: Vec<u8>,
    /// Where things lie that are there already: tables, mostly.
    known: HashMap<Vec<u8>, u32>,
}

impl Default for Writer {
    fn default() -> Self {
        Self { bytes: vec![0; size_of::<Header>()], known: HashMap::new() }
    }
}

impl Writer {
    fn units(&self) -> Result<u32, Error> {
        u32::try_from(self.bytes.len() / UNIT).map_err(|_| Error::Limit)
    }

    /// Appends something, and says at which offset.
    fn put<T: Pod>(&mut self, content: &[T]) -> Result<u32, Error> {
        let offset = self.units()?;
        self.bytes.extend_from_slice(bytemuck::cast_slice(content));
        self.bytes.resize(self.bytes.len().next_multiple_of(UNIT), 0);
        Ok(offset)
    }

    /// As [`put`](Self::put), but once only.
    fn put_once(&mut self, content: Vec<u8>) -> Result<u32, Error> {
        if let Some(&offset) = self.known.get(&content) {
            return Ok(offset);
        }
        let offset = self.put(&content)?;
        self.known.insert(content, offset);
        Ok(offset)
    }
}

fn add_tensor(
    writer: &mut Writer,
    coded: &CodedTensor<'_>,
    synthesis: Synthesis<'_>,
    tables: &Tables<'_>,
    options: ImageOptions,
) -> Result<TensorRecord, Error> {
    let item_rows = options.item_rows.clamp(CHUNK, 1 << 16).next_multiple_of(CHUNK);
    let blocks = coded.column_blocks();
    // What is wrong with a row stream is wrong with all tiles of its band.
    let bands: Vec<(Vec<RowValue>, Result<(), Error>)> = (0..coded.bands())
        .map(|band| {
            let tile = coded.tile(band * blocks)?;
            let mut values = vec![RowValue::default(); tile.rows()];
            let outcome = tile.row_values(tables, &mut values);
            Ok((values, outcome))
        })
        .collect::<Result<_, Error>>()?;
    let tiles: Vec<TileIndices> = (0..coded.tiles())
        .into_par_iter()
        .map(|number| TileIndices::new(coded, number, tables, &bands[number / blocks]))
        .collect::<Result<_, Error>>()?;
    let recoder = recoder(tables, &tiles);
    let pieces: Vec<Vec<Piece>> = tiles.par_iter().map(|tile| recoder.pieces(tile, item_rows)).collect();

    let [batch, out, input] = coded.shape().map(|n| n as u32);
    let mut shared: Vec<u32> = recoder.set.tables.iter().flat_map(QuadTable::slots).collect();
    let network = 4 * shared.len() as u32;
    let (synthesis, latent_unit, largest) =
        network::add(synthesis, unit_bits(recoder.split.low_bits), &mut shared);
    let mut record = TensorRecord {
        batch,
        out,
        input,
        transposed: coded.is_transposed().into(),
        table_bytes: 4 * shared.len() as u32,
        tables: writer.put_once(bytemuck::cast_slice(&shared).to_vec())?,
        table_count: recoder.set.tables.len() as u32,
        precision: recoder.set.precision,
        trellis: recoder.path.map_or(0, |path| path.order),
        low_bits: recoder.split.low_bits,
        planes: recoder.planes(),
        synthesis,
        network,
        latent_unit,
        items_across: tiles.iter().take(blocks).map(|tile| tile.columns.div_ceil(LANES) as u32).sum(),
        ..bytemuck::Zeroable::zeroed()
    };
    let (mut items, mut lanes) = (Vec::<ItemRecord>::new(), Vec::<[LaneRecord; LANES]>::new());
    let row_blocks = coded.bands() / batch.max(1) as usize;
    for (band, (values, _)) in bands.iter().enumerate() {
        let (tiles, pieces) = (&tiles[band * blocks..][..blocks], &pieces[band * blocks..][..blocks]);
        let mut scales: Vec<f32> = values.iter().map(|value| value.scale).collect();
        // Items begin at whole chunks, and their scales are read 32 at a time.
        scales.resize(values.len().next_multiple_of(2 * CHUNK) + CHUNK, 0.0);
        let scales_at = writer.put(&scales)?;
        let first = coded.tile(band * blocks)?.region();
        let band_row = if coded.is_transposed() { first.input.start } else { first.out.start };

        let segments = values.len().div_ceil(item_rows);
        let first_of_band = items.len();
        let more = record.items_across as usize * segments;
        items.resize(first_of_band + more, bytemuck::Zeroable::zeroed());
        lanes.resize(items.len(), bytemuck::Zeroable::zeroed());
        let mut across = 0;
        for (number, (tile, pieces)) in tiles.iter().zip(pieces).enumerate() {
            let region = coded.tile(band * blocks + number)?.region();
            let tile_column = if coded.is_transposed() { region.out.start } else { region.input.start };
            for group in pieces.chunks(segments) {
                let here = &tile.column_scales[group[0].columns.clone()];
                let mut column_scales = [here[0]; LANES];
                column_scales[..here.len()].copy_from_slice(here);
                let column_scales_at = writer.put(&column_scales)?;
                let plain = here.iter().all(|scale| scale.to_bits() == 1f32.to_bits());
                for (segment, piece) in group.iter().enumerate() {
                    let rows = &values[piece.rows.clone()];
                    let largest_row_scale = rows.iter().map(|row| row.scale).fold(0.0, f32::max);
                    // The fast way decodes whole chunks only, and bytes.
                    let careful = !piece.rows.len().is_multiple_of(CHUNK)
                        || recoder.split.low_bits > 4
                        || !is_tame(rows, here, largest);
                    let number = first_of_band + segment * record.items_across as usize + across;
                    lanes[number] = piece.lanes;
                    items[number] = ItemRecord {
                        words: writer.put(&piece.words)?,
                        planes: writer.put(&piece.planes)?,
                        column_scales: column_scales_at,
                        // Items begin at whole chunks: 64 bytes, four units.
                        row_scales: scales_at + (piece.rows.start * 4 / UNIT) as u32,
                        first_row: (band_row + piece.rows.start) as u32,
                        rows: piece.rows.len() as u32,
                        first_column: (tile_column + piece.columns.start) as u32,
                        columns_here: piece.columns.len() as u32,
                        matrix: (band / row_blocks) as u32,
                        flags: if careful { flag::CAREFUL } else { 0 }
                            | if plain { flag::PLAIN_COLUMNS } else { 0 },
                        error: tile.error.map_or(0, |error| error.code().into()),
                        largest_row_scale,
                        first_patched: piece.patched[0],
                        patched: writer.put_once(bytemuck::cast_slice(&piece.patched).to_vec())?,
                        patches: writer.put_once(bytemuck::cast_slice(&piece.patches).to_vec())?,
                        spare: 0,
                    };
                }
                across += 1;
            }
        }
    }
    record.items = items.len() as u32;
    record.item_records = writer.put(&items)?;
    record.lanes = writer.put(&lanes)?;
    Ok(record)
}

/// How the indices of some tiles are coded best.
fn recoder(tables: &Tables<'_>, tiles: &[TileIndices]) -> Recoder {
    let path = PathCode::of(tables.next_states());
    let sound = || tiles.iter().filter(|tile| tile.error.is_none());
    let weights: usize = sound().map(|tile| tile.indices.len()).sum();
    let magnitude = |tile: &TileIndices| {
        tile.indices.par_iter().map(|index| u64::from(index.unsigned_abs())).sum::<u64>()
    };
    let mean = sound().map(magnitude).sum::<u64>() as f64 / weights.max(1) as f64;
    let split = Split::for_magnitude(mean, path.is_some());
    let count = |class: usize| sound().map(|tile| tile.classes[class]).sum::<u64>();
    let classes = (0..tables.classes()).map(|class| (class, count(class as usize)));
    let mut spreads: Vec<(Spread, u64)> = classes
        .filter(|(_, count)| *count > 0)
        .map(|(class, count)| (Spread::of_class(tables, class, split), count))
        .collect();
    if spreads.is_empty() {
        spreads.push((Spread::of_class(tables, 0, split), 1)); // nothing to code, but a table all the same
    }
    Recoder { split, path, set: TableSet::new(&spreads, MOST_TABLES) }
}

/// Whether no product can overflow binary16 or become so small that it loses bits, if no latent is above `largest` steps.
fn is_tame(rows: &[RowValue], columns: &[f32], largest: f32) -> bool {
    let range = |scales: &mut dyn Iterator<Item = f32>| {
        scales.fold((f32::MAX, 0f32), |(least, most), scale| (least.min(scale), most.max(scale)))
    };
    let (least_row, most_row) = range(&mut rows.iter().map(|row| row.scale));
    let (least_column, most_column) = range(&mut columns.iter().copied());
    most_row * most_column * largest < 65504.0 && least_row * least_column > 1e-30
}
