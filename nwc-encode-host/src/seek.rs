//! Seek points: where tiles can be decoded on from the middle. Made when a model is loaded, or stored (docs/bitstream.md §13).

use std::io;

use nwc_decode_core::{
    CHUNK_ROWS, Checks, Chunk, Codec, CodedTensor, Container, Geometry, Quantiser, SeekPoint, SideTable,
    Tables, Tile,
};
use rayon::prelude::*;

use crate::container::{CodedEntry, Entry, EntryKind};
use crate::restore::{Decoder, damaged};
use crate::{Error, Result};

/// The places (group, row) of a tile's points: wherever more than `every` rows of a group of columns would be decoded since the last, or since the start.
pub fn places(rows: usize, groups: usize, every: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut since = 0;
    let chunks =
        (0..groups).flat_map(move |group| (0..rows).step_by(CHUNK_ROWS).map(move |row| (group, row)));
    chunks.filter(move |&(_, row)| {
        let height = (rows - row).min(CHUNK_ROWS);
        let is_place = since > 0 && since + height > every;
        since = if is_place { height } else { since + height };
        is_place
    })
}

/// Rows, and groups of columns, of a tile as coded.
fn rows_and_groups(geometry: &Geometry, tile: &Tile<'_>) -> (usize, usize) {
    let region = tile.region();
    let (rows, columns) = if geometry.is_transposed() {
        (region.input.len(), region.out.len())
    } else {
        (region.out.len(), region.input.len())
    };
    (rows, columns.div_ceil(geometry.lanes()))
}

/// Makes the points of every tile of a tensor in one pass, tiles in parallel: a point at least every `every` rows (of a group of columns; at least 16),
/// so that no part of a tile is longer. The start of a tile is no point. Streams' checksums are not compared.
///
/// # Errors
/// What is wrong with the streams.
pub fn points(
    coded: &CodedTensor<'_>,
    tables: &Tables<'_>,
    every: usize,
) -> Result<Vec<Vec<SeekPoint>>, nwc_decode_core::Error> {
    (0..coded.tiles())
        .into_par_iter()
        .map(|number| {
            let tile = coded.tile(number)?;
            let (rows, groups) = rows_and_groups(coded.geometry(), &tile);
            let places: Vec<_> = places(rows, groups, every).collect();
            tile_points(&tile, tables, &places)
        })
        .collect()
}

/// The points of a tile at some places, which must be in order.
fn tile_points(
    tile: &Tile<'_>,
    tables: &Tables<'_>,
    places: &[(usize, usize)],
) -> Result<Vec<SeekPoint>, nwc_decode_core::Error> {
    let mut points = Vec::with_capacity(places.len());
    let mut decoder = tile.decoder(tables, Checks::SkipChecksums)?;
    let mut chunk = Chunk::default();
    for &place in places {
        loop {
            let point = decoder.seek_point();
            if (point.group(), point.row()) == place {
                points.push(point);
                break;
            }
            if !decoder.next_chunk(&mut chunk)? {
                return Err(nwc_decode_core::Error::Index);
            }
        }
    }
    Ok(points)
}

/// What the form of a tensor's points depends on.
#[derive(Debug, Clone, Copy)]
struct PointForm {
    /// [`SideTable`] bits.
    side: u8,
    trellis: bool,
}

/// What a point holds of the columns, in this order.
const COLUMN_SIDES: [SideTable; 2] = [SideTable::ColumnScale, SideTable::ColumnClass];

impl PointForm {
    const fn has_row_streams(self) -> bool {
        self.side & (SideTable::RowScale.mask() | SideTable::RowClass.mask()) != 0
    }

    /// Size of a point, with the lanes of its tile and of its group.
    fn bytes(self, row: usize, lanes: usize, group_lanes: usize) -> u64 {
        let rows = if self.has_row_streams() { 8 } else { 0 };
        let kinds = COLUMN_SIDES.iter().filter(|kind| self.side & kind.mask() != 0).count();
        let columns = if row == 0 { 0 } else { 2 * kinds * group_lanes };
        (12 + rows + 4 * lanes + usize::from(self.trellis) * lanes + columns) as u64
    }

