//! Side information: what is measured on a tensor before any weight is coded, and how the tensor is cut into tiles.
//!
//! STEP and SPREAD are two things. The step of a row says how much error its weights may take: it is proportional to the row's deviation to the power
//! alpha. The spread, relative to the step, says how large a weight tends to be, and picks the probability table: its class.

use std::collections::BTreeMap;

use nwc_decode_core::{SCALE_CODE_MAX, SCALE_CODE_MIN, Synthesis};

use super::Tuning;
use super::view::View;
use crate::coding::table::Counts;

/// log2 is counted in steps of 1/512 octave.
pub(crate) const OCTAVE: f64 = 512.0;
/// Taller tiles are split, so that tall matrices still decode in parallel.
const MAX_TILE_ROWS: usize = 8192;
/// Rows and columns further out than this from their tensor's mean, in octaves, are treated as being there.
const MAX_SPREAD: f64 = 12.0;

/// Bits that a weight costs more for each squared octave that its spread is off.
const MISFIT: f64 = 0.69;
/// The finest row scales: 1/32 octave.
const MAX_ROW_SHIFT: u32 = 5;

/// How spread classes are spaced, in octaves.
#[derive(Debug, Clone, Copy)]
pub struct ClassSpacing(pub f64);

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
    /// Row scale values are in units of 2^-row_shift octaves.
    pub row_shift: u32,
    /// Mean of the rows' deviations, in octaves; rows of zeros left out.
    pub mean: f64,
    /// Scale value of each row of each matrix; empty if all are 0.
    pub row_scale: Vec<i16>,
    /// Class value of each row of each matrix; empty if all are 0.
    pub row_class: Vec<i16>,
    /// Class value of each column of each matrix; empty if all are 0.
    pub column_class: Vec<i16>,
    /// Class of a weight whose row and column values are 0, before the model's lowest class is made 0.
    pub class_base: i32,
    /// How weights become what is quantised.
    pub synthesis: Synthesis,
}

impl TensorPlan {
    /// Measures a tensor. `weights` is the whole tensor in its own order.
    pub fn measure(
        view: View,
        weights: &[f32],
        row_alpha: f64,
        spacing: ClassSpacing,
        tuning: &Tuning,
    ) -> Self {
        let squares = row_energies(&view, weights);
        let columns = view.columns as f64;
        // Deviations about zero: the coder has no means.
        let row_log: Vec<f64> = squares.iter().map(|square| 0.5 * (square / columns).log2()).collect();
        // A few all but dead rows must not drag the centre so far down that the live ones are clamped.
        let loudest = row_log.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mean = finite_mean(&row_log).max(loudest - MAX_SPREAD);
        let relative: Vec<f64> = row_log
            .iter()
            .map(|log| if log.is_finite() { (log - mean).clamp(-MAX_SPREAD, MAX_SPREAD) } else { 0.0 })
            .collect();

        let (row_shift, row_scale) = row_scales(&view, &relative, row_alpha, tuning);
        let step = (row_alpha * mean * OCTAVE).round() as i32;
        let step = step.max(SCALE_CODE_MIN + (MAX_SPREAD * OCTAVE) as i32);
        let row_class: Vec<i16> =
            relative.iter().map(|log| ((1.0 - row_alpha) * log / spacing.0).round() as i16).collect();
        let class_base = ((1.0 - row_alpha) * mean / spacing.0).round() as i32;

        let column_class = if tuning.column_classes {
            column_classes(&view, weights, &relative, mean, spacing)
        } else {
            Vec::new()
        };
        let (lanes, columns_per_lane, tile_rows) = tiling(&view, tuning);
        let nonzero = |values: Vec<i16>| if values.iter().all(|&v| v == 0) { Vec::new() } else { values };
        Self {
            view,
            lanes,
            columns_per_lane,
            tile_rows,
            step,
            mean,
            row_shift,
            row_scale: nonzero(row_scale),
            row_class: nonzero(row_class),
            column_class: nonzero(column_class),
            class_base,
            synthesis: Synthesis::Identity,
        }
    }

