//! Writes a model folder back.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::ser::{Serialize, SerializeMap, Serializer};
use tempfile::{Builder, TempDir};

use super::check_file_name;
use super::header::{LENGTH_BYTES, MAX_HEADER_BYTES, METADATA_KEY};
use crate::atomic::{FORCE_REMEDY, parent_folder, sync_folder};
use crate::error::{Error, Result};
use nwc_decode_core::DType;

/// Bytes collected before a write to the operating system.
const BUFFER_BYTES: usize = 1 << 20;

/// Name, element type and shape (in elements, outermost first) of a tensor to be written.
pub type TensorLayout<'a> = (&'a str, DType, &'a [usize]);

/// A model folder that is built beside its destination and takes its name in [`FolderWriter::commit`].
///
/// Dropped without a commit it vanishes, and what was at the destination before is untouched.
///
/// File names are checked with [`check_file_name`], so that they may come from an
/// untrusted container.
#[derive(Debug)]
pub struct FolderWriter {
    destination: PathBuf,
    force: bool,
    folder: TempDir,
    current: Option<OpenFile>,
    /// A write failed: a file in the folder is incomplete.
    failed: bool,
}

/// The safetensors file that is being written.
#[derive(Debug)]
struct OpenFile {
    name: String,
    out: BufWriter<File>,
    /// Name and length in bytes of each tensor.
    tensors: Vec<(String, usize)>,
    written: usize,
}

