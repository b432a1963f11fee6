//! The paper's codec in containers: tensors hold its latents, which are integers, and attachments what makes weights of them.
//!
//! A tensor `NAME` of matrices `[batch, out, in]` has its rows divided by their deviations and is cut into chunks of 16 neighbouring rows of a column; analysis makes 16 latents of each, which are rounded.
//! The container has a tensor `NAME.latents` in its place, `[16 * batch * ceil(out / 16), in]`: latent j of the chunks of block b is row 16 b + j. It is coded without loss (step 1, identity, scalar
//! quantiser), so every decoder restores the latents alike. The network of the synthesis, in F16, is the attachment `nwc:synthesis`; rows' deviations, columns' levels, and what the tensors were is `nwc:latents`.
//! Weights = synthesis(latents, level) * deviation is for hosts and their GPUs ([docs/adr/0013-latents-in-containers.md]).
//!
//! [docs/adr/0013-latents-in-containers.md]: https://github.com/nwc-codec/nwc/blob/main/docs/adr/0013-latents-in-containers.md

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;

use half::{bf16, f16};
use nwc_decode_core::{Attachment, Coding, Container, DType, Element, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use crate::chunks::CHUNK;
use crate::codec_file::{FloatCodec, read_stored};
use crate::coding::search::Quantiser;
use crate::coding::transform::Transform;
use crate::compress::{Report, Selection, Settings, Target, View, squared_error, weighted_nmse};
use crate::container::attachments_section;
use crate::importance::{Importance, levels};
use crate::model::SafeTensors;
use crate::progress::Progress;
use crate::residual::Residual;
use crate::restore::{damaged, inflate, zeros};
use crate::tensors::{TensorInfo, TensorSource, all_finite, to_f32};
use crate::{Error, Result};

/// The attachment that holds the network; that with the deviations, the levels and the description, which stands in its metadata under the same name.
pub(crate) const NETWORK_ATTACHMENT: &str = "nwc:synthesis";
pub(crate) const TENSORS_ATTACHMENT: &str = "nwc:latents";
/// What a tensor's name ends in where it holds latents.
const SUFFIX: &str = ".latents";
/// In [`TENSORS_ATTACHMENT`]: deviations (BF16) of all rows and levels (U8) of all columns, of one tensor after the other.
const DEVIATIONS: &str = "deviations";
const LEVELS: &str = "levels";
/// Largest magnitude of a latent: what the scalar quantiser finds exactly.
const MOST: f32 = 32_752.0;
/// Chunks that are worked on between two looks at whether to stop.
const SLAB: usize = 1 << 14;

/// Matrices as chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Matrices {
    batch: usize,
    out: usize,
    input: usize,
}

impl Matrices {
    fn new(view: &View) -> Self {
        Self { batch: view.batch, out: view.outputs(), input: view.inputs() }
    }

    fn rows(&self) -> usize {
        self.batch * self.out
    }

    /// Blocks of up to 16 rows.
    fn blocks(&self) -> usize {
        self.batch * self.out.div_ceil(CHUNK)
    }

    /// The dimensions of the latents.
    fn latents(&self) -> [usize; 2] {
        [CHUNK * self.blocks(), self.input]
    }

    /// The rows of a block.
    fn rows_of(&self, block: usize) -> Range<usize> {
        let each = self.out.div_ceil(CHUNK);
        let (matrix, first) = (block / each, block % each * CHUNK);
        matrix * self.out + first..matrix * self.out + (first + CHUNK).min(self.out)
    }

    /// All blocks, some at a time.
    fn slabs(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (blocks, each) = (self.blocks(), (SLAB / self.input).max(1));
        (0..blocks).step_by(each).map(move |first| first..(first + each).min(blocks))
    }
}

/// A tensor on its way into a container.
struct Analysed {
    name: String,
    shape: [usize; 2],
    batched: bool,
    latents: Vec<u8>,
    deviations: Vec<bf16>,
    levels: Vec<u8>,
}

/// The tensors of a container: latents in the place of tensors that are coded.
struct LatentTensors<'a> {
    source: &'a dyn TensorSource,
    coded: Vec<Option<Analysed>>,
}

