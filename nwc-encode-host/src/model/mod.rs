//! Reads models in the Hugging Face layout, and writes them back.
//!
//! A model is a folder with `config.json` and safetensors weights, or one bare `.safetensors` file. The
//! weights are memory-mapped, so that opening a model costs no more than reading its headers.

mod dtype;
mod folder;
mod header;
pub mod write;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use nwc_decode_core::DType;

use crate::error::{Error, Result};
use crate::residual::Parameter;

pub use folder::{Attachment, MAX_ATTACHMENT_BYTES, SkipReason, Skipped};
pub use write::FolderWriter;

/// One safetensors file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// File name without a folder. It passes [`check_file_name`].
    pub name: String,
    /// The `__metadata__` of the header, `None` where the header has none.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Indices into [`Model::tensors`], in order of data offset.
    pub tensors: Vec<usize>,
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTensor {
    /// Name, unique in the model.
    pub name: String,
    /// Type of the elements.
    pub dtype: DType,
    /// Extent of each dimension in elements, outermost first: `[out, in]` for the weight of a linear layer,
    /// empty for a scalar.
    pub shape: Vec<usize>,
    /// Index into [`Model::files`].
    pub file: usize,
}

impl SourceTensor {
    /// Number of elements; one for a scalar.
    pub fn elements(&self) -> usize {
        // Cannot overflow: the header was checked against the length of the file.
        self.shape.iter().product()
    }
}

/// An opened model.
///
/// The weight files are mapped into memory and must not be changed or truncated by any program while the
/// model is open: values would change under way, or the process be killed by the operating system.
#[derive(Debug)]
pub struct Model {
    root: PathBuf,
    files: Vec<SourceFile>,
    paths: Vec<PathBuf>,
    maps: Vec<Mmap>,
    tensors: Vec<SourceTensor>,
    /// The index of each tensor, by its name.
    names: HashMap<String, usize>,
    /// Position of each tensor in the map of its file, in bytes.
    ranges: Vec<Range<usize>>,
    attachments: Vec<Attachment>,
    skipped: Vec<Skipped>,
}

impl Model {
    /// Opens the model folder or the bare safetensors file `path`.
    ///
    /// In a folder the weights are `model.safetensors`, else the shards that `model.safetensors.index.json`
    /// lists, else the only safetensors file whose name begins with `model`, else the only safetensors file.
    /// Where tensors are is taken from the headers of the shards, never from the index.
    ///
    /// # Errors
    /// If there are no weights or more than one choice, if a shard is missing or its name leads out of the
    /// folder, if a header is damaged, a data type unsupported, or a tensor name not unique.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|error| {
            Error::io("cannot open the model", path, error)
                .remedy("give an existing model folder or .safetensors file")
        })?;
        let mut model = Self {
            root: path.to_owned(),
            files: Vec::new(),
            paths: Vec::new(),
            maps: Vec::new(),
            tensors: Vec::new(),
            names: HashMap::new(),
            ranges: Vec::new(),
            attachments: Vec::new(),
            skipped: Vec::new(),
        };
        if metadata.is_dir() {
            let contents = folder::scan(path)?;
            for name in contents.weights {
                let file = path.join(&name);
                model.add_file(name, file)?;
            }
            model.attachments = contents.attachments;
            model.skipped = contents.skipped;
        } else {
            let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
                Error::input("the file name is not Unicode").file(path).remedy("rename the file")
            })?;
            check_file_name(name).map_err(|error| error.file(path).remedy("rename the file"))?;
            model.add_file(name.to_owned(), path.to_owned())?;
        }
        Ok(model)
    }

    /// Maps one more weight file.
    fn add_file(&mut self, name: String, path: PathBuf) -> Result<()> {
        let map = map(&path)?;
        let header = header::parse(&map).map_err(|error| error.file(&path))?;
        let file = self.files.len();
        let mut tensors = Vec::with_capacity(header.entries.len());
        for entry in header.entries {
            if let Some(other) = self.names.insert(entry.name.clone(), self.tensors.len()) {
                let other = &self.files[self.tensors[other].file];
                return Err(Error::input(format!("is also in {:?}", other.name))
                    .file(path)
                    .tensor(entry.name)
                    .remedy("remove the file that does not belong to the model from the index"));
            }
            tensors.push(self.tensors.len());
            self.ranges.push(entry.range);
            self.tensors.push(SourceTensor {
                name: entry.name,
                dtype: entry.dtype,
                shape: entry.shape,
                file,
            });
        }
        self.files.push(SourceFile { name, metadata: header.metadata, tensors });
        self.paths.push(path);
        self.maps.push(map);
        Ok(())
    }

    /// The path the model was opened with, for messages.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The weight files, sorted by name.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// The path of the weight file `file`, an index into [`Model::files`].
    ///
    /// # Panics
    /// If there is no such file.
    pub fn file_path(&self, file: usize) -> &Path {
        &self.paths[file]
    }

    /// All tensors, by file and in each file by data offset.
    pub fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    /// The values of the tensor `index` as they are in the file: little-endian, row-major.
    ///
    /// The slice is not aligned to the element type.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn bytes(&self, index: usize) -> &[u8] {
        &self.maps[self.tensors[index].file][self.ranges[index].clone()]
    }

    /// The index of the tensor of this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// The files that should travel with the weights, sorted by name. None for a bare file.
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// What the model folder holds besides, sorted by name. None for a bare file.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

