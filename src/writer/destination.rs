//! Where output goes: into a hidden sibling while it grows, and by one rename onto the final name at the end.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Container;
use super::manifest::Manifest;
use super::workplace::{Workplace, bytes_in};
use crate::error::{Error, Result};
use crate::reader::directory::TORCH;

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// One file, of the format that its name says.
    File(PathBuf),
    /// A directory with weights and everything that goes along.
    Directory(PathBuf),
    /// Memory of the caller's, by this name in messages.
    Memory(PathBuf),
}

impl Destination {
    /// A file if the name ends as one of a container does, else a directory.
    pub fn of(path: PathBuf) -> Self {
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or("").to_ascii_lowercase();
        match matches!(extension.as_str(), "safetensors" | "gguf") || TORCH.contains(&extension.as_str()) {
            true => Destination::File(path),
            false => Destination::Directory(path),
        }
    }

    /// What holds the tensors. In directories it is safetensors.
    pub fn container(&self) -> Container {
        match self {
            Destination::File(path) if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) => {
                Container::Gguf
            }
            Destination::File(path)
                if path.extension().is_some_and(|e| !e.eq_ignore_ascii_case("safetensors")) =>
            {
                Container::Torch
            }
            _ => Container::Safetensors,
        }
    }

    /// Why no output can go there, whatever may be replaced.
    pub(crate) fn unfit(&self) -> Option<String> {
        let path = self.path();
        if path == Path::new("-") {
            return Some(
                "-: an output is a file or a directory, not the standard output; ./- is one of that name"
                    .into(),
            );
        }
        let (parent, name) = resolve(path).ok()?;
        let kind = fs::symlink_metadata(parent.join(name)).ok()?;
        let wanted = other_kind(&kind, matches!(self, Destination::Directory(_)))?;
        Some(format!("{}: exists and is not {wanted}; --output names another place", path.display()))
    }

    /// The path as given.
    pub fn path(&self) -> &Path {
        match self {
            Destination::File(path) | Destination::Directory(path) | Destination::Memory(path) => path,
        }
    }
}

/// Bytes that may still be written to the file system that is to hold `path`, which need not exist yet.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let (parent, _) = resolve(path)?;
    fs4::available_space(&parent).map_err(Error::io("measure the free space of", &parent))
}

/// The directory that holds the output and the output's name in it. A link is followed, so that it stays what it is.
fn resolve(path: &Path) -> Result<(PathBuf, OsString)> {
    let split = |path: &Path| -> Result<(PathBuf, OsString)> {
        let name = path.file_name().ok_or_else(|| {
            Error::refused(format!("{}: the output needs a name of its own", path.display()))
        })?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        Ok((parent, name.to_owned()))
    };
    let (parent, name) = split(path)?;
    match fs::metadata(&parent) {
        Ok(kind) if kind.is_dir() => {}
        Ok(_) => {
            return Err(Error::refused(format!("{} is not a directory", parent.display())));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::refused(format!(
                "{}: the directory {} does not exist; create it first",
                path.display(),
                parent.display()
            )));
        }
        Err(e) => return Err(Error::io("open", &parent)(e)),
    }
    let path = parent.join(&name);
    match path.is_symlink() {
        true => split(&fs::canonicalize(&path).map_err(Error::io("follow the link", &path))?),
        false => Ok((parent, name)),
    }
}

/// Bytes of what runs left beside `path`, which the next one goes on with or removes.
pub(crate) fn left_bytes(path: &Path) -> u64 {
    resolve(path).map_or(0, |(parent, name)| bytes_in(&Workplace::beside(&parent, &name)))
}

/// Output in the making, in a place of its own beside the destination.
#[derive(Debug)]
pub(super) struct Staging {
    path: PathBuf,
    directory: bool,
    force: bool,
    pub work: Workplace,
    /// What the user should know of what was found.
    pub notes: Vec<String>,
}

impl Staging {
    /// Takes the place. Refuses what [`Staging::publish`] would refuse, and what another run is writing.
    pub fn create(destination: &Destination, force: bool) -> Result<Self> {
        let (parent, name) = resolve(destination.path())?;
        let path = parent.join(&name);
        let directory = matches!(destination, Destination::Directory(_));
        check(&path, directory, force)?;
        let work = Workplace::take(Workplace::beside(&parent, &name), &path)?;
        let mut staging = Staging { path, directory, force, work, notes: Vec::new() };
        staging.restore()?;
        Ok(staging)
    }

    /// Puts back what a run that was killed had moved aside, where the system cannot swap in one step.
    fn restore(&mut self) -> Result<()> {
        let aside = self.work.replaced();
        if aside.symlink_metadata().is_err() || self.path.symlink_metadata().is_ok() {
            return Ok(());
        }
        fs::rename(&aside, &self.path).map_err(Error::io("move back", &aside))?;
        self.notes
            .push(format!("{}: put back, as a run was killed while it replaced it", self.path.display()));
        check(&self.path, self.directory, self.force).map(drop)
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.directory
    }

    /// Final path of the output.
    pub fn destination(&self) -> &Path {
        &self.path
    }

    /// Whether the destination exists; refuses if it does and may not be replaced.
    pub fn check(&self) -> Result<bool> {
        check(&self.path, self.directory, self.force)
    }

