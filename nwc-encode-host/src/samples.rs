//! What calibration and evaluation run models on: texts, tokens and images, from files and folders.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use nwc_decode_core::DType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::Value;

use crate::forward::preprocess::Preprocessor;
use crate::forward::{Batches, Embedding, Input, Pool, Tokens, Tower};
use crate::model::Model;
use crate::subject::Subject;
use crate::{Error, Result};

/// Tokens of a window of a text where nothing is said, if the model takes as many.
pub const DEFAULT_LENGTH: usize = 512;
/// Longer sequences are a slip of the keyboard.
const MAX_LENGTH: usize = 1 << 20;
/// About so many tokens are run at once.
const BATCH_TOKENS: usize = 2048;
/// Names of a folder's captions.
const CAPTIONS: [&str; 2] = ["captions.json", "captions.txt"];

/// Which part of the data is used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// So many sequences and images, spread evenly over all.
    pub samples: Option<usize>,
    /// Tokens of a window.
    pub length: Option<usize>,
}

/// The data, as files have it.
#[derive(Debug)]
pub enum Data {
    /// A text.
    Text(String),
    /// Tokens, cut into windows.
    Tokens(Vec<u32>),
    /// Texts of one length, as tokens.
    Sequences(Tokens),
    /// Images, and perhaps captions.
    Images(Images),
}

/// Images, with what is known about them.
#[derive(Debug)]
pub struct Images {
    pixels: Pixels,
    /// What is on them.
    pub captions: Vec<String>,
    /// The class of each.
    pub labels: Option<Vec<usize>>,
}

#[derive(Debug)]
enum Pixels {
    /// `[n, height, width, 3]`
    Bytes { bytes: Vec<u8>, height: usize, width: usize },
    /// Files, read when they are needed.
    Files(Vec<PathBuf>),
}

impl Images {
    /// How many there are.
    pub fn count(&self) -> usize {
        match &self.pixels {
            Pixels::Bytes { bytes, height, width } => bytes.len() / (height * width * 3),
            Pixels::Files(files) => files.len(),
        }
    }
}

impl Data {
    /// Reads a text file, a .safetensors file of tokens or images, or a folder of images.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self::Images(folder(path)?));
        }
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            return tensors(path).map_err(|error| error.file(path));
        }
        let bytes = fs::read(path).map_err(|error| Error::io("cannot read", path, error))?;
        String::from_utf8(bytes).map(Self::Text).map_err(|error| {
            Error::input("is no text in UTF-8")
                .file(path)
                .remedy("give a text, a .safetensors file of tokens or images, or a folder of images")
                .source(error)
        })
    }
}

/// Files that may be images.
fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["png", "jpg", "jpeg"].contains(&extension.to_lowercase().as_str())
}

/// A folder's entries, sorted.
fn entries(path: &Path) -> Result<Vec<PathBuf>> {
    let cannot = |error| Error::io("cannot list the folder", path, error);
    let entries = fs::read_dir(path).map_err(cannot)?;
    let mut entries: Vec<PathBuf> =
        entries.map(|entry| Ok(entry.map_err(cannot)?.path())).collect::<Result<_>>()?;
    entries.sort();
    Ok(entries)
}

/// The images of a folder, or of its folders, each of which is then a class.
fn folder(path: &Path) -> Result<Images> {
    let entries_here = entries(path)?;
    let mut files: Vec<PathBuf> = entries_here.iter().filter(|path| is_image(path)).cloned().collect();
    let mut labels = None;
    if files.is_empty() {
        let mut classes = Vec::new();
        for (class, folder) in entries_here.iter().filter(|path| path.is_dir()).enumerate() {
            let images: Vec<PathBuf> = entries(folder)?.into_iter().filter(|path| is_image(path)).collect();
            classes.resize(classes.len() + images.len(), class);
            files.extend(images);
        }
        labels = Some(classes);
    }
    if files.is_empty() {
        return Err(Error::input("has no images").file(path).remedy("give a folder of PNG or JPEG files"));
    }
    let mut captions = Vec::new();
    for name in CAPTIONS {
        let file = path.join(name);
        if !file.exists() {
            continue;
        }
        let text = fs::read_to_string(&file).map_err(|error| Error::io("cannot read", &file, error))?;
        captions = if name == CAPTIONS[0] {
            json_captions(&text).map_err(|error| error.file(&file))?
        } else {
            lines(&text)
        };
        break;
    }
    Ok(Images { pixels: Pixels::Files(files), captions, labels })
}

