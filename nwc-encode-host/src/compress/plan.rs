//! Side information: what is measured on a tensor before any weight is coded, and how the tensor is cut into tiles.
//!
//! STEP and SPREAD are two things. The step says how much error a weight may take: it is proportional to the deviation of its output, a row of the tensor [out, in], to the power
//! alpha. An embedding's outputs are its tokens, which are columns as coded; those of all others are rows as coded. The spread, relative to the step, says how large a weight
//! tends to be, and picks the probability table: its class.

use std::collections::BTreeMap;
use std::ops::Range;

use nwc_decode_core::{CHUNK_ROWS, SCALE_CODE_MAX, SCALE_CODE_MIN};

use super::Tuning;
use super::encode::{Group, TensorCoder};
use super::view::View;
use crate::coding::search::{Block, LANES, Quantiser, RateModel, Search};
use crate::coding::table::{Counts, Tally};
use crate::coding::transform::Transform;

/// log2 is counted in steps of 1/512 octave.
pub(crate) const OCTAVE: f64 = 512.0;
/// Taller tiles are split, so that tall matrices still decode in parallel.
const MAX_TILE_ROWS: usize = 8192;
/// Outputs and inputs further out than this from their tensor's mean, in octaves, are treated as being there.
const MAX_SPREAD: f64 = 12.0;

/// Bits that a weight costs more for each squared octave that its spread is off.
const MISFIT: f64 = 0.69;
/// The finest scales: 1/32 octave.
const MAX_SHIFT: u32 = 5;
/// Bits that a band's row stream takes beside its symbols: its record and its lane's state.
const ROW_STREAM_BITS: f64 = 96.0;

/// Bits a weight that a transform must save, for it makes decoding slower; and for each multiplication that it takes a decoder.
const TRANSFORM_BITS: f64 = 0.01;
const MULTIPLICATION_BITS: f64 = 0.0002;
/// Bits that it must save a tensor: the trial gives a tensor tables of its own, and those that it will share fit its classes less well. That took small matrices 250 to 600 bits.
const TENSOR_BITS: f64 = 512.0;

/// Where it is known how much outputs matter, their steps are this far on the way from normalised rows (0) to what would be best if errors were small (1), in octaves: they are
/// not small at 2 bits, where all the way costs more than it gains.
const OUTPUT_POWER: f64 = 0.5;

/// How spread classes are spaced, in octaves.
#[derive(Debug, Clone, Copy)]
pub struct ClassSpacing(pub f64);

/// The steps that a tensor's outputs and inputs are to have, as binary logarithms; empty where nothing is known.
#[derive(Debug, Clone, Default)]
pub struct WantedSteps {
    /// Of each input of `[out, in]`, next to the others'; of a batch those of all matrices together, or of each one.
    pub inputs: Vec<f64>,
    /// Of each output; with those of inputs added they compare between tensors.
    pub outputs: Vec<f64>,
}

/// Measured on one tensor: how it is tiled, and what its rows and columns look like. Independent of the rate.
#[derive(Debug, Clone)]
pub struct TensorPlan {
    /// The matrices that are coded.
    pub view: View,
    /// Lanes of a tile.
    pub lanes: usize,
    /// Columns that a lane walks in a tile.
    pub columns_per_lane: usize,
    /// Rows of a tile.
    pub tile_rows: usize,
    /// The tensor's part of every step code, in 1/512 octave; the rate's part is added to it.
    pub step: i32,
    /// Scale values of rows are in units of 2^-row_shift octaves, and so those of columns.
    pub row_shift: u32,
    /// See there.
    pub column_shift: u32,
    /// Mean of the outputs' deviations, in octaves; outputs of zeros left out.
    pub mean: f64,
    /// Scale value of each row of each matrix; empty if all are 0.
    pub row_scale: Vec<i16>,
    /// Scale value of each column of each matrix; empty if all are 0.
    pub column_scale: Vec<i16>,
    /// Class value of each row of each matrix; empty if all are 0.
    pub row_class: Vec<i16>,
    /// Class value of each column of each matrix; empty if all are 0.
    pub column_class: Vec<i16>,
    /// Class of a weight whose row and column values are 0, before the model's lowest class is made 0.
    pub class_base: i32,
    /// How weights become what is quantised.
    pub transform: Transform,
    /// Bits that the transform saves, about.
    pub saved: f64,
}

