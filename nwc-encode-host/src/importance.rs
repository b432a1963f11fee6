//! How much the inputs of linear layers matter, and the steps that follow from it.
//!
//! A layer's output error is `tr(E H E^T)`, with `H = E[x x^T]` of its inputs: an error of input k counts `H_kk` times. At a given rate it is least if the steps of inputs are
//! proportional to `1/sqrt(H_kk)` (reverse water-filling); the paper (arXiv 2510.11234) has four levels in place of that.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use nwc_decode_core::DType;

use crate::compress::WantedSteps;
use crate::model::Model;
use crate::progress::Progress;
use crate::tensors::to_f32;
use crate::{Error, Result};

/// How steps follow importance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// All inputs of a tensor have the same; importance only weighs the errors that are reported.
    None,
    /// The paper's four levels.
    Levels,
    /// Proportional to `1/sqrt(H_kk)`.
    Continuous,
}

/// What follows a tensor's name in the name of its outputs' importance: squared gradients, summed over a sample.
pub(crate) const OUTPUTS: &str = "/outputs";
/// The same of tables that are looked up: summed over a row, and over a column.
pub(crate) const ROWS: &str = "/rows";
pub(crate) const COLUMNS: &str = "/columns";
/// The part of how much a table's rows matter that is shared out evenly among them: what the data say of each is an estimate.
const UNSEEN: f32 = 0.1;
/// What the name of an expert's own moments begins with where the mixture's stand in for them: it is kept for merging.
pub(crate) const OWN: &str = "nwc.own:";
/// The entry of the metadata that says which tensors have the H of another: a JSON object of names.
pub(crate) const SHARED: &str = "nwc.shared";
/// Added to a diagonal whose mean is 1, so that an input that was never seen keeps a finite step (the release's damping).
const DAMPING: f64 = 0.01;
/// Parts of a tensor's inputs that have the levels 3, 2 and 1, the most important first.
pub(crate) const LEVEL_PARTS: [f64; 3] = [0.001, 0.01, 0.1];
/// What a bit of the levels 0 to 3 costs in the paper's loss: an error may be as large in proportion.
pub(crate) const LEVEL_COSTS: [f64; 4] = [3.4, 1.2, 0.1, 0.05];

/// Diagonals of H by the names of tensors.
#[derive(Debug, Clone)]
pub struct Importance {
    steps: Steps,
    diagonals: HashMap<String, Vec<f32>>,
    /// How much outputs matter, by the names of tensors.
    outputs: HashMap<String, Vec<f32>>,
    /// The file with the whole matrices, if it has any.
    matrices: Option<Arc<Matrices>>,
}

/// Whole H in a file, by the names of tensors.
#[derive(Debug)]
struct Matrices {
    file: Model,
    by_name: HashMap<String, usize>,
}

/// One of the H of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MatrixId<'a> {
    /// Its tensor's name.
    pub name: &'a str,
    /// Which one of a stack.
    pub number: usize,
    /// Its number of rows, and of columns.
    pub inputs: usize,
}

impl Importance {
    /// Of diagonals `[in]` by the names of the tensors `[out, in]` whose inputs they are of.
    ///
    /// # Errors
    /// Names the tensor whose diagonal is empty, not finite, negative, or zero all over.
    pub fn new(steps: Steps, diagonals: HashMap<String, Vec<f32>>) -> Result<Self> {
        for (name, diagonal) in &diagonals {
            let problem = if diagonal.iter().any(|value| !value.is_finite()) {
                "holds NaN or infinity"
            } else if diagonal.iter().any(|value| *value < 0.0) {
                "is negative somewhere"
            } else if diagonal.iter().all(|value| *value == 0.0) {
                "is zero all over"
            } else {
                continue;
            };
            return Err(Error::input(format!("its diagonal of importance {problem}"))
                .tensor(name)
                .remedy("calibrate again, or leave it out of the file"));
        }
        Ok(Self { steps, diagonals, outputs: HashMap::new(), matrices: None })
    }

