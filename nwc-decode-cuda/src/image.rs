//! Making an image: a container's coded tensors in the form that kernels read.

use std::collections::HashMap;

use bytemuck::Pod;
use nwc_decode_core::{Coding, Container, DType, Error, RowValue, Scratch, Synthesis, Table, Tables};
use nwc_decode_kernels::layout::{
    BlockRecord, CHUNK, ColumnRecord, ESCAPE, Header, INDEXED_ESCAPE, ItemRecord, LANES, TensorRecord, UNIT,
    flag, form,
};
use rayon::prelude::*;

use crate::trace::{Piece, SlotTables, pieces};

/// Bytes of shared memory that tables of [`form::DIRECT`] may take: with more, too few warps would fit beside them.
const MOST_DIRECT: usize = 96 << 10;
/// Bytes of shared memory that tables of [`form::INDEXED`] may take.
const MOST_INDEXED: usize = 160 << 10;
/// Rows of an item, if it is not said.
const ITEM_ROWS: usize = 256;

/// How an image is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageOptions {
    /// The most rows that one warp decodes, a multiple of 16: fewer let one matrix keep more of a GPU busy, and cost 320 bytes of the image each.
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
    /// Makes the image of all coded tensors of a container: decodes each of their tiles once, on all cores, and sorts its words by lane. A tile that is
    /// damaged becomes items that report the error; nothing else suffers.
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
                Ok((codec.synthesis(), SlotTables::new(tables)))
            })
            .collect::<Result<_, Error>>()?;

        let mut writer = Writer::default();
        let (mut tensors, mut records, mut items) = (Vec::new(), Vec::new(), Vec::new());
        for (index, tensor) in container.tensors().enumerate() {
            if tensor.coding() != Coding::Coded {
                continue;
            }
            let coded = tensor.coded()?;
            let (synthesis, tables) = expanded.get(coded.codec_index()).ok_or(Error::Index)?;
            let hadamard = *synthesis == Synthesis::Hadamard;
            let shape = coded.shape();
            let first_item = items.len() as u32;
            let record = add_tensor(&mut writer, &mut items, &coded, tables, hadamard, options)?;
            records.push(TensorRecord { first_item, items: items.len() as u32 - first_item, ..record });
            tensors.push(ImageTensor {
                index,
                name: tensor.name().to_string(),
                dtype: tensor.dtype(),
                shape,
            });
        }
        let tensor_records = writer.put(&records)?;
        let item_records = writer.put(&items)?;
        writer.put(&[0u8; UNIT])?; // a unit to spare, for lanes that read ahead
        let header = Header {
            magic: Header::MAGIC,
            units: writer.units()?,
            tensors: records.len() as u32,
            tensor_records,
            items: items.len() as u32,
            item_records,
            spare: [0; 2],
        };
        writer.bytes[..size_of::<Header>()].copy_from_slice(bytemuck::bytes_of(&header));
        Ok(Self { bytes: writer.bytes, tensors, records, items: header.items })
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
        let record = &self.records[tensor];
        if record.form == form::GLOBAL { 0 } else { record.table_bytes as usize }
    }

    /// Blocks of threads with `warps` warps each that decode some tensors, the n-th into the n-th output.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn blocks(&self, tensors: &[usize], warps: usize) -> Vec<BlockRecord> {
        let warps = warps.max(1) as u32;
        let mut blocks = Vec::new();
        for (output, &tensor) in tensors.iter().enumerate() {
            let record = &self.records[tensor];
            // Neighbours in a row of items, so that what they write lies side by side, in blocks about equally wide.
            let across = record.items_across.max(1);
            let wide = across.div_ceil(across.div_ceil(warps));
            for row in (0..record.items).step_by(across as usize) {
                for first in (0..across).step_by(wide as usize) {
                    blocks.push(BlockRecord {
                        tensor: tensor as u32,
                        first_item: record.first_item + row + first,
                        items: wide.min(across - first),
                        output: output as u32,
                    });
                }
            }
        }
        blocks
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
    items: &mut Vec<ItemRecord>,
    coded: &nwc_decode_core::CodedTensor<'_>,
    slot_tables: &SlotTables<'_>,
    hadamard: bool,
    options: ImageOptions,
) -> Result<TensorRecord, Error> {
    let item_rows = options.item_rows.clamp(CHUNK, 1 << 16).next_multiple_of(CHUNK);
    let tables = &slot_tables.tables;
    let blocks = coded.column_blocks();
    let bands: Vec<Vec<RowValue>> = (0..coded.bands())
        .map(|band| {
            let tile = coded.tile(band * blocks)?;
            let mut values = vec![RowValue::default(); tile.rows()];
            // What is wrong with a row stream, each of the band's tiles reports.
            let _ = tile.row_values(tables, &mut values);
            Ok(values)
        })
        .collect::<Result<_, Error>>()?;
    let traced: Vec<Vec<Piece>> = (0..coded.tiles())
        .into_par_iter()
        .map(|number| pieces(coded, number, slot_tables, &bands[number / blocks], item_rows))
        .collect::<Result<_, Error>>()?;

    let sound = || traced.iter().flatten().filter(|piece| piece.error.is_none());
    let least = sound().map(|piece| piece.classes.0).min().unwrap_or(0);
    let most = sound().map(|piece| piece.classes.1).max().unwrap_or(0);
    let mut record = table_record(writer, tables, least, most)?;
    let [batch, out, input] = coded.shape().map(|n| n as u32);
    (record.batch, record.out, record.input) = (batch, out, input);
    record.transposed = coded.is_transposed().into();
    record.hadamard = hadamard.into();

    let row_blocks = coded.bands() / batch.max(1) as usize;
    for (band, (values, tiles)) in bands.iter().zip(traced.chunks(blocks)).enumerate() {
        let padded = values.len().next_multiple_of(CHUNK);
        let mut scales: Vec<f32> = values.iter().map(|value| value.scale).collect();
        scales.resize(padded, 0.0);
        let classes: Vec<i32> = values.iter().map(|value| value.class).collect();
        let first = coded.tile(band * blocks)?.region();
        let band_row = if coded.is_transposed() { first.input.start } else { first.out.start };

        let segments = values.len().div_ceil(item_rows);
        record.items_across = tiles.iter().map(|pieces| (pieces.len() / segments) as u32).sum();
        let (scales_at, classes_at) = (writer.put(&scales)?, writer.put(&classes)?);
        let first_of_band = items.len();
        let more = record.items_across as usize * segments;
        items.resize(first_of_band + more, bytemuck::Zeroable::zeroed());
        let mut across = 0;
        for (tile, pieces) in tiles.iter().enumerate() {
            let region = coded.tile(band * blocks + tile)?.region();
            let tile_column = if coded.is_transposed() { region.out.start } else { region.input.start };
            for group in pieces.chunks(segments) {
                let columns: Vec<ColumnRecord> = (0..LANES)
                    .map(|lane| ColumnRecord {
                        scale: group[0].column_scale[lane],
                        class: group[0].column_class[lane] - least,
                    })
                    .collect();
                let columns_at = writer.put(&columns)?;
                for (segment, piece) in group.iter().enumerate() {
                    let rows = &values[piece.first_row..piece.first_row + piece.rows];
                    let largest_row_scale = rows.iter().map(|row| row.scale).fold(0.0, f32::max);
                    // The fast way decodes whole chunks only.
                    let careful = !piece.rows.is_multiple_of(CHUNK)
                        || rows.iter().any(|row| row.class != rows[0].class)
                        || !is_tame(rows, &group[0].column_scale[..piece.columns]);
                    items[first_of_band + segment * record.items_across as usize + across] = ItemRecord {
                        words: writer.put(&piece.words)?,
                        lanes: writer.put(&piece.lanes)?,
                        columns: columns_at,
                        // Items begin at whole chunks: 64 bytes, four units.
                        row_scales: scales_at + (piece.first_row * 4 / UNIT) as u32,
                        row_classes: classes_at + (piece.first_row * 4 / UNIT) as u32,
                        first_row: (band_row + piece.first_row) as u32,
                        rows: piece.rows as u32,
                        first_column: (tile_column + piece.first_column) as u32,
                        columns_here: piece.columns as u32,
                        matrix: (band / row_blocks) as u32,
                        flags: if careful { flag::CAREFUL } else { 0 }
                            | if is_last(pieces, piece) { flag::LAST } else { 0 },
                        error: piece.error.map_or(0, |error| error.code().into()),
                        largest_row_scale,
                        escapes: writer.put_once(bytemuck::cast_slice(&piece.escapes).to_vec())?,
                        spare: [0; 2],
                    };
                }
                across += 1;
            }
        }
    }
    Ok(record)
}