impl TensorPlan {
    /// Measures a tensor. `weights` is the whole tensor in its own order.
    pub fn measure(
        view: View,
        weights: &[f32],
        wanted: &WantedSteps,
        alpha: f64,
        spacing: ClassSpacing,
        tuning: &Tuning,
    ) -> Self {
        let (outputs, inputs) = (view.outputs(), view.inputs());
        let turned;
        let weights = if view.inputs_first {
            turned = outputs_first(&view, weights);
            &turned
        } else {
            weights
        };
        // Deviations about zero: the coder has no means.
        let deviation = |output: &[f32]| {
            let square: f64 = output.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
            0.5 * (square / inputs as f64).log2()
        };
        let logs: Vec<f64> = weights.chunks_exact(inputs).map(deviation).collect();
        // A few all but dead outputs must not drag the centre so far down that the live ones are clamped.
        let loudest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mean = finite_mean(&logs).max(loudest - MAX_SPREAD);
        let relative: Vec<f64> = logs
            .iter()
            .map(|log| if log.is_finite() { (log - mean).clamp(-MAX_SPREAD, MAX_SPREAD) } else { 0.0 })
            .collect();

        // Scales of columns stand in the tiles' own streams.
        let streams = ROW_STREAM_BITS * bands(&view);
        let (of_outputs, of_inputs) = if view.inputs_are_columns() { (streams, 0.0) } else { (0.0, streams) };
        let limited = |octaves: &[f64], centre: f64| -> Vec<f64> {
            octaves.iter().map(|octave| (octave - centre).clamp(-MAX_SPREAD, MAX_SPREAD)).collect()
        };
        let input_centre = finite_mean(&wanted.inputs);
        let (centre, output_steps): (f64, Vec<f64>) = if wanted.outputs.is_empty() {
            (alpha * mean, relative.iter().map(|log| alpha * log).collect())
        } else {
            let centre = finite_mean(&wanted.outputs);
            let between = |(log, step): (&f64, f64)| log + OUTPUT_POWER * (step - log);
            let wanted = limited(&wanted.outputs, centre).repeat(view.batch);
            let steps = relative.iter().zip(wanted).map(between).collect();
            (centre + input_centre, steps)
        };
        let (output_shift, scale) = scales(&output_steps, inputs, of_outputs, tuning);
        let matrices = if wanted.inputs.len() == inputs { view.batch } else { 1 };
        let input_steps = limited(&wanted.inputs, input_centre).repeat(matrices);
        let (input_shift, input_scale) = scales(&input_steps, outputs, of_inputs, tuning);
        let nonzero = |values: Vec<i16>| if values.iter().all(|&v| v == 0) { Vec::new() } else { values };
        let (scale, input_scale) = (nonzero(scale), nonzero(input_scale));
        let step = (centre * OCTAVE).round() as i32;
        let step = step.max(SCALE_CODE_MIN + (MAX_SPREAD * OCTAVE) as i32);
        // Where scales are not worth what they take, neither are classes in their place: steps count here as if they had been kept.
        let output_class: Vec<i16> = relative
            .iter()
            .zip(&output_steps)
            .map(|(log, step)| ((log - step) / spacing.0).round() as i16)
            .collect();
        let class_base = ((mean - centre) / spacing.0).round() as i32;
        let input_class = if tuning.input_classes {
            let unit = f64::from(1u32 << input_shift);
            let steps: Vec<f64> = input_scale.iter().map(|&value| f64::from(value) / unit).collect();
            input_classes(&view, weights, &relative, &steps, mean, spacing)
        } else {
            Vec::new()
        };

        let output = (output_shift, scale, nonzero(output_class));
        let input = (input_shift, input_scale, nonzero(input_class));
        let (rows, columns) = if view.inputs_are_columns() { (output, input) } else { (input, output) };
        let ((row_shift, row_scale, row_class), (column_shift, column_scale, column_class)) = (rows, columns);
        let (lanes, columns_per_lane, tile_rows) = tiling(&view, tuning);
        Self {
            view,
            lanes,
            columns_per_lane,
            tile_rows,
            step,
            mean,
            row_shift,
            column_shift,
            row_scale,
            column_scale,
            row_class,
            column_class,
            class_base,
            transform: Transform::Identity,
            saved: 0.0,
        }
    }