    /// Appends a point (§13.2).
    fn write(self, out: &mut Vec<u8>, point: &SeekPoint, lanes: usize, group_lanes: usize) -> io::Result<()> {
        let mut put = |value: usize| {
            let value =
                u32::try_from(value).map_err(|_| io::Error::other("a stream is too long for seek points"))?;
            out.extend(value.to_le_bytes());
            Ok::<(), io::Error>(())
        };
        put(point.group())?;
        put(point.row())?;
        put(point.words())?;
        if self.has_row_streams() {
            put(point.row_words())?;
            out.extend(point.row_state().to_le_bytes());
        }
        out.extend(point.rans()[..lanes].iter().flat_map(|state| state.to_le_bytes()));
        if self.trellis {
            out.extend(&point.trellis()[..lanes]);
        }
        for (kind, values) in COLUMN_SIDES.iter().zip([point.column_scale(), point.column_class()]) {
            if point.row() > 0 && self.side & kind.mask() != 0 {
                // Side values and classes are far within an i16 (§4.4).
                out.extend(values[..group_lanes].iter().flat_map(|&value| (value as i16).to_le_bytes()));
            }
        }
        Ok(())
    }
}

/// Rows and columns of each tile of an entry's tensor.
fn tiles(entry: &CodedEntry, shape: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    let (batch, dims) = if entry.batched { (shape[0], &shape[1..]) } else { (1, shape) };
    let (out, input) = (dims[0], dims[1..].iter().product::<usize>());
    let (rows, columns) = if entry.transposed { (input, out) } else { (out, input) };
    let tile_rows = entry.tile_rows as usize;
    let tile_columns = usize::from(entry.lanes) * entry.columns_per_lane as usize;
    (0..batch).flat_map(move |_| {
        (0..rows).step_by(tile_rows).flat_map(move |row| {
            let rows = (rows - row).min(tile_rows);
            (0..columns).step_by(tile_columns).map(move |column| (rows, (columns - column).min(tile_columns)))
        })
    })
}

/// Coded tensors with the form of their points.
fn coded_entries<'e>(
    entries: &'e [Entry],
    codecs: &'e [Vec<u8>],
) -> impl Iterator<Item = (usize, &'e Entry, &'e CodedEntry, PointForm)> {
    entries.iter().enumerate().filter_map(|(index, entry)| {
        let EntryKind::Coded(coded) = &entry.kind else { return None };
        let codec = Codec::new(&codecs[usize::from(coded.codec)]).expect("an encoder made it");
        let trellis = matches!(codec.quantiser(), Quantiser::Trellis { .. });
        Some((index, entry, coded, PointForm { side: coded.side, trellis }))
    })
}

/// The size of the SEEK section with a point at least every `every` rows; 0 for no points, and no section. It does not depend on what is coded.
pub(crate) fn section_bytes(entries: &[Entry], codecs: &[Vec<u8>], every: usize) -> u64 {
    if every == 0 {
        return 0;
    }
    let mut bytes = 0;
    for (_, entry, coded, form) in coded_entries(entries, codecs) {
        let most_lanes = usize::from(coded.lanes);
        for (rows, columns) in tiles(coded, &entry.shape) {
            let lanes = most_lanes.min(columns);
            let points = places(rows, columns.div_ceil(most_lanes), every)
                .map(|(group, row)| form.bytes(row, lanes, (columns - group * most_lanes).min(most_lanes)));
            let points: u64 = points.sum();
            bytes += if points > 0 { 12 + points } else { 0 };
        }
    }
    if bytes > 0 { 4 + bytes } else { 0 }
}

