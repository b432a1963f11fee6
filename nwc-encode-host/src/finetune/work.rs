//! The folder of a fine-tuning: a file for each finished block, and claims of those who are at others.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use nwc_decode_core::DType;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{Report, Settings, Tensors};
use crate::atomic::AtomicFile;
use crate::forward::TensorSpec;
use crate::model::{Model, check_file_name};
use crate::parameters::HostTensor;
use crate::tensors::to_f32;
use crate::{Error, Result};

/// Time after which a claim that nobody renewed is taken for that of a process that died.
pub const STALE_AFTER: Duration = Duration::from_mins(5);
/// Time between renewals of a claim.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// Time between looks at what others have done.
pub(super) const POLL: Duration = Duration::from_millis(250);
/// Keys of a result's metadata.
const ORIGIN: &str = "nwc.origin";
const REPORT: &str = "nwc.report";
/// What is wrong with a file that has not what it must have.
const NO_RESULT: &str = "is no result of fine-tuning";

/// What results depend on besides the settings: texts that differ where these differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Which model.
    pub model: String,
    /// Which inputs of it.
    pub data: String,
    /// What [`Quantise`](crate::compress::Quantise) does.
    pub quantiser: String,
}

/// A folder in which each finished block is a file `BLOCK.safetensors`, complete as soon as it has its name.
///
/// Processes that share the folder, on one machine or several, take different blocks: who is at a block has made `BLOCK.claim`, and
/// renews its time of change every 20 seconds. A claim that is older than [`STALE_AFTER`], or whose process on this machine is
/// gone, is removed by whoever comes next. Claims only save work: results do not depend on who makes them, and two who are at
/// one block by mischance write the same bytes, if their processors compute alike.
#[derive(Debug, Clone)]
pub struct Work {
    /// The folder; it is made if it does not exist.
    pub folder: PathBuf,
    /// Whether to go on from what is in it, or to join those who work there.
    pub resume: bool,
    /// Of what the results are.
    pub origin: Origin,
}

impl Work {
    pub(super) fn open(&self, settings: &Settings) -> Result<Open<'_>> {
        let folder = &self.folder;
        fs::create_dir_all(folder).map_err(|error| Error::io("cannot make the folder", folder, error))?;
        let cannot = |error| Error::io("cannot list the folder", folder, error);
        if !self.resume && fs::read_dir(folder).map_err(cannot)?.next().is_some() {
            return Err(Error::input("is not empty")
                .file(folder)
                .remedy("add --resume to go on from what is in it, or remove it"));
        }
        let Origin { model, data, quantiser } = self.origin.clone();
        let settings = serde_json::to_string(settings).expect("numbers");
        let origin = [("model", model), ("data", data), ("codec", quantiser), ("settings", settings)];
        let origin = origin.map(|(what, text)| (what.to_owned(), text)).into();
        Ok(Open { folder, origin })
    }
}

/// A folder that is worked in.
#[derive(Debug)]
pub(super) struct Open<'a> {
    folder: &'a Path,
    origin: BTreeMap<String, String>,
}

/// Whose turn a block is.
pub(super) enum Turn {
    /// Nobody's: it is finished.
    Done((Tensors, Report)),
    /// That of whoever asks, until the claim is dropped.
    Ours(Claim),
    /// Somebody else's.
    Others,
}

impl Open<'_> {
    fn path(&self, block: &str, extension: &str) -> Result<PathBuf> {
        let name = format!("{block}.{extension}");
        check_file_name(&name)?;
        Ok(self.folder.join(name))
    }

    /// Looks whether what has this name is done, else claims it if it is free. `tensors` are those that it may change.
    ///
    /// # Errors
    /// The result is damaged or of something else; the operating system's.
    pub(super) fn take(&self, name: &str, tensors: &[TensorSpec]) -> Result<Turn> {
        if let Some(result) = self.read(name, tensors)? {
            return Ok(Turn::Done(result));
        }
        let Some(claim) = Claim::make(&self.path(name, "claim")?)? else { return Ok(Turn::Others) };
        // It may have been finished between the two.
        Ok(self.read(name, tensors)?.map_or(Turn::Ours(claim), Turn::Done))
    }

    /// Removes a result, if there is one.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name, "safetensors")?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("cannot remove", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// Writes a result, or what others can go on from.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn write(&self, name: &str, tensors: &Tensors, report: &Report) -> Result<()> {
        let path = self.path(name, "safetensors")?;
        let json = |value: serde_json::Result<String>| value.expect("strings and numbers");
        let metadata = HashMap::from([
            (ORIGIN.to_owned(), json(serde_json::to_string(&self.origin))),
            (REPORT.to_owned(), json(serde_json::to_string(report))),
        ]);
        let bytes: BTreeMap<&String, (&[usize], Vec<u8>)> = tensors
            .iter()
            .map(|(name, HostTensor { shape, values })| {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                (name, (&shape[..], bytes))
            })
            .collect();
        let views = bytes.iter().map(|(name, (shape, bytes))| {
            (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("as many as the shape says"))
        });
        let content = safetensors::serialize(views, Some(metadata)).expect("a header can be made");
        let mut file = AtomicFile::create(&path, true)?;
        file.file().write_all(&content).map_err(|error| Error::io("cannot write", &path, error))?;
        file.commit()
    }

    /// Reads what was written, if there is something.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(super) fn read(&self, name: &str, tensors: &[TensorSpec]) -> Result<Option<(Tensors, Report)>> {
        let path = self.path(name, "safetensors")?;
        if !path.exists() {
            return Ok(None);
        }
        let file = Model::open(&path)?;
        let entry = |key: &str| file.files()[0].metadata.as_ref()?.get(key);
        let origin =
            entry(ORIGIN).and_then(|text| serde_json::from_str::<BTreeMap<String, String>>(text).ok());
        let report = entry(REPORT).and_then(|text| serde_json::from_str::<Report>(text).ok());
        let (Some(origin), Some(report)) = (origin, report) else { return Err(bad(&path, NO_RESULT)) };
        if let Some((what, _)) = self.origin.iter().find(|(what, text)| origin.get(*what) != Some(text)) {
            let remedy = "give another folder, or the same model, data, codec and settings";
            return Err(Error::input(format!("was made with another {what}")).file(&path).remedy(remedy));
        }
        let shapes: HashMap<&String, &Vec<usize>> =
            tensors.iter().map(|spec| (&spec.name, &spec.shape)).collect();
        let mut tensors = HashMap::new();
        for (index, tensor) in file.tensors().iter().enumerate() {
            if tensor.dtype != DType::F32 || shapes.get(&tensor.name) != Some(&&tensor.shape) {
                return Err(bad(&path, "is no tensor that could change there").tensor(&tensor.name));
            }
            let values = to_f32(DType::F32, file.bytes(index));
            tensors.insert(tensor.name.clone(), HostTensor { shape: tensor.shape.clone(), values });
        }
        Ok(Some((tensors, report)))
    }
}