/// The lines of a text that are not empty.
fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Captions in a list, or by the names of images, one or several each.
fn json_captions(text: &str) -> Result<Vec<String>> {
    let bad = || {
        Error::input("is no list of captions")
            .remedy("give a JSON list of strings, or an object of them by the names of images")
    };
    fn collect(value: Value, captions: &mut Vec<String>) -> Option<()> {
        match value {
            Value::String(caption) => captions.push(caption),
            Value::Array(values) => {
                values.into_iter().try_for_each(|value| collect(value, captions))?;
            }
            Value::Object(fields) => {
                fields.into_iter().try_for_each(|(_, value)| collect(value, captions))?;
            }
            _ => return None,
        }
        Some(())
    }
    let value: Value = serde_json::from_str(text).map_err(|error| bad().source(error))?;
    let mut captions = Vec::new();
    collect(value, &mut captions).ok_or_else(bad)?;
    Ok(captions)
}

/// The integers of a tensor, if it has such.
fn integers(file: &Model, index: usize) -> Option<Vec<i64>> {
    let bytes = file.bytes(index);
    Some(match file.tensors()[index].dtype {
        DType::U8 => bytes.iter().map(|&byte| byte.into()).collect(),
        DType::U16 => bytes.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes).into()).collect(),
        DType::I16 => bytes.as_chunks().0.iter().map(|&bytes| i16::from_le_bytes(bytes).into()).collect(),
        DType::U32 => bytes.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes).into()).collect(),
        DType::I32 => bytes.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes).into()).collect(),
        DType::I64 => bytes.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect(),
        _ => return None,
    })
}

/// A file with `images`, or with one tensor of tokens.
fn tensors(path: &Path) -> Result<Data> {
    let file = Model::open(path)?;
    let wanted = "give `images` U8 [n, height, width, 3], or one tensor of integers [n] or [n, length]";
    if let Some(index) = file.find("images") {
        return images(&file, index).map(Data::Images);
    }
    let [tensor] = file.tensors() else {
        let problem = format!("has {} tensors and no `images`", file.tensors().len());
        return Err(Error::input(problem).remedy(wanted));
    };
    let bad = |problem: String| Error::input(problem).tensor(&tensor.name).remedy(wanted);
    let ids = integers(&file, 0).ok_or_else(|| bad(format!("is of type {}", tensor.dtype)))?;
    let ids: Option<Vec<u32>> = ids.into_iter().map(|id| u32::try_from(id).ok()).collect();
    let ids = ids.ok_or_else(|| bad("has numbers that are no tokens".to_owned()))?;
    match tensor.shape[..] {
        [_] if !ids.is_empty() => Ok(Data::Tokens(ids)),
        [_, length] if !ids.is_empty() => Ok(Data::Sequences(Tokens::new(ids, length)?)),
        _ => Err(bad(format!("has the shape {:?}", tensor.shape))),
    }
}