    /// Makes everything durable and moves it onto the destination. What is removed afterwards is the place only.
    pub fn publish(&mut self) -> Result<()> {
        let exists = self.check()?;
        let (path, new) = (&self.path, self.work.output());
        match self.directory {
            true => sync_tree(&new)?,
            false => sync_file(&new)?,
        }
        match (self.directory, exists) {
            (true, true) => {
                // from here on the place may hold what was replaced
                Manifest::remove(self.work.path())?;
                replace(&new, path, &self.work.replaced())?;
            }
            (false, _) if self.force => fs::rename(&new, path).map_err(|e| taken(path, e))?,
            _ => rename_new(&new, path).map_err(|e| taken(path, e))?,
        }
        sync_directory(path.parent().unwrap_or(Path::new(".")))?;
        let removed = self.work.remove();
        removed.map_err(|e| Error::io(REMOVAL, self.work.path())(io::Error::other(e.to_string())))
    }
}

/// Whether the destination exists; refuses if it does and may not be replaced.
fn check(path: &Path, directory: bool, force: bool) -> Result<bool> {
    let kind = match fs::symlink_metadata(path) {
        Ok(kind) => kind,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Error::io("open", path)(e)),
    };
    let shown = path.display();
    match other_kind(&kind, directory) {
        Some(wanted) => {
            Err(Error::refused(format!("{shown} exists and is not {wanted}; choose another name")))
        }
        None if !force => Err(Error::refused(format!("{shown} exists already; --force replaces it"))),
        None if directory && !is_model(path)? => Err(Error::refused(format!(
            "{shown} does not look like a model (no .safetensors in it, nor a config.json without folders), so not even --force removes it"
        ))),
        None => Ok(true),
    }
}

/// What the output would be, where what is there is something else.
fn other_kind(kind: &fs::Metadata, directory: bool) -> Option<&'static str> {
    match directory {
        true => (!kind.is_dir()).then_some("a directory"),
        false => (!kind.is_file()).then_some("a file"),
    }
}

/// Whether a directory is empty or holds a model, or nothing but directories that do. Anything else is not ours to
/// delete, `--force` or not.
fn is_model(path: &Path) -> Result<bool> {
    let mut folders = Vec::new();
    let (mut others, mut config) = (false, false);
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        if is_weights(&entry.file_name()) {
            return Ok(true);
        }
        config |= entry.file_name() == "config.json";
        match entry.file_type().map_err(Error::io("open", entry.path()))?.is_dir() {
            true => folders.push(entry.path()),
            false => others = true,
        }
    }
    // a config beside folders may be anybody's
    if others {
        return Ok(config && folders.is_empty());
    }
    for folder in folders {
        let mut entries = fs::read_dir(&folder).map_err(Error::io("list", &folder))?;
        if !entries.any(|entry| entry.is_ok_and(|e| is_weights(&e.file_name()))) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_weights(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|e| e == "safetensors")
}

fn taken(path: &Path, error: io::Error) -> Error {
    use io::ErrorKind::*;
    match error.kind() {
        AlreadyExists | DirectoryNotEmpty => {
            let shown = path.display();
            Error::refused(format!("{shown} appeared meanwhile; --force replaces it"))
        }
        _ => Error::io("move the output to", path)(error),
    }
}

/// Said when the output is complete and only the cleaning up failed.
const REMOVAL: &str = "remove what was replaced, while the new output is in place,";

/// Puts a new directory in the place of an existing one, which goes where the new one was, or to `aside`.
fn replace(new: &Path, path: &Path, aside: &Path) -> Result<()> {
    match exchange(new, path) {
        Ok(()) => Ok(()),
        Err(_) => replace_in_steps(new, path, aside),
    }
}

/// The same where two paths cannot be swapped in one step.
pub(super) fn replace_in_steps(new: &Path, path: &Path, aside: &Path) -> Result<()> {
    fs::rename(path, aside).map_err(Error::io("move aside", path))?;
    if let Err(e) = rename_new(new, path) {
        // If this fails, too, the next run moves it back.
        fs::rename(aside, path)
            .map_err(Error::io("move back (it is what the output was to replace)", aside))?;
        return Err(Error::io("move the output to", path)(e));
    }
    Ok(())
}

/// Swaps two paths in one step, where the file system can.
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos")))]
    {
        let _ = (a, b);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Renames a file or a directory to a name that must not be taken.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // Not every file system knows the flag.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    // A second name for a file, which is refused where the name is taken.
    if from.is_file() {
        match fs::hard_link(from, to) {
            Ok(()) => return fs::remove_file(from),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(e),
            Err(_) => {} // a file system without
        }
    }
    // What appears between this look and the rename is safe unless it is a file or an empty directory.
    match fs::symlink_metadata(to) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to),
    }
}

/// Flushes a file to the disk.
pub(super) fn sync_file(path: &Path) -> Result<()> {
    // Windows flushes only what is open for writing.
    let file = fs::OpenOptions::new().write(true).open(path).map_err(Error::io("open", path))?;
    file.sync_all().map_err(Error::io("flush", path))
}

fn sync_tree(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let entry = entry.map_err(Error::io("list", directory))?;
        let path = entry.path();
        match entry.file_type().map_err(Error::io("open", &path))?.is_dir() {
            true => sync_tree(&path)?,
            false => sync_file(&path)?,
        }
    }
    sync_directory(directory)
}

/// Flushes a directory's names to the disk, where directories can be flushed.
pub(super) fn sync_directory(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        let directory = fs::File::open(path).map_err(Error::io("open", path))?;
        match directory.sync_all() {
            // Some network file systems cannot, and need not.
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {}
            result => result.map_err(Error::io("flush", path))?,
        }
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}