impl TensorSource for LatentTensors<'_> {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn tensor(&self, index: usize) -> TensorInfo<'_> {
        match &self.coded[index] {
            Some(coded) => TensorInfo { name: &coded.name, dtype: DType::F32, shape: &coded.shape },
            None => self.source.tensor(index),
        }
    }

    fn bytes(&self, index: usize) -> &[u8] {
        self.coded[index].as_ref().map_or_else(|| self.source.bytes(index), |coded| &coded.latents)
    }

    fn view(&self, index: usize, _: &Selection) -> Result<View, &'static str> {
        let coded = self.coded[index].as_ref().ok_or("not one that has latents")?;
        Ok(View::new(&coded.shape, false, false))
    }
}

/// What a tensor of latents was.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    /// Its place in the directory.
    index: usize,
    dtype: String,
    shape: Vec<usize>,
    /// The first dimension is a batch.
    batched: bool,
}

/// Compresses `source` with the paper's codec, as [`crate::compress::compress`] does with others: of `settings`, the selection, the importance and the seek points count. `files` are to be attached.
///
/// Columns have the paper's levels where the importance is known and is to count, and level 0 elsewhere. All latents are in memory at once.
///
/// # Errors
/// Bad input, weights of which the networks make no numbers, or the operating system's.
pub fn compress(
    source: &dyn TensorSource,
    mut files: Vec<(String, Vec<u8>)>,
    codec: &FloatCodec,
    settings: &Settings,
    progress: &dyn Progress,
    out: &mut File,
) -> Result<Report> {
    let views: Vec<Option<View>> = (0..source.len())
        .map(|index| {
            let (view, info) = (source.view(index, &settings.selection).ok()?, source.tensor(index));
            let finite = all_finite(info.dtype, source.bytes(index));
            if !finite {
                progress.warn(&format!("tensor {:?} holds NaN or infinity: stored raw", info.name));
            }
            finite.then_some(view)
        })
        .collect();
    if let Some(importance) = &settings.importance {
        importance.warn_of_strangers((0..source.len()).map(|index| source.tensor(index).name), progress);
    }
    progress.begin("transforming", views.iter().flatten().map(|view| view.elements() as u64).sum());
    let names: HashSet<&str> = (0..source.len()).map(|index| source.tensor(index).name).collect();
    let mut errors: HashMap<usize, (f64, f64, Option<f64>)> = HashMap::new();
    let mut coded: Vec<Option<Analysed>> = Vec::with_capacity(source.len());
    for (index, view) in views.iter().enumerate() {
        let Some(view) = view else {
            coded.push(None);
            continue;
        };
        let info = source.tensor(index);
        let diagonal = settings.importance.as_ref().map(|all| all.diagonal(info.name, view.inputs()));
        let diagonal = diagonal.transpose()?.flatten();
        let levels = levels_of(settings.importance.as_ref(), diagonal, view.inputs(), codec);
        let analysed = analyse(source, index, view, levels, codec, progress);
        let (analysed, restored) = analysed.map_err(|error| error.tensor(info.name))?;
        if names.contains(analysed.name.as_str()) {
            return Err(Error::input(format!("is called as the latents of {:?} would be", info.name))
                .tensor(analysed.name)
                .remedy("rename one of them, or leave one raw with --exclude"));
        }
        let original = source.bytes(index);
        let (error, energy) = squared_error(info.dtype, original, &restored);
        let weighted = diagonal.map(|diagonal| weighted_nmse(info.dtype, original, &restored, diagonal, 1));
        errors.insert(index, (error, energy, weighted));
        coded.push(Some(analysed));
    }
    if errors.is_empty() {
        progress.warn("no tensor is coded: all are small, excluded or of other types");
    } else {
        files.push((NETWORK_ATTACHMENT.to_owned(), codec.stored.clone()));
        files.push((TENSORS_ATTACHMENT.to_owned(), describe(source, &coded)));
    }
    let attachments = attachments_section(&files)
        .map_err(|error| Error::input(format!("cannot compress the attachments: {error}")).source(error))?;
    let latents = LatentTensors { source, coded };
    let exactly = Settings {
        quantiser: Quantiser::Scalar,
        transform: Transform::Identity,
        row_alpha: 0.0,
        exact: true,
        keep_expanding: true,
        seek_rows: settings.seek_rows,
        ..Settings::new(Target::Step(1.0))
    };
    let report = crate::compress::compress(&latents, attachments, &exactly, progress, out)?;
    if report.tensors.iter().any(|tensor| tensor.nmse > 0.0) {
        return Err(Error::input("latents did not come back as they were").remedy("please report this"));
    }
    Ok(of_weights(report, source, &errors))
}

