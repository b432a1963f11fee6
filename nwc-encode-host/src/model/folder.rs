//! Finds the weight files and the attachments in a model folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::name_problem;
use crate::error::{Error, Result};

/// The weight file of a model in one piece.
const SINGLE: &str = "model.safetensors";

/// The list of the weight files of a model in several pieces.
const INDEX: &str = "model.safetensors.index.json";

/// Files above this size are not attached, in bytes. Tokenizers and configurations stay far below.
pub const MAX_ATTACHMENT_BYTES: u64 = 64 << 20;

/// File name extensions of weights and of other large artefacts, which the container replaces.
const WEIGHT_EXTENSIONS: [&str; 23] = [
    "safetensors",
    "bin",
    "pt",
    "pt2",
    "pth",
    "ckpt",
    "h5",
    "hdf5",
    "msgpack",
    "onnx",
    "onnx_data",
    "gguf",
    "ggml",
    "npz",
    "nwc",
    "tflite",
    "pb",
    "pdparams",
    "ot",
    "mlmodel",
    "pkl",
    "pickle",
    "llamafile",
];

/// A file that travels with the weights unchanged, such as `config.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// File name without a folder.
    pub name: String,
    /// Where to read it.
    pub path: PathBuf,
}

/// Something in the model folder that will not be in the restored folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// File name without a folder; characters that are not Unicode are replaced.
    pub name: String,
    /// Why it is left out.
    pub reason: SkipReason,
}

/// Why something in the model folder is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// Weights that do not belong to the model that was opened, or in another format.
    Weights,
    /// Above [`MAX_ATTACHMENT_BYTES`].
    TooLarge {
        /// Size of the file in bytes.
        bytes: u64,
    },
    /// The name begins with a dot.
    Hidden,
    /// A folder inside the model folder.
    Folder,
    /// The name could not be restored safely on every system.
    Name,
    /// Neither a file nor a folder, such as a broken link.
    NotAFile,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weights => f.write_str("weights that are not part of this model"),
            Self::TooLarge { bytes } => {
                write!(f, "{} MiB, above the limit of {} MiB", bytes >> 20, MAX_ATTACHMENT_BYTES >> 20)
            }
            Self::Hidden => f.write_str("hidden file"),
            Self::Folder => f.write_str("folder"),
            Self::Name => f.write_str("name that some systems cannot store"),
            Self::NotAFile => f.write_str("not a regular file"),
        }
    }
}

/// What a model folder holds.
pub(super) struct Contents {
    /// Names of the weight files, in order.
    pub(super) weights: Vec<String>,
    pub(super) attachments: Vec<Attachment>,
    pub(super) skipped: Vec<Skipped>,
}

/// The part of an index file that is used: tensor name to shard name.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Looks through the model folder `root`.
pub(super) fn scan(root: &Path) -> Result<Contents> {
    let mut attachments = Vec::new();
    let mut skipped = Vec::new();
    let mut safetensors = Vec::new();
    let list_error = |error| Error::io("cannot list the folder", root, error);
    for entry in fs::read_dir(root).map_err(list_error)? {
        let entry = entry.map_err(list_error)?;
        let file_name = entry.file_name();
        let name = file_name.to_string_lossy().into_owned();
        // Follows links on purpose: download caches keep models as folders of links.
        let reason = match fs::metadata(entry.path()) {
            _ if name.starts_with('.') => SkipReason::Hidden,
            Err(_) => SkipReason::NotAFile,
            Ok(metadata) if metadata.is_dir() => SkipReason::Folder,
            Ok(metadata) if !metadata.is_file() => SkipReason::NotAFile,
            Ok(_) if file_name.to_str().is_none() || name_problem(&name).is_some() => SkipReason::Name,
            Ok(_) if is_safetensors(&name) => {
                safetensors.push(name);
                continue;
            }
            Ok(_) if has_weight_extension(&name) => SkipReason::Weights,
            Ok(metadata) if metadata.len() > MAX_ATTACHMENT_BYTES => {
                SkipReason::TooLarge { bytes: metadata.len() }
            }
            Ok(_) => {
                attachments.push(Attachment { name, path: entry.path() });
                continue;
            }
        };
        skipped.push(Skipped { name, reason });
    }
    safetensors.sort();

    let weights = choose_weights(root, &safetensors, &skipped)?;
    skipped.extend(
        safetensors
            .into_iter()
            .filter(|name| !weights.contains(name))
            .map(|name| Skipped { name, reason: SkipReason::Weights }),
    );
    attachments.sort_by(|a, b| a.name.cmp(&b.name));
    skipped.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Contents { weights, attachments, skipped })
}

