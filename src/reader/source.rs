//! Tensor bytes, read at positions from any number of threads.

use std::ops::Range;

use super::Checkpoint;
use super::dims::Dims;
use super::handles::{Handles, OPEN, read_at};
use super::memory::Blob;
use super::strided::Lattice;
use crate::error::{Error, Result};
use crate::profile::{Profile, Span, Stage};
use crate::tensor::{TensorInfo, View};

/// The opened files of a [`Checkpoint`]. Tensors are numbered as in [`Checkpoint::tensors`].
#[derive(Debug)]
pub struct Source {
    tensors: Vec<Extent>,
    handles: Handles,
    blobs: Vec<Blob>,
    profile: Option<Profile>,
}

#[derive(Debug)]
struct Extent {
    info: TensorInfo,
    file: usize,
    start: u64,
    /// Of a tensor that is not contiguous.
    dims: Option<Dims>,
}

impl Source {
    pub(super) fn open(checkpoint: &Checkpoint) -> Result<Source> {
        let handles = Handles::new(checkpoint.files.clone(), false);
        // More files than may stay open are opened when their turn comes.
        if checkpoint.files.len() <= OPEN {
            for (i, path) in checkpoint.files.iter().enumerate() {
                handles.get(i).map_err(Error::io("open", path))?;
            }
        }
        let extent = |t: &super::StoredTensor| Extent {
            info: t.info.clone(),
            file: t.file,
            start: t.start,
            dims: t.strides.as_ref().map(|strides| Dims::new(&t.info.shape, strides)),
        };
        let tensors = checkpoint.tensors.iter().map(extent).collect();
        Ok(Source { tensors, handles, blobs: checkpoint.blobs.clone(), profile: None })
    }

    /// The same, its reads recorded.
    pub fn profiled(self, profile: Option<Profile>) -> Self {
        Source { profile, ..self }
    }

    /// Fills `out` with the bytes of a tensor from `byte_offset` on.
    pub fn read(&self, tensor: usize, byte_offset: u64, out: &mut [u8]) -> Result<()> {
        let extent = self.extent(tensor)?;
        let end = byte_offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > extent.info.bytes()) {
            return Err(self.misuse(
                extent,
                format!(
                    "{} bytes from byte {byte_offset} on reach past its {} bytes",
                    out.len(),
                    extent.info.bytes()
                ),
            ));
        }
        let _span = self.span(extent, out);
        self.fill(extent, byte_offset, out)
    }

    /// Fills `out` with a part of a view, packed row after row.
    ///
    /// Strided and transposed views are gathered with few, large reads through at most 8 MiB of memory.
    pub fn read_view(
        &self,
        tensor: usize,
        view: &View,
        rows: Range<usize>,
        cols: Range<usize>,
        out: &mut [u8],
    ) -> Result<()> {
        let extent = self.extent(tensor)?;
        let elem = extent.info.dtype.size() as u64;
        let lattice = Lattice::new(view, rows, cols, extent.info.elements())
            .map_err(|what| self.misuse(extent, what))?;
        if lattice.elements().checked_mul(elem) != Some(out.len() as u64) {
            let what = format!("a buffer of {} bytes for another number of elements", out.len());
            return Err(self.misuse(extent, what));
        }
        let _span = self.span(extent, out);
        lattice.gather(elem, out, |at, bytes| self.fill(extent, at, bytes))
    }

    #[cfg(test)]
    pub(super) fn open_files(&self) -> usize {
        self.handles.count()
    }

    fn span(&self, extent: &Extent, out: &[u8]) -> Option<Span> {
        self.profile.as_ref().map(|profile| profile.span(Stage::Read).of(&extent.info.name, out.len()))
    }

    fn extent(&self, tensor: usize) -> Result<&Extent> {
        self.tensors.get(tensor).ok_or_else(|| {
            let source = std::io::Error::other(format!("internal error: no tensor {tensor}"));
            Error::io("read", self.handles.path(0))(source)
        })
    }

    fn fill(&self, extent: &Extent, at: u64, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        if let Some(blob) = self.blobs.get(extent.file) {
            // that every element lies in the blob was checked when it was taken up
            let memory = &blob.bytes()[extent.start as usize..];
            return self.gather(extent, at, out, |at, out| {
                out.copy_from_slice(&memory[at as usize..][..out.len()]);
                Ok(())
            });
        }
        let file = self.handles.get(extent.file);
        let file = file.map_err(Error::io("read", self.handles.path(extent.file)))?;
        self.gather(extent, at, out, |at, out| {
            let read = read_at(&file, extent.start + at, out);
            read.map_err(Error::io("read", self.handles.path(extent.file)))
        })
    }

    /// Reads in one go, or element by element where they are strided.
    fn gather(
        &self,
        extent: &Extent,
        at: u64,
        out: &mut [u8],
        mut raw: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let elem = extent.info.dtype.size() as u64;
        match &extent.dims {
            None => raw(at, out),
            Some(dims) if at.is_multiple_of(elem) && (out.len() as u64).is_multiple_of(elem) => {
                dims.gather(at / elem, elem, out, raw)
            }
            Some(_) => Err(self.misuse(extent, "a part of an element".into())),
        }
    }

    /// The caller asked for what is not there: a mistake in monoquant, not in the file.
    fn misuse(&self, extent: &Extent, what: String) -> Error {
        let text = format!("internal error: tensor `{}`: {what}", extent.info.name);
        Error::io("read", self.handles.path(extent.file))(std::io::Error::other(text))
    }
}
