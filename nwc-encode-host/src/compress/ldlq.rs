//! LDLQ: what a column lost is made good by those that are coded after it.
//!
//! With `H = E[x x^T]` of its inputs a layer's output error is `tr(E H E^T)`, E `[out, in]` the error of its weights. With `H = U D U^T`, U upper triangular with a diagonal
//! of ones, that is the sum over columns of `D_k |e_k + sum over j < k of e_j U_jk|^2`. So column k is not coded as it is, but with what the columns before it lost, times
//! U's column k, added: then `D_k` times its squared error is its whole share (the paper's section on error compensation, which codes from the last column to the first; GPTQ's
//! order is ours).

use std::collections::HashMap;
use std::io::Write;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use half::{bf16, f16};
use memmap2::Mmap;
use nwc_decode_core::{DType, Element};
use rayon::prelude::*;

use super::encode::{Group, TensorCoder};
use super::job::cannot_spool;
use crate::coding::search::LANES;
use crate::importance::MatrixId;
use crate::{Error, Result};

/// Parts of the mean of H's diagonal that are added to it, until it has a factor: the paper's first.
const DAMPING: [f64; 4] = [0.01, 0.03, 0.1, 1.0];

/// The factors of all H that there are, in a temporary file: of wide layers they take more than the weights.
#[derive(Debug)]
pub(super) struct Factors {
    map: Option<Mmap>,
    by_name: HashMap<(String, usize), Entry>,
}

#[derive(Debug)]
struct Entry {
    offset: usize,
    diagonal: Vec<f64>,
    damping: f64,
}

/// H = U D U^T.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factor<'a> {
    /// D.
    pub(super) diagonal: &'a [f64],
    /// U, row-major.
    upper: &'a [f32],
    /// The part of H's mean diagonal that was added to it.
    pub(super) damping: f64,
}

impl Factors {
    /// Factors `[in, in]` matrices, which `load` fetches.
    pub(super) fn new<'a>(
        ids: &[MatrixId<'a>],
        load: impl Fn(MatrixId<'a>) -> Result<Vec<f32>> + Sync,
        done: impl Fn(usize) -> Result<()> + Sync,
    ) -> Result<Self> {
        let mut file = tempfile::tempfile().map_err(cannot_spool)?;
        let mut by_name = HashMap::new();
        let mut offset = 0;
        // As many at a time as there are threads: each takes some copies of H in double precision.
        for ids in ids.chunks(rayon::current_num_threads()) {
            let factored: Vec<_> = ids
                .par_iter()
                .map(|&id| {
                    let factored = factor(&load(id)?, id.inputs).map_err(|error| error.tensor(id.name))?;
                    done(id.inputs)?;
                    Ok(factored)
                })
                .collect::<Result<_>>()?;
            for (id, (diagonal, upper, damping)) in ids.iter().zip(factored) {
                file.write_all(bytemuck::cast_slice(&upper)).map_err(cannot_spool)?;
                by_name.insert((id.name.to_owned(), id.number), Entry { offset, diagonal, damping });
                offset += upper.len() * size_of::<f32>();
            }
        }
        // SAFETY: the file is ours and has no name; nothing else writes to it while it is mapped.
        let map = if offset == 0 { None } else { Some(unsafe { Mmap::map(&file) }.map_err(cannot_spool)?) };
        Ok(Self { map, by_name })
    }

    /// One of them.
    pub(super) fn get(&self, id: MatrixId<'_>) -> Option<Factor<'_>> {
        let Entry { offset, diagonal, damping } = self.by_name.get(&(id.name.to_owned(), id.number))?;
        let bytes = &self.map.as_ref()?[*offset..][..diagonal.len() * diagonal.len() * size_of::<f32>()];
        Some(Factor { diagonal, upper: bytemuck::cast_slice(bytes), damping: *damping })
    }
}

/// D, U row-major, and the damping that it took.
fn factor(h: &[f32], inputs: usize) -> Result<(Vec<f64>, Vec<f32>, f64)> {
    let at = |j: usize, k: usize| f64::from(h[j * inputs + k]);
    let mean = (0..inputs).map(|k| at(k, k)).sum::<f64>() / inputs as f64;
    for damping in DAMPING {
        // From the last to the first, for faer's factor is a lower one. Sums differ by their order in H's two halves.
        let flipped = Mat::from_fn(inputs, inputs, |j, k| {
            let (j, k) = (inputs - 1 - j, inputs - 1 - k);
            0.5 * (at(j, k) + at(k, j)) + if j == k { damping * mean } else { 0.0 }
        });
        let Ok(ldlt) = flipped.ldlt(Side::Lower) else { continue };
        let (lower, pivots) = (ldlt.L(), ldlt.D().column_vector());
        let diagonal: Vec<f64> = (0..inputs).rev().map(|k| pivots[k]).collect();
        // What rounding leaves of a pivot that should be zero is no measure of anything.
        if !diagonal.iter().all(|pivot| *pivot > 1e-3 * damping * mean) {
            continue;
        }
        let mut upper = vec![0.0; inputs * inputs];
        for (j, row) in upper.chunks_exact_mut(inputs).enumerate() {
            for (k, value) in row.iter_mut().enumerate().skip(j) {
                *value = lower[(inputs - 1 - j, inputs - 1 - k)] as f32;
            }
        }
        return Ok((diagonal, upper, damping));
    }
    Err(Error::input("its H is not positive, whatever is added to its diagonal")
        .remedy("calibrate again, or leave it out of the file"))
}

/// A band of a tensor being coded, column by column, and what was lost so far.
#[derive(Debug)]
pub(super) struct Feedback<'a> {
    coder: &'a TensorCoder<'a>,
    factor: Factor<'a>,
    dtype: DType,
    /// Whether columns are coded with what is to be made good added to them.
    closed: bool,
    rows: usize,
    /// Weights less what a decoder makes of them, column after column.
    errors: Vec<f32>,
    /// `sum of D_k |...|^2` so far: `tr(E H E^T)` in the end.
    pub(super) lost: f64,
    // Of a group of columns, column after column.
    weights: Vec<f32>,
    targets: Vec<f32>,
    latents: Vec<f32>,
    made: Vec<f32>,
}

impl<'a> Feedback<'a> {
    /// For a band of so many rows, of which nothing is coded yet. If it is not `closed`, columns are coded as they are, to see what is lost then.
    pub(super) fn new(
        coder: &'a TensorCoder<'a>,
        factor: Factor<'a>,
        dtype: DType,
        rows: usize,
        closed: bool,
    ) -> Self {
        Self {
            coder,
            factor,
            dtype,
            closed,
            rows,
            errors: Vec::new(),
            lost: 0.0,
            weights: Vec::new(),
            targets: Vec::new(),
            latents: vec![0.0; rows],
            made: vec![0.0; rows],
        }
    }