    /// The same with a transform, if that saves more at about this rate than it costs, or if it is to be used `always`. The classes of rows then follow the spread of what is quantised.
    #[must_use]
    pub fn with_transform(
        self,
        transform: &Transform,
        always: bool,
        weights: &[f32],
        trial: &Trial<'_>,
    ) -> Self {
        if *transform == Transform::Identity || self.tile_rows < CHUNK_ROWS {
            return self;
        }
        let mut transformed = Self {
            transform: transform.clone(),
            row_class: self.classes_of_chunks(trial.spacing),
            ..self.clone()
        };
        let octaves = trial.spreads(&transformed, weights);
        let classes = octaves.map(|octaves| (octaves / trial.spacing.0).round() as i16);
        let chunked = chunked(self.tile_rows);
        transformed.row_class.resize(self.view.batch * self.view.rows, 0);
        for (row, class) in transformed.row_class.iter_mut().enumerate() {
            let row = row % self.view.rows % self.tile_rows;
            *class += if row < chunked { classes[row % CHUNK_ROWS] } else { 0 };
        }
        if transformed.row_class.iter().all(|&class| class == 0) {
            transformed.row_class.clear();
        }
        if always {
            return transformed;
        }
        // Without hidden layers nothing is to be had but what different spreads save.
        let mean = octaves.iter().sum::<f64>() / CHUNK_ROWS as f64;
        let all = 0.5
            * (octaves.iter().map(|octaves| (2.0 * octaves).exp2()).sum::<f64>() / CHUNK_ROWS as f64).log2();
        let least = TRANSFORM_BITS + MULTIPLICATION_BITS * transform.multiplications() as f64;
        if !transform.has_layers() && all - mean < least {
            return self;
        }
        let side = |plan: &Self| {
            let mut counts = Counts::default();
            plan.row_class.iter().for_each(|&class| counts.add(i32::from(class)));
            let streams = if plan.has_row_streams() { ROW_STREAM_BITS * bands(&plan.view) } else { 0.0 };
            (counts.entropy() * counts.total() as f64 + streams) / plan.view.elements() as f64
        };
        let ([bits, error], [bits_transformed, error_transformed]) =
            (trial.code(&self, weights), trial.code(&transformed, weights));
        // How much larger errors are, in octaves, each of which is worth a bit.
        let coarser = 0.5 * (error_transformed / error).log2();
        let saved = bits + side(&self) - bits_transformed - side(&transformed) - coarser;
        transformed.saved = saved * self.view.elements() as f64;
        // At low rates latents that hardly spread are lost whole. No tensor is to be less accurate for being transformed: its step makes up for that.
        transformed.step -= (coarser.max(0.0) * OCTAVE).ceil() as i32;
        if saved > least && transformed.saved > TENSOR_BITS { transformed } else { self }
    }

    /// Makes steps larger by so many 1/512 octaves, and classes lower.
    pub fn coarsen(&mut self, steps: i32, classes: i32) {
        self.step += steps;
        self.class_base -= classes;
    }

    /// The classes of rows if all rows of a chunk have the spread of their mix.
    fn classes_of_chunks(&self, spacing: ClassSpacing) -> Vec<i16> {
        let mut classes = self.row_class.clone();
        for chunk in classes.chunks_mut(self.view.rows).flat_map(|matrix| matrix.chunks_exact_mut(CHUNK_ROWS))
        {
            let energy: f64 = chunk.iter().map(|&class| (2.0 * f64::from(class) * spacing.0).exp2()).sum();
            chunk.fill((0.5 * (energy / CHUNK_ROWS as f64).log2() / spacing.0).round() as i16);
        }
        classes
    }

    /// The least and the largest class of a weight of this tensor.
    pub fn class_range(&self) -> (i32, i32) {
        let range = |values: &[i16]| {
            let least = values.iter().min().copied().unwrap_or(0);
            let largest = values.iter().max().copied().unwrap_or(0);
            (i32::from(least), i32::from(largest))
        };
        let (rows, columns) = (range(&self.row_class), range(&self.column_class));
        (self.class_base + rows.0 + columns.0, self.class_base + rows.1 + columns.1)
    }

    /// How many weights there are of each class.
    pub fn class_counts(&self) -> BTreeMap<i32, u64> {
        let View { batch, rows, columns, .. } = self.view;
        let mut counts = BTreeMap::new();
        for matrix in 0..batch {
            let row = histogram(&self.row_class, matrix * rows, rows);
            let column = histogram(&self.column_class, matrix * columns, columns);
            for (r, m) in &row {
                for (c, n) in &column {
                    *counts.entry(self.class_base + r + c).or_insert(0) += m * n;
                }
            }
        }
        counts
    }