/// Whether a piece ends its tile's stream for all lanes.
fn is_last(pieces: &[Piece], piece: &Piece) -> bool {
    pieces.last().is_some_and(|last| (last.group, last.first_row) == (piece.group, piece.first_row))
}

/// Whether no product can overflow binary16 or become so small that it loses bits, if indices are at most 127 and latents at most 508.
fn is_tame(rows: &[RowValue], columns: &[f32]) -> bool {
    let range = |scales: &mut dyn Iterator<Item = f32>| {
        scales.fold((f32::MAX, 0f32), |(least, most), scale| (least.min(scale), most.max(scale)))
    };
    let (least_row, most_row) = range(&mut rows.iter().map(|row| row.scale));
    let (least_column, most_column) = range(&mut columns.iter().copied());
    most_row * most_column * 508.0 < 65504.0 && least_row * least_column > 1e-30
}

/// The tables for classes `least..=most`, in the best form for them, and the part of the record that tells of them.
fn table_record(
    writer: &mut Writer,
    tables: &Tables<'_>,
    least: i32,
    most: i32,
) -> Result<TensorRecord, Error> {
    let classes = (most - least + 1).cast_unsigned();
    let precision = tables.precision();
    let base = TensorRecord {
        precision,
        classes,
        unions: tables.unions(),
        trellis: (!tables.next_states().is_empty()).into(),
        ..bytemuck::Zeroable::zeroed()
    };
    if let Some((taps, bytes)) = direct(tables, least, most) {
        let table_bytes = bytes.len() as u32;
        return Ok(TensorRecord {
            form: form::DIRECT,
            tables: writer.put_once(bytes)?,
            table_bytes,
            taps,
            ..base
        });
    }
    let (symbols, entries, next, bytes) = indexed(tables, least, most);
    let form = if bytes.len() <= MOST_INDEXED { form::INDEXED } else { form::GLOBAL };
    let table_bytes = bytes.len() as u32;
    Ok(TensorRecord {
        form,
        tables: writer.put_once(bytes)?,
        table_bytes,
        taps: next,
        symbols,
        entries,
        ..base
    })
}

