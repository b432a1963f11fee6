//! From a tensor and its plan to streams: filling blocks with weights in units of their step, searching, entropy coding.

use std::ops::Range;

use nwc_decode_core::{DType, scale};

use super::View;
use super::ldlq::{Factor, Feedback, decoded};
use super::plan::TensorPlan;
use crate::coding::rans::{StreamWriter, Symbol};
use crate::coding::search::{Block, Column, LANES, Quantiser, RateModel, Search};
use crate::coding::table::{BitWriter, Table, Tally};
use crate::coding::transform::Transform;
use crate::coding::trellis::Trellis;

/// A codec as it goes into a container: quantiser, tables of all classes, side tables.
#[derive(Debug, Clone)]
pub struct Codec {
    /// What is undone once weights are quantised.
    pub transform: Transform,
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
pub(crate) const COLUMN_SCALE: usize = 2;
pub(crate) const COLUMN_CLASS: usize = 3;

impl Codec {
    /// The stored form (docs/bitstream.md §4.1).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.transform.stored();
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

    /// The classes that there are next to those of some columns in a row that adds `more`.
    fn clamp(&self, column_class: &[i32; LANES], more: i32) -> [usize; LANES] {
        column_class.map(|class| (class + more).clamp(0, self.classes as i32 - 1) as usize)
    }

    /// An empty tally of the indices that the weight tables have symbols for.
    pub fn tally(&self) -> Tally {
        let lo = self.weights.iter().map(|table| *table.values().start()).min().unwrap_or(0);
        let hi = self.weights.iter().map(|table| *table.values().end()).max().unwrap_or(0);
        Tally::new(self.classes, self.quantiser.index(lo, 0)..self.quantiser.index(hi, 1) + 1)
    }
}

/// A codec ready to encode with: its symbols numbered through.
#[derive(Debug)]
pub struct Encoder<'a> {
    codec: &'a Codec,
    rate: &'a RateModel,
    code_rounds: usize,
    symbols: Vec<Symbol>,
    /// Number of the first symbol of each weight table, which is its escape.
    escapes: Vec<u16>,
    /// Number of the first symbol of each side table.
    side: [u16; 4],
    /// By place in a tally of the codec: the symbol's number, [`ESCAPED`] in addition if it is an escape.
    numbers: Vec<u16>,
    empty: Tally,
}

const ESCAPED: u16 = 1 << 15;

impl<'a> Encoder<'a> {
    /// From a codec, what the search takes its symbols to cost, and how often indices are chosen anew.
    pub fn new(codec: &'a Codec, rate: &'a RateModel, code_rounds: usize) -> Self {
        let mut symbols = Vec::new();
        let mut add = |table: &Table| {
            let first = symbols.len() as u16;
            symbols.extend(table.slots().iter().map(|&slot| Symbol::new(slot, codec.precision)));
            // 64 classes of two tables and four side tables, of 256 symbols each.
            assert!(symbols.len() <= usize::from(ESCAPED), "{} symbols", symbols.len());
            first
        };
        let escapes: Vec<u16> = codec.weights.iter().map(&mut add).collect();
        let side = codec.side.each_ref().map(|table| table.as_ref().map_or(0, &mut add));
        let empty = codec.tally();
        let numbers = empty
            .places()
            .map(|(class, index)| {
                let (value, union) = codec.quantiser.symbol(index);
                let table = class * codec.unions + union % codec.unions;
                match codec.weights[table].symbol(value) {
                    Some(symbol) => escapes[table] + symbol as u16,
                    None => escapes[table] | ESCAPED,
                }
            })
            .collect();
        Self { codec, rate, code_rounds, symbols, escapes, side, numbers, empty }
    }

    /// The number of a symbol of a side table that holds this value.
    fn side_symbol(&self, kind: usize, value: i32) -> u16 {
        let table =
            self.codec.side[kind].as_ref().expect("a codec has the side tables that its tensors need");
        self.side[kind] + table.symbol(value).expect("side tables hold every value") as u16
    }