    /// The tensor's step code at a rate.
    pub fn step_at(&self, rate_step: i32) -> i32 {
        // Whatever a row and a column add, the product of their scales must stay a normal binary32 number.
        let range = |values: &[i16], shift: u32| {
            let code = |value: Option<&i16>| value.map_or(0, |&value| i32::from(value) * (512 >> shift));
            (code(values.iter().min()).min(0), code(values.iter().max()).max(0))
        };
        let (rows, columns) =
            (range(&self.row_scale, self.row_shift), range(&self.column_scale, self.column_shift));
        let (least, largest) = (rows.0 + columns.0, rows.1 + columns.1);
        (self.step + rate_step).clamp(SCALE_CODE_MIN - least, SCALE_CODE_MAX - largest)
    }

    /// Number of bands of rows, over all matrices.
    pub fn bands(&self) -> usize {
        self.view.batch * self.view.rows.div_ceil(self.tile_rows)
    }

    /// Number of tiles side by side.
    pub fn column_blocks(&self) -> usize {
        self.view.columns.div_ceil(self.lanes * self.columns_per_lane)
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.bands() * self.column_blocks()
    }

    /// The tiles of a band, side by side.
    pub fn band_tiles(&self, band: usize) -> Range<usize> {
        band * self.column_blocks()..(band + 1) * self.column_blocks()
    }

    /// Number of lanes of a tile: the last ones of a band may have fewer columns.
    pub fn tile_lanes(&self, tile: usize) -> usize {
        let first = tile % self.column_blocks() * self.lanes * self.columns_per_lane;
        self.lanes.min(self.view.columns - first)
    }

    /// Whether rows have a stream of their own.
    pub fn has_row_streams(&self) -> bool {
        !self.row_scale.is_empty() || !self.row_class.is_empty()
    }
}

/// How a part of a tensor is coded for a trial: as all of it would be, about.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    /// The quantiser.
    pub quantiser: &'a Quantiser,
    /// The rate's part of step codes.
    pub rate_step: i32,
    /// How classes are spaced.
    pub spacing: ClassSpacing,
}