    /// Reads a .safetensors file: for the tensors that it names, a diagonal `[in]`, a whole H `[in, in]` or one for each of a stack of matrices, `[batch, in]` or `[batch, in, in]`, of which the mean
    /// of the diagonals counts, as F32, F16 or BF16. Its metadata may say which other tensors have the same.
    ///
    /// # Errors
    /// What is wrong with the file, or as [`new`](Self::new).
    pub fn open(path: &Path, steps: Steps) -> Result<Self> {
        let file = Model::open(path)?;
        let (mut diagonals, mut outputs, mut by_name) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (mut rows, mut columns) = (HashMap::new(), HashMap::new());
        for (index, tensor) in file.tensors().iter().enumerate() {
            let bad = |problem: String| {
                let remedy = "give a diagonal [in] or a matrix [in, in] of F32 for each linear layer";
                Error::input(problem).file(path).tensor(&tensor.name).remedy(remedy)
            };
            if !matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16) {
                return Err(bad(format!("is of type {}", tensor.dtype)));
            }
            if tensor.name.starts_with(OWN) {
                continue;
            }
            // How many values one H has, and how far apart those of its diagonal are.
            let is_outputs = tensor.name.ends_with(OUTPUTS);
            let (inputs, all, apart) = match tensor.shape[..] {
                [inputs] => (inputs, inputs, 1),
                [_, outputs] if is_outputs => (outputs, outputs, 1),
                [batch, inputs] if batch != inputs => (inputs, inputs, 1),
                [a, b] | [_, a, b] if a == b => (a, a * a, a + 1),
                _ => return Err(bad(format!("has the shape {:?}", tensor.shape))),
            };
            if apart > 1 {
                by_name.insert(tensor.name.clone(), index);
            }
            let size = tensor.dtype.size();
            let parts = file.bytes(index).chunks_exact((all * size).max(1));
            let count = parts.len() as f32;
            let mut values = vec![0.0; inputs];
            for part in parts {
                let bytes: Vec<u8> = part.chunks_exact(size).step_by(apart).flatten().copied().collect();
                for (sum, value) in values.iter_mut().zip(to_f32(tensor.dtype, &bytes)) {
                    *sum += value / count;
                }
            }
            let kinds = [(OUTPUTS, &mut outputs), (ROWS, &mut rows), (COLUMNS, &mut columns)];
            let kind =
                kinds.into_iter().find_map(|(suffix, all)| Some((tensor.name.strip_suffix(suffix)?, all)));
            let (name, all) = kind.unwrap_or((&tensor.name, &mut diagonals));
            all.insert(name.to_owned(), values);
        }
        for (name, first) in shared(&file).map_err(|error| error.file(path))? {
            let Some(diagonal) = diagonals.get(&first).cloned() else {
                return Err(Error::input(format!("is said to have the H of {first:?}, which is not there"))
                    .file(path)
                    .tensor(name)
                    .remedy("calibrate again"));
            };
            by_name.get(&first).copied().map(|index| by_name.insert(name.clone(), index));
            diagonals.insert(name, diagonal);
        }
        add_tables(rows, columns, &mut diagonals, &mut outputs);
        // Of experts that were sent no tokens nothing is known.
        outputs.retain(|_, values| values.iter().any(|value| *value != 0.0));
        if let Some((name, _)) =
            outputs.iter().find(|(_, values)| values.iter().any(|v| !(v.is_finite() && *v >= 0.0)))
        {
            return Err(Error::input("how much its outputs matter holds NaN, infinity or negative numbers")
                .file(path)
                .tensor(name)
                .remedy("calibrate again"));
        }
        let importance = Self::new(steps, diagonals).map_err(|error| error.file(path))?;
        Ok(Self { outputs, matrices: Some(Arc::new(Matrices { file, by_name })), ..importance })
    }

    /// The number of inputs of a tensor, if anything is known of them.
    pub fn inputs(&self, name: &str) -> Option<usize> {
        self.diagonals.get(name).map(Vec::len)
    }

    /// The whole H of the inputs of a tensor's `batch` matrices, or one for all of them, if there are any: those of the first of the tensors that share them.
    ///
    /// # Errors
    /// They are of another number of inputs or of matrices.
    pub fn matrices(&self, name: &str, inputs: usize, batch: usize) -> Result<Vec<MatrixId<'_>>> {
        self.diagonal(name, inputs)?;
        let Some((file, &index)) =
            self.matrices.as_ref().and_then(|matrices| Some((&matrices.file, matrices.by_name.get(name)?)))
        else {
            return Ok(Vec::new());
        };
        let tensor = &file.tensors()[index];
        let count = if tensor.shape.len() == 2 { 1 } else { tensor.shape[0] };
        if count != 1 && count != batch {
            return Err(Error::input(format!(
                "has {batch} matrices, the file of Hessians has {count} for it"
            ))
            .tensor(name)
            .remedy("give the importance of this very model"));
        }
        Ok((0..batch)
            .map(|matrix| MatrixId { name: &tensor.name, number: matrix.min(count - 1), inputs })
            .collect())
    }

    /// One whole H `[in, in]`, row-major.
    ///
    /// # Errors
    /// It holds NaN or infinity.
    pub fn matrix(&self, id: MatrixId<'_>) -> Result<Vec<f32>> {
        let Matrices { file, by_name } = &**self.matrices.as_ref().expect("who has an id had it from there");
        let index = by_name[id.name];
        let dtype = file.tensors()[index].dtype;
        let bytes = id.inputs * id.inputs * dtype.size();
        let h = to_f32(dtype, &file.bytes(index)[id.number * bytes..][..bytes]);
        if h.iter().all(|value| value.is_finite()) {
            return Ok(h);
        }
        Err(Error::input("its H holds NaN or infinity")
            .tensor(id.name)
            .remedy("calibrate again, or leave it out of the file"))
    }

    /// The diagonal of a tensor's inputs, if there is one.
    ///
    /// # Errors
    /// It is of another number of inputs.
    pub fn diagonal(&self, name: &str, inputs: usize) -> Result<Option<&[f32]>> {
        match self.diagonals.get(name) {
            Some(diagonal) if diagonal.len() != inputs => Err(Error::input(format!(
                "has {inputs} inputs, its diagonal of importance {}",
                diagonal.len()
            ))
            .tensor(name)
            .remedy("give the importance of this very model")),
            found => Ok(found.map(Vec::as_slice)),
        }
    }

    /// The same, but nothing of outputs.
    #[must_use]
    pub fn without_outputs(self) -> Self {
        Self { outputs: HashMap::new(), ..self }
    }

    /// How steps follow it.
    pub fn steps(&self) -> Steps {
        self.steps
    }

    /// Says which names are of no tensor of the `model`.
    pub(crate) fn warn_of_strangers<'a>(
        &self,
        model: impl Iterator<Item = &'a str>,
        progress: &dyn Progress,
    ) {
        let known: HashSet<&str> = model.collect();
        let names = self.diagonals.keys().map(String::as_str);
        let mut strangers: Vec<&str> = names.filter(|name| !known.contains(name)).collect();
        strangers.sort_unstable();
        if let Some(first) = strangers.first() {
            let count = strangers.len();
            progress
                .warn(&format!("{count} tensors of the importance are not of this model, {first:?} first"));
        }
    }

    /// How much the outputs of a tensor matter, if that is known.
    ///
    /// # Errors
    /// It is of another number of outputs.
    pub(crate) fn outputs(&self, name: &str, outputs: usize) -> Result<Option<&[f32]>> {
        match self.outputs.get(name) {
            Some(found) if found.len() != outputs => Err(Error::input(format!(
                "has {outputs} outputs, the file of Hessians knows of {}",
                found.len()
            ))
            .tensor(name)
            .remedy("give the importance of this very model")),
            found => Ok(found.map(Vec::as_slice)),
        }
    }

    /// The steps that a tensor is to have. `remaining` is D of H = U D U^T if errors are made good by later inputs: what an error then costs; or one for each of a stack of matrices.
    /// Nobody knows how often each of those is needed, so that the steps of none are finer than the others' on average.
    pub(crate) fn steps_of(
        &self,
        diagonal: &[f32],
        remaining: &[&[f64]],
        outputs: Option<&[f32]>,
    ) -> WantedSteps {
        match self.steps {
            Steps::None => WantedSteps::default(),
            Steps::Levels => {
                let octave = LEVEL_COSTS.map(|cost| 0.5 * (cost / LEVEL_COSTS[0]).log2());
                let inputs = levels(diagonal).into_iter().map(|level| octave[usize::from(level)]).collect();
                WantedSteps { inputs, outputs: Vec::new() }
            }
            Steps::Continuous => {
                let octave = |cost: f64| -0.5 * cost.log2();
                let damped = |values: &[f32]| -> Vec<f64> {
                    let mean = values.iter().map(|&h| f64::from(h)).sum::<f64>() / values.len() as f64;
                    values.iter().map(|&h| octave(f64::from(h) + DAMPING * mean)).collect()
                };
                let octaves: Vec<Vec<f64>> = remaining
                    .iter()
                    .map(|remaining| remaining.iter().map(|&d| octave(d)).collect())
                    .collect();
                let mean = |octaves: &[f64]| octaves.iter().sum::<f64>() / octaves.len() as f64;
                let means: Vec<f64> = octaves.iter().map(|octaves| mean(octaves)).collect();
                let inputs = match octaves.len() {
                    0 => damped(diagonal),
                    1 => octaves.concat(),
                    _ => {
                        let centre = mean(&means);
                        let of_one = |(octaves, mean): (Vec<f64>, f64)| {
                            octaves.into_iter().map(move |octave| octave - mean + centre)
                        };
                        octaves.into_iter().zip(means).flat_map(of_one).collect()
                    }
                };
                WantedSteps { inputs, outputs: outputs.map_or(Vec::new(), damped) }
            }
        }
    }
}

