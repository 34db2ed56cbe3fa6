//! Output into memory that the caller owns.

use std::cell::RefCell;
use std::ops::Range;

use super::Output;
use crate::error::{Error, Result};
use crate::reader::strided::Lattice;
use crate::tensor::View;

/// One slice a tensor, all of the first file.
pub struct MemoryOutput<'a> {
    tensors: Vec<RefCell<&'a mut [u8]>>,
}

impl<'a> MemoryOutput<'a> {
    /// Slices of exactly the tensors' bytes, in the order of the layout.
    pub fn new(tensors: impl IntoIterator<Item = &'a mut [u8]>) -> Self {
        MemoryOutput { tensors: tensors.into_iter().map(RefCell::new).collect() }
    }

    fn tensor(&self, file: usize, tensor: usize) -> Result<&RefCell<&'a mut [u8]>> {
        self.tensors.get(tensor).filter(|_| file == 0).ok_or_else(|| misuse("there is no such tensor"))
    }
}

impl Output for MemoryOutput<'_> {
    fn write(&self, file: usize, tensor: usize, byte_offset: u64, bytes: &[u8]) -> Result<()> {
        let mut memory = self.tensor(file, tensor)?.borrow_mut();
        let place =
            usize::try_from(byte_offset).ok().and_then(|at| memory.get_mut(at..)?.get_mut(..bytes.len()));
        place.ok_or_else(|| misuse("bytes reach past the tensor"))?.copy_from_slice(bytes);
        Ok(())
    }

    fn write_view(
        &self,
        file: usize,
        tensor: usize,
        view: &View,
        rows: Range<usize>,
        elem_size: usize,
        bytes: &[u8],
    ) -> Result<()> {
        let memory = self.tensor(file, tensor)?;
        let elements = (memory.borrow().len() / elem_size.max(1)) as u64;
        let lattice = Lattice::new(view, rows, 0..view.cols, elements).map_err(|what| misuse(&what))?;
        let read = |at: u64, out: &mut [u8]| {
            out.copy_from_slice(&memory.borrow()[at as usize..][..out.len()]);
            Ok(())
        };
        let write = |at: u64, run: &[u8]| {
            memory.borrow_mut()[at as usize..][..run.len()].copy_from_slice(run);
            Ok(())
        };
        lattice.scatter(elem_size as u64, bytes, read, write)
    }
}

fn misuse(what: &str) -> Error {
    Error::io("write", "memory")(std::io::Error::other(format!("internal error: {what}")))
}