impl Trial<'_> {
    /// Weights that are looked at, about: many are fast to transform, few to search.
    const SPREADS: usize = 1 << 17;
    const SEARCHED: usize = 1 << 15;

    /// How large weights of a class are next to their step, in octaves.
    fn octaves(&self, class: i32) -> f64 {
        f64::from(class) * self.spacing.0 - f64::from(self.rate_step) / OCTAVE
    }

    /// Some of a tensor's groups, evenly spread.
    fn groups(coder: &TensorCoder<'_>, weights: usize) -> Vec<Group> {
        let groups: Vec<Group> = (0..coder.plan.tiles()).flat_map(|tile| coder.tile_groups(tile)).collect();
        let every = (coder.plan.view.elements() / weights).clamp(1, groups.len());
        groups.into_iter().skip(every / 2).step_by(every).collect()
    }

    /// How far what is quantised spreads in each row of a chunk, in octaves above what its class says.
    fn spreads(&self, plan: &TensorPlan, weights: &[f32]) -> [f64; CHUNK_ROWS] {
        let coder = TensorCoder::new(plan, self.rate_step, plan.class_base);
        let (mut energy, mut count) = ([0.0; CHUNK_ROWS], 0);
        let mut latents = Vec::new();
        for group in Self::groups(&coder, Self::SPREADS) {
            latents.resize(group.rows * LANES, 0.0);
            coder.fill(weights, &group, &mut latents);
            let (column_class, row_class) = (coder.column_class(&group), coder.row_class(&group));
            for (row, latents) in latents.chunks_exact(LANES).take(chunked(group.rows)).enumerate() {
                let more = row_class.get(row).copied().unwrap_or(0);
                for (latent, class) in latents.iter().zip(&column_class).take(group.lanes) {
                    let inverse = (-self.octaves(class + more)).exp2();
                    energy[row % CHUNK_ROWS] += (f64::from(*latent) * inverse).powi(2);
                }
            }
            count += group.rows / CHUNK_ROWS * group.lanes;
        }
        energy.map(|energy| {
            let octaves = 0.5 * (energy / f64::from(count.max(1) as u32)).log2();
            if octaves.is_finite() { octaves.clamp(-MAX_SPREAD, MAX_SPREAD) } else { 0.0 }
        })
    }

    /// Bits that a weight takes without side information, and its squared error in steps: indices are searched for and counted, errors are the decoder's.
    fn code(&self, plan: &TensorPlan, weights: &[f32]) -> [f64; 2] {
        let (least, largest) = plan.class_range();
        let classes = (largest - least + 1) as usize;
        let spread = |class: usize| self.octaves(least + class as i32).exp2();
        let step = self.quantiser.spacing();
        let reach = (6.0 * spread(classes - 1) / step).ceil().clamp(2.0, 2000.0) as i32;
        // Costs of a Gaussian of the class's spread; about right is near enough to search with.
        let rate = RateModel::new(self.quantiser, classes, -reach..=reach, |class, union, value| {
            let spread = spread(class).max(0.25 * step);
            let x = (f64::from(value) * step + union as f64) / spread;
            let bits = (spread / step * std::f64::consts::TAU.sqrt()).log2()
                + 0.5 * x * x * std::f64::consts::LOG2_E;
            bits.clamp(0.1, 24.0) as f32
        });
        let coder = TensorCoder::new(plan, self.rate_step, plan.class_base - least);
        let mut tally = Tally::new(classes, rate.indices());
        let mut search = Search::default();
        let (mut indices, mut made) = (Vec::new(), Vec::new());
        let (mut error, mut count) = (0.0, 0u32);
        for group in Self::groups(&coder, Self::SEARCHED) {
            let places = group.rows * LANES;
            made.resize(places, 0.0);
            indices.resize(places, 0);
            let wanted = coder.wanted(weights, &group);
            let mut latents = wanted.clone();
            plan.transform.analyse(&mut latents);
            let (column_class, row_class) = (coder.column_class(&group), coder.row_class(&group));
            let block = Block {
                weights: &latents,
                column_class: &column_class,
                row_class: &row_class,
                lanes: group.lanes,
            };
            search.run(self.quantiser, &rate, &block, &mut [0; LANES], &mut indices);
            plan.transform.reconstruct(&indices, &mut made);
            for row in 0..chunked(group.rows) {
                let more = row_class.get(row).copied().unwrap_or(0);
                for (lane, class) in column_class.iter().enumerate().take(group.lanes) {
                    let at = row * LANES + lane;
                    error += f64::from(wanted[at] - made[at]).powi(2);
                    tally.add((class + more).clamp(0, classes as i32 - 1) as usize, indices[at]);
                    count += 1;
                }
            }
        }
        let counted = tally.by_union(self.quantiser);
        // The entropy of what was counted is less than that of its source, by half a nat for each value but one of each table (Miller and Madow): with more classes it would seem to fall.
        let coded: f64 = counted
            .iter()
            .map(|counts| {
                let free = counts.iter().count().saturating_sub(1) as f64;
                counts.entropy() * counts.total() as f64 + 0.5 * std::f64::consts::LOG2_E * free
            })
            .sum();
        let count = f64::from(count.max(1));
        [coded / count, (error / count).max(f64::MIN_POSITIVE)]
    }
}

/// Matrices that lie in memory as [in, out], as [out, in].
fn outputs_first(view: &View, weights: &[f32]) -> Vec<f32> {
    let (outputs, inputs) = (view.outputs(), view.inputs());
    let mut turned = vec![0.0; weights.len()];
    for (to, from) in turned.chunks_exact_mut(inputs * outputs).zip(weights.chunks_exact(inputs * outputs)) {
        for (output, to) in to.chunks_exact_mut(inputs).enumerate() {
            to.iter_mut().zip(from[output..].iter().step_by(outputs)).for_each(|(to, from)| *to = *from);
        }
    }
    turned
}

/// Rows that whole chunks hold.
const fn chunked(rows: usize) -> usize {
    rows / CHUNK_ROWS * CHUNK_ROWS
}

/// How often each class occurs in a part of a list, which is all 0 if it is empty.
fn histogram(classes: &[i16], first: usize, len: usize) -> BTreeMap<i32, u64> {
    if classes.is_empty() {
        return BTreeMap::from([(0, len as u64)]);
    }
    let mut counts = BTreeMap::new();
    classes[first..first + len].iter().for_each(|&class| *counts.entry(i32::from(class)).or_insert(0) += 1);
    counts
}

/// Number of bands of rows of all matrices, before tiles are chosen.
fn bands(view: &View) -> f64 {
    (view.batch * view.rows.div_ceil(MAX_TILE_ROWS)) as f64
}