fn bad(path: &Path, problem: &str) -> Error {
    Error::input(problem).file(path).remedy("remove the file to make it anew")
}

/// Says that a block is being worked at, until it is dropped.
pub(super) struct Claim {
    path: PathBuf,
    owner: String,
    /// Dropped, it ends the thread.
    stop: Option<Sender<()>>,
    heart: Option<JoinHandle<()>>,
}

/// The name of this machine, where it can be told.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    name.or_else(|| std::env::var("COMPUTERNAME").ok()).unwrap_or_default().trim().to_owned()
}

/// Whether the owner of a claim was a process on this machine that is no more.
fn is_gone(owner: &str) -> bool {
    let mut fields = owner.lines();
    let (Some(process), Some(of)) = (fields.next(), fields.next()) else { return false };
    let processes = Path::new("/proc");
    process.parse::<u32>().is_ok()
        && !of.is_empty()
        && of == host()
        && processes.join("self").exists()
        && !processes.join(process).exists()
}

impl Claim {
    /// Makes one; none if somebody else has.
    fn make(path: &Path) -> Result<Option<Self>> {
        let cannot = |error| Error::io("cannot write", path, error);
        let number = rand::random::<u64>();
        let owner = format!("{}\n{}\n{number:016x}\n", std::process::id(), host());
        let mut file = match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if Self::is_stale(path)? {
                    // Whoever is first removes it; the next look finds the block free.
                    let _ = fs::remove_file(path);
                }
                return Ok(None);
            }
            Err(error) => return Err(cannot(error)),
        };
        file.write_all(owner.as_bytes()).map_err(cannot)?;
        let (stop, stopped) = channel::<()>();
        let heart = std::thread::spawn(move || {
            while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                // If this fails for long the claim becomes stale, and work is done twice.
                let _ = file.set_modified(SystemTime::now());
            }
        });
        Ok(Some(Self { path: path.to_owned(), owner, stop: Some(stop), heart: Some(heart) }))
    }

    /// Whether nobody renews it any more. Ages are told by the clock that gives files their times, which may be another machine's.
    fn is_stale(path: &Path) -> Result<bool> {
        let Ok(owner) = fs::read_to_string(path) else { return Ok(false) };
        if is_gone(&owner) {
            return Ok(true);
        }
        let changed = |file: &File| file.metadata().and_then(|metadata| metadata.modified());
        let folder = path.parent().unwrap_or(Path::new("."));
        let now = tempfile::tempfile_in(folder)
            .and_then(|mut file| {
                file.write_all(b"now")?;
                changed(&file)
            })
            .map_err(|error| Error::io("cannot make a file in the folder", folder, error))?;
        // It may have been dropped meanwhile.
        let Ok(then) = File::open(path).and_then(|file| changed(&file)) else { return Ok(false) };
        Ok(now.duration_since(then).is_ok_and(|age| age > STALE_AFTER))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(heart) = self.heart.take() {
            let _ = heart.join();
        }
        // Not one that somebody made who took this one for stale.
        if fs::read_to_string(&self.path).is_ok_and(|owner| owner == self.owner) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_exclude_others_until_they_are_dropped_or_stale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.claim");
        let claim = Claim::make(&path).unwrap().unwrap();
        assert!(Claim::make(&path).unwrap().is_none() && path.exists());
        drop(claim);
        assert!(!path.exists());

        // Of another machine, and old: it is removed first.
        fs::write(&path, "1\nelsewhere\n0\n").unwrap();
        let set = |age| {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        set(STALE_AFTER / 2);
        assert!(Claim::make(&path).unwrap().is_none() && path.exists());
        set(STALE_AFTER * 2);
        assert!(Claim::make(&path).unwrap().is_none() && !path.exists());
        assert!(Claim::make(&path).unwrap().is_some());

        // One that somebody else made since then stays.
        let claim = Claim::make(&path).unwrap().unwrap();
        fs::write(&path, "1\nelsewhere\n0\n").unwrap();
        drop(claim);
        assert!(path.exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn claims_of_processes_that_are_gone_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.claim");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        fs::write(&path, format!("{}\n{}\n0\n", child.id(), host())).unwrap();
        assert!(Claim::make(&path).unwrap().is_none() && !path.exists());
    }
}