/// The symbols of the tables of a class and parity, as (index, start, frequency); an escape has no index.
fn indices<'t>(
    tables: &'t Tables<'_>,
    class: i32,
    parity: u32,
) -> impl Iterator<Item = (Option<i32>, u32, u32)> + use<'t> {
    let trellis = !tables.next_states().is_empty();
    let union = if tables.unions() == 2 { parity as usize } else { 0 };
    let symbols = tables.weight_symbols(class.cast_unsigned() as usize, union).enumerate();
    symbols.map(move |(symbol, (value, start, frequency))| {
        let index = if trellis { 2 * value + parity.cast_signed() } else { value };
        ((symbol > 0).then_some(index), start, frequency)
    })
}

/// Tables of [`form::DIRECT`] and their taps, if that form suits.
fn direct(tables: &Tables<'_>, least: i32, most: i32) -> Option<(u32, Vec<u8>)> {
    let next = tables.next_states();
    // The next state of 2s and of 2s + 1, as functions of s and the value's parity.
    let (input, feedback) = (next.get(1).copied().unwrap_or(0), next.get(2).copied().unwrap_or(0));
    let is_register = next.iter().enumerate().all(|(branch, &next)| {
        let (state, bit) = ((branch >> 1) as u8, branch & 1);
        next == (state >> 1) ^ if state & 1 == 1 { feedback } else { 0 } ^ if bit == 1 { input } else { 0 }
    });
    let slots = 1usize << tables.precision();
    let bytes = (most - least + 1) as usize * slots * 8;
    if !is_register || next.len() > 128 || tables.precision() > 12 || bytes > MOST_DIRECT {
        return None;
    }
    let mut words = vec![0u32; bytes / 4];
    for (class, words) in (least..=most).zip(words.chunks_exact_mut(2 * slots)) {
        for parity in 0..2 {
            for (index, start, frequency) in indices(tables, class, parity) {
                let index = index.unwrap_or(ESCAPE.into());
                if !(-128..=127).contains(&index) || (index == ESCAPE.into() && start > 0) {
                    return None;
                }
                for offset in 0..frequency {
                    let slot = (start + offset) as usize;
                    words[2 * slot + parity as usize] =
                        frequency << 20 | offset << 8 | u32::from((index as i8).cast_unsigned());
                }
            }
        }
    }
    let taps = u32::from(feedback) | u32::from(input) << 16;
    Some((taps, bytemuck::cast_slice(&words).to_vec()))
}

/// Tables of [`form::INDEXED`]: symbols that a table has place for, where their entries begin, where the next states begin, and the tables.
fn indexed(tables: &Tables<'_>, least: i32, most: i32) -> (u32, u32, u32, Vec<u8>) {
    let unions = tables.unions();
    let numbers: Vec<(i32, u32)> =
        (least..=most).flat_map(|class| (0..unions).map(move |union| (class, union))).collect();
    let symbols =
        numbers.iter().map(|&(class, union)| indices(tables, class, union).count()).max().unwrap_or(1);
    let mut bytes = Vec::new();
    for &(class, union) in &numbers {
        for (symbol, (_, _, frequency)) in indices(tables, class, union).enumerate() {
            bytes.extend(std::iter::repeat_n(symbol as u8, frequency as usize));
        }
    }
    let entries = bytes.len() as u32;
    for &(class, union) in &numbers {
        let first = bytes.len();
        for (index, start, frequency) in indices(tables, class, union) {
            // The parity is added by the decoder: it may be either one if there is one table for both.
            let base = index.map_or(INDEXED_ESCAPE, |index| (index - union.cast_signed()).cast_unsigned());
            bytes.extend((start | frequency << 16).to_le_bytes());
            bytes.extend(base.to_le_bytes());
        }
        bytes.resize(first + symbols * 8, 0);
    }
    let next = bytes.len() as u32;
    bytes.extend(tables.next_states());
    bytes.resize(bytes.len().next_multiple_of(UNIT), 0);
    (symbols as u32, entries, next, bytes)
}
