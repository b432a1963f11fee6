//! The folder from which a calibration goes on: a file of what each finished step gave, and the hidden states that later ones need.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::backend::Flex;
use burn::tensor::{Device, Tensor, TensorData};
use nwc_decode_core::DType;
use serde::{Deserialize, Serialize};

use super::file::write_tensors;
use crate::atomic::AtomicFile;
use crate::forward::Weights;
use crate::model::Model;
use crate::model::write::TensorLayout;
use crate::parameters::values;
use crate::{Error, Result};

/// The file that says how far it is, and the key of its metadata.
const STATE: &str = "state.safetensors";
const KEY: &str = "nwc:calibration";

/// Such a folder.
#[derive(Debug)]
pub(super) struct Checkpoint {
    folder: PathBuf,
    /// What must be the same to go on, by option.
    options: Vec<(String, String)>,
}

/// How far a calibration is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// The tower that is next.
    pub(super) tower: usize,
    /// The step of it that is next: its stages, then perhaps the same backwards.
    pub(super) step: usize,
    /// Steps that are done, of all towers.
    pub(super) done: usize,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    options: Vec<(String, String)>,
    position: Position,
}

/// The folder for a file that will be at `output`.
pub(super) fn folder_of(output: &Path) -> PathBuf {
    output.with_extension("checkpoint")
}

/// The name of a batch's hidden states or gradients.
fn hidden_name(index: usize) -> String {
    format!("hidden.{index:06}")
}

/// Whether there is one.
pub(super) fn exists(folder: &Path) -> bool {
    folder.join(STATE).exists()
}

impl Checkpoint {
    /// Of this folder, which is made if need be.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn new(folder: &Path, options: Vec<(String, String)>) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| Error::io("cannot make the folder", folder, error))?;
        Ok(Self { folder: folder.to_owned(), options })
    }

    /// The file of what a step gave.
    pub(super) fn step(&self, number: usize) -> PathBuf {
        self.folder.join(format!("step-{number:05}.safetensors"))
    }

    /// The file of the hidden states or gradients with which a step begins.
    fn hidden_before(&self, number: usize) -> PathBuf {
        self.folder.join(format!("hidden-{number:05}.safetensors"))
    }

    /// Keeps how far it is, and what the next step begins with.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn write(&self, position: Position, hidden: &[Tensor<Flex, 3>]) -> Result<()> {
        let names: Vec<(String, [usize; 3])> =
            hidden.iter().enumerate().map(|(index, tensor)| (hidden_name(index), tensor.dims())).collect();
        let tensors: Vec<TensorLayout<'_>> =
            names.iter().map(|(name, shape)| (name.as_str(), DType::F32, &shape[..])).collect();
        let mut file = AtomicFile::create(&self.hidden_before(position.done), true)?;
        write_tensors(&mut file, &BTreeMap::new(), &tensors, |index| Ok(values(&hidden[index])))?;
        file.commit()?;
        let metadata = Metadata { options: self.options.clone(), position };
        let text = serde_json::to_string(&metadata).expect("numbers and strings");
        let metadata = BTreeMap::from([(KEY.to_owned(), text)]);
        let mut file = AtomicFile::create(&self.folder.join(STATE), true)?;
        write_tensors(&mut file, &metadata, &[], |_| Ok(Vec::new()))?;
        file.commit()
    }

    /// Removes what steps of these numbers began with.
    pub(super) fn forget(&self, numbers: impl IntoIterator<Item = usize>) {
        // Best effort: what stays takes space only.
        numbers.into_iter().for_each(|number| drop(fs::remove_file(self.hidden_before(number))));
    }

    /// How far it was.
    ///
    /// # Errors
    /// There is none, it is damaged, or was written with other options, of which the first is named.
    pub(super) fn read(&self) -> Result<Position> {
        let path = self.folder.join(STATE);
        let start_over = "leave --resume out to start over";
        let bad = |problem: String, remedy: &str| Error::input(problem).file(&path).remedy(remedy);
        if !path.exists() {
            return Err(bad("there is no checkpoint to resume from".to_owned(), start_over));
        }
        let file = Model::open(&path)?;
        let text = file.files()[0].metadata.as_ref().and_then(|metadata| metadata.get(KEY));
        let metadata: Metadata = serde_json::from_str(text.map_or("", String::as_str))
            .map_err(|_| bad("is no checkpoint of this program".to_owned(), "start over with --force"))?;
        for ((option, now), (_, then)) in self.options.iter().zip(&metadata.options) {
            if now != then {
                return Err(bad(
                    format!("was written with {option} {then}, now it is {now}"),
                    "give the same options, or start over with --force",
                ));
            }
        }
        Ok(metadata.position)
    }

    /// What a step begins with.
    ///
    /// # Errors
    /// It is not there, or damaged.
    pub(super) fn hidden(&self, number: usize) -> Result<Vec<Tensor<Flex, 3>>> {
        let path = self.hidden_before(number);
        let file = Model::open(&path)?;
        let hidden = (0..file.tensors().len()).map(|index| {
            let tensor = file.tensor(&hidden_name(index))?;
            let [batch, length, width] = tensor.shape[..] else {
                return Err(Error::input("is damaged").file(&path).remedy("start over with --force"));
            };
            let data = TensorData::new(tensor.values, [batch, length, width]);
            Ok(Tensor::from_data(data, &Device::<Flex>::default()))
        });
        hidden.collect()
    }

    /// Removes it: what it wrote, and the folder if that is empty then.
    pub(super) fn remove(&self, steps: usize) {
        // Best effort: what stays takes space only, and the next calibration names it.
        self.forget(0..=steps);
        let files = (0..steps).map(|number| self.step(number)).chain([self.folder.join(STATE)]);
        files.for_each(|file| drop(fs::remove_file(file)));
        let _ = fs::remove_dir(&self.folder);
    }
}
