//! Checkpoints of torch: `.pt`, `.pth`, `.bin`, in its zip archives, in the stream of before 1.6, and TorchScript.
//!
//! Pickles are parsed, never run, and tensors stay where they are: only their places are made out.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use super::Header;
use super::handles::read_at;
use super::pickle::{self, Problem};
use crate::error::{Error, Result};
use crate::tensor::TensorInfo;

mod archive;
mod legacy;
mod state_dict;
mod tensors;

use archive::Archive;
use state_dict::{Found, find};
use tensors::Described;

/// Offset in the file and bytes, by key.
type Storages = HashMap<String, (u64, u64)>;

/// Whether a file begins as torch's do.
pub(super) fn is_torch(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04") || start.first() == Some(&0x80) || is_tar(start)
}

/// The format before 0.1.10.
fn is_tar(start: &[u8]) -> bool {
    start.get(257..262) == Some(b"ustar")
}

/// Reads directory and pickle of a file. Memory stays within a bound, whatever the file claims.
pub(super) fn read(path: &Path, file: &File, size: u64, start: &[u8]) -> Result<Header> {
    let wrong = |what: String| Error::format(path, what);
    if is_tar(start) {
        return Err(wrong(
            "is a tar archive of torch before 0.1.10; load it with an old torch, and save it again".into(),
        ));
    }
    if !start.starts_with(b"PK\x03\x04") {
        let (found, storages) = legacy::open(path, file, size)?;
        return place(path, found, &storages);
    }
    let archive = Archive::open(file, size).map_err(wrong)?;
    let Some(span) = archive.get("data.pkl").map_err(wrong)? else {
        return Err(wrong(
            "is an archive of torch without data.pkl: of torch.export, or of TorchScript before 1.4; accepted: what \
             torch.save(model.state_dict(), …) writes"
                .into(),
        ));
    };
    if let Some((at, length)) = archive.get("byteorder").map_err(wrong)? {
        let mut order = vec![0; length.min(16) as usize];
        read_at(file, at, &mut order).map_err(Error::io("read", path))?;
        if order != b"little" {
            let order = String::from_utf8_lossy(&order).into_owned();
            return Err(wrong(format!("was written on a machine of another byte order: {order}")));
        }
    }
    let script = archive.has_folder("code/") || archive.has("constants.pkl");
    let (arena, root) = pickle::read(archive.reader(span), script).map_err(|e| report(path, e))?;
    let mut found = find(&arena, root, script).map_err(wrong)?;
    if script {
        found.notes.insert(
            0,
            "TorchScript: parameters, buffers and other tensors are read, the code is left behind".into(),
        );
    }
    let mut storages = Storages::new();
    for (_, tensor) in &found.tensors {
        if let Some(span) = archive.get(&format!("data/{}", tensor.storage)).map_err(wrong)? {
            storages.insert(tensor.storage.clone(), span);
        }
    }
    place(path, found, &storages)
}

/// Gives every tensor its place, and finds those that are one and the same.
fn place(path: &Path, found: Found, storages: &Storages) -> Result<Header> {
    let mut first: HashMap<Described, String> = HashMap::new();
    let mut names: HashMap<&str, ()> = HashMap::new();
    let metadata = found.attributes.into_iter().collect();
    let mut header = Header { metadata, notes: found.notes, ..Header::default() };
    for (name, tensor) in &found.tensors {
        let wrong = |what: String| Error::format(path, format!("tensor `{name}` {what}"));
        if names.insert(name, ()).is_some() {
            return Err(wrong("is there twice".into()));
        }
        let empty = tensor.shape.contains(&0);
        let Some((start, bytes)) = storages.get(&tensor.storage).copied().or(empty.then_some((0, 0))) else {
            return Err(wrong(format!("lies in storage `{}`, which the file does not have", tensor.storage)));
        };
        if tensor.storage_bytes() > bytes && !empty {
            return Err(wrong(format!(
                "lies in storage `{}` of {} bytes, and the file holds {bytes} of them: cut off, or damaged",
                tensor.storage,
                tensor.storage_bytes()
            )));
        }
        let shape: Option<Vec<usize>> = tensor.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let shape = shape.ok_or_else(|| wrong("is too large for this machine".into()))?;
        // Tensors without elements share nothing.
        if !empty {
            match first.entry(tensor.clone()) {
                std::collections::hash_map::Entry::Occupied(entry) => {
                    header.tied.insert(name.clone(), entry.get().clone());
                    continue;
                }
                std::collections::hash_map::Entry::Vacant(entry) => drop(entry.insert(name.clone())),
            }
        }
        let at = if empty { start } else { start + tensor.offset * tensor.dtype.size() as u64 };
        let info = TensorInfo { name: name.clone(), dtype: tensor.dtype, shape };
        header.tensors.push((info, at, tensor.strides.clone()));
    }
    Ok(header)
}

/// What a pickle that is not read means for the user.
fn report(path: &Path, problem: Problem) -> Error {
    match problem {
        Problem::Io(e) => Error::io("read", path)(e),
        Problem::Other(what) => Error::format(path, what),
        Problem::Global(name) => Error::format(
            path,
            format!(
                "holds a pickled `{name}`, and loading it would run code of that name; nothing was run. Accepted: \
                 tensors and what usually lies beside them. Where the file is trusted, save the weights alone: \
                 torch.save(model.state_dict(), \"weights.pt\")"
            ),
        ),
    }
}