/// Scale values for steps that are to be so many octaves from the tensor's, `weights` weights each, and their resolution: steps an octave, as a power of two. All 0 where
/// they, and the `streams` bits that hold them, would cost more than they save.
///
/// A step that is off by d octaves costs about 0.69 d^2 bits a weight: through the table that no longer fits, or through the error that is not where it should be.
fn scales(octaves: &[f64], weights: usize, streams: f64, tuning: &Tuning) -> (u32, Vec<i16>) {
    // All tensors share one table of scales: +-127 leaves room for 255 values of its 256.
    let reach = octaves.iter().fold(0.0, |most: f64, octave| most.max(octave.abs()));
    let fits = |shift: &u32| reach * f64::from(1u32 << shift) <= 127.0;
    let weights = weights as f64;
    let candidate = |shift: u32| {
        let unit = f64::from(1u32 << shift);
        let mut counts = Counts::default();
        let mut misfit = 0.0;
        let values: Vec<i16> = octaves
            .iter()
            .map(|octave| {
                let value = (octave * unit).round();
                misfit += (octave - value / unit).powi(2);
                counts.add(value as i32);
                value as i16
            })
            .collect();
        let stored = if values.iter().all(|&value| value == 0) {
            0.0
        } else {
            counts.entropy() * octaves.len() as f64 + streams
        };
        (stored + MISFIT * weights * misfit, shift, values)
    };
    let none = {
        let misfit: f64 = octaves.iter().map(|octave| octave.powi(2)).sum();
        (MISFIT * weights * misfit, 0, vec![0; octaves.len()])
    };
    if let Some(shift) = tuning.scale_shift {
        let (_, shift, values) = candidate((0..=shift).rev().find(fits).unwrap_or(0));
        return (shift, values);
    }
    (0..=MAX_SHIFT)
        .filter(fits)
        .map(candidate)
        .chain([none])
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, shift, values)| (shift, values))
        .expect("there is the candidate without scales")
}

fn tiling(view: &View, tuning: &Tuning) -> (usize, usize, usize) {
    let elements = view.rows * view.columns;
    let lanes = (elements / tuning.min_lane_symbols.max(1)).clamp(1, 32);
    let lanes = (1 << lanes.ilog2()).min(view.columns.next_power_of_two());
    let lanes = lanes.min(view.columns);
    let bands = view.rows.div_ceil(MAX_TILE_ROWS);
    let tile_rows = view.rows.div_ceil(bands).next_multiple_of(16).min(view.rows);
    let wanted = if view.inputs_are_columns() { tuning.lane_symbols } else { tuning.lookup_lane_symbols };
    let groups = view.columns.div_ceil(lanes);
    // As few tiles as the wanted length allows, all about equally wide.
    let blocks = groups.div_ceil(wanted.div_ceil(tile_rows).min(groups));
    (lanes, groups.div_ceil(blocks), tile_rows)
}

fn finite_mean(logs: &[f64]) -> f64 {
    let (sum, count) = logs
        .iter()
        .filter(|log| log.is_finite())
        .fold((0.0, 0u32), |(sum, count), log| (sum + log, count + 1));
    if count == 0 { 0.0 } else { sum / f64::from(count) }
}