/// The paper's levels of columns, if their importance is known and is to count.
fn levels_of(
    importance: Option<&Importance>,
    diagonal: Option<&[f32]>,
    inputs: usize,
    codec: &FloatCodec,
) -> Vec<u8> {
    use crate::importance::Steps;
    match diagonal {
        Some(diagonal) if importance.is_some_and(|importance| importance.steps() == Steps::Levels) => {
            let last = codec.synthesis.levels().min(codec.analysis.levels()) - 1;
            levels(diagonal).into_iter().map(|level| level.min(last as u8)).collect()
        }
        _ => vec![0; inputs],
    }
}

/// The latents of a tensor, and what decoders will make of them.
fn analyse(
    source: &dyn TensorSource,
    index: usize,
    view: &View,
    levels: Vec<u8>,
    codec: &FloatCodec,
    progress: &dyn Progress,
) -> Result<(Analysed, Vec<u8>)> {
    let info = source.tensor(index);
    let weights = to_f32(info.dtype, source.bytes(index));
    let matrices = Matrices::new(view);
    let deviations: Vec<bf16> = weights.chunks_exact(matrices.input).map(deviation).collect();
    let mut latents = Vec::with_capacity(matrices.latents().iter().product::<usize>() * size_of::<f32>());
    for slab in matrices.slabs() {
        progress.check()?;
        let mut chunks = vec![[0.0; CHUNK]; slab.len() * matrices.input];
        let rows: usize = slab.clone().map(|block| matrices.rows_of(block).len()).sum();
        for (block, chunks) in slab.zip(chunks.chunks_exact_mut(matrices.input)) {
            for (j, row) in matrices.rows_of(block).enumerate() {
                let deviation = deviations[row].to_f32();
                let divisor = if deviation > 0.0 { deviation } else { 1.0 };
                let row = &weights[row * matrices.input..][..matrices.input];
                chunks.iter_mut().zip(row).for_each(|(chunk, weight)| chunk[j] = weight / divisor);
            }
        }
        codec.analysis.apply(&mut chunks, &levels);
        for chunks in chunks.chunks_exact(matrices.input) {
            for j in 0..CHUNK {
                let rounded = |chunk: &[f32; CHUNK]| chunk[j].round_ties_even().clamp(-MOST, MOST);
                latents.extend(chunks.iter().flat_map(|chunk| rounded(chunk).to_le_bytes()));
            }
        }
        progress.advance((rows * matrices.input) as u64);
    }
    if !all_finite(DType::F32, &latents) {
        return Err(no_numbers());
    }
    let restored = restore(&codec.synthesis, &matrices, &deviations, &levels, &latents, info.dtype)?;
    let name = format!("{}{SUFFIX}", info.name);
    let (shape, batched) = (matrices.latents(), view.batched);
    Ok((Analysed { name, shape, batched, latents, deviations, levels }, restored))
}

/// The deviation about zero of a row. In BF16: it has the range of the weights, and weights are divided by what is stored, so that a few bits do.
fn deviation(row: &[f32]) -> bf16 {
    let square = row.iter().map(|&weight| f64::from(weight).powi(2)).sum::<f64>() / row.len() as f64;
    bf16::from_f64(square.sqrt()).min(bf16::MAX)
}

pub(crate) fn no_numbers() -> Error {
    Error::input("the codec's network makes NaN or infinity of it")
        .remedy("leave it out with --exclude, or train the codec on weights like these")
}