fn images(file: &Model, index: usize) -> Result<Images> {
    let tensor = &file.tensors()[index];
    let (DType::U8, &[count @ (1..), height @ (1..), width @ (1..), 3]) = (tensor.dtype, &tensor.shape[..])
    else {
        return Err(Error::input(format!("is {} {:?}", tensor.dtype, tensor.shape))
            .tensor("images")
            .remedy("give U8 [n, height, width, 3]"));
    };
    let labels = match file.find("labels") {
        None => None,
        Some(index) => {
            let bad = || {
                Error::input(format!("is no class for each of {count} images"))
                    .tensor("labels")
                    .remedy("give an integer for each image, from 0 on")
            };
            let labels = integers(file, index).filter(|labels| labels.len() == count).ok_or_else(bad)?;
            let labels: Option<Vec<usize>> = labels.into_iter().map(|label| label.try_into().ok()).collect();
            Some(labels.ok_or_else(bad)?)
        }
    };
    let metadata = file.files()[0].metadata.as_ref();
    let captions = match (file.find("caption_bytes"), file.find("caption_offsets")) {
        (Some(bytes), Some(offsets)) => {
            let bad = || {
                Error::input("does not cut caption_bytes into texts")
                    .tensor("caption_offsets")
                    .remedy("give the first byte of each caption, and the end of the last one")
            };
            let (bytes, offsets) = (file.bytes(bytes), integers(file, offsets).ok_or_else(bad)?);
            let caption = |pair: &[i64]| {
                let (first, end) = (usize::try_from(pair[0]).ok()?, usize::try_from(pair[1]).ok()?);
                String::from_utf8(bytes.get(first..end)?.to_vec()).ok()
            };
            let captions: Option<Vec<String>> = offsets.windows(2).map(caption).collect();
            captions.ok_or_else(bad)?
        }
        _ => {
            metadata.and_then(|all| all.get("captions")).map_or(Ok(Vec::new()), |text| json_captions(text))?
        }
    };
    Ok(Images {
        pixels: Pixels::Bytes { bytes: file.bytes(index).to_vec(), height, width },
        captions,
        labels,
    })
}

/// What goes into a tower, in batches.
#[derive(Debug)]
pub struct Samples<'a> {
    content: Content<'a>,
    /// Sequences or images.
    pub count: usize,
}

#[derive(Debug)]
enum Content<'a> {
    Texts(Vec<Tokens>),
    Images {
        images: &'a Images,
        chosen: Vec<usize>,
        preprocessor: Preprocessor,
    },
    /// Normal numbers, of images `[channels, side, side]`.
    Noise {
        count: usize,
        channels: usize,
        side: usize,
    },
}

/// So many of them, spread evenly.
fn spread(count: usize, limit: Option<usize>) -> Vec<usize> {
    match limit {
        Some(limit) if limit < count => (0..limit).map(|i| i * count / limit).collect(),
        _ => (0..count).collect(),
    }
}

/// Cuts texts of one length into batches.
fn batches(tokens: &[u32], length: usize, chosen: &[usize]) -> Result<Vec<Tokens>> {
    let texts = Samples::texts_together(length);
    let batch = |chosen: &[usize]| {
        let ids = chosen.iter().flat_map(|&text| &tokens[text * length..][..length]).copied().collect();
        Tokens::new(ids, length)
    };
    chosen.chunks(texts).map(batch).collect()
}

impl Samples<'_> {
    /// So many images are run at once.
    pub(crate) const BATCH_IMAGES: usize = 64;

    /// Texts of this length that are run at once.
    pub(crate) fn texts_together(length: usize) -> usize {
        (BATCH_TOKENS / length).max(1)
    }
}

impl<'a> Samples<'a> {
    /// What `data` has for a tower of a model; none if it has nothing for it.
    ///
    /// # Errors
    /// If the data and the tower do not go together.
    pub fn new(subject: &Subject<'_>, tower: &Tower, data: &'a Data, limits: Limits) -> Result<Option<Self>> {
        let captions = |captions: &[String]| -> Result<Option<Self>> {
            let chosen = spread(captions.len(), limits.samples);
            if chosen.is_empty() {
                return Ok(None);
            }
            let texts: Vec<&str> = chosen.iter().map(|&index| captions[index].as_str()).collect();
            Self::texts(&texts, subject).map(Some)
        };
        match (&tower.embedding, data) {
            (Embedding::Patches(_), Data::Images(images)) => {
                let chosen = spread(images.count(), limits.samples);
                let count = chosen.len();
                let preprocessor = subject.preprocessor()?;
                Ok(Some(Self { content: Content::Images { images, chosen, preprocessor }, count }))
            }
            (Embedding::Patches(_), _) => Ok(None),
            (Embedding::Tokens(_), Data::Images(images)) => captions(&images.captions),
            // One part of several takes short texts.
            (Embedding::Tokens(_), Data::Text(text)) if subject.forward.towers.len() > 1 => {
                captions(&lines(text))
            }
            (Embedding::Tokens(_), Data::Text(text)) => {
                let tokens = subject.tokenizer()?.text(text)?;
                Self::windows(&tokens, subject, tower, limits).map(Some)
            }
            (Embedding::Tokens(_), Data::Tokens(tokens)) => {
                Self::windows(tokens, subject, tower, limits).map(Some)
            }
            (Embedding::Tokens(_), Data::Sequences(tokens)) => {
                let length = tokens.length();
                if limits.length.is_some_and(|wanted| wanted != length) {
                    return Err(Error::input(format!("the sequences have {length} tokens"))
                        .remedy("leave --length out"));
                }
                check_length(subject, tower, length)?;
                let chosen = spread(tokens.texts(), limits.samples);
                let batches = batches(tokens.ids(), length, &chosen)?;
                Ok(Some(Self { content: Content::Texts(batches), count: chosen.len() }))
            }
        }
    }