/// The SEEK section of a container whose tensors can be decoded; `entries` and `codecs` are what it was laid out from.
///
/// # Errors
/// What is wrong with the streams.
pub(crate) fn section(
    decoder: &Decoder<'_>,
    entries: &[Entry],
    codecs: &[Vec<u8>],
    every: usize,
) -> Result<Vec<u8>> {
    let (mut tiles_with_points, mut body) = (0u32, Vec::new());
    for (index, entry, coded_entry, form) in coded_entries(entries, codecs) {
        let restorer = decoder.coded(&decoder.tensors()[index])?;
        let (coded, tables) = (restorer.tensor(), restorer.tables());
        let most_lanes = usize::from(coded_entry.lanes);
        let all = points(coded, tables, every).map_err(damaged)?;
        for (number, ((_, columns), points)) in tiles(coded_entry, &entry.shape).zip(all).enumerate() {
            if points.is_empty() {
                continue;
            }
            tiles_with_points += 1;
            body.extend([index, number, points.len()].iter().flat_map(|&field| (field as u32).to_le_bytes()));
            for point in &points {
                let group_lanes = (columns - point.group() * most_lanes).min(most_lanes);
                form.write(&mut body, point, most_lanes.min(columns), group_lanes).map_err(|error| {
                    Error::input("has a tile too long for seek points")
                        .tensor(&entry.name)
                        .source(error)
                        .remedy("leave out --seek-points")
                })?;
            }
        }
    }
    let mut section = tiles_with_points.to_le_bytes().to_vec();
    section.append(&mut body);
    Ok(if tiles_with_points > 0 { section } else { Vec::new() })
}

/// Compares the stored points with what decoding comes to; returns how many there are.
///
/// # Errors
/// A section that is damaged, a point that lies, or what is wrong with the streams.
pub fn check(container: &Container<'_>, decoder: &Decoder<'_>) -> Result<usize> {
    let mut by_tile: Vec<(usize, usize, Vec<SeekPoint>)> = Vec::new();
    for (tensor, tile, point) in container.seek_points().map_err(damaged)? {
        match by_tile.last_mut() {
            Some((last_tensor, last_tile, points)) if (*last_tensor, *last_tile) == (tensor, tile) => {
                points.push(point);
            }
            _ => by_tile.push((tensor, tile, vec![point])),
        }
    }
    by_tile.par_iter().try_for_each(|(index, number, points)| {
        let tensor = &decoder.tensors()[*index];
        let restorer = decoder.coded(tensor)?;
        let (coded, tables) = (restorer.tensor(), restorer.tables());
        let places: Vec<_> = points.iter().map(|point| (point.group(), point.row())).collect();
        let tile = coded.tile(*number).map_err(damaged)?;
        if tile_points(&tile, tables, &places).map_err(damaged)? == *points {
            return Ok(());
        }
        Err(Error::input(format!("a seek point of tile {number} is wrong"))
            .tensor(tensor.name().to_string())
            .remedy("compress the model again"))
    })?;
    Ok(by_tile.iter().map(|(_, _, points)| points.len()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_is_longer_than_asked_for_and_none_is_empty() {
        for (rows, groups, every) in
            [(100, 3, 64), (16, 5, 16), (5, 9, 16), (17, 4, 17), (1000, 1, 100), (40, 2, 500)]
        {
            let places: Vec<_> = places(rows, groups, every).collect();
            let at = |(group, row): (usize, usize)| group * rows + row;
            let ends = [0].into_iter().chain(places.iter().map(|&place| at(place))).chain([groups * rows]);
            let ends: Vec<usize> = ends.collect();
            assert!(ends.windows(2).all(|pair| pair[0] < pair[1] && pair[1] - pair[0] <= every), "{ends:?}");
            assert!(places.iter().all(|(_, row)| row.is_multiple_of(CHUNK_ROWS)));
            assert_eq!(places.is_empty(), rows * groups <= every);
        }
    }
}