impl FolderWriter {
    /// Starts a folder that will be at `destination`.
    ///
    /// With `force` a folder that is there is replaced as a whole: all files in it are lost at the end.
    ///
    /// # Errors
    /// If `destination` is a folder with files in it and `force` is not given, or something that a rename
    /// cannot replace: a file, a mount point, or a folder around the current one. If the folder around it does
    /// not exist or cannot be written to.
    pub fn create(destination: &Path, force: bool) -> Result<Self> {
        let destination = check_destination(destination, force)?;
        let parent = parent_folder(&destination)?;
        let mut builder = Builder::new();
        builder.prefix(".nwc-partial-");
        // The default of 0700 is for secrets. This asks for what any new folder gets; the umask applies.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let folder = builder.tempdir_in(parent).map_err(|error| {
            Error::io("cannot create a folder in", parent, error)
                .remedy("choose a folder that you may write to")
        })?;
        Ok(Self { destination, force, folder, current: None, failed: false })
    }

    /// Where the folder will be.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Writes a whole file, such as `config.json`.
    ///
    /// # Errors
    /// If the name is not a plain file name or is taken, or if the disk is full or fails.
    pub fn add_file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.new_file(name)?;
        let result = file.write_all(bytes).and_then(|()| file.sync_all());
        self.check_write(name, result)
    }

    /// Starts a safetensors file with these tensors, in this order, and writes its header.
    ///
    /// [`write_tensor`](Self::write_tensor) has to follow once for each tensor, then
    /// [`end_file`](Self::end_file).
    ///
    /// # Errors
    /// If another file is not ended yet, if the name is not a plain file name or is taken, if the tensors
    /// cannot be described in a header (a name twice, sizes beyond the address space), or if the disk is full
    /// or fails.
    pub fn begin_file(
        &mut self,
        name: &str,
        metadata: Option<&BTreeMap<String, String>>,
        tensors: &[TensorLayout<'_>],
    ) -> Result<()> {
        if let Some(current) = &self.current {
            return Err(self.misuse(&current.name, "is not ended yet"));
        }
        let lengths = byte_lengths(tensors).map_err(|error| error.file(self.destination.join(name)))?;
        let header = encode_header(metadata, tensors, &lengths)
            .map_err(|error| error.file(self.destination.join(name)))?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, self.new_file(name)?);
        let result =
            out.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| out.write_all(&header));
        self.check_write(name, result)?;
        let tensors =
            tensors.iter().zip(lengths).map(|((name, ..), len)| ((*name).to_owned(), len)).collect();
        self.current = Some(OpenFile { name: name.to_owned(), out, tensors, written: 0 });
        Ok(())
    }

    /// Writes the values of the next tensor: little-endian, row-major.
    ///
    /// # Errors
    /// If no file is begun or it has no further tensor, if `bytes` is not as long as type and shape of the
    /// tensor require, or if the disk is full or fails.
    pub fn write_tensor(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(current) = &mut self.current else {
            return Err(self.misuse("", "has no file begun"));
        };
        let Some((tensor, expected)) = current.tensors.get(current.written) else {
            let name = current.name.clone();
            return Err(self.misuse(&name, "has no further tensor"));
        };
        if bytes.len() != *expected {
            return Err(Error::input(format!("{} bytes of values where {expected} belong", bytes.len()))
                .file(self.destination.join(&current.name))
                .tensor(tensor)
                .remedy("the data are damaged, get them again"));
        }
        let result = current.out.write_all(bytes);
        current.written += 1;
        let name = current.name.clone();
        self.check_write(&name, result)
    }

    /// Ends the safetensors file.
    ///
    /// # Errors
    /// If no file is begun or tensors are missing, or if the disk is full or fails.
    pub fn end_file(&mut self) -> Result<()> {
        let Some(current) = self.current.take() else {
            return Err(self.misuse("", "has no file begun"));
        };
        if let Some((tensor, _)) = current.tensors.get(current.written) {
            let error = self.misuse(&current.name, "lacks the values of the tensor").tensor(tensor);
            self.current = Some(current);
            return Err(error);
        }
        let OpenFile { name, out, .. } = current;
        // To the disk before the folder gets its name: else a power failure can leave holes in the files.
        let result = out.into_inner().map_err(io::IntoInnerError::into_error).and_then(|f| f.sync_all());
        self.check_write(&name, result)
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// If a file is not ended, an earlier write failed, something has appeared at the destination meanwhile
    /// that may not be replaced, or the renaming fails. The files at the destination are as they were
    /// then. If only the removal of the replaced folder fails, the new one is in place and the message says
    /// where the old one is.
    pub fn commit(self) -> Result<()> {
        if let Some(current) = &self.current {
            return Err(self.misuse(&current.name, "is not ended yet"));
        }
        if self.failed {
            return Err(self.misuse("", "is incomplete because a write failed"));
        }
        sync_folder(self.folder.path());
        let destination = check_destination(&self.destination, self.force)?;
        let parent = parent_folder(&destination)?;
        let cannot = |error| Error::io("cannot put the finished folder in place", &destination, error);

        let mut aside = None;
        if destination.is_dir() {
            match fs::remove_dir(&destination) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty && self.force => {
                    // Its own folder gives the old one a free name. It is kept from the start: whatever fails
                    // from here on must not take the user's files with it.
                    let holder =
                        Builder::new().prefix(".nwc-replaced-").tempdir_in(parent).map_err(cannot)?.keep();
                    let old = holder.join("old");
                    if let Err(error) = fs::rename(&destination, &old) {
                        let _ = fs::remove_dir(&holder);
                        return Err(cannot(error));
                    }
                    aside = Some((holder, old));
                }
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                    return Err(not_empty(&destination));
                }
                Err(error) => return Err(cannot(error)),
            }
        }
        if let Err(error) = fs::rename(self.folder.path(), &destination) {
            if let Some((holder, old)) = aside {
                if fs::rename(&old, &destination).is_err() {
                    return Err(cannot(error)
                        .remedy(format!("the old folder is now {}, move it back", old.display())));
                }
                let _ = fs::remove_dir(&holder);
            }
            return Err(cannot(error));
        }
        // It is no longer temporary: without this, dropping it would look for the old name.
        let _ = self.folder.keep();
        sync_folder(parent);
        if let Some((holder, _)) = aside {
            fs::remove_dir_all(&holder).map_err(|error| {
                Error::io("the new folder is in place but the old one cannot be removed", &holder, error)
                    .remedy("remove it by hand")
            })?;
        }
        Ok(())
    }

    /// Creates a file in the folder under construction.
    fn new_file(&mut self, name: &str) -> Result<File> {
        check_file_name(name).map_err(|error| error.file(&self.destination))?;
        // `create_new` also catches names that differ only in a way the file system ignores.
        File::create_new(self.folder.path().join(name)).map_err(|error| {
            let path = self.destination.join(name);
            if error.kind() == ErrorKind::AlreadyExists {
                Error::input("two files have this name")
                    .file(path)
                    .remedy("the data are damaged, get them again")
            } else {
                self.failed = true;
                Error::io("cannot create", &path, error)
            }
        })
    }

    /// Adds the file to an I/O error and remembers that there was one.
    fn check_write(&mut self, name: &str, result: io::Result<()>) -> Result<()> {
        result.map_err(|error| {
            self.failed = true;
            Error::io("cannot write", &self.destination.join(name), error)
                .remedy("make sure that the disk has room")
        })
    }

    /// The caller did things in the wrong order.
    fn misuse(&self, name: &str, problem: &str) -> Error {
        let path = if name.is_empty() { self.destination.clone() } else { self.destination.join(name) };
        Error::input(problem).file(path).remedy("write every tensor of a file, then end the file")
    }
}