/// Weights of latents, as the bytes of a type.
fn restore(
    synthesis: &Residual,
    matrices: &Matrices,
    deviations: &[bf16],
    levels: &[u8],
    latents: &[u8],
    dtype: DType,
) -> Result<Vec<u8>> {
    let input = matrices.input;
    let mut out = zeros(matrices.rows() * input * dtype.size())?;
    for slab in matrices.slabs() {
        let bytes = CHUNK * input * size_of::<f32>();
        let values = to_f32(DType::F32, &latents[slab.start * bytes..slab.end * bytes]);
        let mut chunks = vec![[0.0; CHUNK]; slab.len() * input];
        for (rows, chunks) in values.chunks_exact(CHUNK * input).zip(chunks.chunks_exact_mut(input)) {
            for (j, row) in rows.chunks_exact(input).enumerate() {
                chunks.iter_mut().zip(row).for_each(|(chunk, &latent)| chunk[j] = latent);
            }
        }
        synthesis.apply(&mut chunks, levels);
        for (block, chunks) in slab.zip(chunks.chunks_exact(input)) {
            for (j, row) in matrices.rows_of(block).enumerate() {
                let deviation = deviations[row].to_f32();
                let weights = chunks.iter().map(|chunk| chunk[j] * deviation);
                let to = &mut out[row * input * dtype.size()..][..input * dtype.size()];
                write(dtype, weights, to)?;
            }
        }
    }
    Ok(out)
}

/// Rounds weights as decoders do (docs/bitstream.md §10.4).
fn write(dtype: DType, weights: impl Iterator<Item = f32>, to: &mut [u8]) -> Result<()> {
    let mut finite = true;
    let weights = weights.inspect(|weight| finite &= weight.is_finite());
    match dtype {
        DType::F16 => {
            let to = to.as_chunks_mut::<2>().0;
            to.iter_mut().zip(weights).for_each(|(to, w)| *to = <f16 as Element>::from_f32(w).to_le_bytes());
        }
        DType::BF16 => {
            let to = to.as_chunks_mut::<2>().0;
            to.iter_mut().zip(weights).for_each(|(to, w)| *to = <bf16 as Element>::from_f32(w).to_le_bytes());
        }
        _ => {
            let to = to.as_chunks_mut::<4>().0;
            to.iter_mut().zip(weights).for_each(|(to, w)| *to = w.to_le_bytes());
        }
    }
    if finite { Ok(()) } else { Err(no_numbers()) }
}

/// The content of [`TENSORS_ATTACHMENT`].
fn describe(source: &dyn TensorSource, coded: &[Option<Analysed>]) -> Vec<u8> {
    let coded = || coded.iter().enumerate().filter_map(|(index, coded)| Some((index, coded.as_ref()?)));
    let descriptions: Vec<Description> = coded()
        .map(|(index, coded)| {
            let TensorInfo { dtype, shape, .. } = source.tensor(index);
            let (dtype, shape) = (dtype.name().to_owned(), shape.to_vec());
            Description { index, dtype, shape, batched: coded.batched }
        })
        .collect();
    let deviations: Vec<u8> = coded()
        .flat_map(|(_, coded)| coded.deviations.iter().flat_map(|deviation| deviation.to_le_bytes()))
        .collect();
    let levels: Vec<u8> = coded().flat_map(|(_, coded)| coded.levels.iter().copied()).collect();
    let view =
        |dtype, len, bytes| TensorView::new(dtype, vec![len], bytes).expect("as many as its shape says");
    let views = [
        (DEVIATIONS, view(Dtype::BF16, deviations.len() / 2, &deviations)),
        (LEVELS, view(Dtype::U8, levels.len(), &levels)),
    ];
    let text = serde_json::to_string(&descriptions).expect("numbers and strings");
    let metadata = HashMap::from([(TENSORS_ATTACHMENT.to_owned(), text)]);
    safetensors::serialize(views, Some(metadata)).expect("tensors are legal")
}

/// A report on latents as one on weights: `errors` are squared errors and squared weights, and the weighted nMSE, by the tensors' indices.
fn of_weights(
    mut report: Report,
    source: &dyn TensorSource,
    errors: &HashMap<usize, (f64, f64, Option<f64>)>,
) -> Report {
    let latents = report.weights;
    let (mut error, mut energy) = (0.0, 0.0);
    report.weights = 0;
    for (index, line) in report.tensors.iter_mut().enumerate() {
        let Some(&(tensor_error, tensor_energy, weighted)) = errors.get(&index) else { continue };
        let TensorInfo { name, shape, .. } = source.tensor(index);
        let weights = shape.iter().product::<usize>() as u64;
        let latents = line.shape.iter().product::<usize>() as f64;
        (line.name, line.shape) = (name.to_owned(), shape.to_vec());
        line.bits_per_weight *= latents / weights as f64;
        if line.coding != "coded" {
            continue;
        }
        line.nmse = if tensor_energy > 0.0 { tensor_error / tensor_energy } else { 0.0 };
        line.weighted_nmse = weighted;
        report.weights += weights;
        (error, energy) = (error + tensor_error, energy + tensor_energy);
    }
    report.sum_up(error, energy);
    report.symbol_entropy *= latents as f64 / report.weights.max(1) as f64;
    report
}

