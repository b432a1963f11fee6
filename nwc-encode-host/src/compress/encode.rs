//! From a tensor and its plan to streams: filling blocks with weights in units of their step, searching, entropy coding.

use nwc_decode_core::{SCALE_CODE_MAX, SCALE_CODE_MIN, scale};

use super::plan::TensorPlan;
use crate::coding::rans::StreamWriter;
use crate::coding::search::{Block, LANES, Quantiser, RateModel, search};
use crate::coding::table::{BitWriter, Counts, Table};
use crate::coding::trellis::Trellis;

/// A codec as it goes into a container: quantiser, tables of all classes, side tables.
#[derive(Debug, Clone)]
pub struct Codec {
    /// How indices are chosen and coded.
    pub quantiser: Quantiser,
    /// Precision of all tables.
    pub precision: u32,
    /// 2 if the weight tables are split by union.
    pub unions: usize,
    /// Number of spread classes.
    pub classes: usize,
    /// Weight tables, number class * unions + union.
    pub weights: Vec<Table>,
    /// Tables of row scales, row classes, column scales and column classes, where there are any.
    pub side: [Option<Table>; 4],
}

/// The places of [`Codec::side`].
pub(crate) const ROW_SCALE: usize = 0;
pub(crate) const ROW_CLASS: usize = 1;
pub(crate) const COLUMN_CLASS: usize = 3;

impl Codec {
    /// The stored form (docs/bitstream.md §4.1).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0]; // identity synthesis
        match &self.quantiser {
            Quantiser::Scalar => bytes.push(0),
            Quantiser::Trellis(trellis) => {
                bytes.extend([1, trellis.states().ilog2() as u8]);
                bytes.extend_from_slice(trellis.next());
            }
        }
        let side = self.side.iter().enumerate().map(|(kind, table)| u8::from(table.is_some()) << kind).sum();
        bytes.extend([0, self.precision as u8, self.unions as u8, self.classes as u8, side]);
        let mut bits = BitWriter::default();
        self.weights.iter().chain(self.side.iter().flatten()).for_each(|table| table.write(&mut bits));
        bytes.extend(bits.finish());
        bytes
    }

    fn class(&self, class: i32) -> usize {
        class.clamp(0, self.classes as i32 - 1) as usize
    }

    fn weight_table(&self, class: usize, state: u8) -> &Table {
        &self.weights[class * self.unions + usize::from(state) % self.unions]
    }
}

/// The quantiser of this name: `scalar`, or `trellis8` and so on with its number of states.
pub fn quantiser(name: &str) -> Option<Quantiser> {
    if name == "scalar" {
        return Some(Quantiser::Scalar);
    }
    let states = name.strip_prefix("trellis")?.parse().ok()?;
    Trellis::with_states(states).map(Quantiser::Trellis)
}

/// A tensor being coded at one rate.
#[derive(Debug, Clone, Copy)]
pub struct TensorCoder<'a> {
    /// What was measured.
    pub plan: &'a TensorPlan,
    /// The rate's part of every step code.
    pub rate_step: i32,
    /// Added to every class, so that the model's lowest is 0.
    pub class_offset: i32,
    /// Bounds of the stored class base.
    pub base_range: (i32, i32),
}

/// Some neighbouring columns of one band of rows: what a lane-parallel search works on.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Which matrix.
    pub batch: usize,
    /// First row.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// First column.
    pub first_column: usize,
    /// Number of columns, at most [`LANES`].
    pub lanes: usize,
}