fn is_safetensors(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors"))
}

fn has_weight_extension(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| WEIGHT_EXTENSIONS.iter().any(|w| e.eq_ignore_ascii_case(w)))
}

/// Decides which of the `candidates`, the sorted safetensors files of the folder, make up the model.
fn choose_weights(root: &Path, candidates: &[String], skipped: &[Skipped]) -> Result<Vec<String>> {
    // The same order as other loaders: one whole file before an index, which may be a leftover.
    if candidates.iter().any(|name| name == SINGLE) {
        return Ok(vec![SINGLE.to_owned()]);
    }
    // An unfinished download must not make another file of the folder the model.
    if skipped.iter().any(|s| s.name == SINGLE) {
        return Err(Error::input("not a readable file, perhaps a broken link")
            .file(root.join(SINGLE))
            .remedy("download the model again"));
    }
    let index = root.join(INDEX);
    match fs::read(&index) {
        Ok(text) => return shards(&index, &text, candidates),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("cannot read the index", &index, error)),
    }
    let named_model: Vec<&String> = candidates.iter().filter(|name| name.starts_with("model")).collect();
    let chosen = if named_model.is_empty() { candidates.iter().collect() } else { named_model };
    match chosen.as_slice() {
        [only] => Ok(vec![(*only).clone()]),
        [] => Err(no_weights(root, skipped)),
        several => Err(Error::input(format!(
            "the folder has {} safetensors files that may be the model and no {INDEX} to say which: {}",
            several.len(),
            shorten(several)
        ))
        .file(root)
        .remedy(format!("give one of the files instead of the folder, or add {INDEX}"))),
    }
}

fn no_weights(root: &Path, skipped: &[Skipped]) -> Error {
    let other = skipped.iter().find(|s| s.reason == SkipReason::Weights);
    let error = Error::input("the folder has no .safetensors file").file(root);
    match other {
        Some(other) => error.remedy(format!("convert {:?} to safetensors first", other.name)),
        None => error.remedy("give a model folder with model.safetensors, or a .safetensors file"),
    }
}

/// The first few names, for a message that has to stay on one line.
fn shorten(names: &[&String]) -> String {
    const SHOWN: usize = 4;
    let mut text = names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(", ...");
    }
    text
}