/// Checks that a folder can be put at `path` and resolves links in what is there.
fn check_destination(path: &Path, force: bool) -> Result<PathBuf> {
    let cannot = |error| Error::io("cannot use the folder", path, error);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return if path.file_name().is_some() {
                Ok(path.to_owned())
            } else {
                Err(Error::input("is not the name of a folder").file(path).remedy("give a folder name"))
            };
        }
        Err(error) => return Err(cannot(error)),
        Ok(_) => {}
    }
    let resolved = fs::canonicalize(path).map_err(|error| {
        Error::io("cannot resolve the link", path, error).remedy("remove it or choose another name")
    })?;
    if !resolved.is_dir() {
        return Err(Error::input("is a file, not a folder").file(path).remedy("choose another name"));
    }
    if !force && fs::read_dir(&resolved).map_err(cannot)?.next().is_some() {
        return Err(not_empty(path));
    }
    // Replacing these would pull the floor from under the shell, or take a whole home folder with it.
    let current = std::env::current_dir().and_then(fs::canonicalize);
    if current.is_ok_and(|current| current.starts_with(&resolved)) || resolved.parent().is_none() {
        return Err(Error::input("the current folder and those around it cannot be replaced")
            .file(path)
            .remedy("name a new folder inside it"));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        // Known now rather than after all the work: a mount point cannot be renamed over.
        let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
        if device(&resolved).map_err(cannot)? != device(parent_folder(&resolved)?).map_err(cannot)? {
            return Err(Error::input("is a mount point and cannot be replaced")
                .file(path)
                .remedy("name a new folder inside it"));
        }
    }
    Ok(resolved)
}

fn not_empty(path: &Path) -> Error {
    Error::input("exists and is not empty").file(path).remedy(FORCE_REMEDY)
}

/// The length of the values of each tensor, in bytes.
pub(crate) fn byte_lengths(tensors: &[TensorLayout<'_>]) -> Result<Vec<usize>> {
    let mut seen = HashSet::new();
    let mut total = 0_usize;
    let mut lengths = Vec::with_capacity(tensors.len());
    for (name, dtype, shape) in tensors {
        let bad = |problem: &str| {
            Err(Error::input(problem).tensor(*name).remedy("the data are damaged, get them again"))
        };
        if *name == METADATA_KEY {
            return bad("a tensor cannot have this name");
        }
        if !seen.insert(*name) {
            return bad("two tensors have this name");
        }
        // Readers multiply in this order too, so that a tensor without elements is judged as they do.
        let length = shape
            .iter()
            .try_fold(1_usize, |elements, &extent| elements.checked_mul(extent))
            .and_then(|elements| elements.checked_mul(dtype.size()));
        let Some((length, sum)) = length.and_then(|n| Some((n, total.checked_add(n)?))) else {
            return bad("is larger than the address space");
        };
        lengths.push(length);
        total = sum;
    }
    Ok(lengths)
}

/// The JSON header as the safetensors libraries write it, padded with spaces to a multiple of 8 bytes.
pub(crate) fn encode_header(
    metadata: Option<&BTreeMap<String, String>>,
    tensors: &[TensorLayout<'_>],
    lengths: &[usize],
) -> Result<Vec<u8>> {
    let mut header = serde_json::to_vec(&HeaderJson { metadata, tensors, lengths }).map_err(|error| {
        Error::input(format!("cannot encode the safetensors header: {error}")).source(error)
    })?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    if header.len() > MAX_HEADER_BYTES {
        return Err(Error::input(format!(
            "the safetensors header of {} bytes is longer than readers accept, {MAX_HEADER_BYTES} bytes",
            header.len()
        ))
        .remedy("split the model into several files"));
    }
    Ok(header)
}

/// Serialises in the order given, which no map type would keep.
struct HeaderJson<'a> {
    metadata: Option<&'a BTreeMap<String, String>>,
    tensors: &'a [TensorLayout<'a>],
    lengths: &'a [usize],
}