/// A safetensors file in memory.
#[derive(Debug)]
pub(crate) struct SafeTensors<'a> {
    file: &'a [u8],
    header: header::Header,
}

impl<'a> SafeTensors<'a> {
    /// Checks it, whose whole content is `file`.
    ///
    /// # Errors
    /// What is wrong with its header.
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self> {
        Ok(Self { file, header: header::parse(file)? })
    }

    /// The tensor of this name.
    pub(crate) fn get(&self, name: &str) -> Option<Parameter<'_>> {
        let entry = self.header.entries.iter().find(|entry| entry.name == name)?;
        Some(Parameter {
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: self.file.get(entry.range.clone())?,
        })
    }

    /// An entry of its metadata.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata.as_ref()?.get(key).map(String::as_str)
    }
}

/// Maps a weight file into memory.
fn map(path: &Path) -> Result<Mmap> {
    let cannot = |error| Error::io("cannot open the file", path, error);
    let file = File::open(path).map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err(Error::input("not a regular file")
            .file(path)
            .remedy("give a file on a disk, not a pipe or device"));
    }
    // SAFETY: the map is read-only and lives as long as the `Model`. Undefined behaviour needs the file to be
    // changed meanwhile, which no mapping of files can exclude: the documentation of `Model` forbids it, and
    // this library replaces files by renaming, which leaves the mapped one as it was.
    let map = unsafe { Mmap::map(&file) };
    map.map_err(|error| {
        Error::io("cannot map the file into memory", path, error)
            .remedy("copy the model to a local disk and try again")
    })
}

/// Checks that `name` is a plain file name, which joined to a folder stays in that folder on every system.
///
/// Names from indexes and containers are untrusted: without this check they could overwrite any file.
///
/// # Errors
/// If the name is empty, has a separator, colon or control character, or ends in a dot or space, as `..` does.
pub fn check_file_name(name: &str) -> Result<()> {
    match name_problem(name) {
        None => Ok(()),
        Some(problem) => Err(Error::input(format!("the file name {name:?} is refused because {problem}"))
            .remedy("use a plain file name without a folder")),
    }
}

