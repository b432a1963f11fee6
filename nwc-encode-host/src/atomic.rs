//! Output files that appear under their name only when they are complete.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use crate::error::{Error, Result};

/// What to do when an output exists already.
pub(crate) const FORCE_REMEDY: &str = "use --force to overwrite it";

/// A file that is written beside its target and takes the target's name in [`AtomicFile::commit`].
///
/// Dropped without a commit it vanishes, and what was at the target before is untouched.
#[derive(Debug)]
pub struct AtomicFile {
    file: NamedTempFile,
    target: PathBuf,
    force: bool,
}

impl AtomicFile {
    /// Starts a file that will be at `path`. With `force` an existing regular file is overwritten.
    ///
    /// # Errors
    /// If `path` exists and `force` is not given, or is not a regular file; if its folder does not exist or
    /// cannot be written to.
    pub fn create(path: &Path, force: bool) -> Result<Self> {
        let mut target = path.to_owned();
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("cannot write", path, error)),
            Ok(_) if !force => return Err(exists(path)),
            // Through a link, so that `--force` replaces what it points to as plain writing would. A link to
            // nothing is replaced itself.
            Ok(_) => match fs::metadata(path) {
                Ok(metadata) if !metadata.is_file() => {
                    let what = if metadata.is_dir() { "is a folder" } else { "is not a regular file" };
                    return Err(Error::input(what).file(path).remedy("give the name of a file"));
                }
                Ok(_) => {
                    target =
                        fs::canonicalize(path).map_err(|e| Error::io("cannot resolve the link", path, e))?;
                }
                Err(_) => {}
            },
        }
        if target.file_name().is_none() {
            return Err(Error::input("is not the name of a file").file(path).remedy("give a file name"));
        }
        let folder = parent_folder(&target)?;
        let mut builder = Builder::new();
        builder.prefix(".nwc-partial-");
        // The default of 0600 is for secrets. This asks for what any new file gets; the umask applies.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(|error| {
            Error::io("cannot create a file in the folder", folder, error)
                .remedy("choose a folder that you may write to")
        })?;
        Ok(Self { file, target, force })
    }

    /// Where the file will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The file to write to; it can be read back too.
    pub fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Writes everything to the disk and gives the file its name.
    ///
    /// # Errors
    /// If the disk is full or fails, or if without `force` something has appeared at the target meanwhile.
    /// The target is untouched then.
    pub fn commit(self) -> Result<()> {
        let Self { file, target, force } = self;
        let cannot = |error| Error::io("cannot write", &target, error);
        // Before the name: else a power failure can leave the name with nothing behind it.
        file.as_file().sync_all().map_err(cannot)?;
        let renamed = if force { file.persist(&target) } else { file.persist_noclobber(&target) };
        renamed.map_err(|error| match error.error.kind() {
            ErrorKind::AlreadyExists => exists(&target),
            _ => cannot(error.error),
        })?;
        sync_folder(parent_folder(&target)?);
        Ok(())
    }
}

fn exists(path: &Path) -> Error {
    Error::input("exists").file(path).remedy(FORCE_REMEDY)
}

/// The folder of `path`, which must exist.
pub(crate) fn parent_folder(path: &Path) -> Result<&Path> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(Error::input("cannot be written to").file(path).remedy("choose another name")),
    };
    match fs::metadata(parent) {
        Ok(metadata) if metadata.is_dir() => Ok(parent),
        Ok(_) => Err(Error::input(format!("{} is not a folder", parent.display()))
            .file(path)
            .remedy("choose another folder")),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Error::input(format!("the folder {} does not exist", parent.display()))
                .file(path)
                .remedy("create it first"))
        }
        Err(error) => Err(Error::io("cannot use the folder", parent, error)),
    }
}

/// Writes the names in a folder to the disk, where the system can.
pub(crate) fn sync_folder(folder: &Path) {
    // Best effort: the data are safe already, some file systems refuse this, and Windows has no such call.
    #[cfg(unix)]
    if let Ok(folder) = fs::File::open(folder) {
        let _ = folder.sync_all();
    }
    #[cfg(not(unix))]
    let _ = folder;
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;

    fn entries(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn appears_on_commit_only() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.nwc");
        let mut file = AtomicFile::create(&target, false).unwrap();
        assert_eq!(file.target(), target);
        file.file().write_all(b"....data").unwrap();
        file.file().seek(SeekFrom::Start(0)).unwrap();
        file.file().write_all(b"head").unwrap();
        assert!(!target.exists());
        file.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"headdata");
        assert_eq!(entries(dir.path()), 1);
    }

    #[test]
    fn vanishes_without_commit() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(&dir.path().join("a"), false).unwrap();
        file.file().write_all(&vec![0; 1 << 16]).unwrap();
        assert_eq!(entries(dir.path()), 1);
        drop(file);
        assert_eq!(entries(dir.path()), 0);
    }

    #[test]
    fn does_not_clobber_without_force() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        let mut late = AtomicFile::create(&target, false).unwrap();
        late.file().write_all(b"late").unwrap();
        fs::write(&target, "first").unwrap();
        let at_create = AtomicFile::create(&target, false).unwrap_err().to_string();
        assert!(at_create.ends_with("a: exists; use --force to overwrite it"), "{at_create}");
        assert_eq!(late.commit().unwrap_err().to_string(), at_create);
        assert_eq!(fs::read(&target).unwrap(), b"first");
        assert_eq!(entries(dir.path()), 1);

        let mut forced = AtomicFile::create(&target, true).unwrap();
        forced.file().write_all(b"forced").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"first");
        forced.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"forced");
    }

    #[test]
    fn bad_targets() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| AtomicFile::create(path, true).unwrap_err().to_string();
        assert!(error(dir.path()).contains("is a folder"));
        let text = error(&dir.path().join("none").join("a"));
        assert!(text.contains("none does not exist; create it first"), "{text}");
        fs::write(dir.path().join("f"), "").unwrap();
        error(&dir.path().join("f").join("a"));
        error(Path::new(""));
        error(Path::new("/"));
    }

    #[cfg(unix)]
    #[test]
    fn permissions_and_links_on_unix() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        fs::write(&plain, "").unwrap();
        let target = dir.path().join("a");
        AtomicFile::create(&target, false).unwrap().commit().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&target), mode(&plain));

        let link = dir.path().join("link");
        symlink(&target, &link).unwrap();
        let mut file = AtomicFile::create(&link, true).unwrap();
        file.file().write_all(b"x").unwrap();
        file.commit().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"x");
        let device = AtomicFile::create(Path::new("/dev/null"), true).unwrap_err().to_string();
        assert!(device.contains("not a regular file"), "{device}");
    }
}