/// Adds tables that are looked up, of which rows and columns are known: columns are inputs, rows outputs.
fn add_tables(
    mut rows: HashMap<String, Vec<f32>>,
    columns: HashMap<String, Vec<f32>>,
    diagonals: &mut HashMap<String, Vec<f32>>,
    outputs: &mut HashMap<String, Vec<f32>>,
) {
    for (name, columns) in columns {
        let Some(rows) = rows.remove(&name) else { continue };
        // Other texts have tokens that these data had not (ADR 14).
        let mean = rows.iter().sum::<f32>() / rows.len() as f32;
        let inputs = diagonals.entry(name.clone()).or_insert(columns);
        let scale = inputs.iter().map(|&input| f64::from(input)).sum::<f64>().recip();
        let expected = |row: &f32| f64::from(UNSEEN.mul_add(mean - row, *row));
        let rows: Vec<f32> = rows.iter().map(|row| (expected(row) * scale) as f32).collect();
        match outputs.get_mut(&name) {
            // It is the output layer too: errors of a row count in both.
            Some(outputs) => outputs.iter_mut().zip(rows).for_each(|(sum, row)| *sum += row),
            None => drop(outputs.insert(name, rows)),
        }
    }
}

/// Names whose tensors have the same inputs as another's, and that.
fn shared(file: &Model) -> Result<HashMap<String, String>> {
    let metadata = file.files().first().and_then(|file| file.metadata.as_ref());
    match metadata.and_then(|metadata| metadata.get(SHARED)) {
        None => Ok(HashMap::new()),
        Some(text) => serde_json::from_str(text).map_err(|error| {
            Error::input(format!("its metadata {SHARED:?} is no map of names: {error}"))
                .source(error)
                .remedy("calibrate again")
        }),
    }
}

