//! A model that is run: a folder, or a container with the files that came along.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::forward::preprocess::Preprocessor;
use crate::forward::tokenizer::Tokenizer;
use crate::forward::{ContainerWeights, Embedding, Forward, Tower, Weights};
use crate::model::Model;
use crate::restore::{ContainerFile, TableMemory};
use crate::{Error, Result};

/// The name of a model's configuration.
const CONFIG: &str = "config.json";

/// A model, its weights, and the files beside them.
pub struct Subject<'a> {
    /// What it is.
    pub forward: Forward,
    /// Its weights.
    pub weights: &'a dyn Weights,
    /// Where it lies.
    pub path: &'a Path,
    files: Files<'a>,
    config: Vec<u8>,
}

/// Where the files beside the weights are.
enum Files<'a> {
    Folder(&'a Model),
    Container(&'a ContainerWeights<'a>),
}

impl Files<'_> {
    fn path(&self, root: &Path, name: &str) -> PathBuf {
        match self {
            Self::Folder(_) => root.join(name),
            Self::Container(_) => root.to_owned(),
        }
    }

    fn read(&self, root: &Path, name: &str) -> Result<Vec<u8>> {
        match self {
            Self::Folder(_) => {
                let path = root.join(name);
                fs::read(&path).map_err(|error| Error::io("cannot read", &path, error))
            }
            Self::Container(weights) => weights.attachment(name),
        }
    }
}

/// Opens a model and hands it to `work`.
///
/// # Errors
/// What is wrong with the model, or as `work`.
pub fn with_subject<T>(path: &Path, work: impl FnOnce(&Subject<'_>) -> Result<T>) -> Result<T> {
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        return Err(Error::input("has weights alone, which say not how they are run")
            .file(path)
            .remedy("give the folder with config.json, or a container of it"));
    }
    if path.is_dir() {
        let model = Model::open(path)?;
        return work(&Subject::new(path, &model, Files::Folder(&model))?);
    }
    let file = ContainerFile::open(path)?;
    let mut memory = TableMemory::default();
    let weights = ContainerWeights::new(file.container()?, &mut memory, path)?;
    work(&Subject::new(path, &weights, Files::Container(&weights))?)
}

impl<'a> Subject<'a> {
    fn new(path: &'a Path, weights: &'a dyn Weights, files: Files<'a>) -> Result<Self> {
        let config = files.read(path, CONFIG)?;
        let forward =
            Forward::read(&config, weights).map_err(|error| error.file(files.path(path, CONFIG)))?;
        Ok(Self { forward, weights, path, files, config })
    }

    /// The content of a file beside the weights.
    ///
    /// # Errors
    /// If there is none of this name, or it cannot be read.
    pub fn file(&self, name: &str) -> Result<Vec<u8>> {
        self.files.read(self.path, name)
    }

    /// How it turns texts into tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::read`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.read("tokenizer.json", Tokenizer::read)
    }

    /// How it prepares images.
    ///
    /// # Errors
    /// As [`Preprocessor::read`].
    pub fn preprocessor(&self) -> Result<Preprocessor> {
        self.read("preprocessor_config.json", Preprocessor::read)
    }

    /// Reads a file beside the weights with what understands it.
    ///
    /// # Errors
    /// As [`file`](Self::file) and `read`, with the file named.
    pub fn read<T>(&self, name: &str, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        read(&self.file(name)?).map_err(|error| error.file(self.files.path(self.path, name)))
    }

    /// The most tokens that a tower takes at once, if it says so.
    pub fn context(&self, tower: &Tower) -> Option<usize> {
        if let Embedding::Tokens(embedding) = &tower.embedding
            && let Some(positions) = &embedding.positions
        {
            return Some(positions.shape[0]);
        }
        let config: Value = serde_json::from_slice(&self.config).ok()?;
        Some(config.get("max_position_embeddings")?.as_u64()? as usize)
    }

    /// Tells it from other models: a CRC-32 of its configuration, and one of all tensors, or of the container.
    ///
    /// # Errors
    /// The operating system's.
    pub fn fingerprint(&self) -> Result<String> {
        let mut crc = crc32fast::Hasher::new();
        match self.files {
            Files::Folder(model) => {
                let mut order: Vec<usize> = (0..model.tensors().len()).collect();
                order.sort_by_key(|&index| &model.tensors()[index].name);
                for index in order {
                    let tensor = &model.tensors()[index];
                    let what = format!("{}\0{}{:?}\0", tensor.name, tensor.dtype, tensor.shape);
                    crc.update(what.as_bytes());
                    crc.update(model.bytes(index));
                }
            }
            Files::Container(_) => {
                let cannot = |error| Error::io("cannot read", self.path, error);
                let mut file = File::open(self.path).map_err(cannot)?;
                let mut buffer = vec![0; 1 << 20];
                loop {
                    let read = file.read(&mut buffer).map_err(cannot)?;
                    if read == 0 {
                        break;
                    }
                    crc.update(&buffer[..read]);
                }
            }
        }
        Ok(format!("{:08x}{:08x}", crc32fast::hash(&self.config), crc.finalize()))
    }
}