    /// The number of the symbol of an index, which is counted, [`ESCAPED`] in addition if it is an escape.
    #[inline(always)]
    fn symbol(&self, tally: &mut Tally, class: usize, index: i32) -> u16 {
        if let Some(place) = tally.add(class, index) {
            return self.numbers[place];
        }
        let (_, union) = self.codec.quantiser.symbol(index);
        self.escapes[class * self.codec.unions + union % self.codec.unions] | ESCAPED
    }
}

/// What one thread encodes tiles with: memory that is used again, and the tally of everything encoded.
#[derive(Debug)]
pub struct Worker<'a> {
    encoder: &'a Encoder<'a>,
    search: Search,
    refiner: Refiner,
    weights: Vec<f32>,
    indices: Vec<i32>,
    writer: StreamWriter,
    /// The indices that were coded.
    pub tally: Tally,
}

impl<'a> Worker<'a> {
    /// A worker that has done nothing yet.
    pub fn new(encoder: &'a Encoder<'a>) -> Self {
        Self {
            encoder,
            search: Search::default(),
            refiner: Refiner::default(),
            weights: Vec::new(),
            indices: Vec::new(),
            writer: StreamWriter::default(),
            tally: encoder.empty.clone(),
        }
    }

    /// The stream of a tile of a tensor; with feedback, the tile after those that were given it before.
    pub fn encode_tile(
        &mut self,
        coder: &TensorCoder<'_>,
        weights: &[f32],
        tile: usize,
        mut feedback: Option<&mut Feedback<'_>>,
    ) -> Vec<u8> {
        let (encoder, codec) = (self.encoder, self.encoder.codec);
        let mut states = [0u8; LANES];
        self.writer.clear();
        for group in coder.tile_groups(tile) {
            let mut symbols = [0u16; LANES];
            let symbols = &mut symbols[..group.lanes];
            let plan = coder.plan;
            let first = group.batch * plan.view.columns + group.first_column;
            for (values, kind) in [(&plan.column_scale, COLUMN_SCALE), (&plan.column_class, COLUMN_CLASS)] {
                if let Some(values) = values.get(first..first + group.lanes) {
                    for (symbol, &value) in symbols.iter_mut().zip(values) {
                        *symbol = encoder.side_symbol(kind, i32::from(value));
                    }
                    self.writer.step(symbols);
                }
            }
            self.choose(coder, weights, &group, feedback.as_deref_mut(), &mut states);
            let (column_class, row_class) = (coder.column_class(&group), coder.row_class(&group));
            let mut classes = codec.clamp(&column_class, 0);
            for (row, indices) in self.indices.chunks_exact(LANES).take(group.rows).enumerate() {
                if let Some(&more) = row_class.get(row) {
                    classes = codec.clamp(&column_class, more);
                }
                let mut escaped = 0;
                for ((symbol, &index), &class) in symbols.iter_mut().zip(indices).zip(&classes) {
                    *symbol = encoder.symbol(&mut self.tally, class, index);
                    escaped |= *symbol;
                }
                if escaped & ESCAPED == 0 {
                    self.writer.step(symbols);
                } else {
                    write_escapes(&mut self.writer, &codec.quantiser, symbols, indices);
                }
            }
        }
        self.writer.finish(coder.plan.tile_lanes(tile), codec.precision, &encoder.symbols)
    }