/// The paper's level of each input: 3 for the 0.1 % that matter most, 2 for the next 1 %, 1 for the next 10 %, and 0.
pub fn levels(diagonal: &[f32]) -> Vec<u8> {
    let mut order: Vec<usize> = (0..diagonal.len()).collect();
    // Equals in their order, so that the levels do not depend on how a sort works.
    order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
    let mut levels = vec![0; diagonal.len()];
    let (mut first, mut part) = (0, 0.0);
    for (level, more) in [3, 2, 1].into_iter().zip(LEVEL_PARTS) {
        part += more;
        let end = (part * diagonal.len() as f64).round() as usize;
        order[first..end].iter().for_each(|&input| levels[input] = level);
        first = end;
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_the_papers_parts() {
        let diagonal: Vec<f32> = (0..10_000).map(|i| ((i * 7919) % 10_000) as f32).collect();
        let levels = levels(&diagonal);
        let count = |level: u8| levels.iter().map(|&l| usize::from(l == level)).sum::<usize>();
        assert_eq!([count(3), count(2), count(1), count(0)], [10, 100, 1000, 8890]);
        let least = |level: u8| {
            let of_level = diagonal.iter().zip(&levels).filter(|(_, l)| **l == level);
            of_level.map(|(&h, _)| h).fold(f32::MAX, f32::min)
        };
        assert_eq!([3, 2, 1].map(|level| least(level) as u32), [9990, 9890, 8890]);
    }

    #[test]
    fn steps_are_the_inverse_root_of_importance() {
        let of = |steps| Importance::new(steps, HashMap::new()).unwrap();
        let steps = of(Steps::Continuous).steps_of(&[400.0, 100.0, 25.0], &[], Some(&[1.0, 4.0]));
        // But for the damping.
        let octaves = steps.inputs;
        assert!((octaves[1] - octaves[0] - 1.0).abs() < 0.05 && (octaves[2] - octaves[1] - 1.0).abs() < 0.1);
        assert!((steps.outputs[0] - steps.outputs[1] - 1.0).abs() < 0.05);
        let stack: [&[f64]; 2] = [&[1.0, 16.0], &[64.0, 64.0]];
        let stacked = of(Steps::Continuous).steps_of(&[1.0; 2], &stack, None).inputs;
        assert_eq!(stacked, [-1.0, -3.0, -2.0, -2.0].map(|octave| octave + 0.0));
        let levels = of(Steps::Levels).steps_of(&[1.0; 4], &[], None);
        assert!(levels.inputs.iter().all(|&octave| octave == 0.0));
    }

    #[test]
    fn a_table_that_is_the_output_layer_too_counts_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h.safetensors");
        let tensors: [(&str, Vec<usize>, Vec<f32>); 6] = [
            ("tied", vec![2, 2], vec![6.0, 1.0, 1.0, 2.0]),
            ("tied/outputs", vec![3], vec![1.0, 2.0, 0.0]),
            ("tied/rows", vec![3], vec![0.0, 8.0, 16.0]),
            ("tied/columns", vec![2], vec![4.0, 20.0]),
            ("free/rows", vec![3], vec![0.0, 8.0, 16.0]),
            ("free/columns", vec![2], vec![4.0, 20.0]),
        ];
        let bytes = tensors.each_ref().map(|(.., values)| bytemuck::cast_slice::<f32, u8>(values));
        let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
            (
                *name,
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        });
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let importance = Importance::open(&path, Steps::Continuous).unwrap();
        assert_eq!(importance.diagonal("tied", 2).unwrap(), Some(&[6.0, 2.0][..]));
        let close = |name: &str, expected: [f32; 3]| {
            let found = importance.outputs(name, 3).unwrap().unwrap();
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
        };
        // Rows share a tenth, and are divided by the sum of the inputs' diagonal.
        close("tied", [1.1, 3.0, 1.9]);
        // Of one that is only looked up, what is known are its rows' and its columns' shares.
        assert_eq!(importance.diagonal("free", 2).unwrap(), Some(&[4.0, 20.0][..]));
        close("free", [0.8, 8.0, 15.2].map(|row| row / 24.0));
        assert!(importance.matrices("free", 2, 1).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_importance_is_refused_by_name() {
        for bad in [vec![1.0, f32::NAN], vec![1.0, -1.0], vec![0.0, 0.0], vec![]] {
            let error = Importance::new(Steps::Levels, HashMap::from([("q_proj".to_owned(), bad)]));
            assert!(error.unwrap_err().to_string().contains("q_proj"));
        }
        let good = HashMap::from([("q_proj".to_owned(), vec![1.0; 4])]);
        let importance = Importance::new(Steps::Levels, good).unwrap();
        assert_eq!(importance.diagonal("k_proj", 3).unwrap(), None);
        assert_eq!(importance.diagonal("q_proj", 4).unwrap(), Some(&[1.0; 4][..]));
        assert!(importance.diagonal("q_proj", 5).is_err());
    }
}