    /// Short texts, with the special tokens that the model's tokenizer adds.
    ///
    /// # Errors
    /// As [`Subject::tokenizer`].
    pub fn texts(texts: &[&str], subject: &Subject<'_>) -> Result<Samples<'static>> {
        let tokens = subject.tokenizer()?.texts(texts)?;
        let (count, together) = (tokens.texts(), Samples::texts_together(tokens.length()));
        let part = |first: usize| tokens.part(first..(first + together).min(count));
        let batches = (0..count).step_by(together).map(part).collect();
        Ok(Samples { content: Content::Texts(batches), count })
    }

    /// Windows of a long text; the last one may be shorter.
    fn windows(tokens: &[u32], subject: &Subject<'_>, tower: &Tower, limits: Limits) -> Result<Self> {
        let length = window(subject, tower, limits.length)?;
        let whole = tokens.len() / length;
        let rest = &tokens[whole * length..];
        let all = whole + usize::from(!rest.is_empty());
        let mut chosen = spread(all, limits.samples);
        let count = chosen.len();
        if count == 0 {
            return Err(Error::input("the text has no tokens").remedy("give a longer one"));
        }
        let with_rest = chosen.pop_if(|last| *last == whole).is_some();
        let mut batches = batches(tokens, length, &chosen)?;
        if with_rest {
            batches.push(Tokens::new(rest.to_vec(), rest.len())?);
        }
        Ok(Self { content: Content::Texts(batches), count })
    }

    /// Texts of one length, and a last one that may be shorter, in batches.
    pub fn of_batches(batches: Vec<Tokens>) -> Self {
        let count = batches.iter().map(Tokens::texts).sum();
        Self { content: Content::Texts(batches), count }
    }

    /// Random inputs of a tower: the same at every call.
    ///
    /// # Errors
    /// If the tower's context is shorter than `limits.length`.
    pub fn random(subject: &Subject<'_>, tower: &Tower, count: usize, length: usize) -> Result<Self> {
        let embedding = match &tower.embedding {
            Embedding::Patches(patches) => {
                let (channels, side) = (patches.patch.shape[1], patches.image_size);
                return Ok(Self { content: Content::Noise { count, channels, side }, count });
            }
            Embedding::Tokens(embedding) => embedding,
        };
        check_length(subject, tower, length)?;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let vocabulary = embedding.tokens.shape[0] as u32;
        let mut ids: Vec<u32> = (0..count * length).map(|_| rng.random_range(0..vocabulary)).collect();
        if let Pool::Token(end) = tower.head.pool {
            // Only at the ends, else most texts are short.
            for (at, id) in ids.iter_mut().enumerate() {
                if (at + 1).is_multiple_of(length) {
                    *id = end;
                } else if *id == end {
                    *id = (end + 1) % vocabulary;
                }
            }
        }
        let chosen: Vec<usize> = (0..count).collect();
        Ok(Self { content: Content::Texts(batches(&ids, length, &chosen)?), count })
    }

    /// The classes of the images, in the order of the batches.
    pub fn labels(&self) -> Option<Vec<usize>> {
        let Content::Images { images, chosen, .. } = &self.content else { return None };
        let labels = images.labels.as_ref()?;
        Some(chosen.iter().map(|&index| labels[index]).collect())
    }
}

/// Tokens of a window.
///
/// # Errors
/// If the model does not take as many.
pub fn window(subject: &Subject<'_>, tower: &Tower, wanted: Option<usize>) -> Result<usize> {
    let context = subject.context(tower).unwrap_or(DEFAULT_LENGTH);
    let length = wanted.unwrap_or(DEFAULT_LENGTH.min(context));
    check_length(subject, tower, length)?;
    Ok(length)
}

fn check_length(subject: &Subject<'_>, tower: &Tower, length: usize) -> Result<()> {
    let most = subject.context(tower).unwrap_or(MAX_LENGTH).min(MAX_LENGTH);
    if (1..=most).contains(&length) {
        return Ok(());
    }
    Err(Error::input(format!("sequences of {length} tokens do not fit this model"))
        .file(subject.path)
        .remedy(format!("give --length 1 to {most}")))
}

impl<B: Backend> Batches<B> for Samples<'_> {
    fn count(&self) -> usize {
        match &self.content {
            Content::Texts(batches) => batches.len(),
            Content::Images { .. } | Content::Noise { .. } => self.count.div_ceil(Self::BATCH_IMAGES),
        }
    }