    /// What a decoder makes of a tensor, in the tensor's own order; with feedback, if there is a factor for each matrix.
    pub fn restore(
        &mut self,
        coder: &TensorCoder<'_>,
        weights: &[f32],
        dtype: DType,
        factors: &[Factor<'_>],
    ) -> Vec<f32> {
        let plan = coder.plan;
        let view = &plan.view;
        let mut restored = vec![0.0; weights.len()];
        let (mut indices, mut made) = (Vec::new(), Vec::new());
        for band in 0..plan.bands() {
            let rows = coder.band_rows(band).len();
            let factor = factors.get(coder.band_matrix(band));
            let mut feedback = factor.map(|&factor| Feedback::new(coder, factor, dtype, rows, true));
            for tile in plan.band_tiles(band) {
                let mut states = [0u8; LANES];
                for group in coder.tile_groups(tile) {
                    self.choose(coder, weights, &group, feedback.as_mut(), &mut states);
                    for lane in 0..group.lanes {
                        indices.clear();
                        indices.extend(self.indices[lane..].iter().step_by(LANES).take(rows));
                        made.resize(rows, 0.0);
                        plan.transform.reconstruct_column(&indices, &mut made);
                        let (row_step, column_step) = coder.steps(&group, lane);
                        for (row, (made, step)) in made.iter().zip(row_step).enumerate() {
                            let at =
                                view.position(group.batch, group.first_row + row, group.first_column + lane);
                            restored[at] = decoded(dtype, *made, step * column_step);
                        }
                    }
                }
            }
        }
        restored
    }

    /// Has feedback go through some tiles without keeping streams.
    pub fn follow(
        &mut self,
        coder: &TensorCoder<'_>,
        weights: &[f32],
        tiles: Range<usize>,
        feedback: &mut Feedback<'_>,
    ) {
        for tile in tiles {
            let mut states = [0u8; LANES];
            for group in coder.tile_groups(tile) {
                self.choose(coder, weights, &group, Some(feedback), &mut states);
            }
        }
    }

    /// Chooses the indices of a group of columns.
    fn choose(
        &mut self,
        coder: &TensorCoder<'_>,
        weights: &[f32],
        group: &Group,
        feedback: Option<&mut Feedback<'_>>,
        states: &mut [u8; LANES],
    ) {
        let (Encoder { codec, rate, code_rounds, .. }, plan) = (self.encoder, coder.plan);
        let (column_class, row_class) = (coder.column_class(group), coder.row_class(group));
        let places = group.rows * LANES;
        if self.weights.len() < places {
            self.weights.resize(places, 0.0);
            self.indices.resize(places, 0);
        }
        let (filled, indices) = (&mut self.weights[..places], &mut self.indices[..places]);
        if let Some(feedback) = feedback {
            let search = &mut self.search;
            let choose = |lane: usize, latents: &[f32], indices: &mut [i32]| {
                let column = Column { weights: latents, class: column_class[lane], row_class: &row_class };
                search.column(&codec.quantiser, rate, &column, &mut states[lane], indices);
            };
            feedback.code(weights, group, choose, indices);
            return;
        }
        coder.fill(weights, group, filled);
        let block =
            Block { weights: filled, column_class: &column_class, row_class: &row_class, lanes: group.lanes };
        let before = *states;
        self.search.run(&codec.quantiser, rate, &block, states, indices);
        if *code_rounds > 0 && plan.transform != Transform::Identity {
            let wanted = coder.wanted(weights, group);
            let job =
                Refinement { encoder: self.encoder, transform: &plan.transform, wanted: &wanted, before };
            self.refiner.run(&mut self.search, &job, &block, *code_rounds, states, indices);
        }
    }
}

/// What is refined: the indices of a group of columns.
struct Refinement<'a> {
    encoder: &'a Encoder<'a>,
    transform: &'a Transform,
    /// The weights in units of their step, not transformed.
    wanted: &'a [f32],
    /// Trellis states before the group.
    before: [u8; LANES],
}

/// Chooses indices anew by what a decoder makes of them, and keeps what costs less in true errors and bits.
#[derive(Debug, Default)]
struct Refiner {
    made: Vec<f32>,
    error: Vec<f32>,
    targets: Vec<f32>,
    indices: Vec<i32>,
}