    /// Codes the next group of columns: `choose` is called for each of them with what is to be quantised, and gives indices for that.
    pub(super) fn code(
        &mut self,
        tensor: &[f32],
        group: &Group,
        mut choose: impl FnMut(usize, &[f32], &mut [i32]),
        indices: &mut [i32],
    ) {
        let (rows, inputs) = (self.rows, self.factor.diagonal.len());
        let places = rows * group.lanes;
        let view = &self.coder.plan.view;
        self.weights.resize(places, 0.0);
        let (row_stride, column_stride) = view.strides();
        let from = &tensor[view.position(group.batch, group.first_row, group.first_column)..];
        for row in 0..rows {
            let from = from[row * row_stride..].iter().step_by(column_stride);
            for (lane, &weight) in from.take(group.lanes).enumerate() {
                self.weights[lane * rows + row] = weight;
            }
        }
        self.targets.clear();
        self.targets.extend_from_slice(&self.weights);
        let first = group.first_column;
        add_feedback(&mut self.targets, &self.errors, self.factor.upper, rows, inputs, first);

        let mut column_indices = vec![0; rows];
        for lane in 0..group.lanes {
            let column = first + lane;
            let target = &self.targets[lane * rows..][..rows];
            let (row_inverse, column_inverse) = self.coder.inverses(group, lane);
            let wanted = if self.closed { target } else { &self.weights[lane * rows..][..rows] };
            for ((latent, wanted), row) in self.latents.iter_mut().zip(wanted).zip(row_inverse) {
                *latent = wanted * (row * column_inverse);
            }
            let transform = &self.coder.plan.transform;
            transform.analyse_column(&mut self.latents);
            choose(lane, &self.latents, &mut column_indices);
            transform.reconstruct_column(&column_indices, &mut self.made);
            indices
                .iter_mut()
                .skip(lane)
                .step_by(LANES)
                .zip(&column_indices)
                .for_each(|(to, from)| *to = *from);

            let (row_step, column_step) = self.coder.steps(group, lane);
            let mut lost = 0.0;
            let made = self.made.iter().zip(row_step);
            for (((made, row), target), weight) in made.zip(target).zip(&self.weights[lane * rows..]) {
                let made = decoded(self.dtype, *made, row * column_step);
                self.errors.push(weight - made);
                lost += f64::from(target - made).powi(2);
            }
            self.lost += self.factor.diagonal[column] * lost;
            let (error, upper) =
                (&self.errors[column * rows..], &self.factor.upper[column * inputs..][..inputs]);
            for (later, targets) in self.targets.chunks_exact_mut(rows).enumerate().skip(lane + 1) {
                let factor = upper[first + later];
                targets.iter_mut().zip(error).for_each(|(target, error)| *target += factor * error);
            }
        }
    }
}

/// Adds to the columns from `first` on, `targets`, what those before it lost, times U.
fn add_feedback(
    targets: &mut [f32],
    errors: &[f32],
    upper: &[f32],
    rows: usize,
    inputs: usize,
    first: usize,
) {
    if first == 0 {
        return;
    }
    let columns = targets.len() / rows;
    let upper = MatRef::from_row_major_slice(&upper[..first * inputs], first, inputs);
    matmul(
        MatMut::from_column_major_slice_mut(targets, rows, columns),
        Accum::Add,
        MatRef::from_column_major_slice(&errors[..first * rows], rows, first),
        upper.subcols(first, columns),
        1.0,
        Par::Seq,
    );
}

/// What a decoder makes of a value in units of its step (docs/bitstream.md §10.3 and 10.4). `step` is a product of two scales.
pub(super) fn decoded(dtype: DType, value: f32, step: f32) -> f32 {
    let finite = |x: f32| x.clamp(f32::MIN, f32::MAX);
    let weight = finite(value * finite(step));
    match dtype {
        DType::F16 => <f16 as Element>::from_f32(weight).to_f32(),
        DType::BF16 => <bf16 as Element>::from_f32(weight).to_f32(),
        _ => weight,
    }
}

#[cfg(test)]
mod tests {
    use nwc_decode_core::SCALE_CODE_MAX;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::plan::{ClassSpacing, TensorPlan, WantedSteps};
    use super::super::{Tuning, View};
    use super::*;
    use crate::coding::transform::Transform;
    use crate::synthetic::Source;