    fn input(&self, index: usize, device: &B::Device) -> Result<Input<B>> {
        match &self.content {
            Content::Texts(batches) => Ok(batches[index].clone().into()),
            Content::Noise { count, channels, side } => {
                let count = (count - index * Self::BATCH_IMAGES).min(Self::BATCH_IMAGES);
                let mut rng = ChaCha8Rng::seed_from_u64(index as u64);
                let normal = (0..count * channels * side * side)
                    .map(|_| Distribution::<f32>::sample(&StandardNormal, &mut rng));
                let shape = [count, *channels, *side, *side];
                let values = burn::tensor::TensorData::new(normal.collect(), shape);
                Ok(burn::tensor::Tensor::<B, 4>::from_data(values, device).into())
            }
            Content::Images { images, chosen, preprocessor } => {
                let chosen = chosen.chunks(Self::BATCH_IMAGES).nth(index).unwrap_or_default();
                let mut size = None;
                let mut bytes = Vec::new();
                for &image in chosen {
                    let picture = images.picture(image, preprocessor)?;
                    let this = (picture.height, picture.width);
                    if *size.get_or_insert(this) != this {
                        return Err(images.located(
                            image,
                            Error::input(format!("is {} x {} once prepared, others are not", this.0, this.1))
                                .remedy("give images of one size, or a model that crops them"),
                        ));
                    }
                    bytes.extend(picture.pixels);
                }
                let (height, width) = size.unwrap_or_default();
                Ok(preprocessor.pixel_values::<B>(&bytes, [chosen.len(), height, width], device).into())
            }
        }
    }

    fn tokens(&self, index: usize) -> Option<&Tokens> {
        match &self.content {
            Content::Texts(batches) => Some(&batches[index]),
            Content::Images { .. } | Content::Noise { .. } => None,
        }
    }
}

impl Images {
    fn located(&self, index: usize, error: Error) -> Error {
        match &self.pixels {
            Pixels::Bytes { .. } => error,
            Pixels::Files(files) => error.file(&files[index]),
        }
    }

    /// An image, prepared.
    fn picture(
        &self,
        index: usize,
        preprocessor: &Preprocessor,
    ) -> Result<crate::forward::preprocess::Picture> {
        match &self.pixels {
            Pixels::Files(files) => preprocessor.open_picture(&files[index]),
            &Pixels::Bytes { ref bytes, height, width } => {
                let size = height * width * 3;
                let pixels = bytes[index * size..][..size].to_vec();
                preprocessor.prepare(&crate::forward::preprocess::Picture { width, height, pixels })
            }
        }
    }
}