impl TensorCoder<'_> {
    /// The tensor's step code as it is stored.
    pub fn step(&self) -> i32 {
        let plan = self.plan;
        // Whatever a row adds, its scale must stay a normal binary32 number.
        let unit = 512 >> plan.row_shift;
        let least = plan.row_scale.iter().min().map_or(0, |&v| i32::from(v) * unit).min(0);
        let largest = plan.row_scale.iter().max().map_or(0, |&v| i32::from(v) * unit).max(0);
        (plan.step + self.rate_step).clamp(SCALE_CODE_MIN - least, SCALE_CODE_MAX - largest)
    }

    /// The class base as it is stored.
    pub fn class_base(&self) -> i32 {
        (self.plan.class_base + self.class_offset).clamp(self.base_range.0, self.base_range.1)
    }

    /// The step of a row.
    fn row_step(&self, batch: usize, row: usize) -> f32 {
        let plan = self.plan;
        let value = plan.row_scale.get(batch * plan.view.rows + row).copied().unwrap_or(0);
        let code = self.step() + i32::from(value) * (512 >> plan.row_shift);
        scale(code).expect("step() keeps every row's scale in range")
    }

    /// The groups of a tile, in the order in which its lanes walk them.
    pub fn tile_groups(&self, tile: usize) -> impl Iterator<Item = Group> + use<> {
        let plan = self.plan;
        let (view, tile_rows, lanes) = (plan.view, plan.tile_rows, plan.lanes);
        let (band, block) = (tile / plan.column_blocks(), tile % plan.column_blocks());
        let row_blocks = view.rows.div_ceil(tile_rows);
        let (batch, first_row) = (band / row_blocks, band % row_blocks * tile_rows);
        let rows = (view.rows - first_row).min(tile_rows);
        let first = block * lanes * plan.columns_per_lane;
        let end = (first + lanes * plan.columns_per_lane).min(view.columns);
        (first..end).step_by(lanes).map(move |first_column| Group {
            batch,
            first_row,
            rows,
            first_column,
            lanes: (end - first_column).min(lanes),
        })
    }

    /// The weights of a group in units of their step, `[row][LANES]`, into `out`.
    pub fn fill(&self, weights: &[f32], group: &Group, out: &mut Vec<f32>) {
        out.clear();
        out.resize(group.rows * LANES, 0.0);
        let (_, column_stride) = self.plan.view.strides();
        for (row, out) in out.chunks_exact_mut(LANES).enumerate() {
            let row = group.first_row + row;
            let inverse = 1.0 / f64::from(self.row_step(group.batch, row));
            let first = self.plan.view.position(group.batch, row, group.first_column);
            for (lane, out) in out[..group.lanes].iter_mut().enumerate() {
                *out = (f64::from(weights[first + lane * column_stride]) * inverse) as f32;
            }
        }
    }

    /// The class of each lane's column, its base included.
    pub fn column_class(&self, group: &Group) -> [i32; LANES] {
        let plan = self.plan;
        let first = group.batch * plan.view.columns + group.first_column;
        std::array::from_fn(|lane| {
            let class = if lane < group.lanes {
                plan.column_class.get(first + lane).copied().unwrap_or(0)
            } else {
                0
            };
            self.class_base() + i32::from(class)
        })
    }

    /// What each row of a group adds to its classes; empty if nothing.
    pub fn row_class(&self, group: &Group) -> Vec<i32> {
        let first = group.batch * self.plan.view.rows + group.first_row;
        let classes = self.plan.row_class.get(first..first + group.rows).unwrap_or(&[]);
        classes.iter().map(|&class| i32::from(class)).collect()
    }

    /// The stream of a tile. What its symbols were is added to `counts`, by class * 2 + parity of the state.
    pub fn encode_tile(
        &self,
        codec: &Codec,
        rate: &RateModel,
        weights: &[f32],
        tile: usize,
        counts: &mut [Counts],
    ) -> Vec<u8> {
        let mut buffer = Vec::new();
        let mut indices = Vec::new();
        let mut states = [0u8; LANES];
        let mut writer = None;
        for group in self.tile_groups(tile) {
            let writer = writer.get_or_insert_with(|| StreamWriter::new(group.lanes, codec.precision));
            self.fill(weights, &group, &mut buffer);
            let column_class = self.column_class(&group);
            let row_class = self.row_class(&group);
            if !self.plan.column_class.is_empty() {
                let table = codec.side[COLUMN_CLASS]
                    .as_ref()
                    .expect("a codec has the side tables that its tensors need");
                let slots =
                    column_class[..group.lanes].iter().map(|class| table.slot(class - self.class_base()));
                writer.step(slots.map(|slot| slot.expect("side tables hold every value")));
            }
            indices.clear();
            indices.resize(group.rows * LANES, 0);
            let block = Block {
                weights: &buffer,
                column_class: &column_class,
                row_class: &row_class,
                lanes: group.lanes,
            };
            let mut ends = states;
            search(&codec.quantiser, rate, &block, &mut ends, &mut indices);
            for (row, indices) in indices.chunks_exact(LANES).enumerate() {
                let row_class = row_class.get(row).copied().unwrap_or(0);
                let mut escapes = [0i32; LANES];
                let mut escaped = 0;
                writer.step((0..group.lanes).map(|lane| {
                    let class = codec.class(column_class[lane] + row_class);
                    let table = codec.weight_table(class, states[lane]);
                    let (value, next) = codec.quantiser.symbol(states[lane], indices[lane]);
                    counts[class * 2 + usize::from(states[lane] & 1)].add(value);
                    states[lane] = next;
                    table.slot(value).unwrap_or_else(|| {
                        escapes[escaped] = value;
                        escaped += 1;
                        table.escape()
                    })
                }));
                escapes[..escaped].iter().for_each(|&value| writer.escape(value as i16 as u16));
            }
            debug_assert_eq!(states[..group.lanes], ends[..group.lanes]);
        }
        writer.expect("a tile has a group").finish()
    }

    /// The row stream of a band of rows.
    pub fn encode_rows(&self, codec: &Codec, band: usize) -> Vec<u8> {
        let plan = self.plan;
        let row_blocks = plan.view.rows.div_ceil(plan.tile_rows);
        let (batch, first) = (band / row_blocks, band % row_blocks * plan.tile_rows);
        let end = (first + plan.tile_rows).min(plan.view.rows);
        let mut writer = StreamWriter::new(1, codec.precision);
        for row in batch * plan.view.rows + first..batch * plan.view.rows + end {
            for (values, kind) in [(&plan.row_scale, ROW_SCALE), (&plan.row_class, ROW_CLASS)] {
                if let Some(&value) = values.get(row) {
                    let slot = codec.side[kind].as_ref().and_then(|table| table.slot(i32::from(value)));
                    writer.step([slot.expect("side tables hold every value")]);
                }
            }
        }
        writer.finish()
    }
}

/// Counts the symbols that a search over one group of columns gives, by table (class * 2 + parity of the state).
pub fn count_group(
    quantiser: &Quantiser,
    rate: &RateModel,
    block: &Block<'_>,
    classes: usize,
    counts: &mut [Counts],
) {
    let mut indices = vec![0; block.weights.len()];
    search(quantiser, rate, block, &mut [0; LANES], &mut indices);
    let mut states = [0u8; LANES];
    for (row, indices) in indices.chunks_exact(LANES).enumerate() {
        let row_class = block.row_class.get(row).copied().unwrap_or(0);
        for lane in 0..block.lanes {
            let class = (block.column_class[lane] + row_class).clamp(0, classes as i32 - 1) as usize;
            let (value, next) = quantiser.symbol(states[lane], indices[lane]);
            counts[class * 2 + usize::from(states[lane] & 1)].add(value);
            states[lane] = next;
        }
    }
}