    /// H `[in, in]` of inputs that have much in common.
    fn hessian(inputs: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut h = vec![0.0; inputs * inputs];
        for _ in 0..2 * inputs {
            let common: f32 = rng.random_range(-1.0..1.0);
            let x: Vec<f32> =
                (0..inputs).map(|k| common + rng.random_range(-1.0..1.0) * (1.0 + k as f32 % 3.0)).collect();
            for (row, a) in h.chunks_exact_mut(inputs).zip(&x) {
                row.iter_mut().zip(&x).for_each(|(sum, b)| *sum += a * b / (2 * inputs) as f32);
            }
        }
        h
    }

    fn damped(h: &[f32], inputs: usize, damping: f64) -> Vec<f64> {
        let mean = (0..inputs).map(|k| f64::from(h[k * inputs + k])).sum::<f64>() / inputs as f64;
        let more = |at: usize| if at / inputs == at % inputs { damping * mean } else { 0.0 };
        h.iter().enumerate().map(|(at, &value)| f64::from(value) + more(at)).collect()
    }

    #[test]
    fn factors_multiply_to_h() {
        for inputs in 1..=64 {
            let h = hessian(inputs, inputs as u64);
            let (diagonal, upper, damping) = factor(&h, inputs).unwrap();
            assert!((damping - DAMPING[0]).abs() < 1e-12 && diagonal.iter().all(|&pivot| pivot > 0.0));
            let want = damped(&h, inputs, damping);
            let largest = want.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
            let u = |j: usize, k: usize| f64::from(upper[j * inputs + k]);
            for (at, want) in want.iter().enumerate() {
                let (j, k) = (at / inputs, at % inputs);
                let made: f64 = (0..inputs).map(|i| u(j, i) * diagonal[i] * u(k, i)).sum();
                assert!((made - want).abs() < 1e-5 * largest, "{inputs} inputs: {made}, not {want}");
                assert!(if j > k { upper[at] == 0.0 } else { j < k || (upper[at] - 1.0).abs() < 1e-7 });
            }
        }
    }

    #[test]
    fn what_is_no_h_is_refused_and_what_is_singular_damped() {
        let refused = factor(&[1.0, 3.0, 3.0, 1.0], 2);
        assert!(refused.unwrap_err().to_string().contains("not positive"));
        // Inputs that are always the same, and one that is never anything.
        let (diagonal, _, damping) = factor(&[1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], 3).unwrap();
        assert!((damping - DAMPING[0]).abs() < 1e-12 && diagonal.iter().all(|&pivot| pivot > 0.0));
    }

