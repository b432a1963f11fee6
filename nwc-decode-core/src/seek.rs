//! Stored seek points (§13).

use crate::bytes::Reader;
use crate::codec::SideTable;
use crate::directory::{Coding, TensorIter};
use crate::geometry::{Geometry, TilePlace};
use crate::rans::{LOWER_BOUND, RowPlace};
use crate::tile::{CHUNK_ROWS, Lanes, MAX_LANES, SeekPoint};
use crate::{Container, Error, Quantiser, num};

/// Iterator over the seek points that a container stores: the tensor's index, the tile's number, and a place in that tile, in this order.
#[derive(Debug, Clone)]
pub struct SeekPoints<'a> {
    container: Container<'a>,
    reader: Reader<'a>,
    tiles_left: u32,
    points_left: u32,
    /// Tensors that no tile was read of yet, and the index of the first of them.
    tensors: TensorIter<'a>,
    next_tensor: usize,
    tensor: Option<TensorForm>,
    tile: Option<(usize, TilePlace)>,
    /// Place of the last point.
    last: (usize, usize),
}

/// What the form of a tensor's points depends on.
#[derive(Debug, Clone, Copy)]
struct TensorForm {
    geometry: Geometry,
    /// Number of trellis states; 0 for the scalar quantiser.
    states: usize,
}

impl<'a> SeekPoints<'a> {
    /// Of a section whose checksum is right; `None` stands for none. Checks all of it, so that iterating cannot fail.
    pub(crate) fn new(container: &Container<'a>, section: Option<&'a [u8]>) -> Result<Self, Error> {
        let mut points = Self {
            container: *container,
            reader: Reader::new(section.unwrap_or(&[])),
            tiles_left: 0,
            points_left: 0,
            tensors: container.tensors(),
            next_tensor: 0,
            tensor: None,
            tile: None,
            last: (0, 0),
        };
        if section.is_none() {
            return Ok(points);
        }
        points.tiles_left = points.reader.u32().ok_or(Error::Seek)?;
        let mut walk = points.clone();
        while !walk.is_done() {
            walk.read().ok_or(Error::Seek)?;
        }
        if walk.reader.rest.is_empty() { Ok(points) } else { Err(Error::Seek) }
    }

    const fn is_done(&self) -> bool {
        self.tiles_left == 0 && self.points_left == 0
    }

    fn read(&mut self) -> Option<(usize, usize, SeekPoint)> {
        if self.points_left == 0 {
            self.start_tile()?;
        }
        let (number, place) = self.tile?;
        let point = read_point(&mut self.reader, &place, self.tensor?.states)?;
        self.points_left = self.points_left.checked_sub(1)?;
        let at = (point.group(), point.row());
        if at <= self.last {
            return None;
        }
        self.last = at;
        Some((self.next_tensor.checked_sub(1)?, number, point))
    }

    /// Reads a tile's head (§13.1).
    fn start_tile(&mut self) -> Option<()> {
        self.tiles_left = self.tiles_left.checked_sub(1)?;
        let tensor = num::index(self.reader.u32()?);
        let number = num::index(self.reader.u32()?);
        self.points_left = self.reader.u32()?;
        if self.points_left == 0 {
            return None;
        }
        let before = self.tile.map(|(number, _)| number);
        // Forward only, so that the directory is walked once, whatever the section says.
        if let Some(skipped) = tensor.checked_sub(self.next_tensor) {
            let tensor = self.tensors.nth(skipped).filter(|tensor| tensor.coding() == Coding::Coded)?;
            self.next_tensor = self.next_tensor.checked_add(skipped)?.checked_add(1)?;
            let geometry = tensor.geometry().ok()?;
            let states = match self.container.codec(geometry.codec_index()).ok()?.quantiser() {
                Quantiser::Scalar => 0,
                Quantiser::Trellis { next } => next.len() >> 1,
            };
            self.tensor = Some(TensorForm { geometry, states });
        } else if tensor.checked_add(1) != Some(self.next_tensor) || before >= Some(number) {
            return None;
        }
        self.tile = Some((number, self.tensor?.geometry.tile(number).ok()?));
        self.last = (0, 0);
        Some(())
    }
}

impl Iterator for SeekPoints<'_> {
    type Item = (usize, usize, SeekPoint);

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done() { None } else { self.read() }
    }
}

/// A point's fields (§13.2); `None` where they break it.
fn read_point(reader: &mut Reader<'_>, place: &TilePlace, states: usize) -> Option<SeekPoint> {
    let shape = &place.shape;
    let entry = &shape.entry;
    let group = num::index(reader.u32()?);
    let row = num::index(reader.u32()?);
    let read = num::index(reader.u32()?);
    let active = shape.group_lanes(group);
    if active == 0 || row >= shape.rows || !row.is_multiple_of(CHUNK_ROWS) {
        return None;
    }
    let mut rows = RowPlace::default();
    if place.row_stream.is_some() {
        rows.read = num::index(reader.u32()?);
        rows.state = reader.u32()?;
        let legal =
            if row == 0 { rows == RowPlace::default() } else { rows.read >= 2 && rows.state >= LOWER_BOUND };
        if !legal {
            return None;
        }
    }
    let mut lanes = Lanes::default();
    let used = shape.lanes();
    for state in lanes.rans.iter_mut().take(used) {
        *state = reader.u32().filter(|&state| state >= LOWER_BOUND)?;
    }
    if states > 0 {
        for state in lanes.trellis.iter_mut().take(used) {
            *state = reader.u8().filter(|&state| usize::from(state) < states)?;
        }
    }
    if row > 0 {
        lanes.class = [i32::from(entry.class_base); MAX_LANES];
        for (kind, values) in
            [(SideTable::ColumnScale, &mut lanes.scale), (SideTable::ColumnClass, &mut lanes.class)]
        {
            if entry.side & kind.mask() != 0 {
                for value in values.iter_mut().take(active) {
                    *value = num::sign_extend_16(u32::from(reader.u16()?));
                }
            }
        }
    }
    Some(SeekPoint { group, row, read, rows, lanes })
}