/// The shard files that an index lists.
///
/// Nothing else of the index is used: which tensor is where, and how many bytes there are in all, is often
/// wrong in published indexes, while the headers of the shards cannot be.
fn shards(index: &Path, text: &[u8], candidates: &[String]) -> Result<Vec<String>> {
    let parsed: Index = serde_json::from_slice(text).map_err(|error| {
        Error::input(format!("the index is invalid: {error}"))
            .file(index)
            .remedy("download the index again, or give one .safetensors file instead of the folder")
            .source(error)
    })?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(Error::input("the index lists no shard").file(index).remedy("download the index again"));
    }
    for name in &names {
        if let Some(problem) = name_problem(name) {
            return Err(Error::input(format!(
                "the index lists the shard {name:?}, refused because {problem}"
            ))
            .file(index)
            .remedy("correct the index: shards are plain file names in the same folder"));
        }
        if !is_safetensors(name) {
            return Err(Error::input(format!("the index lists {name:?}, which is not a .safetensors file"))
                .file(index)
                .remedy("correct the index"));
        }
        if !candidates.contains(name) {
            return Err(Error::input(format!("the shard {name:?} is missing from the folder"))
                .file(index)
                .remedy("download the shard into the same folder, or correct the index"));
        }
    }
    Ok(names.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, names: &[&str]) {
        for name in names {
            fs::write(root.join(name), b"x").unwrap();
        }
    }

    fn names<T>(items: &[T], name: impl Fn(&T) -> &str) -> Vec<&str> {
        items.iter().map(name).collect()
    }

    #[test]
    fn prefers_single_file_and_reports_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        touch(
            dir.path(),
            &[
                "model.safetensors",
                "other.safetensors",
                "pytorch_model.BIN",
                "config.json",
                ".gitattributes",
                "merges.txt",
                INDEX,
            ],
        );
        fs::create_dir(dir.path().join("onnx")).unwrap();
        let large = fs::File::create(dir.path().join("huge.txt")).unwrap();
        large.set_len(MAX_ATTACHMENT_BYTES + 1).unwrap();
        let limit = fs::File::create(dir.path().join("limit.txt")).unwrap();
        limit.set_len(MAX_ATTACHMENT_BYTES).unwrap();

        let contents = scan(dir.path()).unwrap();
        assert_eq!(contents.weights, ["model.safetensors"]);
        assert_eq!(
            names(&contents.attachments, |a| &a.name),
            ["config.json", "limit.txt", "merges.txt", INDEX]
        );
        let skipped: Vec<_> = contents.skipped.iter().map(|s| (s.name.as_str(), s.reason)).collect();
        assert_eq!(
            skipped,
            [
                (".gitattributes", SkipReason::Hidden),
                ("huge.txt", SkipReason::TooLarge { bytes: MAX_ATTACHMENT_BYTES + 1 }),
                ("onnx", SkipReason::Folder),
                ("other.safetensors", SkipReason::Weights),
                ("pytorch_model.BIN", SkipReason::Weights),
            ]
        );
    }

    #[test]
    fn falls_back_to_the_only_candidate() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["open_clip.safetensors", "._model.safetensors"]);
        assert_eq!(scan(dir.path()).unwrap().weights, ["open_clip.safetensors"]);
        touch(dir.path(), &["model.fp16.safetensors"]);
        assert_eq!(scan(dir.path()).unwrap().weights, ["model.fp16.safetensors"]);
        touch(dir.path(), &["model-00002-of-00002.safetensors"]);
        let text = scan(dir.path()).err().unwrap().to_string();
        assert!(text.contains("2 safetensors files") && text.contains("model.fp16"), "{text}");
    }

    #[test]
    fn several_unnamed_candidates_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let many = ["a", "b", "c", "d", "e"].map(|stem| format!("{stem}.safetensors"));
        touch(dir.path(), &many.each_ref().map(String::as_str));
        let text = scan(dir.path()).err().unwrap().to_string();
        assert!(text.contains("5 safetensors files") && text.contains("..."), "{text}");
    }

    #[test]
    fn no_weights_suggests_conversion() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["config.json"]);
        assert!(scan(dir.path()).err().unwrap().to_string().contains("no .safetensors file"));
        touch(dir.path(), &["pytorch_model.bin"]);
        assert!(scan(dir.path()).err().unwrap().to_string().contains("convert \"pytorch_model.bin\""));
    }

    #[test]
    fn index_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["s1.safetensors", "s2.safetensors"]);
        let index = dir.path().join(INDEX);
        let scan_with = |text: &str| {
            fs::write(&index, text).unwrap();
            scan(dir.path()).map(|c| c.weights).map_err(|e| e.to_string())
        };
        let listed = scan_with(
            r#"{"metadata":7,"weight_map":{"x":"s2.safetensors","y":"s1.safetensors","z":"s2.safetensors"}}"#,
        );
        assert_eq!(listed.unwrap(), ["s1.safetensors", "s2.safetensors"]);
        let missing = scan_with(r#"{"weight_map":{"x":"s3.safetensors"}}"#).unwrap_err();
        assert!(missing.contains("s3.safetensors\" is missing") && missing.contains("download"), "{missing}");
        for escape in
            ["../s1.safetensors", "/etc/s1.safetensors", "..", "a\\\\b.safetensors", "C:x.safetensors"]
        {
            let text = scan_with(&format!(r#"{{"weight_map":{{"x":"{escape}"}}}}"#)).unwrap_err();
            assert!(text.contains("refused"), "{escape}: {text}");
        }
        assert!(
            scan_with(r#"{"weight_map":{"x":"config.json"}}"#).unwrap_err().contains("not a .safetensors")
        );
        assert!(scan_with(r#"{"weight_map":{}}"#).unwrap_err().contains("lists no shard"));
        assert!(scan_with("{").unwrap_err().contains("index is invalid"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_broken_links_reported() {
        use std::os::unix::fs::symlink;
        let blobs = tempfile::tempdir().unwrap();
        touch(blobs.path(), &["0123", "4567"]);
        let dir = tempfile::tempdir().unwrap();
        symlink(blobs.path().join("0123"), dir.path().join("config.json")).unwrap();
        symlink(blobs.path().join("none"), dir.path().join("vocab.json")).unwrap();
        symlink(blobs.path().join("4567"), dir.path().join("x.safetensors")).unwrap();
        let contents = scan(dir.path()).unwrap();
        assert_eq!(contents.weights, ["x.safetensors"]);
        assert_eq!(names(&contents.attachments, |a| &a.name), ["config.json"]);
        assert_eq!(contents.skipped, [Skipped { name: "vocab.json".into(), reason: SkipReason::NotAFile }]);
        symlink(blobs.path().join("none"), dir.path().join(SINGLE)).unwrap();
        assert!(scan(dir.path()).err().unwrap().to_string().contains("broken link"));
    }
}