/// What a container says about its latents.
#[derive(Debug)]
pub struct Latents {
    synthesis: Residual,
    /// By the index of the tensor in the directory.
    tensors: HashMap<usize, LatentTensor>,
}

/// What a tensor of latents is restored to.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentTensor {
    /// Its name.
    pub name: String,
    /// Type of its elements: F32, F16 or BF16.
    pub dtype: DType,
    /// Its dimensions.
    pub shape: Vec<usize>,
    matrices: Matrices,
    deviations: Vec<bf16>,
    levels: Vec<u8>,
}

impl LatentTensor {
    /// `[batch, out, in]` of the weights.
    #[cfg(feature = "cuda")]
    pub(crate) fn matrices(&self) -> [usize; 3] {
        [self.matrices.batch, self.matrices.out, self.matrices.input]
    }

    /// The deviation of each row.
    #[cfg(feature = "cuda")]
    pub(crate) fn deviations(&self) -> Vec<f32> {
        self.deviations.iter().map(|deviation| deviation.to_f32()).collect()
    }

    /// The level of each column.
    #[cfg(feature = "cuda")]
    pub(crate) fn levels(&self) -> &[u8] {
        &self.levels
    }

    /// Number of weights.
    pub fn elements(&self) -> usize {
        self.matrices.rows() * self.matrices.input
    }
}

impl Latents {
    /// Of a container; `None` for one without latents.
    ///
    /// # Errors
    /// Attachments that are damaged, or do not suit the directory.
    pub fn read(container: &Container<'_>) -> Result<Option<Self>> {
        let (mut network, mut tensors) = (None, None);
        for attachment in container.attachments().map_err(damaged)? {
            let place = match attachment.name {
                NETWORK_ATTACHMENT => &mut network,
                TENSORS_ATTACHMENT => &mut tensors,
                _ => continue,
            };
            if place.replace(inflate(&attachment)?).is_some() {
                return Err(bad(attachment.name, "is there twice"));
            }
        }
        let (network, tensors) = match (network, tensors) {
            (None, None) => return Ok(None),
            (Some(network), Some(tensors)) => (network, tensors),
            (None, _) => return Err(bad(NETWORK_ATTACHMENT, "is missing")),
            (_, None) => return Err(bad(TENSORS_ATTACHMENT, "is missing")),
        };
        let synthesis = read_stored(&network).map_err(|error| bad(NETWORK_ATTACHMENT, error))?;
        let directory: Vec<Tensor<'_>> = container.tensors().collect();
        let tensors = read_tensors(&tensors, &directory, synthesis.levels())?;
        Ok(Some(Self { synthesis, tensors }))
    }

    /// What a tensor of the directory is restored to; `None` if it holds no latents.
    pub fn get(&self, index: usize) -> Option<&LatentTensor> {
        self.tensors.get(&index)
    }

    /// The network.
    pub fn synthesis(&self) -> &Residual {
        &self.synthesis
    }

    /// Weights of a tensor of the directory, as bytes of `dtype`, from its latents as F32.
    ///
    /// # Errors
    /// Latents of which the network makes NaN or infinity.
    ///
    /// # Panics
    /// If that tensor has no latents, or another number of them.
    pub fn restore(&self, index: usize, latents: &[u8], dtype: DType) -> Result<Vec<u8>> {
        let LatentTensor { matrices, deviations, levels, .. } = &self.tensors[&index];
        assert_eq!(latents.len(), matrices.latents().iter().product::<usize>() * size_of::<f32>());
        restore(&self.synthesis, matrices, deviations, levels, latents, dtype)
            .map_err(|error| error.remedy("copy or download the file again, or compress the model again"))
    }
}

fn bad(attachment: &str, problem: impl std::fmt::Display) -> Error {
    Error::input(format!("its attachment {attachment:?}: {problem}"))
        .remedy("copy or download the file again, or compress the model again")
}