#[derive(serde::Serialize)]
struct EntryJson<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [usize; 2],
}

impl Serialize for HeaderJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(metadata) = self.metadata {
            map.serialize_entry(METADATA_KEY, metadata)?;
        }
        let mut start = 0;
        for ((name, dtype, shape), length) in self.tensors.iter().zip(self.lengths) {
            let end = start + length;
            map.serialize_entry(name, &EntryJson { dtype: dtype.name(), shape, data_offsets: [start, end] })?;
            start = end;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn write_minimal(destination: &Path, force: bool, text: &str) -> Result<()> {
        let mut writer = FolderWriter::create(destination, force)?;
        writer.add_file("config.json", text.as_bytes())?;
        writer.commit()
    }

    #[test]
    fn appears_on_commit_only() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut writer = FolderWriter::create(&out, false).unwrap();
        assert_eq!(writer.destination(), out);
        writer.add_file("config.json", b"{}").unwrap();
        writer.begin_file("model.safetensors", None, &[("w", DType::U8, &[2])]).unwrap();
        writer.write_tensor(&[1, 2]).unwrap();
        writer.end_file().unwrap();
        assert!(!out.exists());
        writer.commit().unwrap();
        assert_eq!(entries(dir.path()), ["out"]);
        assert_eq!(entries(&out), ["config.json", "model.safetensors"]);
    }

    #[test]
    fn vanishes_without_commit() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = FolderWriter::create(&dir.path().join("out"), false).unwrap();
        writer.add_file("config.json", b"{}").unwrap();
        writer.begin_file("a.safetensors", None, &[("w", DType::U8, &[2])]).unwrap();
        assert_eq!(entries(dir.path()).len(), 1);
        drop(writer);
        assert!(entries(dir.path()).is_empty());
    }

    #[test]
    fn existing_destinations() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        write_minimal(&out, false, "one").unwrap();
        fs::write(out.join("extra"), "").unwrap();
        let text = write_minimal(&out, false, "two").unwrap_err().to_string();
        assert!(text.ends_with("out: exists and is not empty; use --force to overwrite it"), "{text}");

        let mut writer = FolderWriter::create(&out, true).unwrap();
        writer.add_file("config.json", b"three").unwrap();
        drop(writer);
        assert_eq!(entries(&out), ["config.json", "extra"]);
        write_minimal(&out, true, "four").unwrap();
        assert_eq!(entries(&out), ["config.json"]);
        assert_eq!(fs::read(out.join("config.json")).unwrap(), b"four");
        assert_eq!(entries(dir.path()), ["out"]);

        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(write_minimal(&file, true, "").unwrap_err().to_string().contains("is a file"));
        let orphan = dir.path().join("none").join("out");
        assert!(write_minimal(&orphan, true, "").unwrap_err().to_string().contains("create it first"));
    }

    #[test]
    fn destination_filled_meanwhile_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut writer = FolderWriter::create(&out, false).unwrap();
        writer.add_file("a", b"").unwrap();
        fs::create_dir(&out).unwrap();
        fs::write(out.join("theirs"), "").unwrap();
        assert!(writer.commit().unwrap_err().to_string().contains("not empty"));
        assert_eq!(entries(&out), ["theirs"]);
        assert_eq!(entries(dir.path()), ["out"]);
    }

    #[test]
    fn surroundings_of_the_current_folder_are_safe() {
        let current = std::env::current_dir().unwrap();
        for path in [Path::new("."), &current, current.parent().unwrap(), Path::new("/")] {
            let text = FolderWriter::create(path, true).unwrap_err().to_string();
            assert!(text.contains("cannot be replaced"), "{text}");
        }
        assert!(FolderWriter::create(Path::new(""), true).is_err());
        assert!(FolderWriter::create(Path::new("no-such-folder/.."), true).is_err());
    }

    #[test]
    fn hostile_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = FolderWriter::create(&dir.path().join("out"), false).unwrap();
        for name in ["", "..", "../x", "/tmp/x", "a/b", "a\\b", "a\0b", "C:x"] {
            assert!(writer.add_file(name, b"x").unwrap_err().to_string().contains("refused"), "{name:?}");
            assert!(
                writer.begin_file(name, None, &[]).unwrap_err().to_string().contains("refused"),
                "{name:?}"
            );
        }
        writer.add_file("a", b"1").unwrap();
        assert!(writer.add_file("a", b"2").unwrap_err().to_string().contains("two files"));
        writer.commit().unwrap();
        assert_eq!(entries(dir.path()), ["out"]);
        assert_eq!(fs::read(dir.path().join("out").join("a")).unwrap(), b"1");
    }

    #[test]
    fn wrong_order_and_lengths() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = FolderWriter::create(&dir.path().join("out"), false).unwrap();
        assert!(writer.write_tensor(&[]).is_err());
        assert!(writer.end_file().is_err());
        let bad: [&[TensorLayout<'_>]; 4] = [
            &[("w", DType::U8, &[]), ("w", DType::U8, &[])],
            &[(METADATA_KEY, DType::U8, &[])],
            &[("w", DType::F32, &[usize::MAX])],
            &[("v", DType::U8, &[usize::MAX]), ("w", DType::U8, &[1])],
        ];
        for tensors in bad {
            let text = writer.begin_file("a", None, tensors).unwrap_err().to_string();
            assert!(text.contains("out/a: tensor") || cfg!(windows), "{text}");
        }
        writer.begin_file("a", None, &[("w", DType::F32, &[2, 3])]).unwrap();
        assert!(writer.begin_file("b", None, &[]).unwrap_err().to_string().contains("not ended"));
        let text = writer.write_tensor(&[0; 23]).unwrap_err().to_string();
        assert!(text.contains("tensor \"w\": 23 bytes of values where 24 belong"), "{text}");
        assert!(writer.end_file().unwrap_err().to_string().contains("lacks"));
        writer.write_tensor(&[0; 24]).unwrap();
        assert!(writer.write_tensor(&[0; 24]).unwrap_err().to_string().contains("no further"));
        writer.end_file().unwrap();
        writer.begin_file("b", None, &[("w", DType::U8, &[0])]).unwrap();
        assert!(writer.commit().unwrap_err().to_string().contains("not ended"));
        assert!(entries(dir.path()).is_empty());
    }

    #[test]
    fn header_layout() {
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let tensors: [TensorLayout<'_>; 2] = [("b", DType::F16, &[1, 2]), ("a", DType::Bool, &[])];
        let lengths = byte_lengths(&tensors).unwrap();
        let header = encode_header(Some(&metadata), &tensors, &lengths).unwrap();
        assert_eq!(header.len() % 8, 0);
        assert_eq!(
            std::str::from_utf8(&header).unwrap().trim_end(),
            "{\"__metadata__\":{\"format\":\"pt\"},\
             \"b\":{\"dtype\":\"F16\",\"shape\":[1,2],\"data_offsets\":[0,4]},\
             \"a\":{\"dtype\":\"BOOL\",\"shape\":[],\"data_offsets\":[4,5]}}"
        );
        assert_eq!(encode_header(None, &[], &[]).unwrap(), b"{}      ");
    }

    #[cfg(unix)]
    #[test]
    fn link_to_a_folder_is_followed() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        let plain_mode = fs::metadata(&real).unwrap().permissions().mode();
        let link = dir.path().join("link");
        symlink(&real, &link).unwrap();
        write_minimal(&link, false, "x").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(real.join("config.json")).unwrap(), b"x");
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode(), plain_mode);
        symlink(dir.path().join("none"), dir.path().join("broken")).unwrap();
        assert!(write_minimal(&dir.path().join("broken"), true, "x").is_err());
    }
}