impl Refiner {
    fn run(
        &mut self,
        search: &mut Search,
        job: &Refinement<'_>,
        block: &Block<'_>,
        rounds: usize,
        states: &mut [u8; LANES],
        indices: &mut [i32],
    ) {
        let places = indices.len();
        for list in [&mut self.made, &mut self.error, &mut self.targets] {
            list.resize(places, 0.0);
        }
        self.indices.clear();
        self.indices.extend_from_slice(indices);
        let mut least = self.costs(job, block);
        for _ in 0..rounds {
            job.transform.retarget(&self.error, &self.indices, &mut self.targets);
            let mut after = job.before;
            let targets = Block { weights: &self.targets, ..*block };
            let Encoder { codec, rate, .. } = job.encoder;
            search.run(&codec.quantiser, rate, &targets, &mut after, &mut self.indices);
            let costs = self.costs(job, block);
            for lane in 0..block.lanes {
                if costs[lane] >= least[lane] {
                    continue;
                }
                least[lane] = costs[lane];
                states[lane] = after[lane];
                let lanes = indices.iter_mut().zip(&self.indices).skip(lane).step_by(LANES);
                lanes.for_each(|(index, &better)| *index = better);
            }
        }
    }

    /// The true cost of each lane's indices, which leaves their errors.
    fn costs(&mut self, job: &Refinement<'_>, block: &Block<'_>) -> [f64; LANES] {
        job.transform.reconstruct(&self.indices, &mut self.made);
        let mut costs = [0.0; LANES];
        for (row, indices) in self.indices.chunks_exact(LANES).enumerate() {
            let more = block.row_class.get(row).copied().unwrap_or(0);
            for lane in 0..block.lanes {
                let at = row * LANES + lane;
                self.error[at] = job.wanted[at] - self.made[at];
                let bits = job.encoder.rate.cost(block.column_class[lane] + more, indices[lane]);
                costs[lane] += f64::from(self.error[at] * self.error[at] + bits);
            }
        }
        costs
    }
}