    /// Column by column as the definition has it, in double precision: what is to be coded is the column, and what was lost before it times U.
    #[test]
    fn feedback_is_that_of_the_definition() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for (inputs, dtype, transform) in (1..=64)
            .zip(
                [DType::F32, DType::F16, DType::BF16]
                    .into_iter()
                    .zip([Transform::Identity, Transform::Hadamard])
                    .cycle(),
            )
            .map(|(inputs, (dtype, transform))| (inputs, dtype, transform))
        {
            let rows = if transform == Transform::Identity { 7 } else { 32 };
            let h = hessian(inputs, 7);
            let (diagonal, upper, damping) = factor(&h, inputs).unwrap();
            let weights = Source::Gaussian.matrix(rows, inputs, inputs as u64);
            let view = View {
                batch: 1,
                rows,
                columns: inputs,
                transposed: false,
                batched: false,
                inputs_first: false,
            };
            let wanted = WantedSteps {
                inputs: (0..inputs).map(|k| f64::from(k as u32 % 3) - 1.0).collect(),
                outputs: Vec::new(),
            };
            let tuning = Tuning { scale_shift: Some(1), ..Tuning::default() };
            let mut plan = TensorPlan::measure(view, &weights, &wanted, 1.0, ClassSpacing(0.5), &tuning);
            plan.transform = transform;
            let coder = TensorCoder::new(&plan, -200, 0);
            let factor = Factor { diagonal: &diagonal, upper: &upper, damping };
            let mut feedback = Feedback::new(&coder, factor, dtype, rows, true);
            let mut errors = vec![0.0f64; rows * inputs];
            for tile in 0..plan.tiles() {
                for group in coder.tile_groups(tile) {
                    let mut indices = vec![0; rows * LANES];
                    let choose = |lane: usize, latents: &[f32], indices: &mut [i32]| {
                        let column = group.first_column + lane;
                        let mut target: Vec<f32> = (0..rows)
                            .map(|row| {
                                let before = |j: usize| {
                                    errors[row * inputs + j] * f64::from(upper[j * inputs + column])
                                };
                                let fed: f64 = (0..column).map(before).sum();
                                (f64::from(weights[row * inputs + column]) + fed) as f32
                            })
                            .collect();
                        let (row_step, column_step) = coder.steps(&group, lane);
                        for (target, row) in target.iter_mut().zip(row_step) {
                            *target /= row * column_step;
                        }
                        plan.transform.analyse_column(&mut target);
                        for (got, want) in latents.iter().zip(&target) {
                            assert!((got - want).abs() < 1e-3 * (1.0 + want.abs()), "{got}, not {want}");
                        }
                        // Any indices will do: the feedback is for what was chosen.
                        for (index, latent) in indices.iter_mut().zip(latents) {
                            *index = latent.round() as i32 + i32::from(rng.random_bool(0.1));
                        }
                        let mut made = vec![0.0; rows];
                        plan.transform.reconstruct_column(indices, &mut made);
                        for (row, (made, step)) in made.iter().zip(row_step).enumerate() {
                            let made = f64::from(decoded(dtype, *made, step * column_step));
                            errors[row * inputs + column] = f64::from(weights[row * inputs + column]) - made;
                        }
                    };
                    feedback.code(&weights, &group, choose, &mut indices);
                }
            }
            let h = damped(&h, inputs, damping);
            let mut lost = 0.0;
            for error in errors.chunks_exact(inputs) {
                for (j, a) in error.iter().enumerate() {
                    lost += error.iter().enumerate().map(|(k, b)| a * h[j * inputs + k] * b).sum::<f64>();
                }
            }
            assert!(
                (feedback.lost - lost).abs() < 1e-3 * lost,
                "{inputs} inputs: {}, not {lost}",
                feedback.lost
            );
        }
    }

    #[test]
    fn what_is_decoded_is_finite_and_of_the_type() {
        let third = 1.0 + f32::from(f16::EPSILON) / 3.0;
        for (dtype, value, step, want) in [
            (DType::F32, 3.0, f32::MAX, f32::MAX),
            (DType::F16, -7e4, 1.0, -65504.0),
            (DType::BF16, f32::MAX, 1.0, bf16::MAX.to_f32()),
            (DType::F16, 1.0, third, 1.0),
        ] {
            assert_eq!(decoded(dtype, value, step).to_bits(), f32::to_bits(want), "{dtype:?}");
        }
        assert!(nwc_decode_core::scale(SCALE_CODE_MAX).unwrap() < f32::MAX);
    }
}