/// Why `name` is not a plain file name.
fn name_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name.contains(['/', '\\']) {
        Some("it has a path separator")
    } else if name.contains(':') {
        // A drive or an alternate data stream on Windows.
        Some("it has a colon")
    } else if name.chars().any(char::is_control) {
        Some("it has a control character")
    } else if name.ends_with(['.', ' ']) {
        // Windows drops them, which turns ".. " into "..".
        Some("it ends in a dot or space")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{TensorView, serialize};

    type Crate = safetensors::Dtype;

    /// A safetensors file made by the crate of that name.
    fn reference(tensors: &[(&str, Crate, &[usize], Vec<u8>)], metadata: Option<(&str, &str)>) -> Vec<u8> {
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap())
        });
        serialize(views, metadata.map(|(k, v)| HashMap::from([(k.to_owned(), v.to_owned())]))).unwrap()
    }

    fn counting(len: u8) -> Vec<u8> {
        (0..len).collect()
    }

    fn open_error(path: &Path) -> String {
        Model::open(path).unwrap_err().to_string()
    }

    #[test]
    fn single_file_in_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = reference(
            &[("b.bias", Crate::F32, &[2], counting(8)), ("a.weight", Crate::F16, &[3, 2], counting(12))],
            Some(("format", "pt")),
        );
        fs::write(dir.path().join("model.safetensors"), &bytes).unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        let model = Model::open(dir.path()).unwrap();
        assert_eq!(model.root(), dir.path());
        assert_eq!(
            model.files(),
            [SourceFile {
                name: "model.safetensors".into(),
                metadata: Some(BTreeMap::from([("format".into(), "pt".into())])),
                tensors: vec![0, 1],
            }]
        );
        assert_eq!(model.file_path(0), dir.path().join("model.safetensors"));
        assert_eq!(
            model.tensors(),
            [
                SourceTensor { name: "b.bias".into(), dtype: DType::F32, shape: vec![2], file: 0 },
                SourceTensor { name: "a.weight".into(), dtype: DType::F16, shape: vec![3, 2], file: 0 },
            ]
        );
        assert_eq!(model.tensors()[1].elements(), 6);
        assert_eq!(model.bytes(0), counting(8));
        assert_eq!(model.bytes(1), counting(12));
        assert_eq!(model.attachments()[0].name, "config.json");
        assert!(model.skipped().is_empty());
    }

    #[test]
    fn bare_file_has_no_attachments() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vision.safetensors");
        fs::write(&path, reference(&[("w", Crate::BOOL, &[], vec![1])], None)).unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        let model = Model::open(&path).unwrap();
        assert_eq!(model.files()[0].name, "vision.safetensors");
        assert_eq!(model.files()[0].metadata, None);
        assert_eq!(model.tensors()[0].elements(), 1);
        assert!(model.attachments().is_empty() && model.skipped().is_empty());
    }

    #[test]
    fn shards_are_trusted_over_a_wrong_index() {
        let dir = tempfile::tempdir().unwrap();
        let shard = |n: u8| dir.path().join(format!("model-0000{n}-of-00002.safetensors"));
        fs::write(shard(1), reference(&[("a", Crate::U8, &[2], vec![1, 2])], None)).unwrap();
        fs::write(
            shard(2),
            reference(&[("b", Crate::U8, &[1], vec![3]), ("c", Crate::U8, &[1], vec![4])], None),
        )
        .unwrap();
        // Tensors in the wrong shard, one that does not exist, one left out, and a wrong total.
        let index = r#"{"metadata":{"total_size":99},"weight_map":{
            "a":"model-00002-of-00002.safetensors","b":"model-00001-of-00002.safetensors",
            "gone":"model-00001-of-00002.safetensors"}}"#;
        fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        let model = Model::open(dir.path()).unwrap();
        let found: Vec<_> = (0..3)
            .map(|i| (model.tensors()[i].name.as_str(), model.tensors()[i].file, model.bytes(i)))
            .collect();
        assert_eq!(found, [("a", 0, &[1, 2][..]), ("b", 1, &[3]), ("c", 1, &[4])]);
        assert_eq!(model.files()[1].tensors, [1, 2]);
        assert_eq!(model.attachments()[0].name, "model.safetensors.index.json");

        fs::write(shard(2), reference(&[("a", Crate::U8, &[1], vec![9])], None)).unwrap();
        let text = open_error(dir.path());
        assert!(
            text.contains("tensor \"a\": is also in \"model-00001-of-00002.safetensors\"")
                && text.contains("model-00002-of-00002.safetensors: "),
            "{text}"
        );
    }

    #[test]
    fn damaged_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let whole = reference(&[("w", Crate::F32, &[4], counting(16))], None);
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let text = open_error(dir.path());
            assert!(text.contains("model.safetensors: "), "{text}");
            assert!(text.contains("truncated") || text.contains("too short"), "{text}");
        }
        let mut long = whole.clone();
        long[..8].copy_from_slice(&(whole.len() as u64).to_le_bytes());
        fs::write(&path, &long).unwrap();
        assert!(open_error(&path).contains("truncated: the header should be"));
        fs::write(&path, reference(&[("w8", Crate::F8_E8M0, &[1], vec![0])], None)).unwrap();
        let text = open_error(&path);
        assert!(text.contains("tensor \"w8\": data type F8_E8M0 is not supported; convert"), "{text}");
    }

    #[test]
    fn missing_model_is_named() {
        let text = open_error(Path::new("no/such/model"));
        assert!(
            text.starts_with("no/such/model: cannot open the model") && text.contains("give an"),
            "{text}"
        );
    }

    #[test]
    fn file_names() {
        for good in ["config.json", ".hidden", "a b", "model-00001-of-00002.safetensors", "..a", "é"] {
            check_file_name(good).unwrap();
        }
        for bad in ["", ".", "..", "...", "a/b", "/a", "../a", "a\\b", "C:a", "a\0", "a\n", "a.", ".. "] {
            let text = check_file_name(bad).unwrap_err().to_string();
            assert!(text.contains("refused") && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn written_back_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = reference(
            &[
                ("z", Crate::F32, &[1, 2], counting(8)),
                ("na\"me\n", Crate::BF16, &[3], counting(6)),
                ("scalar", Crate::I64, &[], counting(8)),
                ("empty", Crate::F64, &[0, 7], vec![]),
                ("empty_too", Crate::I64, &[0], vec![]),
                ("flag", Crate::BOOL, &[1], vec![1]),
                ("tiny", Crate::F8_E4M3, &[3], counting(3)),
            ],
            Some(("format", "pt")),
        );
        let path = dir.path().join("model.safetensors");
        fs::write(&path, &bytes).unwrap();
        let model = Model::open(&path).unwrap();
        let file = &model.files()[0];
        let layout: Vec<_> = file
            .tensors
            .iter()
            .map(|&i| {
                let tensor = &model.tensors()[i];
                (tensor.name.as_str(), tensor.dtype, tensor.shape.as_slice())
            })
            .collect();
        let out = dir.path().join("out");
        let mut writer = FolderWriter::create(&out, false).unwrap();
        writer.begin_file(&file.name, file.metadata.as_ref(), &layout).unwrap();
        for &index in &file.tensors {
            writer.write_tensor(model.bytes(index)).unwrap();
        }
        writer.end_file().unwrap();
        writer.commit().unwrap();
        assert_eq!(fs::read(out.join("model.safetensors")).unwrap(), bytes);
    }
}