/// Writes a step with escapes among its symbols.
#[cold]
fn write_escapes(writer: &mut StreamWriter, quantiser: &Quantiser, symbols: &[u16], indices: &[i32]) {
    writer.step(&symbols.iter().map(|symbol| symbol & !ESCAPED).collect::<Vec<_>>());
    for (_, &index) in symbols.iter().zip(indices).filter(|(symbol, _)| **symbol & ESCAPED != 0) {
        writer.escape(quantiser.symbol(index).0 as i16 as u16);
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
#[derive(Debug, Clone)]
pub struct TensorCoder<'a> {
    /// What was measured.
    pub plan: &'a TensorPlan,
    /// The class base as it is stored.
    class_base: i32,
    /// Scales of the rows of each matrix, and of its columns: a weight's step is their product.
    row_step: Vec<f32>,
    column_step: Vec<f32>,
    /// 1 / those.
    row_inverse: Vec<f32>,
    column_inverse: Vec<f32>,
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

impl<'a> TensorCoder<'a> {
    /// A tensor at a rate: `rate_step` is the rate's part of its step code, `class_base` the class of its weights whose row and column add
    /// nothing.
    pub fn new(plan: &'a TensorPlan, rate_step: i32, class_base: i32) -> Self {
        let steps = |values: &[i16], shift: u32, first: i32, count: usize| -> Vec<f32> {
            let step = |value: i32| {
                scale(first + value * (512 >> shift)).expect("step_at() keeps every scale in range")
            };
            if values.is_empty() {
                vec![step(0); count]
            } else {
                values.iter().map(|&value| step(i32::from(value))).collect()
            }
        };
        let inverses = |steps: &[f32]| steps.iter().map(|step| 1.0 / step).collect();
        let View { batch, rows, columns, .. } = plan.view;
        let row_step = steps(&plan.row_scale, plan.row_shift, plan.step_at(rate_step), batch * rows);
        let column_step = steps(&plan.column_scale, plan.column_shift, 0, batch * columns);
        let (row_inverse, column_inverse) = (inverses(&row_step), inverses(&column_step));
        Self { plan, class_base, row_step, column_step, row_inverse, column_inverse }
    }

    /// Scales of a group's rows, and of one of its columns.
    pub(super) fn steps(&self, group: &Group, lane: usize) -> (&[f32], f32) {
        self.of_column(&self.row_step, &self.column_step, group, lane)
    }

    /// 1 / those.
    pub(super) fn inverses(&self, group: &Group, lane: usize) -> (&[f32], f32) {
        self.of_column(&self.row_inverse, &self.column_inverse, group, lane)
    }

    fn of_column<'b>(
        &self,
        rows: &'b [f32],
        columns: &[f32],
        group: &Group,
        lane: usize,
    ) -> (&'b [f32], f32) {
        let view = &self.plan.view;
        let rows = &rows[group.batch * view.rows + group.first_row..][..group.rows];
        (rows, columns[group.batch * view.columns + group.first_column + lane])
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

    /// What is quantised of a group, `[row][LANES]`, into `out`: the weights in units of their step, transformed if the plan has a transform. What lies in places without a column
    /// has no meaning.
    pub fn fill(&self, weights: &[f32], group: &Group, out: &mut [f32]) {
        self.scaled(weights, group, out);
        self.plan.transform.analyse(out);
    }

    /// The same before it is transformed: what a decoder is to make.
    pub fn wanted(&self, weights: &[f32], group: &Group) -> Vec<f32> {
        let mut out = vec![0.0; group.rows * LANES];
        self.scaled(weights, group, &mut out);
        out
    }

    fn scaled(&self, weights: &[f32], group: &Group, out: &mut [f32]) {
        let view = &self.plan.view;
        let rows = &self.row_inverse[group.batch * view.rows + group.first_row..][..group.rows];
        let columns = &self.column_inverse[group.batch * view.columns + group.first_column..][..group.lanes];
        let weights = &weights[view.position(group.batch, group.first_row, group.first_column)..];
        if view.transposed {
            // A column lies in one piece: rows are taken a cache line at a time, all columns of it.
            const ROWS: usize = 16;
            for (place, (out, rows)) in out.chunks_mut(ROWS * LANES).zip(rows.chunks(ROWS)).enumerate() {
                for (lane, column) in columns.iter().enumerate() {
                    let weights = &weights[lane * view.rows + place * ROWS..][..rows.len()];
                    for ((out, weight), row) in out[lane..].iter_mut().step_by(LANES).zip(weights).zip(rows) {
                        *out = weight * (row * column);
                    }
                }
            }
        } else {
            for ((out, weights), row) in
                out.chunks_exact_mut(LANES).zip(weights.chunks(view.columns)).zip(rows)
            {
                for ((out, weight), column) in out.iter_mut().zip(weights).zip(columns) {
                    *out = weight * (row * column);
                }
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
            self.class_base + i32::from(class)
        })
    }

    /// What each row of a group adds to its classes; empty if nothing.
    pub fn row_class(&self, group: &Group) -> Vec<i32> {
        let first = group.batch * self.plan.view.rows + group.first_row;
        let classes = self.plan.row_class.get(first..first + group.rows).unwrap_or(&[]);
        classes.iter().map(|&class| i32::from(class)).collect()
    }

    /// The rows of a band, counted through all matrices.
    pub fn band_rows(&self, band: usize) -> Range<usize> {
        let (rows, tile_rows) = (self.plan.view.rows, self.plan.tile_rows);
        let row_blocks = rows.div_ceil(tile_rows);
        let (batch, first) = (band / row_blocks, band % row_blocks * tile_rows);
        batch * rows + first..batch * rows + (first + tile_rows).min(rows)
    }

    /// The matrix of a band.
    pub(super) fn band_matrix(&self, band: usize) -> usize {
        self.band_rows(band).start / self.plan.view.rows
    }

    /// The row stream of a band of rows.
    pub fn encode_rows(&self, encoder: &Encoder<'_>, band: usize) -> Vec<u8> {
        let plan = self.plan;
        let mut writer = StreamWriter::default();
        for row in self.band_rows(band) {
            for (values, kind) in [(&plan.row_scale, ROW_SCALE), (&plan.row_class, ROW_CLASS)] {
                if let Some(&value) = values.get(row) {
                    writer.step(&[encoder.side_symbol(kind, i32::from(value))]);
                }
            }
        }
        writer.finish(1, encoder.codec.precision, &encoder.symbols)
    }
}