/// Checks what a container says about its tensors of latents against its directory.
fn read_tensors(
    file: &[u8],
    directory: &[Tensor<'_>],
    level_count: usize,
) -> Result<HashMap<usize, LatentTensor>> {
    let bad = |problem: &dyn std::fmt::Display| bad(TENSORS_ATTACHMENT, problem);
    let stored = SafeTensors::parse(file).map_err(|error| bad(&error))?;
    let list = |name: &str, dtype: DType| {
        let found = stored.get(name).filter(|found| found.dtype == dtype && found.shape.len() == 1);
        found.map(|found| found.bytes).ok_or_else(|| bad(&format!("there is no list {name:?}")))
    };
    let mut deviations = list(DEVIATIONS, DType::BF16)?;
    let mut levels = list(LEVELS, DType::U8)?;
    if !all_finite(DType::BF16, deviations) {
        return Err(bad(&"a deviation is NaN or infinity"));
    }
    if levels.iter().any(|&level| usize::from(level) >= level_count) {
        return Err(bad(&"a level is none that the network knows"));
    }
    let text = stored.metadata(TENSORS_ATTACHMENT).unwrap_or_default();
    let descriptions: Vec<Description> =
        serde_json::from_str(text).map_err(|error| bad(&format!("its list of tensors: {error}")))?;
    let mut tensors = HashMap::new();
    for Description { index, dtype, shape, batched } in descriptions {
        let tensor = directory.get(index).ok_or_else(|| bad(&format!("there is no tensor {index}")))?;
        let name = tensor.name().to_string();
        let not_so = |problem: &str| bad(&problem).tensor(&name);
        let dtype = [DType::F32, DType::F16, DType::BF16].into_iter().find(|known| known.name() == dtype);
        let dtype = dtype.ok_or_else(|| not_so("says that it was of a type that is not coded"))?;
        let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        if shape.len() <= usize::from(batched) || elements.is_none_or(|elements| elements == 0) {
            return Err(not_so("says that it had dimensions that no coded tensor has"));
        }
        let matrices = Matrices::new(&View::new(&shape, batched, false));
        let fits = tensor.dtype() == DType::F32 && suits(tensor.shape(), &matrices);
        let Some(restored) = name.strip_suffix(SUFFIX).filter(|_| fits) else {
            return Err(not_so("has other latents than it should have, or none"));
        };
        let (Some(row_bytes), Some(columns)) =
            (deviations.split_off(..2 * matrices.rows()), levels.split_off(..matrices.input))
        else {
            return Err(not_so("has too few deviations or levels"));
        };
        let deviations = row_bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes)).collect();
        let levels = columns.to_vec();
        let entry = LatentTensor { name: restored.to_owned(), dtype, shape, matrices, deviations, levels };
        if tensors.insert(index, entry).is_some() {
            return Err(not_so("is there twice"));
        }
    }
    if deviations.is_empty() && levels.is_empty() {
        Ok(tensors)
    } else {
        Err(bad(&"there are more deviations or levels than tensors have"))
    }
}

/// Whether a tensor of latents has the dimensions that it should have: small enough to be counted, since the directory limits them.
fn suits(shape: &[u64], matrices: &Matrices) -> bool {
    let blocks = matrices.out.div_ceil(CHUNK).checked_mul(matrices.batch);
    let rows = blocks.and_then(|blocks| blocks.checked_mul(CHUNK));
    rows.is_some_and(|rows| *shape == [rows as u64, matrices.input as u64])
}

/// Bytes of an attachment in its section, its name and sizes included (docs/bitstream.md §11.1).
pub(crate) fn attachment_bytes(attachment: &Attachment<'_>) -> u64 {
    let varint = |value: u64| u64::from((u64::BITS - (value | 1).leading_zeros()).div_ceil(7));
    let (name, stored) = (attachment.name.len() as u64, attachment.stored.len() as u64);
    varint(name) + name + 1 + varint(attachment.len) + varint(stored) + 4 + stored
}

/// Number of weights that a container codes: where tensors hold latents, those that they are restored to.
pub(crate) fn coded_weights(container: &Container<'_>, latents: Option<&Latents>) -> u64 {
    let tensors = container.tensors().enumerate().filter(|(_, tensor)| tensor.coding() == Coding::Coded);
    let weights = |(index, tensor): (usize, Tensor<'_>)| {
        latents.and_then(|latents| latents.get(index)).map_or(tensor.elements(), LatentTensor::elements)
            as u64
    };
    tensors.map(weights).sum()
}