/// Class of each input by its spread, next to its step, once the outputs, `relative` octaves from the mean, are normalised; all 0 where classes would cost more than they
/// save. `steps` are octaves, none if all are alike.
fn input_classes(
    view: &View,
    weights: &[f32],
    relative: &[f64],
    steps: &[f64],
    mean: f64,
    spacing: ClassSpacing,
) -> Vec<i16> {
    let (outputs, inputs) = (view.outputs(), view.inputs());
    let mut second = vec![0f64; view.batch * inputs];
    let mut fourth = 0.0;
    let matrices = weights.chunks_exact(outputs * inputs).zip(second.chunks_exact_mut(inputs));
    for ((matrix, second), relative) in matrices.zip(relative.chunks_exact(outputs)) {
        for (output, log) in matrix.chunks_exact(inputs).zip(relative) {
            let inverse = (-(log + mean)).exp2();
            for (sum, &weight) in second.iter_mut().zip(output) {
                let square = (f64::from(weight) * inverse).powi(2);
                *sum += square;
                fourth += square * square;
            }
        }
    }
    let none = vec![0; second.len()];
    let logs: Vec<f64> = second.iter().map(|square| 0.5 * (square / outputs as f64).log2()).collect();
    let centre = finite_mean(&logs);
    let count = logs.iter().filter(|log| log.is_finite()).count() as f64;
    if count < 2.0 {
        return none;
    }
    let variance =
        logs.iter().filter(|log| log.is_finite()).map(|log| (log - centre).powi(2)).sum::<f64>() / count;
    // What the variance would be if all inputs had one spread: that of an estimate from `outputs` weights of this kurtosis.
    let total: f64 = second.iter().sum();
    let elements = view.elements() as f64;
    let kurtosis = fourth * elements / (total * total);
    let noise = (kurtosis - 1.0) / (4.0 * outputs as f64) * std::f64::consts::LOG2_E.powi(2);
    let signal = (variance - noise).max(0.0);
    if signal <= 0.0 && steps.is_empty() {
        return none;
    }
    let shrink = if signal > 0.0 { signal / variance } else { 0.0 };
    // Where a class should be: the part of the spread that is no noise, less the step.
    let wanted: Vec<f64> = logs
        .iter()
        .enumerate()
        .map(|(input, log)| {
            let log = if log.is_finite() { log - centre } else { -MAX_SPREAD };
            let step = steps.get(input).copied().unwrap_or(0.0);
            (shrink * log - step).clamp(-MAX_SPREAD, MAX_SPREAD)
        })
        .collect();
    let classes: Vec<i16> = wanted.iter().map(|octave| (octave / spacing.0).round() as i16).collect();
    // A mismatch of d octaves costs 0.69 d^2 bits a weight, a class its entropy once an input.
    let mut counts = Counts::default();
    classes.iter().for_each(|&class| counts.add(i32::from(class)));
    let left = spacing.0.powi(2) / 12.0;
    let streams =
        if view.inputs_are_columns() { 0.0 } else { ROW_STREAM_BITS * bands(view) / classes.len() as f64 };
    // The variance of what classes can follow; without steps it is the signal's.
    let followed = wanted.iter().map(|octave| octave.powi(2)).sum::<f64>() / wanted.len() as f64;
    let worth = if steps.is_empty() { signal } else { followed };
    let gain = MISFIT * (worth - left) * outputs as f64;
    if gain > counts.entropy() + streams + 0.1 { classes } else { none }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::synthetic::Source;

    /// Measured where nothing is known of the steps that are wanted.
    fn measured(view: View, weights: &[f32], alpha: f64, spacing: ClassSpacing) -> TensorPlan {
        TensorPlan::measure(view, weights, &WantedSteps::default(), alpha, spacing, &Tuning::default())
    }

    #[test]
    fn tiles_cover_the_matrix_and_lanes_are_long() {
        for (rows, columns) in [(1, 1), (1, 5000), (5000, 1), (96, 96), (4096, 4096), (151_936, 64), (17, 33)]
        {
            for transposed in [false, true] {
                let view = View { batch: 1, rows, columns, transposed, batched: false, inputs_first: false };
                let (lanes, per_lane, tile_rows) = tiling(&view, &Tuning::default());
                assert!((1..=32).contains(&lanes) && lanes <= columns);
                assert!(per_lane >= 1 && (per_lane - 1) * lanes < columns);
                assert!((1..=rows).contains(&tile_rows) && tile_rows <= MAX_TILE_ROWS);
            }
        }
        let view = View {
            batch: 1,
            rows: 2048,
            columns: 2048,
            transposed: false,
            batched: false,
            inputs_first: false,
        };
        assert_eq!(tiling(&view, &Tuning::default()), (32, 4, 2048));
    }

    #[test]
    fn equal_rows_and_columns_need_no_side_information() {
        let view =
            View { batch: 1, rows: 64, columns: 64, transposed: false, batched: false, inputs_first: false };
        let weights: Vec<f32> = (0..4096).map(|i| if (i / 3) % 2 == 0 { 0.5 } else { -0.5 }).collect();
        let plan = measured(view, &weights, 1.0, ClassSpacing(0.25));
        assert!(plan.row_scale.is_empty() && plan.column_class.is_empty() && plan.row_class.is_empty());
        assert_eq!(plan.step, -512);
    }

    #[test]
    fn loud_rows_get_scales_and_loud_columns_classes() {
        let view = View {
            batch: 1,
            rows: 256,
            columns: 256,
            transposed: false,
            batched: false,
            inputs_first: false,
        };
        let weights: Vec<f32> = (0..65_536)
            .map(|i| {
                let (row, column) = (i / 256, i % 256);
                let sign = if (row * 7 + column * 13) % 5 < 2 { -1.0 } else { 1.0 };
                sign * if row < 64 { 4.0 } else { 1.0 } * if column < 128 { 2.0 } else { 1.0 }
            })
            .collect();
        let plan = measured(view, &weights, 1.0, ClassSpacing(0.5));
        let unit = 1 << plan.row_shift;
        assert_eq!(i32::from(plan.row_scale[0] - plan.row_scale[255]), 2 * unit);
        assert_eq!(plan.column_class[0] - plan.column_class[255], 2);
        let flat = measured(view, &weights, 0.0, ClassSpacing(0.5));
        assert!(flat.row_scale.is_empty());
        assert_eq!(flat.row_class[0] - flat.row_class[255], 4);
    }

    #[test]
    fn rows_that_are_not_worth_scales_get_no_classes_in_their_place() {
        // Deviations of so few weights differ by chance, by some tenth of an octave.
        let view =
            View { batch: 1, rows: 256, columns: 48, transposed: false, batched: false, inputs_first: false };
        let weights = Source::Gaussian.matrix(view.rows, view.columns, 1);
        let plan = measured(view, &weights, 1.0, ClassSpacing(0.25));
        assert!(plan.row_scale.is_empty() && plan.row_class.is_empty());
    }

    #[test]
    fn the_outputs_of_an_embedding_are_its_tokens() {
        // [token, dimension]: loud tokens get scales, loud dimensions classes.
        let view =
            View { batch: 1, rows: 256, columns: 256, transposed: true, batched: false, inputs_first: false };
        let weights: Vec<f32> = (0..65_536)
            .map(|i| {
                let (token, dimension) = (i / 256, i % 256);
                let sign = if (token * 7 + dimension * 13) % 5 < 2 { -1.0 } else { 1.0 };
                sign * if token < 64 { 4.0 } else { 1.0 } * if dimension < 128 { 2.0 } else { 1.0 }
            })
            .collect();
        let plan = measured(view, &weights, 1.0, ClassSpacing(0.5));
        let unit = 1 << plan.column_shift;
        assert!(plan.row_scale.is_empty() && plan.column_class.is_empty());
        assert_eq!(i32::from(plan.column_scale[0] - plan.column_scale[255]), 2 * unit);
        assert_eq!(plan.row_class[0] - plan.row_class[255], 2);
    }

    #[test]
    fn a_transform_that_saves_a_small_matrix_few_bits_is_left_out() {
        let quantiser = super::super::quantiser("trellis64").unwrap();
        let spacing = ClassSpacing(0.25);
        let trial = Trial { quantiser: &quantiser, rate_step: -3 * OCTAVE as i32, spacing };
        for (groups, wanted) in [(6, Transform::Identity), (96, Transform::Hadamard)] {
            // Latents that spread by 0.2 octaves more and less save 0.02 bits a weight.
            let view = View {
                batch: 1,
                rows: 64,
                columns: groups * LANES,
                transposed: false,
                batched: false,
                inputs_first: false,
            };
            let weights = of_latents(view.rows, groups, 0.2);
            let plan = measured(view, &weights, 1.0, spacing).with_transform(
                &Transform::Hadamard,
                false,
                &weights,
                &trial,
            );
            assert_eq!(plan.transform, wanted, "{groups} groups");
        }
    }

    /// A matrix of so many groups of columns whose Hadamard transform spreads by some octaves more and less from row to row.
    pub(in super::super) fn of_latents(rows: usize, groups: usize, octaves: f32) -> Vec<f32> {
        let columns = groups * LANES;
        let mut weights = vec![0.0; rows * columns];
        for group in 0..groups {
            let mut latents = Source::Gaussian.matrix(rows, LANES, group as u64);
            for (row, latents) in latents.chunks_exact_mut(LANES).enumerate() {
                let spread = if row % 2 == 0 { octaves.exp2() } else { (-octaves).exp2() };
                latents.iter_mut().for_each(|latent| *latent *= spread);
            }
            // The transform is its own inverse.
            Transform::Hadamard.analyse(&mut latents);
            let rows = weights.chunks_exact_mut(columns).zip(latents.chunks_exact(LANES));
            rows.for_each(|(to, from)| to[group * LANES..][..LANES].copy_from_slice(from));
        }
        weights
    }
}