    /// The same for another synthesis.
    #[must_use]
    pub const fn with_synthesis(mut self, synthesis: Synthesis) -> Self {
        self.synthesis = synthesis;
        self
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
        // Whatever a row adds, its scale must stay a normal binary32 number.
        let unit = 512 >> self.row_shift;
        let least = self.row_scale.iter().min().map_or(0, |&v| i32::from(v) * unit).min(0);
        let largest = self.row_scale.iter().max().map_or(0, |&v| i32::from(v) * unit).max(0);
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

/// How often each class occurs in a part of a list, which is all 0 if it is empty.
fn histogram(classes: &[i16], first: usize, len: usize) -> BTreeMap<i32, u64> {
    if classes.is_empty() {
        return BTreeMap::from([(0, len as u64)]);
    }
    let mut counts = BTreeMap::new();
    classes[first..first + len].iter().for_each(|&class| *counts.entry(i32::from(class)).or_insert(0) += 1);
    counts
}

/// Scale values of rows whose deviations are `relative` octaves from the mean, and their resolution: steps an octave, as a power of two. All 0 where
/// they would cost more than they save.
///
/// A step that is off by d octaves costs about 0.69 d^2 bits a weight through the table that no longer fits.
fn row_scales(view: &View, relative: &[f64], row_alpha: f64, tuning: &Tuning) -> (u32, Vec<i16>) {
    // All tensors share one table of row scales: +-127 leaves room for 255 values of its 256.
    let reach = row_alpha * relative.iter().fold(0.0, |most: f64, log| most.max(log.abs()));
    let fits = |shift: &u32| reach * f64::from(1u32 << shift) <= 127.0;
    let columns = view.columns as f64;
    let candidate = |shift: u32| {
        let unit = f64::from(1u32 << shift);
        let mut counts = Counts::default();
        let mut misfit = 0.0;
        let values: Vec<i16> = relative
            .iter()
            .map(|log| {
                let value = (row_alpha * log * unit).round();
                misfit += (row_alpha * log - value / unit).powi(2);
                counts.add(value as i32);
                value as i16
            })
            .collect();
        let stored = if values.iter().all(|&value| value == 0) {
            0.0
        } else {
            // A stream for each band: its record and its lane's state.
            let bands = view.batch * view.rows.div_ceil(MAX_TILE_ROWS);
            counts.entropy() * relative.len() as f64 + 96.0 * bands as f64
        };
        (stored + MISFIT * columns * misfit, shift, values)
    };
    let none = {
        let misfit: f64 = relative.iter().map(|log| (row_alpha * log).powi(2)).sum();
        (MISFIT * columns * misfit, 0, vec![0; relative.len()])
    };
    if let Some(shift) = tuning.row_shift {
        let (_, shift, values) = candidate((0..=shift).rev().find(fits).unwrap_or(0));
        return (shift, values);
    }
    (0..=MAX_ROW_SHIFT)
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
    let wanted = if view.transposed { tuning.lookup_lane_symbols } else { tuning.lane_symbols };
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

/// Sum of squares of each row of each matrix.
fn row_energies(view: &View, weights: &[f32]) -> Vec<f64> {
    let mut squares = vec![0.0; view.batch * view.rows];
    for (matrix, squares) in
        weights.chunks_exact(view.rows * view.columns).zip(squares.chunks_exact_mut(view.rows))
    {
        if view.transposed {
            for column in matrix.chunks_exact(view.rows) {
                squares.iter_mut().zip(column).for_each(|(sum, &w)| *sum += f64::from(w) * f64::from(w));
            }
        } else {
            for (sum, row) in squares.iter_mut().zip(matrix.chunks_exact(view.columns)) {
                *sum = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
            }
        }
    }
    squares
}

/// Class of each column by its spread once the rows are normalised; all 0 where classes would cost more than they save.
fn column_classes(
    view: &View,
    weights: &[f32],
    row_log: &[f64],
    mean: f64,
    spacing: ClassSpacing,
) -> Vec<i16> {
    let (rows, columns) = (view.rows, view.columns);
    let mut second = vec![0f64; view.batch * columns];
    let mut fourth = 0.0;
    let inverse: Vec<f64> = row_log.iter().map(|log| (-(log + mean)).exp2()).collect();
    let matrices = weights.chunks_exact(rows * columns).zip(second.chunks_exact_mut(columns));
    for ((matrix, second), inverse) in matrices.zip(inverse.chunks_exact(rows)) {
        let mut add = |row: usize, column: usize, weight: f32| {
            let square = (f64::from(weight) * inverse[row]).powi(2);
            second[column] += square;
            fourth += square * square;
        };
        if view.transposed {
            for (column, values) in matrix.chunks_exact(rows).enumerate() {
                values.iter().enumerate().for_each(|(row, &weight)| add(row, column, weight));
            }
        } else {
            for (row, values) in matrix.chunks_exact(columns).enumerate() {
                values.iter().enumerate().for_each(|(column, &weight)| add(row, column, weight));
            }
        }
    }
    let none = vec![0; second.len()];
    let logs: Vec<f64> = second.iter().map(|square| 0.5 * (square / rows as f64).log2()).collect();
    let centre = finite_mean(&logs);
    let count = logs.iter().filter(|log| log.is_finite()).count() as f64;
    if count < 2.0 {
        return none;
    }
    let variance =
        logs.iter().filter(|log| log.is_finite()).map(|log| (log - centre).powi(2)).sum::<f64>() / count;
    // What the variance would be if all columns had one spread: that of an estimate from `rows` weights of this kurtosis.
    let total: f64 = second.iter().sum();
    let elements = (view.batch * rows * columns) as f64;
    let kurtosis = fourth * elements / (total * total);
    let noise = (kurtosis - 1.0) / (4.0 * rows as f64) * std::f64::consts::LOG2_E.powi(2);
    let signal = variance - noise;
    if signal <= 0.0 {
        return none;
    }
    let shrink = signal / variance;
    let classes: Vec<i16> = logs
        .iter()
        .map(|log| if log.is_finite() { log - centre } else { -MAX_SPREAD })
        .map(|log| (shrink * log.clamp(-MAX_SPREAD, MAX_SPREAD) / spacing.0).round() as i16)
        .collect();
    // A mismatch of d octaves costs 0.69 d^2 bits a weight, a class its entropy once a column.
    let mut counts = Counts::default();
    classes.iter().for_each(|&class| counts.add(i32::from(class)));
    let left = spacing.0.powi(2) / 12.0;
    if MISFIT * (signal - left) * rows as f64 > counts.entropy() + 0.1 { classes } else { none }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_matrix_and_lanes_are_long() {
        for (rows, columns) in [(1, 1), (1, 5000), (5000, 1), (96, 96), (4096, 4096), (151_936, 64), (17, 33)]
        {
            for transposed in [false, true] {
                let view = View { batch: 1, rows, columns, transposed, batched: false };
                let (lanes, per_lane, tile_rows) = tiling(&view, &Tuning::default());
                assert!((1..=32).contains(&lanes) && lanes <= columns);
                assert!(per_lane >= 1 && (per_lane - 1) * lanes < columns);
                assert!((1..=rows).contains(&tile_rows) && tile_rows <= MAX_TILE_ROWS);
            }
        }
        let view = View { batch: 1, rows: 2048, columns: 2048, transposed: false, batched: false };
        assert_eq!(tiling(&view, &Tuning::default()), (32, 4, 2048));
    }

    #[test]
    fn equal_rows_and_columns_need_no_side_information() {
        let view = View { batch: 1, rows: 64, columns: 64, transposed: false, batched: false };
        let weights: Vec<f32> = (0..4096).map(|i| if (i / 3) % 2 == 0 { 0.5 } else { -0.5 }).collect();
        let plan = TensorPlan::measure(view, &weights, 1.0, ClassSpacing(0.25), &Tuning::default());
        assert!(plan.row_scale.is_empty() && plan.column_class.is_empty() && plan.row_class.is_empty());
        assert_eq!(plan.step, -512);
    }

    #[test]
    fn loud_rows_get_scales_and_loud_columns_classes() {
        let view = View { batch: 1, rows: 256, columns: 256, transposed: false, batched: false };
        let weights: Vec<f32> = (0..65_536)
            .map(|i| {
                let (row, column) = (i / 256, i % 256);
                let sign = if (row * 7 + column * 13) % 5 < 2 { -1.0 } else { 1.0 };
                sign * if row < 64 { 4.0 } else { 1.0 } * if column < 128 { 2.0 } else { 1.0 }
            })
            .collect();
        let plan = TensorPlan::measure(view, &weights, 1.0, ClassSpacing(0.5), &Tuning::default());
        let unit = 1 << plan.row_shift;
        assert_eq!(i32::from(plan.row_scale[0] - plan.row_scale[255]), 2 * unit);
        assert_eq!(plan.column_class[0] - plan.column_class[255], 2);
        let flat = TensorPlan::measure(view, &weights, 0.0, ClassSpacing(0.5), &Tuning::default());
        assert!(flat.row_scale.is_empty());
        assert_eq!(flat.row_class[0] - flat.row_class[255], 4);
    }
}
